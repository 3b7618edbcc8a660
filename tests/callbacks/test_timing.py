"""Costs of a run, measured against work of known length and memory of known size."""

import csv
import json
import logging
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from npbgpp.callbacks.resources import ProgressLines, RunCosts
from npbgpp.core.costs import Costs
from npbgpp.data.dataset import SceneDataset
from npbgpp.methods.npbg import NPBG

MIB = 2**20
KNOWN_ALLOCATION = """
import numpy as np
from npbgpp.core.costs import peak_memory_mib, reset_peak_memory
np.ones(300 * 2**20, dtype=np.uint8)  # before the reset: does not count
assert reset_peak_memory() or SystemExit(77)
before = peak_memory_mib()
for _ in range(3):
    np.ones(100 * 2**20, dtype=np.uint8)  # one after the other: the peak is one of them
print(peak_memory_mib() - before)
"""


def costs_of(folder: Path) -> Costs:
    return Costs(**json.loads((folder / "metrics.json").read_text())["costs"])


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv_logs" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def logged(folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows_of(folder) if row.get(name)]


def test_the_peak_of_a_known_allocation():
    done = subprocess.run([sys.executable, "-c", KNOWN_ALLOCATION], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 99 <= float(done.stdout) <= 105


class Delay:
    """Delays a method, and sums up the time of its calls."""

    def __init__(self, monkeypatch, owner: type, name: str, pause: float, allocate_mib: int = 0) -> None:
        self.seconds = 0.0
        inner = getattr(owner, name)

        def slow(*arguments, **named):
            start = time.perf_counter()
            held = np.ones(allocate_mib * MIB, dtype=np.uint8)
            time.sleep(pause)
            del held
            result = inner(*arguments, **named)
            self.seconds += time.perf_counter() - start
            return result

        monkeypatch.setattr(owner, name, slow)


def test_stages_rates_and_memory(run_here, monkeypatch, caplog):
    before = run_here("test_after_fit=true", name="before")
    step = Delay(monkeypatch, NPBG, "training_step", 0.2, allocate_mib=400)
    validation, test = (Delay(monkeypatch, NPBG, name, 0.2) for name in ("validation_step", "test_step"))
    photo = Delay(monkeypatch, SceneDataset, "drawn", 0.1)
    caplog.set_level(logging.INFO)
    folder = run_here("test_after_fit=true", "loggers=[csv]", "trainer.max_epochs=2", "trainer.val_check_interval=2")
    costs = costs_of(folder)
    assert (costs.epochs, costs.steps, costs.batches, costs.unit, costs.processes) == (2, 8, 8, "points", 1)
    # 8 steps, 8 photos to train with, 4 validations of one view, 2 test views
    assert step.seconds >= 1.6 and step.seconds <= costs.step_seconds < step.seconds + 8 * 0.1
    assert 8 * 0.1 <= costs.data_seconds < photo.seconds + 8 * 0.05
    assert validation.seconds + 4 * 0.1 <= costs.validation_seconds and test.seconds + 2 * 0.1 <= costs.test_seconds
    parts = costs.step_seconds + costs.data_seconds + costs.validation_seconds
    assert parts <= costs.train_seconds < parts + 2
    busy = costs.step_seconds + costs.data_seconds
    assert costs.units_per_s == pytest.approx(8 * 400 / busy) and costs.images_per_s == pytest.approx(8 / busy)
    assert costs.peak_device_mib is None
    # libraries and memory pools are there since the first run, so that the difference is the allocation
    assert 330 <= costs.peak_host_mib - costs_of(before).peak_host_mib <= 470
    assert len(logged(folder, "time/step_s")) == 2 and sum(logged(folder, "time/step_s")) == pytest.approx(costs.step_seconds, abs=0.01)
    assert sum(logged(folder, "time/data_s")) == pytest.approx(costs.data_seconds, abs=0.05)
    assert len(logged(folder, "time/validation_s")) == 4 and min(logged(folder, "time/validation_s")) >= 0.3
    assert logged(folder, "time/test_s")[0] >= 0.6
    assert logged(folder, "memory/host_peak_mib")[-1] == pytest.approx(costs.peak_host_mib, rel=0.02)
    assert logged(folder, "speed/points_per_s")[0] < 400 / 0.3 and logged(folder, "speed/images_per_s")[0] < 1 / 0.3


@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_waiting_for_photos(run_here, caplog, monkeypatch, delay):
    """The line of an epoch; with a slow loader it names the settings that help."""
    Delay(monkeypatch, SceneDataset, "drawn", delay)
    caplog.set_level(logging.INFO)
    run_here("datasets.train_num_samples=6", "trainer.val_check_interval=3")
    pattern = r"epoch 0: (\d+) photos, ([\d.e+]+) per second; waited ([\d.]+) of ([\d.]+) s for them(.*)"
    (found,) = [match for message in caplog.messages if (match := re.fullmatch(pattern, message))]
    rate, waited, total = (float(found[k]) for k in (2, 3, 4))
    assert int(found[1]) == 6 and rate == pytest.approx(6 / total, rel=0.5)
    if delay:
        assert 5 * delay <= waited <= total and "num_workers" in found[5]
    else:
        assert waited < 0.5 * total


def test_a_resumed_run_continues_its_costs(run_here):
    first = costs_of(run_here("test_after_fit=true"))
    resume = ("trainer.max_epochs=2", "trainer.resume_from_checkpoint=run/checkpoints/last.ckpt")
    folder = run_here("test_after_fit=true", *resume)
    state = torch.load(folder / "checkpoints" / "epoch0.ckpt", weights_only=True)["callbacks"]["RunCosts"]
    costs = costs_of(folder)
    assert (first.batches, costs.batches, costs.epochs, costs.steps) == (4, 8, 2, 8)
    assert costs.train_seconds > state["train_seconds"] > 0 and costs.step_seconds > state["seconds"]["step"] > 0


def test_the_state_of_a_checkpoint_is_that_of_its_callback():
    state = {
        **{"seconds": {"data": 1.0, "step": 2.0, "validation": 0.5, "test": 4.0}, "train_seconds": 5.0},
        **{"peaks_mib": {"host": 1e9, "device": 0.0}, "batches": 3, "images": 4, "units": 5.0},
    }
    costs = RunCosts()
    costs.load_state_dict(state)
    assert costs.state_dict() == state


def test_checkpoints_within_an_epoch_count_their_batch(run_here):
    folder = run_here(
        "callbacks.fit.during_epoch.every_n_steps=3", "callbacks.fit.checkpoint.save_last=false", "trainer.limit_val_batches=0"
    )
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == content["callbacks"]["RunCosts"]["batches"] == 3


def test_rays_are_counted_as_rays(run_nerf, tmp_path):
    folder = run_nerf(tmp_path, "test_after_fit=true", "loggers=[csv]", "trainer.limit_val_batches=0")
    costs = costs_of(folder)
    assert costs.unit == "rays" and costs.images_per_s is None
    assert costs.units_per_s == pytest.approx(4 * 256 / (costs.data_seconds + costs.step_seconds))
    assert logged(folder, "speed/rays_per_s") and "speed/images_per_s" not in rows_of(folder)[0]


def test_construction_before_cuda_is_initialised(monkeypatch):
    """Resetting its peak is then an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert RunCosts().state_dict()["peaks_mib"]["device"] >= 0


@pytest.mark.gpu
def test_the_peak_of_a_device(run_here, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    step = NPBG.training_step

    def allocating(self, batch, index):
        torch.ones(256 * MIB, dtype=torch.uint8, device=self.device)
        return step(self, batch, index)

    monkeypatch.setattr(NPBG, "training_step", allocating)
    costs = costs_of(run_here("test_after_fit=true", "trainer.accelerator=gpu"))
    assert costs.peak_device_mib is not None and 256 <= costs.peak_device_mib <= 256 + 200


def test_time_left_does_not_jump_with_the_last_batches(monkeypatch, caplog):
    """Ten batches of a second, then one of ten: 20 s for 11, not 10 s for each of the 9 that are left."""
    now = [0.0]
    monkeypatch.setattr("npbgpp.callbacks.resources.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("npbgpp.callbacks.resources.total_batches", lambda trainer: 20)
    monkeypatch.setattr("npbgpp.callbacks.resources._unit", lambda module: "points")
    trainer = SimpleNamespace(callback_metrics={}, current_epoch=0, fit_loop=SimpleNamespace(total_batch_idx=0))
    lines = ProgressLines(10.0)
    lines.on_train_start(trainer, None)
    with caplog.at_level("INFO"):
        for k, seconds in enumerate([*range(1, 11), 20]):
            now[0], trainer.fit_loop.total_batch_idx = float(seconds), k
            lines.on_train_batch_end(trainer, None, None, None, k)
    assert [record.getMessage().rpartition("time left ")[2] for record in caplog.records] == ["0:00:10", "0:00:16"]
