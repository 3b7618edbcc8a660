"""An exact point cloud of the surfaces that the training cameras see, uniform by area.

p (3, n): points. They are drawn uniformly in the box of each solid; those in a shell of constant thickness around its surface are projected
onto the surface.
"""

import numpy as np
import torch
from torch import Tensor

from still_life_maker.arrangement import still_life
from still_life_maker.light import OFFSET
from still_life_maker.solids import Solid, blocked, dot, unit
from still_life_maker.views import project, to_srgb

SHELL = 0.002  # half of its thickness
ON_SURFACE = 1e-7
VISIBLE_AREA = 11.0  # about, square world units: sets the number of candidates per draw
DRAWS = 20


def surface_cloud(cameras: np.ndarray, size: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points visible in at least one camera.

    Args:
        cameras: (k, 4, 4) camera-to-world matrices.
        size: of their square images, pixels.
        count: number of points.
        seed: of the random draws.

    Returns:
        (count, 3) float32 world positions and (count, 3) uint8 sRGB diffuse colours, in random order.

    Raises:
        ValueError: if too few points are visible.
    """
    generator = torch.Generator().manual_seed(seed)
    solids = still_life()
    points, colours, have = [], [], 0
    for _ in range(DRAWS):
        p, normals, albedo = _draw(solids, count / VISIBLE_AREA, generator)
        visible = _visible(solids, p, normals, cameras, size)
        points.append(p[:, visible])
        colours.append(to_srgb(albedo[:, visible]))
        have += int(visible.sum())
        if have >= count:
            break
    else:
        raise ValueError(f"count: expected at most the {have} visible points, got {count}; add cameras or choose fewer points")
    # shuffled over all draws, so that the density stays uniform when the surplus is removed
    chosen = torch.randperm(have, generator=generator)[:count]
    xyz = torch.cat(points, 1)[:, chosen].T.to(torch.float32)
    rgb = (torch.cat(colours, 1)[:, chosen].T * 255.0 + 0.5).floor().to(torch.uint8)
    return xyz.numpy(), rgb.numpy()


def _draw(solids: list[Solid], density: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Surface points (3, m) outside of other solids, `density` per unit of area, with normals (3, m) and albedos (3, m)."""
    points, normals, albedos = [], [], []
    for solid in solids:
        half = torch.tensor(solid.shape.half_extent, dtype=torch.float64)[:, None] + 2.0 * SHELL
        tries = int(density * float(8.0 * half.prod()) / (2.0 * SHELL))
        local = (2.0 * torch.rand(3, tries, generator=generator, dtype=torch.float64) - 1.0) * half
        local = local[:, solid.shape.distance(local).abs() < SHELL]
        p = solid.rotation @ local + solid.position
        for _ in range(2):
            p = p - solid.distance(p) * solid.normal(p)
        free = solid.distance(p).abs() < ON_SURFACE
        for other in solids:
            if other is not solid:
                free &= other.distance(p) > 0.0
        points.append(p[:, free])
        normals.append(solid.normal(points[-1]))
        albedos.append(solid.material.albedo(solid.to_local(points[-1])))
    return torch.cat(points, 1), torch.cat(normals, 1), torch.cat(albedos, 1)


def _visible(solids: list[Solid], p: Tensor, n: Tensor, cameras: np.ndarray, size: int) -> Tensor:
    """(m,) bool: whether a point (3, m) with normal n is in the image of a camera, faces it, and is not occluded."""
    visible = torch.zeros(p.shape[1], dtype=torch.bool)
    for camera in cameras:
        to_camera = torch.tensor(camera[:3, 3:], dtype=torch.float64) - p
        uv, _ = project(p.T.numpy(), camera, size)
        inside = torch.from_numpy(((uv >= 0.0) & (uv < size)).all(-1))
        rays = (~visible & inside & (dot(to_camera, n) > 0.0)).nonzero()[:, 0]
        away = to_camera[:, rays]
        free = ~blocked(solids, p[:, rays] + OFFSET * n[:, rays], unit(away), dot(away, away).sqrt())
        visible[rays[free]] = True
    return visible
