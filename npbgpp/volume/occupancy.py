"""Occupancy grids: skip samples in empty space (Mueller et al., Instant NGP, SIGGRAPH 2022, appendix E.2).

A grid stores the largest recent density sample of each cell. A cell is occupied if it or one of its 26 neighbours has density, so that surfaces near cell
borders are not clipped. Symbols: n points or rays, s depths per ray, p samples kept, r cells along a side, q cells sampled.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import max_pool3d

from npbgpp.errors import InputError
from npbgpp.volume.sampling import PackedSamples, Rays, intervals

_DECAY = 0.95  # of the stored density at every update of a cell
_UPDATE_FRACTION = 4  # after warm-up, 1 / 4 of the cells are sampled uniformly, and as many among the occupied
_BATCH_SIZE = 2**17


class OccupancyGrid(nn.Module):
    """Occupancy of the cells of an axis-aligned box; all occupied until the first update. Space outside of the box is empty.

    Args:
        low: minimum corner of the box, in the coordinates of the rays.
        high: maximum corner.
        resolution: r.
        least_opacity: cells are empty if the opacity along their diagonal is less than this, and their density less than half of the mean.
        warmup_steps: updates before this step sample every cell.

    Raises:
        InputError: an empty box, no cells, or an opacity outside of (0, 1).
    """

    low: Tensor
    high: Tensor
    densities: Tensor
    cells: Tensor

    def __init__(
        self, low: Sequence[float], high: Sequence[float], *, resolution: int = 128, least_opacity: float = 0.01, warmup_steps: int = 256
    ) -> None:
        super().__init__()
        if (
            len(low) != 3
            or len(high) != 3
            or any(not (math.isfinite(a) and math.isfinite(b) and a < b) for a, b in zip(low, high, strict=True))
        ):
            raise InputError(
                f"box of the occupancy grid: expected three finite numbers, each below its counterpart, got {list(low)} and {list(high)}"
            )
        if resolution < 1:
            raise InputError(f"resolution of the occupancy grid: expected 1 or more, got {resolution}")
        if not 0 < least_opacity < 1:
            raise InputError(f"least_opacity of the occupancy grid: expected a number between 0 and 1, got {least_opacity:g}")
        self.resolution, self.least_opacity, self.warmup_steps = resolution, least_opacity, warmup_steps
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(high, dtype=torch.float32))
        self.register_buffer("densities", torch.zeros(resolution, resolution, resolution))
        self.register_buffer("cells", torch.ones(resolution, resolution, resolution, dtype=torch.bool))

    @torch.no_grad()
    def update(
        self, density_fn: Callable[[Float[Tensor, "q 3"]], Float[Tensor, " q"]], step: int, generator: torch.Generator | None = None
    ) -> None:
        """Samples the density at a random point of cells: of all before ``warmup_steps``, then of uniformly sampled and of occupied ones.

        Args:
            density_fn: raw densities of points; negative ones count as 0.
            step: training step.
            generator: random number generator.
        """
        chosen = self._sample_cells(step, generator)
        corner = torch.stack(torch.unravel_index(chosen, self.cells.shape), -1)
        offset = torch.rand(corner.shape, generator=generator, device=self.low.device)
        xyz = self.low + (corner + offset) / self.resolution * (self.high - self.low)
        density = torch.cat([density_fn(points) for points in xyz.split(_BATCH_SIZE)]).to(self.densities.dtype)
        density = density.nan_to_num(nan=torch.inf).clamp(min=0)  # nan counts as occupied
        flat = self.densities.flatten()
        flat[chosen] = _DECAY * flat[chosen]
        flat.scatter_reduce_(0, chosen, density, "amax")
        self.densities.copy_(flat.view_as(self.densities))
        diagonal = ((self.high - self.low) / self.resolution).norm().item()
        # an untrained field is thin everywhere; the threshold relative to its mean keeps it from being classified as empty
        threshold = (self.densities.mean() / 2).clamp(max=-math.log1p(-self.least_opacity) / diagonal)
        self.cells.copy_(max_pool3d(self.densities[None, None], 3, stride=1, padding=1)[0, 0] >= threshold)

    def _sample_cells(self, step: int, generator: torch.Generator | None) -> Int[Tensor, " q"]:
        total, device = self.cells.numel(), self.cells.device
        if step < self.warmup_steps:
            return torch.arange(total, device=device)
        count = max(1, total // _UPDATE_FRACTION)
        uniform = torch.randint(total, (count,), generator=generator, device=device)
        occupied = self.cells.flatten().nonzero()[:, 0]
        return torch.cat([uniform, occupied[torch.randint(len(occupied), (count,), generator=generator, device=device)]])

    def occupied(self, xyz: Float[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch"]:
        """Whether points lie in occupied cells; the box includes its boundary."""
        relative = (xyz - self.low) / (self.high - self.low)
        inside = ((relative >= 0) & (relative <= 1)).all(-1)
        i, j, k = (relative * self.resolution).nan_to_num().clamp(0, self.resolution - 1).long().unbind(-1)
        return self.cells[i, j, k] & inside

    def march(self, rays: Rays, z: Float[Tensor, "n s"]) -> PackedSamples:
        """Samples in occupied cells.

        Args:
            rays: n rays.
            z: sorted candidate depths, with steps smaller than a cell.

        Returns:
            The samples with their intervals in ``z``, so that compositing them equals compositing all of ``z`` with zero density in empty cells.
        """
        ray, k = self.occupied(rays.points(z)).nonzero(as_tuple=True)
        return PackedSamples(ray, z[ray, k], intervals(z)[ray, k])
