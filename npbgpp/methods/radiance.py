"""Optimisers and learning rates that radiance fields share; rates go by epochs."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RAdam
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, PolynomialLR, SequentialLR

from npbgpp.data import Scene
from npbgpp.errors import InputError
from npbgpp.methods.base import System
from npbgpp.metrics import ImageMetrics

OPTIMIZERS = ("adam", "sgd", "radam", "ranger")
SCHEDULES = ("steplr", "cosine", "poly", "constant")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Keys of a system about its one optimiser; their meaning stands in ``conf/system/nerf.yaml``."""

    optimizer: str = "adam"
    lr: float = 5e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_schedule: str = "steplr"
    decay_step: tuple[int, ...] = (20,)
    decay_gamma: float = 0.1
    poly_exp: float = 0.9
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        for key, known in (("optimizer", OPTIMIZERS), ("lr_schedule", SCHEDULES)):
            if getattr(self, key) not in known:
                raise InputError(f"system.{key}: expected one of {', '.join(known)}, got {getattr(self, key)}")
        if self.warmup_epochs < 0:
            raise InputError(f"system.warmup_epochs: expected at least 0, got {self.warmup_epochs}")
        if not self.lr > 0:
            raise InputError(f"system.lr: expected a positive rate, got {self.lr}")


def optimisers(settings: OptimizerSettings, parameters: Iterable[nn.Parameter], epochs: int) -> OptimizerLRScheduler:
    """What ``configure_optimizers`` of Lightning returns: one optimiser, and its schedule over ``epochs`` unless the rate is constant."""
    optimizer = optimiser_of(settings, parameters)
    schedule = schedule_of(settings, optimizer, epochs)
    if schedule is None:
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def optimiser_of(settings: OptimizerSettings, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimiser that is named."""
    lr, decay = settings.lr, settings.weight_decay
    if settings.optimizer == "sgd":
        return SGD(parameters, lr=lr, momentum=settings.momentum, weight_decay=decay)
    if settings.optimizer == "adam":
        return Adam(parameters, lr=lr, weight_decay=decay)
    if settings.optimizer == "radam":
        return RAdam(parameters, lr=lr, weight_decay=decay, decoupled_weight_decay=True)
    from timm.optim import Lookahead  # takes a second or more to import, and nothing else here needs it

    # Ranger: RAdam with Lookahead (Wright, 2019)
    return Lookahead(RAdam(parameters, lr=lr, betas=(0.95, 0.999), weight_decay=decay, decoupled_weight_decay=True), alpha=0.5, k=6)


def schedule_of(settings: OptimizerSettings, optimizer: Optimizer, epochs: int) -> LRScheduler | None:
    """The schedule that is named, after a warm-up where one is wanted; None for a constant rate."""
    rest = max(1, epochs - settings.warmup_epochs)
    schedule: LRScheduler | None = None
    if settings.lr_schedule == "steplr":
        schedule = MultiStepLR(optimizer, list(settings.decay_step), settings.decay_gamma)
    elif settings.lr_schedule == "cosine":
        schedule = CosineAnnealingLR(optimizer, rest, eta_min=1e-8)
    elif settings.lr_schedule == "poly":
        schedule = PolynomialLR(optimizer, rest, settings.poly_exp)
    if not settings.warmup_epochs:
        return schedule
    warmup = LinearLR(optimizer, 1 / (settings.warmup_epochs + 1), 1.0, settings.warmup_epochs)
    return warmup if schedule is None else SequentialLR(optimizer, [warmup, schedule], [settings.warmup_epochs])


# ----------------------------------------------------------------------
# Keys that the configs of radiance fields share.


@dataclass(frozen=True, kw_only=True)
class RadianceSettings(OptimizerSettings):
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


# ----------------------------------------------------------------------
# What the systems share that fit one field to one scene, ray by ray.


Settings = TypeVar("Settings", bound=RadianceSettings)


class RadianceSystem(System, Generic[Settings]):
    """A field of one scene, all of whose weights one optimiser steps.

    Args:
        settings: flat keys of the config.
        scenes: the one scene of the run.
        metrics: how views are scored.
    """

    unit = "rays"
    field: nn.Module

    def __init__(self, settings: Settings, scenes: Mapping[str, Scene], metrics: ImageMetrics) -> None:
        super().__init__(scenes, metrics)
        if len(scenes) != 1:
            raise InputError(
                f"system={type(self).__name__.lower()}: a field is one scene, got {len(scenes)} ({', '.join(list(scenes)[:5])}); choose one with "
                "datasets.scene_name"
            )
        (self.scene,) = scenes.values()
        self.settings = settings
        self._last_batch_end: float | None = None

    def check_before_training(self, trained: Sequence[str], validated: Sequence[str]) -> None:
        """See System.check_before_training: all was checked at construction."""

    def start_without_weights(self, evaluate_only: bool) -> None:
        """See System.start_without_weights."""
        if evaluate_only:
            raise InputError(
                "weights_path: expected the checkpoint of a trained field for eval_only=true, got none; the field would be random: name it, for example "
                "weights_path=experiments/<run>/checkpoints/last.ckpt"
            )

    def log_rays(self, loss: Float[Tensor, ""], squared_error: Float[Tensor, ""], rays: int) -> None:
        """Logs the figures of a batch; the error is the mean over its colours."""
        now = time.perf_counter()
        self.log("loss", loss.detach(), prog_bar=True, batch_size=rays)
        self.log("psnr", -10 * torch.log10(squared_error.detach().clamp_min(1e-10)), prog_bar=True, batch_size=rays)
        # tensors of the CPU: plain numbers would be sent to the device, which is waited for
        self.log("points", torch.tensor(float(rays)), logger=False, batch_size=rays)
        if self._last_batch_end is not None:
            self.log("rays_per_s", torch.tensor(rays / (now - self._last_batch_end)), prog_bar=True, batch_size=rays)
        self._last_batch_end = now

    def on_train_epoch_start(self) -> None:
        """Evaluation and saving are not training time."""
        self._last_batch_end = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimiser of the whole field; its schedule goes by epochs."""
        return optimisers(self.settings, self.field.parameters(), self.trainer.max_epochs or 1)
