"""Videos, written frame by frame."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from imageio_ffmpeg import count_frames_and_secs
from jaxtyping import Float
from torch import Tensor

from npbgpp.core.files import put_in_place
from npbgpp.errors import InputError
from npbgpp.io.images import to_pil

VIDEO_FORMATS = ("mp4", "gif")


class VideoWriter:
    """Appends frames of one size to a temporary file; ``close`` moves it to its place.

    H.264 needs even sides: frames with an odd one are padded by repeating the last row or column. A GIF stores durations in hundredths of a second.

    Args:
        path: ends in .mp4 or .gif.
        fps: frames per second.

    Raises:
        InputError: the folder cannot be written, or the file cannot.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        self._is_gif, self._frames = path.suffix == ".gif", 0
        options: dict[str, Any] = {"mode": "I", "duration": 1000 / fps, "loop": 0}
        if not self._is_gif:
            options = {"fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": 2, "ffmpeg_log_level": "error"}
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer: Any = imageio.get_writer(self._part, **options)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)
            raise InputError(f"{self.path}: cannot be written ({error}); free space, or choose another folder") from error

    def append(self, frame: Float[Tensor, "3 h w"]) -> None:
        """Appends a frame with colours in [0, 1]."""
        height, width = frame.shape[1:]
        even = frame if self._is_gif else torch.nn.functional.pad(frame[None], (0, width % 2, 0, height % 2), mode="replicate")[0]
        with self._writing():
            self._writer.append_data(np.asarray(to_pil(even)))
        self._frames += 1

    def close(self) -> None:
        """Finishes the file and moves it to its place. Raises InputError if the encoder did not write all frames, as on a full disk."""
        with self._writing():
            self._writer.close()
            if not self._is_gif:
                self._check_frames()
            put_in_place(self._part, self.path)

    def _check_frames(self) -> None:
        """Counts the frames of the file: imageio does not look at the exit code of the encoder."""
        try:
            count, _ = count_frames_and_secs(str(self._part))
        except RuntimeError as error:
            raise OSError("the encoder failed and left an unplayable file") from error
        if count != self._frames:
            raise OSError(f"the encoder wrote {count} of {self._frames} frames")

    def discard(self) -> None:
        """Removes the temporary file."""
        with suppress(OSError):  # the encoder may fail to write its trailer
            self._writer.close()
        self._part.unlink(missing_ok=True)


@contextmanager
def open_video(path: Path, fps: float) -> Iterator[VideoWriter]:
    """A ``VideoWriter`` that is closed at the end of the block, or discarded if it raises."""
    writer = VideoWriter(path, fps)
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise
    writer.close()
