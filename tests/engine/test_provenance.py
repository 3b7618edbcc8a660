"""Provenance files of a run, which hold no secrets of the environment."""

import json
import shutil
import subprocess

import torch
import yaml

from npbgpp.engine.provenance import environment


def test_a_run_writes_its_environment_and_config(run_here, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = run_here("trainer.limit_val_batches=0")
    text = (folder / "environment.json").read_text()
    content = json.loads(text)
    assert content["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0] and "hydra-core" in content["packages"]
    assert content["variables"]["OMP_NUM_THREADS"] == "1" and "a-secret" not in text
    assert content["cores"] >= 1 and content["memory_gib"] > 0.5 and len(content["devices"]) == torch.cuda.device_count()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["callbacks"]["fit"]["checkpoint"]["dirpath"] == f"{folder}/checkpoints"  # resolved
    assert config["datasets"]["scene_name"] == "ball" and config["seed"] == 3407


def test_the_commit_of_a_checkout(tmp_path):
    assert environment(tmp_path)["git"] is None
    if shutil.which("git") is None:
        return

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    assert environment(tmp_path)["git"] == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "untracked").write_text("two")
    assert environment(tmp_path)["git"]["changed"] is False
    (tmp_path / "file").write_text("two")
    assert environment(tmp_path)["git"]["changed"] is True
