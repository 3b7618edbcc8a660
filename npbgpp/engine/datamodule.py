"""The scenes of a run, and the datasets, samplers and loaders made from them."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from npbgpp.core.paths import SearchPaths
from npbgpp.data import Batch, CloudFile, CloudManifest, PhotoCache, Scene, Stage, ViewChoice, available_bytes
from npbgpp.data.dataset import Augmentation, SceneDataset, as_size
from npbgpp.data.sampling import BatchDataset, BatchEpochs, DrawnItems, ResumableLoader, SceneSampler, Shard, ignore_foreign_sigterm
from npbgpp.data.scene import choose_views
from npbgpp.data.settings import DataloaderSettings, DatasetSettings, LoaderSettings
from npbgpp.data.view_selection import ViewSelector
from npbgpp.errors import InputError
from npbgpp.methods.base import DataNeeds, TrainingViews
from npbgpp.parsers import find_layout, locate_scene, read_scene, require_named_cloud, with_cloud

log = logging.getLogger(__name__)

_LONGEST_NAME = 230  # bytes: file systems allow 255, of which temporary files of descriptors need 19


@dataclass(frozen=True)
class RunScenes:
    """The scenes of a run, with their metadata read.

    Attributes:
        scenes: by name.
        root: folder of scene folders.
        images_root: folder of scene folders that hold the photos, usually the same.
        leaks: number of test views that the cloud of a scene was made from, by scene.
    """

    scenes: dict[str, Scene]
    root: Path
    images_root: Path
    leaks: dict[str, int]


def read_scenes(settings: DatasetSettings, search_paths: SearchPaths, needs: DataNeeds, evaluate_only: bool) -> RunScenes:
    """Reads the metadata of every scene of a run, so that errors in a folder are reported before any work starts.

    Raises:
        InputError: whatever is wrong with the settings or with a scene.
    """
    s = settings
    for key, known in (("train_on", ("split", "all")),):
        if getattr(s, key) not in known:
            raise InputError(f"datasets.{key}: expected {' or '.join(known)}, got {getattr(s, key)}")
    if s.names is not None and s.names != s.scenes.train:
        raise InputError(
            f"datasets.names: these scenes have their names elsewhere, got {list(s.names)}; use datasets.scene_name, datasets.scenes or "
            "datasets=npbg_scenes"
        )
    options = dict(s.options)
    if options.get("paths_file") is not None:
        options["paths_file"] = search_paths.existing(options["paths_file"], "datasets.paths_file")
        root = search_paths.launch  # the file says where scenes are
    else:
        root = search_paths.existing(s.scene_subroot or s.data_root, "datasets.data_root")
    images_root = search_paths.existing(s.images_subroot, "datasets.images_subroot") if s.images_subroot else root
    reader = _SceneReader(s, options, search_paths, needs, root, images_root)
    names = dict.fromkeys((*(() if evaluate_only else s.scenes.train), *s.scenes.val, *s.scenes.test))
    for name in names:
        if len(os.fsencode(name)) > _LONGEST_NAME:
            raise InputError(
                f"scene {name}: expected a name of at most {_LONGEST_NAME} bytes, since it names files, got {len(os.fsencode(name))}; rename the folder"
            )
    scenes = {name: reader.read(name) for name in names}
    return RunScenes(scenes, root, images_root, reader.leaks)


class _SceneReader:
    """Reads scenes one by one."""

    def __init__(
        self, settings: DatasetSettings, options: dict[str, Any], search_paths: SearchPaths, needs: DataNeeds, root: Path, images_root: Path
    ) -> None:
        self.settings, self.options, self.search_paths, self.needs = settings, options, search_paths, needs
        self.root, self.images_root = root, images_root
        self.leaks: dict[str, int] = {}

    def read(self, name: str) -> Scene:
        """The scene with its splits."""
        s = self.settings
        folder = locate_scene(s.layout, name, self.options) or self.root / name
        if not folder.is_dir():
            known = sorted(p.name for p in self.root.iterdir() if p.is_dir())[:20] if self.root.is_dir() else []
            raise InputError(
                f"scene {name}: expected the folder {folder}, which does not exist; correct datasets.data_root={s.data_root} or "
                f"datasets.scene_name (folders there: {', '.join(known) or 'none'})"
            )
        cloud = CloudFile(folder / s.pc_name, s.n_point, s.noise_sigma)
        scene = read_scene(s.layout, folder, self.images_root / name, name, cloud, {**self.options, "downscale": s.downscale})
        if self.needs.straight_alpha:
            scene = replace(scene, views=tuple(replace(view, background=None) for view in scene.views))
        # methods without need of a cloud still read scene depths from it
        if self.needs.needs_cloud or cloud.path.is_file() or scene.carried_points is not None:
            scene = with_cloud(scene, folder)
        else:
            require_named_cloud(scene, folder)
        for note in scene.notes:
            log.info("scene %s: %s", name, note)
        scene = scene.with_splits(self._choice("val_indices"), self._choice("test_indices"))
        if self.needs.needs_cloud:
            self._warn_of_leaks(scene, folder)
        return scene

    def _warn_of_leaks(self, scene: Scene, folder: Path) -> None:
        """Warns if the cloud was made from test views."""
        manifest = CloudManifest.read(scene.cloud.path)
        seen = manifest.saw(scene.views[i].name for i in scene.splits["test"]) if manifest is not None else ()
        if seen:
            self.leaks[scene.name] = len(seen)
            log.warning(
                "scene %s: its cloud %s was made from %d of the test views (%s), so that scores are not those of unseen photos; make it again: %s",
                scene.name,
                scene.cloud.path.name,
                len(seen),
                ", ".join(seen[:5]),
                f"npbgpp prepare cloud scene={folder} overwrite=true",
            )

    def _choice(self, key: str) -> ViewChoice | None:
        """A choice of views; a file that it names is looked up in the search paths."""
        choice = getattr(self.settings, key)
        if isinstance(choice, str) and not choice.startswith("every:"):
            return str(self.search_paths.existing(choice, f"datasets.{key}"))
        return choice


class DataModule(LightningDataModule):
    """Datasets, samplers and loaders of the scenes of a run.

    At most ``needs.scenes_per_epoch`` training scenes are visited in an epoch; the sampler rotates through all of them whether or not loaders are rebuilt
    between epochs. With ``needs.input_views`` training items carry ``datasets.selection_count`` input photos.

    Args:
        found: the scenes.
        datasets: the ``datasets`` group.
        dataloader: the ``dataloader`` group.
        needs: the data that the method trains on.
        evaluate_only: no training data.
        training_batches: makes the training batches, for methods with ``needs.ray_batches``.
        tests: whether test views are evaluated; otherwise scenes may have none.
    """

    def __init__(
        self,
        found: RunScenes,
        datasets: DatasetSettings,
        dataloader: DataloaderSettings,
        needs: DataNeeds,
        evaluate_only: bool,
        training_batches: Callable[[TrainingViews], BatchDataset] | None = None,
        *,
        tests: bool = True,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a process may have no view of a scene to evaluate
        if dataloader.train_data_mode not in ("common", "each"):
            raise InputError(f"dataloader.train_data_mode: expected common or each, got {dataloader.train_data_mode}")
        self.settings, self.loader_settings, self.needs = datasets, dataloader, needs
        self.scenes, self.leaks = found.scenes, found.leaks
        lists = datasets.scenes
        left = self._budget()
        trained = () if evaluate_only else tuple(self.scenes[name] for name in lists.train)
        self.train_scenes = tuple(scene.name for scene in trained)
        self.train_views = sum(len(self._train_indices(scene)) for scene in trained)
        self.batch_set: BatchDataset | None = None
        if needs.ray_batches and trained:
            assert training_batches is not None
            options = find_layout(trained[0].layout).sampling_options(datasets.options)
            views = TrainingViews(trained[0], self._train_indices(trained[0]), datasets.image_margin, options, left)
            self.batch_set = training_batches(views)
            left -= self.batch_set.size
        self._photos = self._caches(left) if datasets.cache_images else {}
        self.train_sets = [] if needs.ray_batches else [self._train_set(scene) for scene in trained]
        self.val_sets = [self._evaluation_set(self.scenes[name], "val") for name in lists.val if self._validates(name)]
        self.test_sets = [
            self._evaluation_set(self.scenes[name], "test") for name in lists.test if tests or self.scenes[name].splits["test"]
        ]
        self.sampler = (
            SceneSampler(
                [len(s) for s in self.train_sets],
                needs.scenes_per_epoch,
                dataloader.train.shuffle,
                [s.scene.name for s in self.train_sets],
                dataloader.train_data_mode,
            )
            if self.train_sets
            else None
        )

    def _validates(self, name: str) -> bool:
        scene, rule = self.scenes[name], self.settings.val_indices
        if scene.splits["val"]:
            return True
        reason = ""
        if isinstance(rule, float) or (isinstance(rule, str) and rule.startswith("every:")):
            chosen = choose_views(rule, [view.name for view in scene.views], "datasets.val_indices", name)
            if chosen and {*chosen} <= {*scene.splits["test"]}:
                reason = f" (all {len(chosen)} of datasets.val_indices={rule} are test views as well)"
        log.warning("scene %s has no validation views%s and is not validated; choose some with datasets.val_indices", name, reason)
        return False

    def _budget(self) -> int:
        """Bytes for decoded photos."""
        s = self.settings
        if not 0 < s.cache_memory_gb < math.inf:
            raise InputError(
                f"datasets.cache_memory_gb: expected a positive number, got {s.cache_memory_gb}; datasets.cache_images=false keeps no photos"
            )
        return min(int(s.cache_memory_gb * (1 << 30)), available_bytes() // 2) if s.cache_images else 0

    def _caches(self, left: int) -> dict[str, PhotoCache]:
        """Photo caches of the scenes, in order, within a budget in bytes."""
        caches = {}
        for name, scene in self.scenes.items():
            caches[name] = PhotoCache(scene.views, left)
            left -= caches[name].size
        kept, all_photos = sum(c.kept for c in caches.values()), sum(len(c.views) for c in caches.values())
        if kept < all_photos:
            log.info(
                "%d of %d photos fit into datasets.cache_memory_gb and free memory, the others are decoded every time", kept, all_photos
            )
        return caches

    def _train_indices(self, scene: Scene) -> tuple[int, ...]:
        lists = self.settings.scenes
        if self.settings.train_on == "split":
            return scene.splits["train"]
        # pretraining uses every view that this run does not evaluate
        evaluated = {
            *(scene.splits["val"] if scene.name in lists.val else ()),
            *(scene.splits["test"] if scene.name in lists.test else ()),
        }
        return tuple(i for i in range(len(scene.views)) if i not in evaluated)

    def _train_set(self, scene: Scene) -> SceneDataset:
        s = self.settings
        indices = self._train_indices(scene)
        augmentation = Augmentation(as_size(s.train_image_size), s.train_random_shift, s.train_random_zoom)
        return SceneDataset(
            scene.name,
            scene,
            indices,
            augmentation=augmentation,
            num_samples=s.train_num_samples,
            image_margin=s.image_margin,
            photos=self._photos.get(scene.name),
            selector=self._selector(scene, indices),
        )

    def _selector(self, scene: Scene, indices: tuple[int, ...]) -> ViewSelector | None:
        s = self.settings
        needed = self.needs.input_views
        if needed is None:
            return None
        return ViewSelector(scene, indices, indices, s.selection_method, s.selection_count, needed)

    def _evaluation_set(self, scene: Scene, stage: Stage) -> SceneDataset:
        name = f"{scene.name}_{'val' if stage == 'val' else 'holdout'}"
        return SceneDataset(name, scene, scene.splits[stage], image_margin=self.settings.image_margin, photos=self._photos.get(scene.name))

    def conditions(self) -> dict[str, str]:
        """Properties of the data that scores depend on, in words: background and resizing of the photos, test views used for clouds."""
        backgrounds = {str(view.background) for scene in self.scenes.values() for view in scene.views}
        resized = any(view.resized for scene in self.scenes.values() for view in scene.views)
        return {
            "background": "; ".join(sorted(backgrounds)) if backgrounds != {"None"} else "as photographed",
            "resize_filter": "bilinear" if resized else "none",
            "cloud": "; ".join(f"made from {count} test views of {name}" for name, count in self.leaks.items())
            or "not known to be made from test views",
        }

    def train_dataloader(self) -> DataLoader:
        """One loader over all training scenes, whose sampler selects the scenes of the epoch, or over the training batches of the method."""
        loader = self.loader_settings.train
        if self.batch_set is not None:
            self.batch_set.load()
            self.batch_set.shard = self._shard()
            return ResumableLoader(
                self.batch_set,  # type: ignore[arg-type]
                BatchEpochs(self.batch_set),
                batch_size=None,
                num_workers=loader.num_workers,
                pin_memory=loader.pin_memory,
                persistent_workers=loader.num_workers > 0,
            )
        per_device = self._per_device(loader, "train")
        assert self.sampler is not None, "without training scenes nothing is trained"
        self.sampler.shard, self.sampler.per_batch = self._shard(), per_device
        if len(self.sampler) < per_device:
            raise InputError(
                f"dataloader.train.total_batch_size: one epoch has {len(self.sampler)} samples, fewer than a batch of {per_device}; lower the batch size "
                "(dataloader.train_total_batch_size) or raise datasets.train_num_samples"
            )
        if loader.num_workers > 0:
            self._select_ahead()
        return ResumableLoader(
            DrawnItems(self.train_sets),
            self.sampler,
            batch_size=per_device,
            drop_last=True,
            collate_fn=Batch.collate,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            persistent_workers=loader.num_workers > 0,
        )

    def _select_ahead(self) -> None:
        """Computes visibilities for the selection of input views once, so that worker processes need not read the clouds."""
        selectors = {train.scene.name: train.selector for train in self.train_sets if train.selector is not None}
        for k, (name, selector) in enumerate(selectors.items()):
            log.info("computing which points the views of scene %s see (%d of %d)", name, k + 1, len(selectors))
            selector.precompute()

    def val_dataloader(self) -> list[DataLoader]:
        """One loader per validation scene."""
        return self._evaluation_loaders(self.val_sets, self.loader_settings.val, "val")

    def test_dataloader(self) -> list[DataLoader]:
        """One loader per test scene."""
        return self._evaluation_loaders(self.test_sets, self.loader_settings.test, "test")

    def _evaluation_loaders(self, sets: Sequence[SceneDataset], loader: LoaderSettings, stage: Stage) -> list[DataLoader]:
        """Assigns every view to one process: whole scenes if there are enough, so that each is read once, otherwise interleaved views."""
        rank, count = self._shard().rank, self._shard().count
        loaders = []
        for k, dataset in enumerate(sets):
            views = range(len(dataset))
            own = views[rank::count] if len(sets) < count else views if k % count == rank else range(0)
            loaders.append(
                DataLoader(
                    dataset,
                    batch_size=self._per_device(loader, stage),
                    sampler=own,
                    collate_fn=Batch.collate,
                    num_workers=loader.num_workers,
                    pin_memory=loader.pin_memory,
                    worker_init_fn=ignore_foreign_sigterm,
                )
            )
        return loaders

    def shares_scenes(self, processes: int) -> bool:
        """Whether two of so many processes may train the same scene."""
        return self.sampler is not None and self.sampler.shares_scenes(processes)

    def _shard(self) -> Shard:
        return Shard() if self.trainer is None else Shard(self.trainer.global_rank, self.trainer.world_size)

    def _per_device(self, loader: LoaderSettings, stage: Stage) -> int:
        devices = self._shard().count
        if stage != "train" and loader.total_batch_size >= 1:  # of views that are only looked at, any number will do
            return max(1, loader.total_batch_size // devices)
        if loader.total_batch_size < 1 or loader.total_batch_size % devices:
            raise InputError(
                f"dataloader.{stage}.total_batch_size: expected a positive multiple of {devices} devices, got {loader.total_batch_size}"
            )
        return loader.total_batch_size // devices
