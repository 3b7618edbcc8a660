"""Random changes of colour, drawn once and applied to a target and its input views alike (NPBG++, training).

Images are RGB in 0..1. In terms of hue H, saturation S and value V (the largest channel): brightness is added to every channel, saturation multiplies S,
hue turns H. The ranges are those of the authors' configuration of Kornia's ``ColorJitter`` (brightness 0.1, saturation 0.5, hue 0.5); its fourth
operation, contrast, is left out because its factor there is exactly 1.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import adjust_hue

Operation = Literal["brightness", "saturation", "hue"]

_OPERATIONS: tuple[Operation, ...] = ("brightness", "saturation", "hue")
_LOWEST, _HIGHEST = (-0.1, 0.5, -0.5), (0.1, 1.5, 0.5)  # of each operation
_SMALLEST_CHROMA = 1e-12  # stands in for that of grey pixels, which keep their colour


@dataclass(frozen=True)
class ColorJitter:
    """One draw.

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
