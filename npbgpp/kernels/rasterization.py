"""Point rasterization: the nearest point of every pixel at several scales.

Keys are 64 bits, depth bits above the point index, so that one minimum finds both and the lowest index wins ties. The CPU kernel projects the points of the
visible chunks of a cloud once, and compares every point with the key of its cell in every level; threads draw into buffers of their own, which are merged.
With the exact convention, cells of a level whose scale is a power of two are minima of blocks of cells of a finer one, so that only the finest is drawn.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.geometry import Cameras, PixelConvention, PixelGrid, ProjectionSettings
from npbgpp.kernels.backend import backend
from npbgpp.kernels.chunks import ChunkedCloud
from npbgpp.kernels.cpu import kernel, run_threads, spans, thread_count
from npbgpp.kernels.cuda import CudaModule
from npbgpp.kernels.projection import chunk_state, homogeneous, projection_numbers

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
// Numbers of a camera as in npbgpp/kernels/projection.py; levels: 5 steps each, then height, width and first cell in sizes.
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
