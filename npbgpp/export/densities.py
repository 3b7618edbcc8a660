"""Densities of a radiance field, at any points and at the nodes of a box.

Coordinates are those of the field (see ``npbgpp.data.ray_frames``), densities are per unit of its length. Symbols: n points, q nodes, g nodes along a side.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from npbgpp.errors import InputError
from npbgpp.render.occupancy import OccupancyGrid

_CHUNKS_AT_ONCE = 16  # nodes looked up in the occupancy grid for one that the field is asked about: most are empty
_LARGEST_COUNT = 1625  # nodes of a larger box have no number of 32 bits


@dataclass(frozen=True)
class Box:
    """g x g x g nodes, the first and the last ones on the faces of an axis-aligned box.

    Attributes:
        low: least corner.
        high: greatest corner.
        count: g.

    Raises:
        InputError: no box, or a number of nodes out of range.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    count: int

    def __post_init__(self) -> None:
        for axis, low, high in zip("xyz", self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(f"{axis}_range: expected two finite numbers that ascend, got {low:g} and {high:g}")
        if not 2 <= self.count <= _LARGEST_COUNT:
            raise InputError(f"n_grid: expected 2 to {_LARGEST_COUNT} nodes along a side, got {self.count}")

    def __str__(self) -> str:
        return ", ".join(f"{axis} {low:g} to {high:g}" for axis, low, high in zip("xyz", self.low, self.high, strict=True))

    def steps(self) -> tuple[float, float, float]:
        """Distances between neighbouring nodes along x, y and z."""
        x, y, z = ((high - low) / (self.count - 1) for low, high in zip(self.low, self.high, strict=True))
        return x, y, z

    def nodes(self, index: Int[Tensor, "q 3"]) -> Float[Tensor, "q 3"]:
        """Nodes by their numbers along x, y and z."""
        low, high = (torch.tensor(corner, device=index.device) for corner in (self.low, self.high))
        return low + index / (self.count - 1) * (high - low)


@dataclass(frozen=True)
class Densities:
    """Asks a field for densities in portions; negative ones become 0.

    Attributes:
        field: raw densities of points.
        grid: where it says empty, the field is not asked and the density is 0.
        chunk: points that the field is asked about at a time.
        device: where the field is.
    """

    field: Callable[[Float[Tensor, "n 3"]], Float[Tensor, " n"]]
    grid: OccupancyGrid | None
    chunk: int
    device: torch.device

    @torch.no_grad()
    def at(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Densities of points, on their device."""
        found = xyz.new_zeros(len(xyz))
        occupied = xyz.new_ones(len(xyz), dtype=torch.bool) if self.grid is None else self.grid.occupied(xyz)
        for part in occupied.nonzero()[:, 0].split(self.chunk):
            found[part] = self.field(xyz[part]).to(found.dtype)
        return found.clamp(min=0)

    def inside(self, box: Box) -> Float[np.ndarray, "g g g"]:
        """Densities at the nodes of a box, by their numbers along x, y and z.

        Raises:
            InputError: a density that is not finite.
        """
        total, at_once = box.count**3, _CHUNKS_AT_ONCE * self.chunk
        values = np.empty(total, dtype=np.float32)
        with tqdm(total=total, desc="densities", unit="node", unit_scale=True, disable=None, leave=False) as progress:
            for first in range(0, total, at_once):
                flat = torch.arange(first, min(first + at_once, total), device=self.device)
                nodes = box.nodes(torch.stack(torch.unravel_index(flat, (box.count,) * 3), -1))
                values[first : first + len(flat)] = self.at(nodes).cpu().numpy()
                progress.update(len(flat))
        if not np.isfinite(values).all():
            raise InputError(
                f"density of the field: expected finite numbers in {box}, got others at {np.count_nonzero(~np.isfinite(values))} of {total} nodes; the "
                "training has diverged: choose an earlier checkpoint"
            )
        return values.reshape((box.count,) * 3)
