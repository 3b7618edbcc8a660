"""Threads on a machine that others use, with real processes that use it."""

import importlib
import os
import subprocess
import sys
import time

import pytest
import torch
from pytorch_lightning import Trainer

from npbgpp.callbacks.resources import ThreadsFollowLoad
from npbgpp.core import cpu_share
from npbgpp.core.cpu_share import CpuShare, adapt_threads, threads_for


def test_threads_follow_the_free_cores():
    assert [threads_for(free, 4) for free in (-1.0, 0.3, 1.4, 1.6, 2.6, 9.0)] == [1, 1, 1, 2, 3, 4]


@pytest.fixture(autouse=True)
def _any_number(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cpu_share, "_active", None)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)


@pytest.fixture
def all_busy(monkeypatch):
    """All cores are busy from the first reading on."""
    now = time.monotonic()
    readings = iter([(now - 0.5, 0.0, 0.0), (now, 0.5 * len(os.sched_getaffinity(0)), 0.0)])
    monkeypatch.setattr(cpu_share, "_now", lambda: next(readings))


def test_busy_processes_take_threads_and_give_them_back(monkeypatch):
    if not (cpu_share._PROC / "stat").is_file():
        pytest.skip("no /proc/stat")
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores + 1)
    with CpuShare(seconds=0.3) as share:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
        try:
            time.sleep(1.5)
            adapt_threads()
            time.sleep(0.5)
            adapt_threads()
            assert torch.get_num_threads() == 1
        finally:
            for other in others:
                other.kill()
                other.wait()
        monkeypatch.setattr(cpu_share, "_now", iter([(time.monotonic() + 10, share._last[1], share._last[2])]).__next__)
        share.seconds = 0.0
        adapt_threads()
        assert torch.get_num_threads() == cores
    assert torch.get_num_threads() == cores + 1


def test_the_load_is_read_at_the_start(all_busy):
    torch.set_num_threads(2)
    with CpuShare():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("end", ["teardown", "exception"])
def test_trainings_follow_the_load_until_they_end(trainer, all_busy, end):
    torch.set_num_threads(2)
    callback = ThreadsFollowLoad()
    callback.setup(trainer, None, "fit")
    callback.setup(trainer, None, "test")
    assert torch.get_num_threads() == 1
    if end == "teardown":
        callback.teardown(trainer, None, "fit")
    else:
        callback.on_exception(trainer, None, KeyboardInterrupt())
    assert torch.get_num_threads() == 2 and cpu_share._active is None


@pytest.mark.parametrize("fixed", ["variable", "deterministic", "one"])
def test_fixed_numbers_of_threads_stay(monkeypatch, fixed):
    torch.set_num_threads(1 if fixed == "one" else 3)
    if fixed == "variable":
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
    elif fixed == "deterministic":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setattr(cpu_share, "_now", lambda: pytest.fail("the load was read"))
    with CpuShare(seconds=0.0):
        adapt_threads()
    assert torch.get_num_threads() == (1 if fixed == "one" else 3)


def test_nothing_changes_outside_of_a_command(monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setattr(cpu_share, "_now", lambda: pytest.fail("the load was read"))
    adapt_threads()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("render", "npbgpp.cli.render.render_video"),
        ("refine", "npbgpp.cli.refine.refine_run"),
        ("view", "npbgpp.cli.view.view"),
        ("export cloud", "npbgpp.cli.export.cloud"),
        ("prepare cloud", "npbgpp.prepare.cloud.make_cloud"),
    ],
)
def test_commands_follow_the_load(monkeypatch, tmp_path, all_busy, command, function):
    torch.set_num_threads(2)
    during = []
    monkeypatch.setattr(function, lambda *args: during.append(torch.get_num_threads()))
    name, *words = command.split()
    monkeypatch.setattr(sys, "argv", [name, *words, str(tmp_path), *(["path=straight"] if name == "refine" else [])])
    module = importlib.import_module(f"npbgpp.{name}")
    (module if hasattr(module, "main") else importlib.import_module(f"npbgpp.{name}.__main__")).main()
    assert during == [1] and torch.get_num_threads() == 2
