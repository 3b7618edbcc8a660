"""Sums over views for the points of one scene, kept for the points that some view saw.

A view touches only the rows of the points that it sees. Rows are handed out in the order in which points are first seen; memory that no row was handed
out of is reserved but, on the CPU, not taken from the system.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from npbgpp.kernels import empty_table, map_in_threads, thread_count
from npbgpp.nets import Aggregator

_CPU_POINTS = 1 << 14  # of an update or a solve: what is computed of them is much larger than they are, and stays in the cache
_ACCELERATOR_POINTS = 1 << 18


def _at_once(device: torch.device) -> int:
    return _CPU_POINTS if device.type == "cpu" else _ACCELERATOR_POINTS


class SceneSums:
    """State of one aggregation.

    Args:
        points: n, points of the scene.
        aggregator: what is summed.
        device: where the sums are kept; it may be another one than that of the features.
    """

    def __init__(self, points: int, aggregator: Aggregator, device: torch.device | str) -> None:
        self._aggregator = aggregator
        self._row = torch.full((points,), -1, dtype=torch.int32, device=device)
        self._table = empty_table(points, aggregator.sums, device)
        self._seen = 0

    def __len__(self) -> int:
        """Points seen so far."""
        return self._seen

    def bytes_used(self) -> int:
        """Memory of the state."""
        return self._table[: self._seen].nbytes + self._row.nbytes

    @torch.no_grad()
    def add_view(self, points: Int[Tensor, " v"], observe: Callable[[Int[Tensor, " w"]], Float[Tensor, "w s"]]) -> None:
        """Adds what one view shows of some points, which must not repeat. ``observe`` says what it shows of a part of them."""
        parts = points.split(_at_once(points.device))
        for part, observed in zip(parts, map_in_threads(observe, parts, points.device), strict=True):
            self.add(part, observed)

    @torch.no_grad()
    def add(self, points: Int[Tensor, " v"], observed: Float[Tensor, "v s"]) -> None:
        """Adds numbers to the sums of some points, which must not repeat."""
        points, observed = points.to(self._table.device), observed.to(self._table.device)
        rows = self._row.index_select(0, points)
        first = (rows < 0).nonzero()[:, 0]
        if len(first):
            start, stop = self._seen, self._seen + len(first)
            fresh = points.index_select(0, first).long()
            new = torch.arange(start, stop, dtype=torch.int32, device=rows.device)
            rows.index_copy_(0, first, new)
            self._row.index_copy_(0, fresh, new)
            self._table[start:stop] = 0.0
            self._seen = stop
        self._table.index_add_(0, rows, observed)

    @torch.no_grad()
    def solve_into(self, coefficients: Float[Tensor, "n q"]) -> Bool[Tensor, " n"]:
        """Writes the coefficients of all points, zeros for those that no view saw; returns which some view saw. On the device of the sums.

        What was in ``coefficients`` before does not matter, so that it need not be filled twice.
        """
        seen = self._row >= 0
        coefficients.index_fill_(0, (~seen).nonzero()[:, 0], 0.0)
        points = seen.nonzero()[:, 0]
        owner = torch.empty_like(points).index_copy_(0, self._row.index_select(0, points).long(), points)  # of each row
        at_once = _at_once(self._table.device)

        def solve(starts: Sequence[int]) -> None:
            for start in starts:
                stop = start + at_once
                coefficients.index_copy_(0, owner[start:stop], self._aggregator.solve(self._table[: self._seen][start:stop]))

        # a share for each lane, so that none waits for another before the end
        starts, lanes = range(0, self._seen, at_once), thread_count(self._table.device)
        for _ in map_in_threads(solve, [starts[lane::lanes] for lane in range(lanes)], self._table.device):
            pass
        return seen
