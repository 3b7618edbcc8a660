"""Settings of NPCR: the schema of ``conf/system/npcr.yaml``."""

from dataclasses import dataclass, fields

from npbgpp.errors import InputError
from npbgpp.render.peeling import MOST_LAYERS


@dataclass(frozen=True)
class RGBALosses:
    """Factors of the terms of the loss; a factor of 0 switches a term off."""

    rgba_mse: float = 1.0
    rgba_l1: float = 0.0
    ssim: float = 0.0
    perceptual: float = 1.0


@dataclass(frozen=True)
class NPCRRates:
    """Initial learning rates of Adam."""

    network: float = 5e-5
    descriptors: float = 5e-5


@dataclass(frozen=True, kw_only=True)
class NPCRSettings:
    """Keys of ``conf/system/npcr.yaml`` apart from the network; their meaning stands there."""

    system_class: str
    descriptor_dim: int = 32
    use_rgb: bool = False
    layers: int | dict[str, int] = 1
    near: float | None = None
    far: float | None = None
    max_splat: float = 1.0
    depth_threshold: float = 10.0
    background: tuple[float, float, float] = (60 / 255, 60 / 255, 60 / 255)
    photo_background: tuple[float, float, float] | None = None
    loss_region: str = "all"
    losses: RGBALosses = RGBALosses()
    learning_rates: NPCRRates = NPCRRates()
    weight_decay: float = 2e-5
    warmup_epochs: int = 20
    norms_learn_for: float = 0.5
    lr_schedule: str = "constant"
    colour_threshold: float = 8000.0
    refine_weights: tuple[float, float, float, float] = (0.5, 0.5, 0.25, 0.75)
    history_weights: tuple[float, float, float, float, float, float, float] = (0.25, 0.2, 0.2, 0.15, 0.1, 0.08, 0.02)
    max_points: int | None = None
    descriptors_pretrained_dir: str | None = None
    descriptors_save_dir: str | None = None
    overwrite_descriptors: bool = False
    max_scenes_per_train_epoch: int = 4
    save_rendered_eval_images: bool = True
    vgg_weights: str | None = None
    lpips_weights: str | None = None
    postprocessing_transform: str | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None

    def __post_init__(self) -> None:
        self._check_layers()
        if self.near is not None and self.far is not None and not self.near < self.far:
            raise InputError(
                f"system.near, system.far: expected near < far, got {self.near:g} and {self.far:g}; points shrink from near to far"
            )
        for key in ("max_splat", "weight_decay", "warmup_epochs", "colour_threshold", "depth_threshold"):
            if not getattr(self, key) >= 0:
                raise InputError(f"system.{key}: expected 0 or more, got {getattr(self, key)}")
        if not 0 <= self.norms_learn_for <= 1:
            raise InputError(f"system.norms_learn_for: expected a share of the run, 0 to 1, got {self.norms_learn_for:g}")
        for key in ("descriptor_dim", "accumulate_grad_batches", "max_scenes_per_train_epoch"):
            if getattr(self, key) < 1:
                raise InputError(f"system.{key}: expected at least 1, got {getattr(self, key)}")
        for key, known in (
            ("lr_schedule", ("constant", "cosine")),
            ("loss_region", ("all", "seen")),
            ("postprocessing_transform", (None, "rotate_90_ccw")),
        ):
            if getattr(self, key) not in known:
                raise InputError(f"system.{key}: expected one of {', '.join(str(k or 'null') for k in known)}, got {getattr(self, key)}")
        target, blend = self.refine_weights[:2], self.refine_weights[2:]
        for name, weights in (
            ("refine_weights: the first two", target),
            ("refine_weights: the last two", blend),
            ("history_weights", self.history_weights),
        ):
            if min(weights) < 0 or abs(sum(weights) - 1) > 1e-4:
                raise InputError(f"system.{name}: expected weights of 0 or more that add up to 1, got {list(weights)}")
        factors = [getattr(self.losses, field.name) for field in fields(self.losses)]
        if min(factors) < 0 or not any(factors):
            raise InputError(f"system.losses: expected factors of 0 or more, at least one of them positive, got {self.losses}")

    def _check_layers(self) -> None:
        """Layers of a schedule are keyed by the epoch from which on they are drawn; one begins with epoch 0."""
        schedule = self.layers if isinstance(self.layers, dict) else {"0": self.layers}
        if "0" not in schedule or not all(epoch.isdecimal() for epoch in schedule):
            raise InputError(
                f"system.layers: expected a number, or numbers by the epoch they begin with, the first of them 0 (such as {{0: 1, 20: 4}}), got {self.layers}"
            )
        for count in schedule.values():
            if not 1 <= count <= MOST_LAYERS:
                raise InputError(f"system.layers: expected 1 to {MOST_LAYERS} layers, got {count}")

    def layers_at(self, epoch: int) -> int:
        """Layers that are drawn in an epoch of the training."""
        if isinstance(self.layers, int):
            return self.layers
        return self.layers[str(max(begin for begin in map(int, self.layers) if begin <= epoch))]

    @property
    def most_layers(self) -> int:
        """The largest number of layers of the schedule."""
        return self.layers if isinstance(self.layers, int) else max(self.layers.values())
