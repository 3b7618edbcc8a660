"""Clouds of random scenes: exact ones, and ones with the faults of multi-view stereo."""

from dataclasses import dataclass

import numpy as np

from pretraining_maker.scenes import RandomScene
from pretraining_maker.textures import fractal_noise
from pretraining_maker.tracer import surface_points

RAYS_PER_POINT = 3.0
EXACT_SHARE = 0.3  # of the clouds that are drawn


@dataclass(frozen=True)
class Faults:
    """Faults of a cloud.

    Attributes:
        noise: standard deviation of the depth, relative to the depth.
        holes: share of the space without points.
        shiny_holes: share of the points on glossy and metallic solids that is missing.
        outliers: share of the points that lie at wrong depths, up to a fifth of the depth away.
    """

    noise: float = 0.0
    holes: float = 0.0
    shiny_holes: float = 0.0
    outliers: float = 0.0


def draw_faults(rng: np.random.Generator) -> Faults:
    """None for some clouds, else those of stereo between few and many photos."""
    if rng.random() < EXACT_SHARE:
        return Faults()
    return Faults(rng.uniform(0.0003, 0.003), rng.uniform(0.0, 0.12), rng.uniform(0.0, 0.6), rng.uniform(0.0, 0.02))


def scene_cloud(
    scene: RandomScene, views: np.ndarray, count: int, faults: Faults, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points of the surfaces that some cameras see, about one per cell of a grid.

    Args:
        scene: the scene.
        views: (v,) indices of its cameras.
        count: largest number of points.
        faults: of the cloud.
        rng: of the rays and the faults.

    Returns:
        (n, 3) float32 positions and (n, 3) uint8 sRGB colours without light.
    """
    points, colours, centres, solids = [], [], [], []
    for view in views:
        uv = rng.random((int(RAYS_PER_POINT * count / len(views)) + 1, 2))
        p, c, k = surface_points(scene.solids, scene.poses[view], scene.angle_x, uv)
        hit = k >= 0
        points.append(p[hit])
        colours.append(c[hit])
        centres.append(np.broadcast_to(scene.poses[view, :3, 3], p[hit].shape))
        solids.append(k[hit])
    xyz, rgb, centre, which = np.concatenate(points), np.concatenate(colours), np.concatenate(centres), np.concatenate(solids)
    kept = one_per_cell(xyz, count)
    xyz, rgb, centre, which = xyz[kept], rgb[kept], centre[kept], which[kept]

    shiny = scene.solids.gloss[which] * (0.3 + 0.7 * scene.solids.metal[which])
    lost = rng.random(len(xyz)) < faults.shiny_holes * shiny
    if faults.holes > 0.0:
        seed = int(rng.integers(1 << 20))
        noise = np.array([fractal_noise(*(3.0 * point + 50.0), seed) for point in xyz])
        lost |= noise < np.quantile(noise, faults.holes)
    xyz, rgb, centre = xyz[~lost], rgb[~lost], centre[~lost]
    stretch = 1.0 + faults.noise * rng.standard_normal(len(xyz))
    wrong = rng.random(len(xyz)) < faults.outliers
    stretch[wrong] += rng.uniform(-0.2, 0.2, wrong.sum())
    moved = centre + stretch[:, None] * (xyz - centre)
    return moved.astype(np.float32), (255.0 * rgb + 0.5).astype(np.uint8)


def one_per_cell(xyz: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most ``count`` points (n, 3), one per cell of the finest cubic grid that allows it (to 3 %)."""
    extent = float(np.ptp(xyz, axis=0).max())
    side = extent / 2000.0
    while True:
        cells = np.floor((xyz - xyz.min(0)) / side).astype(np.int64)
        key = (cells[:, 0] * 4096 + cells[:, 1]) * 4096 + cells[:, 2]
        first = np.unique(key, return_index=True)[1]
        if len(first) <= count:
            return np.sort(first)
        side *= max(1.03, (len(first) / count) ** 0.4)
