"""Optimisers and learning rates that radiance fields share; rates go by epochs."""

from collections.abc import Iterable
from dataclasses import dataclass

from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import SGD, Adam, Optimizer, RAdam
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, PolynomialLR, SequentialLR

from npbgpp.errors import InputError

OPTIMIZERS = ("adam", "sgd", "radam", "ranger")
SCHEDULES = ("steplr", "cosine", "poly", "constant")


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
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


def optimisers(settings: OptimiserSettings, parameters: Iterable[nn.Parameter], epochs: int) -> OptimizerLRScheduler:
    """What ``configure_optimizers`` of Lightning returns: one optimiser, and its schedule over ``epochs`` unless the rate is constant."""
    optimizer = optimiser_of(settings, parameters)
    schedule = schedule_of(settings, optimizer, epochs)
    if schedule is None:
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def optimiser_of(settings: OptimiserSettings, parameters: Iterable[nn.Parameter]) -> Optimizer:
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


def schedule_of(settings: OptimiserSettings, optimizer: Optimizer, epochs: int) -> LRScheduler | None:
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
