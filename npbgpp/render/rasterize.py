"""Nearest point per pixel at several scales, on one packed 64-bit buffer per level.

Every point becomes the key ``depth bits << 32 | index``: depths are positive, so their IEEE bit patterns order like the numbers, and
``scatter_reduce(amin)`` of the keys finds the nearest point of every cell, with exact ties going to the lowest index. It is deterministic on every
device and has no limit at 2^24 points (the authors store indices as float32). The pyramid of single-pixel points is the one of Aliev et al., Neural
Point-Based Graphics (2020), section 3.

What is done beyond that is for speed only and changes no result:

* blocks of the cloud outside the image are skipped, so that the work grows with what the image can show;
* a point is drawn once, into a grid that refines those of all levels (``npbgpp.render.refinement``); levels are block minima of it;
* the cloud is read in chunks that stay in the cache, into buffers that are used again: fresh ones cost more than the arithmetic;
* on the CPU, every core draws its share of the chunks into a buffer of its own (scattering is serial), and the minimum of all is taken.
"""

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixel_rules import PixelGrid, PixelRule
from npbgpp.render.blocks import BlockedCloud
from npbgpp.render.culling import ProjectionNumbers, visible_blocks
from npbgpp.render.lanes import MOST_LANES, in_lanes, lanes_on
from npbgpp.render.refinement import AMBIGUOUS, refined_grid

EMPTY_KEY = 2**63 - 1
_INFINITE_DEPTH_BITS = 0x7F800000
_CPU_CHUNK = 1 << 17  # points whose temporaries stay in the cache
_ACCELERATOR_CHUNK = 1 << 21


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
    targets = tuple((level.cells_per_pixel(), size) for level, size in zip(levels, sizes, strict=True))
    return [fragments_of(keys) for keys in _Canvas(grid, targets, cloud.xyz_world.device).draw(cloud, camera, near)]


def fragments_of(keys: Int[Tensor, "h w"]) -> Fragments:
    """What the keys of a level say."""
    empty = keys == EMPTY_KEY
    bits = (keys >> 32).clamp_max_(_INFINITE_DEPTH_BITS)  # empty cells hold larger bits than infinity
    return Fragments(torch.where(empty, -1, keys & 0xFFFFFFFF), bits.to(torch.int32).view(torch.float32))


class _Canvas:
    """Key buffer of one image: the refined grid with a spare row and column."""

    def __init__(self, grid: PixelGrid, targets: tuple[tuple[float, tuple[int, int]], ...], device: torch.device) -> None:
        self.grid, self.targets = grid, targets
        self.refined = refined_grid(grid, targets, device)
        rows, columns = self.refined.rows.cells + 1, self.refined.columns.cells + 1
        self.keys = _key_buffer(rows, columns, device, threading.get_ident(), 0).fill_(EMPTY_KEY)
        # row slots follow column slots in one table, so that both axes take one look-up
        row_table = self.refined.rows.table
        flags, cells = row_table & AMBIGUOUS, row_table & (AMBIGUOUS - 1)
        self.table = torch.cat([self.refined.columns.table, cells * columns + flags])
        axes = (self.refined.columns, self.refined.rows)
        self.slope = [axis.slope for axis in axes]
        self.shift = torch.tensor([axes[0].shift, axes[1].shift + len(axes[0].table)], dtype=torch.float64, device=device).float()
        self.direct = axes[0].identity and axes[1].identity

    def draw(self, cloud: BlockedCloud, camera: Cameras, near: float) -> list[Int[Tensor, "_ _"]]:
        """Keys of every level."""
        device = cloud.xyz_world.device
        projection = self.grid.projection(camera.to(device))
        inner, border = visible_blocks(cloud, projection, self.grid, near)
        numbers = ProjectionNumbers.of(projection)
        length = cloud.index.shape[1]
        at_once = max(1, (_CPU_CHUNK if device.type == "cpu" else _ACCELERATOR_CHUNK) // length)
        strokes = [(part, whole) for blocks, whole in ((inner, True), (border, False)) if len(blocks) for part in blocks.split(at_once)]

        lanes = max(1, min(lanes_on(device), len(strokes)))
        others = [_key_buffer(*self.keys.shape, device, threading.get_ident(), k).fill_(EMPTY_KEY) for k in range(1, lanes)]
        canvases = [self.keys, *others]

        def draw_lane(lane: int) -> list[tuple[Tensor, Tensor]]:
            scratch = _scratch(length, at_once, device, threading.get_ident())
            waiting = []
            for part, whole in strokes[lane::lanes]:
                waiting += self._lower(canvases[lane], *self._project(cloud, part, numbers, near, whole, scratch), scratch)
            return waiting

        ambiguous = [waiting for lane in in_lanes(draw_lane, range(lanes), device) for waiting in lane]
        for keys in others:
            torch.minimum(self.keys, keys, out=self.keys)
        self.keys[-1] = EMPTY_KEY
        self.keys[:, -1] = EMPTY_KEY
        levels = [self._level(k) for k in range(len(self.targets))]
        if ambiguous:
            xy, keys = (torch.cat(parts, -1) for parts in zip(*ambiguous, strict=True))
            for level, (scale, size) in zip(levels, self.targets, strict=True):
                self._lower_level(level, xy, keys, scale, size)
        return levels

    def _project(
        self,
        cloud: BlockedCloud,
        part: Int[Tensor, " k"],
        numbers: ProjectionNumbers,
        near: float,
        whole: bool,
        scratch: "_Scratch",
    ) -> tuple[Float[Tensor, "2 m"], Int[Tensor, " m"]]:
        """Normalised coordinates and keys of the points of some blocks that are in the image; ``whole``: all of them are."""
        world, xyw, keys, index = scratch.of(len(part))
        first, last = int(part[0]), int(part[-1]) + 1
        if last - first == len(part):  # blocks are in ascending order: a run of them needs no copy
            world, index = cloud.xyz_world[:, first:last], cloud.index[first:last]
        else:
            torch.index_select(cloud.xyz_world, 1, part, out=world)
            torch.index_select(cloud.index, 0, part, out=index)
        xy, depth = numbers.apply(world.flatten(1), xyw)
        keys.copy_(depth.view(torch.int32)).bitwise_left_shift_(32).bitwise_or_(index.view(-1))
        outside = None if whole else depth <= near
        xy.div_(depth.add_(self.grid.epsilon) if self.grid.epsilon else depth)
        if outside is None:
            return xy, keys
        kept = (self.grid.inside(xy[0], xy[1]) & ~outside).nonzero()[:, 0]
        return xy.index_select(1, kept), keys.index_select(0, kept)

    def _lower(
        self, canvas: Int[Tensor, "_ _"], xy: Float[Tensor, "2 m"], keys: Int[Tensor, " m"], scratch: "_Scratch"
    ) -> list[tuple[Tensor, Tensor]]:
        """Lowers a buffer of the refined grid by points in the image; gives back those in ambiguous slots, which wait."""
        count = xy.shape[1]
        slots = scratch.slots.view(-1)[: 2 * count].view(2, count)
        numbers = scratch.numbers.view(-1)[: 2 * count].view(2, count)
        target = scratch.targets[:count]
        if self.direct:
            for axis in range(2):
                numbers[axis].copy_(torch.mul(xy[axis], self.slope[axis], out=slots[axis]) if self.slope[axis] != 1 else xy[axis])
            target.copy_(torch.add(numbers[0], numbers[1], alpha=canvas.shape[1], out=scratch.cells[:count]))
            canvas.view(-1).scatter_reduce_(0, target, keys, "amin")
            return []
        for axis in range(2):
            torch.add(self.shift[axis], xy[axis], alpha=self.slope[axis], out=slots[axis])
        numbers.copy_(slots)
        cells = torch.index_select(self.table, 0, numbers.view(-1), out=scratch.cells.view(-1)[: 2 * count]).view(2, count)
        cell = cells[0].add_(cells[1])
        waiting = (cell >= AMBIGUOUS).nonzero()[:, 0]
        if len(waiting):
            cell.bitwise_and_(AMBIGUOUS - 1)
            # both axes ambiguous: the flags have added up to the next bit, which the mask removes as well
        target.copy_(cell)
        canvas.view(-1).scatter_reduce_(0, target, keys, "amin")
        return [(xy.index_select(1, waiting), keys.index_select(0, waiting))] if len(waiting) else []

    def _lower_level(
        self, level: Int[Tensor, "h w"], xy: Float[Tensor, "2 m"], keys: Int[Tensor, " m"], scale: float, size: tuple[int, int]
    ) -> None:
        height, width = size
        row, column = self.grid.cells(xy[0], xy[1], scale, size)
        if self.grid.overflows(scale, size):
            kept = ((row >= 0) & (row < height) & (column >= 0) & (column < width)).nonzero()[:, 0]
            row, column, keys = (t.index_select(0, kept) for t in (row, column, keys))
        # every scattered point has a cell of its own: a common dummy cell for outsiders would serialise the reduction
        level.view(-1).scatter_reduce_(0, row.mul_(width).add_(column).to(torch.int64), keys, "amin")

    def _level(self, k: int) -> Int[Tensor, "h w"]:
        """Block minima of the refined grid."""
        keys = self.keys
        for members in (self.refined.rows.members[k], self.refined.columns.members[k]):
            lowest = keys.index_select(0, members[0])
            others = torch.empty_like(lowest)
            for cells in members[1:]:
                torch.minimum(lowest, torch.index_select(keys, 0, cells, out=others), out=lowest)
            keys = lowest.t().contiguous()  # whole rows are read several times faster than columns; the second round turns it back
        return keys


class _Scratch:
    """Buffers for one chunk of points, used for every chunk."""

    def __init__(self, length: int, blocks: int, device: torch.device) -> None:
        self.length, self.blocks = length, blocks
        count = blocks * length
        self.world, self.xyw = (torch.empty(3 * count, device=device) for _ in range(2))
        self.keys, self.targets = (torch.empty(count, dtype=torch.int64, device=device) for _ in range(2))
        self.slots = torch.empty(2 * count, device=device)
        self.index = torch.empty(count, dtype=torch.int32, device=device)
        self.numbers, self.cells = (torch.empty(2 * count, dtype=torch.int32, device=device) for _ in range(2))

    def of(self, blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """World coordinates, projected ones, keys and indices of some blocks."""
        count = blocks * self.length
        world = self.world[: 3 * count].view(3, blocks, self.length)
        return world, self.xyw[: 3 * count].view(3, count), self.keys[:count], self.index[:count].view(blocks, self.length)


# Fresh memory costs the operating system more than the arithmetic on it costs us, so the buffers of the last images are kept, per thread. They outlive the
# mode they were made in: tensors made in inference mode could not be written to outside of it.
@functools.lru_cache(maxsize=2 * MOST_LANES)
@torch.inference_mode(False)
def _scratch(length: int, blocks: int, device: torch.device, thread: int) -> _Scratch:
    return _Scratch(length, blocks, device)


@functools.lru_cache(maxsize=2 * MOST_LANES)
@torch.inference_mode(False)
def _key_buffer(rows: int, columns: int, device: torch.device, thread: int, lane: int) -> Int[Tensor, "rows columns"]:
    return torch.empty(rows, columns, dtype=torch.int64, device=device)
