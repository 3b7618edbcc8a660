"""When to render, and how large: small pictures while the camera moves, full ones when it rests.

``Pacer`` is a state machine without a thread or a clock, ``RenderThread`` runs it. Nothing is interrupted by force: a picture that is no longer wanted ends at
the next question of its renderer.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

log = logging.getLogger(__name__)

V = TypeVar("V")

REST_S = 0.25  # without a new camera, before a picture in full
_SMALLEST_PIXELS = 48 * 48
_LARGEST_STEP = 4.0  # by which the number of pixels grows or shrinks from one picture to the next
_MEMORY = 0.8  # weight of a picture relative to the next one
_SPREAD = 0.1  # of pixel numbers around their mean, relative to it, from which on their influence is fitted
_LEAST_SLOPE = 0.01  # of the time of a picture that depends on its pixels
_SMOOTHING = 0.3  # weight of the newest time in the rate that the panel shows


class ResolutionControl:
    """Number of pixels at which a picture takes the time of a frame.

    The time of a picture is taken to be a constant and a share for every pixel, both fitted to the last pictures. Where the constant alone is longer than a
    frame, pictures take twice the constant: fewer pixels would cost quality and bring no speed.

    Args:
        target_fps: pictures per second while the camera moves.
    """

    def __init__(self, target_fps: float = 15.0) -> None:
        self.target_fps = target_fps
        self.pixels: float | None = None
        self._sums = np.zeros(5)  # of weights, pixels, seconds, pixels squared, pixels times seconds

    def moving_share(self, full_pixels: int) -> float:
        """Factor of both sides of a full picture while the camera moves."""
        pixels = full_pixels / 16 if self.pixels is None else self.pixels
        return min((max(pixels, _SMALLEST_PIXELS) / full_pixels) ** 0.5, 1.0)

    def measured(self, pixels: int, seconds: float) -> None:
        """Takes over how long a picture of so many pixels took."""
        self._sums = _MEMORY * self._sums + np.array([1.0, pixels, seconds, pixels**2, pixels * seconds])
        mean_pixels, mean_seconds, mean_square, mean_product = (self._sums[1:] / self._sums[0]).tolist()
        variance = mean_square - mean_pixels**2
        per_pixel = mean_seconds / mean_pixels
        if variance > (_SPREAD * mean_pixels) ** 2:
            slope = (mean_product - mean_pixels * mean_seconds) / variance
            per_pixel = min(max(slope, _LEAST_SLOPE * per_pixel), per_pixel)
        constant = max(mean_seconds - per_pixel * mean_pixels, 0.0)
        wanted = max(1 / self.target_fps - constant, constant) / per_pixel
        self.pixels = min(max(wanted, pixels / _LARGEST_STEP), pixels * _LARGEST_STEP)


@dataclass(frozen=True)
class Job(Generic[V]):
    """A picture to render.

    Attributes:
        view: what was asked for.
        version: number of the request.
        full: at full resolution.
    """

    view: V
    version: int
    full: bool


class Pacer(Generic[V]):
    """Decides what is rendered next. All times are seconds of one clock."""

    def __init__(self) -> None:
        self._view: V | None = None
        self._version = 0
        self._moved_at = float("-inf")
        self._done: tuple[int, bool] = (0, False)  # version, and whether it was in full

    def ask(self, view: V, now: float, moving: bool) -> None:
        """Asks for another picture; ``moving``: more requests will probably follow."""
        self._view, self._version = view, self._version + 1
        self._moved_at = now if moving else float("-inf")

    def next(self, now: float) -> Job[V] | float | None:
        """The next picture, or seconds until there may be one, or None until the next request."""
        version, full = self._done
        if self._view is None or (version == self._version and full):
            return None
        wait = self._moved_at + REST_S - now
        if wait <= 0:
            return Job(self._view, self._version, True)
        return Job(self._view, self._version, False) if version != self._version else wait

    def outdated(self, job: Job[V]) -> bool:
        """Whether rendering should stop. A small picture is finished: it is soon done, and movement would show nothing otherwise."""
        return job.full and job.version != self._version

    def finished(self, job: Job[V], as_full: bool) -> None:
        """A picture is done; ``as_full``: it had full resolution, whatever the job asked for."""
        self._done = (job.version, as_full)


@dataclass(frozen=True)
class Speed:
    """What the panel shows: milliseconds of the last picture, and pictures per second."""

    milliseconds: float
    fps: float


class RenderThread(Generic[V]):
    """Renders what is asked for until it is stopped.

    Args:
        render: renders and shows a job; asks the given function now and then whether to stop, and returns whether the picture had full resolution, or None
            if it stopped.
        failed: called with an exception of ``render``; the thread goes on with the next request.
        name: of the thread.
    """

    def __init__(self, render: Callable[[Job[V], Callable[[], bool]], bool | None], failed: Callable[[Exception], None], name: str) -> None:
        self._render, self._failed = render, failed
        self._pacer: Pacer[V] = Pacer()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def ask(self, view: V, moving: bool = False) -> None:
        """See ``Pacer.ask``."""
        with self._changed:
            self._pacer.ask(view, time.monotonic(), moving)
            self._changed.notify()

    def stop(self) -> None:
        """Ends the thread after the picture that it is at."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Waits for the thread."""
        self._thread.join(timeout)

    def _outdated(self, job: Job[V]) -> bool:
        return self._stopped or self._pacer.outdated(job)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped:
                    found = self._pacer.next(time.monotonic())
                    if isinstance(found, Job):
                        break
                    self._changed.wait(found)
                if self._stopped:
                    return
            assert isinstance(found, Job)
            try:
                full = self._render(found, partial(self._outdated, found))
            except Exception as error:  # one view that fails must not end the viewer
                log.debug("a picture failed", exc_info=True)
                full = True
                self._failed(error)
            if full is not None:
                with self._changed:
                    self._pacer.finished(found, full)


class SpeedMeter:
    """Smoothed speed of a row of pictures."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._interval: float | None = None

    def shown(self, seconds: float, now: float) -> Speed:
        """Counts a picture that took ``seconds`` and was done at ``now``; pauses of more than a second do not count."""
        if self._last is not None and now - self._last < 1.0:
            interval = now - self._last
            self._interval = interval if self._interval is None else (1 - _SMOOTHING) * self._interval + _SMOOTHING * interval
        self._last = now
        return Speed(1000 * seconds, 1 / max(self._interval or seconds, 1e-6))
