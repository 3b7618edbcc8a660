"""The groups ``datasets`` and ``dataloader`` of the config, typed."""

from dataclasses import dataclass, field
from pathlib import Path

from npbgpp.data import ViewChoice


@dataclass(frozen=True)
class SceneLists:
    """Names of the scenes of each purpose: folders below ``data_root``."""

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetSettings:
    """The ``datasets`` group of the config; see conf/datasets/_base.yaml for the meaning of every key."""

    layout: str
    data_root: str
    scenes: SceneLists
    scene_subroot: str | None = None
    images_subroot: str | None = None
    scene_name: str | None = None
    names: tuple[str, ...] | None = None
    train_on: str = "split"
    pc_name: str = "mvs_pc.ply"
    n_point: int | None = None
    noise_sigma: float | None = None
    white_bg: bool = True
    compositing: str = "authors"
    intrinsics: str = "authors"
    views: tuple[int, ...] | None = None
    published_views: dict[str, tuple[int, ...]] = field(default_factory=dict)
    downscale: float = 1.0
    paths_file: Path | None = None
    val_indices: ViewChoice | None = None
    holdout_indices: ViewChoice | None = None
    train_num_samples: int | None = 2000
    train_image_size: int | tuple[int, int] | None = 256
    train_random_shift: bool = True
    train_random_zoom: tuple[float, float] | None = None
    image_margin: int = 0
    cache_images: bool = True
    cache_memory_gb: float = 4.0
    selection_count: int = 3
    selection_method: str = "multinomial"
    start_end: tuple[int, int] | None = None
    img_wh: tuple[int, int] | None = None
    batches_per_epoch: int | None = None
    exclusion_window: int = 5
    hard_sampling: bool = False
    moving_share: float = 0.0
    motion_cache: str | None = None


@dataclass(frozen=True)
class LoaderSettings:
    """One stage of the ``dataloader`` group. ``total_batch_size`` counts all devices together."""

    total_batch_size: int
    num_workers: int = 0
    shuffle: bool = False
    pin_memory: bool = False


@dataclass(frozen=True)
class DataloaderSettings:
    """The ``dataloader`` group of the config."""

    train: LoaderSettings
    val: LoaderSettings
    test: LoaderSettings
    train_data_mode: str = "common"
    train_total_batch_size: int | None = None
