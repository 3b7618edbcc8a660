"""Fewer threads where other processes use the machine."""

import logging
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)

_PROC = Path("/proc")


class CpuShare(Callback):
    """Sets the number of PyTorch threads to the number of cores that other processes leave free, at most the number at the start.

    PyTorch divides every operation among its threads and waits for the slowest one. Where another process takes a core, a thread waits for it at every
    operation, and a run gets a tenth of its speed; with one thread less it gets its fair share. Every ``seconds`` the load of the machine is
    read from ``/proc/stat`` (Linux; elsewhere nothing changes), without the share of this process and its data loader workers.

    The last bits of sums depend on the number of threads. The number stays as it is with ``trainer.deterministic=true``, on GPUs, and where the user has set
    it (``OMP_NUM_THREADS``).

    Args:
        seconds: time between two readings of the load.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self._threads = 0  # 0: leave as it is
        self._last = (0.0, 0.0, 0.0)  # time, busy seconds of all cores, of this process

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decides whether the number of threads may change."""
        fixed = "OMP_NUM_THREADS" in os.environ or torch.are_deterministic_algorithms_enabled()
        on_cpu = trainer.strategy.root_device.type == "cpu"
        threads = torch.get_num_threads()
        if self._threads or fixed or not on_cpu or threads < 2 or not (_PROC / "stat").is_file():
            return
        self._threads = threads
        self._last = _now()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores the number of threads."""
        if self._threads:
            torch.set_num_threads(self._threads)
            self._threads = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._adapt()

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._adapt()

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._adapt()

    def _adapt(self) -> None:
        if not self._threads or time.monotonic() - self._last[0] < self.seconds:
            return
        now = _now()
        passed, busy, own = (after - before for after, before in zip(now, self._last, strict=True))
        self._last = now
        free = len(os.sched_getaffinity(0)) - max(0.0, busy - own) / passed
        threads = threads_for(free, self._threads)
        if threads != torch.get_num_threads():
            log.debug("other processes leave %.1f cores free: %d of %d threads are used", free, threads, self._threads)
            torch.set_num_threads(threads)


def threads_for(free_cores: float, most: int) -> int:
    """Threads for a number of cores that are free on average: rounded, between 1 and ``most``."""
    return max(1, min(most, int(free_cores + 0.5)))


def _now() -> tuple[float, float, float]:
    """Time, and CPU seconds of the machine and of this process with its workers, since their start."""
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq = map(int, (_PROC / "stat").read_text().split(maxsplit=8)[1:8])
    own = time.process_time()
    for child in multiprocessing.active_children():
        try:
            fields = (_PROC / str(child.pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        own += (int(fields[11]) + int(fields[12])) / ticks
    return time.monotonic(), (user + nice + system + irq + softirq) / ticks, own
