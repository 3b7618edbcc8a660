"""A patterned head, and semi-transparent strands in several shells around it."""

from dataclasses import dataclass

import numpy as np

HEAD_RADIUS = 0.45
STRANDS = 260
WIDTH = 0.016  # of a strand, world units: about one pixel
SHELLS = (0.58, 0.95)  # range of the radii of strands
OPACITIES = (0.3, 0.85)
PALETTE = np.array([[0.55, 0.16, 0.08], [0.85, 0.55, 0.2], [0.16, 0.1, 0.09], [0.75, 0.72, 0.66], [0.35, 0.12, 0.4]])
CHECKS = np.array([[0.1, 0.45, 0.75], [0.95, 0.85, 0.35], [0.15, 0.6, 0.35], [0.9, 0.35, 0.3]])


@dataclass(frozen=True)
class Strands:
    """k curves.

    Attributes:
        shell, azimuth, twist, drop: radius, initial azimuth (rad), total rotation (rad) and height difference of each strand.
        curl, turns, phase: radius, number and initial phase (rad) of its curls.
        opacity: of each strand.
        colour: (k, 3), at the root; tips are lighter.
    """

    shell: np.ndarray
    azimuth: np.ndarray
    twist: np.ndarray
    drop: np.ndarray
    curl: np.ndarray
    turns: np.ndarray
    phase: np.ndarray
    opacity: np.ndarray
    colour: np.ndarray

    def at(self, parameter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """((k, m, 3) positions, (k, m, 3) colours) at m parameters from 0 (root) to 1 (tip)."""
        t = parameter[None]
        column = {name: getattr(self, name)[:, None] for name in ("shell", "azimuth", "twist", "drop", "curl", "turns", "phase")}
        wave = 2.0 * np.pi * column["turns"] * t + column["phase"]
        radius = column["shell"] * np.sin(0.5 * np.pi * np.minimum(1.0, 0.08 + 1.7 * t)) + column["curl"] * t * np.cos(wave)
        angle = column["azimuth"] + column["twist"] * t + column["curl"] * t * np.sin(wave) / column["shell"]
        height = 0.58 - 0.08 * column["shell"] - column["drop"] * t**1.3
        xyz = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], -1)
        tip = 0.5 + 0.5 * self.colour[:, None]
        return xyz, self.colour[:, None] + (0.6 * t**2)[..., None] * (tip - self.colour[:, None])


def strands(seed: int) -> Strands:
    """Random strands."""
    rng = np.random.default_rng(seed)
    azimuth = 2.0 * np.pi * (np.arange(STRANDS) + rng.random(STRANDS)) / STRANDS
    chosen = PALETTE[rng.integers(len(PALETTE), size=STRANDS)]
    return Strands(
        shell=rng.uniform(*SHELLS, STRANDS),
        azimuth=azimuth,
        twist=rng.uniform(-0.7, 0.7, STRANDS),
        drop=rng.uniform(0.8, 1.35, STRANDS),
        curl=rng.uniform(0.0, 0.06, STRANDS),
        turns=rng.uniform(1.0, 5.0, STRANDS),
        phase=rng.uniform(0.0, 2.0 * np.pi, STRANDS),
        opacity=rng.uniform(*OPACITIES, STRANDS),
        colour=np.clip(chosen + rng.normal(0.0, 0.04, (STRANDS, 3)), 0.0, 1.0),
    )


def head_colour(xyz: np.ndarray) -> np.ndarray:
    """(n, 3) colours of points (n, 3) on the head: a pattern of four colours, brighter at the top."""
    azimuth = np.arctan2(xyz[:, 1], xyz[:, 0])
    sine = np.clip(xyz[:, 2] / HEAD_RADIUS, -1.0, 1.0)
    column, row = np.floor(8.0 * azimuth / np.pi).astype(int), np.floor(4.0 * sine).astype(int)
    return CHECKS[(column + 2 * row) % 4] * (0.8 + 0.2 * sine)[:, None]


def cloud(hair: Strands, count: int, seed: int) -> np.ndarray:
    """(count, 3) points: four fifths inside the strands, the others on the head."""
    rng = np.random.default_rng(seed + 1)
    on_head = count // 5
    height = rng.uniform(-1.0, 1.0, on_head)
    angle = rng.uniform(0.0, 2.0 * np.pi, on_head)
    level = np.sqrt(1.0 - height**2)
    head = HEAD_RADIUS * np.stack([level * np.cos(angle), level * np.sin(angle), height], -1)
    per_strand = -(-(count - on_head) // len(hair.shell))
    xyz, _ = hair.at((np.arange(per_strand) + 0.5) / per_strand)
    inside = xyz.reshape(-1, 3)[: count - on_head]
    return np.concatenate([inside + rng.uniform(-0.25, 0.25, inside.shape) * WIDTH, head])
