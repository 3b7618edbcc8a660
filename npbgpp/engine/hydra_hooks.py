"""Checks the run folder before Hydra makes it, so that a folder that cannot be written ends in one message."""

import logging
import os
import sys
import tempfile
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from npbgpp.compare.runs import FAILURE, read_runs, runs_below
from npbgpp.errors import InputError


class WritableRunFolder(Callback):
    """Ends the program with one message and exit code 1 when ``hydra.run.dir`` or ``hydra.sweep.dir`` cannot be made or written."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra with the composed configuration."""
        _require_writable(Path(config.hydra.run.dir), "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra with the composed configuration of a sweep."""
        _require_writable(Path(config.hydra.sweep.dir), "hydra.sweep.dir")


def _require_writable(folder: Path, key: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))  # a full disk takes an empty file
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        print(f"{key}={folder}: expected a folder that can be written, got {error}; free space or choose another one", file=sys.stderr)
        sys.exit(1)


# ----------------------------------------------------------------------
# Sweeps (``hydra -m``): a run that fails does not end the others, and the table of all runs comes at the end.


log = logging.getLogger(__name__)


def note_failure(error: Exception, message: str) -> bool:
    """Keeps in the folder of a run why it failed, when it is one run of a sweep.

    Args:
        error: what ended the run.
        message: what to say of it; empty for a mistake of the program, of which the traceback is kept.

    Returns:
        Whether this is a sweep: the others then go on, the table at the end names the failed ones, and the sweep exits with code 1.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    # here, not above: Hydra makes the callbacks below before it has looked at the command line, and these import torch
    from npbgpp.core.files import write_atomically

    text = message or f"{type(error).__name__}: {error}\n\n{''.join(traceback.format_exception(error))}"
    write_atomically(Path(HydraConfig.get().runtime.output_dir) / FAILURE, lambda file: file.write(f"{text}\n".encode()))
    log.error("this run of the sweep has failed: %s", text)
    return True


class Sweep(Callback):
    """Before a sweep: its launcher is installed. After it: the table of its runs, and ``compare.html``, ``compare.md`` and ``compare.png`` in its folder."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before anything runs. Exits with code 1 when the package of the launcher is missing."""
        package = str(config.hydra.launcher.get("_target_", "")).split(".")[:2]
        if package == ["hydra_plugins", "hydra_submitit_launcher"] and not _installed("submitit", ".".join(package)):
            launcher = config.hydra.runtime.choices.get("hydra/launcher")
            print(
                f"hydra/launcher={launcher}: expected the packages submitit and hydra-submitit-launcher, which are not installed; install them with "
                "pip install npbgpp[cluster] (from a checkout: pip install -e .[cluster])",
                file=sys.stderr,
            )
            sys.exit(1)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra when a run begins: why it failed at another time is of no interest any more."""
        (Path(config.hydra.runtime.output_dir) / FAILURE).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra where the sweep was started, also when its runs ran elsewhere. Exits with code 1 when a run failed."""
        from npbgpp.compare.page import write_comparison

        folder = Path(config.hydra.sweep.dir).resolve()
        try:
            runs = read_runs(runs_below(folder), must_be_evaluated=False)
            write_comparison(runs, folder, f"Sweep {folder.name}")
        except InputError as error:
            print(f"the runs of the sweep cannot be compared: {error}", file=sys.stderr)
            sys.exit(1)
        failed = [run.name for run in runs if run.failure is not None]
        if failed:
            print(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; failure.txt in their folders says why", file=sys.stderr)
            sys.exit(1)


def _installed(*modules: str) -> bool:
    try:
        return all(find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:  # the package that the module lies in
        return False
