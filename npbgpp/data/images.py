"""Finding and decoding photos and masks: 8-bit pixels, alpha composited on a background; and a cache of decoded photos shared by worker processes."""

import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from npbgpp.data.lens import undistort
from npbgpp.data.scene import DepthMap, View
from npbgpp.errors import InputError

# raised by Pillow for damaged files, including headers with more pixels than fit in memory
DECODER_ERRORS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_DEPTH_MODES = ("I;16", "I;16B", "I;16L", "I")
_LOSSY = ("JPEG", "MPO")
_DEEP = ("I", "F")  # modes of Pillow with more than 8 bits per channel, without those that it reduces itself
_MASK_SIDES = 0.5  # pixels that the sides of a resampled mask may be off by
_PAGE = 4096  # bytes; cached photos begin at multiples of it


@dataclass(frozen=True)
class Photo:
    """A decoded photo in 8 bits; ``mask`` is None for views without one."""

    image: UInt8[Tensor, "3 h w"]
    mask: UInt8[Tensor, "1 h w"] | None


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """An image to decode within the context. Raises InputError for a missing, damaged or other file."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"image {path}: no such file; restore it or correct the scene") from None
    except DECODER_ERRORS as error:
        raise InputError(f"image {path}: expected a readable image, got {error}; replace the file") from error


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the file header. Raises InputError for a missing file or one that is no image."""
    with open_image(path) as image:
        return image.height, image.width


def has_alpha(path: Path) -> bool:
    """Whether an image has an alpha channel or a transparent colour, from the file header. Raises InputError as ``image_size`` does."""
    with open_image(path) as image:
        return _is_transparent(image)


def _is_transparent(image: Image.Image) -> bool:
    return "A" in image.getbands() or ("transparency" in image.info and not image.mode.startswith(_DEEP))


def common_size(paths: Iterable[Path]) -> tuple[int, int]:
    """(height, width) of one or more images of equal size, from the file headers. Raises InputError for the first image of another size."""
    sizes = ((path, image_size(path)) for path in paths)
    first, size = next(sizes)
    for path, found in sizes:
        if found != size:
            raise InputError(
                f"image {path}: expected {size[1]}x{size[0]} pixels as {first} has, got {found[1]}x{found[0]}; resize one of them"
            )
    return size


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key of natural order: x9 before x10."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", name))], name


def list_images(folder: Path) -> list[Path]:
    """Images (.png, .jpg, .jpeg) of a folder, sorted by name, without hidden files such as ``._img_0003.jpg``.

    Raises:
        InputError: a missing folder, or one without images.
    """
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    except OSError as error:
        raise InputError(
            f"{folder}: expected a folder of images, got none ({error.strerror}); restore it or correct datasets.data_root and datasets.scene_name"
        ) from error
    if not found:
        raise InputError(f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), got none; restore them")
    return found


def numbered_images(folder: Path) -> dict[int, Path]:
    """Images of a folder by the number at the end of their names, in ascending order: img_0003.jpg is 3.

    Raises:
        InputError: a missing folder, one without images, a name without number, or two images of one number.
    """
    found: dict[int, Path] = {}
    for path in list_images(folder):
        if not path.name.isprintable():
            raise InputError(f"image {str(path)!r}: expected a name of printable UTF-8 characters; rename the file")
        number = re.search(r"[0-9]+$", path.stem)
        if number is None:
            raise InputError(f"image {path}: expected a name that ends in a number; move or rename the file")
        twin = found.setdefault(int(number[0]), path)
        if twin is not path:
            raise InputError(f"image {path}: expected one image per number, got {twin.name} too; remove one of them")
    return dict(sorted(found.items()))


def images_folder(root: Path, downscale: float) -> Path:
    """``images_8`` for a downscale of 8 if the scene has that folder, else ``images``."""
    reduced = root / f"images_{downscale:g}"
    return reduced if downscale != 1 and reduced.is_dir() else root / "images"


def fitted(view: View, downscale: float) -> View:
    """The view resized to 1/downscale of the size of its camera, but not beyond the size of its photo.

    Raises:
        InputError: a side of less than one pixel, or a photo that cannot be read.
    """
    stated, found = view.camera.image_size, image_size(view.image)
    wanted = (round(stated[0] / downscale), round(stated[1] / downscale))
    # photos that were downscaled after calibration keep their size
    size = wanted if view.resized else (min(wanted[0], found[0]), min(wanted[1], found[1]))
    if min(size) < 1:
        raise InputError(f"datasets.downscale: view {view.name} has {stated[1]}x{stated[0]} pixels, got {downscale:g}; lower it")
    lens = None if view.lens is None else view.lens.resized(size)
    return replace(view, camera=view.camera.resize(size), lens=lens, resized=size != found)


def read_photo(view: View) -> Photo:
    """Decodes the photo of a view, and its mask where it has one: undistorted, resized and composited as the view says.

    Raises:
        InputError: an unreadable file, another size than that of the camera, a mask of another size, or no alpha channel where it is the mask.
    """
    pixels = _decode(view.image, view.camera.image_size if view.resized else None)
    if pixels.shape[:2] != view.camera.image_size:
        height, width = view.camera.image_size
        raise InputError(
            f"image {view.image}: expected {width}x{height} pixels as the first image of the scene, got {pixels.shape[1]}x{pixels.shape[0]}; "
            "resize the image or move it to a scene of its own"
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
    if view.background is None and not view.alpha_is_mask and int(alpha.min()) < 255:
        raise InputError(
            f"image {view.image}: expected an opaque photo, got transparent pixels, whose colours are undefined; save it without alpha, or composited on white"
        )
    if view.background is not None:
        opacity = alpha.float() / 255
        background = torch.tensor(view.background)[:, None, None] * 255
        blended = (colour.float() / 255 * opacity + background / 255 * (1 - opacity)) * 255
        colour = (blended if view.truncates else blended + 0.5).to(torch.uint8)
    return Photo(colour, alpha if view.alpha_is_mask else None)


def _decode(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w c"]:
    """RGB, or RGBA if the file has alpha, resampled to ``size`` (height, width) if given."""
    with open_image(path) as file:
        return np.asarray(_resampled(in_8_bits(path, file), size))


def _resampled(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    return image if size is None else image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def in_8_bits(path: Path, file: Image.Image) -> Image.Image:
    """RGB or RGBA. 16-bit grey keeps its upper 8 bits, as Pillow does for 16-bit colours; floating point is scaled from 0..1.

    Raises:
        InputError: integers of more than 16 bits, or floating point beyond 0..1.
    """
    if not file.mode.startswith(_DEEP):
        return file.convert("RGBA" if _is_transparent(file) else "RGB")
    values = np.asarray(file)
    if file.mode.startswith("I;16"):
        values = values >> 8
    elif values.dtype.kind == "f" and np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1:
        values = values * 255 + 0.5
    else:
        raise InputError(
            f"image {path}: expected 8 or 16 bits per channel, or floating point from 0 to 1, got {values.dtype} from {values.min()} to {values.max()}; convert "
            "it to 8 bits"
        )
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def read_mask(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w"]:
    """A mask, 255 on the object; resampled (bilinear) to ``size`` (height, width) if given.

    Mean of the three channels, rounded half up. Masks of the values 0 and 1 are scaled; masks whose colours are all the same have their alpha channel; of
    label images with a coloured palette all labels but 0 count.

    Raises:
        InputError: an unreadable file.
    """
    with open_image(path) as file:
        if file.mode == "P" and not _has_grey_palette(file):
            image = Image.fromarray(np.where(np.asarray(file) > 0, 255, 0).astype(np.uint8))
            return np.asarray(_resampled(image, size))
        is_lossy = file.format in _LOSSY
        image = in_8_bits(path, file)
        pixels = np.asarray(image)
        if image.mode == "RGBA" and (pixels[..., :3] == pixels[0, 0, :3]).all():
            pixels = pixels[..., [3, 3, 3]]
        if not is_lossy and pixels[..., :3].max() == 1:
            pixels = pixels * np.uint8(255)
        image = Image.fromarray(pixels[..., :3])
        total = np.asarray(_resampled(image, size))[..., :3].astype(np.int16).sum(-1)
    return ((total + 1) // 3).astype(np.uint8)


def _has_grey_palette(image: Image.Image) -> bool:
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())


def _read_mask(view: View) -> UInt8[Tensor, "1 h w"]:
    """Values from 128 belong to the object."""
    assert view.mask is not None
    check_mask_size(view.mask, view.image)
    size = view.camera.image_size
    mask = torch.from_numpy(read_mask(view.mask, None if image_size(view.mask) == size else size).copy())[None]
    return mask if view.lens is None else undistort(mask, view.lens, view.camera)


def check_mask_size(mask: Path, photo: Path) -> None:
    """Raises InputError for a mask of another aspect ratio than its photo, up to rounding to integers: masks are resampled to their photos."""
    (height, width), found = image_size(photo), image_size(mask)
    if abs(found[1] / width - found[0] / height) > _MASK_SIDES / width + _MASK_SIDES / height:
        raise InputError(
            f"mask {mask}: expected {width}x{height} pixels as its photo has, or the same ratio, got {found[1]}x{found[0]}; resize the mask"
        )


def _masked(view: View, colour: UInt8[Tensor, "3 h w"], mask: UInt8[Tensor, "1 h w"]) -> Photo:
    if view.background is not None:
        background = (torch.tensor(view.background)[:, None, None] * 255 + 0.5).to(torch.uint8)
        colour = torch.where(mask < 128, background, colour)
    return Photo(colour, mask)


def read_depth(depth: DepthMap) -> Float[Tensor, "h w"]:
    """Depths in scene units, 0 where unknown.

    Raises:
        InputError: a missing or unreadable file, an image without a single 16-bit channel, or of another size than its camera.
    """
    size, expected = image_size(depth.path), depth.camera.image_size
    if size != expected:
        raise InputError(
            f"depth map {depth.path}: expected {expected[1]}x{expected[0]} pixels as its camera has, got {size[1]}x{size[0]}; restore the image"
        )
    try:
        with Image.open(depth.path) as image:
            mode, values = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"depth map {depth.path}: expected a readable image, got {error}; replace the file") from error
    if mode not in _DEPTH_MODES:
        raise InputError(f"depth map {depth.path}: expected an image of one 16-bit channel, got {mode}; export depths as 16-bit PNG")
    return torch.from_numpy(values.astype(np.float32)) * depth.unit


def available_bytes() -> int:
    """Free memory of this machine."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class PhotoCache:
    """Decoded photos of one scene in 8 bits: the first ones up to the budget are decoded once, the others every time.

    Memory is allocated by the system as photos are decoded. Forked worker processes share it, spawned ones have caches of their own.

    Args:
        views: the views of the scene.
        budget: bytes.

    Attributes:
        kept: number of cached photos.
        size: their bytes.
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
        # anonymous and shared: not limited by /dev/shm, not copied by a fork; one flag per photo, then the photos
        self._memory = torch.frombuffer(mmap.mmap(-1, self.size), dtype=torch.uint8) if self.size else torch.empty(0, dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_memory"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def read(self, index: int) -> Photo:
        """The photo of view ``index``; its tensors are read-only. Raises InputError for a photo that cannot be read."""
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
            self._memory[index] = 1  # last: other processes may read the photo from here on
        return Photo(place[:3], place[3:] if channels == 4 else None)


def _channels(view: View) -> int:
    return 3 + (view.mask is not None or view.alpha_is_mask)


def _length(view: View) -> int:
    return _channels(view) * view.camera.image_size[0] * view.camera.image_size[1]
