"""Which parts of a box are empty, so that no network is asked about them (Mueller et al., Instant NGP, SIGGRAPH 2022, appendix E.2).

A grid of cells remembers the density seen in each. A cell counts as occupied when it or a neighbour, corners included, holds density, so that a surface near
the border of a cell is not cut where no draw hit it. Symbols: n points or rays, s depths of a ray, p samples kept, r cells along a side, q cells drawn.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import max_pool3d

from npbgpp.errors import InputError
from npbgpp.volume.sampling import PackedSamples, Rays, intervals

_DECAY = 0.95  # of a remembered density, each time that its cell is looked at again
_LATER_SHARE = 4  # after warm-up one cell of this many is drawn anywhere, and as many among the occupied
_POINTS_AT_ONCE = 2**17


class OccupancyGrid(nn.Module):
    """Cells of an axis-aligned box; all are occupied until the first update. Everything outside of the box is empty.

    Args:
        low: least corner of the box, in the coordinates of the rays.
        high: greatest corner.
        resolution: r.
        least_opacity: cells along whose diagonal less than this is absorbed are empty, unless that is more than half of what cells hold on average.
        warmup_steps: updates before this step look into every cell.

    Raises:
        InputError: no box, no cells, or an opacity outside of 0..1.
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
        """Looks into cells, each at a random point: before ``warmup_steps`` into all, then into some drawn anywhere and some among the occupied.

        Args:
            density_fn: raw densities of points; negative ones count as 0.
            step: training step.
            generator: source of the draws.
        """
        chosen = self._chosen(step, generator)
        corner = torch.stack(torch.unravel_index(chosen, self.cells.shape), -1)
        inside = torch.rand(corner.shape, generator=generator, device=self.low.device)
        xyz = self.low + (corner + inside) / self.resolution * (self.high - self.low)
        found = torch.cat([density_fn(points) for points in xyz.split(_POINTS_AT_ONCE)]).to(self.densities.dtype)
        found = found.nan_to_num(nan=torch.inf).clamp(min=0)  # what is not known is not empty
        flat = self.densities.flatten()
        flat[chosen] = _DECAY * flat[chosen]
        flat.scatter_reduce_(0, chosen, found, "amax")
        self.densities.copy_(flat.view_as(self.densities))
        diagonal = ((self.high - self.low) / self.resolution).norm().item()
        # a young field is thin everywhere: measured by its own mean (half of it, as means round), it is not taken for empty before it could learn
        least = (self.densities.mean() / 2).clamp(max=-math.log1p(-self.least_opacity) / diagonal)
        self.cells.copy_(max_pool3d(self.densities[None, None], 3, stride=1, padding=1)[0, 0] >= least)

    def _chosen(self, step: int, generator: torch.Generator | None) -> Int[Tensor, " q"]:
        total, device = self.cells.numel(), self.cells.device
        if step < self.warmup_steps:
            return torch.arange(total, device=device)
        count = max(1, total // _LATER_SHARE)
        anywhere = torch.randint(total, (count,), generator=generator, device=device)
        occupied = self.cells.flatten().nonzero()[:, 0]
        return torch.cat([anywhere, occupied[torch.randint(len(occupied), (count,), generator=generator, device=device)]])

    def occupied(self, xyz: Float[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch"]:
        """Whether points lie in occupied cells. Points on the border of the box belong to it."""
        place = (xyz - self.low) / (self.high - self.low)
        inside = ((place >= 0) & (place <= 1)).all(-1)
        i, j, k = (place * self.resolution).nan_to_num().clamp(0, self.resolution - 1).long().unbind(-1)
        return self.cells[i, j, k] & inside

    def march(self, rays: Rays, z: Float[Tensor, "n s"]) -> PackedSamples:
        """The samples that lie in occupied cells.

        Args:
            rays: n rays.
            z: sorted depths to choose from; closer together than a cell is wide, lest rays step over it.

        Returns:
            Samples that reach as far as among all of ``z``, so that composited they are what all of them would be, had the empty cells no density.
        """
        ray, k = self.occupied(rays.points(z)).nonzero(as_tuple=True)
        return PackedSamples(ray, z[ray, k], intervals(z)[ray, k])
