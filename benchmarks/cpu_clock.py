"""Callback of the benchmarks of training: CPU and wall seconds, without start-up and evaluation."""

import json
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class CpuClock(Callback):
    """Writes the CPU and wall seconds from the start to the end of training, and the number of batches, as JSON.

    Args:
        file: path to write to.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self._start = (0.0, 0.0)
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = (time.process_time(), time.monotonic())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batches += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        cpu, wall = (now - before for now, before in zip((time.process_time(), time.monotonic()), self._start, strict=True))
        self.file.write_text(json.dumps({"cpu_seconds": cpu, "wall_seconds": wall, "batches": self._batches}))
