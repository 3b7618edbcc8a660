"""PNG files that are either complete or absent."""

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from npbgpp.core.files import write_atomically


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


# ----------------------------------------------------------------------
# Depth maps as files: raw numbers for other programs, colours to look at.


RAW = ("npy", "pfm", "bytes")


def write_depth(path: Path, depth: Float[Tensor, "h w"]) -> None:
    """Writes depths as they are, in 32 bits.

    Args:
        path: ends in .npy (NumPy), .pfm (portable float map) or .bytes (rows from the top, little endian, no header: what Unity scripts for NeRF read).
        depth: scene units, 0 where nothing is.
    """
    values = depth.detach().float().cpu().contiguous().numpy()
    if path.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, values)
        content = buffer.getvalue()
    elif path.suffix == ".pfm":
        import cv2  # not needed by most runs, and slow to import

        done, coded = cv2.imencode(".pfm", values)
        assert done
        content = coded.tobytes()
    else:
        assert path.suffix == ".bytes", path
        content = values.astype("<f4").tobytes()
    write_atomically(path, lambda file: file.write(content))


def depth_range(depth: Float[Tensor, "..."]) -> tuple[float, float]:
    """(nearest, farthest) depth but for a hundredth at either end; (0, 1) where no pixel has a finite one."""
    known = depth[(depth > 0) & depth.isfinite()].flatten()
    if not len(known):
        return 0.0, 1.0
    known = known[:: max(1, len(known) // 100_000)].sort().values
    low, high = known[int(0.01 * (len(known) - 1))].item(), known[int(0.99 * (len(known) - 1))].item()
    return low, high


def depth_picture(depth: Float[Tensor, "h w"], nearest: float, farthest: float) -> Float[Tensor, "3 h w"]:
    """Depths in colours (Turbo): red is ``nearest`` and before, blue ``farthest`` and beyond, black is nothing."""
    import cv2

    place = (farthest - depth) / max(farthest - nearest, 1e-12)
    levels = (place.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    coloured = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    picture = torch.from_numpy(coloured).permute(2, 0, 1).float() / 255
    return torch.where((depth > 0).cpu(), picture, 0.0)
