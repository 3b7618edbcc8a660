"""Runs that are told to stop: they save at the end of the step, and say with their exit code that they can go on."""

import logging
import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from npbgpp.errors import InputError

log = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h, "try again later". 143, which a process that died of SIGTERM shows, would not tell whether anything was saved.
EXIT_CODE = 75


class Preemption(Callback):
    """Saves ``last.ckpt`` when training is told to stop with SIGTERM, and ends the program with ``EXIT_CODE``.

    The signal is only noted when it comes. At the end of every optimiser step the processes of a run ask each other whether one of them was told, and then
    all stop there: signals come to them at different batches, or to one alone, and none may wait for another that has left. Nothing is saved within a step,
    so that no accumulated gradients are lost. One process also leaves validation between two views; several finish it, as they have unequally many. A second
    signal, which a cluster sends some time before it ends a job, does the same and has the job queued again.

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
        self._told = False  # this process
        self._agreed = False  # all processes know
        self._steps_before = 0  # the batch
        self._within_step = False
        self._started_by_another = False
        self._earlier: Any = None  # who handled the signal before: the launcher of a sweep, which queues its job again itself

    # ----------------------------------------------------------------- signals
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the place of Lightning's own handler, which lets processes wait for each other wherever the signal finds them."""
        environment = trainer.strategy.cluster_environment if isinstance(trainer.strategy, ParallelStrategy) else None
        self._started_by_another = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0

        def told(number: int, frame: FrameType | None) -> None:
            self._told = True
            fitting = trainer.state.fn == TrainerFn.FITTING
            if trainer.world_size == 1:
                leaves = not fitting or (trainer.validating and not self._within_step)
                trainer._signal_connector.received_sigterm |= leaves
            elif not fitting:  # there is nothing to save
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if trainer.strategy.launcher is not None:
                    trainer.strategy.launcher.kill(signal.SIGTERM)
                raise SIGTERMException

        trainer._signal_connector._sigterm_notifier_fn = told  # type: ignore[method-assign, assignment]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens to the second signal."""
        if self.requeue_signal is not None and threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(self.requeue_signal, self._stop)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What comes after training is short, and is not queued again."""
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        if self.requeue_signal is not None and self._earlier is not None:
            signal.signal(self.requeue_signal, self._earlier)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._requeue = True
        signal.raise_signal(signal.SIGTERM)  # from here on the same

    # --------------------------------------------------------------- agreement
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remembers where the batch begins."""
        self._steps_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Asks at the end of a step, or of an epoch, whose last step may still be open: Lightning then ends the epoch before it stops."""
        self._within_step = trainer.global_step == self._steps_before
        if not self._within_step or trainer.is_last_batch:
            self._agree(trainer)
            trainer._signal_connector.received_sigterm = self._agreed

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nobody waits for a validation that comes after the last step, unless the step is not complete before the epoch is."""
        if self._agreed and not self._within_step:
            raise SIGTERMException
        trainer._signal_connector.received_sigterm = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on Lightning may stop again."""
        trainer._signal_connector.received_sigterm = self._agreed

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the last time, about what came after the last step."""
        self._agree(trainer)
        if self._agreed:
            raise SIGTERMException

    def _agree(self, trainer: Trainer) -> None:
        """Whether any process was told; every process must ask."""
        self._agreed = trainer.strategy.reduce_boolean_decision(self._told, all=False)
        if self._agreed:
            self._requeue = trainer.strategy.reduce_boolean_decision(self._requeue, all=False)

    # --------------------------------------------------------------------- end
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called by Lightning where it stops."""
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.folder is not None:
            path = self.folder / "last.ckpt"
            trainer.save_checkpoint(path)
            self.saved = True
            if trainer.is_global_zero:
                log.info("told to stop: saved %s after %d steps; go on with resume=auto", path, trainer.global_step)
        self._listen_no_more()
        if self._requeue:
            if callable(self._earlier):
                self._earlier(self.requeue_signal, None)
            else:
                _requeue_job()

    def exit_code(self) -> int:
        """Of a run that was told to stop: ``EXIT_CODE`` when it can go on, else that of a process that SIGTERM ended.

        Of processes that another one has started 0: it would kill all, itself among them, for any other number, and its own code is the one that is seen.
        """
        if self._started_by_another:
            return 0
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
