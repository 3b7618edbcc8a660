"""Checks the run folder before Hydra makes it, so that a folder that cannot be written ends in one message."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class WritableRunFolder(Callback):
    """Ends the program with one message and exit code 1 when ``hydra.run.dir`` cannot be made or written."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra with the composed configuration."""
        folder = Path(config.hydra.run.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            print(f"hydra.run.dir={folder}: expected a folder that can be written, got {error}; choose another one", file=sys.stderr)
            sys.exit(1)
