"""Hydra callbacks: an early check of the run folder, and sweeps that continue after a failed run and end with a comparison.

Hydra builds these callbacks before it has parsed the command line, so modules that import torch are imported inside of functions.
"""

import logging
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from npbgpp.compare.runs import FAILURE, read_runs, runs_below
from npbgpp.core.paths import require_writable
from npbgpp.core.run_folder import (
    is_first_process,
    lock_run_folder,
    missing_folders,
    remove_parts,
    remove_unused,
    require_no_run,
    require_no_training,
)
from npbgpp.errors import InputError

log = logging.getLogger(__name__)


_created: list[Path] = []  # folders that this run made, the innermost first


def remove_unused_folder() -> None:
    """Removes the folder of a run that was refused before it did anything, if this run made it."""
    remove_unused(_created)


class WritableRunFolder(Callback):
    """Ends the program with one message and exit code 1 when ``hydra.run.dir`` or ``hydra.sweep.dir`` cannot be created or written, when another process
    writes there, or when a training would overwrite another one. Until then nothing in the folder is changed.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.run.dir)
        missing = missing_folders(folder)
        try:
            require_writable(folder, "hydra.run.dir")
            if not is_first_process():
                return
            _created[:] = missing
            lock_run_folder(folder, "hydra.run.dir")
            goes_on = any((config.get("resume"), config.get("trainer", {}).get("resume_from_checkpoint")))
            if config.get("eval_only"):
                require_no_training(folder, "hydra.run.dir")
            elif not goes_on and not config.get("overwrite"):
                require_no_run(folder, "hydra.run.dir")
        except InputError as error:
            sys.exit(f"error: {error}")
        remove_parts(folder)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            require_writable(Path(config.hydra.sweep.dir), "hydra.sweep.dir")
            lock_run_folder(Path(config.hydra.sweep.dir), "hydra.sweep.dir")
        except InputError as error:
            sys.exit(f"error: {error}")


def record_failure(error: Exception, message: str) -> bool:
    """Writes ``failure.txt`` into the folder of a run that failed, if it is one run of a sweep.

    Args:
        error: the exception.
        message: text of the file; empty for a bug, whose traceback is written.

    Returns:
        Whether this is a sweep. Its other runs then continue, and the sweep exits with code 1.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    from npbgpp.core.files import write_atomically

    text = message or f"{type(error).__name__}: {error}\n\n{''.join(traceback.format_exception(error))}"
    write_atomically(Path(HydraConfig.get().runtime.output_dir) / FAILURE, lambda file: file.write(f"{text}\n".encode()))
    log.error("this run of the sweep failed: %s", text)
    return True


class Sweep(Callback):
    """Checks the launcher before a sweep; after it, prints the table of its runs and writes ``compare.html``, ``compare.md`` and ``compare.png``."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exits with code 1 when the package of the launcher is not installed."""
        package = str(config.hydra.launcher.get("_target_", "")).split(".")[:2]
        if package == ["hydra_plugins", "hydra_submitit_launcher"] and not _installed("submitit", ".".join(package)):
            sys.exit(
                f"hydra/launcher={config.hydra.runtime.choices.get('hydra/launcher')}: expected the packages submitit and hydra-submitit-launcher, which are "
                "not installed; install them with pip install npbgpp[cluster] (from a checkout: pip install -e .[cluster])"
            )

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Removes the error message of an earlier attempt."""
        (Path(config.hydra.runtime.output_dir) / FAILURE).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called in the process that started the sweep, wherever its runs ran. Exits with code 1 when a run failed."""
        from npbgpp.compare.page import write_comparison

        folder = Path(config.hydra.sweep.dir).resolve()
        try:
            runs = read_runs(runs_below(folder), must_be_evaluated=False)
            write_comparison(runs, folder, f"Sweep {folder.name}")
        except InputError as error:
            sys.exit(f"the runs of the sweep cannot be compared: {error}")
        failed = [run.name for run in runs if run.failure is not None]
        if failed:
            sys.exit(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; see {FAILURE} in their folders")


def _installed(*modules: str) -> bool:
    try:
        return all(find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:  # of a parent package
        return False
