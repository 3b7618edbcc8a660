"""A cloud from depth maps: every depth becomes a point, and the points in each voxel become one.

Only the views that are given are opened. Memory grows with the occupied voxels, not with pixels times views.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from npbgpp.data.images import image_size, read_photo
from npbgpp.data.scene import DepthMap, View
from npbgpp.errors import InputError
from npbgpp.geometry.pointcloud import PointCloud
from npbgpp.prepare.decimation import check_voxel
from npbgpp.prepare.lattice import VoxelSums

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
