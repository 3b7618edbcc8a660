"""The common scene as programs write it that put one file of cameras beside the photos: Bundler, RealityCapture and Metashape."""

import math
from pathlib import Path

import numpy as np
from pycolmap import Camera

from npbgpp.geometry.point_cloud import read_ply

from ..scenes import central_intrinsics, draw, look_at_origin, save_picture, write_cloud
from .colmap import DISTORTION, draw_through, parameters
from .npbg import metashape_xml

_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # axes right, down, forward from right, up, backward


def _write_photos(folder: Path, views: int, size: tuple[int, int], model: str) -> list[np.ndarray]:
    """Photos ``images/view_0.png`` and so on; returns world-to-camera matrices, axes right, down, forward."""
    camera = Camera(model=model, width=size[1], height=size[0], params=list(parameters(model, size)))
    poses = [look_at_origin(2 * math.pi * k / views) for k in range(views)]
    for k, w2c in enumerate(poses):
        picture = draw_through(camera, w2c) if DISTORTION[model] else draw(central_intrinsics(size), w2c, size)[0]
        save_picture(folder / "images" / f"view_{k}.png", picture)
    write_cloud(folder / "mvs_pc.ply")
    return poses


def write_bundler(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64), distorted: bool = False) -> None:
    """``bundle.out`` with some of the points, and ``list.txt``."""
    poses = _write_photos(folder, views, size, "RADIAL" if distorted else "PINHOLE")
    k1, k2 = DISTORTION["RADIAL"] if distorted else (0, 0)
    cloud = read_ply(folder / "mvs_pc.ply")
    lines = ["# Bundle file v0.3", f"{views} {len(cloud) // 4}"]
    for w2c in poses:
        matrix = _FLIP @ w2c
        rows = [" ".join(f"{value:.17g}" for value in row) for row in (*matrix[:3, :3], matrix[:3, 3])]
        lines += [f"{1.5 * min(size):g} {k1} {k2}", *rows]
    for xyz, rgb in zip(cloud.xyz[::4].tolist(), cloud.rgb_u8[::4].tolist(), strict=True):
        lines += [" ".join(map(str, xyz)), " ".join(map(str, rgb)), "2 0 0 1.5 -2.5 1 0 0.5 3"]
    (folder / "bundle.out").write_text("\n".join(lines) + "\n")
    (folder / "list.txt").write_text("".join(f"images/view_{k}.png 0 {1.5 * min(size):g}\n" for k in range(views)))


def angles(cam_to_world: np.ndarray) -> tuple[float, float, float]:
    """(heading, pitch, roll) in degrees of axes right, up, backward: pitch is the tilt from looking down, heading that of the view from north to east."""
    right, up, backward = cam_to_world[:3, :3].T
    pitch = math.asin(np.clip(up[2], -1, 1))
    if abs(up[2]) > 1 - 1e-12:  # heading and roll turn about the same axis
        return math.degrees(math.atan2(-right[1], right[0])), math.degrees(pitch), 0.0
    heading = math.atan2(up[0], up[1])
    roll = math.atan2(-right[2], backward[2])
    return math.degrees(heading), math.degrees(pitch), math.degrees(roll)


def write_reality_capture(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64), distorted: bool = False) -> None:
    """``cameras.csv``."""
    poses = _write_photos(folder, views, size, "OPENCV" if distorted else "PINHOLE")
    k1, k2, p1, p2 = DISTORTION["OPENCV"] if distorted else (0, 0, 0, 0)
    focal = 1.5 * min(size) * 36 / max(size)
    lines = ["#cameras " + str(views), "#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"]
    for k, w2c in enumerate(poses):
        pose = np.linalg.inv(w2c) @ _FLIP
        numbers = [*pose[:3, 3], *angles(pose), focal, 0, 0, k1, k2, 0, 0, p1, p2]
        lines.append(f"view_{k}.png," + ",".join(f"{value:.15g}" for value in numbers))
    (folder / "cameras.csv").write_text("\n".join(lines) + "\n")


def write_metashape(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64), distorted: bool = False) -> None:
    """``cameras.xml``."""
    poses = _write_photos(folder, views, size, "OPENCV" if distorted else "PINHOLE")
    k1, k2, p1, p2 = DISTORTION["OPENCV"] if distorted else (0, 0, 0, 0)
    calibration = f"<f>{1.5 * min(size)}</f><k1>{k1}</k1><k2>{k2}</k2><p1>{p2}</p1><p2>{p1}</p2>"
    (folder / "cameras.xml").write_text(metashape_xml({f"view_{k}": np.linalg.inv(w2c) for k, w2c in enumerate(poses)}, size, calibration))
