"""Visibility of points in photos by a depth buffer (NPBG++, section 3.2), features of photos at points, and coverage of a cloud by cameras."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import grid_sample

from npbgpp.geometry import Cameras, PixelConvention, PixelGrid, ProjectionSettings


@torch.no_grad()
def visible_points(
    xyz_world: Float[Tensor, "n 3"], cameras: Cameras, scale: float | None, projection: ProjectionSettings
) -> Bool[Tensor, "k n"]:
    """Whether each point is the nearest of its depth buffer cell, for each of k cameras.

    Meant for small clouds and many cameras; the winners of ``npbgpp.kernels.rasterize`` are the same points up to exact ties in depth, which are all visible
    here.

    Args:
        xyz_world: the points.
        cameras: k cameras.
        scale: size of the depth buffer relative to the image; None disables occlusion.
        projection: near plane and pixel convention.

    Raises:
        ValueError: a depth buffer without cells.
    """
    if scale is None:
        return projection.in_frustum(cameras, xyz_world)
    grid = projection.grid(cameras.image_size)
    xyd = grid.normalise(cameras, xyz_world)
    in_frustum = grid.inside(xyd[..., 0], xyd[..., 1]) & (xyd[..., 2] > projection.near)
    height, width = size = grid.level_size(scale)
    if min(size) < 1:
        raise ValueError(f"visible_points: image of {cameras.image_size} pixels has no cell at scale {scale}")
    pair = in_frustum.view(-1).nonzero()[:, 0]  # camera * n + point
    x, y, depth = xyd.view(-1, 3).index_select(0, pair).unbind(-1)
    row, column = grid.cells(x, y, scale, size)
    if grid.overflows(scale, size):
        kept = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pair, depth, row, column = (t[kept] for t in (pair, depth, row, column))
    cell = (pair // max(len(xyz_world), 1) * height + row) * width + column
    nearest = depth.new_full((len(cameras) * height * width,), torch.inf).scatter_reduce_(0, cell, depth, "amin")
    visible = torch.zeros_like(in_frustum)
    visible.view(-1)[pair[depth == nearest[cell]]] = True
    return visible


_SAMPLE = 20_000


@dataclass(frozen=True)
class Coverage:
    """Fractions of a cloud, 0..1.

    Attributes:
        seen: points in at least one view frustum.
        largest_cut: maximum over the cameras of the fraction of points in front of the camera and inside its image that the near plane removes.
    """

    seen: float
    largest_cut: float


def cloud_coverage(xyz_world: Float[Tensor, "n 3"], cameras: Iterable[Cameras], projection: ProjectionSettings) -> Coverage:
    """Coverage of a cloud by cameras (one per item), without occlusion.

    Large clouds are sampled evenly; the whole cloud is used if no point of the sample is seen. Without cameras both fractions are 0.
    """
    step = max(1, len(xyz_world) // _SAMPLE)
    sample = xyz_world[::step]
    seen = torch.zeros(len(sample), dtype=torch.bool, device=sample.device)
    largest_cut = 0.0
    listed = list(cameras)
    for camera in listed:
        grid = projection.grid(camera.image_size)
        x, y, depth = grid.normalise(camera.to(sample.device), sample)[0].unbind(-1)
        in_image = grid.inside(x, y) & (depth > 0)
        in_frustum = in_image & (depth > projection.near)
        seen |= in_frustum
        if in_image.any():
            largest_cut = max(largest_cut, 1 - in_frustum.sum().item() / in_image.sum().item())
    if step > 1 and not seen.any():
        return Coverage(_first_coverage(xyz_world, listed, projection), largest_cut)
    return Coverage(seen.float().mean().item(), largest_cut)


def _first_coverage(xyz_world: Float[Tensor, "n 3"], cameras: list[Cameras], projection: ProjectionSettings) -> float:
    """Fraction of a cloud that the first camera with any point sees; 0 without one."""
    for camera in cameras:
        count = projection.in_frustum(camera.to(xyz_world.device), xyz_world).sum().item()
        if count:
            return count / len(xyz_world)
    return 0.0


def sample_features(
    features: Float[Tensor, "c h w"], xyz_world: Float[Tensor, "v 3"], camera: Cameras, convention: PixelConvention
) -> Float[Tensor, "v c"]:
    """Features at the projections of points, by bilinear interpolation.

    AUTHORS places points between the centres of the border pixels but samples between pixel edges, with zero padding; EXACT samples at the projections,
    with border padding.
    """
    grid = PixelGrid(convention, camera.image_size)
    first, last = grid.extent(xyz_world.device)
    xy = grid.normalise(camera, xyz_world)[0, :, :2]
    exact = convention is PixelConvention.EXACT
    position = (xy - first) * 2 / (last - first) - 1 if exact else -xy / last
    padding = "border" if exact else "zeros"
    sampled = grid_sample(
        features[None], position.to(features.dtype)[None, None], mode="bilinear", padding_mode=padding, align_corners=False
    )
    return sampled[0, :, 0].t()
