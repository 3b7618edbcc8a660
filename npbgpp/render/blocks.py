"""A cloud cut into compact blocks, so that a view touches only the blocks it can see.

Built once per scene. Points are sorted along a Morton curve (Morton 1966) and cut into blocks of equal length with bounding boxes; what lies outside the
image is then dropped a block at a time. Symbols: k blocks of p points.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

_BLOCK = 2048
_MORTON_BITS = 10  # per axis: finer than blocks are small


@dataclass(frozen=True)
class BlockedCloud:
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
    def build(cls, xyz_world: Float[Tensor, "n 3"], block: int = _BLOCK, rows: Int[Tensor, " r"] | None = None) -> "BlockedCloud":
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

    def to(self, device: torch.device | str) -> "BlockedCloud":
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
