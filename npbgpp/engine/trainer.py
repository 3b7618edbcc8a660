"""The ``trainer`` group of the config: Lightning 2 arguments, with the spellings of Lightning 1.4 translated."""

import logging
import os
from dataclasses import dataclass, field
from typing import Any

import torch

from npbgpp.errors import InputError

log = logging.getLogger(__name__)

_PRECISIONS = {"16": "16-mixed", "32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}
_REMOVED_STRATEGIES = ("dp", "ddp2", "ddp_cpu", "ddp_sharded", "horovod")  # of Lightning 1.4, without a counterpart in Lightning 2
_STRATEGIES = ("ddp", "ddp_spawn", "deepspeed", "fsdp", *_REMOVED_STRATEGIES)
_MULTI_DEVICE_STRATEGY = "ddp_find_unused_parameters_true"
# keys of Lightning 1.4 whose job nobody does any more: accepted, and said so when they are set
_RETIRED = {
    "use_distributed_sampler": "samples are dealt out to processes in any case",
    "replace_sampler_ddp": "samples are dealt out to processes in any case",
    "ipus": "Lightning 2 drives no IPUs",
    "auto_select_gpus": "devices=auto chooses",
    "amp_backend": "torch's own mixed precision is used",
    "amp_level": "torch's own mixed precision is used",
    "prepare_data_per_node": "scenes are read, not prepared",
    "weights_save_path": "checkpoints lie in hydra.run.dir",
    "move_metrics_to_cpu": "scores are on the CPU already",
    "multiple_trainloader_mode": "there is one training loader",
    "track_grad_norm": "not available",
    "auto_lr_find": "not available with several optimisers",
    "auto_scale_batch_size": "not available with several loaders",
    "progress_bar_refresh_rate": "the progress bar chooses",
    "process_position": "the progress bar chooses",
    "stochastic_weight_avg": "use a callback",
    "truncated_bptt_steps": "there are no sequences",
    "flush_logs_every_n_steps": "loggers choose",
    "distributed_backend": "use strategy",
}


@dataclass(frozen=True)
class TrainerSettings:
    """Keys of the ``trainer`` group. The first block goes to Lightning 2 as it is, the second is translated (see ``lightning_arguments``)."""

    accelerator: str | None = None
    strategy: str | None = None
    devices: int | str | tuple[int, ...] | None = None
    num_nodes: int = 1
    precision: int | str = 32
    max_epochs: int | None = 1000
    min_epochs: int | None = 1
    max_steps: int | None = None
    min_steps: int | None = None
    max_time: str | dict[str, float] | None = None
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    limit_test_batches: int | float = 1.0
    overfit_batches: int | float = 0.0
    fast_dev_run: bool | int = False
    check_val_every_n_epoch: int | None = 1
    val_check_interval: int | float = 1.0
    num_sanity_val_steps: int = 0
    reload_dataloaders_every_n_epochs: int = 0
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str = "norm"
    benchmark: bool | None = None
    deterministic: bool | str = False
    log_every_n_steps: int = 50
    profiler: str | None = None
    sync_batchnorm: bool = False
    enable_checkpointing: bool = True
    enable_progress_bar: bool = True
    enable_model_summary: bool = True
    detect_anomaly: bool = False
    plugins: Any = None
    default_root_dir: str | None = None
    resume_from_checkpoint: str | None = None
    requeue_signal: str | None = None
    # spellings of Lightning 1.4; null: not given
    gpus: int | str | tuple[int, ...] | None = None
    num_processes: int | None = None
    tpu_cores: int | None = None
    checkpoint_callback: bool | None = None
    log_gpu_memory: str | None = None
    terminate_on_nan: bool | None = None
    weights_summary: str | None = "top"
    retired: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def split_retired(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Moves keys without a counterpart into ``retired``; the rest stays for type checking."""
        kept = {k: v for k, v in values.items() if k not in _RETIRED}
        return kept | {"retired": {k: v for k, v in values.items() if k in _RETIRED and v is not None}}


@dataclass(frozen=True)
class TrainerPlan:
    """What to build a Trainer from.

    Attributes:
        arguments: keyword arguments of ``pytorch_lightning.Trainer``.
        checkpoint: checkpoint to resume from.
        monitor_devices: log device statistics.
        summary_depth: depth of the model summary, None for none.
        requeue_signal: name of the signal that has the job queued again; None for none.
    """

    arguments: dict[str, Any]
    checkpoint: str | None
    monitor_devices: bool
    summary_depth: int | None
    requeue_signal: str | None = None


def lightning_arguments(settings: TrainerSettings) -> TrainerPlan:
    """Translates old spellings; every key that no longer acts is named in the log.

    Raises:
        InputError: keys that contradict each other, or a value that has no counterpart.
    """
    s = settings
    for key, value in s.retired.items():
        log.warning("trainer.%s=%s is accepted for old command lines and does nothing: %s", key, value, _RETIRED[key])
    accelerator, devices, strategy = _devices(s)
    _check_processes(devices, s.num_nodes)
    precision = _PRECISIONS.get(str(s.precision), str(s.precision))
    if precision not in _PRECISIONS.values():
        raise InputError(f"trainer.precision: expected one of {', '.join(_PRECISIONS)}, got {s.precision}")
    depths = {"top": 1, "full": -1, None: None}
    if s.weights_summary not in depths:
        raise InputError(f"trainer.weights_summary: expected top, full or null, got {s.weights_summary}")
    depth = depths[s.weights_summary]
    if s.gradient_clip_algorithm != "norm":
        raise InputError(f"trainer.gradient_clip_algorithm: expected norm, got {s.gradient_clip_algorithm}; the systems clip by norm")
    if s.log_gpu_memory not in (None, "all", "min_max"):
        raise InputError(f"trainer.log_gpu_memory: expected all, min_max or null, got {s.log_gpu_memory}")
    arguments = {
        "accelerator": accelerator,
        "devices": devices,
        "strategy": strategy,
        "num_nodes": s.num_nodes,
        "precision": precision,
        "max_epochs": s.max_epochs,
        "min_epochs": s.min_epochs,
        "max_steps": -1 if s.max_steps is None else s.max_steps,
        "min_steps": s.min_steps,
        "max_time": s.max_time,
        "limit_train_batches": s.limit_train_batches,
        "limit_val_batches": s.limit_val_batches,
        "limit_test_batches": s.limit_test_batches,
        "overfit_batches": s.overfit_batches,
        "fast_dev_run": s.fast_dev_run,
        "check_val_every_n_epoch": s.check_val_every_n_epoch,
        "val_check_interval": s.val_check_interval,
        "num_sanity_val_steps": s.num_sanity_val_steps,
        "reload_dataloaders_every_n_epochs": s.reload_dataloaders_every_n_epochs,
        "benchmark": s.benchmark,
        "deterministic": s.deterministic,
        "log_every_n_steps": s.log_every_n_steps,
        "profiler": s.profiler,
        "sync_batchnorm": s.sync_batchnorm,
        "enable_checkpointing": s.enable_checkpointing if s.checkpoint_callback is None else s.checkpoint_callback,
        "enable_progress_bar": s.enable_progress_bar,
        "enable_model_summary": s.enable_model_summary and depth is not None,
        "detect_anomaly": s.detect_anomaly if s.terminate_on_nan is None else s.terminate_on_nan,
        "use_distributed_sampler": False,  # the data module deals samples out, without repeating any
        "default_root_dir": s.default_root_dir,
    }
    if s.plugins is not None:
        arguments["plugins"] = s.plugins
    return TrainerPlan(arguments, s.resume_from_checkpoint, s.log_gpu_memory is not None, depth, s.requeue_signal)


def _check_processes(devices: Any, nodes: int) -> None:
    """A launcher such as torchrun has started processes already: as many as the trainer is told to expect."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or devices in ("auto", -1, "-1"):
        return
    started = int(os.environ.get("WORLD_SIZE", "1"))
    expected = (len(devices) if isinstance(devices, list) else int(devices)) * nodes
    if started != expected:
        raise InputError(
            f"trainer.devices: expected devices times nodes to be the {started} processes that were started, got {devices} devices on {nodes} nodes; "
            "make them agree"
        )


def _devices(s: TrainerSettings) -> tuple[str, Any, str]:
    accelerator, strategy = s.accelerator, s.strategy
    if accelerator in _STRATEGIES:  # Lightning 1.4 gave the strategy under this name
        if strategy is not None:
            raise InputError(
                f"trainer.accelerator={accelerator} names a strategy, and trainer.strategy={strategy} is given too; give one of them"
            )
        strategy = _MULTI_DEVICE_STRATEGY if accelerator == "ddp" else accelerator
        accelerator = "cpu" if accelerator == "ddp_cpu" else None
    if strategy in _REMOVED_STRATEGIES:
        log.warning("trainer: strategy %s no longer exists in Lightning 2; using %s instead", strategy, _MULTI_DEVICE_STRATEGY)
        strategy = _MULTI_DEVICE_STRATEGY
    devices: Any = list(s.devices) if isinstance(s.devices, tuple) else s.devices
    if s.gpus is not None and devices is not None:
        raise InputError(f"trainer.gpus={s.gpus} and trainer.devices={s.devices} are two spellings of one thing; give one of them")
    if s.gpus is not None and s.gpus not in (0, "0", ()):
        devices = list(s.gpus) if isinstance(s.gpus, tuple) else s.gpus
        accelerator = "gpu"
        if not torch.cuda.is_available():
            log.warning("trainer.gpus=%s: this machine has no usable GPU; running on the CPU instead", s.gpus)
            accelerator, devices = "cpu", 1
        elif isinstance(devices, int) and devices > torch.cuda.device_count():
            log.warning("trainer.gpus=%s: this machine has %d, using these", s.gpus, torch.cuda.device_count())
            devices = torch.cuda.device_count()
    elif s.gpus is not None:
        accelerator, devices = "cpu", s.num_processes or 1
    elif s.tpu_cores is not None:
        accelerator, devices = "tpu", s.tpu_cores
    elif s.num_processes is not None and devices is None:
        devices = s.num_processes
        accelerator = accelerator or ("cpu" if s.num_processes > 1 else None)
    devices = 1 if devices is None else devices
    several = s.num_nodes > 1 or devices not in (1, "1", [devices[0]] if isinstance(devices, list) and devices else 1)
    if strategy is None or not several:
        strategy = _MULTI_DEVICE_STRATEGY if several else "auto"
    return accelerator or "auto", devices, strategy
