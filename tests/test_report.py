"""The contact sheet and metrics.json: what is drawn and what is written."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.io.contact_sheet import ERROR_RANGE, EvaluationRow, error_map, evaluation_sheet, format_scores
from npbgpp.metrics import ImageScores

SCORES = ImageScores(psnr=21.234, ssim=0.87654, lpips=None)


def flat(value: float, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return torch.full((3, *size), value)


@pytest.mark.parametrize(
    ("error", "colour"),
    [(0, (0, 0, 0)), (1 / 3, (1, 0, 0)), (1 / 2, (1, 0.5, 0)), (2 / 3, (1, 1, 0)), (1, (1, 1, 1)), (2, (1, 1, 1)), (4, (1, 1, 1))],
)
def test_colours_of_the_error(error, colour):
    for sign in (1, -1):
        picture = error_map(flat(0.5 + sign * error * ERROR_RANGE / 2), flat(0.5 - sign * error * ERROR_RANGE / 2))
        torch.testing.assert_close(picture, torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(3, 32, 32), rtol=0, atol=1e-5)


def test_error_is_the_mean_over_channels():
    rendered = flat(0.0)
    rendered[1] = 3 * ERROR_RANGE
    assert (error_map(rendered, flat(0.0)) == 1).all()
    rendered[1] = ERROR_RANGE
    torch.testing.assert_close(error_map(rendered, flat(0.0)), torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 32, 32))


def row(name: str, rendered: float, size: tuple[int, int] = (32, 32), raster: bool = True) -> EvaluationRow:
    return EvaluationRow(name, flat(0.5, size), flat(rendered, size), flat(1.0, size) if raster else None, SCORES)


def tiles(sheet: Image.Image, count: int) -> list[list[tuple[int, int, int]]]:
    """Colours at the centres of the square tiles."""
    pixels = np.asarray(sheet)
    return [[tuple(pixels[64 + r * 286 + 128, 8 + c * 264 + 128].tolist()) for c in range(4)] for r in range(count)]


def test_one_row_per_view_with_target_rendering_points_and_error():
    sheet = evaluation_sheet("title", [row("a", 0.5), row("b", 0.5 + ERROR_RANGE), row("c", 0.5, raster=False)])
    assert sheet.size == (8 + 4 * 264, 64 + 3 * 286)
    found = tiles(sheet, 3)
    grey, far = (128, 128, 128), (191, 191, 191)
    assert found[0] == [grey, grey, (255, 255, 255), (0, 0, 0)]
    assert found[1] == [grey, far, (255, 255, 255), (255, 255, 255)]
    assert found[2] == [grey, grey, (250, 250, 248), (0, 0, 0)]


def test_views_of_any_shape_keep_it():
    sheet = evaluation_sheet("title", [row("wide", 0.5, (32, 64)), row("tall", 0.5, (64, 32)), row("large", 0.5, (300, 600))])
    assert sheet.size == (1064, 64 + (128 + 30) + (512 + 30) + (128 + 30))


def test_captions():
    assert format_scores(SCORES) == "PSNR 21.23 dB, SSIM 0.877"
    assert format_scores(ImageScores(100.0, 1.0, 0.1234)) == "PSNR 100.00 dB, SSIM 1.000, LPIPS 0.123"


def strict_json(text: str) -> dict:
    """Fails on NaN and Infinity, which are no JSON."""

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} in JSON")

    return json.loads(text, parse_constant=refuse)


def test_metrics_json_and_report_of_a_run(run_here):
    folder = run_here("test_after_fit=true", "datasets.image_margin=2")
    content = strict_json((folder / "metrics.json").read_text())
    assert set(content) == {"stage", "epoch", "protocol", "datasets", "costs"}
    assert content["stage"] == "test" and content["epoch"] == 0
    protocol = content["protocol"]
    assert set(protocol) == {"psnr", "ssim", "lpips", "margin", "range", "background", "resize_filter", "cloud"}
    assert protocol["margin"] == 2 and protocol["background"] == "(1.0, 1.0, 1.0)" and protocol["resize_filter"] == "none"
    assert set(content["datasets"]) == {"ball_holdout"}
    found = content["datasets"]["ball_holdout"]
    assert set(found) == {"psnr", "ssim", "lpips", "views", "seconds_per_view", "per_view"}
    assert found["views"] == len(found["per_view"]) == 2
    for view in found["per_view"].values():
        assert set(view) == {"psnr", "ssim", "lpips", "seconds"}
        assert view["seconds"] > 0 and math.isfinite(view["psnr"])
    for key, mean in (("psnr", "psnr"), ("ssim", "ssim"), ("seconds", "seconds_per_view")):
        assert found[mean] == pytest.approx(sum(view[key] for view in found["per_view"].values()) / 2)
    with Image.open(folder / "report.png") as sheet:
        assert sheet.size == (1064, 64 + 2 * 286)


def test_stored_background_is_said(run_here):
    folder = run_here("datasets.white_bg=false")
    content = strict_json((folder / "metrics.json").read_text())
    assert content["stage"] == "val" and content["protocol"]["background"] == "as photographed"
    assert set(content["datasets"]) == {"ball_val"}


def test_scores_are_those_of_the_written_pictures(run_here):
    """8-bit pictures give the PSNR of metrics.json up to their rounding."""
    folder = run_here("test_after_fit=true")
    scores = json.loads((folder / "metrics.json").read_text())["datasets"]["ball_holdout"]["per_view"]
    pictures = folder / "rendered" / "ball_holdout" / "test_epoch0"
    for view, found in scores.items():
        ours, truth = (np.asarray(Image.open(pictures / f"{view}_{kind}.png")).astype(float) / 255 for kind in ("rendered", "gt"))
        assert found["psnr"] == pytest.approx(-10 * math.log10(((ours - truth) ** 2).mean()), abs=0.05)
