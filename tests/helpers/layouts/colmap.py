"""Tiny COLMAP scenes on disk: a sparse model, binary or text, of photos that may be distorted, with the observations of its points."""

import math
import struct
from pathlib import Path

import numpy as np
from pycolmap import Camera

from npbgpp.geometry.point_cloud import read_ply

from ..scenes import POINTS, RADIUS, central_intrinsics, draw, look_at_origin, save_picture, write_cloud

MODEL_NUMBER = {
    **{"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4, "OPENCV_FISHEYE": 5, "FULL_OPENCV": 6, "FOV": 7},
    **{"SIMPLE_RADIAL_FISHEYE": 8, "RADIAL_FISHEYE": 9, "THIN_PRISM_FISHEYE": 10, "RAD_TAN_THIN_PRISM_FISHEYE": 11},
    **{"SIMPLE_DIVISION": 12, "DIVISION": 13, "SIMPLE_FISHEYE": 14, "FISHEYE": 15, "EUCM": 16},
}
# coefficients that move the corners of a picture by several pixels
DISTORTION = {
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": (-0.2,),
    "RADIAL": (0.3, -0.1),
    "OPENCV": (-0.25, 0.1, 0.01, -0.02),
    "OPENCV_FISHEYE": (0.1, -0.05, 0.02, 0.01),
    "FULL_OPENCV": (-0.2, 0.1, 0.01, 0.01, 0.02, 0.05, 0.01, 0.0),
    "FOV": (0.8,),
    "SIMPLE_RADIAL_FISHEYE": (0.2,),
    "RADIAL_FISHEYE": (-0.2, 0.1),
    "THIN_PRISM_FISHEYE": (0.1, 0.05, 0.01, -0.01, 0.02, 0.01, 0.02, -0.01),
    "RAD_TAN_THIN_PRISM_FISHEYE": (0.1, 0.05, 0.02, 0.0, 0.0, 0.0, 0.01, -0.01, 0.02, 0.0, 0.01, 0.0),
    "SIMPLE_DIVISION": (-0.2,),
    "DIVISION": (0.2,),
    "SIMPLE_FISHEYE": (),
    "FISHEYE": (),
    "EUCM": (0.6, 1.1),
}
_ONE_FOCAL_LENGTH = {
    "SIMPLE_PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "SIMPLE_DIVISION",
    "SIMPLE_FISHEYE",
}
CAMERA = 7  # its number in the files


def parameters(model: str, size: tuple[int, int]) -> tuple[float, ...]:
    """Those of ``central_intrinsics``, with distortion where the model has any."""
    focal = 1.5 * min(size)
    return (focal,) * (1 if model in _ONE_FOCAL_LENGTH else 2) + (size[1] / 2, size[0] / 2) + DISTORTION[model]


def draw_through(camera: Camera, w2c: np.ndarray) -> np.ndarray:
    """(h, w, 3) picture of the balls through a lens: each pixel is looked up in a large pinhole picture, eight pixels of that for one."""
    rows, columns = np.mgrid[: camera.height, : camera.width] + 0.5
    rays = camera.cam_from_img(np.column_stack([columns.ravel(), rows.ravel()]))
    focal = 8 * camera.mean_focal_length()
    first = np.floor(rays.min(0) * focal)  # the smallest large picture that has all rays
    width, height = (np.floor(rays.max(0) * focal) - first + 1).astype(int)
    K = np.array([[focal, 0.0, -first[0] - 0.5], [0.0, focal, -first[1] - 0.5], [0.0, 0.0, 1.0]])
    large, _ = draw(K, w2c, (height, width))
    u, v = (np.floor(rays * focal) - first).astype(int).T
    return large[v, u].reshape(camera.height, camera.width, 3)


def observations(camera: Camera, w2c: np.ndarray, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) pixels of the points that the photo shows, and which (n,): those on the near side of their ball, inside the picture."""
    ball = POINTS[np.arange(len(xyz)) * len(POINTS) // len(xyz)]
    eye = -w2c[:3, :3].T @ w2c[:3, 3]
    xyz_cam = xyz @ w2c[:3, :3].T + w2c[:3, 3]
    uv_px = camera.img_from_cam(xyz_cam)
    inside = ((uv_px > 0) & (uv_px < (camera.width, camera.height))).all(1)
    shown = np.flatnonzero(inside & (((xyz - ball) * (eye - ball)).sum(1) > RADIUS**2))
    return uv_px[shown], shown


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation, from the eigenvector of the largest eigenvalue (Bar-Itzhack, 2000)."""
    m = rotation
    K = np.array(
        [
            [m[0, 0] - m[1, 1] - m[2, 2], 0, 0, 0],
            [m[1, 0] + m[0, 1], m[1, 1] - m[0, 0] - m[2, 2], 0, 0],
            [m[2, 0] + m[0, 2], m[2, 1] + m[1, 2], m[2, 2] - m[0, 0] - m[1, 1], 0],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m.trace()],
        ]
    )
    x, y, z, w = np.linalg.eigh(K)[1][:, -1]
    return np.array([w, x, y, z])


def write(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64), text: bool = False, model: str = "PINHOLE") -> None:
    """A scene with one camera; numbers of photos count down, as the order of files does not have to be that of names.

    Every photo observes the points that it shows, after one that no point belongs to.
    """
    camera = Camera(model=model, width=size[1], height=size[0], params=list(parameters(model, size)))
    write_cloud(folder / "mvs_pc.ply")
    cloud = read_ply(folder / "mvs_pc.ply")
    assert cloud.rgb_u8 is not None
    xyz = cloud.xyz.double().numpy()
    images, tracks = {}, [[] for _ in xyz]
    for k in range(views):
        w2c = look_at_origin(2 * math.pi * k / views)
        picture = draw_through(camera, w2c) if DISTORTION[model] or "FISHEYE" in model else draw(central_intrinsics(size), w2c, size)[0]
        save_picture(folder / "images" / f"view_{k}.png", picture)
        uv_px, shown = observations(camera, w2c, xyz)
        images[views - k] = (f"view_{k}.png", w2c, np.vstack([[[1.5, 2.25]], uv_px]), [-1, *(_number(j) for j in shown)])
        for place, j in enumerate(shown):
            tracks[j].append((views - k, place + 1))
    points = {_number(j): (xyz[j], cloud.rgb_u8[j].tolist(), track) for j, track in enumerate(tracks) if len(track) > 1}
    seen = {k: (name, w2c, uv_px, [p if p in points else -1 for p in numbers]) for k, (name, w2c, uv_px, numbers) in sorted(images.items())}
    target = folder / "sparse" / "0"
    target.mkdir(parents=True)
    (write_text if text else _write_binary)(target, camera, seen, points)


def _number(j: int) -> int:
    """Numbers of points have gaps."""
    return 10 + 3 * j


def _write_binary(folder: Path, camera: Camera, images: dict, points: dict) -> None:
    number = MODEL_NUMBER[camera.model_name]
    head = struct.pack("<QiiQQ", 1, CAMERA, number, camera.width, camera.height)
    (folder / "cameras.bin").write_bytes(head + struct.pack(f"<{len(camera.params)}d", *camera.params))
    content = struct.pack("<Q", len(images))
    for number, (name, w2c, uv_px, seen) in images.items():
        content += struct.pack("<i7di", number, *quaternion(w2c[:3, :3]), *w2c[:3, 3], CAMERA) + name.encode() + b"\0"
        content += struct.pack("<Q", len(seen)) + b"".join(struct.pack("<2dq", *uv, p) for uv, p in zip(uv_px, seen, strict=True))
    (folder / "images.bin").write_bytes(content)
    content = struct.pack("<Q", len(points))
    for number, (xyz, rgb, track) in points.items():
        content += struct.pack("<Q3d3BdQ", number, *xyz, *rgb, 0.5, len(track)) + b"".join(struct.pack("<ii", *part) for part in track)
    (folder / "points3D.bin").write_bytes(content)


def _words(*numbers: float) -> str:
    return " ".join(repr(float(n)) if not float(n).is_integer() else str(int(n)) for n in numbers)


def write_text(folder: Path, camera: Camera, images: dict, points: dict) -> None:
    line = f"{CAMERA} {camera.model_name} {camera.width} {camera.height} {_words(*camera.params)}"
    (folder / "cameras.txt").write_text(f"# Camera list with one line of data per camera:\n{line}\n")
    lines = ["# Image list with two lines of data per image:"]
    for number, (name, w2c, uv_px, seen) in images.items():
        lines.append(f"{number} {_words(*quaternion(w2c[:3, :3]), *w2c[:3, 3])} {CAMERA} {name}")
        lines.append(" ".join(_words(*uv, p) for uv, p in zip(uv_px, seen, strict=True)))
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    lines = ["# 3D point list with one line of data per point:"]
    lines += [f"{n} {_words(*xyz)} {_words(*rgb)} 0.5 {_words(*sum(track, ()))}" for n, (xyz, rgb, track) in points.items()]
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n")
