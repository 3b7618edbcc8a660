"""Optical flow in Middlebury's ``.flo`` files (Baker et al., A Database and Evaluation Methodology for Optical Flow, IJCV 2011).

A file holds the number 202021.25 (float32), the width and the height (int32), then u and v of every pixel, row by row (float32), all little-endian. Flow is in
pixels, u to the right and v downwards. OpenCV reads the format too, but says neither what is wrong with a file nor that it promises more than it holds.
"""

import struct
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Shaped
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from npbgpp.core.files import write_atomically
from npbgpp.core.safe_pickle import DAMAGED_FILE
from npbgpp.data.images import DECODER_ERRORS, image_size
from npbgpp.data.scene import View
from npbgpp.errors import InputError

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


# ----------------------------------------------------------------------
# What lies beside the frames of a video, read and brought to the size of its views: disparity, optical flow, masks of what stands still.


_PADDED_TO = 8  # sides of what RAFT is given are multiples of it
_HALF = 0.5  # of the brightest value that a mask may have


def read_disparity(view: View) -> Float[Tensor, "h w"]:
    """Disparity at the size of the view, nearest neighbour, so that edges stay edges: a picture from 0 to 1 of its largest value, numbers as stored.

    Raises:
        InputError: the view has none, a damaged file, one of another shape, numbers that are not finite, or the same everywhere.
    """
    path = required_map(view, "disparity")
    values = read_numbers(path)
    _check_shape(path, values.shape, view)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise InputError(
            f"disparity {path}: expected finite numbers, got {bad} of {values.size} that are not; fill them in or make the map again"
        )
    if values.min() == values.max():
        raise InputError(
            f"disparity {path}: expected larger numbers where the scene is nearer, got {values.min():g} everywhere; make the map again"
        )
    return _resized(torch.from_numpy(values)[None], view, "nearest-exact")[0]


def read_uv(view: View, forward: bool) -> Float[Tensor, "h w 2"]:
    """Flow to the next frame, or to the one before, in pixels of the view.

    Raises:
        InputError: the view has none, or a damaged file or one of another shape.
    """
    path = required_map(view, "flow_forward" if forward else "flow_backward")
    flow = _unpadded(read_flow(path), image_size(view.image))
    _check_shape(path, flow.shape[:2], view)
    height, width = view.camera.image_size
    scale = torch.tensor([width / flow.shape[1], height / flow.shape[0]])
    return _resized(torch.from_numpy(flow).permute(2, 0, 1), view, "bilinear").permute(1, 2, 0) * scale


def read_static(view: View) -> Bool[Tensor, "h w"]:
    """Where nothing moves; everywhere for a view without mask.

    Raises:
        InputError: a damaged mask, one of another shape, or one in which everything moves.
    """
    if view.motion is None or view.motion.static_mask is None:
        return torch.ones(view.camera.image_size, dtype=torch.bool)
    path = view.motion.static_mask
    values = read_numbers(path)
    _check_shape(path, values.shape, view)
    bright = _resized(torch.from_numpy(values)[None], view, "nearest-exact")[0] >= _HALF
    static = ~bright if view.motion.inverted else bright
    if not static.any():
        wrong = (
            "bright (255) where something moves" if view.motion.inverted else "dark (0) where something moves and bright (255) elsewhere"
        )
        raise InputError(
            f"mask {path}: expected some pixels that stand still, got none; masks in {path.parent.name} are {wrong}: invert the mask, or draw it again"
        )
    return static


def check_flow(path: Path, view: View) -> None:
    """Raises InputError for a flow whose header is damaged or whose size does not belong to the photo of the view."""
    size, photo = flow_size(path), image_size(view.image)
    if size != _padded(photo):
        _check_shape(path, size, view)


def read_numbers(path: Path) -> Float32[np.ndarray, "h w"]:
    """One number for each pixel: a ``.npy`` array as it is, a picture (8 or 16 bits) from 0 to 1. Raises InputError for a file that is neither."""
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (FileNotFoundError, *DAMAGED_FILE) as error:
            raise InputError(
                f"{path}: expected numbers written by np.save, got a damaged or other file ({error}); make it again"
            ) from error
        if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
            raise InputError(
                f"{path}: expected an array (height, width) of numbers, got {getattr(values, 'shape', 'several arrays')}; make it again"
            )
        return values.astype(np.float32)
    try:
        with Image.open(path) as picture:
            deep = picture.mode.startswith("I")
            values = np.asarray(picture if deep else picture.convert("L"))
    except FileNotFoundError:
        raise InputError(f"image {path}: no such file; restore it") from None
    except DECODER_ERRORS as error:
        raise InputError(f"image {path}: expected a readable image, got {error}; replace the file") from error
    return values.astype(np.float32) / np.float32(65535 if deep else 255)


def required_map(view: View, kind: str) -> Path:
    """The file of a map, ``kind`` as ``MotionMaps`` calls it. Raises InputError for a view that has none."""
    path = None if view.motion is None else getattr(view.motion, kind)
    if path is None:
        folders = {"disparity": "disps", "flow_forward": "flow_fw", "flow_backward": "flow_bw"}
        raise InputError(
            f"frame {view.name} ({view.image}): expected a file in {folders[kind]} beside it, got none; python -m npbgpp.prepare monocular root=<folder> "
            "makes it"
        )
    return path


def _padded(size: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-side // _PADDED_TO) * _PADDED_TO for side in size)
    return height, width


def _unpadded(flow: Float32[np.ndarray, "h2 w2 2"], photo: tuple[int, int]) -> Float32[np.ndarray, "h3 w3 2"]:
    """The middle of a flow of padded frames; other flow as it is."""
    if flow.shape[:2] == photo or flow.shape[:2] != _padded(photo):
        return flow
    top, left = (flow.shape[0] - photo[0]) // 2, (flow.shape[1] - photo[1]) // 2
    return flow[top : top + photo[0], left : left + photo[1]]


def _check_shape(path: Path, found: tuple[int, ...], view: View) -> None:
    """Raises InputError when one side is not as long as the other one says, up to the rounding to whole pixels."""
    height, width = image_size(view.image)
    if abs(found[1] / width - found[0] / height) > 0.5 / width + 0.5 / height:
        raise InputError(
            f"{path}: expected {width}x{height} pixels as its frame {view.image.name} has, or the same shape reduced, got {found[1]}x{found[0]}; make it "
            "again from the frames in images"
        )


def _resized(values: Shaped[Tensor, "c h2 w2"], view: View, mode: str) -> Shaped[Tensor, "c h w"]:
    size = view.camera.image_size
    if values.shape[1:] == size:
        return values
    return interpolate(values[None], size, mode=mode, antialias=mode == "bilinear")[0]
