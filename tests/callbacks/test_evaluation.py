"""metrics.json, the written images and the contact sheet of an evaluation."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npbgpp.callbacks.evaluation import format_scores
from npbgpp.metrics import ImageScores

MARGIN = 2


def read_strict_json(path: Path) -> dict:
    """Fails on NaN and Infinity, which are not JSON."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def tested(run_in, tmp_path_factory) -> Path:
    """Folder of a run that ends with a test."""
    return run_in(tmp_path_factory.mktemp("evaluation"), "test_after_fit=true", f"datasets.image_margin={MARGIN}")


def test_metrics_and_contact_sheet(tested):
    content = read_strict_json(tested / "metrics.json")
    assert set(content) == {"stage", "epoch", "protocol", "datasets", "costs"}
    assert content["stage"] == "test" and content["epoch"] == 0
    protocol = content["protocol"]
    assert set(protocol) == {"psnr", "ssim", "lpips", "margin", "range", "background", "resize_filter", "cloud"}
    assert protocol["margin"] == MARGIN and protocol["background"] == "(1.0, 1.0, 1.0)" and protocol["resize_filter"] == "none"
    assert set(content["datasets"]) == {"ball_holdout"}
    scores = content["datasets"]["ball_holdout"]
    assert set(scores) == {"psnr", "ssim", "lpips", "views", "seconds_per_view", "per_view"}
    assert scores["views"] == len(scores["per_view"]) == 2
    for view in scores["per_view"].values():
        assert set(view) == {"psnr", "ssim", "lpips", "seconds"}
        assert view["seconds"] > 0 and math.isfinite(view["psnr"])
    for key, mean in (("psnr", "psnr"), ("ssim", "ssim"), ("seconds", "seconds_per_view")):
        assert scores[mean] == pytest.approx(sum(view[key] for view in scores["per_view"].values()) / 2)
    with Image.open(tested / "report.png") as sheet:
        assert sheet.size == (1064, 64 + 2 * 286)


def test_missing_lpips_weights_are_noted_once(run_here, caplog, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO):
        run_here("test_after_fit=true")  # a validation and a test
    assert sum("LPIPS" in record.getMessage() for record in caplog.records) == 1


def test_scores_match_the_written_images(tested):
    """Up to rounding to 8 bits."""
    scores = json.loads((tested / "metrics.json").read_text())["datasets"]["ball_holdout"]["per_view"]
    folder = tested / "rendered" / "ball_holdout" / "test_epoch0"
    for view, found in scores.items():
        rendered, truth = (np.asarray(Image.open(folder / f"{view}_{kind}.png")).astype(float) / 255 for kind in ("rendered", "gt"))
        error = (rendered - truth)[MARGIN:-MARGIN, MARGIN:-MARGIN]
        assert found["psnr"] == pytest.approx(-10 * math.log10((error**2).mean()), abs=0.05)


def test_validation_on_stored_backgrounds(run_here):
    content = read_strict_json(run_here("datasets.white_bg=false") / "metrics.json")
    assert content["stage"] == "val" and content["protocol"]["background"] == "as photographed"
    assert set(content["datasets"]) == {"ball_val"}


def test_captions():
    assert format_scores(ImageScores(21.234, 0.87654, None)) == "PSNR 21.23 dB, SSIM 0.877"
    assert format_scores(ImageScores(100.0, 1.0, 0.1234)) == "PSNR 100.00 dB, SSIM 1.000, LPIPS 0.123"
