"""Point clouds in spatially compact chunks.

Built once per scene: points are sorted along a Morton curve (Morton 1966) and split into chunks of equal length with bounding boxes, so that a view projects
only the chunks it can see. Symbols: k chunks of p points.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

_CHUNK_SIZE = 2048
_MORTON_BITS = 10  # per axis: cells are much smaller than chunks


@dataclass(frozen=True)
class ChunkedCloud:
    """A point cloud in chunks.

    Attributes:
        xyz_world: coordinates, one plane per axis, so that projection vectorises; the last chunk is padded with its last point.
        index: row of each point in the original cloud.
        corners: the 8 corners of the bounding box of each chunk, one plane per axis as well.
        count: n, number of points.
        rows: points in the original cloud, more than ``count`` for a subset.
    """

    xyz_world: Float[Tensor, "3 k p"]
    index: Int32[Tensor, "k p"]
    corners: Float[Tensor, "3 8 k"]
    count: int
    rows: int

    @classmethod
    def build(cls, xyz_world: Float[Tensor, "n 3"], chunk_size: int = _CHUNK_SIZE, rows: Int[Tensor, " r"] | None = None) -> "ChunkedCloud":
        """Sorts and splits a cloud of finite points; an empty cloud has no chunks.

        Args:
            xyz_world: the points.
            chunk_size: p.
            rows: the subset of points to take, None for all; their index remains the row in ``xyz_world``.
        """
        order = _morton_order(xyz_world if rows is None else xyz_world[rows])
        if rows is not None:
            order = rows.to(torch.int64)[order]
        count = len(order)
        chunks = -(-count // chunk_size)
        if chunks:
            order = torch.cat([order, order[-1:].expand(chunks * chunk_size - count)])
        index = order.view(chunks, chunk_size)
        xyz = xyz_world[order].view(chunks, chunk_size, 3)
        low, high = (xyz.amin(1), xyz.amax(1)) if chunks else (xyz.new_zeros(0, 3), xyz.new_zeros(0, 3))
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
    """Moves bit i of 10-bit integers to bit 3 i."""
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        value = (value | (value << shift)) & mask
    return value
