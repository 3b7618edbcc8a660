"""The config groups ``datasets`` and ``dataloader``, typed. Defaults and the meaning of every key are in ``conf/datasets/_base.yaml``."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from npbgpp.core.config import typed
from npbgpp.data.scene import ViewChoice
from npbgpp.errors import InputError


@dataclass(frozen=True)
class SceneLists:
    """Names of the scenes of each purpose: folders below ``data_root``."""

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """The ``datasets`` group.

    Attributes:
        options: keys that only some layouts have, as given; see ``npbgpp.data.Layout``.
    """

    layout: str
    data_root: str
    scenes: SceneLists
    scene_subroot: str | None
    images_subroot: str | None
    scene_name: str | None
    names: tuple[str, ...] | None
    train_on: str
    pc_name: str
    n_point: int | None
    noise_sigma: float | None
    downscale: float
    val_indices: ViewChoice | None
    test_indices: ViewChoice | None
    train_num_samples: int | None
    train_image_size: int | tuple[int, int] | None
    train_random_shift: bool
    train_random_zoom: tuple[float, float] | None
    image_margin: int
    cache_images: bool
    cache_memory_gb: float
    selection_count: int
    selection_method: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_config(cls, values: Mapping[str, Any], layout_keys: frozenset[str]) -> "DatasetSettings":
        """Builds the settings. ``layout_keys`` are the keys that some layout has; others are refused by name (InputError)."""
        lists = values.get("scenes")
        named = [name for names in lists.values() if isinstance(names, list) for name in names] if isinstance(lists, Mapping) else []
        if None in named and values.get("scene_name", "") is None:
            raise InputError(
                "datasets.scene_name: expected the name of a scene, got nothing; set it: datasets.scene_name=<folder below datasets.data_root>"
            )
        values = dict(values)
        authors_spelling = values.pop("holdout_indices", None)
        if authors_spelling is not None:
            if values.get("test_indices") is not None:
                raise InputError("datasets.test_indices and datasets.holdout_indices are two spellings of one key; give one of them")
            values["test_indices"] = authors_spelling
        options = {key: value for key, value in values.items() if key in layout_keys}
        known = typed(cls, {key: value for key, value in values.items() if key not in layout_keys}, "datasets")
        return dataclasses.replace(known, options=options)


@dataclass(frozen=True)
class LoaderSettings:
    """One stage of the ``dataloader`` group. ``total_batch_size`` counts all devices together."""

    total_batch_size: int
    num_workers: int
    pin_memory: bool
    shuffle: bool = False  # of training batches only


@dataclass(frozen=True)
class DataloaderSettings:
    """The ``dataloader`` group of the config."""

    train: LoaderSettings
    val: LoaderSettings
    test: LoaderSettings
    train_data_mode: str
    train_total_batch_size: int | None
