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

import numpy as np
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
_CPU_CHUNK = 1 << 17  # temporaries of more leave the cache; with fewer, calls cost as much as the arithmetic
_CHUNKS_PER_LANE = 4  # at least, where there are enough blocks, so that no lane is left with all the work
_ACCELERATOR_CHUNK = 1 << 21


@dataclass(frozen=True)
class Fragments:
    """What each pixel of one level sees, read from its keys when it is asked for."""

    keys: Int[Tensor, "h w"]

    @functools.cached_property
    def index(self) -> Int[Tensor, "h w"]:
        """Row of the nearest point in the cloud, -1 where the pixel is empty."""
        return (self.keys << 32).bitwise_right_shift_(32)  # the lower half, whose bits are all set in an empty key

    @functools.cached_property
    def depth(self) -> Float[Tensor, "h w"]:
        """Its depth in scene units, inf where the pixel is empty."""
        bits = (self.keys >> 32).clamp_max_(_INFINITE_DEPTH_BITS)  # empty cells hold larger bits than infinity
        return bits.to(torch.int32).view(torch.float32)


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
    return [Fragments(keys) for keys in _Canvas(grid, targets, cloud.xyz_world.device).draw(cloud, camera, near)]


class _Canvas:
    """Key buffers of one image: the refined grid, once for every lane."""

    def __init__(self, grid: PixelGrid, targets: tuple[tuple[float, tuple[int, int]], ...], device: torch.device) -> None:
        self.grid, self.targets, self.device = grid, targets, device
        self.refined = refined_grid(grid, targets, device)
        self.axes = (self.refined.columns, self.refined.rows)  # in the order of x and y
        self.tables = self.refined.tables.unbind()
        self.direct = all(axis.identity for axis in self.axes)

    def draw(self, cloud: BlockedCloud, camera: Cameras, near: float) -> list[Int[Tensor, "_ _"]]:
        """Keys of every level."""
        device, length = self.device, cloud.index.shape[1]
        numbers = ProjectionNumbers.of(self.grid.projection(camera.to(device)))
        inner, border = visible_blocks(cloud, numbers, self.grid, near)
        on_cpu = device.type == "cpu"
        most = max(1, (_CPU_CHUNK if on_cpu else _ACCELERATOR_CHUNK) // length)
        share = (len(inner) + len(border)) // (_CHUNKS_PER_LANE * lanes_on(device))
        at_once = max(1, min(most, share)) if on_cpu else most
        strokes = [(part, whole) for blocks, whole in ((inner, True), (border, False)) if len(blocks) for part in blocks.split(at_once)]
        lanes = max(1, min(lanes_on(device), len(strokes)))
        left = iter(strokes)  # shared, and no stroke is given out twice: a lane that was held up leaves more of them to the others
        thread = threading.get_ident()
        buffers = _key_buffers((lanes, *self.refined.shape), device, thread).fill_(EMPTY_KEY).unbind()

        def draw_lane(lane: int) -> list[tuple[Tensor, Tensor]]:
            scratch = _scratch(most * length, device, thread, lane)
            waiting = []
            for part, whole in left:
                points = scratch.first(len(part) * length)
                xy, keys = self._project(cloud, part, numbers, near, whole, points)
                waiting += self._lower(buffers[lane], xy, keys, points if whole else scratch.first(len(keys)))
            return waiting

        ambiguous = [waiting for lane in in_lanes(draw_lane, range(lanes), device) for waiting in lane]
        drawn, *others = buffers
        for other in others:
            torch.minimum(drawn, other, out=drawn)
        drawn[self.refined.columns.cells] = EMPTY_KEY
        drawn[:, self.refined.rows.cells] = EMPTY_KEY
        levels = self._levels(drawn)
        if ambiguous:
            xy, keys = (torch.cat(parts, -1) for parts in zip(*ambiguous, strict=True))
            for level, (scale, size) in zip(levels, self.targets, strict=True):
                self._lower_level(level, xy, keys, scale, size)
        return levels

    def _project(
        self, cloud: BlockedCloud, part: Int[Tensor, " k"], numbers: ProjectionNumbers, near: float, whole: bool, points: "_Points"
    ) -> tuple[Float[Tensor, "2 m"], Int[Tensor, " m"]]:
        """Normalised coordinates and keys of the points of some blocks that are in the image; ``whole``: all of them are."""
        first, last = int(part[0]), int(part[-1]) + 1
        if last - first == len(part):  # blocks are in ascending order: a run of them needs no copy
            world, index = cloud.xyz_world[:, first:last], cloud.index[first:last]
        else:
            world = torch.index_select(cloud.xyz_world, 1, part, out=points.world.view(3, len(part), -1))
            index = torch.index_select(cloud.index, 0, part, out=points.index.view(len(part), -1))
        numbers.apply(world.flatten(1).unbind(), points.planes)
        depth = points.planes[2]
        points.keys.copy_(points.depth_bits).bitwise_left_shift_(points.half_a_key)
        # widened in memory that is there already: "or" would take fresh one for it
        points.keys.bitwise_or_(points.targets.copy_(index.view(-1)))
        outside = None if whole else depth <= near
        points.xy.div_(depth.add_(self.grid.epsilon) if self.grid.epsilon else depth)
        if outside is None:
            return points.xy, points.keys
        kept = (self.grid.inside(points.xy[0], points.xy[1]) & ~outside).nonzero()[:, 0]
        return points.xy.index_select(1, kept), points.keys.index_select(0, kept)

    def _lower(
        self, buffer: Int[Tensor, "_ _"], xy: Float[Tensor, "2 m"], keys: Int[Tensor, " m"], points: "_Points"
    ) -> list[tuple[Tensor, Tensor]]:
        """Lowers a buffer by points in the image; gives back those in ambiguous slots, which wait."""
        for axis, x, slot in zip(self.axes, xy.unbind(), points.slots.unbind(), strict=True):
            torch.add(axis.shift, x, alpha=axis.slope, out=slot)
        (column, row), (cell, place) = points.numbers.copy_(points.slots).unbind(), points.cells.unbind()
        if self.direct:
            torch.add(row, column, alpha=self.refined.shape[1], out=cell)
            buffer.view(-1).scatter_reduce_(0, points.targets.copy_(cell), keys, "amin")
            return []
        for table, number, out in zip(self.tables, (column, row), (cell, place), strict=True):
            torch.index_select(table, 0, number, out=out)
        cell.add_(place)
        waiting = _where_at_least(cell, AMBIGUOUS)
        if len(waiting):
            cell.bitwise_and_(AMBIGUOUS - 1)
            # both axes ambiguous: the flags have added up to the next bit, which the mask removes as well
        buffer.view(-1).scatter_reduce_(0, points.targets.copy_(cell), keys, "amin")
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

    def _levels(self, drawn: Int[Tensor, "columns rows"]) -> list[Int[Tensor, "h w"]]:
        """Block minima of the refined grid."""
        columns, rows, finest = self.refined.columns, self.refined.rows, self.refined.finest
        first = _block_minima(drawn, columns.members[finest], rows.members[finest])
        if len(self.targets) == 1:
            return [first]
        rest = _block_minima(drawn, columns.rest, rows.rest)
        height, width = rest.shape
        refined = rest.new_full((width + 1, height + 2), EMPTY_KEY)  # laid out like the buffer that it comes from
        refined[:width, :height] = rest.t()
        return [
            first if k == finest else _block_minima(refined, of_columns, of_rows)
            for k, (of_columns, of_rows) in enumerate(zip(columns.members, rows.members, strict=True))
        ]


def _block_minima(keys: Int[Tensor, "columns rows"], columns: Int[Tensor, "_ w"], rows: Int[Tensor, "_ h"]) -> Int[Tensor, "h w"]:
    """Minima of blocks given by their columns and rows."""
    return _lowest(_lowest(keys, columns)[:, :-1].t().contiguous(), rows)


def _lowest(keys: Int[Tensor, "_ n"], members: Int[Tensor, "longest m"]) -> Int[Tensor, "m n"]:
    """Minima of rows."""
    lowest = keys.index_select(0, members[0])
    others = torch.empty_like(lowest)
    for rows in members[1:]:
        torch.minimum(lowest, torch.index_select(keys, 0, rows, out=others), out=lowest)
    return lowest


def _where_at_least(values: Int[Tensor, " m"], least: int) -> Int[Tensor, " k"]:
    """Positions of the values that are not below ``least``. NumPy finds them three times as fast."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(values.numpy() >= least))
    return (values >= least).nonzero()[:, 0]


class _Points:
    """The first m points of the buffers of a chunk."""

    def __init__(self, scratch: "_Scratch", m: int) -> None:
        self.m, self.half_a_key = m, scratch.half_a_key
        self.world, xyd = (buffer[: 3 * m].view(3, m) for buffer in (scratch.world, scratch.xyd))
        self.planes, self.xy, self.depth_bits = xyd.unbind(), xyd[:2], xyd[2].view(torch.int32)
        self.index, self.keys, self.targets = (buffer[:m] for buffer in (scratch.index, scratch.keys, scratch.targets))
        self.slots, self.numbers, self.cells = (buffer[: 2 * m].view(2, m) for buffer in (scratch.slots, scratch.numbers, scratch.cells))


class _Scratch:
    """Buffers for one chunk of points, used for every chunk of a lane."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.world, self.xyd = (torch.empty(3 * count, device=device) for _ in range(2))
        self.keys, self.targets = (torch.empty(count, dtype=torch.int64, device=device) for _ in range(2))
        self.slots = torch.empty(2 * count, device=device)
        self.index = torch.empty(count, dtype=torch.int32, device=device)
        self.numbers, self.cells = (torch.empty(2 * count, dtype=torch.int32, device=device) for _ in range(2))
        self.half_a_key = torch.tensor(32, device=device)  # a plain number would become a tensor at every use
        self._points = _Points(self, count)

    def first(self, m: int) -> _Points:
        """Some points. Those of the last call are kept: almost all chunks are equally long, and a view costs as much as arithmetic on a thousand points."""
        if m != self._points.m:
            self._points = _Points(self, m)
        return self._points


# Fresh memory costs the operating system more than the arithmetic on it costs us, so the buffers of the last images are kept, per thread. They outlive the
# mode they were made in: tensors made in inference mode could not be written to outside of it.
@functools.lru_cache(maxsize=2 * MOST_LANES)
@torch.inference_mode(False)
def _scratch(count: int, device: torch.device, thread: int, lane: int) -> _Scratch:
    return _Scratch(count, device)


@functools.lru_cache(maxsize=2)
@torch.inference_mode(False)
def _key_buffers(shape: tuple[int, int, int], device: torch.device, thread: int) -> Int[Tensor, "lanes columns rows"]:
    return torch.empty(shape, dtype=torch.int64, device=device)
