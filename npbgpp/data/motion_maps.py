"""What lies beside the frames of a video, read and brought to the size of its views: disparity, optical flow, masks of what stands still.

Maps need not have the size of the frames, only their shape: flow is resampled and its vectors with it. Flow of RAFT as nsff_pl writes it has the size of
frames that were padded evenly on all sides to multiples of 8; the padding is cut off.

Symbols: h, w of the view; uv flow in pixels of the view, u to the right, v downwards.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Shaped
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from npbgpp.data.flow_files import flow_size, read_flow
from npbgpp.data.images import DECODER_ERRORS, image_size
from npbgpp.data.safe_pickle import DAMAGED_FILE
from npbgpp.data.scene import View
from npbgpp.errors import InputError

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
