"""Sums over views for the points of one scene, kept for the points that some view saw.

A view touches only the rows of the points that it sees. Rows are handed out in the order in which points are first seen; memory that no row was handed
out of is reserved but, on the CPU, not taken from the system.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.models.aggregation import Aggregator

POINTS_AT_ONCE = 1 << 15  # of an update, best in parts: what is computed of points is much larger than they are
_ROWS_AT_ONCE = 1 << 12  # of a solve: its temporaries stay in the cache


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
        self._table = torch.empty(points, aggregator.sums, device=device)
        self._seen = 0

    def __len__(self) -> int:
        """Points seen so far."""
        return self._seen

    def bytes_used(self) -> int:
        """Memory of the state."""
        return self._table[: self._seen].nbytes + self._row.nbytes

    @torch.no_grad()
    def add(self, points: Int[Tensor, " v"], observed: Float[Tensor, "v s"]) -> None:
        """Adds what one view shows of some points; ``points`` must not repeat. Parts of at most ``POINTS_AT_ONCE`` are fastest."""
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
    def coefficients(self) -> Iterator[tuple[Int[Tensor, " r"], Float[Tensor, "r q"]]]:
        """Points in ascending order and their coefficients, some at a time."""
        for points in (self._row >= 0).nonzero()[:, 0].split(_ROWS_AT_ONCE):
            yield points, self._aggregator.solve(self._table.index_select(0, self._row.index_select(0, points)))
