"""``npbgpp train datasets=<name> system=<name> [key=value ...]``: trains or evaluates a system; ``python train_net.py`` is the same command."""

import logging
import os
import sys
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from npbgpp.cli.command import interruptible
from npbgpp.cli.train_arguments import hydra_arguments, read_train_arguments
from npbgpp.core.paths import SearchPaths, conf_folder, project_folder
from npbgpp.core.plugins import register_config_folders
from npbgpp.errors import InputError, original_message

log = logging.getLogger("npbgpp")

# reports of Lightning and deprecations between libraries that users can do nothing about
_NOISE = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*treespec, LeafSpec.*",
    ".*module.s. in eval mode.*",
)


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def run_composed(config: DictConfig) -> None:
    """Runs a config that Hydra has composed. User errors print one line and exit with code 1."""
    # torch is imported once the command line is accepted
    from npbgpp.engine.hydra_hooks import record_failure, remove_unused_folder
    from npbgpp.engine.run import run

    runtime = HydraConfig.get().runtime
    search_paths = SearchPaths(launch=Path(runtime.cwd), run=Path(runtime.output_dir), project=project_folder())
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    try:
        run(config, search_paths)
    except (InputError, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR", "0") == "1":
            raise
        if record_failure(error, original_message(error)):
            return
        log.error("%s", original_message(error))
        remove_unused_folder()
        sys.exit(1)
    except Exception as error:
        if not record_failure(error, ""):
            raise


def main() -> None:
    """The command: checks the words of the command line, then lets Hydra run them."""
    register_config_folders()
    try:
        text = read_train_arguments(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
    if text is not None:
        print(text)
    else:
        sys.argv[1:] = hydra_arguments(sys.argv[1:])
        with interruptible():
            run_composed()


if __name__ == "__main__":
    main()
