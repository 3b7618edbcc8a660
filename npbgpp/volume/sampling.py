"""Rays, depth sampling along them and normalised device coordinates (NeRF; Mildenhall et al., ECCV 2020, sections 4, 5.2 and appendix C).

Symbols: n rays, s samples per ray, m new samples per ray, p samples of all rays together. Depths z are in units of the ray direction: a point is
origin + z direction.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.errors import InputError

_LAST_INTERVAL = 1e10  # depth that the last sample of a ray covers
_MIN_WEIGHT = 1e-5  # added to all weights of a distribution
_MIN_STEP = 1e-5  # smallest step of a cumulative distribution to divide by


@dataclass(frozen=True)
class Rays:
    """n rays with depth bounds.

    Attributes:
        origins: points.
        directions: of any length.
        near: smallest depth.
        far: largest depth.

    Raises:
        InputError: bounds that are not finite or do not enclose anything.
    """

    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    near: Float[Tensor, " n"]
    far: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        valid = (self.near < self.far) & torch.isfinite(self.near) & torch.isfinite(self.far)
        if not valid.all():
            bad = (~valid).nonzero()[:, 0]
            near, far = self.near[bad[0]].item(), self.far[bad[0]].item()
            raise InputError(
                f"bounds of rays: expected finite near < far, got near {near:g} and far {far:g} for ray {bad[0].item()} "
                f"({len(bad)} of {len(self)} rays); correct the bounds of the scene"
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
    """p samples of n rays, any number per ray, sorted by ray, then by depth.

    Attributes:
        ray: index of the ray of each sample.
        z: depth.
        delta: length of the interval that the sample represents, in depth.
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
        """Number of preceding samples on the same ray."""
        counts = torch.bincount(self.ray)
        return torch.arange(len(self), device=self.ray.device) - (counts.cumsum(0) - counts)[self.ray]


def intervals(z: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
    """Distance of each of the sorted depths to the next one; 1e10 for the last."""
    return torch.cat([z.diff(dim=-1), torch.full_like(z[:, :1], _LAST_INTERVAL)], -1)


def stratified(
    near: Float[Tensor, " n"],
    far: Float[Tensor, " n"],
    count: int,
    perturb: float = 0.0,
    disparity: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n s"]:
    """Sorted depths by stratified sampling (section 4).

    Args:
        near: smallest depth of each ray.
        far: largest depth of each ray.
        count: s.
        perturb: 0 returns evenly spaced depths from near to far; 1 samples each depth between the midpoints to its neighbours; values between restrict the
            samples to that fraction of the interval, from its near end.
        disparity: space depths evenly in 1 / depth.
        generator: random number generator.

    Raises:
        InputError: ``disparity`` with a near bound that is not positive.
    """
    fraction = torch.linspace(0, 1, count, device=near.device, dtype=near.dtype)
    if disparity:
        if (near <= 0).any():
            raise InputError(
                f"disparity: expected rays that start at positive depths, got near {near.min().item():g}; "
                "switch it off (normalised device coordinates are even in 1 / depth already)"
            )
        z = 1 / ((1 - fraction) / near[:, None] + fraction / far[:, None])
    else:
        z = near[:, None] * (1 - fraction) + far[:, None] * fraction
    if perturb == 0:
        return z
    middle = 0.5 * (z[:, 1:] + z[:, :-1])
    lower, upper = torch.cat([z[:, :1], middle], -1), torch.cat([middle, z[:, -1:]], -1)
    return lower + (upper - lower) * perturb * torch.rand(z.shape, generator=generator, device=z.device, dtype=z.dtype)


def sample_pdf(
    bins: Float[Tensor, "n s1"], weights: Float[Tensor, "n s"], count: int, perturb: float = 0.0, generator: torch.Generator | None = None
) -> Float[Tensor, "n m"]:
    """Depths by importance sampling: inverse transform sampling of the piecewise constant density given by ``weights`` (section 5.2).

    Args:
        bins: s + 1 sorted interval borders.
        weights: weights of the s intervals, not negative, of any sum; all zeros give the uniform distribution. They get no gradients.
        count: m.
        perturb: 0 takes evenly spaced quantiles from 0 to 1, otherwise they are random.
        generator: random number generator.

    Returns:
        Depths; not sorted for random quantiles.
    """
    weights = weights.detach() + _MIN_WEIGHT
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
    step = torch.where(step < _MIN_STEP, 1.0, step)
    return bin_below + (quantile - cdf_below) / step * (bins.gather(1, above) - bin_below)


def to_ndc(
    origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], focal: float, image_size: tuple[int, int]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Rays of a forward-facing scene in normalised device coordinates with near plane z = -1 (appendix C).

    Args:
        origins: in axes right, up, backward.
        directions: in the same axes, all with negative z.
        focal: focal length in pixels.
        image_size: (height, width) in pixels.

    Returns:
        (origins, directions): depth 0 is the near plane, depth 1 is infinity. Directions are not of unit length.

    Raises:
        InputError: a direction with z >= 0.
    """
    backward = directions[:, 2] >= 0
    if backward.any():
        raise InputError(
            f"normalised device coordinates: expected rays that look along -z, got {int(backward.sum())} of {len(directions)} that do not; "
            "the scene is not forward-facing: choose another value of system.ray_frame"
        )
    height, width = image_size
    to_plane = -(1 + origins[:, 2:]) / directions[:, 2:]
    start = origins + to_plane * directions
    scale = start.new_tensor([-2 * focal / width, -2 * focal / height])
    slope, offset = directions[:, :2] / directions[:, 2:], start[:, :2] / start[:, 2:]
    z = 1 + 2 / start[:, 2:]
    return torch.cat([scale * offset, z], -1), torch.cat([scale * (slope - offset), 1 - z], -1)
