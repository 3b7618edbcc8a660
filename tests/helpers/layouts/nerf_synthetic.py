"""The common scene in the layout of NeRF-Synthetic: the last view but one validates, the last one is the test."""

import json
import math
from pathlib import Path

import numpy as np

from ..scenes import central_intrinsics, draw, look_at_origin, save_picture, write_cloud


def write(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64)) -> None:
    """Writes it with ``mvs_pc.ply``; alpha is the mask of the balls."""
    K = central_intrinsics(size)
    frames: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    for k in range(views):
        stage = {views - 2: "val", views - 1: "test"}.get(k, "train")
        w2c = look_at_origin(2 * math.pi * k / views)
        picture, mask = draw(K, w2c, size)
        name = f"{stage}/r_{len(frames[stage])}"
        save_picture(folder / f"{name}.png", np.concatenate([picture, mask[..., None] * np.uint8(255)], -1))
        pose = np.linalg.inv(w2c) @ np.diag([1.0, -1.0, -1.0, 1.0])  # axes right, up, backward
        frames[stage].append({"file_path": f"./{name}", "transform_matrix": pose.tolist()})
    angle = 2 * math.atan(size[1] / 2 / K[0, 0])
    for stage, listed in frames.items():
        (folder / f"transforms_{stage}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": listed}))
    write_cloud(folder / "mvs_pc.ply")
