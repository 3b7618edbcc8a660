"""Contact sheets: rows of captioned images below a title."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from npbgpp.io.images import to_pil

ERROR_RANGE = 0.25  # absolute difference drawn as white
_TILE_WIDTH = 256
_GAP = 8
_HEADER = 64
_CAPTION = 22
_SPARSE = 0.25  # share of pixels that points cover, below which they are drawn larger
_WANTED = 0.3  # share that they then cover, if they lie apart
_LARGEST_RADIUS = 6.0  # pixels
_BACKGROUND, _TEXT = (250, 250, 248), (30, 30, 34)


@dataclass(frozen=True)
class SheetRow:
    """Images of one size, colours in [0, 1], above a caption. None leaves a tile empty; the first image must not be None."""

    caption: str
    images: tuple[Float[Tensor, "3 _ _"] | None, ...]


def contact_sheet(title: str, columns: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """Draws one tile per image, scaled to the same width, below a title and the names of the columns. ``rows`` must not be empty."""
    assert rows
    heights = []
    for row in rows:
        first = row.images[0]
        assert first is not None
        heights.append(round(_TILE_WIDTH * first.shape[1] / first.shape[2]))
    width = len(columns) * (_TILE_WIDTH + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _HEADER + sum(h + _CAPTION + _GAP for h in heights)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 8), title, fill=_TEXT, font=ImageFont.load_default(18))
    small = ImageFont.load_default(13)
    for k, name in enumerate(columns):
        draw.text((_GAP + k * (_TILE_WIDTH + _GAP), 42), name, fill=_TEXT, font=small)
    top = _HEADER
    for row, height in zip(rows, heights, strict=True):
        for k, image in enumerate(row.images):
            if image is not None:
                resampling = Image.Resampling.LANCZOS if image.shape[2] > _TILE_WIDTH else Image.Resampling.BICUBIC
                sheet.paste(to_pil(image).resize((_TILE_WIDTH, height), resampling), (_GAP + k * (_TILE_WIDTH + _GAP), top))
        draw.text((_GAP, top + height + 3), row.caption, fill=_TEXT, font=small)
        top += height + _CAPTION + _GAP
    return sheet


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluated view above a caption; images in [0, 1] on the CPU. ``raster`` shows the points alone."""

    caption: str
    target: Float[Tensor, "3 h w"]
    rendered: Float[Tensor, "3 h w"]
    raster: Float[Tensor, "3 h w"] | None


def evaluation_sheet(title: str, rows: Sequence[EvaluationRow]) -> Image.Image:
    """The contact sheet of an evaluation: photo (gt), rendering, points (or depth, of methods without) and error of each view. ``rows`` must not be empty."""
    columns = ("gt", "rendering", "points or depth", f"error (white: {ERROR_RANGE:g} or more)")
    tiles = [
        SheetRow(row.caption, (row.target, row.rendered, enlarged_points(row.raster), error_map(row.rendered, row.target))) for row in rows
    ]
    return contact_sheet(title, columns, tiles)


def error_map(rendered: Float[Tensor, "3 h w"], target: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Mean absolute difference over the channels, from black (0) over red and yellow to white (ERROR_RANGE or more)."""
    heat = (rendered - target).abs().mean(0) / ERROR_RANGE
    return torch.stack([(3 * heat - k).clamp(0, 1) for k in range(3)])


def enlarged_points(raster: Float[Tensor, "3 h w"] | None) -> Float[Tensor, "3 h w"] | None:
    """Points of a sparse cloud as discs that can be seen; each pixel near points takes the colour of the nearest one. Dense rasters are as they are.

    Args:
        raster: points on white, one pixel each; None gives None.
    """
    if raster is None:
        return None
    empty = (raster == 1).all(0)
    covered = 1 - float(empty.float().mean())
    if not 0 < covered < _SPARSE:
        return raster
    distance, (row, column) = distance_transform_edt(empty.numpy(), return_indices=True)
    radius = min(max(1.0, (_WANTED / covered / math.pi) ** 0.5), _LARGEST_RADIUS)
    return torch.where(torch.from_numpy(distance <= radius), raster[:, row, column], raster)
