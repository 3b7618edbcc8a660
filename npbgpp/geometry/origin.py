"""Scenes far from the origin, such as geo-referenced ones: single precision resolves coordinates of millions of metres to half a metre only.

Their coordinates are reduced by an offset in double precision when poses and points are read, and increased by it when files are written.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from npbgpp.geometry.point_cloud import Transform

Offset = tuple[float, float, float]

_FAR = 1e4  # scene units; nearer scenes keep their coordinates
_FAR_RATIO = 100.0  # of the distance from the origin to the extent of the cameras: rounding errors stay below 1/100 pixel


def far_offset(centres: Float[Tensor, "n 3"]) -> Offset | None:
    """The mean position of cameras in whole scene units if they are far from the origin for their extent; None if not.

    None as well for no cameras, and for positions that are not finite.
    """
    positions = centres.double()
    if not len(positions) or not positions.isfinite().all():
        return None
    mean = positions.mean(0)
    extent = (positions - mean).norm(dim=1).max()
    if mean.abs().max() < max(_FAR, _FAR_RATIO * float(extent)):
        return None
    x, y, z = mean.round().tolist()
    return (x, y, z)


def world_to_cam_from(offset: Offset | None, world_to_cam: Float64[Tensor, "*b 4 4"]) -> Float64[Tensor, "*b 4 4"]:
    """World-to-camera matrices (acting on columns) for coordinates that are reduced by an offset."""
    if offset is None:
        return world_to_cam
    moved = world_to_cam.clone()
    moved[..., :3, 3] += (world_to_cam[..., :3, :3] @ world_to_cam.new_tensor(offset)[:, None])[..., 0]
    return moved


def cam_to_world_from(offset: Offset | None, cam_to_world: Float64[Tensor, "*b 4 4"]) -> Float64[Tensor, "*b 4 4"]:
    """Camera-to-world matrices (acting on columns) for coordinates that are reduced by an offset."""
    if offset is None:
        return cam_to_world
    moved = cam_to_world.clone()
    moved[..., :3, 3] -= cam_to_world.new_tensor(offset)
    return moved


def centres_of(world_to_cam: Float64[Tensor, "n 4 4"]) -> Float64[Tensor, "n 3"]:
    """Camera centres of rigid world-to-camera matrices (acting on columns)."""
    return -(world_to_cam[:, :3, :3].transpose(1, 2) @ world_to_cam[:, :3, 3:])[..., 0]


def reduced(transform: Transform | None, offset: Offset | None) -> Transform | None:
    """A transformation of points, followed by the reduction of their coordinates by an offset."""
    if offset is None:
        return transform
    matrix = torch.eye(4, dtype=torch.float64)[:3] if transform is None else torch.tensor(transform, dtype=torch.float64)
    a, b, c = ((*row[:3], row[3] - part) for row, part in zip(matrix.tolist(), offset, strict=True))
    return (a, b, c)
