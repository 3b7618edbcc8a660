"""A tiny scene in the layout of NPCR, with mattes."""

import math
from pathlib import Path

import numpy as np

from npbgpp.geometry.point_cloud import read_ply

from ..scenes import central_intrinsics, draw, look_at_origin, save_mask, save_picture, write_cloud


def write(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64)) -> None:
    """Photos, mattes, ``CamPose.inf``, ``Intrinsic.inf``, a cloud ``pointclouds/frame1.xzy`` and the same as ``mvs_pc.ply``."""
    K = central_intrinsics(size)
    from_corner = K + np.array([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    poses, blocks = [], []
    for k in range(views):
        w2c = look_at_origin(2 * math.pi * k / views)
        picture, mask = draw(K, w2c, size)
        save_picture(folder / "img" / "0" / f"img_{k + 1:04}.jpg", picture)
        save_mask(folder / "img" / "0" / f"img_{k + 1:04}_alpha.png", mask)
        x, y, z, centre = np.linalg.inv(w2c)[:3].T
        poses.append(" ".join(f"{value:.9g}" for value in np.concatenate([z, x, y, centre])))
        blocks.append("\n".join([str(k), *(" ".join(f"{value:g}" for value in row) for row in from_corner), ""]))
    (folder / "CamPose.inf").write_text("\n".join(poses) + "\n")
    (folder / "Intrinsic.inf").write_text("\n".join(blocks) + "\n")
    write_cloud(folder / "mvs_pc.ply")
    (folder / "pointclouds").mkdir(exist_ok=True)
    np.savetxt(folder / "pointclouds" / "frame1.xzy", read_ply(folder / "mvs_pc.ply").xyz.numpy(), fmt="%.6f")
