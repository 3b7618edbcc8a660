"""Random scenes: objects on a table, seen from outside, or in a room, seen from inside; materials, lights and cameras."""

import math
from dataclasses import dataclass

import numpy as np

from pretraining_maker.shapes import BOX, CONE, CUP, CYLINDER, ELLIPSOID, LUMP, PAIR, ROOM, TORUS, reach
from pretraining_maker.textures import PLAIN, Pattern
from pretraining_maker.tracer import Light, Solids, clearance

ROOM_SHARE = 0.25  # of the scenes
RADIUS = 1.3  # of the objects on a table
MAX_TRIES = 60
CAMERA_CLEARANCE = 0.25  # of cameras in a room, world units


@dataclass(frozen=True)
class RandomScene:
    """Solids and light with (v, 4, 4) camera poses, of one horizontal field of view in radians."""

    solids: Solids
    light: Light
    poses: np.ndarray
    angle_x: float
    room: bool


@dataclass(frozen=True)
class _Solid:
    kind: int
    size: tuple[float, float, float]
    rounding: float
    rotation: np.ndarray
    position: np.ndarray


def draw_scene(seed: int, views: int) -> RandomScene:
    """The scene of a seed with ``views`` cameras."""
    rng = np.random.default_rng(seed)
    room = bool(rng.random() < ROOM_SHARE)
    shapes = _room(rng) if room else _table(rng)
    solids = _with_materials(rng, shapes, room)
    light = _light(rng, room, shapes[0].size[2])
    poses, angle_x = _inside_cameras(rng, solids, shapes[0].size, views) if room else _outside_cameras(rng, views)
    return RandomScene(solids, light, poses, angle_x, room)


# ------------------------------------------------------------- objects
def _table(rng: np.random.Generator) -> list[_Solid]:
    flat = np.array([0.0, 0.0, -0.05])
    radius = RADIUS * rng.uniform(0.9, 1.1)
    style = rng.random()
    if style < 0.5:
        ground = _Solid(CYLINDER, (radius, radius, 0.05), 0.02, np.eye(3), flat)
    elif style < 0.8:
        side = radius * rng.uniform(0.8, 0.95)
        ground = _Solid(BOX, (side, side * rng.uniform(0.7, 1.0), 0.05), 0.015, _turned(2, rng.uniform(0.0, 6.28)), flat)
    else:  # objects alone, one upon the other
        ground = _Solid(BOX, (0.5, 0.35, 0.12), 0.02, _turned(2, rng.uniform(0.0, 6.28)), np.array([0.0, 0.0, -0.12]))
        radius = 0.55
    shapes = [ground]
    for _ in range(rng.integers(5, 15)):
        _place(rng, shapes, 0.75 * radius, 0.75 * radius, rng.uniform(0.08, 0.38) * (1.0 if style < 0.8 else 1.3))
    return shapes


def _room(rng: np.random.Generator) -> list[_Solid]:
    half = (rng.uniform(1.6, 2.6), rng.uniform(1.6, 2.6), rng.uniform(1.0, 1.5))
    shapes = [_Solid(ROOM, half, 0.0, np.eye(3), np.array([0.0, 0.0, half[2]]))]
    for _ in range(rng.integers(6, 14)):
        _place(rng, shapes, half[0] - 0.4, half[1] - 0.4, rng.uniform(0.2, 0.6))
    for _ in range(rng.integers(2, 6)):  # pictures on the walls
        axis, sign = int(rng.integers(2)), 1.0 if rng.random() < 0.5 else -1.0
        position = np.array([0.0, 0.0, half[2] * rng.uniform(0.8, 1.3)])
        position[axis], position[1 - axis] = sign * (half[axis] - 0.02), rng.uniform(-0.7, 0.7) * half[1 - axis]
        size = [rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.5), rng.uniform(0.15, 0.4)]
        size[axis] = 0.03
        shapes.append(_Solid(BOX, (size[0], size[1], size[2]), 0.01, np.eye(3), position))
    return shapes


def _place(rng: np.random.Generator, shapes: list[_Solid], half_x: float, half_y: float, scale: float) -> None:
    """Adds a solid of about the given height at a free place, or none; some stand on others."""
    kind = int(rng.choice([ELLIPSOID, BOX, CYLINDER, TORUS, CONE, CUP, LUMP, PAIR], p=[0.16, 0.24, 0.14, 0.1, 0.1, 0.1, 0.1, 0.06]))
    a, b, c = scale * rng.uniform(0.6, 1.2, 3)
    rounding, rotation, height = 0.0, _turned(2, rng.uniform(0.0, 6.28)), float(c)
    if kind == BOX:
        rounding = 0.15 * min(a, b, c) * rng.random()
    elif kind == CYLINDER:
        a, c = 0.7 * a, c if rng.random() < 0.7 else 0.3 * c
        rounding, height = 0.1 * min(a, c), float(c)
        if rng.random() < 0.3:
            rotation, height = rotation @ _turned(0, math.pi / 2.0), float(a)
    elif kind == TORUS:
        b = a * rng.uniform(0.15, 0.4)
        standing = rng.random() < 0.5
        rotation, height = (rotation @ _turned(0, math.pi / 2.0), float(a + b)) if standing else (rotation, float(b))
    elif kind == CONE:
        a, b, rounding = 0.8 * a, 0.8 * a * rng.uniform(0.0, 0.6), 0.02 * scale
        height = float(c + rounding)
    elif kind == CUP:
        a, height = 0.7 * a, float(c)
    elif kind == LUMP:
        b, height = rng.uniform(0.05, 0.15), float(a)
    elif kind == PAIR:
        a, b = 0.6 * a, 0.45 * a
        c = a + b * rng.uniform(0.2, 0.8)
        height = float(0.5 * c + a)
    size = (float(a), float(b), float(c))
    ground = shapes[0].size[2] if shapes[0].kind == ROOM else 0.0
    for _ in range(MAX_TRIES):
        x, y = rng.uniform(-half_x, half_x), rng.uniform(-half_y, half_y)
        base = 0.0
        if rng.random() < 0.25 and len(shapes) > 1:  # on the flat top of a box
            under = shapes[int(rng.integers(1, len(shapes)))]
            if under.kind == BOX and under.rotation[2, 2] > 0.99:
                x, y, base = under.position[0], under.position[1], under.position[2] + under.size[2]
        candidate = _Solid(kind, size, rounding, rotation, np.array([x, y, base + height]))
        mine = _footprint(candidate)
        free = all(
            math.hypot(x - other.position[0], y - other.position[1]) > 0.85 * (mine + _footprint(other))
            or abs(base + height - other.position[2]) > height + other.size[2] - 1e-6
            for other in shapes[1:]
        )
        if free and (ground == 0.0 or base + 2.0 * height < 1.8 * ground):
            shapes.append(candidate)
            return


def _footprint(solid: _Solid) -> float:
    return min(
        reach(solid.kind, np.array(solid.size), solid.rounding), max(solid.size[0], solid.size[1]) * 1.2 if solid.kind != TORUS else 9.0
    )


# ------------------------------------------------------------- materials and light
def _colour(rng: np.random.Generator) -> np.ndarray:
    """Linear RGB: any hue, mostly of medium saturation and brightness."""
    hue, saturation, value = rng.random(), rng.beta(1.5, 2.0), rng.uniform(0.15, 0.95)
    sector = np.array([abs(6.0 * hue - 3.0) - 1.0, 2.0 - abs(6.0 * hue - 2.0), 2.0 - abs(6.0 * hue - 4.0)])
    srgb = value * (1.0 - saturation * (1.0 - np.clip(sector, 0.0, 1.0)))
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _with_materials(rng: np.random.Generator, shapes: list[_Solid], room: bool) -> Solids:
    count = len(shapes)
    gloss, metal, exponent = np.zeros(count), np.zeros(count), np.full(count, 30.0)
    for k in range(count):
        style = rng.random()
        if style < 0.45 or (k == 0 and room):
            continue  # matte
        if style < 0.65:
            gloss[k], exponent[k] = rng.uniform(0.2, 0.5), rng.uniform(20.0, 80.0)
        elif style < 0.9 or k == 0:
            gloss[k], exponent[k] = 1.0, rng.uniform(100.0, 400.0)
        else:
            gloss[k], metal[k], exponent[k] = 1.0, rng.uniform(0.6, 1.0), 400.0
    pattern = np.where(rng.random(count) < 0.2, PLAIN, rng.integers(1, len(Pattern), count))
    sizes = np.array([solid.size for solid in shapes])
    return Solids(
        kind=np.array([solid.kind for solid in shapes]),
        size=sizes,
        rounding=np.array([solid.rounding for solid in shapes]),
        reach=np.array([reach(solid.kind, np.array(solid.size), solid.rounding) for solid in shapes]),
        rotation=np.stack([solid.rotation for solid in shapes]),
        position=np.stack([solid.position for solid in shapes]),
        pattern=pattern,
        colours=np.stack([[_colour(rng) for _ in range(3)] for _ in shapes]),
        frequency=rng.uniform(1.2, 4.0, count) / np.clip(sizes.max(1), 0.1, 0.8),
        gloss=gloss,
        metal=metal,
        exponent=exponent,
    )


def _light(rng: np.random.Generator, room: bool, half_height: float) -> Light:
    if room:
        lamp = np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), 1.85 * half_height])
    else:
        turn, elevation = rng.uniform(0.0, 6.28), rng.uniform(0.6, 1.3)
        lamp = rng.uniform(4.0, 7.0) * np.array(
            [math.cos(elevation) * math.cos(turn), math.cos(elevation) * math.sin(turn), math.sin(elevation)]
        )
    towards = lamp / np.linalg.norm(lamp)
    side = np.cross(towards, [0.3, 0.9, 0.1])
    side /= np.linalg.norm(side)
    radius = rng.uniform(0.1, 0.6)
    tint = 1.0 + rng.uniform(-0.12, 0.12, 3)
    ambient = rng.uniform(0.35, 0.7) * (1.0 + rng.uniform(-0.1, 0.1, 3))
    panels = []
    for _ in range(rng.integers(1, 5)):
        azimuth, elevation = rng.uniform(0.0, 6.28), rng.uniform(0.1, 1.1)
        direction = [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
        panels.append([*direction, rng.uniform(0.15, 0.5), rng.uniform(0.4, 1.5), *(1.0 + rng.uniform(-0.1, 0.1, 3))])
    return Light(
        lamp=lamp,
        lamp_axes=radius * np.stack([side, np.cross(towards, side)]),
        lamp_colour=rng.uniform(0.4, 0.9) * tint,
        sky=np.stack([ambient, ambient * rng.uniform(0.5, 0.9)]),
        panels=np.array(panels),
    )


# ------------------------------------------------------------- cameras
def _outside_cameras(rng: np.random.Generator, views: int) -> tuple[np.ndarray, float]:
    """Cameras on a band of a sphere that look at the objects: a Fibonacci lattice (equal areas), slightly moved."""
    distance = rng.uniform(2.6, 5.0) * RADIUS
    angle_x = 2.0 * math.atan(rng.uniform(0.75, 1.05) * RADIUS / distance)
    low, high = math.sin(math.radians(rng.uniform(2.0, 15.0))), math.sin(math.radians(rng.uniform(50.0, 80.0)))
    order = rng.permutation(views)  # the first views, which are held out, are anywhere
    height = low + (high - low) * (order + 0.5) / views
    azimuth = rng.uniform(0.0, 6.28) + math.pi * (3.0 - math.sqrt(5.0)) * order
    level = np.sqrt(1.0 - height**2)
    direction = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), height], -1)
    centre = direction * distance * rng.uniform(0.9, 1.1, (views, 1))
    target = np.array([0.0, 0.0, 0.2]) + rng.normal(0.0, 0.06, (views, 3))
    return _looking(centre, target), angle_x


def _inside_cameras(rng: np.random.Generator, solids: Solids, half: tuple[float, float, float], views: int) -> tuple[np.ndarray, float]:
    """Cameras at free places of a room that look at places near its middle."""
    angle_x = math.radians(rng.uniform(55.0, 80.0))
    centres = []
    for _ in range(MAX_TRIES * views):
        centre = np.array([rng.uniform(-0.85, 0.85) * half[0], rng.uniform(-0.85, 0.85) * half[1], rng.uniform(0.4, 1.5) * half[2]])
        if clearance(solids, centre) > CAMERA_CLEARANCE and math.hypot(centre[0], centre[1]) > 0.35 * half[0]:
            centres.append(centre)
        if len(centres) == views:
            break
    centre = np.stack(centres)
    target = np.stack(
        [0.3 * half[0] * rng.normal(size=views), 0.3 * half[1] * rng.normal(size=views), half[2] * rng.uniform(0.3, 0.9, views)], -1
    )
    return _looking(centre, target), angle_x


def _looking(centre: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(v, 4, 4) upright poses at ``centre`` (v, 3) that look at ``target`` (v, 3)."""
    back = centre - target
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    poses = np.tile(np.eye(4), (len(centre), 1, 1))
    poses[:, :3, 0], poses[:, :3, 1], poses[:, :3, 2], poses[:, :3, 3] = right, np.cross(back, right), back, centre
    return poses


def _turned(axis: int, angle: float) -> np.ndarray:
    """(3, 3) rotation about a coordinate axis, radians."""
    c, s = math.cos(angle), math.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation = np.eye(3)
    rotation[i, i], rotation[i, j], rotation[j, i], rotation[j, j] = c, -s, s, c
    return rotation
