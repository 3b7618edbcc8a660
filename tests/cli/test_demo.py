"""``npbgpp demo``: its commands and what ends it. The run itself is part of ``.ci/run``."""

import subprocess
import sys

import pytest

from npbgpp import demo

from ..helpers.commands import exit_of


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """Arguments of the processes that the demo starts, which end with code 3 when they compare ``bad``."""
    found: list[list[str]] = []

    def run(command: list[str]) -> subprocess.CompletedProcess:
        assert command[:3] == [sys.executable, "-m", "npbgpp"]
        found.append(command[3:])
        return subprocess.CompletedProcess(command, 3 if "bad/npbg" in command else 0)

    monkeypatch.setattr(demo.subprocess, "run", run)
    return found


@pytest.mark.parametrize(("arguments", "out"), [((), "experiments/demo"), (("out=there",), "there")])
def test_trainings_comparison_and_video(started, monkeypatch, capsys, arguments, out):
    overrides = ["trainer.max_epochs=1", "seed=3"]
    assert exit_of(demo.main, monkeypatch, overrides[0], *arguments, overrides[1]) == 0
    assert started == [
        ["train", "experiment=demo_npbgpp", f"hydra.run.dir={out}/npbgpp", *overrides],
        [
            *("train", "experiment=demo_coefficients", f"hydra.run.dir={out}/coefficients", *overrides),
            f"system.descriptors_pretrained_dir={out}/npbgpp/descriptors",
        ],
        ["train", "experiment=demo_npbg", f"hydra.run.dir={out}/npbg", *overrides],
        ["train", "experiment=demo_gaussians", f"hydra.run.dir={out}/gaussians", *overrides],
        ["compare", f"{out}/npbgpp", f"{out}/coefficients", f"{out}/npbg", f"{out}/gaussians", f"out={out}"],
        ["render", f"run={out}/gaussians", "path=circle", "frames=60", "images=false", f"out={out}/video", "overwrite=true"],
    ]
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"{out}/compare.html" in last and f"{out}/video/film.mp4" in last


def test_the_first_failure_ends_it(started, monkeypatch):
    assert exit_of(demo.main, monkeypatch, "out=bad") == 3
    assert [arguments[0] for arguments in started] == ["train"] * 4 + ["compare"]


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("trainer.max_epoch=1", "did you mean trainer.max_epochs?"),
        ("experiments/demo", "key=value"),
        ("test_video=mp5", "did you mean mp4?"),
    ],
)
def test_mistakes_are_named_before_anything_starts(started, monkeypatch, argument, named):
    message = str(exit_of(demo.main, monkeypatch, argument))
    assert message.startswith("error: ") and argument.partition("=")[0] in message and named in message and not started


def test_without_the_example_scene(started, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "project_folder", lambda: tmp_path)
    assert "example/still_life" in str(exit_of(demo.main, monkeypatch)) and not started


def test_help(started, monkeypatch, capsys):
    assert exit_of(demo.main, monkeypatch, "--help") == 0 and not started
    assert "out=experiments/demo" in capsys.readouterr().out
