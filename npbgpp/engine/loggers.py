"""Loggers of a run: one that can no longer write is given up, and the run continues; at the end all are closed."""

import contextlib
import functools
import logging
from collections.abc import Sequence
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger

log = logging.getLogger(__name__)


def guard(logger: Logger) -> Logger:
    """Lets a logger fail once for lack of disk space or a missing folder; its methods then do nothing.

    Curves are not worth ending a run for. Checkpoints and scores are: they are not written by loggers.
    """
    attempts = _Attempts(logger)
    for name in ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint"):
        setattr(logger, name, functools.partial(attempts.call, name))
    return logger


class _Attempts:
    """Calls methods of a logger until the operating system refuses one. (Not a closure, so that loggers can be pickled.)"""

    def __init__(self, logger: Logger) -> None:
        self.logger, self.failed = logger, False

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.failed:
            return None
        try:
            return getattr(type(self.logger), name)(self.logger, *args, **kwargs)
        except Exception as error:
            cause = _system_error(error)
            if cause is None:
                raise
            self.failed = True
            log.error(
                "%s cannot write any more (%s): training continues without it; what it has written so far is in %s",
                type(self.logger).__name__,
                cause,
                self.logger.save_dir,
            )
            return None


def started(loggers: Sequence[Logger]) -> list[Logger]:
    """The loggers without those of W&B that cannot start, because nobody is logged in or the server cannot be reached."""
    kept = []
    for logger in loggers:
        try:
            if isinstance(logger, WandbLogger):
                logger.experiment  # noqa: B018 - starts its run
            kept.append(logger)
        except Exception as error:  # wandb has classes of its own for every cause
            reason = " ".join(str(error).split())
            log.error(
                "loggers=[wandb]: W&B cannot start (%s); training continues without it: run wandb login before, or set WANDB_MODE=offline",
                reason[:300],
            )
    return kept


def _system_error(error: BaseException | None) -> OSError | None:
    """The error of the operating system behind an exception: Lightning's TensorBoard logger wraps it in a ValueError."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def close_loggers(loggers: Sequence[Logger]) -> None:
    """Finishes W&B runs. Otherwise one would last as long as the process, and receive the next run of a sweep."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            with contextlib.suppress(OSError):
                logger.experiment.finish()
