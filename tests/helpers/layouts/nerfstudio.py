"""The common scene in the layout of nerfstudio, with photos of a pinhole or of a distorting lens."""

import json
import math
from pathlib import Path

import numpy as np
from pycolmap import Camera

from ..scenes import central_intrinsics, draw, look_at_origin, save_picture, write_cloud
from .colmap import DISTORTION, draw_through, parameters

_KEYS = {"PINHOLE": (), "OPENCV": ("k1", "k2", "p1", "p2"), "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4")}


def write(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64), model: str = "PINHOLE") -> None:
    """Writes it with ``mvs_pc.ply``; frames are listed in reverse order, the file names in ``images``."""
    camera = Camera(model=model, width=size[1], height=size[0], params=list(parameters(model, size)))
    frames = []
    for k in range(views):
        w2c = look_at_origin(2 * math.pi * k / views)
        picture = draw_through(camera, w2c) if model != "PINHOLE" else draw(central_intrinsics(size), w2c, size)[0]
        save_picture(folder / "images" / f"view_{k}.png", picture)
        pose = np.linalg.inv(w2c) @ np.diag([1.0, -1.0, -1.0, 1.0])  # axes right, up, backward
        frames.append({"file_path": f"images/view_{k}.png", "transform_matrix": pose.tolist()})
    fx, fy, cx, cy = camera.params[:4].tolist()
    content = {"w": size[1], "h": size[0], "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "camera_model": model, "frames": frames[::-1]}
    content |= dict(zip(_KEYS[model], DISTORTION[model], strict=True))
    (folder / "transforms.json").write_text(json.dumps(content))
    write_cloud(folder / "mvs_pc.ply")
