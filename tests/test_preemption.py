"""Runs that are told to stop: real processes and real signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from npbgpp.engine.trainer import trainer_plan
from npbgpp.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]
# a small NeRF on a tiny scene that never ends
LINE = (
    *("datasets=nerf_blender_one_scene", "datasets.scene_name=ball", "datasets.train_image_size=null", "datasets.train_random_shift=false"),
    *("system=nerf", "system.field.depth=3", "system.field.width=32", "system.field.skips=[1]", "system.field.sampling.samples=24"),
    *("system.field.sampling.importance=16", "system.field.sampling.noise_std=0.0", "system.grid_resolution=16"),
    *("system.rays.rays_per_batch=256", "dataloader=small", "loggers=none", "trainer.accelerator=cpu", "trainer.max_epochs=100000"),
    *("trainer.limit_val_batches=0", "trainer.limit_train_batches=20", "callbacks.fit.checkpoint.save_last=false"),
)
# as srun sets them for a job of one task
SLURM = {
    **{"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "host"},
}


def start(root: Path, launch: Path, *overrides: str, **environment: str) -> subprocess.Popen:
    command = [
        sys.executable,
        str(REPOSITORY / "train_net.py"),
        *LINE,
        f"datasets.data_root={root}",
        "hydra.run.dir=run",
        *overrides,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=launch, env=os.environ | environment, **pipes)


def stop(process: subprocess.Popen, folder: Path, number: signal.Signals) -> str:
    """Sends a signal in the second epoch; returns what the process has said."""
    end = time.monotonic() + 240
    while not (folder / "checkpoints" / "epoch0.ckpt").is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    return process.communicate(timeout=120)[0]


@pytest.mark.slow
def test_sigterm_saves_between_two_batches_and_the_run_goes_on(tiny_root, tmp_path):
    process = start(tiny_root, tmp_path)
    said = stop(process, tmp_path / "run", signal.SIGTERM)
    assert process.returncode == 75, said
    assert "Traceback" not in said and "last.ckpt after" in said
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    steps = saved["global_step"]
    progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert steps > 0 and progress["ready"] == progress["processed"] == steps
    more = ("trainer.resume_from_checkpoint=run/checkpoints/last.ckpt", f"trainer.max_steps={steps + 3}")
    done = start(tiny_root, tmp_path, *more)
    said = done.communicate(timeout=240)[0]
    assert done.returncode == 0, said
    newest = max((tmp_path / "run" / "checkpoints").glob("epoch*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert torch.load(newest, weights_only=True)["global_step"] == steps + 3


@pytest.mark.slow
def test_a_job_that_is_about_to_end_is_queued_again(tiny_root, tmp_path):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\ntest -f "{tmp_path}/run/checkpoints/last.ckpt" && echo "$@" > "{tmp_path}/asked"\n')
    scontrol.chmod(0o755)
    path = f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"
    process = start(tiny_root, tmp_path, "trainer=slurm", "trainer.accelerator=cpu", PATH=path, **SLURM)
    said = stop(process, tmp_path / "run", signal.SIGUSR1)
    assert process.returncode == 75, said
    assert "Traceback" not in said and "job 4711 is requeued" in said
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"  # after the checkpoint was there
    assert not list((tmp_path / "run").rglob("hpc_ckpt*"))


def slurm_plan(monkeypatch, *overrides: str, **variables: str):
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = compose("trainer/slurm", overrides=[f"trainer.{o}" for o in overrides])
    values = OmegaConf.to_container(config.trainer, resolve=True)
    return trainer_plan(values)


def test_nodes_and_devices_are_those_of_the_job(monkeypatch):
    plan = slurm_plan(monkeypatch, SLURM_NNODES="2", SLURM_NTASKS_PER_NODE="4", SLURM_NTASKS="8")
    assert (plan.arguments["num_nodes"], plan.arguments["devices"]) == (2, 4) and plan.requeue_signal == "SIGUSR1"
    assert plan.arguments["strategy"].startswith("ddp")
    alone = slurm_plan(monkeypatch, "requeue_signal=null")
    assert (alone.arguments["num_nodes"], alone.arguments["devices"]) == (1, 1) and alone.requeue_signal is None


def test_a_signal_that_is_none_is_named(run_here):
    with pytest.raises(InputError, match="trainer.requeue_signal: expected the name of a signal such as SIGUSR1, or null, got USR7"):
        run_here("trainer.requeue_signal=USR7")
