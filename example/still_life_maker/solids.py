"""Solids in the world, and their intersections with rays.

o, d (3, n): origins and unit directions in the world; t (n,): distance along the ray, infinite without an intersection.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from still_life_maker.shapes import Shape

HIT = 1e-5  # distance from the surface that counts as an intersection
MAX_STEPS = 56
NEAR_MISS = 1e-4  # the same after the last step: such rays graze the surface
BOX_MARGIN = 1e-5
GRADIENT_STEP = 1e-5


@dataclass(frozen=True)
class Material:
    """`albedo` maps (3, n) points in the object's frame to (3, n) linear RGB.

    gloss: weight of the specular reflection of the clear coat (0 is matte); metal: fraction that is a metallic reflection, tinted by the albedo;
    highlight and exponent: strength and sharpness of the highlight of the lamp.
    """

    albedo: Callable[[Tensor], Tensor]
    gloss: float = 0.0
    metal: float = 0.0
    highlight: float = 0.0
    exponent: float = 1.0


@dataclass(frozen=True)
class Solid:
    """A shape at `position` (3, 1) with `rotation` (3, 3, object to world) and `material`."""

    name: str
    shape: Shape
    rotation: Tensor
    position: Tensor
    material: Material

    @property
    def reach(self) -> float:
        """Radius of the bounding sphere around `position`."""
        return math.hypot(*self.shape.half_extent)

    def to_local(self, p: Tensor) -> Tensor:
        """(3, n) world points in the object's frame."""
        return self.rotation.T @ (p - self.position)

    def distance(self, p: Tensor) -> Tensor:
        """(n,) signed distance of (3, n) world points."""
        return self.shape.distance(self.to_local(p))

    def normal(self, p: Tensor) -> Tensor:
        """(3, n) outward unit normals at (3, n) world points on the surface, by central differences."""
        local = self.to_local(p)
        gradient = torch.empty_like(local)
        for axis in range(3):
            step = torch.zeros(3, 1, dtype=p.dtype)
            step[axis] = GRADIENT_STEP
            gradient[axis] = self.shape.distance(local + step) - self.shape.distance(local - step)
        return self.rotation @ unit(gradient)


def unit(v: Tensor) -> Tensor:
    """(3, n) normalised vectors."""
    return v / dot(v, v).sqrt()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(n,) inner products of (3, n) vectors, summed in a fixed order."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def nearest_hit(solids: Sequence[Solid], o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """First intersection of each ray: t (n,) and index of the solid (n,); infinite and -1 without one."""
    t_best = torch.full_like(o[0], math.inf)
    which = torch.full_like(o[0], -1, dtype=torch.long)
    for index, solid in enumerate(solids):
        rays, t = _intersect(solid, o, d, t_best)
        t_best[rays] = t
        which[rays] = index
    return t_best, which


def blocked(solids: Sequence[Solid], o: Tensor, d: Tensor, t_end: Tensor) -> Tensor:
    """(n,) bool: whether the ray intersects a solid before t_end (n,)."""
    reach = t_end.clone()
    for solid in solids:
        rays, _ = _intersect(solid, o, d, reach)
        reach[rays] = 0.0  # ends the search on this ray
    return reach == 0.0


def _intersect(solid: Solid, o: Tensor, d: Tensor, t_end: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the rays that intersect the solid before t_end, and t of the intersections."""
    to_centre = solid.position - o
    closest = dot(to_centre, d)
    off_axis = dot(to_centre, to_centre) - closest * closest
    rays = ((off_axis < solid.reach**2) & (closest + solid.reach > 0.0)).nonzero()[:, 0]
    local_o, local_d = solid.to_local(o[:, rays]), solid.rotation.T @ d[:, rays]
    # a direction component of 0 would give 0 * inf in the slab test
    inverse = 1.0 / torch.where(local_d.abs() < 1e-12, 1e-12, local_d)
    half = torch.tensor(solid.shape.half_extent, dtype=o.dtype)[:, None] + BOX_MARGIN
    t_a, t_b = (-half - local_o) * inverse, (half - local_o) * inverse
    t_in = torch.minimum(t_a, t_b).amax(0).clamp_min(0.0)
    t_out = torch.minimum(torch.maximum(t_a, t_b).amin(0), t_end[rays])
    inside = (t_in < t_out).nonzero()[:, 0]
    found, t = _march(solid.shape, local_o[:, inside], local_d[:, inside], t_in[inside], t_out[inside])
    return rays[inside[found]], t


def _march(shape: Shape, o: Tensor, d: Tensor, t: Tensor, t_end: Tensor) -> tuple[Tensor, Tensor]:
    """Sphere tracing from t to t_end: indices of the rays that reach the surface, and t of the intersections."""
    rays = torch.arange(t.numel())
    reached: list[tuple[Tensor, Tensor]] = []
    for step in range(MAX_STEPS):
        gap = shape.distance(o + t * d)
        t = t + gap
        here = gap < (HIT if step + 1 < MAX_STEPS else NEAR_MISS)
        reached.append((rays[here], t[here]))
        going = (~here & (t < t_end)).nonzero()[:, 0]
        if going.numel() == 0:
            break
        if going.numel() < t.numel():
            rays, o, d, t, t_end = rays[going], o[:, going], d[:, going], t[going], t_end[going]
    return torch.cat([r for r, _ in reached]), torch.cat([t for _, t in reached])
