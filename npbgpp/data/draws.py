"""Training items whose chance depends on nothing but the seed of the run, the epoch and the place in it.

Crops, zooms and input photos of an item are drawn from a generator of its own. So worker processes, several devices and resumed runs agree, and a run that
goes on in the middle of an epoch skips what it has seen without loading it.
"""

import os
import signal
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from npbgpp.data.scene import Batch


@dataclass(frozen=True)
class Shard:
    """The part of one process among several that work together."""

    rank: int = 0
    count: int = 1


@dataclass(frozen=True)
class Draw:
    """One item to be drawn.

    Attributes:
        item: its number among those of all training sets.
        seed: what its chance depends on.
    """

    item: int
    seed: tuple[int, ...]

    def generator(self) -> torch.Generator:
        """Random numbers of this item."""
        return torch.Generator().manual_seed(int(np.random.SeedSequence(self.seed).generate_state(1, np.uint64)[0] >> np.uint64(1)))


@runtime_checkable
class Drawable(Protocol):
    """A training set."""

    def __len__(self) -> int: ...

    def drawn(self, item: int, generator: torch.Generator | None) -> Batch:
        """An item with its random crop, zoom and input photos."""


class DrawnItems(Dataset[Batch]):
    """Training sets one behind the other; an item is asked for by a Draw."""

    def __init__(self, sets: Sequence[Drawable]) -> None:
        self.sets = sets
        self._ends = list(accumulate(len(s) for s in sets))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, draw: Draw) -> Batch:
        k = bisect_right(self._ends, draw.item)
        return self.sets[k].drawn(draw.item - (self._ends[k] - len(self.sets[k])), draw.generator())


@runtime_checkable
class EpochSampler(Protocol):
    """A sampler that can begin an epoch in the middle."""

    epoch: int

    def skip(self, epoch: int, batches: int) -> None:
        """Chooses an epoch and leaves out its first batches."""

    def skipped_batches(self) -> int:
        """Batches left out at the beginning of the current epoch."""


def hear_the_parent_alone(worker: int) -> None:
    """For worker processes of loaders: SIGTERM ends them only when it comes from the process that they work for.

    A signal to all processes of a job is for those that train, and they may need more items until they can stop.
    """
    if not hasattr(signal, "sigwaitinfo"):  # Windows and macOS do not say who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class ResumableLoader(DataLoader[Any]):
    """A loader that knows how far its epoch has come, so that Lightning stores it in checkpoints and goes on there.

    Its sampler is asked only when the first batch is, because Lightning tells it the epoch after making the iterator.

    Args:
        dataset, options: see DataLoader.
        epochs: the sampler.
    """

    def __init__(self, dataset: Dataset[Any], epochs: EpochSampler, **options: Any) -> None:
        super().__init__(dataset, sampler=epochs, worker_init_fn=hear_the_parent_alone, **options)  # type: ignore[arg-type]
        self._epochs, self._handed_out = epochs, 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._handed_out = self._epochs.skipped_batches()
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and batches of it that were handed out."""
        return {"epoch": self._epochs.epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where ``state_dict`` was taken."""
        self._epochs.skip(state["epoch"], state["batches"])
