"""Sums over views for the points of one scene.

Only points that are visible in some view have a row, in the order in which they are first seen; a view updates only the rows of its visible points. On the CPU,
the memory of unused rows is reserved but not committed.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from npbgpp.kernels import empty_table, map_in_threads, thread_count
from npbgpp.nets import Aggregator

_CPU_POINTS = 1 << 14  # per update or solve: intermediate results stay in the cache
_ACCELERATOR_POINTS = 1 << 18


def _chunk_size(device: torch.device) -> int:
    return _CPU_POINTS if device.type == "cpu" else _ACCELERATOR_POINTS


class SceneSums:
    """State of one aggregation.

    Args:
        points: n, points of the scene.
        aggregator: defines the sums.
        device: of the sums; the features may be on another one.
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
        """Adds the observations of one view; ``points`` must be unique. ``observe`` returns the observations of a chunk of them."""
        parts = points.split(_chunk_size(points.device))
        for part, observed in zip(parts, map_in_threads(observe, parts, points.device), strict=True):
            self.add(part, observed)

    @torch.no_grad()
    def add(self, points: Int[Tensor, " v"], observed: Float[Tensor, "v s"]) -> None:
        """Adds to the sums of ``points``, which must be unique."""
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
        """Writes the coefficients of all points, zeros for points that no view sees, on the device of the sums; ``coefficients`` need not be initialised.

        Returns:
            The points that some view sees.
        """
        seen = self._row >= 0
        coefficients.index_fill_(0, (~seen).nonzero()[:, 0], 0.0)
        points = seen.nonzero()[:, 0]
        owner = torch.empty_like(points).index_copy_(0, self._row.index_select(0, points).long(), points)  # of each row
        chunk = _chunk_size(self._table.device)

        def solve(starts: Sequence[int]) -> None:
            for start in starts:
                stop = start + chunk
                coefficients.index_copy_(0, owner[start:stop], self._aggregator.solve(self._table[: self._seen][start:stop]))

        # one task per thread: no synchronisation before the end
        starts, workers = range(0, self._seen, chunk), thread_count(self._table.device)
        for _ in map_in_threads(solve, [starts[worker::workers] for worker in range(workers)], self._table.device):
            pass
        return seen
