"""Whole runs on tiny scenes: what a run leaves behind."""

import json

from PIL import Image


def test_fit_and_test_write_everything(run_here):
    folder = run_here("test_after_fit=true", "loggers=[csv,tensorboard]", "trainer.max_epochs=2")
    for name in ("checkpoints/epoch0.ckpt", "checkpoints/epoch1.ckpt", "checkpoints/last.ckpt", "descriptors/ball.pth", "report.png"):
        assert (folder / name).is_file(), name
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["stage"] == "test" and metrics["epoch"] == 1
    scores = metrics["datasets"]["ball_holdout"]
    assert scores["views"] == 2 and set(scores["per_view"]) == {"test-r_0", "test-r_1"}
    assert scores["psnr"] > 3 and -1 <= scores["ssim"] <= 1
    assert scores["lpips"] is None and metrics["protocol"]["lpips"].startswith("not available")
    rendered = folder / "rendered" / "ball_holdout" / "test_epoch1"
    for kind in ("rendered", "gt", "raster"):
        assert Image.open(rendered / f"test-r_0_{kind}.png").size == (32, 32)
    assert (folder / "rendered" / "ball_val" / "val_epoch0" / "val-r_0_debug.png").is_file()
