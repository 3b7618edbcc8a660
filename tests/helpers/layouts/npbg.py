"""The tiny scene in the layout of NPBG: ``scene.yaml``, cameras as Metashape exports them or as text, photos, cloud; and a paths file with masks."""

import math
from pathlib import Path

import numpy as np

from ..scenes import central_intrinsics, draw, look_at_origin, save_mask, save_picture, write_cloud

_OPENGL_FROM_OPENCV = np.array([1.0, -1.0, -1.0, 1.0])


def write(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64), text: bool = False, paths: bool = False) -> None:
    """Writes the scene; cameras as text if ``text``, and masks and ``paths.yaml``, which calls it ball, if ``paths``."""
    K, height, width = central_intrinsics(size), *size
    poses = {}
    for k in range(views):
        label, w2c = str(k) if text else f"IMG_{k:04}", look_at_origin(2 * math.pi * k / views)
        picture, mask = draw(K, w2c, size)
        save_picture(folder / "images_undistorted" / f"{label}.png", picture)
        if paths:
            save_mask(folder / "masks" / f"{label}.jpg", mask)
        poses[label] = np.linalg.inv(w2c)
    files = ("intrinsic_matrix.txt", "view_matrix.txt") if text else ("cameras.xml", "cameras.xml")
    if text:
        K[:2, 2] += 0.5  # from the centre of the first pixel to its corner
        np.savetxt(folder / files[0], K)
        np.savetxt(folder / files[1], np.concatenate([pose * _OPENGL_FROM_OPENCV for pose in poses.values()]), fmt="%.17g")
    else:
        (folder / files[0]).write_text(metashape_xml(poses, size, f"<f>{K[0, 0]}</f>"))
    (folder / "scene.yaml").write_text(
        f"viewport_size: [{width}, {height}]\nintrinsic_matrix: {files[0]}\nview_matrix: {files[1]}\npointcloud: point_cloud.ply\n"
    )
    if paths:
        (folder / "paths.yaml").write_text(
            "datasets:\n    ball:\n        scene_path: scene.yaml\n        target_path: images_undistorted\n"
            "        target_name_func: \"lambda i: f'{i}.png'\"\n        mask_path: masks\n        mask_name_func: \"lambda i: f'{i}.jpg'\"\n"
        )
    write_cloud(folder / "point_cloud.ply")


def metashape_xml(poses: dict[str, np.ndarray], size: tuple[int, int], calibration: str, more: str = "") -> str:
    """One sensor and its cameras (camera-to-world, axes right, down, forward; None is not aligned), as Metashape writes them; ``more`` ends the chunk."""
    resolution = f'<resolution width="{size[1]}" height="{size[0]}"/>'
    cameras = ""
    for k, (label, pose) in enumerate(poses.items()):
        transform = "" if pose is None else f"<transform>{' '.join(f'{value:.17g}' for value in pose.ravel())}</transform>"
        cameras += f'      <camera id="{k}" sensor_id="0" label="{label}">{transform}<orientation>1</orientation></camera>\n'
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<document version="1.5.0">
  <chunk label="Chunk 1" enabled="true">
    <sensors next_id="1">
      <sensor id="0" label="unknown" type="frame">
        {resolution}
        <calibration type="frame" class="adjusted">{resolution}{calibration}</calibration>
      </sensor>
    </sensors>
    <cameras next_id="{len(poses)}" next_group_id="0">
{cameras}    </cameras>
{more}  </chunk>
</document>
"""
