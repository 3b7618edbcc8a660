"""A textured room with three balls, seen from inside, with exact depths: ray casting of a box and spheres with noise on them."""

from dataclasses import dataclass

import numpy as np

from npbgpp.kernels.stereo import StereoView

_LOW, _HIGH = np.array([-2.0, -1.2, -2.2]), np.array([2.0, 1.0, 2.2])
_BALLS = (((0.5, 0.3, 1.6), 0.45), ((-0.6, 0.5, 1.4), 0.35), ((0.2, -0.4, 1.8), 0.3))
_OCTAVES = ((2.0, 0.5), (5.0, 0.35), (13.0, 0.3), (31.0, 0.25), (70.0, 0.15))  # frequency, amplitude


@dataclass(frozen=True)
class Room:
    """Views around the middle of the room that look at its far wall, with depths along the viewing axis."""

    views: tuple[StereoView, ...] = ()
    depths: tuple[np.ndarray, ...] = ()

    def rendered(self, count: int, height: int, width: int, supersampling: int = 2) -> "Room":
        K = np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1.0]])
        views, depths = [], []
        for k in range(count):
            angle = 2.4 * k  # golden angle: baselines in all directions
            centre = 0.55 * np.sqrt(k / max(count - 1, 1)) * np.array([np.cos(angle), np.sin(angle), 0]) + [0, 0, -1.0]
            forward = np.array([0.0, 0.0, 1.8]) - centre
            forward /= np.linalg.norm(forward)
            right = np.cross([0.0, 1.0, 0.0], forward)
            right /= np.linalg.norm(right)
            rotation = np.stack([right, np.cross(forward, right), forward])
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = rotation, -rotation @ centre
            image, depth = _render(pose, K, height, width, supersampling)
            views.append(StereoView(image, None, K, pose))
            depths.append(depth)
        return Room(tuple(views), tuple(depths))


ROOM = Room()


def _render(pose: np.ndarray, K: np.ndarray, height: int, width: int, supersampling: int) -> tuple[np.ndarray, np.ndarray]:
    rotation, centre = pose[:3, :3], -pose[:3, :3].T @ pose[:3, 3]
    v, u = np.mgrid[:height, :width].astype(float)

    def cast(du: float, dv: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ray = (np.stack([u + du, v + dv, np.ones_like(u)], -1) @ np.linalg.inv(K).T) @ rotation
        with np.errstate(divide="ignore"):
            depth = np.where(ray > 0, (_HIGH - centre) / ray, (_LOW - centre) / ray).min(-1)
        ball = np.zeros(depth.shape, bool)
        for middle, radius in _BALLS:
            to = centre - np.array(middle)
            b, c, a = (to * ray).sum(-1), (to**2).sum() - radius**2, (ray**2).sum(-1)
            there = (-b - np.sqrt(np.maximum(b**2 - a * c, 0))) / a
            hit = (b**2 - a * c > 0) & (there > 0) & (there < depth)
            depth, ball = np.where(hit, there, depth), ball | hit
        return depth, centre + ray * depth[..., None], ball

    image = np.zeros((height, width))
    for k in range(supersampling**2):
        _, xyz, ball = cast((k % supersampling + 0.5) / supersampling, (k // supersampling + 0.5) / supersampling)
        image += _noise(np.where(ball[..., None], 1.7 * xyz + 9, xyz))
    image = 0.5 + 0.6 * image / supersampling**2
    return (np.round(image.clip(0, 1) * 255) / 255).astype(np.float32), cast(0.5, 0.5)[0]


def _noise(xyz: np.ndarray) -> np.ndarray:
    """Value noise of several octaves."""
    total = np.zeros(xyz.shape[:-1])
    for octave, (frequency, amplitude) in enumerate(_OCTAVES):
        cell = np.floor(xyz * frequency).astype(np.int64)
        share = xyz * frequency - cell
        share = share * share * (3 - 2 * share)
        for corner in np.ndindex(2, 2, 2):
            mixed = ((cell + corner) * [73856093, 19349663, 83492791]).sum(-1) ^ (octave * 104729)
            for factor in (2654435761, 2246822519):
                mixed = (mixed * factor) & 0xFFFFFFFF
                mixed ^= mixed >> 15
            total += amplitude * (mixed / 2**32 - 0.5) * np.where(corner, share, 1 - share).prod(-1)
    return total


def distance_to_room(xyz_world: np.ndarray) -> np.ndarray:
    """Distances of points (n, 3) to the nearest wall or ball."""
    walls = np.minimum(np.abs(xyz_world - _LOW), np.abs(xyz_world - _HIGH)).min(1)
    balls = [np.abs(np.linalg.norm(xyz_world - np.array(middle), axis=1) - radius) for middle, radius in _BALLS]
    return np.min([walls, *balls], 0)
