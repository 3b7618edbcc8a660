"""Settings of NeRF: the schema of ``conf/system/nerf.yaml``."""

from dataclasses import dataclass, field

from npbgpp.data.rays import RaySampling
from npbgpp.errors import InputError
from npbgpp.systems.optimisers import OptimiserSettings

FRAMES = ("auto", "plain", "forward", "inward")


@dataclass(frozen=True, kw_only=True)
class NerfSettings(OptimiserSettings):
    """Keys of ``conf/system/nerf.yaml`` apart from the fields; their meaning stands there."""

    system_class: str
    ray_frame: str = "auto"
    ray_bounds: tuple[float, float] | None = None
    rays: RaySampling = field(default_factory=RaySampling)
    world_viewdirs: bool = True
    chunk: int = 32768
    occupancy_grid: bool = True
    grid_resolution: int = 64
    grid_every: int = 16
    grid_box: tuple[float, float, float, float, float, float] | None = None
    save_rendered_eval_images: bool = True
    lpips_weights: str | None = None
    postprocessing_transform: str | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None

    max_scenes_per_train_epoch = 1  # a field is one scene

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ray_frame not in FRAMES:
            raise InputError(f"system.ray_frame: expected one of {', '.join(FRAMES)}, got {self.ray_frame}")
        for key, least in (("chunk", 1), ("grid_resolution", 2), ("grid_every", 1), ("accumulate_grad_batches", 1)):
            if getattr(self, key) < least:
                raise InputError(f"system.{key}: expected at least {least}, got {getattr(self, key)}")
        if self.postprocessing_transform not in (None, "rotate_90_ccw"):
            raise InputError(f"system.postprocessing_transform: expected null or rotate_90_ccw, got {self.postprocessing_transform}")
