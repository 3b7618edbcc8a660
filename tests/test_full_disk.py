"""A disk that is full while a run writes: one message, the earlier files are whole, and no part of a file is left."""

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from npbgpp.engine.trainer import guard
from npbgpp.errors import InputError

USUAL = resource.getrlimit(resource.RLIMIT_FSIZE)
ROOT = Path(__file__).resolve().parents[1]
TINY = (
    *("datasets=nerf_blender_one_scene", "datasets.scene_name=ball", "datasets.train_image_size=null", "datasets.train_random_shift=false"),
    *("datasets.train_num_samples=4", "system=npbg", "system/loss_factors=l1_ssim", "system.refiner.filters=[10,11,12,13,14]"),
    *("dataloader=small", "loggers=none", "trainer.accelerator=cpu", "trainer.limit_val_batches=0"),
)


def limit(size: int) -> None:
    """From now on the kernel refuses to let a file of this process grow beyond this size, half way through a write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, USUAL[1]))


@pytest.fixture
def full_for(monkeypatch):
    """Lets the disk be full for the writes of one file, after some that succeed."""

    def choose(name: str, successes: int) -> None:
        make, left = tempfile.mkstemp, [successes]

        def mkstemp(*, prefix: str, **named):
            if prefix == f".{name}.":
                left[0] -= 1
                if left[0] < 0:
                    limit(64)
            return make(prefix=prefix, **named)

        def then(inner):
            def call(*arguments, **named):
                resource.setrlimit(resource.RLIMIT_FSIZE, USUAL)
                return inner(*arguments, **named)

            return call

        monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
        for ending in ("unlink", "replace"):  # the write is over, this way or that
            monkeypatch.setattr(os, ending, then(getattr(os, ending)))

    yield choose
    resource.setrlimit(resource.RLIMIT_FSIZE, USUAL)


def check_whole(folder: Path) -> set[str]:
    """Opens every file of a run; returns their names."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        if path.suffix in (".ckpt", ".pth"):
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
    assert not [path.name for path in files if path.suffix == ".part"]
    return {path.name for path in files}


@pytest.mark.parametrize(
    ("name", "successes", "left"),
    [
        ("last.ckpt", 1, {"last.ckpt", "epoch0.ckpt"}),
        ("epoch1.ckpt", 0, {"last.ckpt", "epoch0.ckpt"}),
        ("ball.pth", 1, {"ball.pth", "last.ckpt"}),
        ("metrics.json", 1, {"metrics.json", "last.ckpt"}),
        ("report.png", 1, {"report.png", "metrics.json"}),
        ("val-r_0_debug.png", 0, {"environment.json"}),
        ("environment.json", 0, set()),
    ],
)
def test_a_full_disk_ends_a_run_with_what_it_has(run_here, full_for, tmp_path, name, successes, left):
    full_for(name, successes)
    with pytest.raises(InputError, match=rf"{name}: cannot be written \(\[Errno 27\] File too large\)") as caught:
        run_here("trainer.max_epochs=2")
    kept = "the file that was there before is unchanged" if successes else "no file was left behind"
    assert kept in str(caught.value) and "free space" in str(caught.value)
    assert left <= check_whole(tmp_path / "run")


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_a_logger_that_cannot_write_is_left_alone(tmp_path, caplog, kind):
    logger = guard(kind(tmp_path, name="logs", version=""))
    logger.log_metrics({"loss": 0.5}, 0)
    logger.save()
    limit(1 << 15)
    try:
        with caplog.at_level(logging.ERROR):
            for step in range(1, 3000):
                logger.log_metrics({"a rather long name of a figure": float(step)}, step)
                if step % 100 == 0:
                    logger.save()
            logger.finalize("success")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, USUAL)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "npbgpp.engine.trainer"]
    assert f"{kind.__name__} cannot write any more" in message and "training continues" in message


def test_training_goes_on_without_its_logger(run_here, monkeypatch, caplog):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CSVLogger, "save", full)
    folder = run_here("loggers=[csv]", "test_after_fit=true", "trainer.log_every_n_steps=1")
    assert {"last.ckpt", "metrics.json"} <= check_whole(folder)
    assert len([record for record in caplog.records if record.name == "npbgpp.engine.trainer"]) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1) to mount a small file system")
def test_a_small_file_system_fills_up(run_here, tiny_root, tmp_path):
    """A real file system: the run ends in one message, and its last checkpoint is whole."""
    size = sum(path.stat().st_size for path in (run_here(name="measured") / "checkpoints").iterdir())
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    words = (ROOT / "train_net.py", f"hydra.run.dir={disk}/run", f"datasets.data_root={tiny_root}", "trainer.max_epochs=50")
    script = (
        f"mount -t tmpfs -o size={3 * size // 1024}k tmpfs '{disk}' || exit 77; \"$@\"; code=$?; cp -a '{disk}/run' '{copy}'; exit $code"
    )
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", sys.executable, *map(str, words), *TINY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ | {"PYTHONPATH": str(ROOT)})
    if done.returncode == 77:
        pytest.skip("this machine does not let a small file system be mounted")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "cannot be written ([Errno 28] No space left on device)" in done.stdout + done.stderr
    assert {"last.ckpt", "epoch0.ckpt"} <= check_whole(copy)
