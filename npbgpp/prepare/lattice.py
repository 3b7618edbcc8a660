"""Lattices of cubic voxels: cells as sortable integers, and means of the points that fall into each cell.

Symbols: side, the edge of a voxel in scene units; cell (n, 3), whole numbers of voxels from the origin of the lattice, rounded down; key, the three packed
into one integer that sorts like (x, y, z).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.geometry.pointcloud import PointCloud

_BITS = 21  # of a key for each axis
LARGEST_CELL = 1 << (_BITS - 1)  # cells are in [-LARGEST_CELL, LARGEST_CELL)

# columns of the sums of a voxel; colours follow where the points have them
_BATCHES, _POINTS, _OFFSET, _COLOUR = 0, 1, slice(2, 5), slice(5, 8)


def pack(cell: Int64[Tensor, "n 3"]) -> Int64[Tensor, " n"]:
    """Keys of cells, each number in [-LARGEST_CELL, LARGEST_CELL)."""
    x, y, z = (cell + LARGEST_CELL).unbind(1)
    return (((x << _BITS) | y) << _BITS) | z


def unpack(key: Int64[Tensor, " n"]) -> Int64[Tensor, "n 3"]:
    """Cells of keys: the inverse of ``pack``."""
    ones = (1 << _BITS) - 1
    return torch.stack([key >> 2 * _BITS, (key >> _BITS) & ones, key & ones], 1) - LARGEST_CELL


@dataclass(frozen=True)
class VoxelSums:
    """Sums over the points in each occupied voxel.

    Attributes:
        side: edge of a voxel.
        key: the voxels, ascending; their lattice starts at the origin of the world.
        total: number of batches, number of points, offset from the middle of the voxel in voxels (3), colour (3, or nothing without colours).
    """

    side: float
    key: Int64[Tensor, " m"]
    total: Float32[Tensor, "m c"]

    def __len__(self) -> int:
        return len(self.key)

    @classmethod
    def of(cls, cloud: PointCloud, side: float) -> "VoxelSums":
        """The sums of one batch of points. Raises InputError when the points lie more than a million voxels from the origin."""
        scaled = cloud.xyz.double() / side
        if len(scaled) and not bool((scaled.abs() < LARGEST_CELL - 1).all()):
            raise InputError(
                f"voxel: expected an edge that divides the scene into at most {LARGEST_CELL} voxels to each side of its origin, got {side:g} for points "
                f"up to {cloud.xyz.abs().max():.4g} from it; use larger voxels"
            )
        cell = scaled.floor()
        columns = [torch.ones(len(cell), 2), (scaled - cell - 0.5).float()]
        if cloud.rgb is not None:
            columns.append(cloud.rgb.float())
        sums = _summed(side, pack(cell.long()), torch.cat(columns, 1))
        sums.total[:, _BATCHES] = 1
        return sums

    @staticmethod
    def merged(parts: "Sequence[VoxelSums]") -> "VoxelSums":
        """The sums of all the points in at least one part; all have one side, and all or none have colours."""
        return _summed(parts[0].side, torch.cat([p.key for p in parts]), torch.cat([p.total for p in parts]))

    def means(self, min_batches: int = 1) -> PointCloud:
        """One point for each voxel that was hit by at least so many batches: the mean of its points."""
        held = self.total[:, _BATCHES] >= min_batches
        total = self.total[held]
        mean = total / total[:, _POINTS, None]
        xyz = (unpack(self.key[held]).double() + 0.5 + mean[:, _OFFSET].double()) * self.side
        rgb = (mean[:, _COLOUR] + 0.5).to(torch.uint8) if total.shape[1] == _COLOUR.stop else None
        return PointCloud(xyz.float(), rgb)


def _summed(side: float, key: Int64[Tensor, " n"], rows: Float32[Tensor, "n c"]) -> VoxelSums:
    unique, place = key.unique(return_inverse=True)
    return VoxelSums(side, unique, rows.new_zeros(len(unique), rows.shape[1]).index_add_(0, place, rows))
