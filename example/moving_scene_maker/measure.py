"""Images of the room and exact maps of them: depth, optical flow, moving pixels.

Pixel coordinates start at the top-left corner, pixel centres are at +0.5; depth is along the optical axis. Maps are computed in double precision at pixel
centres, colours are averaged over the pixel.
"""

from dataclasses import dataclass

import numpy as np

from moving_scene_maker.solids import Array, SceneObject

_HALF_WIDTH = 0.62  # of an image at depth 1


@dataclass(frozen=True)
class Pinhole:
    """A camera with images of ``size`` (height, width) pixels and the camera-to-world ``pose`` (4, 4), axes right, up, backward."""

    pose: Array
    size: tuple[int, int]

    @property
    def focal(self) -> float:
        """Pixels; the principal point is the centre of the image."""
        return self.size[1] / (2 * _HALF_WIDTH)

    def rays(self, uv: Array) -> tuple[Array, Array]:
        """Origins and directions (n, 3) through pixel coordinates uv (n, 2); directions end at depth 1."""
        x, y = (uv - np.array(self.size[::-1]) / 2).T / self.focal
        d = np.stack([x, -y, -np.ones(len(uv))], 1) @ self.pose[:3, :3].T
        return np.broadcast_to(self.pose[:3, 3], d.shape), d

    def project(self, xyz: Array) -> tuple[Array, Array]:
        """uv (n, 2) and depth (n,) of world points (n, 3)."""
        right, up, back = ((xyz - self.pose[:3, 3]) @ self.pose[:3, :3]).T
        depth = -back
        return np.stack([right, -up], 1) * self.focal / depth[:, None] + np.array(self.size[::-1]) / 2, depth

    def centres(self) -> Array:
        """(h * w, 2) pixel centres, row by row."""
        rows, columns = np.mgrid[: self.size[0], : self.size[1]] + 0.5
        return np.stack([columns.ravel(), rows.ravel()], 1)


@dataclass(frozen=True)
class Hits:
    """First intersections of n rays: index of the object, position in its own coordinates, depth."""

    index: Array
    position: Array
    depth: Array


def trace(objects: tuple[SceneObject, ...], time: float, camera: Pinhole, uv: Array) -> Hits:
    """Intersections of the rays through uv (n, 2). Each ray of these cameras hits the floor or a wall at the latest."""
    o, d = camera.rays(uv)
    depths, positions = [], []
    for obj in objects:
        pose = obj.pose(time)
        own_o, own_d = (o - pose[:3, 3]) @ pose[:3, :3], d @ pose[:3, :3]
        t = obj.shape.intersect(own_o, own_d)
        depths.append(t)
        positions.append(own_o + np.where(np.isfinite(t), t, 0.0)[:, None] * own_d)
    first, ray = np.argmin(depths, 0), np.arange(len(uv))
    return Hits(first, np.array(positions)[first, ray], np.array(depths)[first, ray])


def to_world(objects: tuple[SceneObject, ...], hits: Hits, time: float) -> Array:
    """(n, 3) world positions of the hit points of the objects at a time."""
    xyz = np.empty_like(hits.position)
    for k, obj in enumerate(objects):
        own, pose = hits.index == k, obj.pose(time)
        xyz[own] = hits.position[own] @ pose[:3, :3].T + pose[:3, 3]
    return xyz


def render(objects: tuple[SceneObject, ...], time: float, camera: Pinhole, samples: int) -> tuple[Array, Array]:
    """(h, w, 3) uint8 colours, averaged over samples x samples rays, and (h, w) whether any of these rays hits a moving object."""
    height, width = camera.size
    total, moves = np.zeros((height * width, 3)), np.zeros(height * width, bool)
    offsets = (np.arange(samples) + 0.5) / samples - 0.5
    moving = np.array([obj.moves for obj in objects])
    for dv in offsets:
        for du in offsets:
            hits = trace(objects, time, camera, camera.centres() + (du, dv))
            for k, obj in enumerate(objects):
                own = hits.index == k
                total[own] += obj.colours(hits.position[own], time)
            moves |= moving[hits.index]
    colours = (total / samples**2 * 255 + 0.5).astype(np.uint8)
    return colours.reshape(height, width, 3), moves.reshape(height, width)


def flow(objects: tuple[SceneObject, ...], hits: Hits, camera: Pinhole, other: Pinhole, other_time: float) -> Array:
    """(h, w, 2) optical flow from the pixel centres of ``camera`` to the same object points in ``other`` at its time, occluded or not."""
    uv, _ = other.project(to_world(objects, hits, other_time))
    return (uv - camera.centres()).reshape(*camera.size, 2)
