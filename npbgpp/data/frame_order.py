"""Which frame of a video the rays of a batch come from.

Neighbouring frames show nearly the same, so that a batch is of no frame close to that of the batch before (nsff_pl). Drawing evenly among the frames that are
left would favour those at both ends of a short video; here the steps are weighted so that every frame comes equally often.

Symbols: f frames.
"""

import functools

import numpy as np
from jaxtyping import Float64, Int64

_ROUNDS = 500  # of balancing


class FrameOrder:
    """The frame of every batch. Batches are numbered through all epochs, and the number alone says which frame it is of.

    Every epoch begins anew: its first frame may be close to the last one of the epoch before.

    Args:
        moments: of the frames, ascending.
        batches: of an epoch.
        window: two batches in a row are of frames that are farther apart than that; it shrinks until every frame has two that can follow it.
        seed: of the order, at least 0.

    Attributes:
        window: what was left of it; -1 where there is one frame only, which follows itself.
    """

    def __init__(self, moments: Int64[np.ndarray, " f"], batches: int, window: int, seed: int) -> None:
        apart = np.abs(moments[:, None] - moments)
        count = len(moments)
        while ((apart > window).sum(1) < min(2, count - 1)).any() or (window >= 0 and count == 1):
            window -= 1
        self.batches, self.window, self.seed = batches, window, seed
        self._steps = np.cumsum(_balanced(apart > window), axis=1)
        self._epoch = functools.lru_cache(maxsize=2)(self._order)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._epoch = functools.lru_cache(maxsize=2)(self._order)

    def frame(self, item: int) -> int:
        """Position of the frame of batch ``item % batches`` of epoch ``item // batches``."""
        epoch, slot = divmod(item, self.batches)
        return int(self._epoch(epoch)[slot])

    def _order(self, epoch: int) -> Int64[np.ndarray, " n"]:
        draws = np.random.default_rng((self.seed, epoch)).random(self.batches)
        frames = np.empty(self.batches, np.int64)
        frames[0] = int(draws[0] * len(self._steps))
        for k in range(1, self.batches):
            steps = self._steps[frames[k - 1]]
            frames[k] = np.searchsorted(steps, draws[k] * steps[-1], side="right")
        return frames


def _balanced(allowed: np.ndarray) -> Float64[np.ndarray, "f f"]:
    """Chances of the steps from each frame to each: 0 where they are not allowed, rows and columns sum to 1 (Sinkhorn and Knopp, 1967)."""
    chances = allowed.astype(np.float64)
    for _ in range(_ROUNDS):
        chances /= chances.sum(0)
        chances /= chances.sum(1, keepdims=True)
    return chances
