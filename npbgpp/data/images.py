"""Decoding photos: 8-bit pixels, alpha composited on the background, masks; and finding them in folders."""

import mmap
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from npbgpp.data.lens import undistort
from npbgpp.data.scene import View
from npbgpp.errors import InputError

# what Pillow raises for damaged files, a header that promises more pixels than memory holds among them
DECODER_ERRORS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError)
_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Photo:
    """A decoded photo, kept in 8 bits: a quarter of the memory of floats. ``mask`` is None when the view has none."""

    image: UInt8[Tensor, "3 h w"]
    mask: UInt8[Tensor, "1 h w"] | None


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header. Raises InputError for a missing file or one that is not an image."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError:
        raise InputError(f"image {path}: no such file; correct the scene's description or restore the image") from None
    except DECODER_ERRORS as error:
        raise InputError(f"image {path}: expected a readable image, got {error}; replace the file") from error


def common_size(paths: Iterable[Path]) -> tuple[int, int]:
    """(height, width) of at least one picture, from the headers. Raises InputError for the first one that differs from those before it."""
    sizes = ((path, image_size(path)) for path in paths)
    first, size = next(sizes)
    for path, found in sizes:
        if found != size:
            raise InputError(
                f"image {path}: expected {size[1]}x{size[0]} pixels as {first} has, got {found[1]}x{found[0]}; resize one of them"
            )
    return size


def numbered_images(folder: Path) -> dict[int, Path]:
    """Pictures (.png, .jpg, .jpeg) of a folder by the number at the end of their names, in ascending order: img_0003.jpg is 3.

    Hidden files are ignored: some systems leave a ``._img_0003.jpg`` beside every picture.

    Raises:
        InputError: missing folder, no picture in it, a name without number, or a number that comes twice.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; the scene needs it: restore it or correct datasets.data_root and datasets.scene_name")
    found: dict[int, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".")):
        if not path.name.isprintable():
            raise InputError(f"image {str(path)!r}: expected a name of printable UTF-8 letters; rename the file")
        number = re.search(r"[0-9]+$", path.stem)
        if number is None:
            raise InputError(f"image {path}: expected a name that ends in the number of the view; move or rename the file")
        twin = found.setdefault(int(number[0]), path)
        if twin is not path:
            raise InputError(f"image {path}: expected one picture per number, got {twin.name} too; remove one of them")
    if not found:
        raise InputError(f"{folder}: expected pictures ({', '.join(_SUFFIXES)}), got none; restore them")
    return dict(sorted(found.items()))


def picture_folder(root: Path, downscale: float) -> Path:
    """``images_8`` for a downscale of 8 where a scene has that folder, else ``images``."""
    reduced = root / f"images_{downscale:g}"
    return reduced if downscale != 1 and reduced.is_dir() else root / "images"


def fitted(view: View, downscale: float) -> View:
    """The view at 1/downscale of the size of its camera, and never larger than its photo unless it is that already.

    Raises:
        InputError: less than one pixel is left, or the photo cannot be read.
    """
    stated, found = view.camera.image_size, image_size(view.image)
    wanted = (round(stated[0] / downscale), round(stated[1] / downscale))
    # photos that were reduced since their camera was estimated keep their size
    size = wanted if view.resized else (min(wanted[0], found[0]), min(wanted[1], found[1]))
    if min(size) < 1:
        raise InputError(f"datasets.downscale: view {view.name} has {stated[1]}x{stated[0]} pixels, got {downscale:g}; lower it")
    lens = None if view.lens is None else view.lens.resized(size)
    return replace(view, camera=view.camera.resize(size), lens=lens, resized=size != found)


def read_photo(view: View) -> Photo:
    """Decodes a view.

    Raises:
        InputError: unreadable file, size other than that of the camera, or a mask asked for without an alpha channel.
    """
    pixels = _decode(view.image, view.camera.image_size if view.resized else None)
    if pixels.shape[:2] != view.camera.image_size:
        height, width = view.camera.image_size
        raise InputError(
            f"image {view.image}: expected {width}x{height} pixels as the first image of the scene, got {pixels.shape[1]}x{pixels.shape[0]}; "
            "resize the image or give it its own scene"
        )
    channels = torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()
    if view.lens is not None:
        channels = undistort(channels, view.lens, view.camera)
    colour = channels[:3]
    if view.mask is not None:
        return _masked(view, colour, _read_mask(view))
    if len(channels) == 3:
        if view.alpha_is_mask:
            raise InputError(
                f"image {view.image}: expected an alpha channel (the mask of the object), got {len(channels)} channels; export RGBA"
            )
        return Photo(colour, None)
    alpha = channels[3:]
    if view.background is not None:
        opacity = alpha.float() / 255
        background = torch.tensor(view.background)[:, None, None] * 255
        blended = (colour.float() / 255 * opacity + background / 255 * (1 - opacity)) * 255
        colour = (blended if view.truncates else blended + 0.5).to(torch.uint8)
    return Photo(colour, alpha if view.alpha_is_mask else None)


def _decode(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w c"]:
    """Colours, with alpha as fourth channel where the file has one; resampled to ``size`` when that is given."""
    try:
        with Image.open(path) as file:
            has_alpha = "A" in file.getbands() or "transparency" in file.info
            image = file.convert("RGBA" if has_alpha else "RGB")
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except FileNotFoundError:
        raise InputError(f"image {path}: no such file; restore it or remove the view from the scene") from None
    except DECODER_ERRORS as error:
        raise InputError(f"image {path}: expected a readable image, got {error}; replace the file") from error


def _read_mask(view: View) -> UInt8[Tensor, "1 h w"]:
    """The mean of the three colours, rounded, so that 128 and more are one half and more."""
    assert view.mask is not None
    size = image_size(view.image)
    if image_size(view.mask) != size:
        found = image_size(view.mask)
        raise InputError(
            f"mask {view.mask}: expected {size[1]}x{size[0]} pixels as its photo has, got {found[1]}x{found[0]}; resize the mask"
        )
    pixels = _decode(view.mask, view.camera.image_size if view.resized else None)
    total = torch.from_numpy(pixels[..., :3].astype(np.int16)).sum(-1)
    mask = ((total + 1) // 3).to(torch.uint8)[None]
    return mask if view.lens is None else undistort(mask, view.lens, view.camera)


def _masked(view: View, colour: UInt8[Tensor, "3 h w"], mask: UInt8[Tensor, "1 h w"]) -> Photo:
    if view.background is not None:
        background = (torch.tensor(view.background)[:, None, None] * 255 + 0.5).to(torch.uint8)
        colour = torch.where(mask < 128, background, colour)
    return Photo(colour, mask)


# ----------------------------------------------------------------------
# Decoded photos in memory: 8 bits per value, up to a budget, shared by the worker processes that read them.


_PAGE = 4096  # photos begin at multiples of it


def available_bytes() -> int:
    """Memory of this machine that no program uses now."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class PhotoCache:
    """The photos of one scene. As many of them as fit into the budget are decoded once and kept, the others every time.

    The memory is taken from the system photo by photo, as they are decoded. Worker processes that are forked share it; where workers are spawned
    instead, each keeps its own.

    Args:
        views: the views of the scene.
        budget: bytes.

    Attributes:
        kept: how many of the photos fit.
        size: bytes that they need.
    """

    def __init__(self, views: Sequence[View], budget: int) -> None:
        self.views = views
        lengths = np.array([-(-_length(view) // _PAGE) * _PAGE for view in views], dtype=np.int64)
        ends = len(views) + np.cumsum(lengths)
        self.kept = int((ends <= budget).sum())
        self.size = int(ends[self.kept - 1]) if self.kept else 0
        self._starts = (ends - lengths).tolist()
        self._map()

    def _map(self) -> None:
        # anonymous and shared: neither bound by the size of /dev/shm nor copied by a fork; its first bytes say which photos are there
        self._memory = torch.frombuffer(mmap.mmap(-1, self.size), dtype=torch.uint8) if self.size else torch.empty(0, dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_memory"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def read(self, index: int) -> Photo:
        """The photo of view ``index``; its tensors must not be written to. Raises InputError for a photo that cannot be read."""
        view = self.views[index]
        if index >= self.kept:
            return read_photo(view)
        height, width = view.camera.image_size
        begin, channels = self._starts[index], _channels(view)
        place = self._memory[begin : begin + channels * height * width].view(channels, height, width)
        if not self._memory[index]:
            photo = read_photo(view)
            place[:3] = photo.image
            if photo.mask is not None:
                place[3:] = photo.mask
            self._memory[index] = 1  # last: other processes may read as soon as it is set
        return Photo(place[:3], place[3:] if channels == 4 else None)


def _channels(view: View) -> int:
    return 3 + (view.mask is not None or view.alpha_is_mask)


def _length(view: View) -> int:
    return _channels(view) * view.camera.image_size[0] * view.camera.image_size[1]
