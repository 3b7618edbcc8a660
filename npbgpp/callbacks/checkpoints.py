"""Checkpoints in the middle of an epoch."""

from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from npbgpp.errors import InputError


class StepCheckpoint(Callback):
    """Saves ``last.ckpt`` every so many steps, so that a run that is killed loses no more than these.

    Args:
        folder: where checkpoints lie.
        every_n_steps: steps of the optimiser; None saves at the end of epochs only.
    """

    def __init__(self, folder: str, every_n_steps: int | None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise InputError(f"callbacks.fit.during_epoch.every_n_steps: expected at least 1, or null, got {every_n_steps}")
        self.path, self.every_n_steps = Path(folder) / "last.ckpt", every_n_steps
        self._saved_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run has its checkpoint already."""
        self._saved_at = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves when it is time. Between the batches of one step it is not, and the last batch of an epoch is followed by its own checkpoint."""
        step = trainer.global_step
        if (
            self.every_n_steps is None
            or step == self._saved_at
            or step % self.every_n_steps
            or batch_idx + 1 >= trainer.num_training_batches
        ):
            return
        self._saved_at = step
        trainer.save_checkpoint(self.path)
