"""Several points per cell: the nearest ones, blended by their depths, in place of the nearest alone.

One point per cell changes abruptly from view to view where a cloud is denser than the image, or noisy; a mean of what lies at almost the same depth does not.
Symbols: b views, k points of a cell, front to back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.geometry import Cameras, PixelConvention, PixelGrid
from npbgpp.kernels.peeling import Footprint, peel
from npbgpp.kernels.rasterization import ChunkedCloud, Level

_ONE_CELL = Footprint(near=0.0, far=1.0, max_splat=0.0)


@dataclass(frozen=True)
class FrontPoints:
    """The nearest points of each cell of one level.

    Attributes:
        rows: of the points, in the cloud or among gathered descriptors; -1 where a cell has fewer than k.
        weights: from 0 to 1, with the sum 1; those of an empty cell are 1 and then 0.
    """

    rows: Int[Tensor, "k b h w"]
    weights: Float[Tensor, "k b h w"]


def front_points(
    clouds: Sequence[ChunkedCloud], cameras: Cameras, levels: Sequence[Level], count: int, spread: float, near: float
) -> list[FrontPoints]:
    """The nearest points of every cell, in ``PixelConvention.EXACT``.

    A point at depth d in a cell whose nearest point lies at depth n weighs ``exp(-(d / n - 1) / spread)``, before the sum is scaled to 1.

    Args:
        clouds: one per view.
        cameras: one per view.
        levels: rasters.
        count: k.
        spread: depth behind the nearest point, relative to its depth, at which the weight has decreased to 1 / e.
        near: points at this depth or nearer are left out.
    """
    found = []
    for level in levels:
        views = [peel(cloud, _at_level(cameras[k], level), count, _ONE_CELL, near=near) for k, cloud in enumerate(clouds)]
        rows = torch.stack([torch.stack([layer.index for layer in layers]) for layers in views], 1)
        depth = torch.stack([torch.stack([layer.depth for layer in layers]) for layers in views], 1)
        weights = torch.where(rows >= 0, torch.exp((1 - depth / depth[:1]) / spread), 0.0)
        weights[0] = 1.0  # also of empty cells, whose depths are infinite
        found.append(FrontPoints(rows, weights / weights.sum(0)))
    return found


def _at_level(camera: Cameras, level: Level) -> Cameras:
    """The camera with a cell of the level for a pixel."""
    cells = level.cells_per_pixel()
    size = PixelGrid(PixelConvention.EXACT, camera.image_size).level_size(level.scale, level.supersampling)
    return Cameras(camera.R, camera.T, camera.focal_length * cells, camera.principal_point * cells, size)
