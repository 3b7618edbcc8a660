"""A cloud cut into compact blocks, so that a view touches only the blocks it can see.

Built once per scene. Points are sorted along a Morton curve (Morton 1966) and cut into blocks of equal length with bounding boxes; what lies outside the
image is then dropped a block at a time. Symbols: k blocks of p points.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from npbgpp.geometry import PixelGrid, Projection

_BLOCK = 2048
_MORTON_BITS = 10  # per axis: finer than blocks are small


@dataclass(frozen=True)
class ChunkedCloud:
    """Points of one cloud, block by block.

    Attributes:
        xyz_world: coordinates, one plane per axis, which is what elementwise projection reads fastest; the last block repeats its last point.
        index: position of each point in the cloud it was built from.
        corners: the 8 corners of each block's bounding box, one plane per axis as well.
        count: n, number of points of the cloud.
        rows: points of the cloud it was built from: more than ``count`` where only some were taken.
    """

    xyz_world: Float[Tensor, "3 k p"]
    index: Int32[Tensor, "k p"]
    corners: Float[Tensor, "3 8 k"]
    count: int
    rows: int

    @classmethod
    def build(cls, xyz_world: Float[Tensor, "n 3"], block: int = _BLOCK, rows: Int[Tensor, " r"] | None = None) -> "ChunkedCloud":
        """Sorts and cuts a cloud of finite points; an empty cloud has no blocks.

        Args:
            xyz_world: the points.
            block: p.
            rows: take only these points; they keep their position in ``xyz_world`` as their index.
        """
        order = _morton_order(xyz_world if rows is None else xyz_world[rows])
        if rows is not None:
            order = rows.to(torch.int64)[order]
        count = len(order)
        blocks = -(-count // block)
        if blocks:
            order = torch.cat([order, order[-1:].expand(blocks * block - count)])
        index = order.view(blocks, block)
        xyz = xyz_world[order].view(blocks, block, 3)
        low, high = (xyz.amin(1), xyz.amax(1)) if blocks else (xyz.new_zeros(0, 3), xyz.new_zeros(0, 3))
        picks = torch.cartesian_prod(*[torch.tensor([False, True], device=xyz.device)] * 3)
        corners = torch.where(picks.t()[..., None], high.t()[:, None], low.t()[:, None]).contiguous()
        return cls(xyz.permute(2, 0, 1).contiguous(), index.to(torch.int32), corners, count, len(xyz_world))

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device | str) -> "ChunkedCloud":
        """The same cloud on another device."""
        return replace(self, xyz_world=self.xyz_world.to(device), index=self.index.to(device), corners=self.corners.to(device))


def _morton_order(xyz_world: Float[Tensor, "n 3"]) -> Int[Tensor, " n"]:
    """Indices that sort points along a Morton curve; ties keep their order."""
    if len(xyz_world) == 0:
        return torch.zeros(0, dtype=torch.int64, device=xyz_world.device)
    low, high = xyz_world.amin(0), xyz_world.amax(0)
    cells = (xyz_world - low) / (high - low).max().clamp_min(1e-30) * (2**_MORTON_BITS - 1)
    code = torch.zeros(len(xyz_world), dtype=torch.int32, device=xyz_world.device)
    for axis in range(3):
        code |= _spread_bits(cells[:, axis].to(torch.int32)) << axis
    return torch.sort(code, stable=True).indices


def _spread_bits(value: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Moves bit i of a 10-bit number to bit 3 i."""
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        value = (value | (value << shift)) & mask
    return value


# ----------------------------------------------------------------------
# What the rasterisers begin with: the blocks of a cloud that an image can show, and where their points project.


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
    cloud: ChunkedCloud, numbers: ProjectionNumbers, grid: PixelGrid, near: float, reach: float = 0.0
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
