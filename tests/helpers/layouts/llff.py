"""A tiny scene in the layout of LLFF."""

import math
from pathlib import Path

import numpy as np

from ..scenes import central_intrinsics, draw, look_at_origin, save_picture, write_cloud

BOUNDS = (2.1, 3.9)  # the balls lie within 0.9 of the origin, the cameras 3 from it


def write(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64)) -> None:
    """Photos ``images/photo_000.png`` and so on, ``poses_bounds.npy`` and a cloud ``mvs_pc.ply``."""
    K, rows = central_intrinsics(size), []
    for k in range(views):
        w2c = look_at_origin(2 * math.pi * k / views)
        save_picture(folder / "images" / f"photo_{k:03}.png", draw(K, w2c, size)[0])
        right, down, forward, centre = np.linalg.inv(w2c)[:3].T
        matrix = np.stack([down, right, -forward, centre, [*size, K[0, 0]]], 1)
        rows.append([*matrix.ravel(), *BOUNDS])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    write_cloud(folder / "mvs_pc.ply")
