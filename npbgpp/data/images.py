"""Decoding photos: 8-bit pixels, alpha composited on the background, masks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from npbgpp.data.scene import View
from npbgpp.errors import InputError

# what Pillow raises for damaged files, a header that promises more pixels than memory holds among them
_DECODER_ERRORS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError)


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
    except _DECODER_ERRORS as error:
        raise InputError(f"image {path}: expected a readable image, got {error}; replace the file") from error


def read_photo(view: View) -> Photo:
    """Decodes a view.

    Raises:
        InputError: unreadable file, size other than that of the camera, or a mask asked for without an alpha channel.
    """
    try:
        with Image.open(view.image) as file:
            has_alpha = "A" in file.getbands() or "transparency" in file.info
            pixels = np.asarray(file.convert("RGBA" if has_alpha else "RGB"))
    except FileNotFoundError:
        raise InputError(f"image {view.image}: no such file; restore it or remove the view from the scene") from None
    except _DECODER_ERRORS as error:
        raise InputError(f"image {view.image}: expected a readable image, got {error}; replace the file") from error
    if pixels.shape[:2] != view.camera.image_size:
        height, width = view.camera.image_size
        raise InputError(
            f"image {view.image}: expected {width}x{height} pixels as the first image of the scene, got {pixels.shape[1]}x{pixels.shape[0]}; "
            "resize the image or give it its own scene"
        )
    colour = torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1)
    if not has_alpha:
        if view.alpha_is_mask:
            raise InputError(
                f"image {view.image}: expected an alpha channel (the mask of the object), got {pixels.shape[2]} channels; export RGBA"
            )
        return Photo(colour.contiguous(), None)
    alpha = torch.from_numpy(pixels[..., 3:].copy()).permute(2, 0, 1)
    if view.background is not None:
        opacity = alpha.float() / 255
        background = torch.tensor(view.background)[:, None, None] * 255
        colour = (colour.float() * opacity + background * (1 - opacity) + 0.5).to(torch.uint8)
    return Photo(colour.contiguous(), alpha.contiguous() if view.alpha_is_mask else None)
