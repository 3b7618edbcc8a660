"""Point rasterization: the nearest point of every pixel at several scales, and the features of these points.

Keys are 64 bits, depth bits above the point index, so that one minimum finds both and the lowest index wins ties. The CPU kernel projects the points of the
visible chunks of a cloud once, and compares every point with the key of its cell in every level; threads draw into buffers of their own, which are merged.
With the exact convention, cells of a level whose scale is a power of two are minima of blocks of cells of a finer one, so that only the finest is drawn.

Symbols: k chunks of p points, m rows of a table of features, c channels.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

from npbgpp.geometry import Cameras, PixelConvention, PixelGrid, Projection, ProjectionSettings
from npbgpp.kernels.backend import CudaModule, backend, fma, kernel, run_threads, spans, thread_count

# ----------------------------------------------------------------------
# Clouds in spatially compact chunks.
#
# Built once per scene: points are sorted along a Morton curve (Morton 1966) and split into chunks of equal length with bounding boxes, so that a view projects
# only the chunks it can see.


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


# ----------------------------------------------------------------------
# Projection and frustum culling of chunks on the CPU, shared by the kernels that draw points


OUTSIDE, BORDER, INSIDE = 0, 1, 2

# positions in the array of ``projection_numbers``
_MATRIX, _OFFSET, _SCALE, _SHIFT, _EPSILON, _NEAR, _LOW, _HIGH, _MARGIN = 0, 9, 12, 14, 16, 17, 18, 20, 22


def projection_numbers(projection: Projection, grid: PixelGrid, near: float) -> np.ndarray:
    """The numbers of one camera that the kernels read, float32: see the positions above. Points lie in the image between ``low`` and ``high``, both included."""
    numbers = np.zeros(24, dtype=np.float32)
    numbers[_MATRIX:_OFFSET] = projection.matrix[0].cpu().flatten().numpy()
    numbers[_OFFSET:_SCALE] = projection.offset[0].cpu().numpy()
    numbers[_SCALE:_SHIFT] = 1.0 if projection.scale is None else projection.scale[0].cpu().numpy()
    numbers[_SHIFT:_EPSILON] = 0.0 if projection.shift is None else projection.shift[0].cpu().numpy()
    numbers[_EPSILON], numbers[_NEAR] = projection.epsilon, near
    low, high = grid.closed_extent()
    numbers[_LOW:_HIGH], numbers[_HIGH:_MARGIN] = low, high
    numbers[_MARGIN:] = [1e-3 * (last - first) for first, last in zip(low, high, strict=True)]
    return numbers


@kernel()
def homogeneous(px, py, pz, numbers):
    """x times depth, y times depth, and depth, rounded like PyTorch's sums with a factor (``add`` with ``alpha``)."""
    x = fma(pz, numbers[6], fma(py, numbers[3], px * numbers[0])) + numbers[9]
    y = fma(pz, numbers[7], fma(py, numbers[4], px * numbers[1])) + numbers[10]
    depth = fma(pz, numbers[8], fma(py, numbers[5], px * numbers[2])) + numbers[11]
    return fma(depth, numbers[14], x * numbers[12]), fma(depth, numbers[15], y * numbers[13]), depth


@kernel()
def chunk_state(corners, chunk, numbers, radius):
    """OUTSIDE, BORDER or INSIDE: where a chunk lies in the view frustum, for points drawn with a radius in normalised coordinates.

    Errs on the side of BORDER by more than the rounding errors of corners and points.
    """
    largest_x = largest_y = largest_z = np.float32(0)
    nearest, furthest = np.float32(np.inf), np.float32(-np.inf)
    low_x = low_y = np.float32(np.inf)
    high_x = high_y = np.float32(-np.inf)
    total = np.float32(0)
    for k in range(8):
        px, py, pz = corners[0, k, chunk], corners[1, k, chunk], corners[2, k, chunk]
        largest_x, largest_y, largest_z = max(largest_x, abs(px)), max(largest_y, abs(py)), max(largest_z, abs(pz))
        total += abs(px) + abs(py) + abs(pz)
        x, y, depth = homogeneous(px, py, pz, numbers)
        nearest, furthest = min(nearest, depth), max(furthest, depth)
        x, y = x / (depth + numbers[16]), y / (depth + numbers[16])
        low_x, high_x, low_y, high_y = min(low_x, x), max(high_x, x), min(low_y, y), max(high_y, y)
    rounding = np.float32(4e-7) * (
        largest_x * abs(numbers[2]) + largest_y * abs(numbers[5]) + largest_z * abs(numbers[8]) + abs(numbers[11])
    )
    near = numbers[17]
    if not total < np.float32(np.inf):
        return 1  # a box with non-finite corners says nothing
    if not furthest + rounding > near:
        return 0
    if not nearest - rounding > near:
        return 1  # projected corners bound the points only if the whole chunk lies in front of the camera
    low_x, high_x, low_y, high_y = low_x - radius, high_x + radius, low_y - radius, high_y + radius
    margin_x, margin_y = numbers[22], numbers[23]
    if (
        high_x < numbers[18] - margin_x
        or low_x > numbers[20] + margin_x
        or high_y < numbers[19] - margin_y
        or low_y > numbers[21] + margin_y
    ):
        return 0
    if (
        low_x >= numbers[18] + margin_x
        and high_x <= numbers[20] - margin_x
        and low_y >= numbers[19] + margin_y
        and high_y <= numbers[21] - margin_y
    ):
        return 2
    return 1


# ----------------------------------------------------------------------
# Rasterization


EMPTY_KEY = 2**63 - 1
_INFINITE_DEPTH_BITS = 0x7F800000


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


@dataclass(frozen=True)
class _Target:
    """A level to draw: cells per full-resolution pixel, and (height, width) in cells."""

    scale: float
    size: tuple[int, int]


def rasterize(cloud: ChunkedCloud, camera: Cameras, levels: Sequence[Level], projection: ProjectionSettings) -> list[Fragments]:
    """Nearest point of every pixel, for one camera and one cloud. Ties in depth go to the lowest index.

    Args:
        cloud: the points, on the device to render on; points with non-finite coordinates are never drawn.
        camera: one camera.
        levels: rasters to render.
        projection: near plane, at least 0, and pixel convention; points at depth <= near are culled.

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
    targets = [_Target(level.cells_per_pixel(), size) for level, size in zip(levels, sizes, strict=True)]
    device = cloud.xyz_world.device
    chosen = backend(device)
    if chosen == "numba":
        draw = _draw_numba
    elif chosen == "cuda" and _CUDA.usable(device):
        draw = _draw_cuda
    else:
        draw = _draw_torch
    return [Fragments(keys) for keys in draw(cloud, camera.to(device), grid, targets, projection.near)]


# ----------------------------------------------------------------------
# Reference


def _draw_torch(cloud: ChunkedCloud, camera: Cameras, grid: PixelGrid, targets: Sequence[_Target], near: float) -> list[Int[Tensor, "_ _"]]:
    """Plain PyTorch: every point of the cloud, one scattered minimum per level."""
    xyz_world, rows = cloud.xyz_world.flatten(1).t(), cloud.index.flatten().long()
    x, y, depth = grid.normalise(camera, xyz_world)[0].unbind(-1)
    seen = grid.inside(x, y) & (depth > near)
    x, y, depth, rows = x[seen], y[seen], depth[seen].contiguous(), rows[seen]
    keys = (depth.view(torch.int32).long() << 32) | rows
    drawn = []
    for target in targets:
        height, width = target.size
        row, column = grid.cells(x, y, target.scale, target.size)
        kept = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        cell = row[kept].long() * width + column[kept]
        nearest = torch.full((height * width,), EMPTY_KEY, dtype=torch.int64, device=keys.device)
        drawn.append(nearest.scatter_reduce_(0, cell, keys[kept], "amin").view(height, width))
    return drawn


# ----------------------------------------------------------------------
# CPU

_POINTS_PER_TASK = 1 << 17  # work that a thread takes at a time
_POINTS_PER_THREAD = 1 << 16  # at least: a buffer per thread must be filled and merged


def _sources(convention: PixelConvention, targets: Sequence[_Target]) -> dict[int, int]:
    """For every target, from fine to coarse, the target whose cells it reduces, or itself if it must be drawn.

    Levels of the exact convention nest where both scales are powers of two: scaling by them does not round.
    """
    sources: dict[int, int] = {}
    for k in sorted(range(len(targets)), key=lambda k: -targets[k].scale):
        sources[k] = k
        if convention is PixelConvention.EXACT and math.frexp(targets[k].scale)[0] == 0.5:
            for finer in reversed(sources):
                factor = targets[finer].scale / targets[k].scale
                covers = all(large >= factor * small for large, small in zip(targets[finer].size, targets[k].size, strict=True))
                if finer != k and covers and math.frexp(targets[finer].scale)[0] == 0.5:
                    sources[k] = finer
                    break
    return sources


def _draw_numba(cloud: ChunkedCloud, camera: Cameras, grid: PixelGrid, targets: Sequence[_Target], near: float) -> list[Int[Tensor, "_ _"]]:
    sources = _sources(grid.convention, targets)
    drawn = [k for k, source in sources.items() if source == k]
    numbers = projection_numbers(grid.projection(camera), grid, near)
    steps = np.array([grid.cell_steps(targets[k].scale, targets[k].size) for k in drawn], dtype=np.float32).reshape(-1, 5)
    sizes = np.array([targets[k].size for k in drawn], dtype=np.int32)
    ends = np.cumsum([0] + [height * width + 1 for height, width in sizes.tolist()])  # one spare cell per level
    xyz, index, corners = cloud.xyz_world.numpy(), cloud.index.numpy(), cloud.corners.numpy()
    chunks, length = index.shape
    threads = thread_count(chunks * length, _POINTS_PER_THREAD)
    buffers = np.empty((threads, ends[-1]), dtype=np.int64)
    per_task = max(1, _POINTS_PER_TASK // length)
    tasks = iter([(k, min(k + per_task, chunks)) for k in range(0, chunks, per_task)])  # shared: a delayed thread takes fewer

    def draw(thread: int) -> None:
        buffers[thread].fill(EMPTY_KEY)
        for begin, end in tasks:
            _draw_chunks(xyz, index, corners, begin, end, numbers, steps, sizes, ends, buffers[thread])

    run_threads(draw, threads)
    if threads > 1:
        parts = spans(int(ends[-1]), threads)
        run_threads(lambda k: _merge(buffers, *parts[k]), threads)
    keys = torch.from_numpy(buffers[0])
    found: dict[int, Tensor] = {}
    for number, k in enumerate(drawn):
        height, width = targets[k].size
        found[k] = keys[ends[number] : ends[number] + height * width].view(height, width)
    for k, source in sources.items():
        if source != k:
            found[k] = _reduced(found[source], round(targets[source].scale / targets[k].scale), targets[k].size)
    return [found[k] for k in range(len(targets))]


@kernel()
def _draw_chunks(xyz, index, corners, begin, end, numbers, steps, sizes, ends, buffer):
    length = index.shape[1]
    x, y, depth = np.empty(length, np.float32), np.empty(length, np.float32), np.empty(length, np.float32)
    keys, cells = np.empty(length, np.int64), np.empty(length, np.int32)
    bits = depth.view(np.int32)
    near, low_x, low_y, high_x, high_y = numbers[17], numbers[18], numbers[19], numbers[20], numbers[21]
    for chunk in range(begin, end):
        state = chunk_state(corners, chunk, numbers, np.float32(0))
        if state == 0:
            continue
        px, py, pz, rows = xyz[0, chunk], xyz[1, chunk], xyz[2, chunk], index[chunk]
        for k in range(length):
            xd, yd, d = homogeneous(px[k], py[k], pz[k], numbers)
            x[k], y[k], depth[k] = xd / (d + numbers[16]), yd / (d + numbers[16]), d
        for k in range(length):
            keys[k] = (np.int64(bits[k]) << 32) | np.int64(rows[k])
        if state == 1:
            for k in range(length):
                if not (depth[k] > near and x[k] >= low_x and x[k] <= high_x and y[k] >= low_y and y[k] <= high_y):
                    keys[k], x[k], y[k] = EMPTY_KEY, low_x, low_y
        for level in range(len(sizes)):
            height, width, first = sizes[level, 0], sizes[level, 1], ends[level]
            slope, start_x, start_y, shift, half = steps[level]
            spare = height * width
            for k in range(length):
                column = np.int32(x[k] * slope + start_x - shift + half)
                row = np.int32(y[k] * slope + start_y - shift + half)
                cell = row * width + column
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                cells[k] = cell if inside else spare
            cut = buffer[first:]
            for k in range(length):
                cell = cells[k]
                if keys[k] < cut[cell]:
                    cut[cell] = keys[k]


@kernel()
def _merge(buffers, begin, end):
    lowest = buffers[0]
    for thread in range(1, len(buffers)):
        other = buffers[thread]
        for k in range(begin, end):
            lowest[k] = min(lowest[k], other[k])


def _reduced(keys: Int[Tensor, "_ _"], factor: int, size: tuple[int, int]) -> Int[Tensor, "h w"]:
    """Minima of factor x factor blocks."""
    reduced = np.empty(size, dtype=np.int64)
    _block_minima(keys.numpy(), factor, reduced)
    return torch.from_numpy(reduced)


@kernel()
def _block_minima(keys, factor, out):
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            lowest = keys[row * factor, column * factor]
            for y in range(row * factor, (row + 1) * factor):
                for x in range(column * factor, (column + 1) * factor):
                    lowest = min(lowest, keys[y, x])
            out[row, column] = lowest


# ----------------------------------------------------------------------
# CUDA

_SOURCE = r"""
// Numbers of a camera as in npbgpp/kernels/rasterization.py; levels: 5 steps each, then height, width and first cell in sizes.
extern "C" __global__ void draw_points(
    const float* xyz, const int* index, const float* numbers, const float* steps, const long long* sizes, long long* keys,
    const long long* count_and_levels)
{
    const long long count = count_and_levels[0], levels = count_and_levels[1];
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= count) return;
    const float px = xyz[k], py = xyz[count + k], pz = xyz[2 * count + k];
    // the order of operations and the fused multiply-adds of the matrix product on the CPU
    float hx = __fadd_rn(__fmaf_rn(pz, numbers[6], __fmaf_rn(py, numbers[3], __fmul_rn(px, numbers[0]))), numbers[9]);
    float hy = __fadd_rn(__fmaf_rn(pz, numbers[7], __fmaf_rn(py, numbers[4], __fmul_rn(px, numbers[1]))), numbers[10]);
    const float depth = __fadd_rn(__fmaf_rn(pz, numbers[8], __fmaf_rn(py, numbers[5], __fmul_rn(px, numbers[2]))), numbers[11]);
    hx = __fmaf_rn(depth, numbers[14], __fmul_rn(hx, numbers[12]));
    hy = __fmaf_rn(depth, numbers[15], __fmul_rn(hy, numbers[13]));
    const float divisor = __fadd_rn(depth, numbers[16]);
    const float x = __fdiv_rn(hx, divisor), y = __fdiv_rn(hy, divisor);
    if (!(depth > numbers[17] && x >= numbers[18] && y >= numbers[19] && x <= numbers[20] && y <= numbers[21])) return;
    const long long key = ((long long)__float_as_int(depth) << 32) | (long long)index[k];
    for (long long level = 0; level < levels; ++level) {
        const float* s = steps + 5 * level;
        const int column = (int)__fadd_rn(__fsub_rn(__fadd_rn(__fmul_rn(x, s[0]), s[1]), s[3]), s[4]);
        const int row = (int)__fadd_rn(__fsub_rn(__fadd_rn(__fmul_rn(y, s[0]), s[2]), s[3]), s[4]);
        const long long height = sizes[3 * level], width = sizes[3 * level + 1];
        if (row < 0 || row >= height || column < 0 || column >= width) continue;
        atomicMin(keys + sizes[3 * level + 2] + row * width + column, key);
    }
}
"""


def _draw_cuda(cloud: ChunkedCloud, camera: Cameras, grid: PixelGrid, targets: Sequence[_Target], near: float) -> list[Int[Tensor, "_ _"]]:
    device = cloud.xyz_world.device
    numbers = torch.from_numpy(projection_numbers(grid.projection(camera), grid, near)).to(device)
    steps = torch.tensor([grid.cell_steps(target.scale, target.size) for target in targets], device=device)
    cells = [height * width for height, width in (target.size for target in targets)]
    firsts = [sum(cells[:k]) for k in range(len(cells))]
    sizes = torch.tensor([[*target.size, first] for target, first in zip(targets, firsts, strict=True)], device=device)
    keys = torch.full((sum(cells),), EMPTY_KEY, dtype=torch.int64, device=device)
    count = cloud.index.numel()
    limits = torch.tensor([count, len(targets)], device=device)
    _CUDA.launch("draw_points", count, cloud.xyz_world, cloud.index, numbers, steps, sizes, keys, limits)
    return [part.view(target.size) for part, target in zip(keys.split(cells), targets, strict=True)]


def _check_cuda(device: torch.device) -> str | None:
    """Compares both implementations on 4096 points whose projections are exact in float32."""
    generator = torch.Generator().manual_seed(0)
    depth = 2.0 ** torch.randint(-1, 3, (4096, 1), generator=generator)
    xyz = torch.cat([torch.randint(-80, 80, (4096, 2), generator=generator) / 64 * depth, depth], 1)
    cloud = ChunkedCloud.build(xyz.to(device))
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.full((1, 2), 32.0), torch.tensor([[24.0, 16.0]]), (32, 48)).to(device)
    for convention in PixelConvention:
        grid = PixelGrid(convention, camera.image_size)
        targets = [_Target(scale, grid.level_size(scale)) for scale in (1.0, 0.5, 0.3)]
        found, expected = (draw(cloud, camera, grid, targets, 1.0) for draw in (_draw_cuda, _draw_torch))
        differing = sum(int((a != b).sum()) for a, b in zip(found, expected, strict=True))
        if differing > 4:  # rounding of the division may move single points to the next cell
            return f"{differing} cells differ from the reference in the {convention.value} convention"
    return None


_CUDA = CudaModule("rasterization", _SOURCE, ("draw_points",), _check_cuda)


# ----------------------------------------------------------------------
# Features by row for the cells of a raster, with the gradient of the table.
#
# On GPUs and for other types this is PyTorch's ``embedding``, one kernel for values and one for gradients; on the CPU its gradient takes several times as long as
# the additions need.


_LEAST_CELLS = 1 << 13  # per thread


def look_up(row: Int[Tensor, "*cells"], table: Float[Tensor, "m c"]) -> Float[Tensor, "*cells c"]:
    """Row ``row + 1`` of the table for every cell, so that -1 is the first one; differentiable once with respect to the table.

    The gradient adds the cells of a row in order, however many threads there are.

    Raises:
        IndexError: a row outside of the table.
    """
    if backend(table.device) == "numba" and table.dtype in (torch.float32, torch.float64):
        return _LookUp.apply(row, table)
    return look_up_reference(row, table)


def look_up_reference(row: Int[Tensor, "*cells"], table: Float[Tensor, "m c"]) -> Float[Tensor, "*cells c"]:
    """``look_up`` in plain PyTorch."""
    return embedding(row + 1, table)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, row: Tensor, table: Tensor) -> Tensor:
        out = table.new_empty(*row.shape, table.shape[1])
        cells = row.contiguous().view(-1)
        ctx.save_for_backward(cells)
        ctx.rows = len(table)
        arrays = (cells.numpy(), table.detach().contiguous().numpy(), out.view(len(cells), table.shape[1]).numpy())
        parts = spans(len(cells), thread_count(len(cells), _LEAST_CELLS))
        valid = [True] * len(parts)

        def copy(k: int) -> None:
            valid[k] = _copy_rows(*arrays, *parts[k])

        run_threads(copy, len(parts))
        if not all(valid):
            raise IndexError(f"look_up: expected rows from -1 to {len(table) - 2}, got {cells.min().item()} to {cells.max().item()}")
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (cells,) = ctx.saved_tensors
        of_table = gradient.new_zeros(ctx.rows, gradient.shape[-1])
        arrays = (cells.numpy(), gradient.contiguous().view(len(cells), gradient.shape[-1]).numpy(), of_table.numpy())
        # every thread reads all cells and adds those of its part of the table
        parts = spans(ctx.rows, thread_count(len(cells), _LEAST_CELLS))
        run_threads(lambda k: _add_cells(*arrays, *parts[k]), len(parts))
        return None, of_table


@kernel()
def _copy_rows(cells, table, out, begin, end):
    """Whether all rows are in the table; cells of others are not written."""
    valid = True
    for k in range(begin, end):
        row = cells[k] + 1
        if row < 0 or row >= len(table):
            valid = False
            continue
        for channel in range(table.shape[1]):
            out[k, channel] = table[row, channel]
    return valid


@kernel()
def _add_cells(cells, gradient, of_table, begin, end):
    for k in range(len(cells)):
        row = cells[k] + 1
        if row >= begin and row < end:
            for channel in range(of_table.shape[1]):
                of_table[row, channel] += gradient[k, channel]
