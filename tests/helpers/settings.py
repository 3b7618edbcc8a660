"""Settings as the yaml files of conf/ give them, for tests that build parts of a run by hand."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from npbgpp.core.config import typed
from npbgpp.core.paths import SearchPaths
from npbgpp.data.settings import DataloaderSettings, DatasetSettings, LoaderSettings
from npbgpp.engine.datamodule import DataModule, read_scenes
from npbgpp.engine.run import method_of
from npbgpp.methods.base import DataNeeds
from npbgpp.parsers import layout_keys

CONF = Path(__file__).resolve().parents[2] / "conf"


def composed(*overrides: str) -> DictConfig:
    """The config of ``train_net.py`` with these overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def plain(node: Any) -> dict[str, Any]:
    """A config node as a dictionary."""
    found = OmegaConf.to_container(node, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def system_settings(system: str, **changes: Any) -> Any:
    """Settings of ``conf/system/<system>.yaml`` without its networks."""
    config = composed("datasets=auto_one_scene", "datasets.scene_name=scene", f"system={system}")
    values = {key: value for key, value in plain(config.system).items() if not (isinstance(value, dict) and "_target_" in value)}
    return typed(method_of(config).settings_class, values | changes, "system")


def dataset_settings(layout: str, data_root: Path | str, scenes: Any, **changes: Any) -> DatasetSettings:
    """Settings of ``conf/datasets/auto_one_scene.yaml`` with whole images."""
    values = plain(composed("datasets=auto_one_scene", "datasets.scene_name=scene", "system=npbg").datasets)
    values |= {"train_num_samples": None, "train_image_size": None, "train_random_shift": False}
    lists = {stage: list(getattr(scenes, stage)) for stage in ("train", "val", "test")}
    values |= {"layout": layout, "data_root": str(data_root), "scenes": lists, "scene_name": None}
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()}
    return DatasetSettings.from_config(values | given, layout_keys())


def data_module(
    settings: DatasetSettings,
    loaders: DataloaderSettings,
    search_paths: SearchPaths,
    needs: DataNeeds | None = None,
    evaluate_only: bool = False,
) -> DataModule:
    """Scenes and loaders of a method with these needs."""
    needs = needs or DataNeeds(scenes_per_epoch=4)
    return DataModule(read_scenes(settings, search_paths, needs, evaluate_only), settings, loaders, needs, evaluate_only)


def stage_loader(total_batch_size: int, num_workers: int = 0, shuffle: bool = False) -> LoaderSettings:
    """One stage of the ``dataloader`` group."""
    return LoaderSettings(total_batch_size, num_workers, False, shuffle)


def loaders_of(train: LoaderSettings, val: LoaderSettings, test: LoaderSettings) -> DataloaderSettings:
    """The ``dataloader`` group."""
    return DataloaderSettings(train, val, test, "common", None)
