"""Coverage of a cloud by cameras, and features of photos at points."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from npbgpp.geometry import Cameras, PixelConvention, PixelGrid, ProjectionSettings

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
