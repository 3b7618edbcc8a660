"""Settings of NeRF: the schema of ``conf/system/nerf.yaml``."""

from dataclasses import dataclass, field

from npbgpp.data.rays import RaySampling
from npbgpp.errors import InputError

FRAMES = ("auto", "plain", "forward", "inward")
OPTIMIZERS = ("adam", "sgd", "radam", "ranger")
SCHEDULES = ("steplr", "cosine", "poly", "constant")


@dataclass(frozen=True, kw_only=True)
class NerfSettings:
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
    optimizer: str = "adam"
    lr: float = 5e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_schedule: str = "steplr"
    decay_step: tuple[int, ...] = (20,)
    decay_gamma: float = 0.1
    poly_exp: float = 0.9
    warmup_epochs: int = 0
    save_rendered_eval_images: bool = True
    lpips_weights: str | None = None
    postprocessing_transform: str | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None

    max_scenes_per_train_epoch = 1  # a field is one scene

    def __post_init__(self) -> None:
        for key, known in (("ray_frame", FRAMES), ("optimizer", OPTIMIZERS), ("lr_schedule", SCHEDULES)):
            if getattr(self, key) not in known:
                raise InputError(f"system.{key}: expected one of {', '.join(known)}, got {getattr(self, key)}")
        for key, least in (("chunk", 1), ("grid_resolution", 2), ("grid_every", 1), ("warmup_epochs", 0), ("accumulate_grad_batches", 1)):
            if getattr(self, key) < least:
                raise InputError(f"system.{key}: expected at least {least}, got {getattr(self, key)}")
        if not self.lr > 0:
            raise InputError(f"system.lr: expected a positive rate, got {self.lr}")
        if self.postprocessing_transform not in (None, "rotate_90_ccw"):
            raise InputError(f"system.postprocessing_transform: expected null or rotate_90_ccw, got {self.postprocessing_transform}")
