"""Pictures of the room, and what a perfect instrument would measure in them: depth, motion, what moves.

Pixels count from the top-left corner, centres at +0.5; depth is along the axis of a camera. All is computed in double precision and without sampling, apart
from the colours, which are means over the area of a pixel.
"""

from dataclasses import dataclass

import numpy as np

from moving_scene_maker.solids import Array, Thing

_FIELD = 0.62  # half of the width of a picture at depth 1


@dataclass(frozen=True)
class Pinhole:
    """A camera: pictures of ``size`` (height, width) pixels, camera-to-world ``pose`` (4, 4) with axes right, up, backward."""

    pose: Array
    size: tuple[int, int]

    @property
    def focal(self) -> float:
        """Pixels; the principal point is the middle of the picture."""
        return self.size[1] / (2 * _FIELD)

    def rays(self, uv: Array) -> tuple[Array, Array]:
        """Origins and directions (n, 3) through places uv (n, 2) of the picture; directions are as long as depth 1 needs."""
        x, y = (uv - np.array(self.size[::-1]) / 2).T / self.focal
        d = np.stack([x, -y, -np.ones(len(uv))], 1) @ self.pose[:3, :3].T
        return np.broadcast_to(self.pose[:3, 3], d.shape), d

    def project(self, xyz: Array) -> tuple[Array, Array]:
        """uv (n, 2) and depth (n,) of world points (n, 3)."""
        right, up, back = ((xyz - self.pose[:3, 3]) @ self.pose[:3, :3]).T
        depth = -back
        return np.stack([right, -up], 1) * self.focal / depth[:, None] + np.array(self.size[::-1]) / 2, depth

    def centres(self) -> Array:
        """(h * w, 2) centres of the pixels, row by row."""
        rows, columns = np.mgrid[: self.size[0], : self.size[1]] + 0.5
        return np.stack([columns.ravel(), rows.ravel()], 1)


@dataclass(frozen=True)
class Hits:
    """What n rays meet first: the number of the thing, the place in its own coordinates, depth."""

    thing: Array
    place: Array
    depth: Array


def trace(things: tuple[Thing, ...], moment: float, camera: Pinhole, uv: Array) -> Hits:
    """What is seen at places uv (n, 2). Rays of these cameras meet something: the room has a floor and walls on three sides."""
    o, d = camera.rays(uv)
    depths, places = [], []
    for thing in things:
        pose = thing.pose(moment)
        own_o, own_d = (o - pose[:3, 3]) @ pose[:3, :3], d @ pose[:3, :3]
        t = thing.shape.hits(own_o, own_d)
        depths.append(t)
        places.append(own_o + np.where(np.isfinite(t), t, 0.0)[:, None] * own_d)
    first = np.argmin(depths, 0)
    index = np.arange(len(uv))
    return Hits(first, np.array(places)[first, index], np.array(depths)[first, index])


def world(things: tuple[Thing, ...], hits: Hits, moment: float) -> Array:
    """(n, 3) where what was hit is at a moment."""
    xyz = np.empty_like(hits.place)
    for number, thing in enumerate(things):
        own, pose = hits.thing == number, thing.pose(moment)
        xyz[own] = hits.place[own] @ pose[:3, :3].T + pose[:3, 3]
    return xyz


def picture(things: tuple[Thing, ...], moment: float, camera: Pinhole, samples: int) -> tuple[Array, Array]:
    """(h, w, 3) uint8 colours, each the mean of samples x samples rays, and (h, w) whether any of these meets something that moves."""
    height, width = camera.size
    total, moves = np.zeros((height * width, 3)), np.zeros(height * width, bool)
    offsets = (np.arange(samples) + 0.5) / samples - 0.5
    moving = np.array([thing.moves for thing in things])
    for dv in offsets:
        for du in offsets:
            hits = trace(things, moment, camera, camera.centres() + (du, dv))
            for number, thing in enumerate(things):
                own = hits.thing == number
                total[own] += thing.colours(hits.place[own], moment)
            moves |= moving[hits.thing]
    colours = (total / samples**2 * 255 + 0.5).astype(np.uint8)
    return colours.reshape(height, width, 3), moves.reshape(height, width)


def flow(things: tuple[Thing, ...], hits: Hits, camera: Pinhole, other: Pinhole, other_moment: float) -> Array:
    """(h, w, 2) pixels from where ``camera`` saw the hits of all its pixels to where ``other`` sees the same places at its moment, hidden or not."""
    uv, _ = other.project(world(things, hits, other_moment))
    return (uv - camera.centres()).reshape(*camera.size, 2)
