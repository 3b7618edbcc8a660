"""The common scene as ScanNet's own tools export scenes, with depth maps of half the size of the photos."""

import math
from pathlib import Path

import numpy as np

from ..scenes import POINTS, RADIUS, central_intrinsics, draw, look_at_origin, save_picture, write_cloud


def draw_depth(K: np.ndarray, w2c: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) depths along the optical axis of the nearest ball that each pixel's ray meets, 0 where it meets none."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(K).T  # of depth 1
    centres = POINTS @ w2c[:3, :3].T + w2c[:3, 3]
    # the nearer of the depths z at which |z ray - centre| is the radius
    square, along = (rays**2).sum(-1, keepdims=True), rays @ centres.T
    root = along**2 - square * ((centres**2).sum(-1) - RADIUS**2)
    depth = np.where(root > 0, (along - np.sqrt(np.maximum(root, 0))) / square, np.inf).min(-1)
    return np.where(np.isfinite(depth), depth, 0.0)


def write(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64), K: np.ndarray | None = None) -> None:
    """Writes it with photos 0, 3, 6, ... and ``full.ply``; other K, of the photos, than the common one may be given."""
    depth_size = (size[0] // 2, size[1] // 2)
    intrinsics = {"color": central_intrinsics(size) if K is None else K, "depth": central_intrinsics(depth_size)}
    (folder / "pose").mkdir(parents=True)
    (folder / "intrinsic").mkdir()
    for k in range(views):
        w2c = look_at_origin(2 * math.pi * k / views)
        save_picture(folder / "color" / f"{3 * k}.jpg", draw(intrinsics["color"], w2c, size)[0])
        millimetres = np.rint(1000 * draw_depth(intrinsics["depth"], w2c, depth_size)).astype(np.uint16)
        save_picture(folder / "depth" / f"{3 * k}.png", millimetres)
        np.savetxt(folder / "pose" / f"{3 * k}.txt", np.linalg.inv(w2c), fmt="%f")
    for camera, matrix in intrinsics.items():
        padded = np.eye(4)
        padded[:3, :3] = matrix
        np.savetxt(folder / "intrinsic" / f"intrinsic_{camera}.txt", padded, fmt="%f")
        np.savetxt(folder / "intrinsic" / f"extrinsic_{camera}.txt", np.eye(4), fmt="%f")
    write_cloud(folder / "full.ply")
