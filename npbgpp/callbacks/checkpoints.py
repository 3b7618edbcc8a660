"""When a training saves: at regular numbers of steps, and before it is stopped by SIGTERM, Ctrl-C or SLURM."""

import logging
import multiprocessing
import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

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


# ----------------------------------------------------------------------
# SIGTERM, Ctrl-C and SLURM preemption: checkpoint after the current step, then exit with code 75, or 130 for Ctrl-C


log = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h, "try again later". 143, the code of a process that SIGTERM killed, does not say that a checkpoint was saved.
EXIT_CODE = 75
INTERRUPTED = 128 + signal.SIGINT  # what shells report for a process that Ctrl-C ended


class Preemption(Checkpoint):
    """Saves ``last.ckpt`` when training receives SIGTERM, or SIGINT from Ctrl-C; a second SIGINT ends the process at once.

    The handler only sets a flag. After every optimizer step the processes of a run agree whether one of them has received the signal, since it reaches them
    at different batches, or one alone; then all save and stop. No checkpoint is written between the batches of a step: accumulated gradients are not saved.
    After the last step of an epoch, validation is skipped. A single process also leaves a running validation.

    A ``Checkpoint``, so that Lightning calls it after all other callbacks, whose states are part of the checkpoint.

    Args:
        folder: folder of ``last.ckpt``; None saves nothing.
        requeue_signal: name of a second signal, such as SIGUSR1, that a cluster sends some time before it ends a job: handled as SIGTERM, and the job is
            requeued. None for none.

    Raises:
        InputError: no signal of that name.
    """

    def __init__(self, folder: Path | None, requeue_signal: str | None = None) -> None:
        if requeue_signal is not None and not hasattr(signal, requeue_signal):
            raise InputError(f"trainer.requeue_signal: expected the name of a signal such as SIGUSR1, or null, got {requeue_signal}")
        self.folder, self.requeue_signal = folder, requeue_signal
        self.saved = self._received = self._requeue = self._interrupted = False  # of this process
        self._agreed = False  # of all processes
        self._mid_step = False
        self._steps_before = 0
        self._is_child = False
        self._previous_handler: Any = None  # of the launcher of a sweep, which requeues its job itself
        self._handler_before: Any = None  # of SIGINT, outside of the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Installs the handler of Ctrl-C that Lightning restores when it has stopped: until ``close``, another one ends the process at once."""
        before: Any = signal.getsignal(signal.SIGINT)
        if self._handler_before is not None or not callable(before) or threading.current_thread() is not threading.main_thread():
            return

        def interrupt(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                _end_at_once(trainer)
            before(number, frame)

        self._handler_before = before
        signal.signal(signal.SIGINT, interrupt)

    def close(self) -> None:
        """Restores the handler of Ctrl-C; an interrupted process has only to end and ignores it, since Python cannot handle signals while it ends."""
        if self._handler_before is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN if self._interrupted else self._handler_before)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces Lightning's handler, which starts a collective operation wherever the signal arrives. Lightning restores the handlers at the end."""

        def receive(number: int, frame: FrameType | None) -> None:
            self._received = True
            self._requeue |= number != signal.SIGTERM

        def interrupt(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                _end_at_once(trainer)
            self._received = self._interrupted = True
            if not self._is_child:
                log.info("interrupted: stopping after this step; press Ctrl-C again to stop at once, without a checkpoint")

        environment = trainer.strategy.cluster_environment if isinstance(trainer.strategy, ParallelStrategy) else None
        self._is_child = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        if threading.current_thread() is not threading.main_thread():  # where Python does not allow handlers
            return
        signal.signal(signal.SIGTERM, receive)
        signal.signal(signal.SIGINT, interrupt)
        if self.requeue_signal is not None:
            self._previous_handler = signal.signal(getattr(signal, self.requeue_signal), receive)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An evaluation has nothing to save and ends at once, with the processes that it started."""

        def end(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, lambda *_: _end_at_once(trainer))
            self._interrupted = number == signal.SIGINT
            if self._interrupted:
                log.info("interrupted: the evaluation is not finished")
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGTERM)
            raise SIGTERMException

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, end)
            signal.signal(signal.SIGINT, end)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._steps_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stops after a step. After the last batch of an epoch, its end follows first: a system may finish its last step there."""
        self._mid_step = trainer.global_step == self._steps_before
        last_batch = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if not self._mid_step or last_batch:
            self._agree(trainer)
            if self._agreed and not last_batch:
                raise SIGTERMException
            stops = trainer.global_step == trainer.max_steps or (trainer.should_stop and trainer.fit_loop._can_stop_early)
            if stops and not trainer.is_last_batch and self.folder is not None:
                self._save_in_epoch(trainer, self.folder)

    @staticmethod
    def _save_in_epoch(trainer: Trainer, folder: Path) -> None:
        """Saves the state within an epoch, so that a run that goes on takes the remaining batches of the epoch."""
        checkpoints: Any = trainer.strategy.checkpoint_io
        with checkpoints.stopping_in_epoch():
            trainer.save_checkpoint(folder / "last.ckpt")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._agreed and not self._mid_step:
            raise SIGTERMException

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Several processes cannot leave here: they have unequal numbers of views."""
        if self._received and trainer.world_size == 1 and not self._mid_step:
            raise SIGTERMException

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agree(trainer)
        if self._agreed:
            raise SIGTERMException

    def _agree(self, trainer: Trainer) -> None:
        """Collective: every process must call it."""
        self._agreed = trainer.strategy.reduce_boolean_decision(self._received, all=False)
        if self._agreed:
            self._requeue = trainer.strategy.reduce_boolean_decision(self._requeue, all=False)
            self._interrupted = trainer.strategy.reduce_boolean_decision(self._interrupted, all=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves the checkpoint and requeues the job."""
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.folder is not None:
            path = self.folder / "last.ckpt"
            trainer.save_checkpoint(path)
            self.saved = True
            if trainer.is_global_zero:
                log.info("received a signal to stop: saved %s after %d steps; continue with resume=auto", path, trainer.global_step)
        elif trainer.is_global_zero:
            log.info("received a signal to stop: no checkpoint was saved (trainer.enable_checkpointing=false)")
        if self._requeue:
            if callable(self._previous_handler):
                self._previous_handler(getattr(signal, self.requeue_signal or ""), None)
            else:
                _requeue_job()

    def exit_code(self) -> int:
        """Exit code of a run that was stopped: ``INTERRUPTED`` by Ctrl-C, ``EXIT_CODE`` with a checkpoint, else that of a process killed by SIGTERM.

        0 for processes that Lightning started: for any other code the first process kills all, itself among them, and its own code is the one that is seen.
        """
        if self._is_child:
            return 0
        if self._interrupted:
            return INTERRUPTED
        return EXIT_CODE if self.saved else 128 + signal.SIGTERM


def _end_at_once(trainer: Trainer) -> None:
    """Ends this process and those that it started, without writing anything.

    The workers of its loaders first: one that loses its parent while it hands over a batch prints a traceback, or waits for a reader for ever.
    """
    for worker in multiprocessing.active_children():
        worker.kill()
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)
    os._exit(INTERRUPTED)


@rank_zero_only
def _requeue_job() -> None:
    """Requeues the SLURM job of this process."""
    job = os.environ.get("SLURM_JOB_ID")
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        log.warning("cannot requeue: SLURM_JOB_ID is not set; start the run again by hand")
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.error("scontrol requeue %s could not be run (%s); start the run again by hand", job, error)
        return
    if done.returncode == 0:
        log.info("job %s is requeued", job)
    else:
        log.error("scontrol requeue %s failed: %s; start the run again by hand", job, done.stderr.strip())
