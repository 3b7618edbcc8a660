"""Voxel-grid averaging of points: fusion of depth maps into a cloud, and downsampling of clouds.

Symbols: ``side``, the edge of a voxel in scene units; cell (n, 3), integer coordinates of a voxel, rounded down from the world origin; key, a cell packed into
one integer that sorts like (x, y, z).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from npbgpp.data import DepthMap, View, read_depth, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import PointCloud

_KEY_BITS = 21  # per axis
CELL_LIMIT = 1 << (_KEY_BITS - 1)  # cells are in [-CELL_LIMIT, CELL_LIMIT)
_SEED = 0  # of the random draw: the same cloud gives the same points
_VOXELS_PER_DEPTH = 250  # default edge of a voxel: the median depth over this
_MEDIAN_VIEWS = 16  # sampled for the median depth
_MIN_MERGE = 1 << 20  # rows collected before they are merged
# columns of VoxelSums.total
_BATCHES, _POINTS, _OFFSET, _COLOUR = 0, 1, slice(2, 5), slice(5, 8)


def pack_cells(cell: Int64[Tensor, "n 3"]) -> Int64[Tensor, " n"]:
    """Keys of cells in [-CELL_LIMIT, CELL_LIMIT)."""
    x, y, z = (cell + CELL_LIMIT).unbind(1)
    return (((x << _KEY_BITS) | y) << _KEY_BITS) | z


def unpack_cells(key: Int64[Tensor, " n"]) -> Int64[Tensor, "n 3"]:
    """Cells of keys."""
    mask = (1 << _KEY_BITS) - 1
    return torch.stack([key >> 2 * _KEY_BITS, (key >> _KEY_BITS) & mask, key & mask], 1) - CELL_LIMIT


@dataclass(frozen=True)
class VoxelSums:
    """Sums over the points of each occupied voxel.

    Attributes:
        side: edge of a voxel.
        key: occupied voxels, ascending.
        total: number of batches, number of points, offset from the voxel centre in voxels (3), and colour (3) if the points have colours.
    """

    side: float
    key: Int64[Tensor, " m"]
    total: Float32[Tensor, "m c"]

    def __len__(self) -> int:
        return len(self.key)

    @classmethod
    def from_cloud(cls, cloud: PointCloud, side: float) -> "VoxelSums":
        """Sums over one batch of points. Raises InputError if points are more than a million voxels from the origin."""
        scaled = cloud.xyz.double() / side
        if len(scaled) and not bool((scaled.abs() < CELL_LIMIT - 1).all()):
            raise InputError(
                f"voxel: expected points less than {CELL_LIMIT} voxels from the origin, got an edge of {side:g} for points up to "
                f"{cloud.xyz.abs().max():.4g} from it; use larger voxels"
            )
        cell = scaled.floor()
        columns = [torch.ones(len(cell), 2), (scaled - cell - 0.5).float()]
        if cloud.rgb_u8 is not None:
            columns.append(cloud.rgb_u8.float())
        sums = _sum_by_key(side, pack_cells(cell.long()), torch.cat(columns, 1))
        sums.total[:, _BATCHES] = 1
        return sums

    @staticmethod
    def merge(parts: "Sequence[VoxelSums]") -> "VoxelSums":
        """Sums over several batches with the same ``side``, all or none with colours."""
        return _sum_by_key(parts[0].side, torch.cat([p.key for p in parts]), torch.cat([p.total for p in parts]))

    def mean_points(self, min_batches: int = 1) -> PointCloud:
        """Mean position and colour of each voxel with points of at least ``min_batches`` batches."""
        kept = self.total[:, _BATCHES] >= min_batches
        total = self.total[kept]
        mean = total / total[:, _POINTS, None]
        xyz = (unpack_cells(self.key[kept]).double() + 0.5 + mean[:, _OFFSET].double()) * self.side
        rgb = (mean[:, _COLOUR] + 0.5).to(torch.uint8) if total.shape[1] == _COLOUR.stop else None
        return PointCloud(xyz.float(), rgb)


def _sum_by_key(side: float, key: Int64[Tensor, " n"], rows: Float32[Tensor, "n c"]) -> VoxelSums:
    unique, inverse = key.unique(return_inverse=True)
    return VoxelSums(side, unique, rows.new_zeros(len(unique), rows.shape[1]).index_add_(0, inverse, rows))


def check_voxel(voxel: float | None) -> None:
    """Raises InputError unless the edge of a voxel is a positive number or None."""
    if voxel is not None and not 0 < voxel < math.inf:
        raise InputError(f"voxel: expected a positive edge in scene units, got {voxel}")


def decimate(cloud: PointCloud, voxel: float | None, count: int | None) -> PointCloud:
    """Downsamples a cloud.

    Args:
        cloud: the points.
        voxel: edge of the voxels, scene units: the points of each voxel are replaced by their mean. None skips this step.
        count: upper bound for the number of points; after the voxels, they are drawn without replacement with a fixed seed, and keep their order. None keeps
            all.

    Raises:
        InputError: an edge or number that is not positive, or an edge below a millionth of the distance of points from the origin.
    """
    check_voxel(voxel)
    if count is not None and count < 1:
        raise InputError(f"count: expected a positive number of points, got {count}")
    if voxel is not None:
        cloud = VoxelSums.from_cloud(cloud, voxel).mean_points()
    if count is not None and count < len(cloud):
        drawn = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(_SEED))[:count].sort().values
        cloud = PointCloud(cloud.xyz[drawn], None if cloud.rgb_u8 is None else cloud.rgb_u8[drawn])
    return cloud


def fuse_depth(views: Sequence[View], voxel: float | None, min_hits: int = 2) -> PointCloud:
    """Back-projects the depth maps of some views, coloured by their photos, and averages the points of each voxel.

    Args:
        views: views without a depth map are skipped.
        voxel: edge of the voxels, scene units; None takes 1/250 of the median depth.
        min_hits: voxels with points of fewer views are dropped: depths that a single view measures are often errors at an edge.

    Raises:
        InputError: no view with a depth map, an unreadable image, an edge or number that is not positive, or no voxel left.
    """
    check_voxel(voxel)
    if min_hits < 1:
        raise InputError(f"min_hits: expected a positive number of views, got {min_hits}")
    measured = [(view, view.depth) for view in views if view.depth is not None]
    if not measured:
        raise InputError(f"depth maps: expected at least one of {len(views)} views to have one, got none; use another method")
    if voxel is None:
        voxel = _median_depth([depth for _, depth in measured]) / _VOXELS_PER_DEPTH
    parts: list[VoxelSums] = []
    for view, depth in measured:
        parts.append(VoxelSums.from_cloud(_back_project(view, depth), voxel))
        # merging only when the others have grown to the size of the first part keeps the cost of all merges near that of a single sort
        if sum(map(len, parts[1:])) > max(len(parts[0]), _MIN_MERGE):
            parts = [VoxelSums.merge(parts)]
    cloud = VoxelSums.merge(parts).mean_points(min_hits)
    if not len(cloud):
        raise InputError(
            f"min_hits: expected voxels of edge {voxel:.3g} with points of at least {min_hits} of {len(measured)} views, got none; lower min_hits, or use "
            "larger voxels"
        )
    return cloud


def _median_depth(maps: Sequence[DepthMap]) -> float:
    """Median of the median depths of evenly spread maps."""
    chosen = np.unique(np.linspace(0, len(maps) - 1, _MEDIAN_VIEWS).round().astype(int)).tolist()
    medians = [valid.median() for valid in (depth[depth > 0] for depth in (read_depth(maps[k]) for k in chosen)) if len(valid)]
    if not medians:
        raise InputError(f"depth maps: expected positive depths, got 0 everywhere in {maps[0].path} and others; restore the images")
    return float(torch.stack(medians).median())


def _back_project(view: View, depth: DepthMap) -> PointCloud:
    """One point per known depth inside the photo, in the colour of the pixel that it projects to."""
    z = read_depth(depth)
    row, column = (z > 0).nonzero(as_tuple=True)
    camera, z = depth.camera, z[row, column]
    uv_px = torch.stack([column, row], 1) + 0.5
    xy = (camera.principal_point - uv_px) / camera.focal_length * z[:, None]
    xyz = (torch.cat([xy, z[:, None]], 1).double() - camera.T.double()) @ torch.linalg.inv(camera.R[0].double())
    photo_uv_px, photo_depth = view.camera.project(xyz.to(view.camera.R.dtype))
    height, width = view.camera.image_size
    u, v = photo_uv_px[0].floor().unbind(1)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (photo_depth[0] > 0)
    u, v = u[inside].long(), v[inside].long()
    return PointCloud(xyz[inside].float(), read_photo(view).image[:, v, u].T)
