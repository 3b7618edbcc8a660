"""Settings of NSFF (``conf/system/nsff.yaml``) and its weighted loss."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.methods.nsff import losses
from npbgpp.methods.nsff.data import VideoBatch
from npbgpp.methods.nsff.model import Training, Warp
from npbgpp.methods.nsff.normalisation import VideoNormalisation
from npbgpp.methods.radiance import RadianceSettings


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the loss, see ``npbgpp.methods.nsff.losses``; 0 switches a term off."""

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
        thickness: see ``losses.cross_entropy``.
    """
    assert rendered.fine.rgb is not None
    terms = {"colour": losses.colour(rendered.fine.rgb, batch.rgb)}
    has_disparity = bool(torch.isfinite(batch.disparity).all())
    if has_disparity:
        terms["disparity"] = losses.relative_depth(rendered.fine.depth, batch.disparity)
    if rendered.coarse is not None and rendered.coarse.rgb is not None:
        terms["coarse_colour"] = losses.colour(rendered.coarse.rgb, batch.rgb)
        if has_disparity:
            terms["coarse_disparity"] = losses.relative_depth(rendered.coarse.depth, batch.disparity)
    terms["entropy"] = losses.entropy(rendered.fine.dynamic_weights)
    terms["cross_entropy"] = losses.cross_entropy(rendered.fine.static_weights, rendered.fine.dynamic_weights, thickness)
    for name, warp, neighbour, target in (
        ("flow_forward", rendered.forward, time_step + 1, batch.uv_forward_px),
        ("flow_backward", rendered.backward, time_step - 1, batch.uv_backward_px),
    ):
        if warp is not None:
            uv_px, depth = normalisation.project(normalisation.ndc_to_field(warp.point), neighbour)
            found = losses.optical_flow(uv_px, target, depth > 0)
            if len(found):
                terms[name] = found
    warps = [warp for warp in (rendered.forward, rendered.backward) if warp is not None]
    terms["photometric"] = _total([losses.photometric(_rgb(warp), batch.rgb, warp.disocclusion.rays) for warp in warps])
    terms["cycle"] = _total([losses.cycle(warp.returned, rendered.xyz, warp.disocclusion.samples) for warp in warps])
    return terms | _motion_terms(rendered, normalisation)


def _motion_terms(rendered: Training, normalisation: VideoNormalisation) -> dict[str, Tensor]:
    near = max(2, int(_NEAR_SAMPLES * rendered.xyz.shape[1]))
    xyz = normalisation.ndc_to_field(rendered.xyz[:, :near])
    moved = [normalisation.ndc_to_field(warp.xyz[:, :near]) for warp in (rendered.forward, rendered.backward) if warp is not None]
    terms = {
        "least_motion": _total([losses.least_motion(xyz, there) for there in moved]),
        "spatial_smoothness": _total([losses.spatial_smoothness(xyz, there) for there in moved]),
    }
    if len(moved) == 2:
        terms["temporal_smoothness"] = losses.temporal_smoothness(xyz, *moved)
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
        topk: see ``losses.mean_of_largest``.
    """
    factors = dict.fromkeys(_OF_GEOMETRY, schedule.geometry(epoch, step)) | {"cross_entropy": schedule.cross_entropy(epoch, step)}
    found = {}
    for key in fields(weights):
        weight = getattr(weights, key.name) * factors.get(key.name, 1.0)
        if key.name in terms and weight > 0:
            found[key.name] = weight * losses.mean_of_largest(terms[key.name], topk)
    return found


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


def _rgb(warp: Warp) -> Float[Tensor, "n 3"]:
    assert warp.composited.rgb is not None
    return warp.composited.rgb
