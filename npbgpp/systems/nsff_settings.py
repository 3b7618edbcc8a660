"""Settings of NSFF: the schema of ``conf/system/nsff.yaml``."""

import math
from dataclasses import dataclass, field, fields

from npbgpp.errors import InputError
from npbgpp.systems.field_settings import FieldSettings

UNITS = ("epoch", "step")


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the loss, see ``npbgpp.space_time_losses``; 0 switches a term off."""

    colour: float = 1.0
    coarse_colour: float = 0.1
    disparity: float = 0.04
    coarse_disparity: float = 0.04
    flow_forward: float = 0.02
    flow_backward: float = 0.02
    entropy: float = 1e-3
    cross_entropy: float = 2e-4
    photometric: float = 1.0
    cycle: float = 1.0
    temporal_smoothness: float = 0.1
    least_motion: float = 0.1
    spatial_smoothness: float = 0.1

    def __post_init__(self) -> None:
        for key in fields(self):
            if not 0 <= getattr(self, key.name) < math.inf:
                raise InputError(f"system.loss_weights.{key.name}: expected 0 or more, got {getattr(self, key.name)}")


@dataclass(frozen=True)
class LossSchedule:
    """How weights change in training.

    Attributes:
        unit: what the numbers below count: epoch (whole ones) or step.
        geometry_every: after so many, disparity and flow weigh ``geometry_factor`` times as much as before; 0: always the same.
        geometry_factor: see there.
        cross_entropy_over: the cross entropy grows from nothing over so many; 0: from the beginning.
    """

    unit: str = "epoch"
    geometry_every: int = 10
    geometry_factor: float = 0.1
    cross_entropy_over: int = 10

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise InputError(f"system.loss_schedule.unit: expected one of {', '.join(UNITS)}, got {self.unit}")
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
class NsffSettings(FieldSettings):
    """Keys of ``conf/system/nsff.yaml`` apart from the field; their meaning stands there."""

    rays_per_batch: int = 512
    empty_where_unseen: bool = True
    loss_weights: LossWeights = field(default_factory=LossWeights)
    loss_schedule: LossSchedule = field(default_factory=LossSchedule)
    thickness: int = 1
    topk: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(rays_per_batch=1)
        if self.thickness < 1 or self.thickness % 2 == 0:
            raise InputError(f"system.thickness: expected an odd number of samples, got {self.thickness}")
        if not 0 < self.topk <= 1:
            raise InputError(f"system.topk: expected a part of the values, more than 0 and at most 1, got {self.topk:g}")
