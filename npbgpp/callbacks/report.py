"""The contact sheet of an evaluation: ground truth, rendering, points and error of a few views, with their scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from npbgpp.callbacks.tile_sheet import TileRow, tile_sheet
from npbgpp.metrics import ImageScores

ERROR_RANGE = 0.25  # absolute difference drawn as white


@dataclass(frozen=True)
class SheetRow:
    """One view of the sheet; images in [0, 1] on the CPU."""

    view: str
    target: Float[Tensor, "3 h w"]
    rendered: Float[Tensor, "3 h w"]
    raster: Float[Tensor, "3 h w"] | None
    scores: ImageScores


def error_picture(rendered: Float[Tensor, "3 h w"], target: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Mean absolute difference of the channels from black over red and yellow to white; white is ERROR_RANGE or more."""
    heat = (rendered - target).abs().mean(0) / ERROR_RANGE
    return torch.stack([(3 * heat - k).clamp(0, 1) for k in range(3)])


def contact_sheet(title: str, rows: Sequence[SheetRow]) -> Image.Image:
    """Draws the sheet: a title line, a header per column, one row per view. ``rows`` must not be empty."""
    columns = ("ground truth", "rendering", "points", f"error (white: {ERROR_RANGE:g} or more)")
    return tile_sheet(
        title,
        columns,
        [
            TileRow(f"{row.view}: {describe(row.scores)}", (row.target, row.rendered, row.raster, error_picture(row.rendered, row.target)))
            for row in rows
        ],
    )


def describe(scores: ImageScores) -> str:
    """Scores in one line."""
    lpips = "" if scores.lpips is None else f", LPIPS {scores.lpips:.3f}"
    return f"PSNR {scores.psnr:.2f} dB, SSIM {scores.ssim:.3f}{lpips}"
