"""Shading: a disc lamp with soft shadows, an environment with two soft panels, ambient occlusion, mirror reflections.

All colours are linear RGB (3, n). `lamp` (3, n) is the point on the lamp that each ray samples; different points for the samples of a pixel
give soft shadows without noise.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from still_life_maker.solids import Solid, blocked, dot, nearest_hit, unit

LAMP_CENTRE = (2.6, -2.0, 4.4)
LAMP_RADIUS = 0.45
LAMP_COLOUR = (0.88, 0.82, 0.73)
SKY_COLOUR = (0.42, 0.45, 0.50)
BOUNCE_COLOUR = (0.34, 0.31, 0.28)
OFFSET = 5e-4  # distance of secondary rays from the surface
BOUNCES = 2
NORMAL_REFLECTANCE = 0.05
OCCLUSION_TAPS = (0.04, 0.09, 0.17, 0.28)


def column(values: Sequence[float]) -> Tensor:
    """(3, 1) float64 column."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def environment(d: Tensor) -> Tensor:
    """Radiance (3, n) of the environment in the unit directions d: sky, ground and two soft panels."""
    up = d[2]
    above = (up.clamp_min(0.0)) ** 0.6
    below = (-up).clamp_min(0.0) ** 0.5
    sky = column((0.80, 0.80, 0.80)) + above * column((-0.50, -0.42, -0.28)) + below * column((-0.52, -0.54, -0.56))
    for azimuth, elevation, width, strength in ((160.0, 38.0, 0.40, 1.5), (30.0, 30.0, 0.28, 1.0), (265.0, 50.0, 0.30, 1.2)):
        a, e = math.radians(azimuth), math.radians(elevation)
        centre = column((math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)))
        side = column((-math.sin(a), math.cos(a), 0.0))
        over = torch.linalg.cross(centre, side, dim=0)
        facing = dot(d, centre)
        x, y = dot(d, side) / facing.abs().clamp_min(1e-6), dot(d, over) / facing.abs().clamp_min(1e-6)
        panel = soft_step((width - x.abs()) / 0.08) * soft_step((0.75 * width - y.abs()) / 0.08) * (facing > 0.0)
        sky = sky + strength * panel
    return sky


def soft_step(x: Tensor) -> Tensor:
    """Cubic smoothstep from 0 at 0 to 1 at 1."""
    x = x.clamp(0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def ambient_occlusion(solids: Sequence[Solid], p: Tensor, n: Tensor) -> Tensor:
    """(m,) fraction of the ambient light that reaches (3, m) surface points with normals n.

    Distances to the solids are sampled at a few heights along the normal; a distance below the height means occlusion. The factors of the
    solids are multiplied, which is smooth where two of them meet.
    """
    share = torch.ones_like(p[0])
    for solid in solids:
        offset = p - solid.position
        near = (dot(offset, offset) < (solid.reach + 2.0 * OCCLUSION_TAPS[-1]) ** 2).nonzero()[:, 0]
        closed = torch.zeros_like(near, dtype=p.dtype)
        for height in OCCLUSION_TAPS:
            gap = solid.distance(p[:, near] + height * n[:, near])
            closed += (1.0 - gap / height).clamp(0.0, 1.0)
        share[near] *= 1.0 - 0.65 * closed / len(OCCLUSION_TAPS)
    return share


def radiance(solids: Sequence[Solid], o: Tensor, d: Tensor, lamp: Tensor, bounces: int = BOUNCES) -> tuple[Tensor, Tensor]:
    """Colour (3, n) along the rays o + t d, and whether (n,) they hit anything; rays that miss get the environment."""
    t, which = nearest_hit(solids, o, d)
    hit = (which >= 0).nonzero()[:, 0]
    colour = environment(d)
    colour[:, hit] = _shade(solids, o[:, hit] + t[hit] * d[:, hit], d[:, hit], which[hit], lamp[:, hit], bounces)
    return colour, which >= 0


def _shade(solids: Sequence[Solid], p: Tensor, d: Tensor, which: Tensor, lamp: Tensor, bounces: int) -> Tensor:
    """Colour (3, m) of surface points p on the solids `which` in the viewing directions d."""
    n, albedo = torch.empty_like(p), torch.empty_like(p)
    gloss, metal, highlight, exponent = (torch.zeros_like(p[0]) for _ in range(4))
    for index, solid in enumerate(solids):
        mine = (which == index).nonzero()[:, 0]
        n[:, mine] = solid.normal(p[:, mine])
        albedo[:, mine] = solid.material.albedo(solid.to_local(p[:, mine]))
        for values, value in zip(
            (gloss, metal, highlight, exponent),
            (solid.material.gloss, solid.material.metal, solid.material.highlight, solid.material.exponent),
            strict=True,
        ):
            values[mine] = value
    start = p + OFFSET * n
    to_lamp = lamp - start
    lamp_distance = dot(to_lamp, to_lamp).sqrt()
    to_lamp = to_lamp / lamp_distance
    cosine = dot(n, to_lamp).clamp_min(0.0)
    faces = (cosine > 0.0).nonzero()[:, 0]
    lit = torch.zeros_like(cosine)
    lit[faces] = (~blocked(solids, start[:, faces], to_lamp[:, faces], lamp_distance[faces])).to(p.dtype)
    share = ambient_occlusion(solids, p, n)
    sky = column(BOUNCE_COLOUR) + (0.5 + 0.5 * n[2]) * (column(SKY_COLOUR) - column(BOUNCE_COLOUR))
    diffuse = albedo * (lit * cosine * column(LAMP_COLOUR) + share * sky)

    view_cosine = (-dot(n, d)).clamp(0.0, 1.0)
    grazing = (1.0 - view_cosine) ** 5  # Schlick, "An inexpensive BRDF model", Computer Graphics Forum 1994, equation 15
    coat = gloss * (NORMAL_REFLECTANCE + (1.0 - NORMAL_REFLECTANCE) * grazing)
    mirror = (1.0 - metal) * coat + metal * (albedo + (1.0 - albedo) * grazing)
    reflected = torch.zeros_like(p)
    shiny = (gloss > 0.0).nonzero()[:, 0]
    if shiny.numel() > 0:
        away = unit(d + 2.0 * view_cosine * n)[:, shiny]
        if bounces > 0:
            reflected[:, shiny] = radiance(solids, start[:, shiny], away, lamp[:, shiny], bounces - 1)[0]
        else:
            reflected[:, shiny] = environment(away) * share[shiny]
    halfway = unit(to_lamp - d)
    spot = highlight * lit * dot(n, halfway).clamp_min(0.0) ** exponent
    return (1.0 - metal) * (1.0 - coat) * diffuse + mirror * reflected + spot
