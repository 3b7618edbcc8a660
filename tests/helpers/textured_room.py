"""A room with noise on its walls, drawn as photos, panoramas and videos with known poses. z is up; the room is the box from (0, 0, 0) to SIDE."""

import functools
import math
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from PIL import Image

SIDE = 4.0
_TEXTURE = 768  # pixels of the side of a wall


class Room:
    """Rooms of different seeds have nothing in common."""

    def __init__(self, seed: int = 0) -> None:
        self.walls = self._walls(seed)

    @staticmethod
    @functools.cache
    def _walls(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.stack([Room._noise(rng) for _ in range(6)])

    @staticmethod
    def _noise(rng: np.random.Generator) -> np.ndarray:
        total = np.zeros((_TEXTURE, _TEXTURE, 3))
        for cells, weight in ((6, 60.0), (24, 70.0), (96, 80.0), (384, 30.0)):
            small = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
            layers = [Image.fromarray(small[..., c]).resize((_TEXTURE, _TEXTURE), Image.Resampling.BICUBIC) for c in range(3)]
            total += weight * np.stack([np.asarray(layer) for layer in layers], 2)
        return np.clip(127 + total, 0, 255)

    def look(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Colours (n, 3) seen from a point in the room along rays (n, 3)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            far = np.where(rays > 0, (SIDE - origin) / rays, np.where(rays < 0, -origin / rays, np.inf))
        axis = far.argmin(1)
        hit = origin + rays * np.take_along_axis(far, axis[:, None], 1)
        wall = 2 * axis + (np.take_along_axis(rays, axis[:, None], 1)[:, 0] > 0)
        others = np.array([[1, 2], [0, 2], [0, 1]])[axis]
        uv = np.take_along_axis(hit, others, 1) / SIDE * (_TEXTURE - 1.001)
        uv = uv.clip(0, _TEXTURE - 1.001)
        low = uv.astype(int)
        share = (uv - low)[..., None]
        (u, v), (a, b) = low.T, share.transpose(1, 0, 2)
        top = self.walls[wall, v, u] * (1 - a) + self.walls[wall, v, u + 1] * a
        bottom = self.walls[wall, v + 1, u] * (1 - a) + self.walls[wall, v + 1, u + 1] * a
        return (top * (1 - b) + bottom * b).round().astype(np.uint8)

    def photo(self, world_to_cam: np.ndarray, size: tuple[int, int], focal: float) -> Image.Image:
        """What a pinhole camera sees (axes right, down, forward); ``size`` is (height, width)."""
        rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
        rays = np.stack([(columns - size[1] / 2) / focal, (rows - size[0] / 2) / focal, np.ones(size)], 2).reshape(-1, 3)
        origin = -world_to_cam[:3, :3].T @ world_to_cam[:3, 3]
        return Image.fromarray(self.look(origin, rays @ world_to_cam[:3, :3]).reshape(*size, 3))

    def panorama(self, origin: np.ndarray, height: int) -> Image.Image:
        """All directions, +x in the middle, z up."""
        rows, columns = np.mgrid[:height, : 2 * height] + 0.5
        pitch, yaw = math.pi * (0.5 - rows / height), math.pi * (1 - columns / height)
        rays = np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)], 2).reshape(-1, 3)
        return Image.fromarray(self.look(origin, rays).reshape(height, 2 * height, 3))


def cameras(count: int) -> list[np.ndarray]:
    """World-to-camera matrices (4, 4) of level cameras on an arc, which look at a corner of the room."""
    poses = []
    for k in range(count):
        angle = 2 * math.pi * k / count
        centre = np.array([2.9 + 0.6 * math.cos(angle), 2.6 + 0.9 * math.sin(angle), 1.9 + 0.5 * math.sin(2 * angle)])
        forward = np.array([0.4 + 0.2 * math.sin(angle), 0.5, 0.9]) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = [right, np.cross(forward, right), forward]
        pose[:3, 3] = -pose[:3, :3] @ centre
        poses.append(pose)
    return poses


SIZE, FOCAL = (240, 320), 280.0


def write_photos(folder: Path, count: int = 8, seed: int = 0, prefix: str = "IMG") -> dict[str, np.ndarray]:
    """Photos ``IMG_0.jpg``, ... of a room; their poses by name."""
    folder.mkdir(parents=True, exist_ok=True)
    room, poses = Room(seed), cameras(count)
    for k, pose in enumerate(poses):
        room.photo(pose, SIZE, FOCAL).save(folder / f"{prefix}_{k}.jpg", quality=95)
    return {f"{prefix}_{k}.jpg": pose for k, pose in enumerate(poses)}


def write_video(path: Path, frames: int, moves: bool = True) -> None:
    """A film along a quarter of the arc; a still one if it does not move."""
    room, poses = Room(), cameras(4 * frames)
    with imageio.get_writer(path, fps=15, macro_block_size=1, quality=9) as writer:
        for pose in poses[:frames]:
            writer.append_data(np.asarray(room.photo(pose if moves else poses[0], SIZE, FOCAL)))


def pose_errors(estimated: dict[str, np.ndarray], true: dict[str, np.ndarray]) -> tuple[float, float]:
    """(largest rotation error in degrees, largest error of a centre relative to the extent of the true centres) after the best similarity."""
    names = sorted(estimated)
    centres = [np.stack([-p[n][:3, :3].T @ p[n][:3, 3] for n in names]) for p in (estimated, true)]
    means = [c.mean(0) for c in centres]
    source, target = (c - m for c, m in zip(centres, means, strict=True))
    U, S, Vt = np.linalg.svd(target.T @ source)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))])
    rotation = U @ np.diag(signs) @ Vt
    scale = (S * signs).sum() / (source**2).sum()
    off = np.linalg.norm(scale * source @ rotation.T - target, axis=1).max() / np.ptp(target, axis=0).max()
    angles = []
    for name in names:
        turned = estimated[name][:3, :3] @ rotation.T @ true[name][:3, :3].T
        angles.append(math.degrees(math.acos(min(1.0, max(-1.0, (np.trace(turned) - 1) / 2)))))
    return max(angles), float(off)
