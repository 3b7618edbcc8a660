"""What a run started in a process of its own leaves in its folder besides what the package writes."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

REPOSITORY = Path(__file__).resolve().parents[1]


def remember(folder: Path, launch: Path, *overrides: str) -> None:
    """Writes what Hydra writes when a run is started from a shell."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = compose("config", overrides=[word for word in overrides if not word.startswith("hydra.")])
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    OmegaConf.save({"hydra": {"runtime": {"cwd": str(launch), "output_dir": str(folder)}}}, folder / ".hydra" / "hydra.yaml")
