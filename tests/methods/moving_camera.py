"""Coordinates of a video whose camera moves evenly."""

import torch

from npbgpp.geometry.cameras import Cameras
from npbgpp.methods.nsff.normalisation import VideoNormalisation

TIME_STEPS = 4


def moving_camera() -> VideoNormalisation:
    """A camera that moves to the right by a tenth a time step and looks along -z."""
    poses = torch.eye(4, dtype=torch.float64).repeat(TIME_STEPS, 1, 1)
    poses[:, 0, 3] = 0.1 * torch.arange(TIME_STEPS)
    intrinsics = torch.tensor([[20.0, 24.0]], dtype=torch.float64), torch.tensor([[12.0, 8.0]], dtype=torch.float64)
    cameras = Cameras.from_opengl(poses, *(part.repeat(TIME_STEPS, 1) for part in intrinsics), (16, 24))
    return VideoNormalisation(
        torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1.0, 20.0, 24.0, 12.0, 8.0, (16, 24), cameras
    )
