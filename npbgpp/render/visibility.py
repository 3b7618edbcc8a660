"""Which points of a cloud photos show: those that are nearest in a cell of a depth buffer (NPBG++, section 3.2).

For small clouds and any number of cameras at once. For one camera and a large cloud, the winners that ``npbgpp.render.rasterize`` finds are the same
points, but for others at exactly the same depth in the same cell, which also count here.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixel_rules import PixelGrid, PixelRule


@torch.no_grad()
def visible_points(
    xyz_world: Float[Tensor, "n 3"], cameras: Cameras, scale: float | None, near: float, rule: PixelRule
) -> Bool[Tensor, "k n"]:
    """Whether each of k cameras sees each point.

    Args:
        xyz_world: the points; only they hide each other.
        cameras: k cameras.
        scale: of the depth buffer, as a share of the image; None takes every point in the image as seen.
        near: points at depth <= near are not seen; scene units.
        rule: where pixels lie.
    """
    grid = PixelGrid(rule, cameras.image_size)
    x, y, depth = grid.normalise(cameras, xyz_world).unbind(-1)
    shown = grid.inside(x, y) & (depth > near)
    if scale is None:
        return shown
    height, width = grid.level_size(scale)
    if min(height, width) < 1:
        raise ValueError(f"visible_points: image of {cameras.image_size} pixels has no cell at scale {scale}")
    for k in range(len(cameras)):
        candidates = shown[k].nonzero()[:, 0]
        row, column = grid.cells(x[k, candidates], y[k, candidates], scale, (height, width))
        held = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        cell = torch.where(held, row * width + column, height * width).to(torch.int64)
        depths = torch.where(held, depth[k, candidates], torch.inf)
        nearest = depths.new_full((height * width + 1,), torch.inf).scatter_reduce_(0, cell, depths, "amin")
        shown[k, candidates] = held & (depths == nearest[cell])
    return shown
