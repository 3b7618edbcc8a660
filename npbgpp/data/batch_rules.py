"""Systems that learn from single rays say here what training data they need: the coordinates of a scene, and a dataset whose items are whole batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import Sampler

from npbgpp.core.paths import SearchPaths
from npbgpp.data import Scene, SceneNormalisation
from npbgpp.data.rays import RayDataset, RaySampling
from npbgpp.data.sampling import Shard
from npbgpp.data.settings import DatasetSettings
from npbgpp.methods.nsff.data import VideoDataset, VideoSampling
from npbgpp.methods.nsff.normalisation import VideoNormalisation, video_frame

Frame = SceneNormalisation | VideoNormalisation


@runtime_checkable
class BatchDataset(Protocol):
    """Batches, numbered through all epochs: item ``k`` is batch ``k % len`` of epoch ``k // len``."""

    size: int  # bytes that it keeps in memory

    def __len__(self) -> int:
        """Batches of an epoch."""

    def __getitem__(self, item: int) -> Any:
        """A batch."""

    def load(self) -> None:
        """Reads what is kept in memory, so that workers forked later need not."""


@runtime_checkable
class BatchRule(Protocol):
    """What a system says about its training data."""

    def frame(self, scene: Scene) -> Frame:
        """The coordinates that a scene is learned in. Raises InputError for a scene that has none."""

    def training_set(
        self, scene: Scene, indices: tuple[int, ...], frame: Frame, settings: DatasetSettings, search_paths: SearchPaths, budget: int
    ) -> BatchDataset:
        """Batches from some views of a scene, of which ``budget`` bytes are kept in memory. Raises InputError for views that cannot be used."""


@dataclass(frozen=True)
class RayRule:
    """Rays through the pixels of photos of a still scene (NeRF)."""

    coordinates: Callable[[Scene], SceneNormalisation]
    sampling: RaySampling

    def frame(self, scene: Scene) -> SceneNormalisation:
        """See BatchRule.frame."""
        return self.coordinates(scene)

    def training_set(
        self, scene: Scene, indices: tuple[int, ...], frame: Frame, settings: DatasetSettings, search_paths: SearchPaths, budget: int
    ) -> RayDataset:
        """See BatchRule.training_set."""
        assert isinstance(frame, SceneNormalisation)
        return RayDataset(scene, indices, frame, self.sampling, budget, settings.image_margin)


@dataclass(frozen=True)
class VideoRule:
    """Rays through the pixels of the frames of a video (NSFF). ``seed`` is that of the order of frames and of the pixels."""

    rays_per_batch: int
    seed: int

    def frame(self, scene: Scene) -> VideoNormalisation:
        """See BatchRule.frame."""
        return video_frame(scene)

    def training_set(
        self, scene: Scene, indices: tuple[int, ...], frame: Frame, settings: DatasetSettings, search_paths: SearchPaths, budget: int
    ) -> VideoDataset:
        """See BatchRule.training_set."""
        assert isinstance(frame, VideoNormalisation)
        s = settings
        sampling = VideoSampling(
            self.rays_per_batch, s.batches_per_epoch, s.exclusion_window, s.hard_sampling, moving_share=s.moving_share, seed=self.seed
        )
        cache = None if s.motion_cache is None else search_paths.launch / s.motion_cache / scene.name
        return VideoDataset(scene, indices, frame, sampling, budget, s.image_margin, cache)


class BatchEpochs(Sampler[int]):
    """Numbers of the batches of the current epoch; processes take turns. Lightning calls ``set_epoch`` before every epoch.

    Attributes:
        shard: the part of this process.
    """

    def __init__(self, dataset: BatchDataset) -> None:
        self.dataset, self.epoch = dataset, 0
        self.shard = Shard()
        self._skip = (0, 0)  # epoch, batches

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch."""
        self.epoch = epoch

    def skip(self, epoch: int, batches: int) -> None:
        """See EpochSampler."""
        self._skip, self.epoch = (epoch, batches), epoch

    def skipped_batches(self) -> int:
        """Batches left out at the beginning of the current epoch."""
        return self._skip[1] if self._skip[0] == self.epoch else 0

    def __len__(self) -> int:
        return max(1, len(self.dataset) // self.shard.count)

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * len(self.dataset)
        return iter(range(first + self.shard.rank, first + len(self) * self.shard.count, self.shard.count)[self.skipped_batches() :])
