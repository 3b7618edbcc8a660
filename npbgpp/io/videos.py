"""Videos that are either complete or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.io.images import as_image

KINDS = ("mp4", "gif")


class Video:
    """Takes pictures of one size; the file is there once ``finish`` has been called, and not before.

    An mp4 needs even sides: where the pictures have an odd one it repeats their last row or column. A gif shows its frames for whole hundredths of a second.

    Args:
        path: ends in .mp4 or .gif.
        fps: frames per second.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        self._gif = path.suffix == ".gif"
        options: dict[str, Any] = {"mode": "I", "duration": 1000 / fps, "loop": 0}
        if not self._gif:
            options = {"fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": 2, "ffmpeg_log_level": "error"}
        with self._written():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer: Any = imageio.get_writer(self._part, **options)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._part.unlink(missing_ok=True)
            raise InputError(f"{self.path}: cannot be written ({error}); free space, or choose another folder") from error

    def add(self, picture: Float[Tensor, "3 h w"]) -> None:
        """Appends colours in [0, 1]."""
        height, width = picture.shape[1:]
        even = picture if self._gif else torch.nn.functional.pad(picture[None], (0, width % 2, 0, height % 2), mode="replicate")[0]
        with self._written():
            self._writer.append_data(np.asarray(as_image(even)))

    def finish(self) -> None:
        """Puts the file in its place."""
        with self._written():
            self._writer.close()
            os.replace(self._part, self.path)

    def abandon(self) -> None:
        """Leaves no file."""
        with suppress(OSError):  # what it could not write is not wanted
            self._writer.close()
        self._part.unlink(missing_ok=True)


@contextmanager
def video(path: Path, fps: float) -> Iterator[Video]:
    """A video that is finished when the block ends, and abandoned when it fails."""
    film = Video(path, fps)
    try:
        yield film
    except BaseException:
        film.abandon()
        raise
    film.finish()
