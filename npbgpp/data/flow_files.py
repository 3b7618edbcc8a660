"""Optical flow in Middlebury's ``.flo`` files (Baker et al., A Database and Evaluation Methodology for Optical Flow, IJCV 2011).

A file holds the number 202021.25 (float32), the width and the height (int32), then u and v of every pixel, row by row (float32), all little-endian. Flow is in
pixels, u to the right and v downwards. OpenCV reads the format too, but says neither what is wrong with a file nor that it promises more than it holds.
"""

import struct
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from npbgpp.errors import InputError
from npbgpp.files import write_atomically

_MAGIC = 202021.25
_HEADER = struct.Struct("<fii")
_LARGEST_SIDE = 1 << 16  # pixels
_UNKNOWN = 1e9  # larger numbers mark pixels without flow


def flow_size(path: Path) -> tuple[int, int]:
    """(height, width) of a flow, from its header and its length. Raises InputError for a missing, truncated or other file."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
        length = path.stat().st_size
    except OSError as error:
        raise InputError(
            f"flow {path}: expected a file with optical flow, got none that can be read ({error.strerror}); restore it"
        ) from error
    if len(header) < _HEADER.size:
        raise InputError(f"flow {path}: expected a .flo file, got one that ends after {length} bytes; make it again")
    magic, width, height = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise InputError(
            f"flow {path}: expected the number {_MAGIC} at the begin of a little-endian .flo file, got {magic:g}; write the flow in that format"
        )
    if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
        raise InputError(
            f"flow {path}: expected a width and a height from 1 to {_LARGEST_SIDE} pixels, got {width}x{height}; make it again"
        )
    expected = _HEADER.size + 8 * width * height
    if length != expected:
        raise InputError(f"flow {path}: expected {expected} bytes for {width}x{height} pixels, got {length}; make it again")
    return height, width


def read_flow(path: Path) -> Float32[np.ndarray, "h w 2"]:
    """(u, v) of every pixel. Raises InputError for a missing, truncated or other file, and for pixels without flow."""
    height, width = flow_size(path)
    flow = np.fromfile(path, "<f4", offset=_HEADER.size).reshape(height, width, 2).astype(np.float32, copy=False)
    wrong = ~(np.abs(flow) < _UNKNOWN).all(2)
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise InputError(
            f"flow {path}: expected finite numbers of pixels, got {flow[row, column].tolist()} in row {row}, column {column} ({int(wrong.sum())} of "
            f"{wrong.size} pixels); fill in what is unknown, or make the flow again"
        )
    return flow


def write_flow(path: Path, flow: Float32[np.ndarray, "h w 2"]) -> None:
    """Writes a flow; either the whole file is there afterwards or what was there before. Raises InputError when it cannot be written."""
    height, width = flow.shape[:2]
    content = _HEADER.pack(_MAGIC, width, height) + flow.astype("<f4").tobytes()
    write_atomically(path, lambda file: file.write(content))
