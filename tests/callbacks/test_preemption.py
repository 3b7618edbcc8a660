"""Preemption: processes that receive real signals save a checkpoint, exit with code 75 and are resumed."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from npbgpp.core.files import load_tensors
from npbgpp.engine.trainer import TrainerPlan, trainer_plan
from npbgpp.errors import InputError
from npbgpp.methods.npbg import NPBG

from ..conftest import REPOSITORY, TINY_NERF, TINY_OVERRIDES
from ..helpers.programs import TRAIN_NET, Program

# a small NeRF on a tiny scene without an end
ENDLESS = (
    *(word for word in TINY_NERF if not word.startswith(("trainer.max_epochs", "trainer.limit_train_batches"))),
    *("trainer.max_epochs=100000", "trainer.limit_val_batches=0", "trainer.limit_train_batches=20"),
    "callbacks.fit.checkpoint.save_last=false",
)
# variables that srun sets for a job of one task
SLURM = {
    **{"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "host"},
}


def start(root: Path, launch: Path, *overrides: str, **environment: str) -> Program:
    words = [*ENDLESS, f"datasets.data_root={root}", "hydra.run.dir=run", *overrides]
    return Program(TRAIN_NET, words, launch, together=True, **environment)


def stop(process: Program, folder: Path, number: signal.Signals) -> str:
    """Sends a signal in the second epoch; returns the output of the process."""
    end = time.monotonic() + 240
    while not (folder / "checkpoints" / "epoch0.ckpt").is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    return process.communicate(timeout=120)[0]


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_that_is_resumed(tiny_root, tmp_path):
    process = start(tiny_root, tmp_path)
    output = stop(process, tmp_path / "run", signal.SIGTERM)
    assert process.returncode == 75 and "Traceback" not in output, output
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    steps = saved["global_step"]
    progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert steps > 0 and progress["ready"] == progress["processed"] == steps
    resumed = start(tiny_root, tmp_path, "trainer.resume_from_checkpoint=run/checkpoints/last.ckpt", f"trainer.max_steps={steps + 3}")
    output = resumed.communicate(timeout=240)[0]
    assert resumed.returncode == 0, output
    newest = max((tmp_path / "run" / "checkpoints").glob("epoch*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert torch.load(newest, weights_only=True)["global_step"] == steps + 3


@pytest.mark.slow
def test_a_slurm_job_is_requeued(tiny_root, tmp_path):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\ntest -f "{tmp_path}/run/checkpoints/last.ckpt" && echo "$@" > "{tmp_path}/asked"\n')
    scontrol.chmod(0o755)
    path = f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"
    process = start(tiny_root, tmp_path, "trainer=slurm", "trainer.accelerator=cpu", PATH=path, **SLURM)
    output = stop(process, tmp_path / "run", signal.SIGUSR1)
    assert process.returncode == 75 and "Traceback" not in output, output
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"  # after the checkpoint was written
    assert not list((tmp_path / "run").rglob("hpc_ckpt*"))


@pytest.mark.parametrize("hook", ["validation_step", "test_step"])
def test_a_single_process_leaves_an_evaluation(run_in, tmp_path, monkeypatch, hook):
    """Validation is left between two views, and training resumes with the next epoch. A test ends at once; there is nothing to save."""
    tiny = (*TINY_OVERRIDES, "trainer.max_epochs=2")
    calls, original = [], getattr(NPBG, hook)

    def interrupted(self, *arguments):
        calls.append(hook)
        signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments)

    views = "datasets.val_indices=[12,13,14]"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(NPBG, hook, interrupted)
        run_in(tmp_path, views, "test_after_fit=true", name="run", tiny=tiny)
    assert calls == [hook]
    checkpoint = load_tensors(tmp_path / "run" / "checkpoints" / "last.ckpt", "checkpoint")
    if hook == "test_step":
        assert ended.value.code == 128 + signal.SIGTERM and checkpoint["global_step"] == 8
        return
    assert ended.value.code == 75 and checkpoint["global_step"] == 4 and not (tmp_path / "run" / "metrics.json").exists()
    whole = run_in(tmp_path, views, name="whole", tiny=tiny)
    run_in(tmp_path, views, "resume=auto", name="run", tiny=tiny)
    ours, theirs = (load_tensors(folder / "descriptors" / "ball.pth", "descriptors") for folder in (tmp_path / "run", whole))
    assert torch.equal(ours, theirs)


def slurm_plan(monkeypatch, *overrides: str, **variables: str) -> TrainerPlan:
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = compose("trainer/slurm", overrides=[f"trainer.{o}" for o in overrides])
    return trainer_plan(OmegaConf.to_container(config.trainer, resolve=True))


def test_nodes_and_devices_are_those_of_the_job(monkeypatch):
    plan = slurm_plan(monkeypatch, SLURM_NNODES="2", SLURM_NTASKS_PER_NODE="4", SLURM_NTASKS="8")
    assert (plan.arguments["num_nodes"], plan.arguments["devices"]) == (2, 4) and plan.requeue_signal == "SIGUSR1"
    assert plan.arguments["strategy"].startswith("ddp")
    alone = slurm_plan(monkeypatch, "requeue_signal=null")
    assert (alone.arguments["num_nodes"], alone.arguments["devices"]) == (1, 1) and alone.requeue_signal is None


def test_an_unknown_signal_is_refused(run_here):
    with pytest.raises(InputError, match=r"trainer.requeue_signal: .*SIGUSR1.*USR7"):
        run_here("trainer.requeue_signal=USR7")
