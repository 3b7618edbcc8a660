"""What photos show besides the gaussians: the background behind them, and the exposure of each photo.

Symbols: k coefficients of spherical harmonics, v training photos.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from npbgpp.data import View
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras

BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
_COARSE = 16  # pixels per node of the grid on which an environment is evaluated
_DC = 0.5 / math.sqrt(math.pi)


def harmonics(directions: Float[Tensor, "*n 3"], degree: int) -> Float[Tensor, "*n k"]:
    """Real spherical harmonics of unit vectors, degree by degree, up to 3; the constant one first. Not normalised but for the first."""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, _DC)]
    if degree > 0:
        basis += [y, z, x]
    if degree > 1:
        basis += [x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y]
    if degree > 2:
        basis += [
            *(y * (3 * x * x - y * y), x * y * z, y * (5 * z * z - 1), z * (5 * z * z - 3)),
            *(x * (5 * z * z - 1), z * (x * x - y * y), x * (x * x - 3 * y * y)),
        ]
    return torch.stack(basis, -1)


class Background(nn.Module):
    """Colours behind all gaussians.

    Args:
        kind: ``white``, ``black``; ``learned``: one colour; ``environment``: a colour that depends on the direction, infinitely far away, in spherical
            harmonics.
        degree: of the environment.
    """

    fixed: Tensor

    def __init__(self, kind: str, degree: int) -> None:
        super().__init__()
        self.degree = degree if kind == "environment" else 0
        self.coefficients = nn.Parameter(torch.zeros((self.degree + 1) ** 2, 3)) if kind in ("learned", "environment") else None
        self.register_buffer("fixed", torch.tensor(BACKGROUNDS.get(kind, (0.5, 0.5, 0.5))), persistent=False)

    def forward(self, camera: Cameras) -> Float[Tensor, " 3"] | Float[Tensor, "3 h w"]:
        """One colour, or the image of the environment that a camera sees; not clamped from above."""
        if self.coefficients is None:
            return self.fixed
        if self.degree == 0:
            return (0.5 + _DC * self.coefficients[0]).clamp(min=0)
        height, width = camera.image_size
        coarse = camera.resize((-(-height // _COARSE) + 1, -(-width // _COARSE) + 1))
        basis = harmonics(coarse.rays()[1][0].to(self.coefficients.dtype), self.degree)
        image = (0.5 + basis @ self.coefficients).clamp(min=0).permute(2, 0, 1)
        return interpolate(image[None], (height, width), mode="bilinear", align_corners=False)[0]


def choose_background(kind: str, views: Sequence[View], scene: str, use_masks: bool) -> str:
    """The background for training photos: ``auto`` is white or black where photos are composited on it, else learned.

    Raises:
        InputError: photos with alpha that are not composited, and are not compared inside the mask only, or another colour than theirs.
    """
    composited = {view.background for view in views}
    masked = [view for view in views if view.alpha_is_mask or view.mask is not None]
    bare = [view for view in masked if view.background is None]
    if bare and not use_masks:
        raise InputError(
            f"datasets.white_bg: photos such as {bare[0].image.name} of scene {scene} have {'alpha' if bare[0].alpha_is_mask else 'masks'}, and without "
            "compositing their hidden colours would be learned; set datasets.white_bg=true, or compare inside the masks only with system.use_masks=true"
        )
    named = next((name for name, colour in BACKGROUNDS.items() if composited == {colour}), None)
    if kind == "auto":
        return named or ("white" if masked else "learned")
    if named is not None and kind != named:
        raise InputError(
            f"system.background: the photos of scene {scene} are composited on {named}, got {kind}; set system.background=auto, or datasets.white_bg=false with "
            "system.use_masks=true"
        )
    return kind


class Exposure(nn.Module):
    """An affine change of colours per training photo, relative to their mean; other views have none.

    Args:
        names: of the training photos.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._index = {name: k for k, name in enumerate(names)}
        self.change = nn.Parameter(torch.zeros(len(names), 3, 4))

    def forward(self, image: Float[Tensor, "3 h w"], name: str) -> Float[Tensor, "3 h w"]:
        """The image as the photo of this name was exposed."""
        change = self.change[self._index[name]]
        flat = image.flatten(1)
        return (flat + torch.addmm(change[:, 3:], change[:, :3], flat)).view_as(image)

    @torch.no_grad()
    def centre(self) -> None:
        """Removes the mean over photos, which would drift into the scene."""
        self.change.sub_(self.change.mean(0))
