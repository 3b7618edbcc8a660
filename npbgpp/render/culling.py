"""What the rasterisers begin with: the blocks of a cloud that an image can show, and where their points project."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from npbgpp.geometry.pixel_rules import PixelGrid, Projection
from npbgpp.render.blocks import BlockedCloud

Planes = Sequence[Tensor]  # x, y and depth or z of m points, (m,) each


@dataclass(frozen=True)
class ProjectionNumbers:
    """A projection of one camera for elementwise work on planes of coordinates.

    Attributes:
        matrix: its columns, as plain numbers.
        offset: of x, y and depth, one tensor without dimensions each, because a plain number is made into one at every use.
        scale: of x and y, likewise; empty where there is none.
        shift: of x and y, as plain numbers.
    """

    matrix: list[list[float]]
    offset: list[Tensor]
    scale: list[Tensor]
    shift: list[float]

    @classmethod
    def of(cls, projection: Projection) -> "ProjectionNumbers":
        """Reads the numbers once, so that no operation waits for them."""
        scale, shift = projection.scale, projection.shift
        return cls(
            projection.matrix[0].t().tolist(),
            list(projection.offset[0].unbind()),
            [] if scale is None else list(scale[0].unbind()),
            [] if shift is None else shift[0].tolist(),
        )

    def apply(self, xyz_world: Planes, out: Planes) -> None:
        """Fills ``out`` with x times depth, y times depth and depth: the first two are still to be divided by the third."""
        px, py, pz = xyz_world
        for plane, (of_x, of_y, of_z), offset in zip(out, self.matrix, self.offset, strict=True):
            torch.mul(px, of_x, out=plane).add_(py, alpha=of_y).add_(pz, alpha=of_z).add_(offset)  # rounded as in a product of matrices
        for k, (scale, shift) in enumerate(zip(self.scale, self.shift, strict=True)):
            out[k].mul_(scale)
            if shift:
                out[k].add_(out[2], alpha=shift)


def visible_blocks(
    cloud: BlockedCloud, numbers: ProjectionNumbers, grid: PixelGrid, near: float, reach: float = 0.0
) -> tuple[Int[Tensor, " k"], Int[Tensor, " l"]]:
    """Blocks that lie in the image as a whole, and those that may lie in it in part; blocks that cannot be seen are in neither.

    Args:
        cloud: the blocks.
        numbers: the projection of one camera.
        grid: the image.
        near: points at depth <= near are not seen.
        reach: how far points reach beyond their own place, in normalised coordinates.
    """
    xyd = torch.empty_like(cloud.corners)
    numbers.apply(cloud.corners.flatten(1).unbind(), xyd.flatten(1).unbind())
    depth = xyd[2]
    # corners and points are rounded alike, but not equally; these margins are larger than the difference
    reached = zip(cloud.corners.abs().amax(1), numbers.matrix[2], strict=True)
    rounding = 4e-7 * sum((furthest * abs(of_depth) for furthest, of_depth in reached), numbers.offset[2].abs())
    nearest, furthest = depth.amin(0) - rounding, depth.amax(0) + rounding
    before = nearest > near
    in_part = inside = before
    for x, first, last in zip(
        xyd[:2].div_(depth + grid.epsilon), *(ends.tolist() for ends in grid.extent(torch.device("cpu"))), strict=True
    ):
        margin = 1e-3 * (last - first)
        low, high = x.amin(0) - reach, x.amax(0) + reach
        in_part = in_part & (high >= first - margin) & (low <= last + margin)
        inside = inside & (low >= first + margin) & (high <= last - margin)
    # the corners of a block that reaches behind the camera say nothing about where its points are
    border = (in_part | ((furthest > near) & ~before)) & ~inside
    return inside.nonzero()[:, 0], border.nonzero()[:, 0]
