"""Settings of the NPBG system: the schema of ``conf/system/npbg.yaml`` and ``coefficients_ft.yaml``."""

from dataclasses import dataclass

from npbgpp.systems.point_settings import PointSettings


@dataclass(frozen=True)
class LearningRates:
    """Initial learning rates: RMSprop for the first three, Adam for the refiner."""

    descriptors: float = 0.1
    background: float = 0.1
    rgb_converter: float = 1e-4
    refiner: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class NPBGSettings(PointSettings):
    """Keys of ``conf/system/npbg.yaml`` apart from the networks; their meaning stands there."""

    max_points: int | None = None
    descriptors_pretrained_dir: str | None = None
    descriptors_save_dir: str | None = None
    overwrite_descriptors: bool = False
    reset_descriptor_optimizer: bool = True
    drop_single_view_points: bool = True
    learning_rates: LearningRates = LearningRates()
