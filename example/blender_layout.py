"""Files of the NeRF-Synthetic ("Blender") layout, for the generators of scenes."""

import json
from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyElement


def write_transforms(path: Path, split: str, cameras: np.ndarray, angle_x: float) -> None:
    """Writes the cameras (k, 4, 4) of one split, of one horizontal field of view in radians."""
    frames = [{"file_path": f"./{split}/r_{i}", "transform_matrix": camera.tolist()} for i, camera in enumerate(cameras)]
    path.write_text(json.dumps({"camera_angle_x": angle_x, "frames": frames}, indent=1) + "\n", encoding="utf-8")


def write_cloud(path: Path, xyz: np.ndarray, rgb: np.ndarray) -> None:
    """Writes (n, 3) float32 positions and (n, 3) uint8 colours as little-endian binary PLY."""
    names = ("x", "y", "z", "red", "green", "blue")
    vertices = np.empty(len(xyz), dtype=[(name, "<f4" if name in "xyz" else "u1") for name in names])
    for name, values in zip(names, [*xyz.T, *rgb.T], strict=True):
        vertices[name] = values
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(path)
