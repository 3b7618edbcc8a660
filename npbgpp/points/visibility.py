"""Which points of a cloud photos show: those that are nearest in a cell of a depth buffer (NPBG++, section 3.2).

For small clouds and any number of cameras at once. For one camera and a large cloud, the winners that ``npbgpp.kernels.rasterization`` finds are the same
points, but for others at exactly the same depth in the same cell, which also count here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbgpp.geometry import Cameras, PixelConvention, PixelGrid


@torch.no_grad()
def visible_points(
    xyz_world: Float[Tensor, "n 3"], cameras: Cameras, scale: float | None, near: float, rule: PixelConvention
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


# ----------------------------------------------------------------------
# Does a cloud lie where the cameras look? Asked once per scene, on a sample, before work starts on it.


_SAMPLE = 20_000


@dataclass(frozen=True)
class Coverage:
    """Shares of a cloud, in 0..1.

    Attributes:
        seen: points inside at least one image and beyond the near plane.
        largest_cut: over the cameras, the largest share of the points before a camera and inside its image that the near plane removes.
    """

    seen: float
    largest_cut: float


def cloud_coverage(xyz_world: Float[Tensor, "n 3"], cameras: Iterable[Cameras], near: float, rule: PixelConvention) -> Coverage:
    """Coverage of a cloud by single cameras. Large clouds are sampled evenly; when a sample is seen by none, the whole cloud is asked."""
    step = max(1, len(xyz_world) // _SAMPLE)
    sample = xyz_world[::step]
    seen = torch.zeros(len(sample), dtype=torch.bool, device=sample.device)
    largest_cut = 0.0
    listed = list(cameras)
    for camera in listed:
        grid = PixelGrid(rule, camera.image_size)
        x, y, depth = grid.normalise(camera.to(sample.device), sample)[0].unbind(-1)
        before = grid.inside(x, y) & (depth > 0)
        beyond = before & (depth > near)
        seen |= beyond
        if before.any():
            largest_cut = max(largest_cut, 1 - beyond.sum().item() / before.sum().item())
    if step > 1 and not seen.any():
        return Coverage(_any_seen(xyz_world, listed, near, rule), largest_cut)
    return Coverage(seen.float().mean().item(), largest_cut)


def _any_seen(xyz_world: Float[Tensor, "n 3"], cameras: list[Cameras], near: float, rule: PixelConvention) -> float:
    for camera in cameras:
        grid = PixelGrid(rule, camera.image_size)
        x, y, depth = grid.normalise(camera.to(xyz_world.device), xyz_world)[0].unbind(-1)
        count = (grid.inside(x, y) & (depth > near)).sum().item()
        if count:
            return count / len(xyz_world)
    return 0.0
