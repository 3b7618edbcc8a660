"""Does a cloud lie where the cameras look? Asked once per scene, on a sample, before work starts on it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixel_rules import PixelGrid, PixelRule

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


def cloud_coverage(xyz_world: Float[Tensor, "n 3"], cameras: Iterable[Cameras], near: float, rule: PixelRule) -> Coverage:
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


def _any_seen(xyz_world: Float[Tensor, "n 3"], cameras: list[Cameras], near: float, rule: PixelRule) -> float:
    for camera in cameras:
        grid = PixelGrid(rule, camera.image_size)
        x, y, depth = grid.normalise(camera.to(xyz_world.device), xyz_world)[0].unbind(-1)
        count = (grid.inside(x, y) & (depth > near)).sum().item()
        if count:
            return count / len(xyz_world)
    return 0.0
