"""PNG files that are either complete or absent."""

import io
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from npbgpp.files import write_atomically


def as_image(picture: Float[Tensor, "3 h w"]) -> Image.Image:
    """Colours in [0, 1], rounded to 8 bits."""
    pixels = (picture.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def write_png(path: Path, picture: Float[Tensor, "3 _ _"]) -> None:
    """Writes colours in [0, 1], rounded to 8 bits."""
    write_image(path, as_image(picture))


def write_image(path: Path, image: Image.Image) -> None:
    """Writes a Pillow image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
