"""What the colours, depths and motions of a video are asked to be: terms of the loss of Neural Scene Flow Fields, before weights and means.

Source: Li et al., CVPR 2021, as nsff_pl has them, which compares the disocclusions of rendered weights and keeps static weights off what moves. Symbols: n rays
of one moment, s samples of each, k pairs of neighbouring samples. Every term is a map of values that are then averaged (``mean_of_largest``).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool1d

_LEAST_WEIGHT = 1e-8  # logarithms end somewhere
_LEAST_SPREAD = 1e-8  # what is constant has no deviation to be measured in
_FALLOFF = 2.0  # of the smoothness between samples with their distance, field units


def mean_of_largest(values: Float[Tensor, "*any"], share: float = 1.0) -> Float[Tensor, ""]:
    """Mean of the largest values; ``share`` is which part of them, at least one. 1 takes all."""
    if share >= 1:
        return values.mean()
    return values.flatten().topk(max(1, int(share * values.numel()))).values.mean()


def colour(rgb: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Squared differences."""
    return (rgb - target) ** 2


def relative_depth(depth: Float[Tensor, " n"], disparity: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Squared differences between depths in NDC and negative disparities, either without scale and offset: both are those of one frame."""
    return (_standardised(depth) - _standardised(-disparity)) ** 2


def entropy(dynamic_weights: Float[Tensor, "n s"]) -> Float[Tensor, " n"]:
    """Low where what moves lies in few samples, or nowhere."""
    return -(dynamic_weights * (dynamic_weights + _LEAST_WEIGHT).log()).sum(-1)


def cross_entropy(static_weights: Float[Tensor, "n s"], dynamic_weights: Float[Tensor, "n s"], thickness: int = 1) -> Float[Tensor, " n"]:
    """Low where static matter keeps away from what moves, which gets no gradient.

    Args:
        static_weights: of every sample.
        dynamic_weights: of every sample.
        thickness: samples around each that belong to what moves, an odd number.
    """
    moving = avg_pool1d(dynamic_weights.detach()[:, None], thickness, 1, thickness // 2)[:, 0] * thickness
    return (moving * (static_weights + _LEAST_WEIGHT).log()).sum(-1)


def optical_flow(uv_px: Float[Tensor, "n 2"], target_uv_px: Float[Tensor, "n 2"], usable: Bool[Tensor, " n"]) -> Float[Tensor, "m 2"]:
    """Distances along u and v of where the rays' points appear at a neighbouring moment to where the flow says, of usable rays that have a flow."""
    usable = usable & torch.isfinite(target_uv_px).all(-1)
    return (uv_px[usable] - target_uv_px[usable]).abs()


def photometric(warped_rgb: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"], trust: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """Squared differences of the photo to the present as a neighbouring moment shows it, in proportion to the trust in that."""
    return _share(trust)[:, None] * (warped_rgb - target) ** 2


def cycle(returned: Float[Tensor, "n s 3"], xyz: Float[Tensor, "n s 3"], trust: Float[Tensor, "n s"]) -> Float[Tensor, "n s 3"]:
    """How far points that go to a neighbouring moment and back end from where they began, NDC."""
    return _share(trust)[..., None] * (returned - xyz).abs()


def temporal_smoothness(
    xyz: Float[Tensor, "n s 3"], forward: Float[Tensor, "n s 3"], backward: Float[Tensor, "n s 3"]
) -> Float[Tensor, "n s 3"]:
    """Acceleration of points, field units: ``forward`` and ``backward`` are where they are at the neighbouring moments."""
    return (forward + backward - 2 * xyz).abs()


def least_motion(xyz: Float[Tensor, "n s 3"], neighbour: Float[Tensor, "n s 3"]) -> Float[Tensor, "n s 3"]:
    """How far points move, field units."""
    return (neighbour - xyz).abs()


def spatial_smoothness(xyz: Float[Tensor, "n s 3"], neighbour: Float[Tensor, "n s 3"]) -> Float[Tensor, "n k 3"]:
    """Differences between the motions of samples that follow each other, less the farther these are apart, field units."""
    nearness = torch.exp(-_FALLOFF * xyz.diff(dim=1).norm(dim=-1, keepdim=True))
    return (neighbour - xyz).diff(dim=1).abs() * nearness


def _standardised(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    centred = values - values.median()
    return centred / centred.abs().mean().clamp_min(_LEAST_SPREAD)


def _share(trust: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    return trust / trust.mean().clamp_min(_LEAST_SPREAD)
