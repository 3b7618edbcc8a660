"""What the rasterisers begin with: the blocks of a cloud that an image can show, and where their points project."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.geometry.pixel_rules import PixelGrid, Projection
from npbgpp.render.blocks import BlockedCloud


def visible_blocks(
    cloud: BlockedCloud, projection: Projection, grid: PixelGrid, near: float, reach: float = 0.0
) -> tuple[Int[Tensor, " k"], Int[Tensor, " l"]]:
    """Blocks that lie in the image as a whole, and those that may lie in it in part; blocks that cannot be seen are in neither.

    Args:
        cloud: the blocks.
        projection: of one camera.
        grid: the image.
        near: points at depth <= near are not seen.
        reach: how far points reach beyond their own place, in normalised coordinates.
    """
    xyd = projection.apply(cloud.corners.view(-1, 3))[0].view(-1, 8, 3)
    depth = xyd[..., 2]
    matrix, offset = projection.matrix[0], projection.offset[0]
    # corners and points are rounded alike, but not equally; these margins are larger than the difference
    rounding = 4e-7 * (cloud.corners.abs() @ matrix[:, 2].abs() + offset[2].abs()).amax(1)
    nearest, furthest = depth.amin(1) - rounding, depth.amax(1) + rounding
    xy = xyd[..., :2]
    first, last = grid.extent(xy.device)
    margin = 1e-3 * (last - first)
    low, high = xy.amin(1) - reach, xy.amax(1) + reach
    before = nearest > near
    in_part = ((high >= first - margin) & (low <= last + margin)).all(1)
    inside = before & ((low >= first + margin) & (high <= last - margin)).all(1)
    # the corners of a block that reaches behind the camera say nothing about where its points are
    border = ((before & in_part) | ((furthest > near) & ~before)) & ~inside
    return inside.nonzero()[:, 0], border.nonzero()[:, 0]


@dataclass(frozen=True)
class ProjectionNumbers:
    """A projection of one camera as plain numbers: columns of the matrix, offset, and scale and shift of x and y where there are any."""

    matrix: list[list[float]]
    offset: list[float]
    scale_and_shift: list[tuple[float, float]]

    @classmethod
    def of(cls, projection: Projection) -> "ProjectionNumbers":
        """Reads the numbers once, so that no operation waits for them."""
        scaled: list[tuple[float, float]] = []
        if projection.scale is not None and projection.shift is not None:
            scaled = list(zip(projection.scale[0].tolist(), projection.shift[0].tolist(), strict=True))
        return cls(projection.matrix[0].t().tolist(), projection.offset[0].tolist(), scaled)

    def apply(self, xyz_world: Float[Tensor, "3 m"], out: Float[Tensor, "3 m"]) -> tuple[Float[Tensor, "2 m"], Float[Tensor, " m"]]:
        """Fills ``out`` with (x depth, y depth, depth) and returns the first two and the last: coordinates are still to be divided by the depth."""
        px, py, pz = xyz_world
        for k in range(3):
            of_x, of_y, of_z = self.matrix[k]
            torch.mul(px, of_x, out=out[k]).add_(py, alpha=of_y).add_(pz, alpha=of_z).add_(self.offset[k])
        xy, depth = out[:2], out[2]
        for k, (scale, shift) in enumerate(self.scale_and_shift):
            xy[k].mul_(scale)
            if shift:
                xy[k].add_(depth * shift)
        return xy, depth
