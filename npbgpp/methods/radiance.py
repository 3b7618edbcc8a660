"""Radiance fields of one scene: settings, optimizer and schedule, and the base class of their methods."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RAdam
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, PolynomialLR, SequentialLR

from npbgpp.errors import InputError
from npbgpp.methods.base import DataNeeds, RunContext, System, SystemSettings


@dataclass(frozen=True, kw_only=True)
class RadianceSettings(SystemSettings):
    """Keys of ``conf/system/_radiance_field.yaml``; their defaults and meaning are there."""

    world_viewdirs: bool
    chunk: int
    optimizer: Literal["adam", "sgd", "radam", "ranger"]
    lr: float
    momentum: float
    weight_decay: float
    lr_schedule: Literal["steplr", "cosine", "poly", "constant"]
    decay_step: tuple[int, ...]
    decay_gamma: float
    poly_exp: float
    warmup_epochs: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(chunk=1, warmup_epochs=0)
        if not self.lr > 0:
            raise InputError(f"system.lr: expected a positive rate, got {self.lr}")


def optimizer_and_schedule(settings: RadianceSettings, parameters: Iterable[nn.Parameter], epochs: int) -> OptimizerLRScheduler:
    """The return value of ``configure_optimizers``: one optimizer, and its schedule over ``epochs`` unless the rate is constant."""
    optimizer = build_optimizer(settings, parameters)
    schedule = build_schedule(settings, optimizer, epochs)
    if schedule is None:
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def build_optimizer(settings: RadianceSettings, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer chosen by ``settings.optimizer``."""
    lr, decay = settings.lr, settings.weight_decay
    if settings.optimizer == "sgd":
        return SGD(parameters, lr=lr, momentum=settings.momentum, weight_decay=decay)
    if settings.optimizer == "adam":
        return Adam(parameters, lr=lr, weight_decay=decay)
    if settings.optimizer == "radam":
        return RAdam(parameters, lr=lr, weight_decay=decay, decoupled_weight_decay=True)
    from timm.optim import Lookahead  # slow to import

    # Ranger: RAdam with Lookahead (Wright, 2019)
    return Lookahead(RAdam(parameters, lr=lr, betas=(0.95, 0.999), weight_decay=decay, decoupled_weight_decay=True), alpha=0.5, k=6)


def build_schedule(settings: RadianceSettings, optimizer: Optimizer, epochs: int) -> LRScheduler | None:
    """The schedule chosen by ``settings.lr_schedule``, after a warm-up if one is requested; None for a constant rate."""
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


class RadianceSystem(System):
    """A radiance field of one scene, trained by one optimizer.

    Args:
        settings: keys of the config.
        context: the run; it must have one scene.
    """

    unit = "rays"
    renders_pixels_alone = True
    display_keys = (*System.display_keys, "chunk")
    field: nn.Module

    @classmethod
    def data_needs(cls, settings: RadianceSettings) -> DataNeeds:
        return DataNeeds(needs_cloud=False, ray_batches=True)

    def __init__(self, settings: RadianceSettings, context: RunContext) -> None:
        super().__init__(settings, context)
        if len(self.scenes) != 1:
            raise InputError(
                f"system={type(self).__name__.lower()}: a field is one scene, got {len(self.scenes)} ({', '.join(list(self.scenes)[:5])}); choose one with "
                "datasets.scene_name"
            )
        (self.scene,) = self.scenes.values()

    def log_rays(self, loss: Float[Tensor, ""], squared_error: Float[Tensor, ""], rays: int) -> None:
        """Logs loss, PSNR of the mean squared error of colours, and throughput of a batch."""
        self.log("loss", loss.detach(), prog_bar=True, batch_size=rays)
        self.log("psnr", -10 * torch.log10(squared_error.detach().clamp_min(1e-10)), prog_bar=True, batch_size=rays)
        self.log_throughput(rays, rays)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer for the whole field; its schedule counts epochs."""
        epochs = self.trainer.max_epochs
        if (epochs is None or epochs < 0) and self.settings.lr_schedule in ("cosine", "poly"):
            raise InputError(
                f"system.lr_schedule={self.settings.lr_schedule}: the rate falls until the last epoch, and trainer.max_epochs={epochs} has none; set "
                "trainer.max_epochs, or system.lr_schedule=constant"
            )
        return optimizer_and_schedule(self.settings, self.field.parameters(), epochs or 1)
