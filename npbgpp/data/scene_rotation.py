"""Which scenes take part in an epoch, and in which order their items come."""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from npbgpp.errors import InputError

log = logging.getLogger(__name__)

_ROTATION_SEED = 123  # the authors' seed of the order of scenes


class SceneRotation(Sampler[int]):
    """Indices into the concatenated training sets, from the scenes of the current epoch only.

    Lightning calls ``set_epoch`` before every epoch.
    """

    def __init__(self, lengths: list[int], scenes_per_epoch: int, shuffle: bool, names: Sequence[str] = ()) -> None:
        if scenes_per_epoch < 1:
            raise InputError(f"system.max_scenes_per_train_epoch: expected at least 1, got {scenes_per_epoch}")
        self.lengths, self.shuffle, self.names = lengths, shuffle, names
        self.scenes_per_epoch = min(scenes_per_epoch, len(lengths))
        self.epoch = 0
        self.seed = torch.initial_seed()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the scenes and the order of an epoch, and says which they are when not all take part."""
        self.epoch = epoch
        if self.names and self.scenes_per_epoch < len(self.lengths):
            log.info("epoch %d: scenes %s", epoch, ", ".join(self.names[k] for k in self.scenes()))

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

    def __len__(self) -> int:
        return sum(self.lengths[k] for k in self.scenes())

    def __iter__(self) -> Iterator[int]:
        starts = [sum(self.lengths[:k]) for k in range(len(self.lengths))]
        indices = torch.cat([torch.arange(starts[k], starts[k] + self.lengths[k]) for k in self.scenes()])
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed + self.epoch) % 2**63)
            indices = indices[torch.randperm(len(indices), generator=generator)]
        return iter(indices.tolist())
