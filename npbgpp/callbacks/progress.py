"""Progress with the figures that matter: loss, PSNR so far, points per second, time left; a bar on a terminal, lines in a log."""

import logging
import sys
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme

log = logging.getLogger(__name__)


class ProgressLines(Callback):
    """One line in the log every few seconds, for runs without a terminal.

    Args:
        seconds: time between lines.
    """

    def __init__(self, seconds: float = 20.0) -> None:
        self.seconds = seconds
        self._start = self._last = 0.0
        self._batches = 0
        self._points = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start = self._last = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts a batch, and writes a line when it is time."""
        metrics = trainer.callback_metrics
        self._batches += 1
        self._points += float(metrics.get("points", torch.tensor(0.0)))
        now = time.monotonic()
        if now - self._last < self.seconds:
            return
        total = total_batches(trainer)
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        rate = self._batches / (now - self._last)
        left = _clock((total - done) / rate) if total else "unknown"
        log.info(
            "epoch %d, batch %d of %s: loss %.4g, PSNR %.2f dB, %.3g points/s, %.2f batches/s, time left %s",
            trainer.current_epoch,
            done,
            total or "unknown",
            float(metrics.get("loss", torch.tensor(float("nan")))),
            float(metrics.get("psnr", torch.tensor(float("nan")))),
            self._points / (now - self._last),
            rate,
            left,
        )
        self._last, self._batches, self._points = now, 0, 0.0


def total_batches(trainer: Trainer) -> int:
    """Training batches of the whole run, 0 when unknown."""
    batches = trainer.num_training_batches
    by_epochs = trainer.max_epochs * batches if trainer.max_epochs and trainer.max_epochs > 0 else float("inf")
    total = min(by_epochs, trainer.max_steps if trainer.max_steps > 0 else float("inf"))
    return int(total) if total != float("inf") else 0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def progress_callback() -> Callback:
    """A bar on a terminal, lines otherwise."""
    return RichProgressBar(theme=RichProgressBarTheme(metrics_format=".3g")) if sys.stdout.isatty() else ProgressLines()
