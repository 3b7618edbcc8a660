"""All that is known of the pixels of one frame of a video, at the size of use; kept in a folder where that is wanted.

Symbols: p pixels of a frame, row by row.
"""

import hashlib
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from npbgpp.data.images import read_photo
from npbgpp.data.motion_maps import read_disparity, read_static, read_uv
from npbgpp.data.scene import View
from npbgpp.errors import InputError
from npbgpp.files import load_tensors, save_tensors

_FORMAT = 1
BYTES_PER_PIXEL = 24


@dataclass(frozen=True)
class FrameTable:
    """One frame.

    Attributes:
        rgb: colours.
        disparity: see ``read_disparity``.
        static: see ``read_static``.
        forward, backward: flow to the next frame and to the one before, pixels; not a number where there is none.
    """

    rgb: UInt8[Tensor, "p 3"]
    disparity: Float32[Tensor, " p"]
    static: Bool[Tensor, " p"]
    forward: Float32[Tensor, "p 2"]
    backward: Float32[Tensor, "p 2"]


def read_table(view: View, folder: Path | None = None) -> FrameTable:
    """Reads a frame and its motion maps.

    Args:
        view: the frame.
        folder: where the table is kept; one that is there and was made of the same files is read in place of them.

    Raises:
        InputError: a file that is missing or damaged, or of another shape than the frame.
    """
    path = None if folder is None else folder / f"{view.name}-{_digest(view)}.pt"
    if path is not None and path.is_file():
        try:
            return FrameTable(**load_tensors(path, "cached frame"))
        except TypeError as error:
            raise InputError(
                f"cached frame {path}: expected the tables of a frame, got other tensors ({error}); remove the file"
            ) from error
    photo, motion = read_photo(view), view.motion
    assert motion is not None
    nothing = torch.full((*view.camera.image_size, 2), torch.nan)
    table = FrameTable(
        photo.image.flatten(1).T.contiguous(),
        read_disparity(view).flatten(),
        read_static(view).flatten(),
        (nothing if motion.flow_forward is None else read_uv(view, True)).flatten(0, 1),
        (nothing if motion.flow_backward is None else read_uv(view, False)).flatten(0, 1),
    )
    if path is not None:
        save_tensors(path, dict(table.__dict__))
    return table


def _digest(view: View) -> str:
    """Changes with the files that a table is made of, and with its size."""
    assert view.motion is not None
    files = [view.image, *(part for part in astuple(view.motion) if isinstance(part, Path))]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((_FORMAT, view.camera.image_size, view.motion.inverted, stats)).encode()).hexdigest()[:16]
