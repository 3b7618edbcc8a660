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
    xyd = grid.normalise(cameras, xyz_world)
    shown = grid.inside(xyd[..., 0], xyd[..., 1]) & (xyd[..., 2] > near)
    if scale is None:
        return shown
    height, width = size = grid.level_size(scale)
    if min(size) < 1:
        raise ValueError(f"visible_points: image of {cameras.image_size} pixels has no cell at scale {scale}")
    pair = shown.view(-1).nonzero()[:, 0]  # view * n + point
    x, y, depth = xyd.view(-1, 3).index_select(0, pair).unbind(-1)
    row, column = grid.cells(x, y, scale, size)
    if grid.overflows(scale, size):
        held = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pair, depth, row, column = (t[held] for t in (pair, depth, row, column))
    cell = (pair // max(len(xyz_world), 1) * height + row) * width + column
    nearest = depth.new_full((len(cameras) * height * width,), torch.inf).scatter_reduce_(0, cell, depth, "amin")
    seen = torch.zeros_like(shown)
    seen.view(-1)[pair[depth == nearest[cell]]] = True
    return seen
