"""Keys that the configs of radiance fields share."""

from dataclasses import dataclass

from npbgpp.errors import InputError
from npbgpp.systems.optimisers import OptimiserSettings


@dataclass(frozen=True, kw_only=True)
class FieldSettings(OptimiserSettings):
    """Their meaning stands in ``conf/system/_radiance_field.yaml`` and the configs of the systems."""

    system_class: str
    world_viewdirs: bool = True
    chunk: int = 32768
    save_rendered_eval_images: bool = True
    lpips_weights: str | None = None
    postprocessing_transform: str | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None

    max_scenes_per_train_epoch = 1  # a field is one scene

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(chunk=1, accumulate_grad_batches=1)
        if self.postprocessing_transform not in (None, "rotate_90_ccw"):
            raise InputError(f"system.postprocessing_transform: expected null or rotate_90_ccw, got {self.postprocessing_transform}")

    def require_at_least(self, **least: int) -> None:
        """Raises InputError for a key that is smaller than named here."""
        for key, smallest in least.items():
            if getattr(self, key) < smallest:
                raise InputError(f"system.{key}: expected at least {smallest}, got {getattr(self, key)}")
