"""Checks the run folder before Hydra makes it, so that a folder that cannot be written ends in one message."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


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
