"""Exact signed distance functions of a few shapes, each in its own frame (negative inside, world units).

Points are (3, n) tensors; distances are (n,) tensors. A `Shape` also has a bounding box, centred at the origin of its frame,
which rejects rays early. Distances are exact near the surface (gradient of length 1), as
both sphere tracing (Hart, "Sphere tracing", The Visual Computer 1996, section 2) and surface sampling require.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A closed surface: `distance` maps (3, n) points to (n,) signed distances; `half_extent` bounds it along x, y, z."""

    distance: Callable[[Tensor], Tensor]
    half_extent: tuple[float, float, float]


def sphere(radius: float) -> Shape:
    """Ball of the given radius around the origin."""

    def distance(p: Tensor) -> Tensor:
        return (p[0] * p[0] + p[1] * p[1] + p[2] * p[2]).sqrt() - radius

    return Shape(distance, (radius, radius, radius))


def rounded_box(half: tuple[float, float, float], rounding: float) -> Shape:
    """Box with half sides `half` (rounding included) whose edges and corners are rounded with the radius `rounding`."""
    core = [side - rounding for side in half]

    def distance(p: Tensor) -> Tensor:
        qx, qy, qz = p[0].abs() - core[0], p[1].abs() - core[1], p[2].abs() - core[2]
        ox, oy, oz = qx.clamp_min(0.0), qy.clamp_min(0.0), qz.clamp_min(0.0)
        inside = torch.maximum(torch.maximum(qx, qy), qz).clamp_max(0.0)
        return (ox * ox + oy * oy + oz * oz).sqrt() + inside - rounding

    return Shape(distance, half)


def drum(radius: float, half_height: float, rounding: float) -> Shape:
    """Upright cylinder about z of the given radius and half height (rounding included) with rounded rims."""
    core_r, core_z = radius - rounding, half_height - rounding

    def distance(p: Tensor) -> Tensor:
        qr, qz = (p[0] * p[0] + p[1] * p[1]).sqrt() - core_r, p[2].abs() - core_z
        outer_r, outer_z = qr.clamp_min(0.0), qz.clamp_min(0.0)
        return (outer_r * outer_r + outer_z * outer_z).sqrt() + torch.maximum(qr, qz).clamp_max(0.0) - rounding

    return Shape(distance, (radius, radius, half_height))


def torus_arc(ring: float, tube: float, half_angle: float = math.pi) -> Shape:
    """Round tube along the arc of the circle of radius `ring` in the x-y plane, `half_angle` rad to each side of +y; pi: a torus."""
    end_x, end_y = ring * math.sin(half_angle), ring * math.cos(half_angle)

    def distance(p: Tensor) -> Tensor:
        radial = (p[0] * p[0] + p[1] * p[1]).sqrt()
        off_ring = radial - ring
        square = off_ring * off_ring
        if half_angle < math.pi:
            to_end_x, to_end_y = p[0].abs() - end_x, p[1] - end_y
            beyond = p[1] < radial * math.cos(half_angle)
            square = torch.where(beyond, to_end_x * to_end_x + to_end_y * to_end_y, square)
        return (square + p[2] * p[2]).sqrt() - tube

    reach = ring + tube
    return Shape(distance, (reach, reach, tube))


def lathe(profile: list[tuple[float, float]], rounding: float = 0.0) -> Shape:
    """Solid of revolution about z.

    Args:
        profile: (radius, z) corners in order, the first and the last on the axis: the outline of the right half. The closing line along
            the axis is not a part of the surface.
        rounding: distance of the surface from the outline.
    """
    edges = [(r0, z0, r1 - r0, z1 - z0) for (r0, z0), (r1, z1) in zip(profile[:-1], profile[1:], strict=True)]

    def distance(p: Tensor) -> Tensor:
        radial, z = (p[0] * p[0] + p[1] * p[1]).sqrt(), p[2]
        nearest = torch.full_like(z, math.inf)
        inside = torch.zeros_like(z, dtype=torch.bool)
        for r0, z0, dr, dz in edges:
            pr, pz = radial - r0, z - z0
            along = ((pr * dr + pz * dz) / (dr * dr + dz * dz)).clamp(0.0, 1.0)
            er, ez = pr - along * dr, pz - along * dz
            nearest = torch.minimum(nearest, er * er + ez * ez)
            if dz != 0.0:  # even-odd rule: count the edges outside of the point at its height
                level = (z >= min(z0, z0 + dz)) & (z < max(z0, z0 + dz))
                inside ^= level & (pr < pz * (dr / dz))
        root = nearest.sqrt()
        return torch.where(inside, -root, root) - rounding

    reach = max(r for r, _ in profile) + rounding
    height = max(abs(z) for _, z in profile) + rounding
    return Shape(distance, (reach, reach, height))
