"""The ``trainer`` group: every key of Lightning 1.4 is accepted on the command line and arrives where Lightning 2 expects it."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pytorch_lightning import Trainer

from npbgpp.engine.trainer import TrainerPlan, report_nondeterministic_operation, trainer_plan
from npbgpp.errors import InputError

CONF = Path(__file__).resolve().parents[2] / "conf"
DDP = "ddp_find_unused_parameters_true"
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}


@pytest.fixture
def gpus(monkeypatch) -> Callable[[int], None]:
    """Sets the number of GPUs that torch reports."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@functools.cache
def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("trainer/project", overrides=[f"trainer.{o}".replace("trainer.+", "+trainer.") for o in overrides])
    return OmegaConf.to_container(config.trainer, resolve=True)


def plan(*overrides: str) -> TrainerPlan:
    """Plan for the command line ``trainer.<override> ...``."""
    return trainer_plan(composed(*overrides))


def arguments(*overrides: str) -> dict[str, Any]:
    return plan(*overrides).arguments


# (override, argument of the Trainer, its value), in rounds in which no two overrides concern the same argument
ROUNDS = (
    [
        *(("max_epochs=39", "max_epochs", 39), ("min_epochs=2", "min_epochs", 2), ("max_steps=500", "max_steps", 500)),
        *(
            ("min_steps=null", "min_steps", None),
            ("max_time=null", "max_time", None),
            ("limit_train_batches=0.5", "limit_train_batches", 0.5),
        ),
        *(("limit_val_batches=0", "limit_val_batches", 0), ("limit_test_batches=2", "limit_test_batches", 2)),
        *(("overfit_batches=0.0", "overfit_batches", 0.0), ("fast_dev_run=true", "fast_dev_run", True)),
        *(("check_val_every_n_epoch=5", "check_val_every_n_epoch", 5), ("val_check_interval=0.25", "val_check_interval", 0.25)),
        *(("num_sanity_val_steps=2", "num_sanity_val_steps", 2), ("default_root_dir=out", "default_root_dir", "out")),
        *(("reload_dataloaders_every_n_epochs=1", "reload_dataloaders_every_n_epochs", 1), ("benchmark=false", "benchmark", False)),
        *(("checkpoint_callback=false", "enable_checkpointing", False), ("terminate_on_nan=true", "detect_anomaly", True)),
        *(("deterministic=true", "deterministic", True), ("log_every_n_steps=10", "log_every_n_steps", 10)),
        *(("profiler=simple", "profiler", "simple"), ("sync_batchnorm=true", "sync_batchnorm", True)),
        *(("precision=32", "precision", "32-true"), ("weights_summary=full", "enable_model_summary", True)),
        *(("gpus=0", "accelerator", "cpu"), ("num_nodes=1", "num_nodes", 1), ("+inference_mode=false", "inference_mode", False)),
    ],
    [
        *(("max_steps=5e2", "max_steps", 500), ("min_steps=7", "min_steps", 7), ("max_time='00:01:00:00'", "max_time", "00:01:00:00")),
        *(("limit_train_batches=3", "limit_train_batches", 3), ("limit_val_batches=1.0", "limit_val_batches", 1.0)),
        *(("check_val_every_n_epoch=null", "check_val_every_n_epoch", None), ("fast_dev_run=3", "fast_dev_run", 3)),
        *(("checkpoint_callback=true", "enable_checkpointing", True), ("terminate_on_nan=false", "detect_anomaly", False)),
        *(("deterministic=warn", "deterministic", "warn"), ("profiler=null", "profiler", None), ("precision=16", "precision", "16-mixed")),
        *(("weights_summary=null", "enable_model_summary", False), ("num_nodes=2", "num_nodes", 2)),
    ],
    [
        *(("max_steps=null", "max_steps", -1), ("weights_summary=top", "enable_model_summary", True)),
        *(("precision=bf16", "precision", "bf16-mixed"), ("accelerator=null", "accelerator", "auto"), ("strategy=ddp", "strategy", "auto")),
    ],
    [("precision=64", "precision", "64-true")],
    [("precision=bf16-mixed", "precision", "bf16-mixed")],
)


@pytest.mark.parametrize("entries", ROUNDS)
def test_keys_reach_lightning(entries):
    passed = arguments(*(override for override, _, _ in entries))
    wrong = [entry for entry in entries if (passed[entry[1]], type(passed[entry[1]])) != (entry[2], type(entry[2]))]
    assert not wrong


RETIRED = (
    *("ipus=4", "auto_select_gpus=false", "amp_backend=native", "amp_level=O2", "prepare_data_per_node=true", "weights_save_path=here"),
    *("move_metrics_to_cpu=false", "multiple_trainloader_mode=max_size_cycle", "track_grad_norm=-1", "auto_lr_find=false"),
    *("auto_scale_batch_size=false", "progress_bar_refresh_rate=1", "process_position=0", "stochastic_weight_avg=false"),
    *("truncated_bptt_steps=2", "flush_logs_every_n_steps=100", "distributed_backend=ddp", "replace_sampler_ddp=true"),
    "use_distributed_sampler=true",
)


def test_retired_keys_are_accepted_with_a_warning_each(caplog):
    with caplog.at_level(logging.WARNING):
        assert arguments(*RETIRED) == arguments()
    assert len(caplog.messages) == len(RETIRED)
    assert all(any(f"trainer.{override}".lower() in message.lower() for message in caplog.messages) for override in RETIRED)


def test_defaults_suit_lightning(caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        result = plan()
    assert caplog.records == [] and result.checkpoint is None and not result.monitor_devices
    assert result.arguments["num_sanity_val_steps"] == 0 and result.arguments["use_distributed_sampler"] is False
    assert result.build(**QUIET, default_root_dir=tmp_path).max_epochs == 1000


@pytest.mark.parametrize(
    ("count", "overrides", "expected", "warned"),
    [
        (0, ("gpus=null",), ("auto", 1, "auto"), ""),
        (0, ("num_processes=1",), ("auto", 1, "auto"), ""),
        (0, ("num_processes=2",), ("cpu", 2, DDP), ""),
        (0, ("tpu_cores=8",), ("tpu", 8, DDP), ""),
        (0, ("accelerator=cpu",), ("cpu", 1, "auto"), ""),
        (0, ("devices=2",), ("auto", 2, DDP), ""),
        (0, ("devices=[0]",), ("auto", [0], "auto"), ""),
        (0, ("num_nodes=2",), ("auto", 1, DDP), ""),
        (0, ("gpus=4", "accelerator=ddp"), ("cpu", 1, "auto"), "trainer.gpus=4"),
        (2, ("gpus=4",), ("gpu", 2, DDP), "trainer.gpus=4"),
        (1, ("gpus=4",), ("gpu", 1, "auto"), "trainer.gpus=4"),
        (4, ("gpus=4",), ("gpu", 4, DDP), ""),
        (4, ("gpus=1",), ("gpu", 1, "auto"), ""),
        (4, ("gpus=[2]",), ("gpu", [2], "auto"), ""),
        (4, ("gpus=[0,3]",), ("gpu", [0, 3], DDP), ""),
        (4, ("gpus=-1",), ("gpu", -1, DDP), ""),
        (2, ("accelerator=ddp", "gpus=2"), ("gpu", 2, DDP), ""),
        (2, ("accelerator=ddp_spawn", "gpus=2"), ("gpu", 2, "ddp_spawn"), ""),
        (2, ("accelerator=deepspeed", "gpus=2"), ("gpu", 2, "deepspeed"), ""),
        (2, ("accelerator=ddp_cpu", "num_processes=2"), ("cpu", 2, DDP), "ddp_cpu"),
        *((2, (f"accelerator={name}", "gpus=2"), ("gpu", 2, DDP), name) for name in ("dp", "ddp2", "ddp_sharded", "horovod")),
    ],
)
def test_devices_and_strategy(gpus, caplog, count, overrides, expected, warned):
    gpus(count)
    with caplog.at_level(logging.WARNING):
        passed = arguments(*overrides)
    assert (passed["accelerator"], passed["devices"], passed["strategy"]) == expected
    assert len(caplog.messages) == bool(warned) and warned in "".join(caplog.messages)


@pytest.mark.parametrize("strategy", [DDP, "ddp", "ddp_spawn", "auto"])
def test_strategies_exist_in_lightning(strategy, tmp_path):
    assert Trainer(**QUIET, devices=1, strategy=strategy, default_root_dir=tmp_path).world_size == 1


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["gpus=1", "devices=1"], ["trainer.gpus=1", "trainer.devices=1"]),
        (["gpus=0", "devices=2"], ["trainer.gpus=0", "trainer.devices=2"]),
        (["accelerator=ddp", "strategy=ddp_spawn"], ["trainer.accelerator=ddp", "trainer.strategy=ddp_spawn"]),
        (["weights_summary=bottom"], ["trainer.weights_summary", "top", "bottom"]),
        (["gradient_clip_algorithm=value"], ["trainer.gradient_clip_algorithm", "norm", "value"]),
        (["log_gpu_memory=some"], ["trainer.log_gpu_memory", "min_max", "some"]),
        (["precision=8"], ["trainer.precision", "bf16", "8"]),
        (["max_epochs=many"], ["trainer.max_epochs", "an integer or null", "many"]),
        (["max_steps=0.5"], ["trainer.max_steps", "an integer", "0.5"]),
        (["sync_batchnorm=1"], ["trainer.sync_batchnorm", "true or false", "1"]),
        (["deterministic=often"], ["trainer.deterministic", "warn", "often"]),
        (["+acelerator=cpu"], ["trainer.acelerator", "trainer.accelerator?"]),
        (["+callbacks=1"], ["trainer.callbacks", "unknown key"]),
    ],
)
def test_contradictions_and_wrong_values_are_refused(overrides, parts):
    with pytest.raises(InputError) as caught:
        plan(*overrides)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_what_lightning_refuses_is_one_message(tmp_path):
    with pytest.raises(InputError, match=r"trainer: .*1\.5.*limit_train_batches"):
        plan("limit_train_batches=1.5").build(**QUIET, default_root_dir=tmp_path)


@pytest.mark.parametrize(
    ("override", "attribute", "expected"),
    [
        *(("weights_summary=top", "summary_depth", 1), ("weights_summary=full", "summary_depth", -1)),
        *(("weights_summary=null", "summary_depth", None), ("log_gpu_memory=null", "monitor_devices", False)),
        *(("log_gpu_memory=min_max", "monitor_devices", True), ("log_gpu_memory=all", "monitor_devices", True)),
        ("resume_from_checkpoint=a/last.ckpt", "checkpoint", "a/last.ckpt"),
        ("requeue_signal=SIGUSR1", "requeue_signal", "SIGUSR1"),
    ],
)
def test_keys_beside_the_trainer(override, attribute, expected):
    assert getattr(plan(override), attribute) == expected


def test_keys_of_manual_optimization_do_not_reach_lightning():
    passed = arguments("accumulate_grad_batches=4", "gradient_clip_val=0.5")
    assert "accumulate_grad_batches" not in passed and "gradient_clip_val" not in passed


# values of the authors' group trainer=project
ORIGINAL_PROJECT = """
    accelerator=ddp gpus=null num_processes=1 tpu_cores=null ipus=null num_nodes=1 auto_select_gpus=false precision=32
    amp_backend=native amp_level=O2 max_epochs=1000 min_epochs=1 max_steps=null min_steps=null max_time=null
    limit_train_batches=1.0 limit_val_batches=1.0 limit_test_batches=1.0 overfit_batches=0.0 fast_dev_run=false
    check_val_every_n_epoch=1 val_check_interval=1.0 num_sanity_val_steps=0 reload_dataloaders_every_n_epochs=0
    replace_sampler_ddp=false accumulate_grad_batches=1 gradient_clip_val=0.0 gradient_clip_algorithm=norm
    checkpoint_callback=true resume_from_checkpoint=null default_root_dir=null benchmark=false deterministic=false
    log_every_n_steps=50 plugins=null profiler=simple sync_batchnorm=false log_gpu_memory=min_max terminate_on_nan=false
    weights_summary=top auto_lr_find=false auto_scale_batch_size=false prepare_data_per_node=true weights_save_path=null
    move_metrics_to_cpu=false multiple_trainloader_mode=max_size_cycle track_grad_norm=-1
"""


def test_the_authors_settings_all_at_once(tmp_path):
    result = plan(*ORIGINAL_PROJECT.split())
    assert result.arguments["strategy"] == "auto" and result.arguments["profiler"] == "simple" and result.monitor_devices
    assert result.build(**QUIET, default_root_dir=tmp_path).world_size == 1


def test_the_number_of_started_processes_must_match(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"trainer.devices: .*2 processes.*3 devices"):
        plan("devices=3")
    assert arguments("devices=2")["devices"] == 2


def test_operations_that_deterministic_refuses_are_named():
    message = "grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'. You can ..."
    with pytest.raises(RuntimeError, match="grid_sampler"), report_nondeterministic_operation():
        raise RuntimeError(message)
    torch.use_deterministic_algorithms(True)
    try:
        with (
            pytest.raises(InputError, match="trainer.deterministic: .*grid_sampler_2d_backward_cuda .*=warn"),
            report_nondeterministic_operation(),
        ):
            raise RuntimeError(message)
        with pytest.raises(RuntimeError, match="out of memory"), report_nondeterministic_operation():
            raise RuntimeError("out of memory")
    finally:
        torch.use_deterministic_algorithms(False)
