"""What the systems share that fit one field to one scene, ray by ray."""

import time
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.metrics import ImageMetrics
from npbgpp.systems.base import System
from npbgpp.systems.field_settings import FieldSettings
from npbgpp.systems.optimisers import optimisers

Settings = TypeVar("Settings", bound=FieldSettings)


class FieldSystem(System, Generic[Settings]):
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
