"""Runs that are told to stop: they save at the next batch border, and say with their exit code that they can go on."""

import logging
import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from npbgpp.errors import InputError

log = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h, "try again later". 143, which a process that died of SIGTERM shows, would not tell whether anything was saved.
EXIT_CODE = 75


class Preemption(Callback):
    """Saves ``last.ckpt`` when training is told to stop with SIGTERM, and ends the program with ``EXIT_CODE``.

    Lightning notes the signal and stops all processes at the next border between batches; nothing is saved in the middle of a step. A second signal, which
    a cluster sends some time before it ends a job, does the same and has the job queued again.

    Args:
        folder: where ``last.ckpt`` is written; None saves nothing.
        requeue_signal: name of that second signal, such as SIGUSR1; None for none.

    Raises:
        InputError: no signal of that name.
    """

    def __init__(self, folder: Path | None, requeue_signal: str | None = None) -> None:
        if requeue_signal is not None and not hasattr(signal, requeue_signal):
            raise InputError(f"trainer.requeue_signal: expected the name of a signal such as SIGUSR1, or null, got {requeue_signal}")
        self.folder = folder
        self.requeue_signal: signal.Signals | None = None if requeue_signal is None else getattr(signal, requeue_signal)
        self.saved = self._requeue = False
        self._earlier: Any = None  # who handled the signal before: the launcher of a sweep, which queues its job again itself

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens to the second signal."""
        if self.requeue_signal is not None and threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(self.requeue_signal, self._stop)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What comes after training is short, and is not interrupted."""
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        if self.requeue_signal is not None and self._earlier is not None:
            signal.signal(self.requeue_signal, self._earlier)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._requeue = True
        signal.raise_signal(signal.SIGTERM)  # from here on as Lightning does

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called by Lightning between two batches."""
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.folder is not None:
            path = self.folder / "last.ckpt"
            trainer.save_checkpoint(path)
            self.saved = True
            log.info("told to stop: saved %s after %d steps; go on with resume=auto", path, trainer.global_step)
        self._listen_no_more()
        if self._requeue:
            if callable(self._earlier):
                self._earlier(self.requeue_signal, None)
            else:
                _requeue_job()

    def exit_code(self) -> int:
        """Of a run that was told to stop: ``EXIT_CODE`` when it can go on, else that of a process that SIGTERM ended."""
        return EXIT_CODE if self.saved else 128 + signal.SIGTERM


@rank_zero_only
def _requeue_job() -> None:
    """Has SLURM run this job again."""
    job = os.environ.get("SLURM_JOB_ID")
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        log.warning("told to queue this job again, but SLURM_JOB_ID says that there is none; start the run again by hand")
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.error("scontrol requeue %s could not be run (%s); start the run again by hand", job, error)
        return
    if done.returncode == 0:
        log.info("job %s is queued again", job)
    else:
        log.error("scontrol requeue %s failed: %s; start the run again by hand", job, done.stderr.strip())
