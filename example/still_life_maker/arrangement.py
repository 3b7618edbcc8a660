"""The objects on the round table, their positions and materials. World units; the table top is the plane z = 0.

Colours are sRGB triples in [0, 1]; `linear` converts them to linear RGB.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from still_life_maker.shapes import Shape, drum, lathe, rounded_box, sphere, torus_arc
from still_life_maker.solids import Material, Solid

Colour = tuple[float, float, float]

CREAM: Colour = (0.94, 0.90, 0.82)
SAGE: Colour = (0.55, 0.68, 0.62)
WALNUT: Colour = (0.50, 0.34, 0.24)
OAK: Colour = (0.80, 0.64, 0.45)
BRASS: Colour = (0.86, 0.70, 0.36)
CORAL: Colour = (0.90, 0.46, 0.38)
NAVY: Colour = (0.20, 0.27, 0.45)
MUSTARD: Colour = (0.90, 0.70, 0.30)
TEAL: Colour = (0.16, 0.55, 0.58)
PLUM: Colour = (0.52, 0.28, 0.46)
COPPER: Colour = (0.88, 0.56, 0.42)
STEEL: Colour = (0.90, 0.91, 0.93)
GRAPHITE: Colour = (0.22, 0.22, 0.25)

TABLE_RADIUS = 1.3


def linear(colour: Colour) -> Tensor:
    """(3, 1) linear RGB of an sRGB colour (IEC 61966-2-1)."""
    c = torch.tensor(colour, dtype=torch.float64)[:, None]
    return torch.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def plain(colour: Colour) -> Callable[[Tensor], Tensor]:
    """Albedo of a single colour."""
    value = linear(colour)
    return lambda p: value.expand(3, p.shape[1])


def choose(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """(3, n) colours: `yes` where mask (n,), else `no`."""
    return torch.where(mask[None], yes, no)


def grain(base: Tensor, rings: Tensor, strength: float = 0.22) -> Tensor:
    """Wood: the colour `base` (3, 1), darkened in soft rings; `rings` (n,) is the ring number."""
    return base * (1.0 - strength * (0.5 + 0.5 * torch.sin(2.0 * math.pi * rings)))


def table_albedo(p: Tensor) -> Tensor:
    """Checker of cream and sage tiles, a brass ring, a walnut rim."""
    radial = torch.hypot(p[0], p[1])
    turn = math.radians(20.0)
    u, v = math.cos(turn) * p[0] + math.sin(turn) * p[1], math.cos(turn) * p[1] - math.sin(turn) * p[0]
    odd = ((u / 0.26).floor() + (v / 0.26).floor()) % 2.0 > 0.5
    tiles = choose(odd, linear(SAGE), linear(CREAM)) * (1.0 + 0.06 * torch.sin(23.0 * u + 3.0 * torch.sin(9.0 * v)))
    wood = grain(linear(WALNUT), 14.0 * radial + 0.5 * torch.sin(5.0 * torch.atan2(p[1], p[0])))
    return choose(radial < 1.08, tiles, choose(radial < 1.115, linear(BRASS), wood))


def mug_albedo(p: Tensor) -> Tensor:
    """Coral glaze, a wavy cream band outside, cream inside."""
    angle = torch.atan2(p[1], p[0])
    band = (p[2] - 0.28 - 0.035 * torch.sin(9.0 * angle)).abs() < 0.06
    inside = torch.hypot(p[0], p[1]) < 0.248
    return choose(band | (inside & (p[2] > 0.03)), linear(CREAM), linear(CORAL))


def book_albedo(p: Tensor) -> Tensor:
    """Navy cover with a brass frame; the paper shows on three sides."""
    long_sides = ((p[1].abs() - 0.20).abs() < 0.012) & (p[0].abs() < 0.312)
    short_sides = ((p[0].abs() - 0.30).abs() < 0.012) & (p[1].abs() < 0.212)
    cover = choose(long_sides | short_sides, linear(BRASS), linear(NAVY))
    paper = linear(CREAM) * (0.9 + 0.1 * torch.sin(160.0 * p[2]))
    return choose((p[2].abs() < 0.045) & ((p[0] > -0.37) & ((p[0] > 0.385) | (p[1].abs() > 0.265))), paper, cover)


def block_albedo(p: Tensor) -> Tensor:
    """Oak, with rings about an axis beside the block."""
    return grain(linear(OAK), 16.0 * torch.hypot(p[0] + 0.3, p[2] + 0.25) + 0.3 * torch.sin(7.0 * p[1]), 0.35)


def ball_albedo(p: Tensor) -> Tensor:
    """Beach ball: teal and cream segments."""
    segment = (torch.atan2(p[1], p[0]) / (math.pi / 4.0)).floor() % 2.0 > 0.5
    return choose(segment & (p[2].abs() < 0.135), linear(TEAL), linear(CREAM))


def cone_albedo(p: Tensor) -> Tensor:
    """Mustard with a cream stripe that winds upwards."""
    turn = (torch.atan2(p[1], p[0]) / (2.0 * math.pi) + 5.0 * p[2]) % 1.0
    return choose(turn < 0.3, linear(CREAM), linear(MUSTARD))


def pencil_albedo(colour: Colour) -> Callable[[Tensor], Tensor]:
    """Painted shaft, bare wood at the cone, graphite at the tip."""

    def albedo(p: Tensor) -> Tensor:
        return choose(p[2] > 0.43, linear(GRAPHITE), choose(p[2] > 0.375, linear(OAK), linear(colour)))

    return albedo


def marble_albedo(first: Colour, second: Colour) -> Callable[[Tensor], Tensor]:
    """Two colours in a swirl."""

    def albedo(p: Tensor) -> Tensor:
        swirl = 0.5 + 0.5 * torch.sin(45.0 * p[0] + 2.5 * torch.sin(40.0 * p[2]) + 20.0 * p[1])
        return linear(first) + (linear(second) - linear(first)) * (swirl * swirl * (3.0 - 2.0 * swirl))

    return albedo


def turned(axis: int, degrees: float) -> Tensor:
    """(3, 3) rotation about a coordinate axis (0 x, 1 y, 2 z) by the right-hand rule."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation = torch.eye(3, dtype=torch.float64)
    rotation[i, i], rotation[i, j], rotation[j, i], rotation[j, j] = c, -s, s, c
    return rotation


def place(name: str, shape: Shape, position: tuple[float, float, float], material: Material, rotation: Tensor | None = None) -> Solid:
    """A solid in the world; None is the identity rotation."""
    turn = torch.eye(3, dtype=torch.float64) if rotation is None else rotation
    return Solid(name, shape, turn, torch.tensor(position, dtype=torch.float64)[:, None], material)


def glazed(albedo: Callable[[Tensor], Tensor]) -> Material:
    """Glossy ceramic or glass-like paint."""
    return Material(albedo, gloss=1.0, highlight=0.9, exponent=260.0)


def metal(colour: Colour) -> Material:
    """Polished metal."""
    return Material(plain(colour), gloss=1.0, metal=1.0, highlight=1.2, exponent=400.0)


def still_life() -> list[Solid]:
    """All solids of the scene, the table first."""
    satin = {"gloss": 0.5, "highlight": 0.25, "exponent": 60.0}
    pencil = lathe([(0.0, -0.45), (0.026, -0.45), (0.026, 0.37), (0.0, 0.45)])
    needle = drum(0.012, 0.5, 0.004)
    mug = lathe([(0.0, 0.005), (0.26, 0.005), (0.26, 0.535), (0.243, 0.535), (0.243, 0.055), (0.0, 0.055)], 0.005)
    cone = lathe([(0.0, 0.02), (0.19, 0.02), (0.0, 0.56)], 0.02)
    table = drum(TABLE_RADIUS, 0.06, 0.02)
    upright, lean = turned(0, 90.0), turned(2, 35.0) @ turned(0, 76.0)
    mug_at = (-0.42, 0.30)
    return [
        place("table", table, (0.0, 0.0, -0.06), Material(table_albedo)),
        place("mug", mug, (*mug_at, 0.0), glazed(mug_albedo)),
        place(
            "handle",
            torus_arc(0.155, 0.034, math.radians(98.0)),
            (mug_at[0] - 0.262 * math.cos(math.radians(40.0)), mug_at[1] - 0.262 * math.sin(math.radians(40.0)), 0.28),
            glazed(plain(CORAL)),
            turned(2, 40.0) @ upright @ turned(2, 90.0),
        ),
        place("pencil 1", pencil, (-0.33, 0.34, 0.50), Material(pencil_albedo(TEAL), **satin), turned(2, 30.0) @ turned(1, 17.0)),
        place("pencil 2", pencil, (-0.47, 0.38, 0.51), Material(pencil_albedo(PLUM), **satin), turned(2, 120.0) @ turned(1, 15.0)),
        place("pencil 3", pencil, (-0.50, 0.25, 0.51), Material(pencil_albedo(MUSTARD), **satin), turned(2, 215.0) @ turned(1, 13.0)),
        place("needle", needle, (-0.37, 0.22, 0.55), Material(plain(NAVY), **satin), turned(2, -60.0) @ turned(1, 11.0)),
        place("book", rounded_box((0.40, 0.28, 0.065), 0.015), (0.42, 0.50, 0.065), Material(book_albedo), turned(2, 24.0)),
        place("block", rounded_box((0.13, 0.13, 0.13), 0.018), (0.50, 0.50, 0.26), Material(block_albedo), turned(2, -18.0)),
        place("ball", sphere(0.15), (0.50, 0.50, 0.54), glazed(ball_albedo), turned(0, 25.0) @ turned(1, 30.0)),
        place("mirror ball", sphere(0.30), (0.36, -0.36, 0.30), metal(STEEL)),
        place("ring", torus_arc(0.20, 0.05), (-0.42, -0.42, 0.2441), metal(BRASS), lean),
        place("cone", cone, (-0.93, -0.02, 0.0), Material(cone_albedo)),
        place("hoop", torus_arc(0.30, 0.014, math.radians(92.0)), (0.93, 0.0, 0.01), metal(COPPER), turned(2, 70.0) @ upright),
        place("marble 1", sphere(0.09), (-0.08, -0.80, 0.09), glazed(marble_albedo(TEAL, CREAM))),
        place("marble 2", sphere(0.09), (0.13, -0.88, 0.09), glazed(marble_albedo(PLUM, CORAL))),
        place("marble 3", sphere(0.07), (-0.02, -0.99, 0.07), glazed(marble_albedo(MUSTARD, CORAL))),
    ]
