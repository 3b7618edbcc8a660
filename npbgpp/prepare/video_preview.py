"""Previews of the stages of a video: contact sheets with a few frames, each beside its result."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from npbgpp.data import Scene, read_flow, read_mask, read_numbers
from npbgpp.io import SheetRow, contact_sheet, write_png
from npbgpp.prepare.check_sheet import draw_points, thumbnail

_FRAMES = 4
_RED = (1.0, 0.1, 0.1)
_NEAR = 1e-6  # draws all points in front of the camera


def write_preview(
    path: Path, title: str, column: str, frames: Sequence[Path], result: Callable[[int], Float[Tensor, "3 h w"] | None] | None
) -> None:
    """Writes a contact sheet of evenly spread frames, beside the result of each if ``result`` is given."""
    chosen = sorted({round(k * (len(frames) - 1) / (_FRAMES - 1)) for k in range(_FRAMES)})
    images = [(_read_image(frames[k]),) if result is None else (_read_image(frames[k]), result(k)) for k in chosen]
    rows = [SheetRow(frames[k].name, row) for k, row in zip(chosen, images, strict=True)]
    write_png(path, contact_sheet(title, ("frame",) if result is None else ("frame", column), rows))


def mask_preview(frame: Path, mask: Path) -> Float[Tensor, "3 h w"]:
    """The frame, tinted red where the mask is dark."""
    image, moving = _read_image(frame), torch.from_numpy(read_mask(mask)) < 128
    return torch.where(moving, 0.4 * image + 0.6 * torch.tensor(_RED)[:, None, None], image)


def map_preview(path: Path) -> Float[Tensor, "3 h w"]:
    """Grey values from the minimum (black) to the maximum (white) of a map."""
    values = torch.from_numpy(read_numbers(path))
    values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)
    return values.expand(3, -1, -1)


def flow_preview(path: Path) -> Float[Tensor, "3 h w"]:
    """Optical flow in the colour wheel of the Middlebury benchmark; no motion is white."""
    from torchvision.utils import flow_to_image  # slow to import

    return flow_to_image(torch.from_numpy(read_flow(path)).permute(2, 0, 1)).float() / 255


def points_preview(scene: Scene, k: int) -> Float[Tensor, "3 h w"]:
    """The points of the reconstruction over a frame; the frame alone if the poses came without points."""
    camera, photo = thumbnail(scene.views[k])
    return photo if scene.carried_points is None else draw_points(photo, camera, scene.cloud.read().xyz, _NEAR)


def _read_image(path: Path) -> Float[Tensor, "3 h w"]:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1).float() / 255
