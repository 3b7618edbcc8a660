"""Sweeps continue after a failed run, and end with a comparison of their runs."""

import importlib.util
import json
from dataclasses import fields

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from npbgpp.compare.runs import FAILURE
from npbgpp.engine import hydra_hooks

from ..conftest import REPOSITORY


@pytest.mark.slow
def test_a_sweep_ends_with_its_table(run_command, tmp_path):
    """The second run fails, the others are trained."""
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


def test_the_error_of_an_earlier_attempt_is_removed(tmp_path):
    (tmp_path / FAILURE).write_text("no such file")
    for _ in range(2):
        hydra_hooks.Sweep().on_job_start(OmegaConf.create({"hydra": {"runtime": {"output_dir": str(tmp_path)}}}))
    assert not (tmp_path / FAILURE).exists()


def launcher(name: str):
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose("config", overrides=["datasets=dtu_one_scene", "system=npbg", f"hydra/launcher={name}"], return_hydra_config=True)


needs_extra = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs the extra cluster")


@pytest.mark.slow
@needs_extra
def test_a_sweep_as_jobs(run_command, tmp_path):
    """Each run is a process of its own; the command waits for them and compares them."""
    sweep = ("hydra/launcher=submitit_local", "hydra.sweep.dir=sweep", "seed=1,2")
    done = run_command(*sweep, "test_after_fit=true", "trainer.limit_val_batches=0", "-m")
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "sweep"
    lines = (sweep / "compare.md").read_text().splitlines()
    assert [line.split(" | ")[1:3] for line in lines[2:]] == [["0", "1"], ["1", "2"]]
    assert len(list((sweep / ".submitit").rglob("*_result.pkl"))) == 2 and "comparison" in done.stdout


@needs_extra
@pytest.mark.parametrize("name", ["submitit_local", "submitit_slurm"])
def test_launcher_configs_have_the_keys_of_the_plugin(name):
    """conf/ has copies of its schemas, since the plugin is optional."""
    from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf

    schema = {"submitit_local": LocalQueueConf, "submitit_slurm": SlurmQueueConf}[name]
    keys = launcher(name).hydra.launcher
    assert set(keys) == {field.name for field in fields(schema)} and keys._target_ == schema()._target_


@pytest.mark.parametrize("name", ["submitit_local", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_is_named(name, monkeypatch):
    def missing(module):
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(hydra_hooks, "find_spec", missing)
    hydra_hooks.Sweep().on_multirun_start(launcher("basic"))
    with pytest.raises(SystemExit, match=f"hydra/launcher={name}: .*npbgpp.cluster"):
        hydra_hooks.Sweep().on_multirun_start(launcher(name))
