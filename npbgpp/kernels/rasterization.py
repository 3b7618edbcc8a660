"""Point rasterization: the nearest point of every pixel at several scales.

Keys are 64 bits, depth bits above the point index, so that one scattered minimum finds both and the lowest index wins ties. All levels are rendered in one
pass: points are drawn into the common refinement of the grids of all levels, and every level is a block minimum of that buffer.

Along each axis the cell borders of all levels cut the image into intervals, the refined cells. A table over many equal slots maps a coordinate to its
interval without a search. Points in *ambiguous* slots (a few percent), which contain a border or lie within rounding of one, are drawn into each level
separately. Where levels nest, the refined grid is the finest level and no slot is ambiguous.

Symbols: a coordinate x of ``npbgpp.geometry.pixels`` becomes ``slot = trunc(x * slope + shift)``.
"""

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.geometry import Cameras, PixelConvention, PixelGrid, ProjectionSettings
from npbgpp.kernels.chunks import ChunkedCloud, ElementwiseProjection, visible_chunks
from npbgpp.kernels.threads import MAX_THREADS, map_in_threads, thread_count

_SLOTS = 1 << 18  # per axis: small enough for the cache, large enough that few slots are ambiguous
AMBIGUOUS = 1 << 29  # flag in the tables of a grid; the other bits then point to the spare row or column


@dataclass(frozen=True)
class RefinedAxis:
    """One axis of the refined grid.

    Attributes:
        slope: see the module docstring.
        shift: see the module docstring.
        table: refined cell of each slot; the spare cell for ambiguous slots.
        identity: slots equal cells (nested levels), so that the table is not needed.
        cells: number of refined cells; one spare cell follows them.
        rest: refined cells of each cell of the common refinement of all levels but the finest, (longest, cells), padded by repetition or the spare cell.
        members: per level, the same for each of its cells: refined cells for the finest level, cells of ``rest`` for the others.
    """

    slope: float
    shift: Float[Tensor, ""]
    table: Int[Tensor, " slots"]
    identity: bool
    cells: int
    rest: Int[Tensor, "_ _"]
    members: tuple[Int[Tensor, "_ _"], ...]


@dataclass(frozen=True)
class RefinedGrid:
    """Both axes and the layout of the key buffer.

    The buffer is column-major, since levels are reduced over columns first. The finest level is reduced from the buffer, the others from its reduction to
    ``rest``, which has a quarter of the cells.

    Attributes:
        columns: axis of x.
        rows: axis of y.
        finest: index of the finest level.
        shape: of the buffer: a spare column, and two spare rows; the second is unused, but lets PyTorch transpose in parallel.
        tables: for x and y, the offset in the buffer of the refined cell of each slot, plus AMBIGUOUS for ambiguous slots.
    """

    columns: RefinedAxis
    rows: RefinedAxis
    finest: int
    shape: tuple[int, int]
    tables: Int[Tensor, "2 slots"]


@functools.lru_cache(maxsize=64)
def refined_grid(grid: PixelGrid, levels: tuple[tuple[float, tuple[int, int]], ...], device: torch.device) -> RefinedGrid:
    """The common refinement of levels given as (cells per full-resolution pixel, (height, width)). Depends on sizes only, hence cached."""
    finest = max(range(len(levels)), key=lambda k: levels[k][1])
    rows, columns = (_refine(grid, [(scale, size, size[axis]) for scale, size in levels], axis, finest, device) for axis in range(2))
    shape = (columns.cells + 1, rows.cells + 2)
    tables = torch.zeros(2, max(len(columns.table), len(rows.table)), dtype=torch.int32, device=device)
    for table, axis, stride in zip(tables, (columns, rows), (shape[1], 1), strict=True):
        table[: len(axis.table)] = axis.table * stride + AMBIGUOUS * (axis.table == axis.cells)
    return RefinedGrid(columns, rows, finest, shape, tables)


def _refine(grid: PixelGrid, levels: list[tuple[float, tuple[int, int], int]], axis: int, finest: int, device: torch.device) -> RefinedAxis:
    finest_scale, finest_size, count = max(levels, key=lambda level: level[2])
    nested = False
    if grid.convention is PixelConvention.EXACT:
        # x counts pixels; the borders of a level, its far edge included, lie at multiples of 1 / scale
        borders = torch.cat([torch.arange(1, n + 1, dtype=torch.float64) / scale * finest_scale for scale, _, n in levels])
        nested = bool((borders == borders.round()).all())
        per_cell = 1 if nested else max(8, _SLOTS // count)
        slope, shift = finest_scale * per_cell, 0.0 if nested else 0.5
    else:
        half, middle = (min(finest_size) - 1) / 2, (count - 1) / 2
        per_cell = max(8, _SLOTS // count)
        slope, shift = -half * per_cell, (middle + 0.5) * per_cell + 0.5
        borders = torch.cat([_borders_of_authors(size, n) for _, size, n in levels]) * -half + middle + 0.5
    borders = borders.sort().values * per_cell
    lower = torch.arange(count * per_cell + 2, dtype=torch.float64) - (0.0 if nested else 0.5)
    # At least twice the float32 rounding error of a slot number: half a unit in the last place each for the product, its factors, the shift and the sum,
    # about 4e-7 of the number in all. For nested levels the arithmetic is exact.
    slack = 0.0 if nested else 0.02 + 8e-7 * len(lower)
    before = torch.searchsorted(borders, lower - slack, right=nested)
    clear = torch.searchsorted(borders, lower + 1 + slack) == before
    labels, cell_of_clear = torch.unique_consecutive(before[clear], return_inverse=True)
    cells = len(labels)
    table = torch.full((len(lower),), cells, dtype=torch.int32)
    table[clear] = cell_of_clear.to(torch.int32)
    first_slot = torch.full((cells,), len(lower)).scatter_reduce_(0, cell_of_clear, clear.nonzero()[:, 0], "amin")
    x = ((first_slot + 0.5 - shift) / slope if slope else torch.zeros(cells)).double()
    cell_of_level = torch.stack([grid.cells(x, x, scale, size)[axis].long() for scale, size, _ in levels])
    others = torch.arange(len(levels)) != finest
    begins = torch.cat([torch.ones(min(1, cells), dtype=torch.bool), (cell_of_level[others].diff(dim=1) != 0).any(0)])
    rest_cell = begins.cumsum(0) - 1
    members = tuple(
        _members(cell if k == finest else cell[begins], size).to(device)
        for k, (cell, (_, _, size)) in enumerate(zip(cell_of_level, levels, strict=True))
    )
    rest = _members(rest_cell, int(begins.sum())).to(device)
    # points in the image lie at most one slot beyond the far edge of the level
    identity = torch.equal(table[:-1], torch.arange(len(table) - 1, dtype=torch.int32)) and shift == 0
    return RefinedAxis(slope, torch.tensor(shift, dtype=torch.float32, device=device), table.to(device), identity, cells, rest, members)


def _borders_of_authors(size: tuple[int, int], count: int) -> Float[Tensor, " k"]:
    """x at the cell borders of a level and at its far edge; empty for a level one cell wide."""
    half = (min(size) - 1) / 2
    if half == 0:
        return torch.zeros(0, dtype=torch.float64)
    return ((count - 1) / 2 - (torch.arange(1, count + 1, dtype=torch.float64) - 0.5 + 1e-6)) / half


def _members(block: Int[Tensor, " n"], blocks: int) -> Int[Tensor, "longest blocks"]:
    """Cells of each block from the block of each cell, in ascending order; block numbers out of range are ignored."""
    spare = len(block)
    number = ((block >= 0) & (block < blocks)).nonzero()[:, 0]
    lengths = torch.bincount(block[number], minlength=blocks)
    starts = lengths.cumsum(0) - lengths
    # padded with the last cell, which does not change a minimum; only empty blocks read the spare cell
    places = starts + torch.arange(max(1, int(lengths.max())))[:, None].minimum((lengths - 1).clamp_min(0))
    return torch.where(lengths > 0, torch.cat([number, number.new_zeros(1)])[places], spare)


# ----------------------------------------------------------------------
# Rasterization


EMPTY_KEY = 2**63 - 1
_INFINITE_DEPTH_BITS = 0x7F800000
_CPU_BATCH = 1 << 17  # points: more leave the cache, with fewer the overhead of calls dominates
_BATCHES_PER_THREAD = 4  # at least, where there are enough chunks, to balance the load
_ACCELERATOR_BATCH = 1 << 21


@dataclass(frozen=True)
class Fragments:
    """Nearest point of each pixel of one level, decoded from its keys on first access."""

    keys: Int[Tensor, "h w"]

    @functools.cached_property
    def index(self) -> Int[Tensor, "h w"]:
        """Row of the nearest point in the cloud, -1 for empty pixels."""
        return (self.keys << 32).bitwise_right_shift_(32)  # all lower bits of an empty key are set

    @functools.cached_property
    def depth(self) -> Float[Tensor, "h w"]:
        """Depth in scene units, inf for empty pixels."""
        bits = (self.keys >> 32).clamp_max_(_INFINITE_DEPTH_BITS)  # the upper bits of an empty key exceed those of infinity
        return bits.to(torch.int32).view(torch.float32)


@dataclass(frozen=True)
class Level:
    """One raster of a pyramid: the image at ``scale``, with ``supersampling`` x ``supersampling`` cells per pixel."""

    scale: float
    supersampling: int = 1

    def cells_per_pixel(self) -> float:
        """Cells along one side of a full-resolution pixel."""
        return self.scale * self.supersampling


def rasterize(cloud: ChunkedCloud, camera: Cameras, levels: Sequence[Level], projection: ProjectionSettings) -> list[Fragments]:
    """Nearest point of every pixel, for one camera and one cloud.

    Args:
        cloud: the points, on the device to render on.
        camera: one camera.
        levels: rasters to render.
        projection: near plane, at least 0, and pixel convention.

    Returns:
        One Fragments per level, of ``int(scale * size) * supersampling`` cells.

    Raises:
        ValueError: not exactly one camera, a level without cells, or near < 0 (the bits of negative depths do not sort).
    """
    if len(camera) != 1:
        raise ValueError(f"rasterize: expected one camera, got {len(camera)}")
    if projection.near < 0:
        raise ValueError(f"rasterize: expected near >= 0, got {projection.near}")
    grid = projection.grid(camera.image_size)
    sizes = [grid.level_size(level.scale, level.supersampling) for level in levels]
    for level, size in zip(levels, sizes, strict=True):
        if min(size) < 1:
            raise ValueError(f"rasterize: image of {camera.image_size} pixels has no cell at scale {level.scale}")
    targets = tuple((level.cells_per_pixel(), size) for level, size in zip(levels, sizes, strict=True))
    return [Fragments(keys) for keys in _Canvas(grid, targets, cloud.xyz_world.device).draw(cloud, camera, projection.near)]


class _Canvas:
    """Key buffers of one image: the refined grid, once per worker thread."""

    def __init__(self, grid: PixelGrid, targets: tuple[tuple[float, tuple[int, int]], ...], device: torch.device) -> None:
        self.grid, self.targets, self.device = grid, targets, device
        self.refined = refined_grid(grid, targets, device)
        self.axes = (self.refined.columns, self.refined.rows)  # in the order of x and y
        self.tables = self.refined.tables.unbind()
        self.direct = all(axis.identity for axis in self.axes)

    def draw(self, cloud: ChunkedCloud, camera: Cameras, near: float) -> list[Int[Tensor, "_ _"]]:
        """Keys of every level."""
        device, length = self.device, cloud.index.shape[1]
        projection = ElementwiseProjection.of(self.grid.projection(camera.to(device)))
        inside, border = visible_chunks(cloud, projection, self.grid, near)
        on_cpu = device.type == "cpu"
        largest = max(1, (_CPU_BATCH if on_cpu else _ACCELERATOR_BATCH) // length)
        balanced = (len(inside) + len(border)) // (_BATCHES_PER_THREAD * thread_count(device))
        batch_size = max(1, min(largest, balanced)) if on_cpu else largest
        batches = [
            (batch, whole) for chunks, whole in ((inside, True), (border, False)) if len(chunks) for batch in chunks.split(batch_size)
        ]
        workers = max(1, min(thread_count(device), len(batches)))
        queue = iter(batches)  # shared by all workers
        thread = threading.get_ident()
        buffers = _key_buffers((workers, *self.refined.shape), device, thread).fill_(EMPTY_KEY).unbind()

        def work(worker: int) -> list[tuple[Tensor, Tensor]]:
            scratch = _scratch(largest * length, device, thread, worker)
            ambiguous = []
            for batch, whole in queue:
                points = scratch.first(len(batch) * length)
                xy, keys = self._project(cloud, batch, projection, near, whole, points)
                ambiguous += self._scatter(buffers[worker], xy, keys, points if whole else scratch.first(len(keys)))
            return ambiguous

        ambiguous = [pair for pairs in map_in_threads(work, range(workers), device) for pair in pairs]
        drawn, *others = buffers
        for other in others:
            torch.minimum(drawn, other, out=drawn)
        drawn[self.refined.columns.cells] = EMPTY_KEY
        drawn[:, self.refined.rows.cells] = EMPTY_KEY
        levels = self._levels(drawn)
        if ambiguous:
            xy, keys = (torch.cat(parts, -1) for parts in zip(*ambiguous, strict=True))
            for level, (scale, size) in zip(levels, self.targets, strict=True):
                self._scatter_level(level, xy, keys, scale, size)
        return levels

    def _project(
        self, cloud: ChunkedCloud, batch: Int[Tensor, " k"], projection: ElementwiseProjection, near: float, whole: bool, points: "_Points"
    ) -> tuple[Float[Tensor, "2 m"], Int[Tensor, " m"]]:
        """Normalised coordinates and keys of the points of some chunks that lie in the image; ``whole``: all of them do."""
        first, last = int(batch[0]), int(batch[-1]) + 1
        if last - first == len(batch):  # consecutive chunks need no copy
            world, index = cloud.xyz_world[:, first:last], cloud.index[first:last]
        else:
            world = torch.index_select(cloud.xyz_world, 1, batch, out=points.world.view(3, len(batch), -1))
            index = torch.index_select(cloud.index, 0, batch, out=points.index.view(len(batch), -1))
        projection.apply(world.flatten(1).unbind(), points.planes)
        depth = points.planes[2]
        points.keys.copy_(points.depth_bits).bitwise_left_shift_(points.half_a_key)
        # widened in an existing buffer: the bitwise or would allocate one
        points.keys.bitwise_or_(points.targets.copy_(index.view(-1)))
        outside = None if whole else depth <= near
        points.xy.div_(depth.add_(self.grid.epsilon) if self.grid.epsilon else depth)
        if outside is None:
            return points.xy, points.keys
        kept = (self.grid.inside(points.xy[0], points.xy[1]) & ~outside).nonzero()[:, 0]
        return points.xy.index_select(1, kept), points.keys.index_select(0, kept)

    def _scatter(
        self, buffer: Int[Tensor, "_ _"], xy: Float[Tensor, "2 m"], keys: Int[Tensor, " m"], points: "_Points"
    ) -> list[tuple[Tensor, Tensor]]:
        """Scatters points in the image into the refined grid; returns (xy, keys) of those in ambiguous slots."""
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
        ambiguous = _where_at_least(cell, AMBIGUOUS)
        if len(ambiguous):
            cell.bitwise_and_(AMBIGUOUS - 1)  # also removes the sum of both flags
        buffer.view(-1).scatter_reduce_(0, points.targets.copy_(cell), keys, "amin")
        return [(xy.index_select(1, ambiguous), keys.index_select(0, ambiguous))] if len(ambiguous) else []

    def _scatter_level(
        self, level: Int[Tensor, "h w"], xy: Float[Tensor, "2 m"], keys: Int[Tensor, " m"], scale: float, size: tuple[int, int]
    ) -> None:
        height, width = size
        row, column = self.grid.cells(xy[0], xy[1], scale, size)
        if self.grid.overflows(scale, size):
            kept = ((row >= 0) & (row < height) & (column >= 0) & (column < width)).nonzero()[:, 0]
            row, column, keys = (t.index_select(0, kept) for t in (row, column, keys))
        # points outside are removed: scattering them to one dummy cell would serialise the reduction
        level.view(-1).scatter_reduce_(0, row.mul_(width).add_(column).to(torch.int64), keys, "amin")

    def _levels(self, drawn: Int[Tensor, "columns rows"]) -> list[Int[Tensor, "h w"]]:
        """Block minima of the refined grid."""
        columns, rows, finest = self.refined.columns, self.refined.rows, self.refined.finest
        first = _block_minima(drawn, columns.members[finest], rows.members[finest])
        if len(self.targets) == 1:
            return [first]
        rest = _block_minima(drawn, columns.rest, rows.rest)
        height, width = rest.shape
        refined = rest.new_full((width + 1, height + 2), EMPTY_KEY)  # same layout as the buffer
        refined[:width, :height] = rest.t()
        return [
            first if k == finest else _block_minima(refined, of_columns, of_rows)
            for k, (of_columns, of_rows) in enumerate(zip(columns.members, rows.members, strict=True))
        ]


def _block_minima(keys: Int[Tensor, "columns rows"], columns: Int[Tensor, "_ w"], rows: Int[Tensor, "_ h"]) -> Int[Tensor, "h w"]:
    """Minima of blocks given by their columns and rows."""
    return _row_minima(_row_minima(keys, columns)[:, :-1].t().contiguous(), rows)


def _row_minima(keys: Int[Tensor, "_ n"], members: Int[Tensor, "longest m"]) -> Int[Tensor, "m n"]:
    """Minima over groups of rows."""
    lowest = keys.index_select(0, members[0])
    others = torch.empty_like(lowest)
    for rows in members[1:]:
        torch.minimum(lowest, torch.index_select(keys, 0, rows, out=others), out=lowest)
    return lowest


def _where_at_least(values: Int[Tensor, " m"], least: int) -> Int[Tensor, " k"]:
    """Positions of values of at least ``least``; NumPy is three times as fast as torch on a CPU."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(values.numpy() >= least))
    return (values >= least).nonzero()[:, 0]


class _Points:
    """Views of the first m points of the scratch buffers."""

    def __init__(self, scratch: "_Scratch", m: int) -> None:
        self.m, self.half_a_key = m, scratch.half_a_key
        self.world, xyd = (buffer[: 3 * m].view(3, m) for buffer in (scratch.world, scratch.xyd))
        self.planes, self.xy, self.depth_bits = xyd.unbind(), xyd[:2], xyd[2].view(torch.int32)
        self.index, self.keys, self.targets = (buffer[:m] for buffer in (scratch.index, scratch.keys, scratch.targets))
        self.slots, self.numbers, self.cells = (buffer[: 2 * m].view(2, m) for buffer in (scratch.slots, scratch.numbers, scratch.cells))


class _Scratch:
    """Buffers for one batch of points, reused for every batch of a worker thread."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.world, self.xyd = (torch.empty(3 * count, device=device) for _ in range(2))
        self.keys, self.targets = (torch.empty(count, dtype=torch.int64, device=device) for _ in range(2))
        self.slots = torch.empty(2 * count, device=device)
        self.index = torch.empty(count, dtype=torch.int32, device=device)
        self.numbers, self.cells = (torch.empty(2 * count, dtype=torch.int32, device=device) for _ in range(2))
        self.half_a_key = torch.tensor(32, device=device)  # PyTorch would convert an int at every use
        self._points = _Points(self, count)

    def first(self, m: int) -> _Points:
        """Views of the first m points, cached for the last m: creating them costs as much as the arithmetic on a thousand points."""
        if m != self._points.m:
            self._points = _Points(self, m)
        return self._points


# Allocating memory costs more than the arithmetic on it, so buffers are kept per thread. They are created outside of inference mode, since tensors created in
# it could not be written to elsewhere.
@functools.lru_cache(maxsize=2 * MAX_THREADS)
@torch.inference_mode(False)
def _scratch(count: int, device: torch.device, thread: int, worker: int) -> _Scratch:
    return _Scratch(count, device)


@functools.lru_cache(maxsize=2)
@torch.inference_mode(False)
def _key_buffers(shape: tuple[int, int, int], device: torch.device, thread: int) -> Int[Tensor, "workers columns rows"]:
    return torch.empty(shape, dtype=torch.int64, device=device)
