"""A sweep goes on past a run that fails, and ends with the table of its runs."""

import importlib.util
import json
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from npbgpp.compare.runs import FAILURE
from npbgpp.engine import hydra_hooks as sweeps


@pytest.mark.slow
def test_a_sweep_ends_with_its_table(run_command, tmp_path):
    """The second run cannot begin, and the others are trained all the same."""
    done = run_command(
        *("hydra.sweep.dir=sweep", "datasets.n_point=150,0,200", "test_after_fit=true", "trainer.limit_val_batches=0"),
        "-m",
    )
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "1 of 3 runs failed: 1" in done.stderr
    sweep = tmp_path / "sweep"
    assert "datasets.n_point: expected a positive number or null, got 0" in (sweep / "1" / FAILURE).read_text()
    lines = (sweep / "compare.md").read_text().splitlines()
    assert lines[0].startswith("| dataset | run | datasets.n_point | PSNR [dB] |") and lines[0].endswith("| ended with |")
    assert [line.split(" | ")[1:3] for line in lines[2:]] == [["0", "150"], ["2", "200"], ["1", "0"]]
    assert "datasets.n_point" in done.stdout and "comparison" in done.stdout
    assert (sweep / "compare.html").read_text().count("data:image/jpeg") == 2 * 3
    for run in ("0", "2"):
        costs = json.loads((sweep / run / "metrics.json").read_text())["costs"]
        assert costs["steps"] == 4 and costs["train_seconds"] > 0 and costs["peak_host_mib"] > 100
        assert json.loads((sweep / run / "environment.json").read_text())["packages"]["torch"]
    assert not (sweep / "0" / FAILURE).exists()


def test_a_sweep_folder_that_cannot_be_made_ends_before_any_work(run_command, tmp_path):
    (tmp_path / "occupied").write_text("a file")
    done = run_command("hydra.sweep.dir=occupied/sweep", "seed=1,2", "-m")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "hydra.sweep.dir=occupied/sweep: expected a writable folder" in done.stderr and "HYDRA" not in done.stdout


def test_a_run_that_begins_again_forgets_its_failure(tmp_path):
    (tmp_path / FAILURE).write_text("no such file")
    for _ in range(2):
        sweeps.Sweep().on_job_start(OmegaConf.create({"hydra": {"runtime": {"output_dir": str(tmp_path)}}}))
    assert not (tmp_path / FAILURE).exists()


def launcher(name: str):
    with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
        return compose("config", overrides=["datasets=dtu_one_scene", "system=npbg", f"hydra/launcher={name}"], return_hydra_config=True)


needs_extra = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs the extra cluster")


@pytest.mark.slow
@needs_extra
def test_a_sweep_as_jobs(run_command, tmp_path):
    """Both runs are processes of their own; the command waits for them and compares them."""
    words = (
        "hydra/launcher=submitit_local",
        "hydra.sweep.dir=sweep",
        "seed=1,2",
        "test_after_fit=true",
        "trainer.limit_val_batches=0",
        "-m",
    )
    done = run_command(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "sweep"
    lines = (sweep / "compare.md").read_text().splitlines()
    assert [line.split(" | ")[1:3] for line in lines[2:]] == [["0", "1"], ["1", "2"]]
    assert len(list((sweep / ".submitit").rglob("*_result.pkl"))) == 2 and "comparison" in done.stdout


@needs_extra
@pytest.mark.parametrize("name", ["submitit_local", "submitit_slurm"])
def test_the_launchers_take_every_key_and_miss_none(name):
    """The plugin's own schema, which the files of conf/ stand in for."""
    from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf

    schema = {"submitit_local": LocalQueueConf, "submitit_slurm": SlurmQueueConf}[name]
    keys = launcher(name).hydra.launcher
    assert set(keys) == {field.name for field in fields(schema)} and keys._target_ == schema()._target_


@pytest.mark.parametrize("name", ["submitit_local", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_is_named(name, monkeypatch, capsys):
    def missing(module):
        raise ModuleNotFoundError(module)

    sweeps.Sweep().on_multirun_start(launcher("basic"))
    monkeypatch.setattr(sweeps, "find_spec", missing)
    sweeps.Sweep().on_multirun_start(launcher("basic"))
    with pytest.raises(SystemExit) as ended:
        sweeps.Sweep().on_multirun_start(launcher(name))
    assert ended.value.code == 1 and f"hydra/launcher={name}" in capsys.readouterr().err
