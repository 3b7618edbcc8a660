"""Pixel conventions: which pixel a projected point falls into.

Both conventions are a homogeneous map followed by a step function per raster level, so that one rasterizer serves both:

* ``xyd = xyz_world @ matrix + offset``; depth is ``xyd[2]``; normalised coordinates ``(x, y) = (scale * xyd[:2] + shift * depth) / (depth + epsilon)``;
* at a level of h x w cells, ``column = floor(start_w + slope_w * x)`` and ``row = floor(start_h + slope_h * y)``.

EXACT: (x, y) are pixels of the full image from its top-left corner, a point is in the image when ``0 <= x < W`` and ``0 <= y < H``, and a level at scale
q has cells of 1/q pixels, ``column = floor(q x)``. Levels whose scales halve nest.

AUTHORS, of the NPBG++ release: (x, y) are the authors' normalised coordinates (+x left, +y up, the short side spans -1..1 between the *centres* of its
first and last pixel), a point is in the image when ``|x| <= bx`` and ``|y| <= by``, and every level spans the same range between its own border centres,
with s = min(h, w): ``column = trunc((w - 1) / 2 - x (s - 1) / 2 - 1e-6 + 0.5)``. Levels do not nest. Released weights need this convention.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from npbgpp.geometry.cameras import Cameras

_AUTHORS_EPSILON = 1e-7
_AUTHORS_ROUNDING_SHIFT = 1e-6


class PixelConvention(str, Enum):
    """See the module docstring; the values are those of the config key ``system.pixel_convention``."""

    EXACT = "exact"
    AUTHORS = "authors"


def ndc_bounds(image_size: tuple[int, int]) -> tuple[float, float]:
    """Largest (x, y) of the authors' normalised coordinates: 1 on the short side, long / short on the long one."""
    height, width = image_size
    return (1.0, height / width) if width <= height else (width / height, 1.0)


@dataclass(frozen=True)
class Projection:
    """Map from world points to normalised coordinates for b cameras; see the module docstring. ``scale`` and ``shift`` are None for 1 and 0."""

    matrix: Float[Tensor, "b 3 3"]
    offset: Float[Tensor, "b 3"]
    scale: Float[Tensor, "b 2"] | None
    shift: Float[Tensor, "b 2"] | None
    epsilon: float

    def apply(self, xyz_world: Float[Tensor, "*b n 3"]) -> Float[Tensor, "b n 3"]:
        """(x, y, depth) of every point for every camera."""
        xyd = xyz_world @ self.matrix + self.offset[:, None]
        xy, depth = xyd[..., :2], xyd[..., 2:]
        if self.scale is not None and self.shift is not None:
            xy = self.scale[:, None] * xy + self.shift[:, None] * depth
        return torch.cat([xy / (depth + self.epsilon), depth], -1)


@dataclass(frozen=True)
class PixelGrid:
    """A pixel convention at one image size (height, width); see the module docstring."""

    convention: PixelConvention
    image_size: tuple[int, int]

    @property
    def epsilon(self) -> float:
        """Added to the depth before dividing by it."""
        return _AUTHORS_EPSILON if self.convention is PixelConvention.AUTHORS else 0.0

    def projection(self, cameras: Cameras) -> "Projection":
        """The map to normalised coordinates of these cameras.

        AUTHORS keeps the order of the authors' operations, since rounding decides between adjacent cells; EXACT needs no scale and no shift.
        """
        dtype = cameras.R.dtype
        if self.convention is PixelConvention.AUTHORS:
            focal, principal = cameras.to_authors_ndc()
            return Projection(cameras.R, cameras.T, focal.to(dtype), principal.to(dtype), self.epsilon)
        intrinsics = torch.zeros(len(cameras), 3, 3, dtype=torch.float64, device=cameras.R.device)
        intrinsics[:, [0, 1], [0, 1]] = -cameras.focal_length.double()
        intrinsics[:, 2, :2] = cameras.principal_point.double()
        intrinsics[:, 2, 2] = 1.0
        matrix, offset = cameras.R.double() @ intrinsics, (cameras.T.double()[:, None] @ intrinsics)[:, 0]
        return Projection(matrix.to(dtype), offset.to(dtype), None, None, self.epsilon)

    def normalise(self, cameras: Cameras, xyz_world: Float[Tensor, "*b n 3"]) -> Float[Tensor, "b n 3"]:
        """(x, y, depth) of world points for every camera; finite behind the camera too, but not at depth 0 of the exact convention."""
        return self.projection(cameras).apply(xyz_world)

    def inside(self, x: Float[Tensor, "*n"], y: Float[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
        """Whether normalised coordinates lie in the image."""
        if self.convention is PixelConvention.AUTHORS:
            bound_x, bound_y = ndc_bounds(self.image_size)
            return (x.abs() <= bound_x) & (y.abs() <= bound_y)
        height, width = self.image_size
        return (x >= 0) & (x < width) & (y >= 0) & (y < height)

    def cells(
        self, x: Float[Tensor, " n"], y: Float[Tensor, " n"], scale: float, level_size: tuple[int, int]
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """(row, column) in a level, int32; coordinates outside the image may give cells outside the level.

        Every operation is monotone in x (and y), so ranges of coordinates map to ranges of cells also after rounding.
        """
        height, width = level_size
        if self.convention is PixelConvention.EXACT:
            return (y * scale).floor_().to(torch.int32), (x * scale).floor_().to(torch.int32)
        half = (min(height, width) - 1) / 2
        column = x.mul(-half).add_((width - 1) / 2).sub_(_AUTHORS_ROUNDING_SHIFT).add_(0.5).to(torch.int32)  # the conversion truncates
        row = y.mul(-half).add_((height - 1) / 2).sub_(_AUTHORS_ROUNDING_SHIFT).add_(0.5).to(torch.int32)
        return row, column

    def cell_steps(self, scale: float, level_size: tuple[int, int]) -> tuple[float, float, float, float, float]:
        """Numbers of the step function of a level: (slope, start of x, start of y, shift, half).

        The column is ``trunc(((x * slope + start) - shift) + half)``, with each operation rounded to float32; the same as ``cells``.
        """
        if self.convention is PixelConvention.EXACT:
            return scale, 0.0, 0.0, 0.0, 0.0
        height, width = level_size
        return -(min(height, width) - 1) / 2, (width - 1) / 2, (height - 1) / 2, _AUTHORS_ROUNDING_SHIFT, 0.5

    def extent(self, device: torch.device) -> tuple[Float[Tensor, " 2"], Float[Tensor, " 2"]]:
        """Smallest and largest (x, y) of the image."""
        if self.convention is PixelConvention.AUTHORS:
            bounds = torch.tensor(ndc_bounds(self.image_size), device=device)
            return -bounds, bounds
        height, width = self.image_size
        return torch.zeros(2, device=device), torch.tensor([float(width), float(height)], device=device)

    def closed_extent(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Smallest and largest float32 (x, y) for which ``inside`` holds, both included."""
        if self.convention is PixelConvention.AUTHORS:
            bound_x, bound_y = (float(np.float32(bound)) for bound in ndc_bounds(self.image_size))
            return (-bound_x, -bound_y), (bound_x, bound_y)
        height, width = (float(np.nextafter(np.float32(length), np.float32(0))) for length in self.image_size)
        return (0.0, 0.0), (width, height)

    def level_size(self, scale: float, supersampling: int = 1) -> tuple[int, int]:
        """(height, width) of the raster at a scale: int(scale * size) * supersampling, as the authors round."""
        height, width = self.image_size
        return int(scale * height) * supersampling, int(scale * width) * supersampling


@dataclass(frozen=True)
class ProjectionSettings:
    """How points are projected to images.

    Attributes:
        near: near plane: points at depth <= near are culled; scene units.
        pixel_convention: see the module docstring.
    """

    near: float = 0.0
    pixel_convention: PixelConvention = PixelConvention.EXACT

    def grid(self, image_size: tuple[int, int]) -> PixelGrid:
        """The pixel grid of images of one size (height, width)."""
        return PixelGrid(self.pixel_convention, image_size)

    def in_frustum(self, cameras: Cameras, xyz_world: Float[Tensor, "*b n 3"]) -> Bool[Tensor, "b n"]:
        """Whether points lie in the image and beyond the near plane of each camera."""
        grid = self.grid(cameras.image_size)
        x, y, depth = grid.normalise(cameras, xyz_world).unbind(-1)
        return grid.inside(x, y) & (depth > self.near)
