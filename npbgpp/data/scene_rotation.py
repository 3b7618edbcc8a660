"""Which scenes take part in an epoch, which process draws from which, and in which order their items come."""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from npbgpp.data.draws import Draw, Shard
from npbgpp.errors import InputError

log = logging.getLogger(__name__)

_ROTATION_SEED = 123  # the authors' seed of the order of scenes


class SceneRotation(Sampler[Draw]):
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
