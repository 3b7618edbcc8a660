"""Settings of the NPBG++ system: the schema of ``conf/system/npbgpp_*.yaml``."""

from dataclasses import dataclass

from npbgpp.errors import InputError
from npbgpp.systems.point_settings import PointSettings


@dataclass(frozen=True)
class LearningRates:
    """Initial learning rates of Adam."""

    feature_extractor: float = 1e-4
    aggregator: float = 1e-4
    background: float = 1e-4
    rgb_converter: float = 1e-4
    refiner: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class NPBGPlusPlusSettings(PointSettings):
    """Keys of ``conf/system/_npbgpp.yaml`` apart from the networks; their meaning stands there."""

    align_view_images: bool = True
    color_aug_p: float = 0.8
    visibility_scale: float | None = 1.0
    state_device: str | None = None
    points_per_pass: int | None = None
    freeze_feature_extractor: bool = False
    freeze_aggregator: bool = False
    learning_rates: LearningRates = LearningRates()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.color_aug_p <= 1:
            raise InputError(f"system.color_aug_p: expected a probability between 0 and 1, got {self.color_aug_p}")
        if self.visibility_scale is not None and not self.visibility_scale > 0:
            raise InputError(f"system.visibility_scale: expected a positive share of the image size or null, got {self.visibility_scale}")
        if self.points_per_pass is not None and self.points_per_pass < 1:
            raise InputError(f"system.points_per_pass: expected a positive number of points or null, got {self.points_per_pass}")
