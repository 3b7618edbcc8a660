"""Random order of the pixels of many photos without a table of it.

Symbols: v views, n pixels of a batch. Batches are numbered through all epochs.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

_ROUNDS = 6  # of the cipher


class PixelOrder:
    """Which pixels of one rectangle per view every batch draws: each pixel once per epoch.

    Each group of pixels is permuted and cut into batches, of which the last may be smaller; batches of several groups are permuted in their turn. Nothing of
    the size of a photo is kept.

    Args:
        corners: (row, column) of the first pixel of each rectangle.
        sizes: their (height, width).
        count: pixels of a batch.
        mixed: all pixels are one group; otherwise those of each view are.
        seed: of the order, at least 0.
    """

    def __init__(self, corners: Int64[np.ndarray, "v 2"], sizes: Int64[np.ndarray, "v 2"], count: int, mixed: bool, seed: int) -> None:
        self.corners, self.sizes, self.count, self.seed = corners, sizes, count, seed
        self._ends = np.cumsum(sizes.prod(1))
        self._groups = self._ends[-1:] if mixed else self._ends
        self._batches = np.cumsum(-(-np.diff(self._groups, prepend=0) // count))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return int(self._batches[-1])

    def drawn(self, item: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """(view, row, column) of the pixels of batch ``item % len`` of epoch ``item // len``; views ascend."""
        epoch, slot = divmod(item, len(self))
        (place,) = permuted(np.array([slot]), len(self), (self.seed, epoch)).tolist()
        group = int(np.searchsorted(self._batches, place, side="right"))
        first, batch = (int(self._groups[group - 1]), int(self._batches[group - 1])) if group else (0, 0)
        size = int(self._groups[group]) - first
        begin = (place - batch) * self.count
        positions = np.arange(begin, min(begin + self.count, size))
        pixels = np.sort(first + permuted(positions, size, (self.seed, epoch, group)))
        view = np.searchsorted(self._ends, pixels, side="right")
        row, column = np.divmod(pixels - (self._ends - self.sizes.prod(1))[view], self.sizes[view, 1])
        return view, row + self.corners[view, 0], column + self.corners[view, 1]


def permuted(positions: Int64[np.ndarray, " n"], count: int, key: Sequence[int]) -> Int64[np.ndarray, " n"]:
    """Where a pseudo-random permutation of ``range(count)`` sends some of its numbers, without the others being computed.

    A balanced Feistel network permutes a power of four of numbers; what leaves the range is permuted again until it is back (Black and Rogaway, Ciphers
    with arbitrary finite domains, 2002).

    Args:
        positions: in 0..count - 1.
        count: at least 1, less than 2^62.
        key: numbers of at least 0 that choose the permutation.
    """
    half = max(-(-(count - 1).bit_length() // 2), 1)
    bits, low = np.uint64(half), np.uint64((1 << half) - 1)
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    numbers = positions.astype(np.uint64)
    walking = np.arange(len(numbers))
    while len(walking):
        left, right = numbers[walking] >> bits, numbers[walking] & low
        for round_key in keys:
            left, right = right, left ^ (_mixed(right + round_key) & low)
        numbers[walking] = left << bits | right
        walking = walking[numbers[walking] >= count]
    return numbers.astype(np.int64)


def _mixed(numbers: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Every bit of a 64-bit number changes about half of all bits: the last steps of SplitMix64 (Steele et al. 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
