"""Input views of NPBG++: upright alignment (sections 3.2 and 3.4) and colour jitter.

Symbols: k input views of one scene and size, v points, c channels of a feature.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import adjust_hue

from npbgpp.geometry import Cameras, PixelConvention, align_vertically
from npbgpp.nets import PointDirections


@dataclass(frozen=True)
class InputViews:
    """Photos as the feature extractor reads them.

    Attributes:
        images: photos, or their upright versions padded to a square; or crops of these.
        cameras: of these images.
        centers: camera centres of the photos, world coordinates.
        axes: optical axes of the photos, world coordinates.
    """

    images: Float[Tensor, "k 3 h w"]
    cameras: Cameras
    centers: Float[Tensor, "k 3"]
    axes: Float[Tensor, "k 3"]

    def viewing_directions(self, view: int, xyz_world: Float[Tensor, "v 3"]) -> PointDirections:
        """Viewing directions of points from one view."""
        return PointDirections(xyz_world - self.centers[view], self.axes[view, None])


@torch.no_grad()
def upright(
    images: Float[Tensor, "k 3 h w"], cameras: Cameras, convention: PixelConvention, up: tuple[float, float, float], align: bool
) -> InputViews:
    """Turns photos upright. With AUTHORS, centres are computed as in the code of the authors: exact only for centred square pixels."""
    if not align:
        return InputViews(images, cameras, cameras.centers(), cameras.R[:, :, 2])
    alignment = align_vertically(cameras, convention, up)
    turned = alignment.cameras
    if convention is PixelConvention.EXACT:
        return InputViews(alignment.apply(images), turned, cameras.centers(), cameras.R[:, :, 2])
    return InputViews(alignment.apply(images), turned, -(turned.R @ turned.T[:, :, None])[:, :, 0], turned.R[:, :, 2])


Operation = Literal["brightness", "saturation", "hue"]

_OPERATIONS: tuple[Operation, ...] = ("brightness", "saturation", "hue")
_LOWEST, _HIGHEST = (-0.1, 0.5, -0.5), (0.1, 1.5, 0.5)  # of each operation
_SMALLEST_CHROMA = 1e-12  # avoids a division by zero for grey pixels, which keep their colour


@dataclass(frozen=True)
class ColorJitter:
    """Random change of colours, drawn once for a target and its input views.

    Attributes:
        brightness: added to every channel, which then stays within 0..1.
        saturation: factor of S, which then stays within 0..1.
        hue: turn of H as a share of the full circle, -0.5..0.5.
        order: operations in the order of their application.
    """

    brightness: float
    saturation: float
    hue: float
    order: tuple[Operation, ...] = _OPERATIONS

    @classmethod
    def draw(cls, generator: torch.Generator | None = None) -> "ColorJitter":
        """Draws uniformly from the authors' ranges, and the order too. None takes torch's global generator."""
        low, high = torch.tensor(_LOWEST), torch.tensor(_HIGHEST)
        brightness, saturation, hue = (low + (high - low) * torch.rand(3, generator=generator)).tolist()
        order = torch.randperm(3, generator=generator).tolist()
        return cls(brightness, saturation, hue, tuple(_OPERATIONS[k] for k in order))

    def apply(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The images with changed colours, within 0..1."""
        for operation in self.order:
            if operation == "brightness":
                images = (images + self.brightness).clamp(0.0, 1.0)
            elif operation == "saturation":
                images = _saturate(images, self.saturation)
            else:
                images = adjust_hue(images, self.hue)
        return images


def _saturate(images: Float[Tensor, "b 3 h w"], factor: float) -> Float[Tensor, "b 3 h w"]:
    """Multiplies S = chroma / V: at equal H and V the distances of the channels from V grow by one common factor, at most to S = 1."""
    value = images.amax(1, keepdim=True)
    chroma = (value - images.amin(1, keepdim=True)).clamp(min=_SMALLEST_CHROMA)
    growth = (value / chroma).clamp(max=factor)
    return (value - (value - images) * growth).clamp(min=0.0)
