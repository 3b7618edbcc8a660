"""Paths that move one camera: about the world's z axis, straight on, or by random turns of the world (as NPCR makes them).

Turns are about the origin of the world. Like other paths they are computed in double precision and given in single precision.
"""

import math

import numpy as np
import torch
from jaxtyping import Float64
from scipy.spatial.transform import Rotation
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras


def turned(camera: Cameras, count: int) -> Cameras:
    """One camera once around the z axis of the world, counterclockwise as seen from above; the last frame is the first one again.

    Args:
        camera: one camera.
        count: frames, at least 2.

    Raises:
        InputError: fewer than two frames.
    """
    if count < 2:
        raise InputError(f"frames: a turn ends where it begins, so that it has at least 2, got {count}")
    angles = np.arange(count) * (2 * math.pi / (count - 1))
    path = _carried_around(camera, torch.from_numpy(Rotation.from_euler("z", angles[:, None]).as_matrix()))
    path.R[-1], path.T[-1] = path.R[0], path.T[0]
    return path


def shifted(camera: Cameras, along_world: tuple[float, float, float], start: float, stop: float, count: int) -> Cameras:
    """One camera moved without a turn, from ``start`` to ``stop`` times a direction of the world, in equal steps; scene units.

    Raises:
        InputError: fewer than two frames.
    """
    if count < 2:
        raise InputError(f"frames: a straight move has at least 2, got {count}")
    R = camera.R.double().expand(count, 3, 3)
    shift = torch.linspace(start, stop, count, dtype=torch.float64)[:, None] * torch.tensor(along_world, dtype=torch.float64)
    return _like(camera, R, camera.T.double() - (shift[:, None] @ R)[:, 0])


def tumbled(camera: Cameras, count: int, seed: int) -> Cameras:
    """One camera carried around the origin by rotations drawn evenly among all; the seed draws others.

    Raises:
        InputError: no frame.
    """
    if count < 1:
        raise InputError(f"frames: expected at least 1, got {count}")
    return _carried_around(camera, torch.from_numpy(Rotation.random(count, random_state=seed).as_matrix()))


def _carried_around(camera: Cameras, turns: Float64[Tensor, "f 3 3"]) -> Cameras:
    """The camera after turns of the world, which act on columns: a camera at c comes to ``turn @ c`` and looks along with it."""
    return _like(camera, turns @ camera.R.double(), camera.T.double().repeat(len(turns), 1))


def _like(camera: Cameras, R: Float64[Tensor, "f 3 3"], T: Float64[Tensor, "f 3"]) -> Cameras:
    count = len(R)
    focal, principal = camera.focal_length.repeat(count, 1), camera.principal_point.repeat(count, 1)
    return Cameras(R.float().contiguous(), T.float(), focal, principal, camera.image_size)
