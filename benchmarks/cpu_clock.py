"""Callback of ``budgets.py``: CPU seconds of training, without start-up and evaluation."""

import json
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class CpuClock(Callback):
    """Writes ``cpu_clock.json`` with the CPU seconds between the first and the last training batch, and their number.

    Args:
        file: path to write to.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self._start = 0.0
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batches += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = time.process_time() - self._start
        self.file.write_text(json.dumps({"cpu_seconds": seconds, "batches": self._batches}))
