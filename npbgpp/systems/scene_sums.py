"""Sums over views for the points of one scene, kept for the points that some view saw.

A view touches only the rows of the points that it sees. Rows are handed out in the order in which points are first seen; memory that no row was handed
out of is reserved but, on the CPU, not taken from the system.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.models.aggregation import Aggregator

_ROWS_AT_ONCE = 1 << 15  # of a solve: its temporaries stay in the cache


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
        self._point = torch.empty(points, dtype=torch.int32, device=device)
        self._table = torch.empty(points, aggregator.sums, device=device)
        self._seen = 0

    def __len__(self) -> int:
        """Points seen so far."""
        return self._seen

    def bytes_used(self) -> int:
        """Memory of the state."""
        width = self._table.shape[1] * self._table.element_size() + self._point.element_size()
        return self._seen * width + len(self._row) * self._row.element_size()

    @torch.no_grad()
    def add(self, points: Int[Tensor, " v"], observed: Float[Tensor, "v s"]) -> None:
        """Adds what one view shows of some points; ``points`` must not repeat."""
        points, observed = points.to(self._table.device), observed.to(self._table.device)
        rows = self._row.index_select(0, points)
        first = (rows < 0).nonzero()[:, 0]
        known = (rows >= 0).nonzero()[:, 0]
        if len(known):
            mine = rows.index_select(0, known).long()
            sums = self._table.index_select(0, mine)
            sums += observed if len(known) == len(points) else observed.index_select(0, known)
            self._table.index_copy_(0, mine, sums)
        if len(first):
            start, stop = self._seen, self._seen + len(first)
            fresh = (points if len(first) == len(points) else points.index_select(0, first)).long()
            self._row.index_copy_(0, fresh, torch.arange(start, stop, dtype=torch.int32, device=rows.device))
            self._point[start:stop] = fresh
            self._table[start:stop] = observed if len(first) == len(points) else observed.index_select(0, first)
            self._seen = stop

    @torch.no_grad()
    def coefficients(self) -> Iterator[tuple[Int[Tensor, " r"], Float[Tensor, "r q"]]]:
        """Points and their coefficients, some at a time."""
        for start in range(0, self._seen, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, self._seen)
            yield self._point[start:stop], self._aggregator.solve(self._table[start:stop])
