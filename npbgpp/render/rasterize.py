"""Nearest point per pixel at several scales, on one packed 64-bit buffer per level.

Every point becomes the key ``depth bits << 32 | index``: depths are positive, so their IEEE bit patterns order like the numbers, and
``scatter_reduce(amin)`` of the keys finds the nearest point of every cell, with exact ties going to the lowest index. It is deterministic on every
device and has no limit at 2^24 points (the authors store indices as float32). The pyramid of single-pixel points is the one of Aliev et al., Neural
Point-Based Graphics (2020), section 3.

What is done beyond that is for speed only and changes no result:

* blocks of the cloud outside the image are skipped; the others are drawn from near to far, and blocks behind what is already drawn are skipped
  (hierarchical z-buffer, Greene et al. 1993);
* ``_DepthBound`` keeps, for every cell of the finest level, the largest depth that could still win in any level there. Single points behind it are
  dropped after one look-up, before their other cells are computed;
* levels that nest (exact rule, scales that halve) are 2x2 minima of the next finer buffer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import max_pool2d, pad, threshold

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixel_rules import PixelGrid, PixelRule
from npbgpp.render.blocks import BlockedCloud

_EMPTY_KEY = 2**63 - 1
_CPU_CHUNK = 1 << 16  # points whose temporaries stay in the cache
_ACCELERATOR_CHUNK = 1 << 24
_FIRST_SHARE = 8  # the nearest eighth of the blocks is drawn before the first depth bound is computed, then twice as many, ...


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


def rasterize(cloud: BlockedCloud, camera: Cameras, levels: Sequence[Level], near: float, rule: PixelRule) -> list[Fragments]:
    """Nearest point of every pixel, for one camera and one cloud.

    Args:
        cloud: the points, on the device that shall do the work.
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
    drawn = [k for position, k in enumerate(order) if position == 0 or not _nests(rule, levels[order[position - 1]], levels[k])]
    device = cloud.xyz_world.device
    keys: dict[int, Tensor] = {k: torch.full(sizes[k], _EMPTY_KEY, dtype=torch.int64, device=device) for k in drawn}
    _draw(cloud, camera, grid, near, [_Target(levels[k].cells_per_pixel(), keys[k]) for k in drawn])
    for previous, k in zip(order, order[1:], strict=False):
        if k not in keys:
            keys[k] = _pool_minimum(keys[previous], sizes[k])
    return [_fragments(keys[k]) for k in range(len(levels))]


@dataclass(frozen=True)
class _Target:
    """A level that points are drawn into: its cells per full-resolution pixel and its key buffer."""

    scale: float
    keys: Int[Tensor, "h w"]

    @property
    def size(self) -> tuple[int, int]:
        return self.keys.shape[0], self.keys.shape[1]


def _nests(rule: PixelRule, finer: Level, coarser: Level) -> bool:
    """Whether a cell of the coarser level is a block of 2x2 cells of the finer one."""
    return rule is PixelRule.EXACT and finer.cells_per_pixel() == 2 * coarser.cells_per_pixel()


def _pool_minimum(keys: Int[Tensor, "h w"], size: tuple[int, int]) -> Int[Tensor, "h2 w2"]:
    height, width = size
    rows = torch.minimum(keys[0 : 2 * height : 2], keys[1 : 2 * height : 2])
    return torch.minimum(rows[:, 0 : 2 * width : 2], rows[:, 1 : 2 * width : 2])


def _fragments(keys: Int[Tensor, "h w"]) -> Fragments:
    empty = keys == _EMPTY_KEY
    return Fragments(torch.where(empty, -1, keys & 0xFFFFFFFF), _depth(keys))


def _depth(keys: Int[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    bits = (keys >> 32).clamp_max_(0x7F800000)  # empty cells hold larger bits than infinity
    return bits.to(torch.int32).view(torch.float32)


def _draw(cloud: BlockedCloud, camera: Cameras, grid: PixelGrid, near: float, targets: list[_Target]) -> None:
    """Lowers the key buffers of ``targets`` (finest first) by every point of the cloud that can win a cell."""
    matrix, offset = (t[0] for t in grid.homogeneous_map(camera.to(cloud.xyz_world.device)))
    blocks, extent = _visible_blocks(cloud, matrix, offset, grid, near, targets[0])
    plain = (matrix.tolist(), offset.tolist())
    bound = _DepthBound(grid, targets)
    share = max(1, len(blocks) // _FIRST_SHARE)
    while len(blocks):
        _draw_blocks(cloud, blocks[:share], plain, grid, near, targets, bound)
        blocks, extent = blocks[share:], extent[share:]
        if len(blocks):
            bound.update()
            visible = bound.passes(extent)
            blocks, extent = blocks[visible], extent[visible]
        share *= 2


def _visible_blocks(
    cloud: BlockedCloud, matrix: Float[Tensor, "3 3"], offset: Float[Tensor, " 3"], grid: PixelGrid, near: float, finest: _Target
) -> tuple[Int[Tensor, " k"], Float[Tensor, "k 5"]]:
    """Blocks that may show in the image, nearest first, and their extent (first row, last row, first column, last column, nearest depth)."""
    xyw = cloud.corners @ matrix + offset
    depth = xyw[..., 2]
    # corners and points are rounded alike, but not equally: without this a block could lose to a depth that one of its points reaches
    rounding = 4e-7 * (cloud.corners.abs() @ matrix[:, 2].abs() + offset[2].abs()).amax(1)
    nearest, furthest = depth.amin(1) - rounding, depth.amax(1) + rounding
    xy = xyw[..., :2] / (depth[..., None] + grid.epsilon)
    height, width = finest.size
    row, column = grid.cells(xy[..., 0].reshape(-1), xy[..., 1].reshape(-1), finest.scale, finest.size)
    row, column = row.view(-1, 8).float(), column.view(-1, 8).float()
    # one cell of slack: rounding may move a point of the block across the border of a cell that no corner crosses
    extent = torch.stack([row.amin(1) - 1, row.amax(1) + 1, column.amin(1) - 1, column.amax(1) + 1, nearest], 1)
    # a block that reaches behind the camera can be anywhere in the image
    whole = extent.new_tensor([0, height - 1, 0, width - 1, near])
    extent = torch.where((nearest <= near)[:, None], whole, extent)
    inside = (extent[:, 1] >= 0) & (extent[:, 0] < height) & (extent[:, 3] >= 0) & (extent[:, 2] < width) & (furthest > near)
    blocks = inside.nonzero()[:, 0]
    order = torch.argsort(nearest[blocks])
    return blocks[order], extent[blocks[order]]


def _draw_blocks(
    cloud: BlockedCloud,
    blocks: Int[Tensor, " k"],
    homogeneous_map: tuple[list[list[float]], list[float]],
    grid: PixelGrid,
    near: float,
    targets: list[_Target],
    bound: "_DepthBound",
) -> None:
    matrix, offset = homogeneous_map
    chunk = _CPU_CHUNK if cloud.xyz_world.device.type == "cpu" else _ACCELERATOR_CHUNK
    finest = targets[0]
    height, width = finest.size
    length = cloud.index.shape[1]
    for part in blocks.split(max(1, chunk // length)):
        px, py, pz = cloud.xyz_world.index_select(1, part).flatten(1)
        x, y, depth = ((px * matrix[0][k]).add_(py, alpha=matrix[1][k]).add_(pz, alpha=matrix[2][k]).add_(offset[k]) for k in range(3))
        divisor = depth + grid.epsilon if grid.epsilon else depth
        x.div_(divisor)
        y.div_(divisor)
        row, column = grid.cells(x, y, finest.scale, finest.size)
        framed = row.clamp_(-1, height).mul_(width + 2).add_(column.clamp_(-1, width)).add_(width + 3)
        # threshold() sends everything at or before the near plane to infinity, behind every bound
        chosen = (threshold(depth, near, torch.inf) < bound.framed.index_select(0, framed)).nonzero()[:, 0]
        if len(chosen):
            block = part.index_select(0, chosen.div(length, rounding_mode="floor"))
            index = cloud.index.view(-1).index_select(0, block.mul_(length).add_(chosen.remainder(length)))
            x, y, depth = (t.index_select(0, chosen) for t in (x, y, depth))
            _scatter(x, y, depth, index, grid, targets)


def _scatter(
    x: Float[Tensor, " m"], y: Float[Tensor, " m"], depth: Float[Tensor, " m"], index: Int[Tensor, " m"], grid: PixelGrid, targets: list[_Target]
) -> None:
    """Lowers the key buffers by points beyond the near plane."""
    inside = grid.inside(x, y)
    if not inside.all():
        keep = inside.nonzero()[:, 0]
        x, y, depth, index = (t.index_select(0, keep) for t in (x, y, depth, index))
    keys = depth.view(torch.int32).to(torch.int64).bitwise_left_shift_(32).bitwise_or_(index)
    for target in targets:
        height, width = target.size
        row, column = grid.cells(x, y, target.scale, target.size)
        level_keys = keys
        if grid.overflows(target.scale, target.size):
            keep = ((row >= 0) & (row < height) & (column >= 0) & (column < width)).nonzero()[:, 0]
            row, column, level_keys = (t.index_select(0, keep) for t in (row, column, keys))
        # every scattered point has a cell of its own: a common dummy cell for outsiders would serialise the reduction
        target.keys.view(-1).scatter_reduce_(0, row.mul_(width).add_(column).to(torch.int64), level_keys, "amin")


class _DepthBound:
    """For every cell of the finest level, a depth that a point there must stay below to win in any level; inf where a level is still empty.

    ``framed`` has a border of -inf, so that cells outside the image, clamped to the border, are dropped by the same look-up.
    """

    def __init__(self, grid: PixelGrid, targets: list[_Target]) -> None:
        self._targets = targets
        finest = targets[0]
        self._overlaps = [
            [grid.overlapped_cells(axis, finest.scale, finest.size, t.scale, t.size) for axis in range(2)] for t in targets[1:]
        ]
        self._bound = torch.full(finest.size, torch.inf, device=finest.keys.device)
        self.framed = self._frame()

    def _frame(self) -> Float[Tensor, " cells"]:
        return pad(self._bound, (1, 1, 1, 1), value=-torch.inf).view(-1)

    def update(self) -> None:
        """Takes account of what has been drawn."""
        bound = _depth(self._targets[0].keys)
        for target, overlaps in zip(self._targets[1:], self._overlaps, strict=True):
            depth = _depth(target.keys)
            for axis, (first, last) in enumerate(overlaps):
                # a fine cell touches few coarse ones: two, or three where the levels are of almost equal size
                parts = [depth.index_select(axis, torch.minimum(first + k, last).to(depth.device)) for k in range(int((last - first).max()) + 1)]
                depth = parts[0]
                for part in parts[1:]:
                    depth = torch.maximum(depth, part)
            bound = torch.maximum(bound, depth)
        self._bound = bound
        self.framed = self._frame()

    def passes(self, extent: Float[Tensor, "k 5"]) -> Tensor:
        """Which blocks are nearer than the bound somewhere in their rectangle of cells."""
        height, width = self._bound.shape
        first_row, last_row = extent[:, 0].clamp(0, height - 1).long(), extent[:, 1].clamp(0, height - 1).long()
        first_column, last_column = extent[:, 2].clamp(0, width - 1).long(), extent[:, 3].clamp(0, width - 1).long()
        span = torch.maximum(last_row - first_row, last_column - first_column) + 1
        step = torch.ceil(torch.log2(span.float())).long()  # at 2^step cells per side, a rectangle touches at most 2x2
        furthest = torch.full_like(extent[:, 4], -torch.inf)
        level = self._bound[None, None]
        for k in range(int(step.max()) + 1):
            if k:
                level = max_pool2d(level, 2, ceil_mode=True)
            chosen = (step == k).nonzero()[:, 0]
            for row in (first_row, last_row):
                for column in (first_column, last_column):
                    seen = level[0, 0, row[chosen] >> k, column[chosen] >> k]
                    furthest[chosen] = torch.maximum(furthest[chosen], seen)
        return extent[:, 4] < furthest
