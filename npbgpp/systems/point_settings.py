"""Settings that all point-based systems share: the schema of ``conf/system/_points.yaml``."""

from dataclasses import dataclass, field

from npbgpp.errors import InputError
from npbgpp.geometry.pixel_rules import PixelRule


@dataclass(frozen=True, kw_only=True)
class PointSettings:
    """Keys of ``conf/system/_points.yaml`` apart from the networks; their meaning stands there."""

    system_class: str
    descriptor_dim: int = 8
    max_scenes_per_train_epoch: int = 4
    save_rendered_eval_images: bool = True
    freeze_refiner: bool = False
    use_masks: bool = False
    bg_rgb_color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    align_during_rendering: bool = False
    up: tuple[float, float, float] = (0.0, 1.0, 0.0)
    pixel_convention: str = "authors"
    near: float = 1.0
    style_weight: float = 0.0
    style_img_path: str = ""
    vgg_weights: str | None = None
    lpips_weights: str | None = None
    postprocessing_transform: str | None = None
    loss_factors: dict[str, float] = field(default_factory=dict)
    lr_schedule: str = "constant"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None

    def __post_init__(self) -> None:
        rules = [rule.value for rule in PixelRule]
        if self.pixel_convention not in rules:
            raise InputError(f"system.pixel_convention: expected one of {', '.join(rules)}, got {self.pixel_convention}")
        if self.lr_schedule not in ("constant", "cosine"):
            raise InputError(f"system.lr_schedule: expected constant or cosine, got {self.lr_schedule}")
        if self.near < 0:
            raise InputError(f"system.near: expected a depth of at least 0 scene units, got {self.near}")
        if not any(self.up):
            raise InputError(f"system.up: expected a direction, got {list(self.up)}")
        if self.postprocessing_transform not in (None, "rotate_90_ccw"):
            raise InputError(f"system.postprocessing_transform: expected null or rotate_90_ccw, got {self.postprocessing_transform}")
        for key in ("descriptor_dim", "accumulate_grad_batches", "max_scenes_per_train_epoch"):
            if getattr(self, key) < 1:
                raise InputError(f"system.{key}: expected at least 1, got {getattr(self, key)}")
