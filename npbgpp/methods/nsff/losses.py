"""Loss of NSFF: its terms, their weights and schedule (``conf/system/nsff.yaml``), and their weighted sum.

Source: Li et al., CVPR 2021, as in nsff_pl, with its disocclusion weights from rendered weights and its cross entropy of static and dynamic weights. Symbols: n rays
of one time step, s samples of each, k pairs of neighbouring samples. Terms are averaged by ``mean_of_largest``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool1d

from npbgpp.errors import InputError
from npbgpp.methods.nsff.data import VideoBatch
from npbgpp.methods.nsff.model import Training, Warp
from npbgpp.methods.nsff.normalisation import VideoNormalisation
from npbgpp.methods.radiance import RadianceSettings

# ----------------------------------------------------------------------
# Terms, before weights and means


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


# ----------------------------------------------------------------------
# Settings and weighted loss


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; 0 switches a term off."""

    colour: float
    coarse_colour: float
    disparity: float
    coarse_disparity: float
    flow_forward: float
    flow_backward: float
    entropy: float
    cross_entropy: float
    photometric: float
    cycle: float
    temporal_smoothness: float
    least_motion: float
    spatial_smoothness: float

    def __post_init__(self) -> None:
        for key in fields(self):
            if not 0 <= getattr(self, key.name) < math.inf:
                raise InputError(f"system.loss_weights.{key.name}: expected 0 or more, got {getattr(self, key.name)}")


@dataclass(frozen=True)
class LossSchedule:
    """Schedule of the loss weights.

    Attributes:
        unit: unit of the intervals below: epoch or step.
        geometry_every: interval after which the weights of disparity and flow are multiplied by ``geometry_factor``; 0: constant.
        geometry_factor: see ``geometry_every``.
        cross_entropy_over: length of the linear warm-up of the cross entropy; 0: none.
    """

    unit: Literal["epoch", "step"]
    geometry_every: int
    geometry_factor: float
    cross_entropy_over: int

    def __post_init__(self) -> None:
        for key in ("geometry_every", "geometry_factor", "cross_entropy_over"):
            if getattr(self, key) < 0:
                raise InputError(f"system.loss_schedule.{key}: expected 0 or more, got {getattr(self, key)}")

    def geometry(self, epoch: int, step: int) -> float:
        """Factor of disparity and flow."""
        passed = epoch if self.unit == "epoch" else step
        return self.geometry_factor ** (passed // self.geometry_every) if self.geometry_every else 1.0

    def cross_entropy(self, epoch: int, step: int) -> float:
        """Factor of the cross entropy."""
        passed = epoch if self.unit == "epoch" else step
        return min(1.0, passed / self.cross_entropy_over) if self.cross_entropy_over else 1.0


@dataclass(frozen=True, kw_only=True)
class NsffSettings(RadianceSettings):
    """Keys of ``conf/system/nsff.yaml`` apart from the field; their defaults and meaning are there."""

    rays_per_batch: int
    empty_where_unseen: bool
    loss_weights: LossWeights
    loss_schedule: LossSchedule
    thickness: int
    topk: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(rays_per_batch=1)
        if self.thickness < 1 or self.thickness % 2 == 0:
            raise InputError(f"system.thickness: expected an odd number of samples, got {self.thickness}")
        if not 0 < self.topk <= 1:
            raise InputError(f"system.topk: expected a fraction, more than 0 and at most 1, got {self.topk:g}")


# ---------------------------------------------------------------- loss


_NEAR_SAMPLES = 0.95  # fraction of the samples with motion terms in Euclidean coordinates; the rest is nearly at infinity
_OF_GEOMETRY = ("disparity", "coarse_disparity", "flow_forward", "flow_backward")


def loss_terms(
    rendered: Training, batch: VideoBatch, normalisation: VideoNormalisation, time_step: int, thickness: int
) -> dict[str, Tensor]:
    """Terms of ``LossWeights`` before means; the first and the last time step lack the terms of one neighbour.

    Args:
        rendered: the rays of the batch.
        batch: the targets.
        normalisation: coordinates of the field.
        time_step: of the batch.
        thickness: see ``cross_entropy``.
    """
    assert rendered.fine.rgb is not None
    terms = {"colour": colour(rendered.fine.rgb, batch.rgb)}
    has_disparity = bool(torch.isfinite(batch.disparity).all())
    if has_disparity:
        terms["disparity"] = relative_depth(rendered.fine.depth, batch.disparity)
    if rendered.coarse is not None and rendered.coarse.rgb is not None:
        terms["coarse_colour"] = colour(rendered.coarse.rgb, batch.rgb)
        if has_disparity:
            terms["coarse_disparity"] = relative_depth(rendered.coarse.depth, batch.disparity)
    terms["entropy"] = entropy(rendered.fine.dynamic_weights)
    terms["cross_entropy"] = cross_entropy(rendered.fine.static_weights, rendered.fine.dynamic_weights, thickness)
    for name, warp, neighbour, target in (
        ("flow_forward", rendered.forward, time_step + 1, batch.uv_forward_px),
        ("flow_backward", rendered.backward, time_step - 1, batch.uv_backward_px),
    ):
        if warp is not None:
            uv_px, depth = normalisation.project(normalisation.ndc_to_field(warp.point), neighbour)
            found = optical_flow(uv_px, target, depth > 0)
            if len(found):
                terms[name] = found
    warps = [warp for warp in (rendered.forward, rendered.backward) if warp is not None]
    terms["photometric"] = _total([photometric(_rgb(warp), batch.rgb, warp.disocclusion.rays) for warp in warps])
    terms["cycle"] = _total([cycle(warp.returned, rendered.xyz, warp.disocclusion.samples) for warp in warps])
    return terms | _motion_terms(rendered, normalisation)


def _motion_terms(rendered: Training, normalisation: VideoNormalisation) -> dict[str, Tensor]:
    near = max(2, int(_NEAR_SAMPLES * rendered.xyz.shape[1]))
    xyz = normalisation.ndc_to_field(rendered.xyz[:, :near])
    moved = [normalisation.ndc_to_field(warp.xyz[:, :near]) for warp in (rendered.forward, rendered.backward) if warp is not None]
    terms = {
        "least_motion": _total([least_motion(xyz, there) for there in moved]),
        "spatial_smoothness": _total([spatial_smoothness(xyz, there) for there in moved]),
    }
    if len(moved) == 2:
        terms["temporal_smoothness"] = temporal_smoothness(xyz, *moved)
    return terms


def weighted_means(
    terms: Mapping[str, Tensor], weights: LossWeights, schedule: LossSchedule, epoch: int, step: int, topk: float
) -> dict[str, Float[Tensor, ""]]:
    """Weighted mean of each term at a step of training.

    Args:
        terms: see ``loss_terms``.
        weights: of the terms.
        schedule: of the weights.
        epoch: counted from 0.
        step: counted from 0.
        topk: see ``mean_of_largest``.
    """
    factors = dict.fromkeys(_OF_GEOMETRY, schedule.geometry(epoch, step)) | {"cross_entropy": schedule.cross_entropy(epoch, step)}
    found = {}
    for key in fields(weights):
        weight = getattr(weights, key.name) * factors.get(key.name, 1.0)
        if key.name in terms and weight > 0:
            found[key.name] = weight * mean_of_largest(terms[key.name], topk)
    return found


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


def _rgb(warp: Warp) -> Float[Tensor, "n 3"]:
    assert warp.composited.rgb is not None
    return warp.composited.rgb
