"""Films rendered beside the viewer, frame by frame, and the command that renders the same."""

import logging
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from npbgpp.errors import InputError
from npbgpp.geometry import TimedCamera
from npbgpp.io import open_video
from npbgpp.viewer.pictures import PICTURE, Look, ViewedRun

log = logging.getLogger("npbgpp.view")

_BREATH_S = 0.002  # between two frames: a lock is not fair, and pictures of the viewer come first


@dataclass(frozen=True)
class Progress:
    """State of a film.

    Attributes:
        done: frames.
        count: frames in all.
        file: the finished film; None before its end.
        error: why it ended; None while nothing failed.
    """

    done: int
    count: int
    file: Path | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will follow."""
        return self.file is not None or self.error is not None


class FilmThread:
    """Renders a film in the background; the viewer renders between its frames.

    Args:
        run: what is rendered.
        frames: of one size.
        look: how.
        file: ends in .mp4 or .gif.
        fps: frames per second.
        report: called in this thread after every frame and at the end.
    """

    def __init__(
        self, run: ViewedRun, frames: Sequence[TimedCamera], look: Look, file: Path, fps: float, report: Callable[[Progress], None]
    ) -> None:
        self._run, self._frames, self._look, self._file, self._fps, self._report = run, frames, look, file, fps, report
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._render, name="film", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ends the film after its current frame; nothing is left of it."""
        self._cancelled.set()

    def join(self, timeout: float | None = None) -> None:
        """Waits for the end."""
        self._thread.join(timeout)

    def _render(self) -> None:
        count, done = len(self._frames), 0
        try:
            with open_video(self._file, self._fps) as film:
                for timed in self._frames:
                    if self._cancelled.is_set():
                        raise InputError("cancelled")
                    picture = self._run.draw(timed, self._look)
                    assert picture is not None
                    film.append(picture.rgb)
                    done += 1
                    self._report(Progress(done, count))
                    time.sleep(_BREATH_S)
        except Exception as error:  # told in the panel: the viewer goes on
            log.warning("film %s: %s", self._file, error)
            self._report(Progress(done, count, error=str(error)))
            return
        log.info("film of %d frames: %s", count, self._file)
        self._report(Progress(done, count, file=self._file))


def render_command(run: ViewedRun, poses: Path, out: Path, fps: float, look: Look, overrides: Sequence[str]) -> str:
    """The command line that renders the same film; depth films are its ``depth.mp4``."""
    words = ["npbgpp", "render", str(run.folder), "path=file", f"poses={poses}", f"scene={run.scene.name}", f"out={out}", f"fps={fps:g}"]
    words += [f"part={look.part}"] if look.part != "full" else []
    words += ["history=true"] if look.history else []
    words += ["depth=[picture]"] if look.mode != PICTURE else []
    return shlex.join([*words, *overrides])
