"""Loads a trained run from its folder, for the commands that render, export and refine it and for the Python interface."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer

from npbgpp.core.config import as_typed
from npbgpp.core.paths import SearchPaths, project_folder
from npbgpp.core.saved_config import launch_folder, saved_config
from npbgpp.engine.run import Run, method_of
from npbgpp.errors import InputError

log = logging.getLogger(__name__)

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
    return Trainer(
        accelerator=parts.plan.arguments["accelerator"],
        precision=parts.plan.arguments["precision"],
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


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
