"""How long training waits for its photos."""

import logging
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)

_MANY = 0.1  # of the time: from here on it is worth an advice


class DataWait(Callback):
    """Says after every training epoch how many photos per second were used and how much of the time was spent waiting for them.

    Attributes:
        waited: seconds between batches in the current epoch, the first batch left out: its time is that of starting the loader's processes.
        seconds: from the first batch on.
        photos: target views of these batches.
    """

    def __init__(self) -> None:
        self.waited = self.seconds = 0.0
        self.photos = 0
        self._first = self._ended = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self.waited = self.seconds = self._first = self._ended = 0.0
        self.photos = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Adds the time since the last batch."""
        now = time.monotonic()
        if self._ended:
            self.waited += now - self._ended
        else:
            self._first = now

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts the batch."""
        self._ended = time.monotonic()
        self.seconds = self._ended - self._first
        self.photos += len(batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the line."""
        if not self.seconds:
            return
        advice = ""
        if self.waited > _MANY * self.seconds:
            advice = "; more dataloader.train.num_workers or datasets.cache_memory_gb would help"
        log.info(
            "epoch %d: %d photos, %.3g per second; waited %.1f of %.1f s for them%s",
            trainer.current_epoch,
            self.photos,
            self.photos / self.seconds,
            self.waited,
            self.seconds,
            advice,
        )
