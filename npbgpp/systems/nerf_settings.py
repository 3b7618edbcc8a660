"""Settings of NeRF: the schema of ``conf/system/nerf.yaml``."""

from dataclasses import dataclass, field

from npbgpp.data.rays import RaySampling
from npbgpp.errors import InputError
from npbgpp.systems.field_settings import FieldSettings

FRAMES = ("auto", "plain", "forward", "inward")


@dataclass(frozen=True, kw_only=True)
class NerfSettings(FieldSettings):
    """Keys of ``conf/system/nerf.yaml`` apart from the fields; their meaning stands there."""

    ray_frame: str = "auto"
    ray_bounds: tuple[float, float] | None = None
    rays: RaySampling = field(default_factory=RaySampling)
    occupancy_grid: bool = True
    grid_resolution: int = 64
    grid_every: int = 16
    grid_box: tuple[float, float, float, float, float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ray_frame not in FRAMES:
            raise InputError(f"system.ray_frame: expected one of {', '.join(FRAMES)}, got {self.ray_frame}")
        self.require_at_least(grid_resolution=2, grid_every=1)
