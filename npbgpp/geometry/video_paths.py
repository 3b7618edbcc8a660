"""Paths of cameras through a video: along with its camera, or about one of its frames. As nsff_pl has them, with lengths in place of steps along x.

Symbols: n cameras of the frames, f cameras of a path.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from npbgpp.geometry.camera_paths import average_pose, interpolate
from npbgpp.geometry.cameras import Cameras

_TURNS = 4  # of the spiral
_RADIUS_QUANTILE = 0.1  # of the way between two frames
_REACH = 0.2  # of the way from the first frame to the last


def spiral_along(cameras: Cameras, count: int) -> Cameras:
    """The way of the camera with four turns around it, which lie across the mean viewing direction; small ones: a tenth of the steps are shorter.

    Args:
        cameras: of n frames, in order, at least two.
        count: f, at least 1.
    """
    path = interpolate(cameras, count)
    radius = _centres(cameras).diff(dim=0).norm(dim=1).quantile(_RADIUS_QUANTILE)
    mean = average_pose(cameras).R[0].double()
    t = torch.arange(count, dtype=torch.float64) * (2 * math.pi * _TURNS / count)
    # axes of cameras are left, up, forward
    offset = -radius * (t.cos()[:, None] * mean[:, 0] + t.sin()[:, None] * mean[:, 1])
    return _moved(path, _centres(path) + offset)


def loop_about(cameras: Cameras, index: int, count: int) -> Cameras:
    """Once around the camera of a frame, aside, up and down, forward and back, by up to a fifth of the way from the first frame to the last.

    Args:
        cameras: of n frames, in order.
        index: the frame.
        count: f, at least 1.
    """
    centres = _centres(cameras)
    reach = _REACH * (centres[-1] - centres[0]).norm()
    t = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    xyz_cam = reach * torch.stack([t.sin(), -t.cos() / 2, t.cos()], 1)
    still = cameras[[index] * count]
    return _moved(still, centres[index] + xyz_cam @ still.R[0].double().T)


def _centres(cameras: Cameras) -> Float64[Tensor, "n 3"]:
    return replace(cameras, R=cameras.R.double(), T=cameras.T.double()).centers()


def _moved(cameras: Cameras, centres: Float64[Tensor, "n 3"]) -> Cameras:
    """The same cameras elsewhere."""
    return replace(cameras, T=-(centres[:, None] @ cameras.R.double())[:, 0].to(cameras.T.dtype))
