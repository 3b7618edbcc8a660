"""The viewer of a run that trains: ``callbacks=viewer``."""

import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from npbgpp.core.distributed import process_rank
from npbgpp.errors import InputError
from npbgpp.methods.base import System
from npbgpp.viewer.pictures import ViewedRun
from npbgpp.viewer.poses import frame_of

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_REFRESH_S = 1.0  # between two pictures of a camera that rests
_SAVED_S = 0.05  # of rendering, at most, after a time without
_LOOK_S = 0.02  # between two checks for browsers in a pause


class Turns:
    """Lets the training thread render for other threads between two steps, for a share of the time.

    In its own thread, since PyTorch keeps threads for every thread that computes: those of two would compete for the cores, also between pictures. What the other
    threads compute themselves, such as the compression of pictures, takes a core from the training and counts as well.

    Args:
        share: of the time of training, from 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.seconds = 0.0  # that training has waited
        self._wanted: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any], float]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ended = False
        self._began = self._reckoned = time.perf_counter()
        self._allowance = 0.0  # seconds that pictures may take; negative after a long one
        self._caller = threading.local()  # CPU seconds of each calling thread when it got its last result

    def __call__(self, work: Callable[[], _T]) -> _T:
        """Has ``work`` done by the training thread, and waits for its result. Raises what ``work`` raises, and InputError at the end of the training."""
        compute_alone()
        future: Future[_T] = Future()
        computed = time.thread_time() - getattr(self._caller, "since", time.thread_time())
        with self._lock:
            if self._ended:
                future.set_exception(_ended())
            else:
                self._wanted.put((work, future, computed))
        try:
            return future.result()
        finally:
            self._caller.since = time.thread_time()

    @property
    def waiting(self) -> bool:
        """Whether somebody wants to render."""
        return not self._wanted.empty()

    def affordable(self) -> bool:
        """Whether somebody wants to render, and pictures have taken less than their share of the time. Time without pictures is not saved for later."""
        now = time.perf_counter()
        self._allowance = min(self._allowance + self.share * (now - self._reckoned), _SAVED_S)
        self._reckoned = now
        return self.waiting and self._allowance > 0

    def spent_share(self) -> float:
        """The share of the time that training has waited."""
        return self.seconds / max(time.perf_counter() - self._began, 1e-9)

    def give(self) -> None:
        """Does what was wanted first."""
        start = time.perf_counter()
        work, future, computed = self._wanted.get()
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self._allowance -= seconds + computed

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Time that passes in this context is neither time of training nor waiting."""
        before, start = (self.seconds, self._allowance), time.perf_counter()
        yield
        passed = time.perf_counter() - start
        self.seconds, self._allowance = before
        self._began, self._reckoned = self._began + passed, self._reckoned + passed

    def end(self) -> None:
        """Refuses everyone from now on."""
        with self._lock:
            self._ended = True
        while self.waiting:
            self._wanted.get()[1].set_exception(_ended())


_limited = threading.local()


def compute_alone() -> None:
    """Keeps the operations of PyTorch in the calling thread, which otherwise gets threads of its own for them, and keeps them.

    While OpenMP has more threads than there are cores, all threads wait without spinning: NPBG trained with a third less speed after a browser had come.
    """
    from threadpoolctl import threadpool_limits

    if not getattr(_limited, "done", False):
        torch.get_num_threads()  # PyTorch sets the number of a thread when that thread first needs it
        threadpool_limits(1, user_api="openmp")
        _limited.done = True


def _ended() -> InputError:
    return InputError("the training has ended; open the run with npbgpp view")


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

    def __init__(self, host: str = "127.0.0.1", port: int = 8080, share: float = 0.05, paused: bool = False) -> None:
        if not 0 < share <= 0.5:
            raise InputError(f"callbacks.fit.viewer.share: expected a number above 0 and at most 0.5, got {share:g}")
        self.host, self.port, self.turns = host, port, Turns(share)
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
        if self.turns.affordable():
            self._render(pl_module)
        if not self._running.is_set():
            with self.turns.uncounted():
                while not self._running.wait(_LOOK_S):
                    if self.turns.waiting:
                        self._render(pl_module)

    def _serve(self, trainer: Trainer, system: System) -> None:
        """Serves the first scene that can be rendered."""
        from npbgpp.viewer.server import ViewerOptions, ViewerServer

        found = next((name for name, scene in system.scenes.items() if scene.splits["train"] and system.can_render(name)), None)
        if found is None:
            return
        self._scene = found
        run = ViewedRun("training", Path(trainer.default_root_dir), system, found, trainer.precision_plugin)
        with self.turns.uncounted(), _evaluating(system):
            run.prepare()
        run.call = self.turns
        start = run.scene.splits["train"][0]
        options = ViewerOptions(run.scene.views[start].camera, start)
        self._server = ViewerServer([run], frame_of(run.scene), options, self.host, self.port, self._add_controls)
        log.info("the training in the browser: %s", self._server.link)

    def _render(self, system: System) -> None:
        if system.can_render(self._scene):
            with _evaluating(system):
                self.turns.give()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the server. Pictures that are still wanted are refused."""
        self.turns.end()
        if self._server is not None:
            self._server.stop()
            self._server = None
            log.info("pictures for browsers took %.1f %% of the time of training", 100 * self.turns.spent_share())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def _add_controls(self, client: Any) -> None:
        compute_alone()
        pause = client.gui.add_button("resume" if not self._running.is_set() else "pause")

        @pause.on_click
        def _(_: Any) -> None:
            if self._running.is_set():
                self._running.clear()
                pause.label = "resume"
            else:
                self._running.set()
                pause.label = "pause"
