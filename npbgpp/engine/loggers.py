"""Loggers of a run: one that can no longer write ends, and the run goes on; at the end all are closed."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger, WandbLogger

log = logging.getLogger(__name__)


class GuardedLogger(Logger):
    """Hands everything on to another logger until that one cannot write any more (full disk, folder gone): then it is left alone.

    The curves of a run are not worth the run. Its checkpoints and scores are, and end it with a message when they cannot be written.

    Args:
        inner: the logger.

    Attributes:
        failed: whether it has been given up.
    """

    def __init__(self, inner: Logger) -> None:
        super().__init__()
        self.inner = inner
        self.failed = False

    def _attempt(self, work: Callable[[], Any]) -> Any:
        if self.failed:
            return None
        try:
            return work()
        except Exception as error:
            reason = _system_error(error)
            if reason is None:
                raise
            self.failed = True
            log.error(
                "%s cannot write any more (%s): training goes on without it; what it has written so far stays in %s",
                type(self.inner).__name__,
                reason,
                self.inner.save_dir,
            )
            return None

    @property
    def name(self) -> str | None:
        """Of the logger."""
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        """Of the logger."""
        return self.inner.version

    @property
    def save_dir(self) -> str | None:
        """Of the logger."""
        return self.inner.save_dir

    @property
    def log_dir(self) -> str | None:
        """Of the logger."""
        return self.inner.log_dir

    @property
    def experiment(self) -> Any:
        """What the logger writes with."""
        return getattr(self.inner, "experiment", None)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """See Lightning."""
        self._attempt(lambda: self.inner.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """See Lightning."""
        self._attempt(lambda: self.inner.log_hyperparams(params, *args, **kwargs))

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        """See Lightning."""
        self._attempt(lambda: self.inner.log_graph(*args, **kwargs))

    def save(self) -> None:
        """See Lightning."""
        self._attempt(self.inner.save)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """See Lightning."""
        self._attempt(lambda: self.inner.after_save_checkpoint(checkpoint_callback))

    def finalize(self, status: str) -> None:
        """See Lightning."""
        self._attempt(lambda: self.inner.finalize(status))

    def close(self) -> None:
        """Ends a run of W&B, which would otherwise last as long as the process and take in the next run of a sweep."""
        if isinstance(self.inner, WandbLogger):
            inner = self.inner
            self._attempt(lambda: inner.experiment.finish())


def _system_error(error: BaseException | None) -> OSError | None:
    """What the operating system said, if that is where an error began: the TensorBoard logger of Lightning hides it behind a ValueError."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def close_loggers(loggers: Sequence[Logger]) -> None:
    """Closes the loggers of a run."""
    for logger in loggers:
        if isinstance(logger, GuardedLogger):
            logger.close()
