"""Sums over views for the points of one scene.

Only points that are visible in some view have a row, in the order in which they are first seen; a view updates only the rows of its visible points. On the CPU,
the memory of unused rows is reserved but not committed.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from npbgpp.nets import Aggregator, PointDirections

_POINTS = 1 << 18  # observed at a time, which bounds the memory of intermediate results


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
        self._table = torch.empty(points, aggregator.sums, device=device)
        self._seen = 0

    def __len__(self) -> int:
        """Points seen so far."""
        return self._seen

    def bytes_used(self) -> int:
        """Memory of the state."""
        return self._table[: self._seen].nbytes + self._row.nbytes

    @torch.no_grad()
    def add_view(
        self, points: Int[Tensor, " v"], look: Callable[[Int[Tensor, " w"]], tuple[Float[Tensor, "w c"], PointDirections]]
    ) -> None:
        """Adds the observations of one view; ``points`` must be unique. ``look`` returns features and directions of a chunk of them."""
        for part in points.split(_POINTS):
            self.add(part, *look(part))

    @torch.no_grad()
    def add(self, points: Int[Tensor, " v"], features: Float[Tensor, "v c"], directions: PointDirections) -> None:
        """Adds one observation of each of ``points``, which must be unique."""
        points = points.to(self._table.device)
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
        self._aggregator.add(self._table, rows, features, features.new_ones(len(features)), directions)

    def solve_into(self, coefficients: Float[Tensor, "n q"]) -> Bool[Tensor, " n"]:
        """Writes the coefficients of all points, zeros for points that no view sees, on the device of the sums; ``coefficients`` need not be initialised.

        Returns:
            The points that some view sees.
        """
        self._aggregator.solve_rows(self._table[: self._seen], self._row, coefficients)
        return self._row >= 0
