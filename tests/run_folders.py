"""Runs without a shell, and what one started from a shell leaves in its folder besides what the package writes."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

REPOSITORY = Path(__file__).resolve().parents[1]


def run_words(launch: Path, *overrides: str) -> Path:
    """Runs the overrides of a command line in this process; hydra.run.dir is among them, and its path is returned."""
    from npbgpp.core.paths import SearchPaths
    from npbgpp.engine.run import run

    (*_, named) = (word.partition("=")[2] for word in overrides if word.startswith("hydra.run.dir="))
    folder = launch / named
    folder.mkdir(parents=True, exist_ok=True)
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.runtime.output_dir, config.hydra.runtime.cwd = str(folder), str(launch)
    HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    OmegaConf.set_struct(config, True)
    run(config, SearchPaths(launch, folder, REPOSITORY))
    return folder


def remember(folder: Path, launch: Path, *overrides: str) -> None:
    """Writes what Hydra writes when a run is started from a shell."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = compose("config", [word for word in overrides if not word.startswith("hydra.")], return_hydra_config=True)
    with open_dict(config):
        choices = OmegaConf.to_container(config.pop("hydra").runtime.choices)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    runtime = {"cwd": str(launch), "output_dir": str(folder), "choices": choices}
    OmegaConf.save({"hydra": {"runtime": runtime}}, folder / ".hydra" / "hydra.yaml")
