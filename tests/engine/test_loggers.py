"""Several loggers at once receive scores and costs."""

import csv

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NAMES = {
    *("loss", "psnr", "PSNR/ball_holdout", "PSNR/ball_val", "time/data_s", "time/step_s", "time/validation_s", "time/test_s"),
    *("speed/points_per_s", "speed/images_per_s", "memory/host_peak_mib"),
}


@pytest.mark.slow
def test_three_loggers_at_once(run_here, monkeypatch):
    """W&B in offline mode."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = run_here("test_after_fit=true", "loggers=[tensorboard,csv,wandb]", "trainer.log_every_n_steps=1")
    events = EventAccumulator(str(folder / "tb_logs"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= NAMES
    with (folder / "csv_logs" / "metrics.csv").open() as file:
        assert set(next(csv.reader(file))) >= NAMES
    (run,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    content = run.read_bytes()
    assert not [name for name in NAMES if name.encode() not in content], content


def test_a_run_goes_on_without_wandb_that_nobody_is_logged_in_to(run_here, monkeypatch, tmp_path, caplog):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # it reads the environment once per process: a test before this one may have run it offline
    folder = run_here("loggers=[csv,wandb]", "trainer.log_every_n_steps=1", "trainer.limit_val_batches=0")
    (message,) = [record.getMessage() for record in caplog.records if record.name == "npbgpp.engine.trainer"]
    assert "W&B cannot start" in message and "WANDB_MODE=offline" in message and "\n" not in message
    assert (folder / "csv_logs" / "metrics.csv").is_file()
