"""Whole runs on tiny scenes: what a run leaves behind, and what the next one takes up."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from npbgpp.core.files import load_tensors
from npbgpp.errors import InputError

EVALUATED = ("eval_only=true", "datasets.scenes.test=[ball]", "system.descriptors_pretrained_dir=run/descriptors")
QUIET = ("trainer.limit_val_batches=0", "datasets.scenes.test=[]")


def load(path: Path):
    return torch.load(path, weights_only=True)


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def without_times(content: dict) -> dict:
    return {
        name: {
            "psnr": row["psnr"],
            "ssim": row["ssim"],
            "views": {view: {k: v for k, v in scores.items() if k != "seconds"} for view, scores in row["per_view"].items()},
        }
        for name, row in content["datasets"].items()
    }


def test_fit_and_test_write_everything(run_here):
    folder = run_here("test_after_fit=true", "loggers=[csv,tensorboard]", "trainer.max_epochs=2")
    for name in ("checkpoints/epoch0.ckpt", "checkpoints/epoch1.ckpt", "checkpoints/last.ckpt", "descriptors/ball.pth", "report.png"):
        assert (folder / name).is_file(), name
    found = metrics(folder)
    assert found["stage"] == "test" and found["epoch"] == 1
    scores = found["datasets"]["ball_holdout"]
    assert scores["views"] == 2 and set(scores["per_view"]) == {"test-r_0", "test-r_1"}
    assert scores["psnr"] > 3 and -1 <= scores["ssim"] <= 1
    assert scores["lpips"] is None and found["protocol"]["lpips"].startswith("not available")
    rendered = folder / "rendered" / "ball_holdout" / "test_epoch1"
    for kind in ("rendered", "gt", "raster"):
        assert Image.open(rendered / f"test-r_0_{kind}.png").size == (32, 32)
    assert (folder / "rendered" / "ball_val" / "val_epoch0" / "val-r_0_debug.png").is_file()


def test_pictures_can_be_left_out(run_here):
    folder = run_here("test_after_fit=true", "system.save_rendered_eval_images=false")
    assert not (folder / "rendered").exists() and (folder / "report.png").is_file()


def test_a_time_limit_stops_within_an_epoch(run_here):
    folder = run_here(*QUIET, "trainer.max_time=00:00:00:01", "datasets.train_num_samples=100000")
    assert 0 < load_tensors(folder / "checkpoints" / "last.ckpt", "checkpoint")["global_step"] < 10_000


def test_a_run_repeats_bit_for_bit_and_follows_its_seed(run_here):
    one, same, other = (run_here(*QUIET, f"seed={seed}", name=name) for name, seed in (("one", 1), ("same", 1), ("other", 2)))
    assert torch.equal(load(one / "descriptors" / "ball.pth"), load(same / "descriptors" / "ball.pth"))
    assert not torch.equal(load(one / "descriptors" / "ball.pth"), load(other / "descriptors" / "ball.pth"))


def test_evaluation_gives_the_scores_of_the_run_that_trained(run_here):
    trained = run_here("test_after_fit=true", name="trained")
    weights = f"weights_path={trained}/checkpoints/last.ckpt"
    again = run_here("eval_only=true", weights, f"system.descriptors_pretrained_dir={trained}/descriptors", name="again")
    assert without_times(metrics(again)) == without_times(metrics(trained))
    assert not (again / "checkpoints").exists() and not (again / "descriptors").exists()
    in_place = run_here("eval_only=true", weights, f"system.descriptors_save_dir={trained}/descriptors", name="in_place")
    assert without_times(metrics(in_place)) == without_times(metrics(trained))


def test_evaluation_without_descriptors_is_refused(run_here):
    trained = run_here(*QUIET, name="trained")
    with pytest.raises(InputError, match="descriptors of scene ball: expected ball.pth") as caught:
        run_here("eval_only=true", f"weights_path={trained}/checkpoints/last.ckpt", name="again")
    assert str(caught.value).endswith(f"system.descriptors_pretrained_dir={trained}/descriptors")
    (trained / "descriptors").rename(trained / "elsewhere")
    with pytest.raises(InputError, match="descriptors of scene ball: .*with system.descriptors_pretrained_dir$"):
        run_here("eval_only=true", f"weights_path={trained}/checkpoints/last.ckpt", name="again")


@pytest.mark.parametrize(
    ("words", "named"),
    [((), True), (EVALUATED, False)],
)
def test_trainings_end_with_the_next_step(run_here, caplog, words, named):
    run = run_here(*QUIET)
    with caplog.at_level(logging.INFO):
        run_here(
            *QUIET,
            *words,
            *((f"weights_path={run}",) if words else ()),
            "test_after_fit=false",
            "system.overwrite_descriptors=true",
            name="next",
        )
    assert ("npbgpp view next, or npbgpp render next path=interpolate" in caplog.text) == named


def test_pretrained_descriptors_are_the_start(run_here, tmp_path):
    first = run_here(*QUIET, name="first")
    start = load(first / "descriptors" / "ball.pth")
    pretrained = "system.descriptors_pretrained_dir=first/descriptors"  # relative to the launch folder
    still = run_here(*QUIET, pretrained, "system.learning_rates.descriptors=0", "system.descriptors_save_dir=elsewhere", name="still")
    assert torch.equal(load(tmp_path / "elsewhere" / "ball.pth"), start)
    assert not (still / "descriptors").exists()
    moved = run_here(*QUIET, pretrained, name="moved")
    assert not torch.equal(load(moved / "descriptors" / "ball.pth"), start)
    assert torch.equal(load(first / "descriptors" / "ball.pth"), start)


def test_leftovers_are_refused_or_replaced(run_here):
    folder = run_here(*QUIET)
    before = load(folder / "descriptors" / "ball.pth")
    with pytest.raises(InputError, match="already holds descriptors of ball") as caught:
        run_here(*QUIET)
    assert "system.overwrite_descriptors=true" in str(caught.value)
    assert torch.equal(load(folder / "descriptors" / "ball.pth"), before)
    run_here(*QUIET, "system.overwrite_descriptors=true", "seed=5")
    assert not torch.equal(load(folder / "descriptors" / "ball.pth"), before)


def test_overwriting_starts_from_zero_not_from_the_leftovers(run_here):
    """One step with lr 0 saves what training started from."""
    run_here(*QUIET)
    folder = run_here(*QUIET, "system.overwrite_descriptors=true", "system.learning_rates.descriptors=0")
    assert not load(folder / "descriptors" / "ball.pth").any()


def test_max_points_smaller_than_the_cloud(run_here):
    with pytest.raises(InputError, match="system.max_points: scene ball has 400 points, more than 399"):
        run_here(*QUIET, "system.max_points=399")


def test_n_point_thins_the_cloud_and_its_descriptors(run_here):
    folder = run_here(*QUIET, "datasets.n_point=150", "system.max_points=150")
    assert load(folder / "descriptors" / "ball.pth").shape == (150, 8)


def test_resumed_training_equals_uninterrupted_training(run_here):
    whole = run_here("trainer.max_epochs=2", "test_after_fit=true", name="whole")
    run_here("trainer.max_epochs=1", name="parts")
    first = (whole.parent / "parts" / "checkpoints" / "epoch0.ckpt").read_bytes()
    parts = run_here(
        "trainer.max_epochs=2", "trainer.resume_from_checkpoint=parts/checkpoints/last.ckpt", "test_after_fit=true", name="parts"
    )
    assert (parts / "checkpoints" / "epoch0.ckpt").read_bytes() == first
    assert torch.equal(load(parts / "descriptors" / "ball.pth"), load(whole / "descriptors" / "ball.pth"))
    ours, theirs = (load(folder / "checkpoints" / "epoch1.ckpt") for folder in (parts, whole))
    assert ours["epoch"] == theirs["epoch"] == 1 and ours["global_step"] == theirs["global_step"] == 8
    assert all(torch.equal(value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items())
    assert without_times(metrics(parts)) == without_times(metrics(whole))


def test_resuming_elsewhere_needs_the_descriptors(run_here):
    """A checkpoint that was copied alone; the run it comes from has them beside it."""
    first = run_here(*QUIET, name="first")
    (first.parent / "copied").mkdir()
    shutil.copy(first / "checkpoints" / "last.ckpt", first.parent / "copied")
    resume = ("trainer.max_epochs=2", "trainer.resume_from_checkpoint=copied/last.ckpt")
    with pytest.raises(
        InputError, match="descriptors of scene ball: expected those that the checkpoint was saved with, got none"
    ) as caught:
        run_here(*QUIET, *resume, name="second")
    assert "system.descriptors_pretrained_dir" in str(caught.value)
    second = run_here(*QUIET, *resume, "system.descriptors_pretrained_dir=first/descriptors", name="second")
    assert (second / "checkpoints" / "epoch1.ckpt").is_file() and not (second / "checkpoints" / "epoch0.ckpt").exists()


def test_weights_of_an_earlier_run_are_the_start(run_here, caplog):
    first = run_here(*QUIET, name="first")
    rates = "system.learning_rates={descriptors: 0.1, background: 0.0, rgb_converter: 0.0, refiner: 0.0}"
    second = run_here(*QUIET, f"weights_path={first}/result/checkpoints/last.ckpt", rates, name="second")
    before, after = (load(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (first, second))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert f"{first}/result/checkpoints/last.ckpt does not exist, using {first}/checkpoints/last.ckpt" in caplog.text


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_the_command_line_writes_below_its_run_folder_only(run_command, tiny_root, tmp_path):
    launch = tmp_path / "launch"
    launch.mkdir()
    (launch / "mine.txt").write_text("keep")
    before = listing(tiny_root), listing(launch)
    done = run_command("hydra.run.dir=out/run", "test_after_fit=true", "loggers=[tensorboard,csv]", cwd=launch, HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    after = {name: stamp for name, stamp in listing(launch).items() if not name.startswith(f"out{os.sep}run{os.sep}")}
    assert (listing(tiny_root), after) == before
    assert (launch / "out" / "run" / "metrics.json").is_file() and (launch / "out" / "run" / ".hydra" / "config.yaml").is_file()
    kernels = tmp_path / "home" / ".cache" / "npbgpp"  # compiled for this machine
    assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file() and kernels not in p.parents]
