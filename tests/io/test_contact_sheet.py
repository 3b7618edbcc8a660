"""Contact sheets: tiles, captions and error maps."""

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.io import ERROR_RANGE, EvaluationRow, enlarged_points, error_map, evaluation_sheet


def flat(value: float, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return torch.full((3, *size), value)


def row(rendered: float, size: tuple[int, int] = (32, 32), raster: bool = True) -> EvaluationRow:
    return EvaluationRow("caption", flat(0.5, size), flat(rendered, size), flat(1.0, size) if raster else None)


def tile_colours(sheet: Image.Image, rows: int) -> list[list[tuple[int, int, int]]]:
    """Colours in the centres of square tiles."""
    pixels = np.asarray(sheet)
    return [[tuple(pixels[64 + r * 286 + 128, 8 + c * 264 + 128].tolist()) for c in range(4)] for r in range(rows)]


@pytest.mark.parametrize(
    ("error", "colour"),
    [(0, (0, 0, 0)), (1 / 3, (1, 0, 0)), (1 / 2, (1, 0.5, 0)), (2 / 3, (1, 1, 0)), (1, (1, 1, 1)), (2, (1, 1, 1)), (4, (1, 1, 1))],
)
def test_error_colours(error, colour):
    for sign in (1, -1):
        image = error_map(flat(0.5 + sign * error * ERROR_RANGE / 2), flat(0.5 - sign * error * ERROR_RANGE / 2))
        torch.testing.assert_close(image, torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(3, 32, 32), rtol=0, atol=1e-5)


def test_error_is_the_mean_over_channels():
    rendered = flat(0.0)
    rendered[1] = 3 * ERROR_RANGE
    assert (error_map(rendered, flat(0.0)) == 1).all()
    rendered[1] = ERROR_RANGE
    torch.testing.assert_close(error_map(rendered, flat(0.0)), torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 32, 32))


def test_each_view_has_target_rendering_points_and_error():
    sheet = evaluation_sheet("title", [row(0.5), row(0.5 + ERROR_RANGE), row(0.5, raster=False)])
    assert sheet.size == (8 + 4 * 264, 64 + 3 * 286)
    grey, bright, white, black, background = (128, 128, 128), (191, 191, 191), (255, 255, 255), (0, 0, 0), (250, 250, 248)
    assert tile_colours(sheet, 3) == [[grey, grey, white, black], [grey, bright, white, white], [grey, grey, background, black]]


def test_tiles_keep_their_aspect_ratio():
    sheet = evaluation_sheet("title", [row(0.5, (32, 64)), row(0.5, (64, 32)), row(0.5, (300, 600))])
    assert sheet.size == (1064, 64 + (128 + 30) + (512 + 30) + (128 + 30))


def test_points_of_sparse_clouds_are_drawn_larger():
    raster = flat(1.0, (40, 60))
    raster[:, 10, 15] = torch.tensor([1.0, 0.0, 0.0])
    raster[:, 30, 45] = torch.tensor([0.0, 0.0, 1.0])
    drawn = enlarged_points(raster)
    red, blue = (drawn == torch.tensor(colour)[:, None, None] for colour in ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]))
    assert 80 < red.all(0).sum() == blue.all(0).sum() < 140 and red.all(0)[10, 20] and not red.all(0)[10, 25]
    assert (drawn == 1).all(0).sum() == 40 * 60 - red.all(0).sum() - blue.all(0).sum()


def test_dense_and_empty_rasters_stay():
    raster = torch.rand(3, 20, 30)
    assert enlarged_points(raster) is raster and enlarged_points(None) is None
    assert torch.equal(enlarged_points(flat(1.0)), flat(1.0))
