"""The viewer of a run that trains: ``callbacks=viewer``."""

import importlib.util
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from npbgpp.core.distributed import process_rank
from npbgpp.errors import InputError
from npbgpp.methods.base import System
from npbgpp.viewer.pictures import ViewedRun
from npbgpp.viewer.poses import frame_of

log = logging.getLogger(__name__)

_REFRESH_S = 1.0  # between two pictures of a camera that rests
_ENTER_S = 0.5  # that training waits at most for another thread to begin
_LOOK_S = 0.02  # between two checks for browsers in a pause


class Turn:
    """Lets another thread render between two training steps, for a share of the time.

    Args:
        share: of the time of training, from 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.waiting = 0
        self.seconds = 0.0  # that training has waited
        self._changed = threading.Condition()
        self._open = self._inside = self._ended = False
        self._entered = 0
        self._began = time.perf_counter()

    def __enter__(self) -> None:
        with self._changed:
            self.waiting += 1
            self._changed.wait_for(lambda: (self._open and not self._inside) or self._ended)
            self.waiting -= 1
            if self._ended:
                raise InputError("the training has ended; open the run with npbgpp view")
            self._inside, self._open = True, False
            self._entered += 1
            self._changed.notify_all()

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._inside = False
            self._changed.notify_all()

    def affordable(self) -> bool:
        """Whether somebody wants to render, and training has waited for less than its share of the time."""
        return self.waiting > 0 and self.seconds < self.share * (time.perf_counter() - self._began)

    def spent_share(self) -> float:
        """The share of the time that training has waited."""
        return self.seconds / max(time.perf_counter() - self._began, 1e-9)

    def give(self, timeout: float) -> None:
        """Lets one other thread render once, or returns after ``timeout`` seconds in which none began to."""
        start = time.perf_counter()
        with self._changed:
            before, self._open = self._entered, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._entered > before, timeout)
            self._open = False
            self._changed.wait_for(lambda: not self._inside)
        self.seconds += time.perf_counter() - start

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Time that passes in this context is neither time of training nor waiting."""
        seconds, start = self.seconds, time.perf_counter()
        yield
        self.seconds, self._began = seconds, self._began + time.perf_counter() - start

    def end(self) -> None:
        """Refuses everyone from now on."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@contextmanager
def _evaluating(system: System) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it had."""
    training = [module for module in system.modules() if module.training]
    system.eval()
    yield
    for module in training:
        module.training = True


class TrainingViewer(Callback):
    """Serves the current state of a training in the browser; it can be paused there and goes on there.

    Pictures are rendered between steps, in evaluation mode, for at most ``share`` of the time, so that training is never slowed by more.

    Args:
        host: address to bind to.
        port: port, or the next free one.
        share: of the time that pictures may take, above 0 and at most 0.5.
        paused: wait after the first step until somebody resumes.

    Raises:
        InputError: no such share, or an address that cannot be used.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 8080, share: float = 0.08, paused: bool = False) -> None:
        if not 0 < share <= 0.5:
            raise InputError(f"callbacks.fit.viewer.share: expected a number above 0 and at most 0.5, got {share:g}")
        self.host, self.port, self.turn = host, port, Turn(share)
        self._running = threading.Event()
        if not paused:
            self._running.set()
        self._server: Any = None
        self._scene = ""
        self._refreshed = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises InputError without the extra ``viewer``."""
        if importlib.util.find_spec("viser") is None:
            raise InputError("callbacks=viewer: expected the extra viewer, got no viser; install it: pip install 'npbgpp[viewer]'")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Starts the server after the first batch, and lets browsers render while there is time for it; waits while training is paused."""
        assert isinstance(pl_module, System)
        if process_rank() != 0:
            return
        if self._server is None:
            self._serve(trainer, pl_module)
        if self._server is None:
            return
        now = time.monotonic()
        if now - self._refreshed > _REFRESH_S:
            self._refreshed = now
            self._server.refresh()
        if self.turn.affordable():
            self._render(pl_module)
        if not self._running.is_set():
            with self.turn.uncounted():
                while not self._running.wait(_LOOK_S):
                    if self.turn.waiting:
                        self._render(pl_module)

    def _serve(self, trainer: Trainer, system: System) -> None:
        """Serves the first scene that can be rendered."""
        from npbgpp.viewer.server import ViewerOptions, ViewerServer

        found = next((name for name, scene in system.scenes.items() if scene.splits["train"] and system.can_render(name)), None)
        if found is None:
            return
        self._scene = found
        run = ViewedRun("training", Path(trainer.default_root_dir), system, found, trainer.precision_plugin)
        with self.turn.uncounted(), _evaluating(system):
            run.prepare()
        run.turn = self.turn
        start = run.scene.splits["train"][0]
        options = ViewerOptions(run.scene.views[start].camera, start)
        self._server = ViewerServer([run], frame_of(run.scene), options, self.host, self.port, self._add_controls)
        log.info("the training in the browser: %s", self._server.link)

    def _render(self, system: System) -> None:
        if system.can_render(self._scene):
            with _evaluating(system):
                self.turn.give(_ENTER_S)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the server. Pictures that are still wanted are refused."""
        self.turn.end()
        if self._server is not None:
            self._server.stop()
            self._server = None
            log.info("pictures for browsers took %.1f %% of the time of training", 100 * self.turn.spent_share())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def _add_controls(self, client: Any) -> None:
        pause = client.gui.add_button("resume" if not self._running.is_set() else "pause")

        @pause.on_click
        def _(_: Any) -> None:
            if self._running.is_set():
                self._running.clear()
                pause.label = "resume"
            else:
                self._running.set()
                pause.label = "pause"
