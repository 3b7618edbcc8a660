"""Train or evaluate a system: ``python train_net.py datasets=<name> system=<name> [key=value ...]``. See README.md."""

import logging
import os
import sys
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

PROJECT = Path(__file__).resolve().parent
log = logging.getLogger("npbgpp")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Runs a composed config; what the user can mend ends in one message and exit code 1."""
    # the heavy imports wait until Hydra has accepted the command line
    from npbgpp.core.paths import SearchPaths
    from npbgpp.engine.hydra_hooks import note_failure
    from npbgpp.engine.run import run
    from npbgpp.errors import InputError, original_message

    runtime = HydraConfig.get().runtime
    search_paths = SearchPaths(launch=Path(runtime.cwd), run=Path(runtime.output_dir), project=PROJECT)
    # what Lightning says about itself, and deprecations between libraries, would bury what matters here
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    noise = (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*treespec, LeafSpec.*",
        ".*module.s. in eval mode.*",
    )
    for message in noise:
        warnings.filterwarnings("ignore", message=message)
    try:
        run(config, search_paths)
    except (InputError, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR", "0") == "1":
            raise
        if note_failure(error, original_message(error)):
            return
        log.error("%s", original_message(error))
        sys.exit(1)
    except Exception as error:
        if not note_failure(error, ""):
            raise


if __name__ == "__main__":
    main()
