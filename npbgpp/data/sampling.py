"""Training items whose chance depends on nothing but the seed of the run, the epoch and the place in it.

Crops, zooms and input photos of an item are drawn from a generator of its own. So worker processes, several devices and resumed runs agree, and a run that
goes on in the middle of an epoch skips what it has seen without loading it.
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
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from npbgpp.data import Batch
from npbgpp.errors import InputError


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


# ----------------------------------------------------------------------
# Which scenes take part in an epoch, which process draws from which, and in which order their items come.


log = logging.getLogger(__name__)

_ROTATION_SEED = 123  # the authors' seed of the order of scenes


class SceneSampler(Sampler[Draw]):
    """Items of the training sets, numbered through, from the scenes of the current epoch only.

    Lightning calls ``set_epoch`` before every epoch. With several processes all of them draw equally many items: a ``total // count`` part of the epoch.
    ``common`` deals the items of all scenes out in turn. ``each`` deals out the scenes: processes draw from disjoint ones, or share one where there are
    fewer scenes than processes; a process whose scenes have fewer items than its part draws some of them again.

    Args:
        lengths: items of every scene.
        scenes_per_epoch: how many scenes take part in an epoch, of all processes together.
        shuffle: random order of the items of an epoch.
        names: of the scenes, for the log.
        mode: ``common`` or ``each``.
        per_batch: items of a batch of one process.

    Attributes:
        shard: the part of this process.
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
        """Chooses the scenes and the order of an epoch, and says which they are when not all take part."""
        self.epoch = epoch
        if self.names and len(self.own_scenes()) < len(self.lengths):
            whose = f", process {self.shard.rank}" if self.shard.count > 1 else ""
            log.info("epoch %d%s: scenes %s", epoch, whose, ", ".join(self.names[k] for k in self.own_scenes()))

    def skip(self, epoch: int, batches: int) -> None:
        """See EpochSampler."""
        self._skip, self.epoch = (epoch, batches), epoch

    def skipped_batches(self) -> int:
        """Batches left out at the beginning of the current epoch."""
        return self._skip[1] if self._skip[0] == self.epoch else 0

    def scenes(self) -> list[int]:
        """Positions of the scenes of the current epoch; over ``ceil(S / M)`` epochs every scene comes at least once."""
        count, per_epoch = len(self.lengths), self.scenes_per_epoch
        epochs = -(-count // per_epoch)
        cycle, position = divmod(self.epoch, epochs)
        if count == per_epoch:
            return list(range(count))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(_ROTATION_SEED + cycle * epochs)).tolist()
        padded = order + order[: epochs * per_epoch - count]
        return sorted(padded[position * per_epoch : (position + 1) * per_epoch])

    def own_scenes(self) -> list[int]:
        """Those of them that this process draws from."""
        scenes = self.scenes()
        if self.mode == "common":
            return scenes
        return scenes[self.shard.rank :: self.shard.count] or [scenes[self.shard.rank % len(scenes)]]

    def shares_scenes(self, processes: int) -> bool:
        """Whether two of so many processes may draw from the same scene."""
        return processes > 1 and (self.mode == "common" or self.scenes_per_epoch < processes)

    def __len__(self) -> int:
        return sum(self.lengths[k] for k in self.scenes()) // self.shard.count

    def __iter__(self) -> Iterator[Draw]:
        starts = [sum(self.lengths[:k]) for k in range(len(self.lengths))]
        items = torch.cat([torch.arange(starts[k], starts[k] + self.lengths[k]) for k in self.own_scenes()])
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed + self.epoch) % 2**63)
            items = items[torch.randperm(len(items), generator=generator)]
        own = self._dealt(items)
        own = own.repeat(-(-len(self) // max(len(own), 1)))[: len(self)]
        first = self.skipped_batches() * self.per_batch
        for place in range(first, len(own)):
            yield Draw(int(own[place]), (self.seed, self.epoch, place * self.shard.count + self.shard.rank))

    def _dealt(self, items: Tensor) -> Tensor:
        """The part of this process where several draw from the same scenes."""
        rank, count = self.shard.rank, self.shard.count
        if self.mode == "common":
            return items[rank::count]
        sharing = len(range(rank % self.scenes_per_epoch, count, self.scenes_per_epoch)) if self.scenes_per_epoch < count else 1
        return items[rank // self.scenes_per_epoch :: sharing] if sharing > 1 else items
