"""Lightning's Trainer: its arguments, its evaluation loops, and its loggers.

``conf/trainer/default.yaml`` has the defaults of the group ``trainer`` and says what each key means. Types are those of the signature of ``Trainer``; the
spellings of Lightning 1.4 are read as well.
"""

import contextlib
import csv
import functools
import inspect
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import torch
import torch.distributed as dist
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.loops import _EvaluationLoop
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.states import RunningStage, TrainerFn
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel

from npbgpp.core.config import convert, require_known, typed
from npbgpp.errors import InputError

# ----------------------------------------------------------------------
# Arguments


log = logging.getLogger(__name__)

_DDP = "ddp_find_unused_parameters_true"
_MEETING = ("ddp", _DDP)  # strategies with a time limit of the rendezvous
_PRECISIONS = {"16": "16-mixed", "32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}
_SUMMARY_DEPTHS = {"top": 1, "full": -1, None: None}

# Lightning 1.4: strategies that were removed (DDP takes their place), and all names that it took as an accelerator
_REMOVED_STRATEGIES = ("dp", "ddp2", "ddp_cpu", "ddp_sharded", "horovod")
_STRATEGIES = ("ddp", "ddp_spawn", "deepspeed", "fsdp", *_REMOVED_STRATEGIES)
_RENAMED = {"checkpoint_callback": "enable_checkpointing", "terminate_on_nan": "detect_anomaly"}
_RETIRED = {
    **dict.fromkeys(("use_distributed_sampler", "replace_sampler_ddp"), "the data module splits samples over the processes"),
    **dict.fromkeys(("amp_backend", "amp_level"), "torch's own mixed precision is used"),
    **dict.fromkeys(("progress_bar_refresh_rate", "process_position"), "the progress bar decides"),
    "ipus": "Lightning 2 does not support IPUs",
    "auto_select_gpus": "use devices=auto",
    "prepare_data_per_node": "no data are prepared",
    "weights_save_path": "checkpoints are written to hydra.run.dir",
    "move_metrics_to_cpu": "scores are on the CPU",
    "multiple_trainloader_mode": "there is one training loader",
    "track_grad_norm": "not available",
    "auto_lr_find": "not available with several optimizers",
    "auto_scale_batch_size": "not available with several loaders",
    "stochastic_weight_avg": "use a callback",
    "truncated_bptt_steps": "there are no sequences",
    "flush_logs_every_n_steps": "loggers decide",
    "distributed_backend": "use strategy",
}

_Devices = int | str | tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class _TranslatedKeys:
    """Keys that Lightning 2 does not take, or takes other values for."""

    accelerator: str | None
    strategy: str | None
    devices: _Devices
    gpus: _Devices
    num_processes: int | None
    tpu_cores: int | None
    num_nodes: int
    precision: int | str
    max_steps: int | None
    checkpoint_callback: bool | None
    terminate_on_nan: bool | None
    log_gpu_memory: str | None
    weights_summary: str | None
    gradient_clip_algorithm: str
    plugins: Any
    requeue_signal: str | None
    resume_from_checkpoint: str | None
    rendezvous_seconds: float = 600.0  # configs of runs of earlier versions do not have it


@dataclass(frozen=True)
class TrainerPlan:
    """What a Trainer is built from.

    Attributes:
        arguments: keyword arguments of ``pytorch_lightning.Trainer``. ``accumulate_grad_batches`` and ``gradient_clip_val`` are left out: Lightning refuses
            them for systems with manual optimization.
        checkpoint: checkpoint to resume from.
        monitor_devices: log device statistics.
        summary_depth: depth of the model summary, None for none.
        requeue_signal: name of the signal that requeues the SLURM job, None for none.
        rendezvous_seconds: time limit of the processes of a run to find each other.
    """

    arguments: dict[str, Any]
    checkpoint: str | None
    monitor_devices: bool
    summary_depth: int | None
    requeue_signal: str | None
    rendezvous_seconds: float

    def build(self, **further: Any) -> Trainer:
        """The Trainer, with further arguments. Raises InputError when Lightning refuses the configuration."""
        self.check_machine()
        if self.arguments["precision"] == "32-true":  # convolutions on GPUs take the 10 bits of TF32 otherwise, matrix products do not
            torch.backends.cudnn.allow_tf32 = False
        strategy = self.arguments["strategy"]
        if strategy in _MEETING:
            further["strategy"] = MeetingDDP(self.rendezvous_seconds, find_unused_parameters=strategy == _DDP)
        try:
            return Trainer(**self.arguments | further)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise InputError(f"trainer: Lightning refuses these settings ({' '.join(str(error).split())})") from error

    def check_machine(self) -> None:
        """Raises InputError for an accelerator that this machine lacks, and for a choice of devices that has no meaning on its CPU."""
        accelerator, devices = self.arguments["accelerator"], self.arguments["devices"]
        known = AcceleratorRegistry.available_accelerators()
        there = [name for name in sorted(known) if AcceleratorRegistry[name]["accelerator"].is_available()]
        if isinstance(accelerator, str) and accelerator not in ("auto", *there, *(("gpu",) if {"cuda", "mps"} & {*there} else ())):
            raise InputError(
                f"trainer.accelerator={accelerator}: this machine has none; it has {', '.join(there)}, of which null chooses the fastest"
            )
        if (accelerator == "cpu" or there == ["cpu"]) and (isinstance(devices, list) or str(devices).startswith(("-", "0"))):
            raise InputError(f"trainer.devices={devices}: expected a positive number of processes on the CPU, or null")


class MeetingDDP(DDPStrategy):
    """DDP whose processes wait for each other for a limited time: one of them may have ended before the others know of it.

    Args:
        seconds: the limit. Later communication keeps the limit of PyTorch, as a step or an evaluation may take long.
        options: see ``DDPStrategy``.
    """

    def __init__(self, seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self._seconds = seconds

    def setup_distributed(self) -> None:
        """Meets the other processes, then sets up DDP. Raises InputError when they are not there in time."""
        self.set_world_ranks()
        environment = self.cluster_environment
        assert environment is not None
        if not dist.is_initialized():
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
            rank, count = self.global_rank, self.world_size
            try:
                store, rank, count = next(dist.rendezvous("env://", rank, count, timeout=timedelta(seconds=self._seconds)))
            except (dist.DistError, RuntimeError, OSError) as error:
                raise InputError(
                    f"process {rank}: expected all {count} processes of the run at {environment.main_address}:{environment.main_port} within "
                    f"trainer.rendezvous_seconds={self._seconds:g}, got fewer; see the messages of the others, and start all of them again"
                ) from error
            store.set_timeout(self._timeout or default_pg_timeout)
            dist.init_process_group(self._get_process_group_backend(), store=store, rank=rank, world_size=count, timeout=self._timeout)
        super().setup_distributed()


@contextmanager
def report_nondeterministic_operation() -> Iterator[None]:
    """Raises InputError in place of the error of an operation that ``trainer.deterministic=true`` refuses."""
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if not torch.are_deterministic_algorithms_enabled() or "eterministic" not in message:
            raise
        raise InputError(
            f"trainer.deterministic: expected warn or false for this method and device, got true ({message.split('. ')[0]}); use trainer.deterministic=warn to "
            "run and list such operations"
        ) from error


def trainer_plan(values: Mapping[str, Any]) -> TrainerPlan:
    """Checks and translates the ``trainer`` group; every key without an effect is named in the log.

    Args:
        values: keys of the group, interpolations resolved.

    Raises:
        InputError: an unknown key, a value of the wrong type or without a counterpart in Lightning 2, or keys that contradict each other.
    """
    hints = {name: hint for name, hint in get_type_hints(Trainer.__init__).items() if name in inspect.signature(Trainer).parameters}
    translated = {field.name for field in fields(_TranslatedKeys)}
    known = (hints.keys() | translated | _RETIRED.keys()) - {"logger", "callbacks"}  # groups of their own
    require_known(values, known, "trainer")
    for key, reason in _RETIRED.items():
        if values.get(key) is not None:
            log.warning("trainer.%s=%s is accepted for old command lines and has no effect: %s", key, values[key], reason)
    keys = typed(_TranslatedKeys, {k: v for k, v in values.items() if k in translated}, "trainer")
    arguments = {k: convert(v, hints[k], f"trainer.{k}") for k, v in values.items() if k not in translated | _RETIRED.keys()}
    for key in ("accumulate_grad_batches", "gradient_clip_val"):
        arguments.pop(key, None)
    _require_one_of("gradient_clip_algorithm", keys.gradient_clip_algorithm, ("norm",))
    _require_one_of("log_gpu_memory", keys.log_gpu_memory, ("all", "min_max", None))
    _require_one_of("weights_summary", keys.weights_summary, tuple(_SUMMARY_DEPTHS))
    precision = _PRECISIONS.get(str(keys.precision), str(keys.precision))
    _require_one_of("precision", precision, (*_PRECISIONS.values(), *_PRECISIONS), got=keys.precision)
    for old, new in _RENAMED.items():
        if getattr(keys, old) is not None:
            arguments[new] = getattr(keys, old)
    depth = _SUMMARY_DEPTHS[keys.weights_summary]
    arguments |= _devices(keys) | {"num_nodes": keys.num_nodes, "precision": precision, "use_distributed_sampler": False}
    arguments["max_steps"] = -1 if keys.max_steps is None else keys.max_steps
    arguments["enable_model_summary"] = arguments["enable_model_summary"] and depth is not None
    if keys.plugins is not None:
        arguments["plugins"] = keys.plugins
    if not 0 < keys.rendezvous_seconds < math.inf:
        raise InputError(f"trainer.rendezvous_seconds: expected a positive number, got {keys.rendezvous_seconds}")
    monitors = keys.log_gpu_memory is not None
    return TrainerPlan(arguments, keys.resume_from_checkpoint, monitors, depth, keys.requeue_signal, keys.rendezvous_seconds)


def _require_one_of(key: str, value: Any, choices: tuple[Any, ...], got: Any = None) -> None:
    if value not in choices:
        names = ", ".join("null" if choice is None else str(choice) for choice in choices)
        raise InputError(f"trainer.{key}: expected {'one of ' if len(choices) > 1 else ''}{names}, got {value if got is None else got}")


def _devices(keys: _TranslatedKeys) -> dict[str, Any]:
    """Accelerator, devices and strategy: one process on one device unless more are asked for, then DDP."""
    accelerator, strategy, devices = keys.accelerator, keys.strategy, keys.devices
    if accelerator in _STRATEGIES:
        if strategy is not None:
            raise InputError(f"trainer.accelerator={accelerator} and trainer.strategy={strategy} both name a strategy; give one of them")
        accelerator, strategy = ("cpu" if accelerator == "ddp_cpu" else None), (_DDP if accelerator == "ddp" else accelerator)
    if strategy in _REMOVED_STRATEGIES:
        log.warning("trainer: Lightning 2 has no strategy %s; using %s instead", strategy, _DDP)
        strategy = _DDP
    if keys.gpus is not None and devices is not None:
        raise InputError(f"trainer.gpus={keys.gpus} and trainer.devices={devices} mean the same; give one of them")
    if keys.gpus is not None:
        accelerator, devices = _gpus(keys.gpus, keys.num_processes)
    elif keys.tpu_cores is not None:
        accelerator, devices = "tpu", keys.tpu_cores
    elif keys.num_processes is not None and devices is None:
        accelerator, devices = accelerator or ("cpu" if keys.num_processes > 1 else None), keys.num_processes
    found = list(devices) if isinstance(devices, tuple) else 1 if devices is None else devices
    several = keys.num_nodes > 1 or (len(found) != 1 if isinstance(found, list) else str(found) != "1")
    if strategy is None or not several:
        strategy = _DDP if several else "auto"
    _check_processes(found, keys.num_nodes)
    return {"accelerator": accelerator or "auto", "devices": found, "strategy": strategy}


def _gpus(gpus: _Devices, processes: int | None) -> tuple[str, _Devices]:
    """Accelerator and devices for ``gpus``: as many as there are, or the CPU."""
    if gpus in (0, "0", ()):
        return "cpu", processes or 1
    if not torch.cuda.is_available():
        log.warning("trainer.gpus=%s: this machine has no usable GPU; running on the CPU instead", gpus)
        return "cpu", 1
    if isinstance(gpus, int) and gpus > torch.cuda.device_count():
        log.warning("trainer.gpus=%s: this machine has %d; using these", gpus, torch.cuda.device_count())
        return "gpu", torch.cuda.device_count()
    return "gpu", gpus


def _check_processes(devices: int | str | list[int], nodes: int) -> None:
    """Compares with the number of processes that a launcher such as torchrun has started."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or devices in ("auto", -1, "-1"):
        return
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != (len(devices) if isinstance(devices, list) else int(devices)) * nodes:
        raise InputError(
            f"trainer.devices: expected devices times nodes to equal the {started} processes that were started, got {devices} devices on {nodes} nodes"
        )


# ----------------------------------------------------------------------
# Evaluation by several processes, some of which may have no view


class SharedEvaluationLoop(_EvaluationLoop):
    """Lightning's loop, in which a process without a view takes part in the hooks around the views: they exchange buffers, tables and scores.

    Lightning lets such a process skip the evaluation, and the others wait for it. Views themselves are evaluated without any exchange.
    """

    def __init__(self, trainer: Trainer, *arguments: Any, **named: Any) -> None:
        super().__init__(trainer, *arguments, **named)
        self._batches_of_all = 0  # over all processes

    def setup_data(self) -> None:
        before = self._combined_loader
        super().setup_data()
        if self._combined_loader is not before:  # alike in all processes
            own = torch.tensor(float(sum(self._max_batches)), device=self.trainer.strategy.root_device)
            self._batches_of_all = int(self.trainer.strategy.reduce(own, reduce_op="sum"))

    def run(self) -> list[Any]:
        with _local_forward(self.trainer.strategy.model):
            return super().run()

    @property
    def skip(self) -> bool:
        """Whether no process has anything to evaluate."""
        return self._batches_of_all == 0 or (self.trainer.sanity_checking and self.trainer.num_sanity_val_steps == 0)


@contextmanager
def _local_forward(model: Any) -> Iterator[None]:
    """Lets DDP exchange nothing in forward passes: with buffers it broadcasts them in each one, and processes have unequal numbers of views.

    ``System.on_validation_start`` has broadcast them.
    """
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    before, model.require_forward_param_sync = model.require_forward_param_sync, False
    try:
        yield
    finally:
        model.require_forward_param_sync = before


def share_evaluations(trainer: Trainer) -> None:
    """Replaces the loops of a Trainer that validate during training, and that test."""
    fit = trainer.fit_loop.epoch_loop
    fit.val_loop = SharedEvaluationLoop(trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False)
    test = SharedEvaluationLoop(trainer, TrainerFn.TESTING, RunningStage.TESTING, inference_mode=trainer.test_loop.inference_mode)
    trainer.test_loop = test


# ----------------------------------------------------------------------
# Loggers: one that can no longer write is given up, and the run continues; at the end all are closed


def guard(logger: Logger) -> Logger:
    """Lets a logger fail once for lack of disk space or a missing folder; its methods then do nothing.

    Curves are not worth ending a run for. Checkpoints and scores are: they are not written by loggers.
    """
    attempts = _Attempts(logger)
    for name in ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint"):
        setattr(logger, name, functools.partial(attempts.call, name))
    return logger


class _Attempts:
    """Calls methods of a logger until the operating system refuses one. (Not a closure, so that loggers can be pickled.)"""

    def __init__(self, logger: Logger) -> None:
        self.logger, self.failed = logger, False

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.failed:
            return None
        try:
            return getattr(type(self.logger), name)(self.logger, *args, **kwargs)
        except Exception as error:
            cause = _system_error(error)
            if cause is None:
                raise
            self.failed = True
            log.error(
                "%s cannot write any more (%s): training continues without it; what it has written so far is in %s",
                type(self.logger).__name__,
                cause,
                self.logger.save_dir,
            )
            return None


def started(loggers: Sequence[Logger]) -> list[Logger]:
    """The loggers without those of W&B that cannot start, because there is no login or the server cannot be reached."""
    kept = []
    for logger in loggers:
        try:
            if isinstance(logger, WandbLogger):
                logger.experiment  # noqa: B018 - starts its run
            kept.append(logger)
        except Exception as error:  # wandb has classes of its own for every cause
            reason = " ".join(str(error).split())
            log.error(
                "loggers=[wandb]: W&B cannot start (%s); training continues without it: run wandb login before, or set WANDB_MODE=offline",
                reason[:300],
            )
    return kept


def _system_error(error: BaseException | None) -> OSError | None:
    """The error of the operating system behind an exception: Lightning's TensorBoard logger wraps it in a ValueError."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def logged_steps(checkpoint: Mapping[str, Any]) -> int:
    """Number of steps, as loggers count them, that a checkpoint of Lightning has made."""
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    batches = loop.get("epoch_loop.batch_progress", {}).get("current", {"processed": 0, "completed": 0})
    # the last batch is counted after the callbacks of its end, which save checkpoints
    uncounted = batches["processed"] > batches["completed"]
    return int(loop.get("epoch_loop.state_dict", {}).get("_batches_that_stepped", checkpoint["global_step"])) + uncounted


def continue_csv(logger: CSVLogger, steps: int) -> None:
    """Keeps the rows that the training which a run goes on with has written up to a number of steps; Lightning's logger removes them all."""
    file = Path(logger.log_dir) / "metrics.csv"
    if not file.is_file():
        return
    with file.open(newline="", encoding="utf-8") as opened:
        rows = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(opened)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it removes the file
        logger.experiment.metrics = [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) < steps]
    logger.save()


def close_loggers(loggers: Sequence[Logger]) -> None:
    """Finishes W&B runs. Otherwise one would last as long as the process, and receive the next run of a sweep."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            with contextlib.suppress(OSError):
                logger.experiment.finish()
