"""Reproducible sampling of training items: order of items, scenes of an epoch, shards of processes, and resuming within an epoch.

The RNG of an item is seeded from (run seed, epoch, position), so that worker processes, multiple devices and resumed runs draw the same crops, zooms and
input photos, and a resumed run skips items without loading them.
"""

import logging
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
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from npbgpp.data import Batch
from npbgpp.errors import InputError

log = logging.getLogger(__name__)

_ROTATION_SEED = 123  # seed of the scene order of the NPBG++ authors


@dataclass(frozen=True)
class Shard:
    """Rank and number of the processes of a run."""

    rank: int = 0
    count: int = 1

    def part(self, length: int) -> Int64[np.ndarray, " n"]:
        """Indices of every ``count``-th of some items, those of this process; with fewer items than processes some are shared."""
        return np.arange(self.rank, max(length, self.count), self.count) % length


@dataclass(frozen=True)
class Draw:
    """A training item to draw.

    Attributes:
        item: index into the concatenated training sets.
        seed: of its RNG.
    """

    item: int
    seed: tuple[int, ...]

    def generator(self) -> torch.Generator:
        """The RNG of this item."""
        return torch.Generator().manual_seed(int(np.random.SeedSequence(self.seed).generate_state(1, np.uint64)[0] >> np.uint64(1)))


@runtime_checkable
class Drawable(Protocol):
    """A training set whose items are drawn with a given RNG."""

    def __len__(self) -> int: ...

    def drawn(self, item: int, generator: torch.Generator | None) -> Batch:
        """An item with random crop, zoom and input photos."""


class DrawnItems(Dataset[Batch]):
    """Concatenation of training sets, indexed by ``Draw``."""

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
    """A sampler that can resume within an epoch."""

    epoch: int

    def skip(self, epoch: int, batches: int) -> None:
        """Chooses an epoch and skips its first batches."""

    def skipped_batches(self) -> int:
        """Skipped batches of the current epoch."""


def ignore_foreign_sigterm(worker: int) -> None:
    """``worker_init_fn`` of loaders: only a SIGTERM from the parent process ends the worker.

    A SIGTERM to all processes of a job, or a Ctrl-C, asks the training processes to stop, which need batches until the end of the step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # Windows and macOS do not tell the sender of a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_sigterm_from, args=(os.getppid(),), daemon=True).start()


def _exit_on_sigterm_from(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class ResumableLoader(DataLoader[Any]):
    """A loader with the state of its epoch, which Lightning stores in checkpoints.

    The sampler is iterated at the first batch only: Lightning sets its epoch after creating the iterator.

    Args:
        dataset: see DataLoader.
        epochs: the sampler.
        options: see DataLoader.
    """

    def __init__(self, dataset: Dataset[Any], epochs: EpochSampler, **options: Any) -> None:
        super().__init__(dataset, sampler=epochs, worker_init_fn=ignore_foreign_sigterm, **options)  # type: ignore[arg-type]
        self._epochs, self._handed_out = epochs, 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._handed_out = self._epochs.skipped_batches()
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of its batches so far."""
        return {"epoch": self._epochs.epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resumes at a state of ``state_dict``."""
        self._epochs.skip(state["epoch"], state["batches"])


class SceneSampler(Sampler[Draw]):
    """Samples items of the concatenated training sets, from the scenes of the current epoch.

    Lightning calls ``set_epoch`` before each epoch. All processes draw the same number of items, ``total // count``. ``common`` distributes the items of all
    scenes over the processes. ``each`` distributes the scenes: processes draw from disjoint scenes, or share one where there are fewer scenes than
    processes; a process whose scenes have too few items repeats some.

    Args:
        lengths: items per scene.
        scenes_per_epoch: number of scenes in an epoch, over all processes.
        shuffle: random order of items.
        names: scene names, for the log.
        mode: ``common`` or ``each``.
        per_batch: batch size of one process.

    Attributes:
        shard: rank and number of processes.
    """

    def __init__(
        self, lengths: list[int], scenes_per_epoch: int, shuffle: bool, names: Sequence[str] = (), mode: str = "common", per_batch: int = 1
    ) -> None:
        if scenes_per_epoch < 1:
            raise InputError(f"system.max_scenes_per_train_epoch: expected at least 1, got {scenes_per_epoch}")
        self.lengths, self.shuffle, self.names, self.mode, self.per_batch = lengths, shuffle, names, mode, per_batch
        self.scenes_per_epoch = min(scenes_per_epoch, len(lengths))
        self.epoch = 0
        self.seed = torch.initial_seed()
        self.shard = Shard()
        self._skip = (0, 0)  # epoch, batches

    def set_epoch(self, epoch: int) -> None:
        """Chooses scenes and order of an epoch; logs the scenes if there are others."""
        self.epoch = epoch
        if self.names and len(self.own_scenes()) < len(self.lengths):
            whose = f", process {self.shard.rank}" if self.shard.count > 1 else ""
            log.info("epoch %d%s: scenes %s", epoch, whose, ", ".join(self.names[k] for k in self.own_scenes()))

    def skip(self, epoch: int, batches: int) -> None:
        self._skip, self.epoch = (epoch, batches), epoch

    def skipped_batches(self) -> int:
        return self._skip[1] if self._skip[0] == self.epoch else 0

    def scenes(self) -> list[int]:
        """Indices of the scenes of the current epoch; each scene occurs at least once in ``ceil(S / M)`` epochs."""
        count, per_epoch = len(self.lengths), self.scenes_per_epoch
        epochs = -(-count // per_epoch)
        cycle, position = divmod(self.epoch, epochs)
        if count == per_epoch:
            return list(range(count))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(_ROTATION_SEED + cycle * epochs)).tolist()
        padded = order + order[: epochs * per_epoch - count]
        return sorted(padded[position * per_epoch : (position + 1) * per_epoch])

    def own_scenes(self) -> list[int]:
        """Scenes of this process in the current epoch."""
        scenes = self.scenes()
        if self.mode == "common":
            return scenes
        return scenes[self.shard.rank :: self.shard.count] or [scenes[self.shard.rank % len(scenes)]]

    def shares_scenes(self, processes: int) -> bool:
        """Whether two of ``processes`` processes may draw from the same scene."""
        return processes > 1 and (self.mode == "common" or self.scenes_per_epoch < processes)

    def __len__(self) -> int:
        return sum(self.lengths[k] for k in self.scenes()) // self.shard.count

    def __iter__(self) -> Iterator[Draw]:
        starts = [sum(self.lengths[:k]) for k in range(len(self.lengths))]
        items = torch.cat([torch.arange(starts[k], starts[k] + self.lengths[k]) for k in self.own_scenes()])
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed + self.epoch) % 2**63)
            items = items[torch.randperm(len(items), generator=generator)]
        own = self._sharded(items)
        own = own.repeat(-(-len(self) // max(len(own), 1)))[: len(self)]
        first = self.skipped_batches() * self.per_batch
        for place in range(first, len(own)):
            yield Draw(int(own[place]), (self.seed, self.epoch, place * self.shard.count + self.shard.rank))

    def _sharded(self, items: Tensor) -> Tensor:
        """Items of this process among those of its scenes."""
        rank, count = self.shard.rank, self.shard.count
        if self.mode == "common":
            return items[rank::count]
        sharing = len(range(rank % self.scenes_per_epoch, count, self.scenes_per_epoch)) if self.scenes_per_epoch < count else 1
        return items[rank // self.scenes_per_epoch :: sharing] if sharing > 1 else items


# ----------------------------------------------------------------------
# Data whose items are whole batches, such as rays through the pixels of photos, and the sampler over them


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
