"""Moving scenes: how training draws rays from a video, and disparity, optical flow and static masks of its frames, resized to their views.

Optical flow is stored in Middlebury's ``.flo`` files (Baker et al., A Database and Evaluation Methodology for Optical Flow, IJCV 2011): the number 202021.25
(float32), width and height (int32), then u and v of each pixel, row by row (float32), all little-endian; in pixels, u to the right, v down. OpenCV's reader
is not used: it reports neither the defect of a damaged file nor a truncated one.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Shaped
from torch import Tensor
from torch.nn.functional import interpolate

from npbgpp.core.files import read_npy, write_atomically
from npbgpp.data.images import image_size, open_image, read_mask
from npbgpp.data.scene import View
from npbgpp.errors import InputError


@dataclass(frozen=True)
class VideoSampling:
    """Keys of ``conf/datasets/_video.yaml`` that concern training.

    Attributes:
        batches_per_epoch: None is one for every 1000 pixels of all frames.
        exclusion_window: minimum frame gap between consecutive batches, less 1.
        hard_sampling: draw pixels by their error in the epoch before, otherwise evenly.
        moving_share: share of the pixels that is drawn evenly from the moving part of the frame, by its mask.
        motion_cache: folder, relative to the launch folder, that keeps frames and motion maps at the size of use; None: no cache.
    """

    batches_per_epoch: int | None = None
    exclusion_window: int = 5
    hard_sampling: bool = False
    moving_share: float = 0.0
    motion_cache: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("batches_per_epoch", 1), ("exclusion_window", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"datasets.{name}: expected {least} or more, got {value}")
        if not 0 <= self.moving_share <= 1:
            raise InputError(f"datasets.moving_share: expected a share of the pixels, 0 to 1, got {self.moving_share:g}")


_MAGIC = 202021.25
_HEADER = struct.Struct("<fii")
_LARGEST_SIDE = 1 << 16  # pixels
_UNKNOWN = 1e9  # larger numbers mark unknown flow
_PADDED_TO = 8  # RAFT pads the sides of its input to multiples of it
_OBJECT = 128  # smallest bright value of a mask


def flow_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header. Raises InputError for a missing, truncated or other file."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
        length = path.stat().st_size
    except OSError as error:
        raise InputError(f"flow {path}: expected a .flo file, got none that can be read ({error.strerror}); restore it") from error
    if len(header) < _HEADER.size:
        raise InputError(f"flow {path}: expected a .flo file, got {length} bytes; compute it again")
    magic, width, height = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise InputError(
            f"flow {path}: expected a little-endian .flo file, which begins with {_MAGIC}, got {magic:g}; convert the flow to this format"
        )
    if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
        raise InputError(
            f"flow {path}: expected a width and a height from 1 to {_LARGEST_SIDE} pixels, got {width}x{height}; compute it again"
        )
    expected = _HEADER.size + 8 * width * height
    if length != expected:
        raise InputError(f"flow {path}: expected {expected} bytes for {width}x{height} pixels, got {length}; compute it again")
    return height, width


def read_flow(path: Path) -> Float32[np.ndarray, "h w 2"]:
    """(u, v) of each pixel. Raises InputError for a missing, truncated or other file, and for unknown flow."""
    height, width = flow_size(path)
    flow = np.fromfile(path, "<f4", offset=_HEADER.size).reshape(height, width, 2).astype(np.float32, copy=False)
    wrong = ~(np.abs(flow) < _UNKNOWN).all(2)
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise InputError(
            f"flow {path}: expected finite flow, got {flow[row, column].tolist()} in row {row}, column {column} ({int(wrong.sum())} of "
            f"{wrong.size} pixels); fill in unknown flow, or compute it again"
        )
    return flow


def write_flow(path: Path, flow: Float32[np.ndarray, "h w 2"]) -> None:
    """Writes a flow atomically. Raises InputError when it cannot be written."""
    height, width = flow.shape[:2]
    content = _HEADER.pack(_MAGIC, width, height) + flow.astype("<f4").tobytes()
    write_atomically(path, lambda file: file.write(content))


def read_disparity(view: View) -> Float[Tensor, "h w"]:
    """Disparity resized to the view (nearest neighbour, to keep edges sharp): images scaled to 0..1, arrays as stored.

    Raises:
        InputError: no disparity, a damaged file, another aspect ratio, values that are not finite or all equal.
    """
    path = required_map(view, "disparity")
    values = read_numbers(path)
    _check_shape(path, values.shape, view)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise InputError(
            f"disparity {path}: expected finite numbers, got {bad} of {values.size} that are not; fill them in or compute the disparity again"
        )
    if values.min() == values.max():
        raise InputError(
            f"disparity {path}: expected larger numbers where the scene is nearer, got {values.min():g} everywhere; compute the disparity again"
        )
    return _resized(torch.from_numpy(values)[None], view, "nearest-exact")[0]


def read_uv(view: View, forward: bool) -> Float[Tensor, "h w 2"]:
    """Optical flow to the next or the previous frame, resized to the view, in pixels of the view.

    Raises:
        InputError: no flow, a damaged file or another aspect ratio.
    """
    path = required_map(view, "flow_forward" if forward else "flow_backward")
    flow = _unpadded(read_flow(path), image_size(view.image))
    _check_shape(path, flow.shape[:2], view)
    height, width = view.camera.image_size
    scale = torch.tensor([width / flow.shape[1], height / flow.shape[0]])
    return _resized(torch.from_numpy(flow).permute(2, 0, 1), view, "bilinear").permute(1, 2, 0) * scale


def read_static(view: View) -> Bool[Tensor, "h w"]:
    """The static part of a view; all pixels without a mask.

    Raises:
        InputError: a damaged mask, another aspect ratio, or a mask without static pixels.
    """
    if view.motion is None or view.motion.static_mask is None:
        return torch.ones(view.camera.image_size, dtype=torch.bool)
    path = view.motion.static_mask
    values = read_mask(path)
    _check_shape(path, values.shape, view)
    bright = _resized(torch.from_numpy(values).float()[None], view, "nearest-exact")[0] >= _OBJECT
    static = ~bright if view.motion.inverted else bright
    if not static.any():
        moving, rest = ("bright (255)", "dark (0)") if view.motion.inverted else ("dark (0)", "bright (255)")
        raise InputError(
            f"mask {path}: expected some static pixels, got none; masks in {path.parent.name} are {moving} where the scene moves and {rest} elsewhere: invert "
            "the mask, or draw it again"
        )
    return static


def check_flow(path: Path, view: View) -> None:
    """Raises InputError for a flow with a damaged header or another aspect ratio than the photo of the view."""
    size, photo = flow_size(path), image_size(view.image)
    if size != _padded(photo):
        _check_shape(path, size, view)


def read_numbers(path: Path) -> Float32[np.ndarray, "h w"]:
    """A ``.npy`` array as stored, or a grey image (8 or 16 bits) scaled to 0..1. Raises InputError for other files."""
    if path.suffix.lower() == ".npy":
        values = read_npy(path)
        if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
            raise InputError(
                f"{path}: expected an array (height, width) of numbers, got {values.dtype} of shape {values.shape}; compute it again"
            )
        return values.astype(np.float32)
    with open_image(path) as image:
        is_16_bit = image.mode.startswith("I")
        values = np.asarray(image if is_16_bit else image.convert("L"))
    return values.astype(np.float32) / np.float32(65535 if is_16_bit else 255)


def required_map(view: View, kind: str) -> Path:
    """The file of a map; ``kind`` is a field of ``MotionMaps``. Raises InputError for a view without it."""
    path = None if view.motion is None else getattr(view.motion, kind)
    if path is None:
        folders = {"disparity": "disps", "flow_forward": "flow_fw", "flow_backward": "flow_bw"}
        raise InputError(
            f"frame {view.name} ({view.image}): expected its map in {folders[kind]}, got none; compute it with npbgpp prepare monocular root=<folder>"
        )
    return path


def _padded(size: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-side // _PADDED_TO) * _PADDED_TO for side in size)
    return height, width


def _unpadded(flow: Float32[np.ndarray, "h2 w2 2"], photo: tuple[int, int]) -> Float32[np.ndarray, "h3 w3 2"]:
    """Flow without the padding of RAFT."""
    if flow.shape[:2] == photo or flow.shape[:2] != _padded(photo):
        return flow
    top, left = (flow.shape[0] - photo[0]) // 2, (flow.shape[1] - photo[1]) // 2
    return flow[top : top + photo[0], left : left + photo[1]]


def _check_shape(path: Path, found: tuple[int, ...], view: View) -> None:
    """Raises InputError for another aspect ratio than that of the frame, up to rounding to integers."""
    height, width = image_size(view.image)
    if abs(found[1] / width - found[0] / height) > 0.5 / width + 0.5 / height:
        raise InputError(
            f"{path}: expected {width}x{height} pixels as frame {view.image.name}, or the same ratio, got {found[1]}x{found[0]}; compute it "
            "again from the frames in images"
        )


def _resized(values: Shaped[Tensor, "c h2 w2"], view: View, mode: str) -> Shaped[Tensor, "c h w"]:
    size = view.camera.image_size
    if values.shape[1:] == size:
        return values
    return interpolate(values[None], size, mode=mode, antialias=mode == "bilinear")[0]
