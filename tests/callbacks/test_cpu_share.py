"""Threads on a machine that others use, with real processes that use it."""

import os
import subprocess
import sys
import time

import pytest
import torch
from pytorch_lightning import Trainer

from npbgpp.callbacks import resources
from npbgpp.callbacks.resources import CpuShare, threads_for


def test_threads_follow_the_free_cores():
    assert [threads_for(free, 4) for free in (-1.0, 0.3, 1.4, 1.6, 2.6, 9.0)] == [1, 1, 1, 2, 3, 4]


@pytest.fixture
def trainer(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    torch.set_num_threads(before)


def test_busy_processes_take_threads_and_give_them_back(trainer, monkeypatch):
    if not (resources._PROC / "stat").is_file():
        pytest.skip("no /proc/stat")
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores + 1)
    callback = CpuShare(seconds=0.3)
    callback.setup(trainer, None, "fit")
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        time.sleep(1.5)
        callback.on_train_batch_start(trainer, None, None, 0)
        time.sleep(0.5)
        callback.on_train_batch_start(trainer, None, None, 1)
        assert torch.get_num_threads() == 1
    finally:
        for other in others:
            other.kill()
            other.wait()
    monkeypatch.setattr(resources, "_now", iter([(time.monotonic() + 10, callback._last[1], callback._last[2])]).__next__)
    callback.seconds = 0.0
    callback.on_train_batch_start(trainer, None, None, 2)
    assert torch.get_num_threads() == cores
    callback.teardown(trainer, None, "fit")
    assert torch.get_num_threads() == cores + 1


def test_the_load_is_read_before_the_first_step(trainer, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    readings = iter([(0.0, 0.0, 0.0), (0.5, 0.5 * len(os.sched_getaffinity(0)), 0.0)])  # all cores are busy
    monkeypatch.setattr(resources, "_now", lambda: next(readings))
    callback = CpuShare()
    callback.setup(trainer, None, "fit")
    assert torch.get_num_threads() == 1
    callback.teardown(trainer, None, "fit")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("fixed", ["variable", "deterministic"])
def test_fixed_numbers_of_threads_stay(trainer, monkeypatch, fixed):
    torch.set_num_threads(3)
    if fixed == "variable":
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
    else:
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    callback = CpuShare(seconds=0.0)
    callback.setup(trainer, None, "fit")
    monkeypatch.setattr(resources, "_now", lambda: pytest.fail("the load was read"))
    callback.on_train_batch_start(trainer, None, None, 0)
    assert torch.get_num_threads() == 3
