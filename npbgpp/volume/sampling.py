"""Where along rays a radiance field is asked (NeRF; Mildenhall et al., ECCV 2020, sections 4, 5.2 and appendix C).

Symbols: n rays, s samples of each, m new samples of each, p samples of all rays together. A depth z is a number of ray directions, not a length: the point
is origin + z direction.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.errors import InputError

_LAST_INTERVAL = 1e10  # what lies behind the last sample looks like it, up to infinity
_LEAST_WEIGHT = 1e-5  # every interval of a distribution keeps a chance
_LEAST_STEP = 1e-5  # smaller steps of a distribution are not divided by


@dataclass(frozen=True)
class Rays:
    """n rays with the part of each that is looked at.

    Attributes:
        origins: points that the rays start from.
        directions: of any length.
        near: first depth.
        far: last depth.

    Raises:
        InputError: bounds that are not finite or do not enclose anything.
    """

    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    near: Float[Tensor, " n"]
    far: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        sound = (self.near < self.far) & torch.isfinite(self.near) & torch.isfinite(self.far)
        if not sound.all():
            wrong = (~sound).nonzero()[:, 0]
            near, far = self.near[wrong[0]].item(), self.far[wrong[0]].item()
            raise InputError(
                f"bounds of rays: expected finite near < far, got near {near:g} and far {far:g} for ray {wrong[0].item()} "
                f"({len(wrong)} of {len(self)} rays); correct the bounds of the scene"
            )

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, item: slice) -> "Rays":
        return Rays(self.origins[item], self.directions[item], self.near[item], self.far[item])

    def points(self, z: Float[Tensor, "n s"]) -> Float[Tensor, "n s 3"]:
        """Points at these depths."""
        return self.origins[:, None] + z[..., None] * self.directions[:, None]


@dataclass(frozen=True)
class PackedSamples:
    """p samples of n rays, any number of each ray, ordered by ray, then by depth.

    Attributes:
        ray: index of the ray that a sample lies on.
        z: its depth.
        delta: how far the sample reaches, in depth.
    """

    ray: Int[Tensor, " p"]
    z: Float[Tensor, " p"]
    delta: Float[Tensor, " p"]

    def __len__(self) -> int:
        return len(self.ray)

    def points(self, rays: Rays) -> Float[Tensor, "p 3"]:
        """Points of the samples."""
        return rays.origins[self.ray] + self.z[:, None] * rays.directions[self.ray]

    def ranks(self) -> Int[Tensor, " p"]:
        """How many samples of the same ray come before each."""
        counts = torch.bincount(self.ray)
        return torch.arange(len(self), device=self.ray.device) - (counts.cumsum(0) - counts)[self.ray]


def intervals(z: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
    """How far each sample of sorted depths reaches, in depth: to the next one; the last without end (1e10)."""
    return torch.cat([z.diff(dim=-1), torch.full_like(z[:, :1], _LAST_INTERVAL)], -1)


def stratified(
    near: Float[Tensor, " n"],
    far: Float[Tensor, " n"],
    count: int,
    perturb: float = 0.0,
    disparity: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n s"]:
    """Depths spread evenly over the rays, sorted.

    Args:
        near: first depth of each ray.
        far: last depth of each ray.
        count: s.
        perturb: 0 takes the even depths, the first near and the last far; 1 draws each anywhere between the midpoints to its neighbours (section 4); numbers
            between draw from that share of the stratum, counted from its near end.
        disparity: even in 1 / depth.
        generator: source of the draws.

    Raises:
        InputError: ``disparity`` with a near bound that is not positive.
    """
    share = torch.linspace(0, 1, count, device=near.device, dtype=near.dtype)
    if disparity:
        if (near <= 0).any():
            raise InputError(
                f"disparity: expected rays that start at positive depths, got near {near.min().item():g}; "
                "switch it off (normalised device coordinates are even in 1 / depth already)"
            )
        z = 1 / ((1 - share) / near[:, None] + share / far[:, None])
    else:
        z = near[:, None] * (1 - share) + far[:, None] * share
    if perturb == 0:
        return z
    middle = 0.5 * (z[:, 1:] + z[:, :-1])
    lower, upper = torch.cat([z[:, :1], middle], -1), torch.cat([middle, z[:, -1:]], -1)
    return lower + (upper - lower) * perturb * torch.rand(z.shape, generator=generator, device=z.device, dtype=z.dtype)


def sample_pdf(
    bins: Float[Tensor, "n s1"], weights: Float[Tensor, "n s"], count: int, perturb: float = 0.0, generator: torch.Generator | None = None
) -> Float[Tensor, "n m"]:
    """Depths where the weights are: draws from the distribution that is constant between neighbouring bins (section 5.2).

    Args:
        bins: s + 1 sorted borders.
        weights: weight of each of the s intervals, not negative, of any sum; zeros everywhere are an even distribution. No gradient is taken.
        count: m.
        perturb: 0 takes evenly spaced quantiles, from the first border to the last; otherwise they are drawn.
        generator: source of the draws.

    Returns:
        Depths; with drawn quantiles not sorted.
    """
    weights = weights.detach() + _LEAST_WEIGHT
    cdf = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], -1)
    if perturb == 0:
        quantile = torch.linspace(0, 1, count, device=cdf.device, dtype=cdf.dtype).expand(len(cdf), -1).contiguous()
    else:
        quantile = torch.rand(len(cdf), count, generator=generator, device=cdf.device, dtype=cdf.dtype)
    found = torch.searchsorted(cdf, quantile, right=True)
    below, above = (found - 1).clamp(min=0), found.clamp(max=weights.shape[1])
    cdf_below, bin_below = cdf.gather(1, below), bins.gather(1, below)
    step = cdf.gather(1, above) - cdf_below
    step = torch.where(step < _LEAST_STEP, 1.0, step)
    return bin_below + (quantile - cdf_below) / step * (bins.gather(1, above) - bin_below)


def to_ndc(
    origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], focal: float, image_size: tuple[int, int]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Rays of a forward-facing scene in normalised device coordinates with near plane z = -1 (appendix C).

    Args:
        origins: in axes right, up, backward.
        directions: the same; all must look forward, along -z.
        focal: in pixels.
        image_size: (height, width) in pixels.

    Returns:
        (origins, directions): depth 0 is the near plane, depth 1 is infinity. The directions are not of unit length.

    Raises:
        InputError: a ray that does not look forward.
    """
    backward = directions[:, 2] >= 0
    if backward.any():
        raise InputError(
            f"normalised device coordinates: expected rays that look along -z, got {int(backward.sum())} of {len(directions)} that do not; "
            "the scene is not forward-facing: choose another frame of its rays"
        )
    height, width = image_size
    to_plane = -(1 + origins[:, 2:]) / directions[:, 2:]
    start = origins + to_plane * directions
    scale = start.new_tensor([-2 * focal / width, -2 * focal / height])
    slope, offset = directions[:, :2] / directions[:, 2:], start[:, :2] / start[:, 2:]
    z = 1 + 2 / start[:, 2:]
    return torch.cat([scale * offset, z], -1), torch.cat([scale * (slope - offset), 1 - z], -1)
