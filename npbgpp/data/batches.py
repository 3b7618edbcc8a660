"""Training data whose items are whole batches, such as rays through the pixels of photos, and the sampler over them."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import Sampler

from npbgpp.data.sampling import Shard


@runtime_checkable
class BatchDataset(Protocol):
    """Batches, numbered through all epochs: item ``k`` is batch ``k % len`` of epoch ``k // len``.

    Attributes:
        size: bytes kept in memory.
        shard: this process, set before the first batch: its items are parts of the batches, so that all processes together train on a batch in each step.
    """

    size: int
    shard: Shard

    def __len__(self) -> int:
        """Batches of an epoch."""

    def __getitem__(self, item: int) -> Any:
        """The part of a batch for this process."""

    def load(self) -> None:
        """Reads the data that are kept in memory, so that worker processes forked later share them."""


class BatchEpochs(Sampler[int]):
    """Numbers of the batches of the current epoch, the same in all processes. Lightning calls ``set_epoch`` before every epoch."""

    def __init__(self, dataset: BatchDataset) -> None:
        self.dataset, self.epoch = dataset, 0
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
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * len(self.dataset)
        return iter(range(first, first + len(self))[self.skipped_batches() :])
