"""The whole command line against a recorded evaluation of the authors' code: a scene on disk and their trained weights in, pictures and scores out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from .helpers.programs import TRAIN_NET, run_program

REPOSITORY = Path(__file__).resolve().parents[1]
VIEWS = 3


def command(recorded: Path) -> list[str]:
    return [
        "datasets=nerf_blender_one_scene",
        f"datasets.data_root={recorded}",
        "datasets.scene_name=lego16",
        "datasets.val_indices=[12]",
        "datasets.test_indices=[13,14,15]",
        "system=npbgpp_sphere",
        "system.visibility_scale=1.0",
        "system.feature_extractor.pretrained_encoder=false",
        f"weights_path={recorded / 'trained_sphere.ckpt'}",
        "eval_only=true",
        "dataloader=small",
    ]


def launch(recorded: Path, folder: Path) -> Path:
    """Runs the program as a user does; returns the run folder that it chose."""
    done = run_program(TRAIN_NET, command(recorded), folder)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "experiments").glob("*/*")
    return run


def check_run(run: Path, recorded: Path, align: bool) -> None:
    """Pictures within one grey level, PSNR within 0.01 dB, descriptors to half precision."""
    expected = recorded / "expected"
    scores = json.loads((expected / "psnr.json").read_text())
    exact = torch.load(expected / "rgb_half.pt", weights_only=True)
    content = json.loads((run / "metrics.json").read_text())["datasets"]
    ((dataset, summary),) = content.items()
    (pictures,) = (run / "rendered" / dataset).iterdir()
    assert summary["views"] == VIEWS
    for k in range(VIEWS):
        name = f"test-r_{k}"
        found, wanted = (
            np.asarray(Image.open(path)).astype(int)
            for path in (pictures / f"{name}_rendered.png", expected / f"align_{str(align).lower()}" / f"{name}_rendered.png")
        )
        assert found.shape == wanted.shape == (200, 200, 3)
        assert np.abs(found - wanted).max() <= 1
        assert np.abs(found / 255 - exact[f"align_{align}/{k}"].clamp(0, 1).permute(1, 2, 0).numpy()).max() < 1.5 / 255
        assert summary["per_view"][name]["psnr"] == pytest.approx(scores[f"align_{align}/{k}"], abs=0.01)
    assert summary["psnr"] == pytest.approx(sum(scores[f"align_{align}/{k}"] for k in range(VIEWS)) / VIEWS, abs=0.01)

    descriptors = torch.load(run / "descriptors" / "lego16.pth", weights_only=True)
    half = torch.load(expected / "descriptors_lego16_half.pth", weights_only=True)
    assert descriptors.shape == half.shape and descriptors.dtype == torch.float32 and half.dtype == torch.float16
    torch.testing.assert_close(descriptors, half.float(), rtol=1e-3, atol=2e-4 * half.float().abs().max().item())


@pytest.mark.slow
def test_the_recorded_command(shared, tmp_path):
    recorded = shared / "parity" / "cli_lego16"
    check_run(launch(recorded, tmp_path), recorded, align=True)


def test_the_recorded_command_without_alignment(shared, tmp_path, run_line):
    recorded = shared / "parity" / "cli_lego16"
    run = run_line(tmp_path, *command(recorded), "system.align_during_rendering=false", "loggers=none", f"hydra.run.dir={tmp_path / 'run'}")
    check_run(run, recorded, align=False)
