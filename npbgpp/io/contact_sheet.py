"""Rows of pictures with captions on one sheet."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from npbgpp.io.images import as_image
from npbgpp.metrics import ImageScores

_TILE_WIDTH = 256
_GAP = 8
_HEADER = 64
_CAPTION = 22
_PAPER, _INK = (250, 250, 248), (30, 30, 34)


@dataclass(frozen=True)
class TileRow:
    """Pictures of one size side by side, with a line of text below. A missing one leaves its place empty, the first is there."""

    caption: str
    pictures: tuple[Float[Tensor, "3 _ _"] | None, ...]


def tile_sheet(title: str, columns: Sequence[str], rows: Sequence[TileRow]) -> Image.Image:
    """Draws rows of pictures below a title and a header per column. ``rows`` must not be empty."""
    assert rows
    heights = []
    for row in rows:
        first = row.pictures[0]
        assert first is not None
        heights.append(round(_TILE_WIDTH * first.shape[1] / first.shape[2]))
    width = len(columns) * (_TILE_WIDTH + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _HEADER + sum(h + _CAPTION + _GAP for h in heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 8), title, fill=_INK, font=ImageFont.load_default(18))
    small = ImageFont.load_default(13)
    for k, name in enumerate(columns):
        draw.text((_GAP + k * (_TILE_WIDTH + _GAP), 42), name, fill=_INK, font=small)
    top = _HEADER
    for row, height in zip(rows, heights, strict=True):
        for k, picture in enumerate(row.pictures):
            if picture is not None:
                resampling = Image.Resampling.LANCZOS if picture.shape[2] > _TILE_WIDTH else Image.Resampling.BICUBIC
                sheet.paste(as_image(picture).resize((_TILE_WIDTH, height), resampling), (_GAP + k * (_TILE_WIDTH + _GAP), top))
        draw.text((_GAP, top + height + 3), row.caption, fill=_INK, font=small)
        top += height + _CAPTION + _GAP
    return sheet


# ----------------------------------------------------------------------
# The contact sheet of an evaluation: ground truth, rendering, points and error of a few views, with their scores.


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
