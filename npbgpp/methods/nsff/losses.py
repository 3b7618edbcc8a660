"""Loss terms of Neural Scene Flow Fields, before weights and means.

Source: Li et al., CVPR 2021, as in nsff_pl, with its disocclusion weights from rendered weights and its cross entropy of static and dynamic weights. Symbols: n rays
of one time step, s samples of each, k pairs of neighbouring samples. Terms are averaged by ``mean_of_largest``.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool1d

_LEAST_WEIGHT = 1e-8  # keeps logarithms finite
_LEAST_SPREAD = 1e-8  # avoids a division by zero for constant values
_FALLOFF = 2.0  # decay of the smoothness weight with the distance of samples, 1 / field unit


def mean_of_largest(values: Float[Tensor, "*any"], share: float = 1.0) -> Float[Tensor, ""]:
    """Mean of the largest values; ``share`` is the fraction of values, at least one value."""
    if share >= 1:
        return values.mean()
    return values.flatten().topk(max(1, int(share * values.numel()))).values.mean()


def colour(rgb: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Squared differences."""
    return (rgb - target) ** 2


def relative_depth(depth: Float[Tensor, " n"], disparity: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Scale and shift invariant loss: squared differences of standardised NDC depths and negative disparities of one frame."""
    return (_standardised(depth) - _standardised(-disparity)) ** 2


def entropy(dynamic_weights: Float[Tensor, "n s"]) -> Float[Tensor, " n"]:
    """Entropy of the dynamic weights; low if they are concentrated in few samples."""
    return -(dynamic_weights * (dynamic_weights + _LEAST_WEIGHT).log()).sum(-1)


def cross_entropy(static_weights: Float[Tensor, "n s"], dynamic_weights: Float[Tensor, "n s"], thickness: int = 1) -> Float[Tensor, " n"]:
    """Negative cross entropy; low if static weights are small at dynamic samples. No gradient reaches the dynamic weights.

    Args:
        static_weights: of every sample.
        dynamic_weights: of every sample.
        thickness: window of samples that are dynamic around each dynamic sample, odd.
    """
    moving = avg_pool1d(dynamic_weights.detach()[:, None], thickness, 1, thickness // 2)[:, 0] * thickness
    return (moving * (static_weights + _LEAST_WEIGHT).log()).sum(-1)


def optical_flow(uv_px: Float[Tensor, "n 2"], target_uv_px: Float[Tensor, "n 2"], usable: Bool[Tensor, " n"]) -> Float[Tensor, "m 2"]:
    """Absolute differences of projected scene flow and optical flow along u and v, for usable rays that have a flow."""
    usable = usable & torch.isfinite(target_uv_px).all(-1)
    return (uv_px[usable] - target_uv_px[usable]).abs()


def photometric(warped_rgb: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"], disocclusion: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """Squared differences of warped colours and the photo, by disocclusion weight."""
    return _share(disocclusion)[:, None] * (warped_rgb - target) ** 2


def cycle(returned: Float[Tensor, "n s 3"], xyz: Float[Tensor, "n s 3"], disocclusion: Float[Tensor, "n s"]) -> Float[Tensor, "n s 3"]:
    """Cycle consistency: absolute differences of points and the points moved to a neighbouring time step and back, NDC, by disocclusion weight."""
    return _share(disocclusion)[..., None] * (returned - xyz).abs()


def temporal_smoothness(
    xyz: Float[Tensor, "n s 3"], forward: Float[Tensor, "n s 3"], backward: Float[Tensor, "n s 3"]
) -> Float[Tensor, "n s 3"]:
    """Absolute acceleration of points, field units; ``forward`` and ``backward`` are their positions at the neighbouring time steps."""
    return (forward + backward - 2 * xyz).abs()


def least_motion(xyz: Float[Tensor, "n s 3"], neighbour: Float[Tensor, "n s 3"]) -> Float[Tensor, "n s 3"]:
    """Absolute motion of points, field units."""
    return (neighbour - xyz).abs()


def spatial_smoothness(xyz: Float[Tensor, "n s 3"], neighbour: Float[Tensor, "n s 3"]) -> Float[Tensor, "n k 3"]:
    """Absolute differences of the motion of consecutive samples, field units, weighted by their nearness."""
    nearness = torch.exp(-_FALLOFF * xyz.diff(dim=1).norm(dim=-1, keepdim=True))
    return (neighbour - xyz).diff(dim=1).abs() * nearness


def _standardised(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    centred = values - values.median()
    return centred / centred.abs().mean().clamp_min(_LEAST_SPREAD)


def _share(disocclusion: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    return disocclusion / disocclusion.mean().clamp_min(_LEAST_SPREAD)
