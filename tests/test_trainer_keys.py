"""The ``trainer`` group: every key of Lightning 1.4 is accepted on the command line and lands where Lightning 2 expects it."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pytorch_lightning import Trainer

from npbgpp.core.config import typed
from npbgpp.engine.trainer import TrainerPlan, TrainerSettings, lightning_arguments
from npbgpp.errors import InputError

CONF = Path(__file__).resolve().parents[1] / "conf"
DDP = "ddp_find_unused_parameters_true"


@pytest.fixture
def gpus(monkeypatch) -> Callable[[int], None]:
    """Pretends that this machine has so many GPUs."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@functools.cache
def composed(*overrides: str) -> TrainerSettings:
    """What the command line ``trainer.<override> ...`` gives."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("trainer/project", overrides=[f"trainer.{o}" for o in overrides])
    values = OmegaConf.to_container(config.trainer, resolve=True)
    return typed(TrainerSettings, TrainerSettings.split_retired(values), "trainer")


def plan(*overrides: str) -> TrainerPlan:
    """What that asks of Lightning."""
    return lightning_arguments(composed(*overrides))


def arguments(*overrides: str) -> dict:
    return plan(*overrides).arguments


def expect(**values) -> dict:
    return values


# every key of spec "old Trainer keys" that passes unchanged or under another name, with what Lightning 2 is told
MAPPED = [
    ("num_nodes=1", expect(num_nodes=1)),
    ("max_epochs=39", expect(max_epochs=39)),
    ("min_epochs=2", expect(min_epochs=2)),
    ("max_steps=null", expect(max_steps=-1)),
    ("max_steps=500", expect(max_steps=500)),
    ("max_steps=5e2", expect(max_steps=500)),
    ("min_steps=null", expect(min_steps=None)),
    ("min_steps=7", expect(min_steps=7)),
    ("max_time=null", expect(max_time=None)),
    ("max_time='00:01:00:00'", expect(max_time="00:01:00:00")),
    ("limit_train_batches=0.5", expect(limit_train_batches=0.5)),
    ("limit_train_batches=3", expect(limit_train_batches=3)),
    ("limit_val_batches=0", expect(limit_val_batches=0)),
    ("limit_val_batches=1.0", expect(limit_val_batches=1.0)),
    ("limit_test_batches=2", expect(limit_test_batches=2)),
    ("overfit_batches=0.0", expect(overfit_batches=0.0)),
    ("fast_dev_run=true", expect(fast_dev_run=True)),
    ("fast_dev_run=3", expect(fast_dev_run=3)),
    ("check_val_every_n_epoch=5", expect(check_val_every_n_epoch=5)),
    ("val_check_interval=0.25", expect(val_check_interval=0.25)),
    ("num_sanity_val_steps=2", expect(num_sanity_val_steps=2)),
    ("reload_dataloaders_every_n_epochs=1", expect(reload_dataloaders_every_n_epochs=1)),
    ("replace_sampler_ddp=true", expect(use_distributed_sampler=False)),
    ("use_distributed_sampler=true", expect(use_distributed_sampler=False)),
    ("checkpoint_callback=true", expect(enable_checkpointing=True)),
    ("checkpoint_callback=false", expect(enable_checkpointing=False)),
    ("terminate_on_nan=true", expect(detect_anomaly=True)),
    ("terminate_on_nan=false", expect(detect_anomaly=False)),
    ("precision=32", expect(precision="32-true")),
    ("precision=16", expect(precision="16-mixed")),
    ("precision=bf16", expect(precision="bf16-mixed")),
    ("precision=64", expect(precision="64-true")),
    ("precision=bf16-mixed", expect(precision="bf16-mixed")),
    ("default_root_dir=out", expect(default_root_dir="out")),
    ("benchmark=false", expect(benchmark=False)),
    ("deterministic=true", expect(deterministic=True)),
    ("log_every_n_steps=10", expect(log_every_n_steps=10)),
    ("profiler=simple", expect(profiler="simple")),
    ("profiler=null", expect(profiler=None)),
    ("sync_batchnorm=true", expect(sync_batchnorm=True)),
    ("weights_summary=top", expect(enable_model_summary=True)),
    ("weights_summary=full", expect(enable_model_summary=True)),
    ("weights_summary=null", expect(enable_model_summary=False)),
    ("gpus=null", expect(accelerator="auto", devices=1, strategy="auto")),
    ("gpus=0", expect(accelerator="cpu", devices=1, strategy="auto")),
    ("num_processes=1", expect(devices=1, strategy="auto")),
    ("num_processes=2", expect(accelerator="cpu", devices=2, strategy=DDP)),
    ("tpu_cores=8", expect(accelerator="tpu", devices=8, strategy=DDP)),
    ("accelerator=null", expect(accelerator="auto")),
    ("accelerator=cpu", expect(accelerator="cpu", strategy="auto")),
    ("devices=2", expect(devices=2, strategy=DDP)),
    ("devices=[0]", expect(devices=[0], strategy="auto")),
    ("num_nodes=2", expect(num_nodes=2, strategy=DDP)),
    ("strategy=ddp", expect(strategy="auto")),
]


@pytest.mark.parametrize(("override", "expected"), MAPPED, ids=[o for o, _ in MAPPED])
def test_a_key_reaches_lightning(override, expected):
    told = arguments(override)
    assert {key: told[key] for key in expected} == expected
    for key, value in expected.items():
        assert type(told[key]) is type(value), key


RETIRED = [
    "ipus=4",
    "auto_select_gpus=false",
    "amp_backend=native",
    "amp_level=O2",
    "prepare_data_per_node=true",
    "weights_save_path=here",
    "move_metrics_to_cpu=false",
    "multiple_trainloader_mode=max_size_cycle",
    "track_grad_norm=-1",
    "auto_lr_find=false",
    "auto_scale_batch_size=false",
    "progress_bar_refresh_rate=1",
    "process_position=0",
    "stochastic_weight_avg=false",
    "truncated_bptt_steps=2",
    "flush_logs_every_n_steps=100",
    "distributed_backend=ddp",
]


@pytest.mark.parametrize("override", RETIRED)
def test_a_key_without_a_job_is_accepted_with_a_note(override, caplog):
    with caplog.at_level(logging.WARNING):
        told = arguments(override)
    key = override.split("=")[0]
    notes = [r.getMessage() for r in caplog.records if f"trainer.{override}".lower() in r.getMessage().lower()]
    assert len(notes) == 1 and "does nothing" in notes[0]
    assert told == arguments() and key not in told


def test_defaults_say_nothing_and_suit_lightning(caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        told = arguments()
    assert caplog.records == []
    assert (
        told["num_sanity_val_steps"] == 0
        and told["max_steps"] == -1
        and "accumulate_grad_batches" not in told
        and "gradient_clip_val" not in told
    )
    Trainer(**told | {"accelerator": "cpu", "default_root_dir": str(tmp_path), "logger": False, "enable_progress_bar": False})


def test_gpus_without_a_gpu_fall_back_to_the_cpu(gpus, caplog):
    gpus(0)
    with caplog.at_level(logging.WARNING):
        told = arguments("gpus=4", "accelerator=ddp")
    assert (told["accelerator"], told["devices"], told["strategy"]) == ("cpu", 1, "auto")
    assert any("trainer.gpus=4" in r.getMessage() and "CPU" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize(
    ("override", "devices", "strategy"),
    [("gpus=4", 4, DDP), ("gpus=1", 1, "auto"), ("gpus=[2]", [2], "auto"), ("gpus=[0,3]", [0, 3], DDP), ("gpus=-1", -1, DDP)],
)
def test_gpus_where_there_are_some(gpus, caplog, override, devices, strategy):
    gpus(4)
    with caplog.at_level(logging.WARNING):
        told = arguments(override)
    assert (told["accelerator"], told["devices"], told["strategy"]) == ("gpu", devices, strategy) and caplog.records == []


@pytest.mark.parametrize(
    ("accelerator", "strategy"),
    [
        ("ddp", DDP),
        ("ddp_spawn", "ddp_spawn"),
        ("deepspeed", "deepspeed"),
        ("dp", DDP),
        ("ddp2", DDP),
        ("ddp_sharded", DDP),
        ("horovod", DDP),
    ],
)
def test_a_strategy_given_as_accelerator_is_moved(gpus, accelerator, strategy):
    gpus(2)
    told = arguments(f"accelerator={accelerator}", "gpus=2")
    assert (told["accelerator"], told["devices"], told["strategy"]) == ("gpu", 2, strategy)


def test_processes_on_the_cpu_of_lightning_1(gpus):
    gpus(2)
    told = arguments("accelerator=ddp_cpu", "num_processes=2")
    assert (told["accelerator"], told["devices"], told["strategy"]) == ("cpu", 2, DDP)


def test_strategies_that_are_gone_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        arguments("accelerator=dp", "devices=2")
    assert any("dp" in r.getMessage() and DDP in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("strategy", [DDP, "ddp", "ddp_spawn", "auto"])
def test_strategies_we_choose_exist_in_lightning(strategy, tmp_path):
    trainer = Trainer(accelerator="cpu", devices=1, strategy=strategy, logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
    assert trainer.world_size == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["gpus=1", "devices=1"], ["trainer.gpus=1", "trainer.devices=1"]),
        (["gpus=0", "devices=2"], ["trainer.gpus=0", "trainer.devices=2"]),
        (["accelerator=ddp", "strategy=ddp_spawn"], ["trainer.accelerator=ddp", "trainer.strategy=ddp_spawn"]),
        (["weights_summary=bottom"], ["trainer.weights_summary", "bottom"]),
        (["gradient_clip_algorithm=value"], ["trainer.gradient_clip_algorithm", "value"]),
        (["log_gpu_memory=some"], ["trainer.log_gpu_memory", "some"]),
        (["precision=8"], ["trainer.precision", "8"]),
        (["max_epochs=many"], ["trainer.max_epochs", "many"]),
        (["max_steps=0.5"], ["trainer.max_steps", "0.5"]),
        (["sync_batchnorm=1"], ["trainer.sync_batchnorm", "true or false"]),
    ],
)
def test_contradictions_and_wrong_values_are_refused(overrides, words):
    with pytest.raises(InputError) as caught:
        plan(*overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(("value", "depth"), [("top", 1), ("full", -1), ("null", None)])
def test_depth_of_the_summary(value, depth):
    assert plan(f"weights_summary={value}").summary_depth == depth


@pytest.mark.parametrize(("value", "monitor"), [("null", False), ("min_max", True), ("all", True)])
def test_memory_logging_becomes_a_callback(value, monitor):
    assert plan(f"log_gpu_memory={value}").monitor_devices is monitor


def test_a_checkpoint_to_resume_from():
    assert plan().checkpoint is None
    assert plan("resume_from_checkpoint=a/last.ckpt").checkpoint == "a/last.ckpt"


def test_values_for_systems_that_step_themselves_are_accepted():
    """Lightning refuses both with manual optimisation, so they must not reach it."""
    told = arguments("accumulate_grad_batches=4", "gradient_clip_val=0.5", "gradient_clip_val=0.0")
    assert "accumulate_grad_batches" not in told and "gradient_clip_val" not in told


# the values that the authors' group trainer=project shipped with
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
    told = result.arguments
    assert (
        told["strategy"] == "auto" and told["use_distributed_sampler"] is False and told["profiler"] == "simple" and result.monitor_devices
    )
    Trainer(**told | {"accelerator": "cpu", "default_root_dir": str(tmp_path), "logger": False, "enable_progress_bar": False})
