"""Fewer points of a cloud: one per voxel, or a random draw."""

import math

import torch

from npbgpp.errors import InputError
from npbgpp.geometry.pointcloud import PointCloud
from npbgpp.prepare.lattice import VoxelSums

_SEED = 0  # of the draw: the same cloud gives the same points


def decimate(cloud: PointCloud, voxel: float | None, count: int | None) -> PointCloud:
    """Thins a cloud.

    Args:
        cloud: the points.
        voxel: edge of the voxels, scene units; the points (and colours) in each are replaced by their mean, in the order of the voxels. None leaves them.
        count: at most this many points, after the voxels: drawn without replacement with a fixed seed, in their order. None keeps all.

    Raises:
        InputError: an edge or a number that is not positive, or an edge so small that the scene has more than a million voxels from its origin to a side.
    """
    check_voxel(voxel)
    if count is not None and count < 1:
        raise InputError(f"count: expected a positive number of points, got {count}")
    if voxel is not None:
        cloud = VoxelSums.of(cloud, voxel).means()
    if count is not None and count < len(cloud):
        drawn = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(_SEED))[:count].sort().values
        cloud = PointCloud(cloud.xyz[drawn], None if cloud.rgb is None else cloud.rgb[drawn])
    return cloud


def check_voxel(voxel: float | None) -> None:
    """Raises InputError unless the edge of a voxel is a positive number or None."""
    if voxel is not None and not 0 < voxel < math.inf:
        raise InputError(f"voxel: expected a positive edge in scene units, got {voxel}")
