"""Static and dynamic densities along rays become pixels: both add up in every sample (Neural Scene Flow Fields, Li et al., CVPR 2021, as nsff_pl has them).

Symbols: n rays, s samples of each; alpha is the opacity of a sample, tau its optical depth: alpha = 1 - exp(-tau). Depths are those of NDC, from 0 to 1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

LAST_STATIC = 100.0  # what lies behind the last sample is static, up to infinity
LAST_DYNAMIC = 1e-3
PAPER = 0.8  # grey behind the picture of what moves
_FARTHEST_MOTION = 0.95  # NDC depth behind which nothing moves
_EMPTY = -10.0  # raw density of what no camera saw


@dataclass(frozen=True)
class TwoLayers:
    """n rays through static and dynamic matter.

    Attributes:
        rgb: colours; None where only densities were known. They can exceed 1 where both kinds share a sample.
        depth: sum of the depths by weight.
        static_weights: how much the static part of each sample adds.
        dynamic_weights: the same of the dynamic part.
        weights: how much of the light of a ray ends in each sample; less than the sum of the other two where both are dense.
    """

    rgb: Float[Tensor, "n 3"] | None
    depth: Float[Tensor, " n"]
    static_weights: Float[Tensor, "n s"]
    dynamic_weights: Float[Tensor, "n s"]
    weights: Float[Tensor, "n s"]

    def dynamic_alpha(self) -> Float[Tensor, " n"]:
        """How much of a ray is seen to move, 0..1."""
        return self.dynamic_weights.sum(-1)


@dataclass(frozen=True)
class OneLayer:
    """n rays seen through one kind of matter alone."""

    rgb: Float[Tensor, "n 3"]
    depth: Float[Tensor, " n"]


def reach(z: Float[Tensor, "n s"], last: float) -> Float[Tensor, "n s"]:
    """Distance of each of the sorted depths to the next one, in NDC depth, whatever the length of the direction; ``last`` behind the last one."""
    return torch.cat([z.diff(dim=-1), torch.full_like(z[:, :1], last)], -1)


def optical_depth(
    sigma: Float[Tensor, "n s"], distance: Float[Tensor, "n s"], noise_std: float = 0.0, generator: torch.Generator | None = None
) -> Float[Tensor, "n s"]:
    """tau of samples: density after a softplus, times the distance to the next sample.

    Args:
        sigma: raw densities.
        distance: see ``reach``.
        noise_std: deviation of the normal noise added to the densities.
        generator: source of the noise.
    """
    if noise_std > 0:
        sigma = sigma + noise_std * torch.randn(sigma.shape, generator=generator, device=sigma.device, dtype=sigma.dtype)
    return distance * softplus(sigma)


def opacity(tau: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """alpha of an optical depth."""
    return -torch.expm1(-tau)


def composite_both(
    static_tau: Float[Tensor, "n s"],
    static_rgb: Float[Tensor, "n s 3"] | None,
    dynamic_tau: Float[Tensor, "n s"],
    dynamic_rgb: Float[Tensor, "n s 3"] | None,
    z: Float[Tensor, "n s"],
) -> TwoLayers:
    """Rays through both kinds of matter: each adds its own opacity times what passed the samples before, and either hides what is behind."""
    passed = _passed_before(static_tau + dynamic_tau)
    static, dynamic = opacity(static_tau) * passed, opacity(dynamic_tau) * passed
    weights = opacity(static_tau + dynamic_tau) * passed
    rgb = None
    if static_rgb is not None and dynamic_rgb is not None:
        rgb = (static[..., None] * static_rgb + dynamic[..., None] * dynamic_rgb).sum(-2)
    return TwoLayers(rgb, (weights * z).sum(-1), static, dynamic, weights)


def composite_one(tau: Float[Tensor, "n s"], rgb: Float[Tensor, "n s 3"], z: Float[Tensor, "n s"]) -> OneLayer:
    """Rays as if there were nothing but one kind of matter, on black."""
    weights = opacity(tau) * _passed_before(tau)
    return OneLayer((weights[..., None] * rgb).sum(-2), (weights * z).sum(-1))


def dynamic_layer(seen: TwoLayers, dynamic_rgb: Float[Tensor, "n s 3"]) -> Float[Tensor, "n 3"]:
    """What moves, as far as static matter does not hide it, on light grey."""
    return (seen.dynamic_weights[..., None] * dynamic_rgb).sum(-2) + PAPER * (1 - seen.dynamic_alpha())[:, None]


def mean_along(weights: Float[Tensor, "n s"], values: Float[Tensor, "n s 3"]) -> Float[Tensor, "n 3"]:
    """Sum of points or offsets along rays by weight."""
    return (weights[..., None] * values).sum(-2)


def near_motion(motion: Float[Tensor, "n s 3"], z: Float[Tensor, "n s"]) -> Float[Tensor, "n s 3"]:
    """The motion of samples, none far away (z > 0.95): there it would be measured in huge lengths."""
    return motion.masked_fill((z > _FARTHEST_MOTION)[..., None], 0.0)


def unseen_is_empty(sigma: Float[Tensor, "n s"], seen: Bool[Tensor, "n s"]) -> Float[Tensor, "n s"]:
    """Raw dynamic densities, next to none where the camera of the moment did not look: nothing there was ever trained."""
    return sigma.masked_fill(~seen, _EMPTY)


@dataclass(frozen=True)
class Trust:
    """How far a neighbouring moment can be compared with the present, 0..1, without gradient: not where it hides or uncovers something.

    Attributes:
        samples: of each sample.
        rays: of each ray.
    """

    samples: Float[Tensor, "n s"]
    rays: Float[Tensor, " n"]


def trust_in(warped: TwoLayers, present: TwoLayers) -> Trust:
    """1 minus what the dynamic weights change by when the present is seen with the dynamic matter of a neighbouring moment."""
    change = (warped.dynamic_weights - present.dynamic_weights).detach()
    return Trust(1 - change.abs(), 1 - change.sum(-1).abs())


def _passed_before(tau: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
    """Light that reaches each sample."""
    return torch.exp(-torch.cat([torch.zeros_like(tau[:, :1]), tau[:, :-1]], -1).cumsum(-1))
