"""Nearest point per pixel at several scales, on one packed 64-bit buffer per level.

Every point becomes the key ``depth bits << 32 | index``: depths are positive, so their IEEE bit patterns order like the numbers, and
``scatter_reduce(amin)`` of the keys finds the nearest point of every cell, with exact ties going to the lowest index. It is deterministic on every
device and has no limit at 2^24 points (the authors store indices as float32).

What is done beyond that is for speed only and changes no result:

* the cloud is read in chunks that stay in the cache;
* levels that nest (exact rule, scales that halve) are 2x2 minima of the next finer buffer;
* for the others, ``_winning_depth_bound`` keeps, for every cell of the finest level, the largest depth that could still win in any level there.
  Points behind it, and points outside the image, are dropped after one look-up, before their other cells are computed.

The pyramid of single-pixel points is the one of Aliev et al., Neural Point-Based Graphics (2020), section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import threshold

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixel_rules import PixelGrid, PixelRule

_EMPTY_KEY = 2**63 - 1
_CPU_CHUNK = 1 << 17
_ACCELERATOR_CHUNK = 1 << 24


@dataclass(frozen=True)
class Fragments:
    """What each pixel of one level sees.

    Attributes:
        index: row of the nearest point in the cloud, -1 where the pixel is empty.
        depth: its depth in scene units, inf where the pixel is empty.
    """

    index: Int[Tensor, "h w"]
    depth: Float[Tensor, "h w"]


@dataclass(frozen=True)
class Level:
    """One raster of a pyramid: ``scale`` of the image, each of its pixels cut into ``supersampling`` squared cells."""

    scale: float
    supersampling: int = 1

    def cells_per_pixel(self) -> float:
        """Cells along one side of a full-resolution pixel."""
        return self.scale * self.supersampling


def rasterize(
    xyz_world: Float[Tensor, "n 3"],
    camera: Cameras,
    levels: Sequence[Level],
    near: float,
    rule: PixelRule,
) -> list[Fragments]:
    """Nearest point of every pixel, for one camera and one cloud.

    Args:
        xyz_world: the cloud, any device, float32.
        camera: one camera.
        levels: what to draw; the result has the same order.
        near: points at depth <= near are dropped; scene units, not negative.
        rule: where pixels lie.

    Returns:
        One Fragments per level, of ``int(scale * size) * supersampling`` cells.

    Raises:
        ValueError: not exactly one camera, a level without cells, or near < 0 (depth bits order only positive numbers).
    """
    if len(camera) != 1:
        raise ValueError(f"rasterize: expected one camera, got {len(camera)}")
    if near < 0:
        raise ValueError(f"rasterize: expected near >= 0, got {near}")
    grid = PixelGrid(rule, camera.image_size)
    sizes = [grid.level_size(level.scale, level.supersampling) for level in levels]
    for level, size in zip(levels, sizes, strict=True):
        if min(size) < 1:
            raise ValueError(f"rasterize: image of {camera.image_size} pixels has no cell at scale {level.scale}")
    order = sorted(range(len(levels)), key=lambda k: -levels[k].cells_per_pixel())
    finest = [k for position, k in enumerate(order) if position == 0 or not _nests(rule, levels[order[position - 1]], levels[k])]
    keys: dict[int, Tensor] = {k: torch.full(sizes[k], _EMPTY_KEY, dtype=torch.int64, device=xyz_world.device) for k in finest}
    _scatter(xyz_world, camera, grid, near, [(levels[k], keys[k]) for k in finest])
    for previous, k in zip(order, order[1:], strict=False):
        if k not in keys:
            keys[k] = _pool_minimum(keys[previous], sizes[k])
    return [_fragments(keys[k]) for k in range(len(levels))]


def _nests(rule: PixelRule, finer: Level, coarser: Level) -> bool:
    """Whether a cell of the coarser level is a block of 2x2 cells of the finer one."""
    return rule is PixelRule.EXACT and finer.cells_per_pixel() == 2 * coarser.cells_per_pixel()


def _pool_minimum(keys: Int[Tensor, "h w"], size: tuple[int, int]) -> Int[Tensor, "h2 w2"]:
    height, width = size
    even, odd = keys[0 : 2 * height : 2], keys[1 : 2 * height : 2]
    rows = torch.minimum(even, odd)
    return torch.minimum(rows[:, 0 : 2 * width : 2], rows[:, 1 : 2 * width : 2])


def _fragments(keys: Int[Tensor, "h w"]) -> Fragments:
    empty = keys == _EMPTY_KEY
    index = torch.where(empty, -1, keys & 0xFFFFFFFF)
    depth = (keys >> 32).to(torch.int32).view(torch.float32)
    return Fragments(index, torch.where(empty, torch.inf, depth))


def _scatter(xyz_world: Float[Tensor, "n 3"], camera: Cameras, grid: PixelGrid, near: float, targets: list[tuple[Level, Tensor]]) -> None:
    """Lowers the key buffers of ``targets`` (finest first) by every point of the cloud."""
    matrix, offset = (t[0].tolist() for t in grid.homogeneous_map(camera))
    chunk = _CPU_CHUNK if xyz_world.device.type == "cpu" else _ACCELERATOR_CHUNK
    finest_level, finest_keys = targets[0]
    height, width = finest_keys.shape
    bound = _frame(torch.full((height, width), torch.inf, device=xyz_world.device))
    next_update = finest_keys.numel()  # a bound is worth its price once a pixel has seen about one point
    for start in range(0, len(xyz_world), chunk):
        p = xyz_world[start : start + chunk].t().contiguous()
        x, y, depth = (
            (p[0] * matrix[0][k]).add_(p[1], alpha=matrix[1][k]).add_(p[2], alpha=matrix[2][k]).add_(offset[k]) for k in range(3)
        )
        divisor = depth + grid.epsilon if grid.epsilon else depth
        x.div_(divisor)
        y.div_(divisor)
        row, column = grid.cells(x, y, finest_level.cells_per_pixel(), (height, width))
        framed = row.clamp_(-1, height).add_(1).mul_(width + 2).add_(column.clamp_(-1, width)).add_(1)
        # threshold() sends everything at or before the near plane to infinity, behind every bound
        candidates = (threshold(depth, near, torch.inf) < bound.index_select(0, framed)).nonzero()[:, 0]
        if len(candidates):
            _scatter_candidates(x[candidates], y[candidates], depth[candidates], candidates.add_(start), grid, targets)
        if next_update <= start + chunk < len(xyz_world):
            bound = _frame(_winning_depth_bound(grid, targets))
            next_update = 2 * (start + chunk)


def _scatter_candidates(
    x: Float[Tensor, " m"],
    y: Float[Tensor, " m"],
    depth: Float[Tensor, " m"],
    index: Int[Tensor, " m"],
    grid: PixelGrid,
    targets: list[tuple[Level, Tensor]],
) -> None:
    inside = grid.inside(x, y)
    if not inside.all():
        keep = inside.nonzero()[:, 0]
        x, y, depth, index = x[keep], y[keep], depth[keep], index[keep]
    keys = depth.view(torch.int32).to(torch.int64).bitwise_left_shift_(32).bitwise_or_(index)
    for level, buffer in targets:
        height, width = buffer.shape
        scale = level.cells_per_pixel()
        row, column = grid.cells(x, y, scale, (height, width))
        level_keys = keys
        if grid.overflows(scale, (height, width)):
            keep = ((row >= 0) & (row < height) & (column >= 0) & (column < width)).nonzero()[:, 0]
            row, column, level_keys = row[keep], column[keep], keys[keep]
        # every scattered point has a cell of its own: a common dummy cell for outsiders would serialise the reduction
        buffer.view(-1).scatter_reduce_(0, row.mul_(width).add_(column).to(torch.int64), level_keys, "amin")


def _winning_depth_bound(grid: PixelGrid, targets: list[tuple[Level, Tensor]]) -> Float[Tensor, "h w"]:
    """For every cell of the finest level, a depth that a point there must stay below to win in any level; inf where a level is still empty."""
    finest, finest_keys = targets[0]
    fine_size = (finest_keys.shape[0], finest_keys.shape[1])
    bound = _fragments(finest_keys).depth
    for level, keys in targets[1:]:
        depth = _fragments(keys).depth
        for axis in range(2):
            coarse_size = (keys.shape[0], keys.shape[1])
            first, last = grid.overlapped_cells(axis, finest.cells_per_pixel(), fine_size, level.cells_per_pixel(), coarse_size)
            reach = int((last - first).max())
            # the finest level has at least as many cells, so a fine cell touches few coarse ones
            parts = [depth.index_select(axis, torch.minimum(first + k, last).to(depth.device)) for k in range(reach + 1)]
            depth = parts[0]
            for part in parts[1:]:
                depth = torch.maximum(depth, part)
        bound = torch.maximum(bound, depth)
    return bound


def _frame(bound: Float[Tensor, "h w"]) -> Float[Tensor, " cells"]:
    """Adds a border that no point passes, so that clamped outside cells are dropped by the same look-up; flattened."""
    return torch.nn.functional.pad(bound, (1, 1, 1, 1), value=-torch.inf).reshape(-1)
