"""Builds a run - data, method, trainer - from a composed config, to train or evaluate it, or from the folder of a trained run, to render or export it."""

import logging
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import DeviceStatsMonitor, ModelSummary
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import SIGTERMException

from npbgpp.callbacks.checkpoints import INTERRUPTED, Preemption
from npbgpp.callbacks.evaluation import EvaluationWriter
from npbgpp.callbacks.resources import RunCosts, ThreadsFollowLoad, progress_callback
from npbgpp.core.config import GROUPS, as_typed, typed
from npbgpp.core.distributed import report_lost_process
from npbgpp.core.paths import SearchPaths, project_folder
from npbgpp.core.plugins import METHODS, load_plugin, warn_of_broken_plugins
from npbgpp.core.run_folder import is_first_process, remove_run
from npbgpp.core.saved_config import launch_folder, saved_config
from npbgpp.data import Scene
from npbgpp.data.settings import DataloaderSettings, DatasetSettings
from npbgpp.engine.checkpoint import (
    AtomicCheckpointIO,
    check_same_training,
    find_checkpoint,
    find_weights,
    load_weights,
    training_keys,
    warn_of_other_processes,
)
from npbgpp.engine.datamodule import DataModule, RunScenes, read_scenes
from npbgpp.engine.provenance import write_provenance
from npbgpp.engine.trainer import (
    TrainerPlan,
    close_loggers,
    continue_csv,
    guard,
    logged_steps,
    report_nondeterministic_operation,
    share_evaluations,
    started,
    trainer_plan,
)
from npbgpp.errors import InputError
from npbgpp.geometry import surrounds
from npbgpp.io import VIDEO_FORMATS
from npbgpp.methods.base import RunContext, System, SystemSettings
from npbgpp.metrics import ImageMetrics
from npbgpp.parsers import layout_keys

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """Run-wide keys of conf/config.yaml."""

    seed: int
    eval_only: bool
    test_after_fit: bool
    weights_path: str | None
    weights_strict: bool
    cache_dir: str | None
    test_video: str | None
    resume: str | None
    resume_strict: bool
    overwrite: bool

    def __post_init__(self) -> None:
        if self.test_video not in (None, *VIDEO_FORMATS):
            raise InputError(f"test_video: expected {', '.join(VIDEO_FORMATS)} or null, got {self.test_video}")
        if self.resume is not None and self.eval_only:
            raise InputError(f"resume={self.resume}: resume continues a training; to evaluate a checkpoint, name it with weights_path")
        if self.overwrite and (self.resume is not None or self.eval_only):
            other = "eval_only=true" if self.eval_only else f"resume={self.resume}"
            raise InputError(f"overwrite=true: expected a training that begins anew with it, got {other}; leave one of them out")


@dataclass(frozen=True)
class Run:
    """Everything a run needs except the Trainer.

    Attributes:
        settings: run-wide keys.
        plan: arguments of the trainer.
        system_settings: keys of the ``system`` group.
        scenes: the scenes, and where they lie.
        data: datasets and loaders.
        metrics: scores of views.
        system: the method, with its weights.
        resume: checkpoint that training resumes from.
        checkpoints: reads and writes checkpoints; it may hold the content of ``resume`` already.
    """

    settings: RunSettings
    plan: TrainerPlan
    system_settings: SystemSettings
    scenes: RunScenes
    data: DataModule
    metrics: ImageMetrics
    system: System
    resume: Path | None
    checkpoints: AtomicCheckpointIO


def build_run(config: DictConfig, search_paths: SearchPaths, needs_test_views: bool = True) -> Run:
    """Reads the scenes of a config, builds its method and loads the weights.

    Args:
        config: see ``run``; the groups callbacks and loggers are not needed.
        search_paths: base folders of relative paths.
        needs_test_views: refuse to evaluate without a scene to test.

    Raises:
        InputError: see ``run``.
    """
    for key in config.datasets:
        if OmegaConf.is_missing(config.datasets, key):
            raise InputError(
                f"datasets.{key}: expected a value, got nothing; set it: datasets.{key}=<...> (npbgpp train --help datasets=<choice> says what it is)"
            )
    settings = typed(RunSettings, {k: v for k, v in _plain(config).items() if k not in GROUPS}, "config")
    seed_everything(settings.seed, workers=True, verbose=False)
    if settings.cache_dir is not None:
        torch.hub.set_dir(str(search_paths.existing(settings.cache_dir, "cache_dir")))
    warn_of_broken_plugins(METHODS, System)
    plan = trainer_plan(_plain(config.trainer))
    for key in ("max_epochs", "max_steps"):
        if plan.arguments[key] == 0 and not settings.eval_only:
            raise InputError(
                f"trainer.{key}=0: nothing would be trained; evaluate a checkpoint with eval_only=true weights_path=<checkpoint>, or train more"
            )
        if plan.arguments[key] is not None and plan.arguments[key] < -1:
            raise InputError(f"trainer.{key}: expected a positive number, or -1 for no limit, got {plan.arguments[key]}")
    method = method_of(config)
    if settings.overwrite and "overwrite_descriptors" in config.system:
        config.system.overwrite_descriptors = True
    system_settings, networks = _system_parts(config.system, method, plan, config.trainer)
    needs = method.data_needs(system_settings)
    datasets = DatasetSettings.from_config(_plain(config.datasets), layout_keys())
    found = read_scenes(datasets, search_paths, needs, settings.eval_only)
    if needs_test_views and settings.eval_only and not datasets.scenes.test:
        raise InputError("datasets.scenes.test: expected at least one scene for eval_only=true, got none; name the scenes to evaluate")
    lpips = system_settings.lpips_weights
    metrics = ImageMetrics(None if lpips is None else search_paths.existing(lpips, "system.lpips_weights"), datasets.image_margin)
    checkpoints, keys = AtomicCheckpointIO(), training_keys(_plain(config), method.display_keys)
    resume = _checkpoint_to_resume(settings, plan, search_paths, checkpoints)
    if resume is not None:
        check_same_training(resume, checkpoints.read_ahead(resume), method.__name__, keys, settings.resume_strict)
    resumed_run = None if resume is None else resume.parent.parent
    context = RunContext(found.scenes, search_paths, metrics, settings.seed, settings.eval_only, resumed_run)
    system = method(system_settings, context, **networks)
    system.training_keys = keys
    loaders = typed(DataloaderSettings, config.dataloader, "dataloader")
    tests = needs_test_views and (settings.eval_only or settings.test_after_fit)
    data = DataModule(found, datasets, loaders, needs, settings.eval_only, system.training_batches, tests=tests)
    if settings.weights_path is not None and resume is None:  # a resumed run takes its weights from the checkpoint
        weights = find_weights(settings.weights_path, search_paths)
        report = load_weights(system, weights, settings.weights_strict, search_paths.run if settings.eval_only else None)
        if settings.weights_strict:
            system.require_weights(report.missing)
    elif resume is None:
        system.start_without_weights(settings.eval_only)
    return Run(settings, plan, system_settings, found, data, metrics, system, resume, checkpoints)


def method_of(config: DictConfig) -> type[System]:
    """The method that ``system.system_class`` names. Raises InputError, which lists the installed ones, for an unknown name."""
    method: type[System] = load_plugin(METHODS, System, str(config.system.get("system_class")), "system.system_class")
    return method


def _checkpoint_to_resume(
    settings: RunSettings, plan: TrainerPlan, search_paths: SearchPaths, checkpoints: AtomicCheckpointIO
) -> Path | None:
    if plan.checkpoint is not None and settings.resume is not None:
        raise InputError("resume and trainer.resume_from_checkpoint are two spellings of one thing; give one of them")
    if settings.resume is not None:
        return find_checkpoint(settings.resume, search_paths, checkpoints)
    return None if plan.checkpoint is None else find_weights(plan.checkpoint, search_paths, "trainer.resume_from_checkpoint")


def run(config: DictConfig, search_paths: SearchPaths) -> None:
    """Trains or evaluates.

    Args:
        config: composed by Hydra, with the groups of conf/.
        search_paths: base folders of relative paths.

    Raises:
        InputError: anything the user supplied that cannot be used.
    """
    costs = RunCosts()
    parts = build_run(config, search_paths)
    if parts.settings.overwrite and is_first_process():
        named = (parts.settings.weights_path, config.system.get("descriptors_pretrained_dir"))
        remove_run(search_paths.run, "hydra.run.dir", [search_paths.output(path) for path in named if path is not None])
    write_provenance(config, search_paths)
    settings, system, data = parts.settings, parts.system, parts.data
    writer = EvaluationWriter(
        search_paths.run,
        parts.metrics,
        data.conditions() | system.conditions(),
        parts.system_settings.save_rendered_eval_images,
        parts.system_settings.postprocessing_transform,
        settings.test_video,
        costs,
    )
    trainer = _trainer(config, parts, search_paths, writer)
    (preemption,) = (callback for callback in trainer.callbacks if isinstance(callback, Preemption))  # type: ignore[attr-defined]
    try:
        if not settings.eval_only:
            if parts.resume is not None and trainer.is_global_zero:
                warn_of_other_processes(parts.resume, parts.checkpoints.read_ahead(parts.resume), trainer.world_size)
            _fit(trainer, system, data, parts.resume)
        if settings.eval_only or (settings.test_after_fit and not trainer.interrupted):
            with report_lost_process(), report_nondeterministic_operation():
                trainer.test(system, datamodule=data, verbose=False)
        if trainer.is_global_zero and (search_paths.run / "checkpoints" / "last.ckpt").is_file():
            _name_next_step(search_paths, system)
    except SIGTERMException:
        sys.exit(preemption.exit_code())
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):  # before the first step; Lightning ends the process with code 1
            log.info("interrupted before the first step: nothing was saved")
            sys.exit(INTERRUPTED)
        raise
    finally:
        close_loggers(trainer.loggers)
        preemption.close()


def _name_next_step(search_paths: SearchPaths, system: System) -> None:
    """Says how to look at a trained run."""
    folder = search_paths.run.relative_to(search_paths.launch) if search_paths.run.is_relative_to(search_paths.launch) else search_paths.run
    name, *others = system.scenes
    words = shlex.join([str(folder), *([f"scene={name}"] if others else [])])
    path = "spiral0" if system.renders_time else _path_of(system.scenes[name])
    log.info("next: npbgpp view %s, or npbgpp render %s path=%s", words, words, path)


def _path_of(scene: Scene) -> str:
    """A camera path of ``npbgpp render`` near the views that were trained on."""
    return "circle" if surrounds([scene.views[i].camera for i in scene.splits["train"]]) else "interpolate"


def _fit(trainer: Trainer, system: System, data: DataModule, resume: Path | None) -> None:
    validates = trainer.limit_val_batches != 0
    system.check_before_training(data.train_scenes, [s.scene.name for s in data.val_sets] if validates else [])
    device = f"{trainer.accelerator.__class__.__name__.removesuffix('Accelerator')} ({torch.get_num_threads()} threads)"
    system.begin_training(data.shares_scenes(trainer.world_size))
    several = f", process {trainer.global_rank + 1} of {trainer.world_size}" if trainer.world_size > 1 else ""
    log.info(
        "training %s on %s%s: %d scenes, %d views; results go to %s",
        type(system).__name__,
        device,
        several,
        len(data.train_scenes),
        data.train_views,
        trainer.default_root_dir,
    )
    with report_lost_process(), report_nondeterministic_operation(), _report_restoring(resume):
        trainer.fit(system, datamodule=data, ckpt_path=resume)


@contextmanager
def _report_restoring(resume: Path | None) -> Iterator[None]:
    """Raises InputError in place of what Lightning raises for a checkpoint whose parts do not fit the run."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        restoring = any(
            frame.filename.endswith("checkpoint_connector.py") and frame.name.lstrip("_").startswith(("restore", "resume"))
            for frame in frames
        )
        if resume is None or not restoring:
            raise
        reason = " ".join(str(error).split())
        reason = f"{reason[:200]}..." if len(reason) > 200 else reason
        raise InputError(
            f"checkpoint {resume}: training cannot go on from it ({type(error).__name__}: {reason}); name another checkpoint of the run, or begin with its "
            f"weights: weights_path={resume}"
        ) from error


def _system_parts(node: DictConfig, method: type[System], plan: TrainerPlan, trainer: DictConfig) -> tuple[SystemSettings, dict[str, Any]]:
    """Keys of the ``system`` group as typed settings, and its networks, which name their class with ``_target_``."""
    values = _plain(node)
    targets = {key for key, value in values.items() if isinstance(value, dict) and "_target_" in value}
    flat = {key: value for key, value in values.items() if key not in targets}
    # Lightning takes these two itself, but not for methods with manual optimization
    flat |= {"accumulate_grad_batches": trainer.accumulate_grad_batches, "gradient_clip_val": trainer.gradient_clip_val or None}
    settings = typed(method.settings_class, flat, "system")
    if plan.arguments["precision"] == "16-mixed":
        raise InputError(
            "trainer.precision=16: methods with manual optimization have no gradient scaler for float16; use trainer.precision=bf16 or 32"
        )
    if plan.arguments["precision"] == "64-true":
        raise InputError(
            f"trainer.precision={trainer.precision}: the kernels compute in single precision, and photos are of that precision; use trainer.precision=32"
        )
    modules = {}
    for key in sorted(targets):
        try:
            modules[key] = instantiate(node[key], _convert_="all")
        except InstantiationException as error:
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from error
            raise InputError(f"system.{key}: {' '.join(str(error).split())}; see conf/system for the keys it takes") from error
    return settings, modules


def _automatic_optimization(system: System, settings: SystemSettings) -> dict[str, Any]:
    """Arguments of the trainer for methods with automatic optimization."""
    if not system.automatic_optimization:
        return {}
    return {"accumulate_grad_batches": settings.accumulate_grad_batches, "gradient_clip_val": settings.gradient_clip_val}


def _trainer(config: DictConfig, parts: Run, search_paths: SearchPaths, writer: EvaluationWriter) -> Trainer:
    plan, evaluate_only = parts.plan, parts.settings.eval_only
    callbacks: list[Callback] = [ThreadsFollowLoad(), writer]
    chosen = config.callbacks.get("test" if evaluate_only else "fit")
    if not plan.arguments["enable_checkpointing"]:
        chosen = {k: v for k, v in (chosen or {}).items() if not v["_target_"].endswith("Checkpoint")}
    callbacks += [instantiate(node) for node in (chosen or {}).values()]
    if plan.arguments["enable_progress_bar"]:
        callbacks.append(progress_callback())
    if plan.monitor_devices:
        callbacks.append(DeviceStatsMonitor())
    if plan.arguments["enable_model_summary"] and not evaluate_only:
        callbacks.append(ModelSummary(plan.summary_depth if plan.summary_depth is not None else 1))
    saves = plan.arguments["enable_checkpointing"] and not evaluate_only
    callbacks.append(Preemption(search_paths.run / "checkpoints" if saves else None, plan.requeue_signal))
    callbacks.append(writer.costs)  # last, so that it measures the others
    loggers = started([guard(instantiate(node)) for node in (config.loggers or {}).values()])
    if parts.resume is not None and is_first_process():
        steps = logged_steps(parts.checkpoints.read_ahead(parts.resume))
        for logger in loggers:
            if isinstance(logger, CSVLogger):
                continue_csv(logger, steps)
    arguments = plan.arguments | _automatic_optimization(parts.system, parts.system_settings)
    arguments["enable_model_summary"] = arguments["enable_model_summary"] and not evaluate_only
    arguments["default_root_dir"] = arguments["default_root_dir"] or str(search_paths.run)
    arguments["plugins"] = [parts.checkpoints, *(arguments.get("plugins") or [])]
    if SLURMEnvironment.detect():  # its own requeueing would save in the middle of a step
        arguments["plugins"].append(SLURMEnvironment(auto_requeue=False))
    # without a progress bar callback Lightning would add one, which floods logs without a terminal
    arguments["enable_progress_bar"] = any(type(c).__name__.endswith("ProgressBar") for c in callbacks)
    arguments["enable_checkpointing"] = True  # Preemption is a Checkpoint to Lightning, which then adds none of its own
    trainer = plan.build(logger=loggers or False, callbacks=callbacks, **arguments)
    share_evaluations(trainer)
    return trainer


def _plain(node: Any) -> dict[str, Any]:
    container = OmegaConf.to_container(node, resolve=True)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


# ----------------------------------------------------------------------
# Trained runs, for the commands that render, export and refine them and for the Python interface


_SPLITS = ("test", "val", "train")


def configure_logging() -> None:
    """Logs to the terminal, without the messages about data, which concern training and appeared when the run was made."""
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or not record.name.startswith("npbgpp.data"))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)


def trainer_of(parts: Run) -> Trainer:
    """A Trainer for the device and the precision of a run; it neither trains nor logs. Raises InputError for a device that this machine lacks."""
    replace(parts.plan, arguments=parts.plan.arguments | {"devices": 1}).check_machine()
    lightning = logging.getLogger("pytorch_lightning")
    level = lightning.level
    lightning.setLevel(logging.WARNING)  # it lists the devices of the machine, and advertises
    try:
        return Trainer(
            accelerator=parts.plan.arguments["accelerator"],
            precision=parts.plan.arguments["precision"],
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    finally:
        lightning.setLevel(level)


def run_config(run: Path, trust_config: bool = False) -> tuple[DictConfig, SearchPaths]:
    """The config of a run and the base folders of its relative paths: those at its start, if the launch folder still exists.

    Args:
        run: folder of the run.
        trust_config: let its config name anything as ``_target_`` and compute values, see ``saved_config``.

    Raises:
        InputError: no readable config, or one that would run code that is neither of this project nor of a plug-in.
    """
    launch = launch_folder(run)
    return OmegaConf.create(saved_config(run, launch, trust_config)), SearchPaths(launch, run, project_folder())


def evaluation_of(config: DictConfig, run: Path, checkpoint: str, scene: str | None, overrides: Sequence[str]) -> str:
    """Changes the config of a run to an evaluation of one scene; returns the name of the scene.

    Args:
        config: from ``run_config``; changed in place.
        run: folder of the run.
        checkpoint: name of a file in its checkpoints.
        scene: name of the scene; needed if the run has several.
        overrides: ``key=value`` words for the config.

    Raises:
        InputError: missing config groups, checkpoint or scene.
    """
    missing = [key for key in ("datasets", "dataloader", "system", "trainer") if not isinstance(config.get(key), DictConfig)]
    if missing:
        raise InputError(f"run={run}: expected groups of a config in .hydra/config.yaml, got none called {', '.join(missing)}")
    config.callbacks = config.loggers = None
    config.resume = config.trainer.resume_from_checkpoint = None
    config.overwrite = False
    config.datasets.cache_images = False
    config.system.lpips_weights = None
    known = sorted(path.stem for path in (run / "checkpoints").glob("*.ckpt"))
    name = checkpoint.removesuffix(".ckpt")
    if name in known:
        config.weights_path, config.weights_strict = str(run / "checkpoints" / f"{name}.ckpt"), True
        if name != "last" and method_of(config).has_scene_files:
            log.warning("checkpoint=%s: the data of scenes beside the checkpoints, such as descriptors, are those of the last epoch", name)
    elif known or name != "last":  # a run of an evaluation has no checkpoints; its config names its weights
        raise InputError(f"checkpoint: expected one of {', '.join(known) or 'none'} in {run / 'checkpoints'}, got {checkpoint}")
    config.merge_with_dotlist([as_typed(word) for word in overrides])
    config.eval_only = True
    lists = OmegaConf.to_container(config.datasets.scenes, resolve=True)
    assert isinstance(lists, dict)
    names = list(dict.fromkeys(str(scene) for stage in _SPLITS for scene in lists.get(stage) or ()))
    if scene is None and len(names) != 1:
        raise InputError(
            f"scene: expected the name of one, since the run has {len(names)} ({', '.join(names)}); choose it with scene=<name>"
        )
    chosen = scene or names[0]
    config.datasets.scenes = {"train": [chosen], "val": [chosen], "test": []}
    if config.datasets.get("names") is not None:
        config.datasets.names = [chosen]
    return chosen
