"""Markov chain Monte Carlo over gaussians: relocation and noise (Kheradmand et al., 3D Gaussian Splatting as Markov Chain Monte Carlo, NeurIPS 2024).

Symbols: n gaussians, d dead ones, m some of them.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_MOST_COPIES = 51  # of one gaussian in a relocation, itself included
_NOISE_SLOPE, _NOISE_OPACITY = 100.0, 0.005  # of the gate of the noise: gaussians that are more opaque stay where they are
_NOISELESS = 0.1  # opacity at which the gate is below 1e-4
_LARGEST_OPACITY = 1 - 1e-6


@dataclass(frozen=True)
class Relocation:
    """Which gaussians are moved where.

    Attributes:
        dead: gaussians that move.
        source: the gaussian that each of them becomes a copy of.
        copied: distinct gaussians among ``source``.
        copies: of each of these, itself included.
    """

    dead: Int[Tensor, " d"]
    source: Int[Tensor, " d"]
    copied: Int[Tensor, " m"]
    copies: Int[Tensor, " m"]


def draw_relocation(
    opacity: Float[Tensor, " n"], seen: Bool[Tensor, " n"], least_opacity: float, generator: torch.Generator
) -> Relocation | None:
    """Draws a live gaussian for each dead one, in proportion to opacity (section 3.2).

    Args:
        opacity: of all gaussians.
        seen: gaussians that some view has shown since the last relocation; others are dead.
        least_opacity: gaussians of at most this opacity are dead.
        generator: of random numbers, on any device.

    Returns:
        None when no gaussian is dead, or none is alive.
    """
    is_dead = (opacity <= least_opacity) | ~seen
    dead, alive = is_dead.nonzero()[:, 0], (~is_dead).nonzero()[:, 0]
    if len(dead) == 0 or len(alive) == 0:
        return None
    # torch.multinomial takes at most 2^24 categories
    ends = opacity[alive].double().cumsum(0)
    drawn = torch.rand(len(dead), generator=generator, device=generator.device, dtype=torch.float64).to(ends.device) * ends[-1]
    source = alive[torch.searchsorted(ends, drawn, right=True).clamp(max=len(alive) - 1)]
    copied, count = source.unique(return_counts=True)
    return Relocation(dead, source, copied, count + 1)


def copies_like(opacity: Float[Tensor, " m"], copies: Int[Tensor, " m"]) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Opacity of each of several coinciding gaussians that look like one, and the factor of its scales (equation 9).

    With c copies the new opacity is p = 1 - (1 - o)^(1/c) and the factor o / sum_{i=1..c} sum_{k=0..i-1} (-1)^k C(i-1, k) p^(k+1) / sqrt(k+1).
    The inner index i is summed here: sum_i C(i-1, k) = C(c, k+1). More than 51 copies count as 51, as in the code of the authors.
    """
    exact = opacity.double().clamp(max=_LARGEST_OPACITY)
    count = copies.clamp(max=_MOST_COPIES)
    new = -torch.expm1(torch.log1p(-exact) / count)
    order = torch.arange(1, _MOST_COPIES + 1, device=opacity.device, dtype=torch.float64)  # k + 1
    table = torch.from_numpy(_signed_binomials()).to(opacity.device)
    denominator = (table[count] * new[:, None] ** order).sum(1)
    return new.to(opacity.dtype), (exact / denominator).to(opacity.dtype)


def _signed_binomials() -> np.ndarray:
    """Entry (c, k) is (-1)^k C(c, k + 1) / sqrt(k + 1), double precision."""
    rows = range(_MOST_COPIES + 1)
    return np.array([[(-1) ** k * math.comb(c, k + 1) / math.sqrt(k + 1) for k in range(_MOST_COPIES)] for c in rows])


def rotations(quaternions: Float[Tensor, "m 4"]) -> Float[Tensor, "m 3 3"]:
    """Rotation matrices, acting on columns, of quaternions w, x, y, z of any length but 0."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=1).unbind(1)
    entries = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(entries, 1).view(-1, 3, 3)


@torch.no_grad()
def add_noise(
    means: Float[Tensor, "n 3"],
    log_scales: Float[Tensor, "n 3"],
    quaternions: Float[Tensor, "n 4"],
    opacity: Float[Tensor, " n"],
    size: float,
    generator: torch.Generator,
) -> None:
    """Moves gaussians of low opacity by noise with their own shape, in place: covariance * gate(opacity) * size * normal (section 3.1).

    Args:
        means: moved in place.
        log_scales: see GaussianCloud.
        quaternions: see GaussianCloud.
        opacity: of the gaussians.
        size: product of the noise factor and the learning rate of the means.
        generator: of random numbers, on any device.
    """
    moved = (opacity < _NOISELESS).nonzero()[:, 0]
    if len(moved) == 0 or size == 0:
        return
    gate = torch.sigmoid(-_NOISE_SLOPE * (opacity[moved] - _NOISE_OPACITY))
    normal = torch.randn(len(moved), 3, generator=generator, device=generator.device).to(means.device)
    axes = rotations(quaternions[moved])
    variance = (2 * log_scales[moved]).exp()
    noise = (axes * (variance * (axes * normal[:, :, None]).sum(1))[:, None, :]).sum(2)
    means.index_add_(0, moved, noise * (size * gate)[:, None])


def morton_order(xyz: Float[Tensor, "n 3"]) -> Int[Tensor, " n"]:
    """Indices that sort points along a Morton curve through their bounding box, 21 bits per axis; equal cells keep their order."""
    low = xyz.amin(0)
    cells = (1 << 21) - 1
    position = ((xyz - low) / (xyz.amax(0) - low).clamp(min=1e-30) * cells).long().clamp(0, cells)
    code = torch.zeros_like(position[:, 0])
    for axis in range(3):
        spread = position[:, axis]
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            spread = (spread | (spread << shift)) & mask
        code |= spread << axis
    return torch.sort(code, stable=True).indices
