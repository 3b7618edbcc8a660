"""An exact point cloud of the surfaces that the training cameras see.

p (3, n): points, uniform by area. Points are drawn evenly in each solid's box, those within `SHELL` of its surface are kept (a shell of
constant thickness holds the same number of them above every unit of area) and are moved onto the surface.
"""

import numpy as np
import torch
from torch import Tensor

from still_life_maker.arrangement import still_life
from still_life_maker.light import OFFSET
from still_life_maker.solids import Solid, blocked, dot, unit
from still_life_maker.views import project, to_srgb

SHELL = 0.002
ON_SURFACE = 1e-7
VISIBLE_AREA = 11.0  # square world units, roughly: sets how many candidates a draw has
DRAWS = 20


def surface_cloud(cameras: np.ndarray, size: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points that at least one camera sees.

    Args:
        cameras: (k, 4, 4) camera-to-world matrices.
        size: side of their square images in pixels.
        count: number of points.
        seed: of the random draws.

    Returns:
        (count, 3) float32 world positions and (count, 3) uint8 sRGB diffuse colours, in random order.

    Raises:
        ValueError: if the cameras see too little for `count` points.
    """
    generator = torch.Generator().manual_seed(seed)
    solids = still_life()
    points, colours, have = [], [], 0
    for _ in range(DRAWS):
        p, normals, albedo = _draw(solids, count / VISIBLE_AREA, generator)
        seen = _seen(solids, p, normals, cameras, size)
        points.append(p[:, seen])
        colours.append(to_srgb(albedo[:, seen]))
        have += int(seen.sum())
        if have >= count:
            break
    else:
        raise ValueError(f"count: expected at most {have} points that the cameras see, got {count}; add cameras or ask for fewer points")
    # A shuffle across all draws keeps the density even when the surplus is cut off.
    chosen = torch.randperm(have, generator=generator)[:count]
    xyz = torch.cat(points, 1)[:, chosen].T.to(torch.float32)
    rgb = (torch.cat(colours, 1)[:, chosen].T * 255.0 + 0.5).floor().to(torch.uint8)
    return xyz.numpy(), rgb.numpy()


def _draw(solids: list[Solid], density: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Surface points (3, m), `density` to the unit area, that lie in no other solid, with their normals (3, m) and albedos (3, m)."""
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


def _seen(solids: list[Solid], p: Tensor, n: Tensor, cameras: np.ndarray, size: int) -> Tensor:
    """(m,) bool: whether a camera has the point (3, m) with normal n in its image, from the front and with nothing between."""
    seen = torch.zeros(p.shape[1], dtype=torch.bool)
    for camera in cameras:
        to_camera = torch.tensor(camera[:3, 3:], dtype=torch.float64) - p
        uv, _ = project(p.T.numpy(), camera, size)
        inside = torch.from_numpy(((uv >= 0.0) & (uv < size)).all(-1))
        rays = (~seen & inside & (dot(to_camera, n) > 0.0)).nonzero()[:, 0]
        away = to_camera[:, rays]
        free = ~blocked(solids, p[:, rays] + OFFSET * n[:, rays], unit(away), dot(away, away).sqrt())
        seen[rays[free]] = True
    return seen
