"""Ray tracer of random scenes: disc lamp with soft shadows, sky with soft panels, ambient occlusion, mirror reflections; compiled, one thread per call.

Rays start at an origin (3,) with a unit direction (3,). Calls release the interpreter lock, so that threads render several views at once.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from pretraining_maker.shapes import ROOM, STEP, distance
from pretraining_maker.textures import albedo

FAR = 1e9
HIT = 2e-4  # distance from the surface that counts as an intersection, world units
MAX_STEPS = 64
OFFSET = 2e-3  # of secondary rays from the surface
BOUNCES = 2
NORMAL_REFLECTANCE = 0.05
OCCLUSION_TAPS = (0.05, 0.12, 0.25)
GRADIENT_STEP = 1e-4  # of the central differences


class Solids(NamedTuple):
    """Arrays over k solids.

    Attributes:
        kind: (k,) see ``shapes.Kind``.
        size: (k, 3) see ``shapes.Kind``.
        rounding: (k,) radius of edges.
        reach: (k,) radius of a bounding sphere.
        rotation: (k, 3, 3) from the frame of the solid to the world.
        position: (k, 3) in the world.
        pattern: (k,) see ``textures.Pattern``.
        colours: (k, 3, 3) of the pattern.
        frequency: (k,) cells of the pattern per world unit.
        gloss: (k,) weight of the reflection of a clear coat; 0 is matte.
        metal: (k,) share of a reflection that is tinted by the colour.
        exponent: (k,) sharpness of the highlight.
    """

    kind: np.ndarray
    size: np.ndarray
    rounding: np.ndarray
    reach: np.ndarray
    rotation: np.ndarray
    position: np.ndarray
    pattern: np.ndarray
    colours: np.ndarray
    frequency: np.ndarray
    gloss: np.ndarray
    metal: np.ndarray
    exponent: np.ndarray


class Light(NamedTuple):
    """A disc lamp that faces the origin, and the sky.

    Attributes:
        lamp: (3,) centre.
        lamp_axes: (2, 3) radii of the disc as vectors.
        lamp_colour: (3,).
        sky: (2, 3) ambient light from above and from below.
        panels: (k, 8) bright rectangles of the sky: direction, half width, strength, colour.
    """

    lamp: np.ndarray
    lamp_axes: np.ndarray
    lamp_colour: np.ndarray
    sky: np.ndarray
    panels: np.ndarray


@njit(nogil=True, cache=True)
def _local(solids: Solids, k: int, x: float, y: float, z: float) -> tuple[float, float, float]:
    """A point in the frame of solid k."""
    r = solids.rotation[k]
    px, py, pz = x - solids.position[k, 0], y - solids.position[k, 1], z - solids.position[k, 2]
    return (
        r[0, 0] * px + r[1, 0] * py + r[2, 0] * pz,
        r[0, 1] * px + r[1, 1] * py + r[2, 1] * pz,
        r[0, 2] * px + r[1, 2] * py + r[2, 2] * pz,
    )


@njit(nogil=True, cache=True)
def _distance_to(solids: Solids, k: int, x: float, y: float, z: float) -> float:
    x, y, z = _local(solids, k, x, y, z)
    return distance(solids.kind[k], solids.size[k], solids.rounding[k], x, y, z)


@njit(nogil=True, cache=True)
def _albedo_at(solids: Solids, k: int, p: np.ndarray, out: np.ndarray) -> None:
    """Writes the linear colour (3,) of solid k at a point (3,)."""
    x, y, z = _local(solids, k, p[0], p[1], p[2])
    albedo(solids.pattern[k], solids.colours[k], solids.frequency[k], k, x, y, z, out)


@njit(nogil=True, cache=True)
def clearance(solids: Solids, point: np.ndarray) -> float:
    """Distance of a point (3,) from the nearest surface; negative inside a solid."""
    nearest = FAR
    for k in range(len(solids.kind)):
        nearest = min(nearest, _distance_to(solids, k, point[0], point[1], point[2]))
    return nearest


@njit(nogil=True, cache=True)
def nearest_hit(solids: Solids, o: np.ndarray, d: np.ndarray, limit: float, any_hit: bool) -> tuple[float, int]:
    """Distance and solid of the first intersection before ``limit``, or (limit, -1); with ``any_hit`` of any intersection, where rooms do not count."""
    best, which = limit, -1
    for k in range(len(solids.kind)):
        room = solids.kind[k] == ROOM
        if room and any_hit:
            continue
        begin, end = 0.0, best
        if not room:
            cx, cy, cz = solids.position[k, 0] - o[0], solids.position[k, 1] - o[1], solids.position[k, 2] - o[2]
            along = cx * d[0] + cy * d[1] + cz * d[2]
            half = solids.reach[k] ** 2 - (cx * cx + cy * cy + cz * cz - along * along)
            if half <= 0.0:
                continue
            half = math.sqrt(half)
            begin, end = max(along - half, 0.0), min(along + half, best)
        t = begin
        for _ in range(MAX_STEPS):
            if t >= end:
                break
            gap = _distance_to(solids, k, o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
            if gap < HIT:
                best, which = t, k
                break
            t += STEP * gap if not room else gap
        if any_hit and which >= 0:
            break
    return best, which


@njit(nogil=True, cache=True)
def normal_at(solids: Solids, k: int, p: np.ndarray, out: np.ndarray) -> None:
    """Writes the outward unit normal (3,) at a point (3,) of the surface of solid k."""
    for axis in range(3):
        e0, e1, e2 = (GRADIENT_STEP if axis == 0 else 0.0), (GRADIENT_STEP if axis == 1 else 0.0), (GRADIENT_STEP if axis == 2 else 0.0)
        out[axis] = _distance_to(solids, k, p[0] + e0, p[1] + e1, p[2] + e2) - _distance_to(solids, k, p[0] - e0, p[1] - e1, p[2] - e2)
    length = math.sqrt(out[0] ** 2 + out[1] ** 2 + out[2] ** 2)
    for axis in range(3):
        out[axis] /= max(length, 1e-12)


@njit(nogil=True, cache=True)
def _sky(light: Light, d: np.ndarray, out: np.ndarray) -> None:
    up = 0.5 + 0.5 * d[2]
    for c in range(3):
        out[c] = up * light.sky[0, c] + (1.0 - up) * light.sky[1, c]
    for k in range(len(light.panels)):
        panel = light.panels[k]
        facing = d[0] * panel[0] + d[1] * panel[1] + d[2] * panel[2]
        if facing <= 0.05:
            continue
        level = max(math.sqrt(panel[0] ** 2 + panel[1] ** 2), 1e-6)
        side = (-panel[1] * d[0] + panel[0] * d[1]) / (level * facing)
        over = (d[2] - facing * panel[2]) / (level * facing)
        edge = min(max((panel[3] - max(abs(side), abs(over))) / 0.08, 0.0), 1.0)
        for c in range(3):
            out[c] += edge * edge * (3.0 - 2.0 * edge) * panel[4] * panel[5 + c]


@njit(nogil=True, cache=True)
def _occlusion(solids: Solids, p: np.ndarray, n: np.ndarray) -> float:
    share = 1.0
    for k in range(len(solids.kind)):
        if solids.kind[k] != ROOM:
            away = 0.0
            for axis in range(3):
                away += (p[axis] - solids.position[k, axis]) ** 2
            if away > (solids.reach[k] + 2.0 * OCCLUSION_TAPS[-1]) ** 2:
                continue
        closed = 0.0
        for height in OCCLUSION_TAPS:
            gap = _distance_to(solids, k, p[0] + height * n[0], p[1] + height * n[1], p[2] + height * n[2])
            closed += min(max(1.0 - gap / height, 0.0), 1.0)
        share *= 1.0 - 0.6 * closed / len(OCCLUSION_TAPS)
    return share


@njit(nogil=True, cache=True)
def _radiance(solids: Solids, light: Light, o: np.ndarray, d: np.ndarray, lamp_u: float, lamp_v: float, out: np.ndarray) -> bool:
    """Writes the colour (3,) along a ray; whether the ray hits a solid. ``o`` and ``d`` are changed."""
    p, n, base, to_lamp, sky = np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    weight = np.ones(3)
    out[:] = 0.0
    solid_hit = False
    for bounce in range(BOUNCES + 1):
        t, k = nearest_hit(solids, o, d, FAR, False)
        if k < 0:
            _sky(light, d, sky)
            for c in range(3):
                out[c] += weight[c] * sky[c]
            break
        solid_hit |= bounce == 0
        for axis in range(3):
            p[axis] = o[axis] + t * d[axis]
        normal_at(solids, k, p, n)
        _albedo_at(solids, k, p, base)
        for axis in range(3):
            o[axis] = p[axis] + OFFSET * n[axis]
            to_lamp[axis] = light.lamp[axis] + lamp_u * light.lamp_axes[0, axis] + lamp_v * light.lamp_axes[1, axis] - o[axis]
        length = math.sqrt(to_lamp[0] ** 2 + to_lamp[1] ** 2 + to_lamp[2] ** 2)
        to_lamp /= length
        cosine = max(n[0] * to_lamp[0] + n[1] * to_lamp[1] + n[2] * to_lamp[2], 0.0)
        lit = 0.0
        if cosine > 0.0 and nearest_hit(solids, o, to_lamp, length, True)[1] < 0:
            lit = 1.0
        share = _occlusion(solids, p, n)
        view_cosine = min(max(-(n[0] * d[0] + n[1] * d[1] + n[2] * d[2]), 0.0), 1.0)
        grazing = (1.0 - view_cosine) ** 5  # Schlick, "An inexpensive BRDF model", Computer Graphics Forum 1994, equation 15
        coat = solids.gloss[k] * (NORMAL_REFLECTANCE + (1.0 - NORMAL_REFLECTANCE) * grazing)
        metal = solids.metal[k]
        half0, half1, half2 = to_lamp[0] - d[0], to_lamp[1] - d[1], to_lamp[2] - d[2]
        half_length = max(math.sqrt(half0**2 + half1**2 + half2**2), 1e-9)
        spot_cosine = max((n[0] * half0 + n[1] * half1 + n[2] * half2) / half_length, 0.0)
        spot = lit * solids.gloss[k] * spot_cosine ** solids.exponent[k]
        shiny = solids.gloss[k] > 0.0 or metal > 0.0
        up = 0.5 + 0.5 * n[2]
        for c in range(3):
            ambient = up * light.sky[0, c] + (1.0 - up) * light.sky[1, c]
            diffuse = base[c] * (lit * cosine * light.lamp_colour[c] + share * ambient)
            mirror = (1.0 - metal) * coat + metal * (base[c] + (1.0 - base[c]) * grazing)
            out[c] += weight[c] * ((1.0 - metal) * (1.0 - coat) * diffuse + spot * light.lamp_colour[c])
            weight[c] *= mirror
        if not shiny or max(weight[0], max(weight[1], weight[2])) < 0.01:
            break
        for axis in range(3):
            d[axis] += 2.0 * view_cosine * n[axis]
        if bounce == BOUNCES:
            _sky(light, d, sky)
            for c in range(3):
                out[c] += weight[c] * share * sky[c]
    return solid_hit


@njit(nogil=True, cache=True)
def _srgb(value: float) -> float:
    """IEC 61966-2-1, of a linear value that is clamped to [0, 1]."""
    value = min(max(value, 0.0), 1.0)
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1.0 / 2.4) - 0.055


@njit(nogil=True, cache=True)
def render(solids: Solids, light: Light, pose: np.ndarray, angle_x: float, size: int, samples: int) -> np.ndarray:
    """(size, size, 4) uint8 sRGB with straight alpha, ``samples`` x ``samples`` rays a pixel; colours are 0 where alpha is 0.

    The samples are averaged in sRGB, so that the image composited on white equals an image that is rendered on white.
    """
    focal = 0.5 * size / math.tan(0.5 * angle_x)
    image = np.zeros((size, size, 4), np.uint8)
    o, d, colour, total = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    count = samples * samples
    for row in range(size):
        for column in range(size):
            total[:] = 0.0
            covered = 0
            for s in range(count):
                x = column + (s % samples + 0.5) / samples - 0.5 * size
                y = row + (s // samples + 0.5) / samples - 0.5 * size
                for axis in range(3):
                    d[axis] = pose[axis, 0] * x - pose[axis, 1] * y - pose[axis, 2] * focal
                    o[axis] = pose[axis, 3]
                d /= math.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2)
                # points of the lamp: a golden-angle spiral (equal areas), whose order differs between pixels
                index = (s * 7 + row * 3 + column * 5) % count
                radius, angle = math.sqrt((index + 0.5) / count), 2.399963 * index
                if _radiance(solids, light, o, d, radius * math.cos(angle), radius * math.sin(angle), colour):
                    covered += 1
                    for c in range(3):
                        total[c] += _srgb(colour[c])
            if covered:
                for c in range(3):
                    image[row, column, c] = int(255.0 * total[c] / covered + 0.5)
                image[row, column, 3] = int(255.0 * covered / count + 0.5)
    return image


@njit(nogil=True, cache=True)
def surface_points(solids: Solids, pose: np.ndarray, angle_x: float, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Surface points that a camera sees.

    Args:
        solids: of the scene.
        pose: (4, 4) camera to world.
        angle_x: horizontal field of view, radians.
        uv: (n, 2) positions in the image, in [0, 1], columns first, rows downwards.

    Returns:
        (n, 3) positions, NaN without a surface; (n, 3) sRGB colours without light, in [0, 1]; (n,) solids.
    """
    points, colours = np.full((len(uv), 3), np.nan), np.zeros((len(uv), 3))
    which = np.full(len(uv), -1)
    tangent = math.tan(0.5 * angle_x)
    o, d = np.empty(3), np.empty(3)
    for i in range(len(uv)):
        x, y = (2.0 * uv[i, 0] - 1.0) * tangent, (2.0 * uv[i, 1] - 1.0) * tangent
        for axis in range(3):
            d[axis] = pose[axis, 0] * x - pose[axis, 1] * y - pose[axis, 2]
            o[axis] = pose[axis, 3]
        d /= math.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2)
        t, k = nearest_hit(solids, o, d, FAR, False)
        if k < 0:
            continue
        which[i] = k
        for axis in range(3):
            points[i, axis] = o[axis] + t * d[axis]
        _albedo_at(solids, k, points[i], colours[i])
        for c in range(3):
            colours[i, c] = _srgb(colours[i, c])
    return points, colours, which
