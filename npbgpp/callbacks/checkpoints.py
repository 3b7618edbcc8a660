"""Checkpoints within an epoch."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from npbgpp.errors import InputError


class StepCheckpoint(Checkpoint):
    """Saves ``last.ckpt`` at regular numbers of steps, so that a killed run loses no more than these.

    Args:
        folder: folder of the checkpoints.
        every_n_steps: optimizer steps; None saves at the end of epochs only.

    Raises:
        InputError: not a positive number of steps.
    """

    def __init__(self, folder: str, every_n_steps: int | None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise InputError(f"callbacks.fit.during_epoch.every_n_steps: expected at least 1, or null, got {every_n_steps}")
        self.path, self.every_n_steps = Path(folder) / "last.ckpt", every_n_steps
        self._saved_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves after a step, never between its batches. The last batch of an epoch is followed by the checkpoint of the epoch."""
        step, last_batch = trainer.global_step, batch_idx + 1 >= trainer.num_training_batches
        if self.every_n_steps is not None and step != self._saved_at and step % self.every_n_steps == 0 and not last_batch:
            self._saved_at = step
            trainer.save_checkpoint(self.path)
