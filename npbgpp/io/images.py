"""PNG images and depth maps."""

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from npbgpp.core.files import write_atomically

DEPTH_FORMATS = ("npy", "pfm", "bytes")


def to_pil(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """Colours in [0, 1], clamped and rounded to 8 bits."""
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def write_png(path: Path, image: Image.Image | Float[Tensor, "3 _ _"]) -> None:
    """Writes an image, or colours in [0, 1], as 8-bit PNG. Raises InputError if the file cannot be written."""
    buffer = io.BytesIO()  # Pillow hides the reason when it cannot write to a file itself
    (to_pil(image) if isinstance(image, Tensor) else image).save(buffer, format="PNG")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def write_depth(path: Path, depth: Float[Tensor, "h w"]) -> None:
    """Writes a depth map as 32-bit floats.

    Args:
        path: ends in .npy (NumPy), .pfm (portable float map) or .bytes (rows from the top, little endian, no header, as nerf_pl's Unity scripts read them).
        depth: scene units, 0 where there is no surface.

    Raises:
        InputError: the file cannot be written.
    """
    values = depth.detach().float().cpu().contiguous().numpy()
    if path.suffix == ".npy":
        write_atomically(path, lambda file: np.save(file, values))
    elif path.suffix == ".pfm":
        import cv2  # slow to import, rarely needed

        done, encoded = cv2.imencode(".pfm", values)
        assert done
        write_atomically(path, lambda file: file.write(encoded.tobytes()))
    else:
        assert path.suffix == ".bytes", path
        write_atomically(path, lambda file: file.write(values.astype("<f4").tobytes()))


def depth_range(depth: Float[Tensor, "..."]) -> tuple[float, float]:
    """1st and 99th percentile of the finite positive depths; (0, 1) if there are none."""
    valid = depth[(depth > 0) & depth.isfinite()].flatten()
    if not len(valid):
        return 0.0, 1.0
    valid = valid[:: max(1, len(valid) // 100_000)].sort().values
    low, high = valid[int(0.01 * (len(valid) - 1))].item(), valid[int(0.99 * (len(valid) - 1))].item()
    return low, high


def depth_colormap(depth: Float[Tensor, "*s"], near: float, far: float) -> Float[Tensor, "3 *s"]:
    """Depths in the Turbo colour map: red at ``near`` and before, blue at ``far`` and beyond, black where the depth is 0."""
    import cv2

    turbo = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_TURBO).reshape(256, 3)[:, ::-1]
    position = ((far - depth.cpu()) / max(far - near, 1e-12)).clamp(0, 1)
    colours = torch.from_numpy(turbo.copy())[(position * 255).round().long()].movedim(-1, 0).float() / 255
    return torch.where(depth.cpu() > 0, colours, 0.0)
