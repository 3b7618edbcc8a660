"""Shapes that rays intersect, in their own coordinates, and their textures.

Textures are fixed to the shapes, and the light comes evenly from above, so shapes that move and turn about the vertical axis keep their colours.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
_MIN_DISTANCE = 1e-6  # nearer intersections belong to the surface that a ray starts from
_WAVES = 7  # per texture
_HUE = 0.35  # amplitude of the differences in colour, relative to that of the brightness
_SHADE = 0.45  # darkening of surfaces that face down


class Shape(ABC):
    """A surface around the origin of its own coordinates."""

    @abstractmethod
    def intersect(self, o: Array, d: Array) -> Array:
        """(n,) distances from o (n, 3) along d (n, 3), in lengths of d, to the surface; inf without an intersection."""

    @abstractmethod
    def normals(self, x: Array) -> Array:
        """(n, 3) unit normals at points x (n, 3) of the surface."""


class Floor(Shape):
    """The plane y = 0; walls are rotated floors."""

    def intersect(self, o: Array, d: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            t = -o[:, 1] / d[:, 1]
        return np.where(t > _MIN_DISTANCE, t, np.inf)

    def normals(self, x: Array) -> Array:
        return np.broadcast_to([0.0, 1.0, 0.0], x.shape)


@dataclass(frozen=True)
class Ball(Shape):
    """A sphere."""

    radius: float

    def intersect(self, o: Array, d: Array) -> Array:
        return _nearer_root(d, o, self.radius)

    def normals(self, x: Array) -> Array:
        return x / self.radius


@dataclass(frozen=True)
class Pillar(Shape):
    """An infinite vertical cylinder."""

    radius: float

    def intersect(self, o: Array, d: Array) -> Array:
        return _nearer_root(d[:, ::2], o[:, ::2], self.radius)

    def normals(self, x: Array) -> Array:
        return x * [1.0, 0.0, 1.0] / self.radius


@dataclass(frozen=True)
class Crate(Shape):
    """A box."""

    half: tuple[float, float, float]

    def intersect(self, o: Array, d: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            both = (np.array([[-1.0], [1.0]])[..., None] * self.half - o) / d
        enter, leave = both.min(0).max(1), both.max(0).min(1)
        return np.where((enter < leave) & (enter > _MIN_DISTANCE), enter, np.inf)

    def normals(self, x: Array) -> Array:
        share = x / self.half
        side = np.abs(share).argmax(1)
        normals = np.zeros_like(x)
        normals[np.arange(len(x)), side] = np.sign(share[np.arange(len(x)), side])
        return normals


def _nearer_root(d: Array, o: Array, radius: float) -> Array:
    a, b, c = (d * d).sum(1), (d * o).sum(1), (o * o).sum(1) - radius**2
    square = b * b - a * c
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (-b - np.sqrt(square)) / a
    return np.where((square > 0) & (t > _MIN_DISTANCE), t, np.inf)


@dataclass(frozen=True)
class Texture:
    """A sum of coloured waves in space.

    Attributes:
        base: (3,) mean colour.
        waves: (k, 3) frequencies along each axis, per unit.
        phases: (k,) in periods.
        colours: (k, 3) amplitude of each wave.
    """

    base: Array
    waves: Array
    phases: Array
    colours: Array

    @classmethod
    def random(cls, rng: np.random.Generator, base: tuple[float, float, float], scale: float, contrast: float = 0.11) -> "Texture":
        """Waves with lengths of about ``scale`` units in random directions."""
        directions = rng.normal(size=(_WAVES, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = scale * rng.uniform(0.6, 1.8, (_WAVES, 1))
        return cls(
            np.array(base),
            directions / lengths,
            rng.random(_WAVES),
            contrast * (rng.normal(size=(_WAVES, 1)) + _HUE * rng.normal(size=(_WAVES, 3))),
        )

    def at(self, x: Array) -> Array:
        """(n, 3) colours in [0, 1] of points x (n, 3)."""
        waves = np.sin(2 * np.pi * (x @ self.waves.T + self.phases))
        return np.clip(self.base + np.tanh(1.5 * waves) @ self.colours, 0.02, 0.98)


@dataclass(frozen=True)
class SceneObject:
    """A textured shape with a motion.

    Attributes:
        shape, texture: its surface.
        pose: object-to-world matrix at a time.
        moves: whether the pose changes.
    """

    shape: Shape
    texture: Texture
    pose: Callable[[float], Array]
    moves: bool = False

    def colours(self, x: Array, time: float) -> Array:
        """(n, 3) shaded colours at points x (n, 3) in its own coordinates."""
        up = self.shape.normals(x) @ self.pose(time)[1, :3]
        return self.texture.at(x) * (1 - _SHADE * (1 - up) / 2)[:, None]
