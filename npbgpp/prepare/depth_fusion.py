"""Lattices of cubic voxels: cells as sortable integers, and means of the points that fall into each cell.

Symbols: side, the edge of a voxel in scene units; cell (n, 3), whole numbers of voxels from the origin of the lattice, rounded down; key, the three packed
into one integer that sorts like (x, y, z).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from PIL import Image
from torch import Tensor

from npbgpp.data import DepthMap, View, image_size, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import PointCloud

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


# ----------------------------------------------------------------------
# Fewer points of a cloud: one per voxel, or a random draw.


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


# ----------------------------------------------------------------------
# A cloud from depth maps: every depth becomes a point, and the points in each voxel become one.


_VOXELS_PER_DEPTH = 250  # edge of a voxel when none is given: the median depth over this
_MEDIAN_VIEWS = 16  # whose depths the median is taken of
_SMALLEST_MERGE = 1 << 20  # rows that wait before they are merged
_DEPTH_MODES = ("I;16", "I;16B", "I;16L", "I")


def fuse_depth(views: Sequence[View], voxel: float | None, min_hits: int = 2) -> PointCloud:
    """Fuses the depth maps of some views, with the colours of their photos.

    Args:
        views: those without a depth map are passed over.
        voxel: edge of the voxels, scene units; None takes 1/250 of the median depth.
        min_hits: voxels that fewer views hit are dropped: a depth that only one view claims is often an error at an edge.

    Raises:
        InputError: no view with a depth map, an unreadable picture, an edge or number that is not positive, or no voxel with enough hits.
    """
    check_voxel(voxel)
    if min_hits < 1:
        raise InputError(f"min_hits: expected a positive number of views, got {min_hits}")
    known = [(view, view.depth) for view in views if view.depth is not None]
    if not known:
        raise InputError(f"depth maps: expected at least one of {len(views)} views to have one, got none; make the cloud in another way")
    if voxel is None:
        voxel = _median_depth([depth for _, depth in known]) / _VOXELS_PER_DEPTH
    parts: list[VoxelSums] = []
    for view, depth in known:
        parts.append(VoxelSums.of(_points(view, depth), voxel))
        # merging only what has grown to the size of the first part keeps the cost of all merges near that of one sort
        if sum(map(len, parts[1:])) > max(len(parts[0]), _SMALLEST_MERGE):
            parts = [VoxelSums.merged(parts)]
    cloud = VoxelSums.merged(parts).means(min_hits)
    if not len(cloud):
        raise InputError(
            f"min_hits: expected voxels of edge {voxel:.3g} that at least {min_hits} of {len(known)} views hit, got none; lower min_hits, or use "
            "larger voxels"
        )
    return cloud


def read_depth(depth: DepthMap) -> Float[Tensor, "h w"]:
    """Depths in scene units, 0 where none is known.

    Raises:
        InputError: no such file, an unreadable one, no picture of one 16-bit channel, or another size than that of its camera.
    """
    size, wanted = image_size(depth.path), depth.camera.image_size
    if size != wanted:
        raise InputError(
            f"depth map {depth.path}: expected {wanted[1]}x{wanted[0]} pixels as its camera has, got {size[1]}x{size[0]}; restore the picture"
        )
    try:
        with Image.open(depth.path) as picture:
            mode, steps = picture.mode, np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"depth map {depth.path}: expected a readable picture, got {error}; replace the file") from error
    if mode not in _DEPTH_MODES:
        raise InputError(f"depth map {depth.path}: expected a picture of one channel with 16 bits, got {mode}; export depths as 16-bit PNG")
    return torch.from_numpy(steps.astype(np.float32)) * depth.unit


def _median_depth(maps: Sequence[DepthMap]) -> float:
    """The median over evenly spread maps of the median of each one's known depths."""
    spread = np.unique(np.linspace(0, len(maps) - 1, _MEDIAN_VIEWS).round().astype(int)).tolist()
    medians = [known.median() for known in (d[d > 0] for d in map(read_depth, [maps[k] for k in spread])) if len(known)]
    if not medians:
        raise InputError(f"depth maps: expected known depths, got 0 everywhere in {maps[0].path} and others; restore the pictures")
    return float(torch.stack(medians).median())


def _points(view: View, depth: DepthMap) -> PointCloud:
    """The known depths of a view as points, with the colours that its photo shows there; those outside the photo are left out."""
    z = read_depth(depth)
    row, column = (z > 0).nonzero(as_tuple=True)
    camera, z = depth.camera, z[row, column]
    uv_px = torch.stack([column, row], 1) + 0.5
    xy = (camera.principal_point - uv_px) / camera.focal_length * z[:, None]
    xyz = (torch.cat([xy, z[:, None]], 1).double() - camera.T.double()) @ torch.linalg.inv(camera.R[0].double())
    at_px, depth_in_photo = view.camera.project(xyz.to(view.camera.R.dtype))
    height, width = view.camera.image_size
    u, v = at_px[0].floor().unbind(1)
    shown = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (depth_in_photo[0] > 0)
    u, v = u[shown].long(), v[shown].long()
    return PointCloud(xyz[shown].float(), read_photo(view).image[:, v, u].T)
