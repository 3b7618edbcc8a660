"""Procedural colours of solids, compiled for the ray tracer: functions of the position on the solid, so that they need no surface coordinates."""

import math
from enum import IntEnum

import numpy as np
from numba import njit


class Pattern(IntEnum):
    """Patterns of three colours."""

    PLAIN = 0
    CHECKER = 1
    STRIPES = 2
    CLOUDS = 3
    DOTS = 4
    WOOD = 5
    MARBLE = 6
    BRICKS = 7
    CELLS = 8


PLAIN, CHECKER, STRIPES, CLOUDS, DOTS, WOOD, MARBLE, BRICKS, CELLS = (int(pattern) for pattern in Pattern)
GRAIN = 0.12  # strength of fine noise in every pattern


@njit(nogil=True, cache=True)
def random_of_cell(x: int, y: int, z: int, seed: int) -> float:
    """Number in [0, 1) of an integer cell, by integer mixing (finaliser of MurmurHash3)."""
    h = np.uint32(x) * np.uint32(0x8DA6B343) ^ np.uint32(y) * np.uint32(0xD8163841) ^ np.uint32(z) * np.uint32(0xCB1AB31F)
    h = np.uint32(h ^ np.uint32(seed) * np.uint32(0x9E3779B9))
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16))) / 4294967296.0


@njit(nogil=True, cache=True)
def value_noise(x: float, y: float, z: float, seed: int) -> float:
    """Smooth noise in [0, 1] with cells of size 1: numbers of the corners, interpolated with the cubic smoothstep."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    ix, iy, iz = int(fx), int(fy), int(fz)
    tx, ty, tz = x - fx, y - fy, z - fz
    tx, ty, tz = tx * tx * (3.0 - 2.0 * tx), ty * ty * (3.0 - 2.0 * ty), tz * tz * (3.0 - 2.0 * tz)
    total = 0.0
    for corner in range(8):
        dx, dy, dz = corner & 1, (corner >> 1) & 1, corner >> 2
        weight = (tx if dx else 1.0 - tx) * (ty if dy else 1.0 - ty) * (tz if dz else 1.0 - tz)
        total += weight * random_of_cell(ix + dx, iy + dy, iz + dz, seed)
    return total


@njit(nogil=True, cache=True)
def fractal_noise(x: float, y: float, z: float, seed: int) -> float:
    """Three octaves of value noise, in [0, 1]."""
    return (
        4.0 * value_noise(x, y, z, seed)
        + 2.0 * value_noise(2.1 * x, 2.1 * y, 2.1 * z, seed + 1)
        + value_noise(4.3 * x, 4.3 * y, 4.3 * z, seed + 2)
    ) / 7.0


@njit(nogil=True, cache=True)
def albedo(pattern: int, colours: np.ndarray, frequency: float, seed: int, x: float, y: float, z: float, out: np.ndarray) -> None:
    """Writes the colour (3,) of a point of a solid with three colours (3, 3); ``frequency`` is the number of cells per world unit."""
    u, v, w = x * frequency, y * frequency, z * frequency
    first, second = 1.0, 0.0  # weights of the first two colours; the third has the rest
    if pattern == CHECKER:
        odd = (math.floor(u + 0.01) + math.floor(v + 0.01) + math.floor(w + 0.01)) % 2.0
        first, second = 1.0 - odd, odd
    elif pattern == STRIPES:
        phase = (u + 0.6 * w + 0.3 * math.sin(2.0 * v)) % 1.0
        first = 1.0 if phase < 0.55 else 0.0
        second = 1.0 - first if phase < 0.85 else 0.0
    elif pattern == CLOUDS:
        first = min(max(3.0 * fractal_noise(u, v, w, seed) - 1.0, 0.0), 1.0)
        second = (1.0 - first) * value_noise(0.7 * u, 0.7 * v, 0.7 * w, seed + 9)
    elif pattern == DOTS:
        cu, cv, cw = math.floor(u), math.floor(v), math.floor(w)
        away = (u - cu - 0.5) ** 2 + (v - cv - 0.5) ** 2 + (w - cw - 0.5) ** 2
        size = 0.15 + 0.3 * random_of_cell(int(cu), int(cv), int(cw), seed)
        if away < size * size:
            first, second = 0.0, 1.0
    elif pattern == WOOD:
        rings = 2.0 * math.sqrt((u + 3.0) ** 2 + (w + 2.0) ** 2) + fractal_noise(0.5 * u, 0.5 * v, 0.5 * w, seed)
        first = 0.5 + 0.5 * math.sin(2.0 * math.pi * rings)
        second = 1.0 - first
    elif pattern == MARBLE:
        first = 0.5 + 0.5 * math.sin(3.0 * u + 8.0 * fractal_noise(u, v, w, seed))
        first = first * first
        second = 1.0 - first
    elif pattern == BRICKS:
        row = math.floor(2.0 * w)
        along, across = u + 0.5 * (row % 2.0), v + 0.5 * (row % 2.0)
        joint = min(min(along - math.floor(along), across - math.floor(across)), 0.5 * (2.0 * w - row))
        if joint < 0.06:
            first, second = 0.0, 0.0
        else:
            first = random_of_cell(int(math.floor(along)), int(math.floor(across)), int(row), seed)
            second = 1.0 - first
    elif pattern == CELLS:
        pick = random_of_cell(int(math.floor(u)), int(math.floor(v)), int(math.floor(w)), seed)
        first = 1.0 if pick < 0.4 else 0.0
        second = 1.0 if 0.4 <= pick < 0.75 else 0.0
    grain = 1.0 + GRAIN * (fractal_noise(9.0 * u, 9.0 * v, 9.0 * w, seed + 5) - 0.5)
    for c in range(3):
        mixed = first * colours[0, c] + second * colours[1, c] + (1.0 - first - second) * colours[2, c]
        out[c] = min(max(mixed * grain, 0.0), 1.0)
