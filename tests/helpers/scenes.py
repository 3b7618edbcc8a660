"""Tiny scenes on disk in the layouts of ScanNet, DTU and H3DS, with pictures drawn by casting rays, not by projecting points.

Coloured balls around POINTS, seen from a ring of cameras at distance 3, so that depths exceed 1. Symbols: K (3, 3) in pixels counted from the centre of the
first one; w2c is world-to-camera (4, 4) acting on columns, axes right, down, forward. In DTU and H3DS scenes K alternates between views and has the mean
``mean_intrinsics``.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from npbgpp.data import Scene, read_photo
from npbgpp.geometry import PointCloud, write_ply

POINTS = np.array([[0.1, 0.2, -0.45], [-0.3, 0.1, -0.15], [0.3, -0.2, 0.15], [-0.1, -0.3, 0.45]])  # none hides another
COLOURS = np.array([[230, 20, 20], [20, 200, 20], [20, 20, 230], [230, 200, 20]], dtype=np.uint8)
RADIUS = 0.15
BACKDROP = (70, 80, 90)


def look_at_origin(azimuth: float) -> np.ndarray:
    """w2c of a camera on the ring, with the world's z axis up in the image."""
    eye = np.array([3 * math.cos(azimuth), 3 * math.sin(azimuth), 0.3 * math.sin(5 * azimuth)])
    forward = -eye / np.linalg.norm(eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    w2c = np.eye(4)
    w2c[:3, :3], w2c[:3, 3] = rotation, -rotation @ eye
    return w2c


def draw(K: np.ndarray, w2c: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(h, w, 3) picture of the balls and (h, w) mask of them: every pixel follows its ray."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(K).T @ w2c[:3, :3]
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    offset = POINTS + w2c[:3, :3].T @ w2c[:3, 3]
    along = rays @ offset.T
    hit = (offset**2).sum(1) - along**2 < RADIUS**2
    nearest = np.where(hit, along, np.inf).argmin(-1)
    seen = hit.any(-1)
    return np.where(seen[..., None], COLOURS[nearest], np.array(BACKDROP, dtype=np.uint8)), seen


def centroid(image: torch.Tensor, colour: np.ndarray) -> torch.Tensor:
    """(u, v), from the corner of the picture (3, h, w), of the pixels that have about this colour."""
    match = (image.int() - torch.from_numpy(colour.astype(np.int32))[:, None, None]).abs().amax(0) < 40
    assert match.sum() >= 5, "the ball is not in the picture"
    return match.nonzero().double().mean(0).flip(0) + 0.5


def projection_errors(scene: Scene) -> torch.Tensor:
    """(views * points, 2): where the balls are drawn minus where their centres project to, pixels."""
    errors = []
    for view in scene.views:
        uv, depth = view.camera.project(torch.from_numpy(POINTS).float())
        assert (depth > 1).all()
        image = read_photo(view).image
        assert image.shape[1:] == view.camera.image_size
        errors += [centroid(image, colour) - uv[0, k] for k, colour in enumerate(COLOURS)]
    return torch.stack(errors)


def colour_error(scene: Scene, cloud: PointCloud, camera_of: int, photo_of: int) -> float:
    """Mean difference between the colours of visible points, by a z-buffer at the resolution of the photo, and of a photo, 0..255."""
    camera = scene.views[camera_of].camera
    height, width = camera.image_size
    uv_px, depth = camera.project(cloud.xyz)
    column, row = uv_px[0].floor().long().unbind(1)
    inside = ((depth[0] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)).nonzero()[:, 0]
    assert len(inside) > 5000
    order = inside[depth[0, inside].argsort(descending=True)].numpy()
    drawn = np.full((height, width), -1)
    drawn[row.numpy()[order], column.numpy()[order]] = order  # far to near: the last write remains
    nearest = torch.from_numpy(drawn)
    shown = nearest >= 0
    image = read_photo(scene.views[photo_of]).image
    return (image[:, shown].float() - cloud.rgb_u8[nearest[shown]].T.float()).abs().mean().item()


def share_in_mask(scene: Scene, xyz: torch.Tensor, camera_of: int, mask_of: int) -> float:
    """Share of the points in the image of a view that lie in a mask, dilated by two pixels."""
    camera = scene.views[camera_of].camera
    height, width = camera.image_size
    uv_px, depth = camera.project(xyz)
    column, row = uv_px[0].floor().long().unbind(1)
    inside = (depth[0] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    assert inside.float().mean() > 0.9
    mask = torch.nn.functional.max_pool2d((read_photo(scene.views[mask_of]).mask >= 128).float()[None], 5, stride=1, padding=2)[0, 0]
    return mask[row[inside], column[inside]].mean().item()


def write_cloud(path: Path, points_per_ball: int = 100) -> None:
    """Points on the surfaces of the balls, in their colours."""
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(len(POINTS), points_per_ball, 3, generator=generator), dim=2)
    xyz = torch.from_numpy(POINTS).float()[:, None] + RADIUS * normals
    rgb = torch.from_numpy(COLOURS)[:, None].expand(-1, points_per_ball, 3)
    write_ply(path, PointCloud(xyz.flatten(0, 1), rgb.reshape(-1, 3)))


def mean_intrinsics(size: tuple[int, int]) -> np.ndarray:
    """Unequal focal lengths and a principal point that is not the centre."""
    height, width = size
    focal = 1.5 * min(size)
    return np.array([[focal, 0.0, 0.47 * width], [0.0, 0.98 * focal, 0.53 * height], [0.0, 0.0, 1.0]])


def central_intrinsics(size: tuple[int, int]) -> np.ndarray:
    """One focal length and the principal point in the middle: what every layout can express."""
    height, width = size
    return np.array([[1.5 * min(size), 0.0, width / 2 - 0.5], [0.0, 1.5 * min(size), height / 2 - 0.5], [0.0, 0.0, 1.0]])


def alternating_intrinsics(size: tuple[int, int], k: int) -> np.ndarray:
    """K of the k-th view: one pixel to the right and longer, or to the left and shorter."""
    sign = 1 - 2 * (k % 2)
    return mean_intrinsics(size) + sign * np.array([[2.0, 0.0, 1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])


def save_picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}))


def save_mask(path: Path, mask: np.ndarray) -> None:
    save_picture(path, np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))


def _projection(K: np.ndarray, w2c: np.ndarray) -> np.ndarray:
    P = np.eye(4)
    P[:3] = K @ w2c[:3]
    return P


def write_dtu(folder: Path, views: int = 49, size: tuple[int, int] = (48, 64), K: np.ndarray | None = None) -> None:
    """A DTU scene; the sign and scale of the matrices differ from view to view. K alternates if None."""
    matrices = {}
    for k in range(views):
        view_K, w2c = alternating_intrinsics(size, k) if K is None else K, look_at_origin(2 * math.pi * k / views)
        picture, mask = draw(view_K, w2c, size)
        save_picture(folder / "image" / f"{k:06}.png", picture)
        save_mask(folder / "mask" / f"{k:03}.png", mask)
        P = _projection(view_K, w2c)
        P[:3] *= (1.0, -0.5)[k % 2]
        matrices |= {f"world_mat_{k}": P, f"scale_mat_{k}": np.diag([9.0, 9.0, 9.0, 1.0])}
    np.savez(folder / "cameras.npz", **matrices)
    write_cloud(folder / "mvs_pc.ply")


def write_h3ds(
    folder: Path,
    numbers: Iterable[int] = range(69),
    size: tuple[int, int] = (64, 64),
    version: str = "0.1",
    K: np.ndarray | None = None,
    step: float = 0.09,
) -> None:
    """An H3DS scene with photos of these numbers; in version 0.1 its matrices refer to a world of 1/40 of the size.

    K alternates if None; ``step`` is the angle on the ring between photos of consecutive numbers.
    """
    smaller = 40.0 if version == "0.1" else 1.0
    matrices = {}
    for k, number in enumerate(numbers):
        view_K, w2c = alternating_intrinsics(size, k) if K is None else K, look_at_origin(step * number)
        picture, mask = draw(view_K, w2c, size)
        save_picture(folder / "image" / f"img_{number:04}.jpg", picture)
        save_mask(folder / "mask" / f"mask_{number:04}{'.jpg' if version == '0.1' else '.png'}", mask)
        matrices[f"world_mat_{number}"] = (_projection(view_K, w2c) @ np.diag([smaller, smaller, smaller, 1.0])).astype(np.float32)
    np.savez(folder / "cameras.npz", **matrices)
    if version == "0.1":
        turned = np.array([[0.0, -1.0, 0.0, 0.3], [1.0, 0.0, 0.0, -0.2], [0.0, 0.0, 1.0, 5.0], [0.0, 0.0, 0.0, smaller]]) / smaller
        entries = [{"row": str(r), "column": str(c), "element": str(turned[r, c])} for r in range(4) for c in range(4)]
        (folder / "normalization_transform.json").write_text(json.dumps({"dimension": "3", "transform": entries}))
    write_cloud(folder / "mvs_pc.ply")


def write_scannet(
    folder: Path,
    views: int = 100,
    size: tuple[int, int] = (60, 80),
    photo_size: tuple[int, int] | None = None,
    principal_point: tuple[float, float] | None = None,
    K: np.ndarray | None = None,
) -> None:
    """A ScanNet scene with photos 0, 3, 6, ...

    ``photo_size`` is the size of the files when it is not that of K. Without K the focal lengths differ, and ``principal_point`` is the centre if None.
    """
    if K is None:
        K = mean_intrinsics(size)
        K[:2, 2] = ((size[1] - 1) / 2, (size[0] - 1) / 2) if principal_point is None else principal_point
    height, width = photo_size or size
    to_photo = np.diag([width / size[1], height / size[0], 1.0])
    half = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])  # from the centre of the first pixel to its corner
    photo_K = np.linalg.inv(half) @ to_photo @ half @ K
    extrinsics = np.stack([look_at_origin(2 * math.pi * k / views) for k in range(views)])
    for k, w2c in enumerate(extrinsics):
        save_picture(folder / "images" / f"{3 * k}.jpg", draw(photo_K, w2c, (height, width))[0])
    np.save(folder / "intrinsics.npy", np.array({"K": K, "height": size[0], "width": size[1]}, dtype=object))
    np.save(folder / "extrinsics.npy", extrinsics)
    write_cloud(folder / "full.ply")
