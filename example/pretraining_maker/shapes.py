"""Signed distances of solids in their own frame, compiled for the ray tracer.

Sphere tracing (Hart, "Sphere tracing", The Visual Computer 1996) needs a lower bound of the distance. That of ellipsoids and lumps is a first-order estimate,
so `STEP` shortens the steps. Formulas of the simple solids: I. Quilez, "Distance functions".
"""

import math
from enum import IntEnum

import numpy as np
from numba import njit

STEP = 0.85  # share of the distance that a ray advances


class Kind(IntEnum):
    """Solids. Sizes (a, b, c) are lengths in world units; `rounding` is the radius of edges."""

    ELLIPSOID = 0  # half axes a, b, c
    BOX = 1  # half sides a, b, c
    CYLINDER = 2  # radius a, half height c
    TORUS = 3  # radius a of the ring, radius b of the tube
    CONE = 4  # radii a at the bottom and b at the top, half height c
    CUP = 5  # radius a, half height c, open at the top
    LUMP = 6  # ball of radius a with waves of the relative height b
    PAIR = 7  # balls of the radii a and b, blended, at the distance c
    ROOM = 8  # the space outside of a box with half sides a, b, c: seen from inside


ELLIPSOID, BOX, CYLINDER, TORUS, CONE, CUP, LUMP, PAIR, ROOM = (int(kind) for kind in Kind)


def reach(kind: int, size: np.ndarray, rounding: float) -> float:
    """Radius of a bounding sphere around the origin of the solid."""
    a, b, c = size
    if kind in (ELLIPSOID, BOX, ROOM):
        return float(max(size) if kind == ELLIPSOID else np.linalg.norm(size))
    return {
        CYLINDER: math.hypot(a, c),
        TORUS: a + b,
        CONE: math.hypot(max(a, b), c) + rounding,
        CUP: math.hypot(a, c) + rounding,
        LUMP: a * (1.0 + b),
        PAIR: max(0.5 * c + a, 0.5 * c + b) + 0.25 * min(a, b),
    }[kind]


@njit(nogil=True, cache=True)
def _box(x: float, y: float, z: float, a: float, b: float, c: float, rounding: float) -> float:
    qx, qy, qz = abs(x) - (a - rounding), abs(y) - (b - rounding), abs(z) - (c - rounding)
    ox, oy, oz = max(qx, 0.0), max(qy, 0.0), max(qz, 0.0)
    return math.sqrt(ox * ox + oy * oy + oz * oz) + min(max(qx, max(qy, qz)), 0.0) - rounding


@njit(nogil=True, cache=True)
def _cylinder(radial: float, z: float, radius: float, half_height: float, rounding: float) -> float:
    qr, qz = radial - (radius - rounding), abs(z) - (half_height - rounding)
    outer_r, outer_z = max(qr, 0.0), max(qz, 0.0)
    return math.sqrt(outer_r * outer_r + outer_z * outer_z) + min(max(qr, qz), 0.0) - rounding


@njit(nogil=True, cache=True)
def _cone(radial: float, z: float, bottom: float, top: float, half_height: float) -> float:
    cap_radius = bottom if z < 0.0 else top
    cap_r, cap_z = radial - min(radial, cap_radius), abs(z) - half_height
    edge_r, edge_z = top - bottom, 2.0 * half_height
    along = ((top - radial) * edge_r + (half_height - z) * edge_z) / (edge_r * edge_r + edge_z * edge_z)
    along = min(max(along, 0.0), 1.0)
    side_r, side_z = radial - top + edge_r * along, z - half_height + edge_z * along
    sign = -1.0 if side_r < 0.0 and cap_z < 0.0 else 1.0
    return sign * math.sqrt(min(cap_r * cap_r + cap_z * cap_z, side_r * side_r + side_z * side_z))


@njit(nogil=True, cache=True)
def distance(kind: int, size: np.ndarray, rounding: float, x: float, y: float, z: float) -> float:
    """Signed distance of the point (x, y, z) in the frame of a solid; negative inside."""
    a, b, c = size[0], size[1], size[2]
    if kind == ELLIPSOID:
        ux, uy, uz = x / a, y / b, z / c
        near = math.sqrt(ux * ux + uy * uy + uz * uz)
        slope = math.sqrt((ux / a) ** 2 + (uy / b) ** 2 + (uz / c) ** 2)
        return -min(a, min(b, c)) if slope < 1e-9 else near * (near - 1.0) / slope
    if kind == BOX:
        return _box(x, y, z, a, b, c, rounding)
    if kind == ROOM:
        return -_box(x, y, z, a, b, c, rounding)
    if kind == LUMP:
        length = math.sqrt(x * x + y * y + z * z)
        waves = math.sin(5.0 * x / a + 1.0) * math.sin(4.0 * y / a) * math.sin(4.5 * z / a + 2.0)
        return 0.6 * (length - a * (1.0 + b * waves))
    if kind == PAIR:
        first = math.sqrt(x * x + y * y + (z + 0.5 * c) ** 2) - a
        second = math.sqrt(x * x + y * y + (z - 0.5 * c) ** 2) - b
        blend = 0.5 * min(a, b)
        mix = max(blend - abs(first - second), 0.0) / blend
        return min(first, second) - 0.25 * mix * mix * blend
    radial = math.sqrt(x * x + y * y)
    if kind == CYLINDER:
        return _cylinder(radial, z, a, c, rounding)
    if kind == TORUS:
        return math.sqrt((radial - a) ** 2 + z * z) - b
    if kind == CONE:
        return _cone(radial, z, a, b, c) - rounding
    wall = 0.08 * a  # of the cup: the outside, without a narrower cylinder that begins above the bottom
    outside = _cylinder(radial, z, a, c, 0.5 * wall)
    hollow = _cylinder(radial, z - 2.0 * wall, a - wall, c, 0.0)
    return max(outside, -hollow)
