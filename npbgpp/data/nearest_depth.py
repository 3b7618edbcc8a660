"""How near the scene of a video comes to its camera, from the points of its COLMAP model and its disparity (nsff_pl), or as its layout states it.

A disparity map has an unknown scale and offset. Where a frame has enough points whose disparity is linear in 1 / depth, the nearest depth is the one at which
that line meets the 95th percentile of the map; elsewhere it is the 5th percentile of the depths of the points.
"""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from scipy.stats import linregress

from npbgpp.data.colmap_model import ColmapModel, read_points
from npbgpp.data.motion_maps import read_disparity
from npbgpp.data.parsers.monocular import match_frames
from npbgpp.data.ray_frames import double
from npbgpp.data.scene import View
from npbgpp.errors import InputError

_FEWEST = 8  # points of a frame that say something
_LINEAR = 0.9  # share of the variance of disparity that 1 / depth explains
_NEAR_DISPARITY, _NEAR_DEPTH = 95, 5  # percentiles


def nearest_depth(frames: tuple[View, ...], points: Path | None) -> float:
    """The depth of what comes nearest to the camera in any frame, scene units.

    Args:
        frames: of the video.
        points: ``points3D`` of the model that the poses are from; None where the frames state their bounds.

    Raises:
        InputError: neither points nor bounds, bounds that are not positive, damaged files, no frame with points enough, or disparity that is larger where the
            scene is farther away.
    """
    if points is None:
        return _stated(frames)
    model, sparse = ColmapModel.read(points.parent), read_points(points)
    where = {number: k for k, number in enumerate(sparse.number.tolist())}
    nearest = []
    for view, image in zip(frames, match_frames(model, [view.image for view in frames]), strict=True):
        seen = sorted({where[number] for number in image.point.tolist() if number in where})
        uv_px, depth = double(view).project(sparse.cloud.xyz[seen].double())
        uv, z = uv_px[0].numpy(), depth[0].numpy()
        if (z > 0).sum() >= _FEWEST:
            nearest.append(_of_frame(view, uv[z > 0], z[z > 0]))
    if not nearest:
        raise InputError(
            f"{points}: expected at least {_FEWEST} points in some frame, which say how near the scene is, got fewer; reconstruct the video again, or take "
            "the model away and let poses_bounds.npy state it"
        )
    return min(nearest)


def _stated(frames: tuple[View, ...]) -> float:
    near = [math.nan if view.bounds is None else view.bounds[0] for view in frames]
    bad = next((view for view, depth in zip(frames, near, strict=True) if not 0 < depth < math.inf), None)
    if bad is not None:
        raise InputError(
            f"frame {bad.name} ({bad.image}): expected a positive nearest depth in its row of poses_bounds.npy, or a COLMAP model with points3D, got "
            f"{'none' if bad.bounds is None else bad.bounds[0]}; correct the file or restore points3D"
        )
    return min(near)


def _of_frame(view: View, uv_px: Float64[np.ndarray, "n 2"], depth: Float64[np.ndarray, " n"]) -> float:
    percentile = float(np.percentile(depth, _NEAR_DEPTH))
    if view.motion is None or view.motion.disparity is None:
        return percentile
    disparity = read_disparity(view).double().numpy()
    height, width = disparity.shape
    column, row = (np.clip(np.floor(uv_px[:, k]), 0, side - 1).astype(np.int64) for k, side in ((0, width), (1, height)))
    shown, inverse = disparity[row, column], 1 / depth
    if inverse.min() == inverse.max() or shown.min() == shown.max():
        return percentile
    line = linregress(inverse, shown)
    if line.rvalue**2 <= _LINEAR:
        return percentile
    if line.slope < 0:
        raise InputError(
            f"disparity {view.motion.disparity}: expected larger numbers where the scene is nearer, got smaller ones at the points of the model; invert the "
            "map (depth maps become disparity as 1 / depth)"
        )
    rise = float(np.percentile(disparity, _NEAR_DISPARITY)) - line.intercept
    return float(line.slope / rise) if rise > 0 else percentile
