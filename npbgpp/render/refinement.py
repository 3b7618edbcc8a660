"""One grid that refines the grids of all levels, so that a point is drawn once and every level is a block minimum of the same buffer.

Along each axis the cell borders of all levels cut the image into intervals, the refined cells. To find the interval of a coordinate without a search, the
axis is cut into many equal slots with a table from slot to interval. A slot that holds a border, or is nearer to one than rounding can move a point, is
*ambiguous*: its points (a few percent) are drawn into each level on their own. Where levels nest, the refined grid is the finest level and no slot is
ambiguous.

Symbols: a coordinate x of ``npbgpp.geometry.pixel_rules`` becomes ``slot = trunc(x * slope + shift)``.
"""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.geometry.pixel_rules import PixelGrid, PixelRule

_SLOTS = 1 << 18  # per axis: tables stay in the cache, and a border makes few of them ambiguous
AMBIGUOUS = 1 << 29  # flag in the tables of a grid; the rest of the entry is then a place in the spare row or column


@dataclass(frozen=True)
class RefinedAxis:
    """One axis of the refined grid.

    Attributes:
        slope: see the module docstring.
        shift: see the module docstring.
        table: refined cell of each slot, the spare one where the slot is ambiguous.
        identity: the slot is the cell, so that no point has to ask the table. So it is where levels nest.
        cells: number of refined cells; one spare cell follows them.
        rest: refined cells of each cell of the common refinement of all levels but the finest.
        members: per level, of each of its cells: the refined cells for the finest level, cells of the rest for the others.

    Both are (longest block, cells): some are there twice where there are fewer, the spare one where there is none.
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
    """Columns and rows, and the buffer that they are drawn into.

    Columns lie one after the other in the buffer, because a level needs whole ones first and its own rows last. The finest level is read from the buffer;
    the others from the buffer of the rest, which has a quarter of the cells.

    Attributes:
        columns: the axis of x.
        rows: the axis of y.
        finest: which level it is.
        shape: of the buffer: a spare column, and two spare places in every column: the second is never used, but makes PyTorch transpose in parallel.
        tables: of x and y, where the refined cell of each slot begins in the buffer; AMBIGUOUS is added where the slot is.
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
    if grid.rule is PixelRule.EXACT:
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
    # At least twice what float32 can move a slot number: half a unit in the last place each for the product, its factors, the shift and the sum, about
    # 4e-7 of the number in all. Where levels nest the arithmetic is exact.
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
    # points in the image reach the slot beyond the far edge of the level at most
    identity = torch.equal(table[:-1], torch.arange(len(table) - 1, dtype=torch.int32)) and shift == 0
    return RefinedAxis(slope, torch.tensor(shift, dtype=torch.float32, device=device), table.to(device), identity, cells, rest, members)


def _borders_of_authors(size: tuple[int, int], count: int) -> Float[Tensor, " k"]:
    """x at the borders between the cells of a level and at its far edge; none where the level is one cell wide."""
    half = (min(size) - 1) / 2
    if half == 0:
        return torch.zeros(0, dtype=torch.float64)
    return ((count - 1) / 2 - (torch.arange(1, count + 1, dtype=torch.float64) - 0.5 + 1e-6)) / half


def _members(block: Int[Tensor, " n"], blocks: int) -> Int[Tensor, "longest blocks"]:
    """Cells of each block, from the block of each cell, in ascending order; cells of other blocks are in none."""
    spare = len(block)
    number = ((block >= 0) & (block < blocks)).nonzero()[:, 0]
    lengths = torch.bincount(block[number], minlength=blocks)
    starts = lengths.cumsum(0) - lengths
    # the last one again where there are fewer: a minimum does not change, and no block reads the spare cell unless it must
    places = starts + torch.arange(max(1, int(lengths.max())))[:, None].minimum((lengths - 1).clamp_min(0))
    return torch.where(lengths > 0, torch.cat([number, number.new_zeros(1)])[places], spare)
