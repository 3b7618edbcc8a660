"""Depth peeling of a point cloud: the nearest points of every pixel, then the nearest of the remaining ones, and so on.

Every point covers a square of pixels whose size decreases with its depth. Layer 0 holds the nearest point of every pixel; the points that won a pixel are
removed, and layer 1 holds the nearest of the others. Removing whole points rather than pixels keeps a point from appearing behind itself (NPCR; depth peeling
is due to Everitt, "Interactive order-independent transparency", 2001).

Keys are those of ``npbgpp.kernels.rasterization``. The kernels project the points once and keep the pixels that each covers; a layer compares every remaining
point with the keys of its pixels.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from npbgpp.geometry import Cameras, PixelGrid, ProjectionSettings
from npbgpp.kernels.backend import CudaModule, backend, kernel, run_threads, spans, thread_count
from npbgpp.kernels.rasterization import EMPTY_KEY, ChunkedCloud, Fragments, chunk_state, homogeneous, projection_numbers

MAX_LAYERS = 8
_INDEX_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class Footprint:
    """Size of points in the image: squares from ``floor(u - r)`` to ``floor(u + r)``, likewise in v.

    The radius r, in pixels, is ``max_splat`` up to depth ``near`` and decreases linearly to 0 at depth ``far``; beyond, a point covers one pixel.
    """

    near: float
    far: float
    max_splat: float


@dataclass(frozen=True)
class Layer:
    """One peeled layer.

    Attributes:
        index: row of the visible point in the cloud, -1 for empty pixels.
        depth: its depth in scene units, inf for empty pixels.
        closed: pixels whose next point lies too far behind the previous layer; they stay empty in this and all later layers.
    """

    index: Int[Tensor, "h w"]
    depth: Float[Tensor, "h w"]
    closed: Bool[Tensor, "h w"]


def peel(cloud: ChunkedCloud, camera: Cameras, layers: int, footprint: Footprint, gap: float = math.inf, near: float = 0.0) -> list[Layer]:
    """The nearest layers of a cloud for one camera, front to back, in ``PixelConvention.EXACT``. Ties in depth go to the lowest index.

    Args:
        cloud: the points, on the device to render on; points with non-finite coordinates are culled.
        camera: one camera.
        layers: number of layers, at least 1; layers behind the last point are empty.
        footprint: size of the points.
        gap: depth difference to the previous layer above which a pixel is closed, scene units.
        near: near plane: points at depth <= near are culled; at least 0, scene units.

    Raises:
        ValueError: not exactly one camera, no layer, ``near`` below 0, or a footprint of ``near >= far`` or a negative size.
    """
    if len(camera) != 1 or layers < 1:
        raise ValueError(f"peel: expected one camera and at least one layer, got {len(camera)} and {layers}")
    if near < 0:
        raise ValueError(f"peel: expected near >= 0, got {near}")
    if not footprint.near < footprint.far or footprint.max_splat < 0:
        raise ValueError(f"peel: expected near < far and max_splat >= 0, got {footprint}")
    device, size = cloud.xyz_world.device, camera.image_size
    points = _project(cloud, camera.to(device), footprint, near)
    removed = torch.zeros(cloud.rows + 1, dtype=torch.bool, device=device)
    found: list[Layer] = []
    for _ in range(layers):
        fragments = Fragments(points.nearest(removed))
        index, depth = fragments.index, fragments.depth
        removed[index.view(-1)] = True  # empty pixels, -1, set the spare entry
        closed = torch.zeros(size, dtype=torch.bool, device=device)
        if found:
            closed = found[-1].closed | ((index >= 0) & (depth - found[-1].depth > gap))
            index, depth = index.masked_fill(closed, -1), depth.masked_fill(closed, math.inf)
        found.append(Layer(index, depth, closed))
    return found


class _Points(ABC):
    """Projected points."""

    @abstractmethod
    def nearest(self, removed: Bool[Tensor, " n1"]) -> Int[Tensor, "h w"]:
        """The smallest key of every pixel among the points whose row is not marked. Marks are never withdrawn."""


def _project(cloud: ChunkedCloud, camera: Cameras, footprint: Footprint, near: float) -> _Points:
    chosen = backend(cloud.xyz_world.device)
    if chosen == "numba":
        return _NumbaPoints(cloud, camera, footprint, near)
    if chosen == "cuda" and _CUDA.usable(cloud.xyz_world.device):
        return _CudaPoints(cloud, camera, footprint, near)
    return _TorchPoints(cloud, camera, footprint, near)


# ----------------------------------------------------------------------
# Reference


class _TorchPoints(_Points):
    """Plain PyTorch: one scattered minimum of all points per pixel of the largest square."""

    def __init__(self, cloud: ChunkedCloud, camera: Cameras, footprint: Footprint, near: float = 0.0) -> None:
        self.size = height, width = camera.image_size
        xyd = ProjectionSettings().grid(self.size).normalise(camera, cloud.xyz_world.flatten(1).t())[0]
        depth = xyd[:, 2]
        radius = (1 - (depth - footprint.near) / (footprint.far - footprint.near)).clamp(0, 1) * footprint.max_splat
        first, last = ((xyd[:, :2] + shift[:, None]).floor() for shift in (-radius, radius))
        limit = torch.tensor([width - 1.0, height - 1.0], device=depth.device)
        kept = (depth > near) & ((first <= limit) & (last >= 0)).all(1)
        self.first, self.last = (torch.minimum(ends[kept].clamp_min(0), limit).long() for ends in (first, last))
        self.keys = (depth[kept].contiguous().view(torch.int32).long() << 32) | cloud.index.flatten()[kept].long()

    def nearest(self, removed: Bool[Tensor, " n1"]) -> Int[Tensor, "h w"]:
        height, width = self.size
        lowest = torch.full((height * width,), EMPTY_KEY, dtype=torch.int64, device=self.keys.device)
        remaining = ~removed[self.keys & _INDEX_BITS]
        columns, rows = (self.last - self.first + 1).amax(0).tolist() if len(self.keys) else (0, 0)
        for row in range(rows):
            for column in range(columns):
                at = self.first + torch.tensor([column, row], device=self.first.device)
                covered = remaining & (at <= self.last).all(1)
                lowest.scatter_reduce_(0, (at[:, 1] * width + at[:, 0])[covered], self.keys[covered], "amin")
        return lowest.view(height, width)


# ----------------------------------------------------------------------
# CPU

_POINTS_PER_TASK = 1 << 16  # work that a thread takes at a time
_POINTS_PER_THREAD = 1 << 16  # at least: a buffer per thread must be filled and merged


def _numbers(camera: Cameras, footprint: Footprint, near: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the camera, and (near, far - near, max_splat), float32."""
    grid: PixelGrid = ProjectionSettings().grid(camera.image_size)
    numbers = projection_numbers(grid.projection(camera), grid, near)
    return numbers, np.array([footprint.near, footprint.far - footprint.near, footprint.max_splat], dtype=np.float32)


class _NumbaPoints(_Points):
    """Points that cover any pixel, at the beginning of the part of each task; the first ``counts`` of a part remain."""

    def __init__(self, cloud: ChunkedCloud, camera: Cameras, footprint: Footprint, near: float = 0.0) -> None:
        self.size = camera.image_size
        xyz, index, corners = cloud.xyz_world.numpy(), cloud.index.numpy(), cloud.corners.numpy()
        chunks, length = index.shape
        self.threads = thread_count(chunks * length, _POINTS_PER_THREAD)
        # memory that no point needs is never committed
        self.keys, self.squares = np.empty(chunks * length, np.int64), np.empty((chunks * length, 3), np.int32)
        per_task = max(1, _POINTS_PER_TASK // length)
        bounds = [(k, min(k + per_task, chunks)) for k in range(0, chunks, per_task)]
        self.starts, self.counts = [begin * length for begin, _ in bounds], [0] * len(bounds)
        numbers, sizes = _numbers(camera, footprint, near)
        tasks = iter(enumerate(bounds))  # shared: a delayed thread takes fewer

        def project(_: int) -> None:
            for k, (begin, end) in tasks:
                self.counts[k] = _project_chunks(xyz, index, corners, begin, end, numbers, sizes, *self.size, self.keys, self.squares)

        run_threads(project, self.threads)

    def nearest(self, removed: Bool[Tensor, " n1"]) -> Int[Tensor, "h w"]:
        height, width = self.size
        marks, buffers = removed.numpy(), np.empty((self.threads, height * width), np.int64)
        tasks = iter(range(len(self.starts)))

        def draw(thread: int) -> None:
            buffers[thread].fill(EMPTY_KEY)
            for k in tasks:
                self.counts[k] = _draw_remaining(self.keys, self.squares, self.starts[k], self.counts[k], marks, width, buffers[thread])

        run_threads(draw, self.threads)
        if self.threads > 1:
            parts = spans(height * width, self.threads)
            run_threads(lambda k: _merge(buffers, *parts[k]), self.threads)
        return torch.from_numpy(buffers[0]).view(height, width)


@kernel()
def _project_chunks(xyz, index, corners, begin, end, numbers, sizes, height, width, keys, squares):
    """Number of points that cover any pixel; ``keys`` and ``squares`` (first pixel, rows, columns) hold them from the first of ``begin`` on."""
    length = index.shape[1]
    near, span, max_splat = sizes[0], sizes[1], sizes[2]
    bottom, right = np.float32(height - 1), np.float32(width - 1)
    zero, one = np.float32(0), np.float32(1)
    u, v = np.empty(length, np.float32), np.empty(length, np.float32)
    radius, depth = np.empty(length, np.float32), np.empty(length, np.float32)
    bits = depth.view(np.int32)
    count = begin * length
    for chunk in range(begin, end):
        if chunk_state(corners, chunk, numbers, max_splat) == 0:
            continue
        px, py, pz, rows = xyz[0, chunk], xyz[1, chunk], xyz[2, chunk], index[chunk]
        for k in range(length):
            xd, yd, d = homogeneous(px[k], py[k], pz[k], numbers)
            u[k], v[k], depth[k] = xd / d, yd / d, d
            radius[k] = min(max(one - (d - near) / span, zero), one) * max_splat
        for k in range(length):
            top, left = np.floor(v[k] - radius[k]), np.floor(u[k] - radius[k])
            last_row, last_column = np.floor(v[k] + radius[k]), np.floor(u[k] + radius[k])
            # false for NaN
            if depth[k] > numbers[17] and top <= bottom and left <= right and last_row >= zero and last_column >= zero:
                row, column = np.int32(max(top, zero)), np.int32(max(left, zero))
                keys[count] = (np.int64(bits[k]) << 32) | np.int64(rows[k])
                squares[count, 0] = row * np.int32(width) + column
                squares[count, 1] = np.int32(min(last_row, bottom)) - row + 1
                squares[count, 2] = np.int32(min(last_column, right)) - column + 1
                count += 1
    return count - begin * length


@kernel()
def _draw_remaining(keys, squares, start, count, removed, width, buffer):
    """Draws the points that are not removed and moves them to the beginning; returns their number."""
    kept = start
    for k in range(start, start + count):
        key = keys[k]
        if removed[key & 0xFFFFFFFF]:
            continue
        first, rows, columns = squares[k, 0], squares[k, 1], squares[k, 2]
        keys[kept], squares[kept, 0], squares[kept, 1], squares[kept, 2] = key, first, rows, columns
        kept += 1
        for row in range(rows):
            for column in range(columns):
                cell = first + row * width + column
                if key < buffer[cell]:
                    buffer[cell] = key
    return kept - start


@kernel()
def _merge(buffers, begin, end):
    lowest = buffers[0]
    for thread in range(1, len(buffers)):
        other = buffers[thread]
        for k in range(begin, end):
            lowest[k] = min(lowest[k], other[k])


# ----------------------------------------------------------------------
# CUDA: one thread per point

_SOURCE = r"""
// Numbers of a camera as in npbgpp/kernels/rasterization.py; sizes: near, far - near, largest radius, height, width.
extern "C" __global__ void project_squares(
    const float* xyz, const int* index, const float* numbers, const float* sizes, long long* keys, int* squares, const long long* counts)
{
    const long long count = counts[0];
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= count) return;
    const float px = xyz[k], py = xyz[count + k], pz = xyz[2 * count + k];
    // the order of operations and the fused multiply-adds of the matrix product on the CPU
    const float hx = __fadd_rn(__fmaf_rn(pz, numbers[6], __fmaf_rn(py, numbers[3], __fmul_rn(px, numbers[0]))), numbers[9]);
    const float hy = __fadd_rn(__fmaf_rn(pz, numbers[7], __fmaf_rn(py, numbers[4], __fmul_rn(px, numbers[1]))), numbers[10]);
    const float depth = __fadd_rn(__fmaf_rn(pz, numbers[8], __fmaf_rn(py, numbers[5], __fmul_rn(px, numbers[2]))), numbers[11]);
    const float u = __fdiv_rn(hx, depth), v = __fdiv_rn(hy, depth);
    const float share = __fsub_rn(1.0f, __fdiv_rn(__fsub_rn(depth, sizes[0]), sizes[1]));
    const float radius = __fmul_rn(fminf(fmaxf(share, 0.0f), 1.0f), sizes[2]);
    const float top = floorf(__fsub_rn(v, radius)), left = floorf(__fsub_rn(u, radius));
    const float last_row = floorf(__fadd_rn(v, radius)), last_column = floorf(__fadd_rn(u, radius));
    const float bottom = sizes[3] - 1.0f, right = sizes[4] - 1.0f;
    squares[3 * k + 1] = 0;
    if (!(depth > numbers[17] && top <= bottom && left <= right && last_row >= 0.0f && last_column >= 0.0f)) return;
    const int row = (int)fmaxf(top, 0.0f), column = (int)fmaxf(left, 0.0f);
    keys[k] = ((long long)__float_as_int(depth) << 32) | (long long)index[k];
    squares[3 * k] = row * (int)sizes[4] + column;
    squares[3 * k + 1] = (int)fminf(last_row, bottom) - row + 1;
    squares[3 * k + 2] = (int)fminf(last_column, right) - column + 1;
}

extern "C" __global__ void draw_squares(
    const long long* keys, const int* squares, const unsigned char* removed, long long* lowest, const long long* counts)
{
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= counts[0]) return;
    const int rows = squares[3 * k + 1];
    if (rows == 0) return;
    const long long key = keys[k];
    if (removed[key & 0xFFFFFFFFLL]) return;
    const int columns = squares[3 * k + 2];
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < columns; ++column)
            atomicMin(lowest + squares[3 * k] + row * counts[1] + column, key);
}
"""


class _CudaPoints(_Points):
    """All points; those that cover no pixel have squares without rows."""

    def __init__(self, cloud: ChunkedCloud, camera: Cameras, footprint: Footprint, near: float = 0.0) -> None:
        device, self.size = cloud.xyz_world.device, camera.image_size
        numbers, sizes = _numbers(camera, footprint, near)
        self.count = cloud.index.numel()
        self.counts = torch.tensor([self.count, self.size[1]], device=device)
        self.keys = torch.empty(self.count, dtype=torch.int64, device=device)
        self.squares = torch.empty(self.count, 3, dtype=torch.int32, device=device)
        with_size = np.concatenate([sizes, np.array(self.size, np.float32)])
        arguments = (torch.from_numpy(array).to(device) for array in (numbers, with_size))
        _CUDA.launch("project_squares", self.count, cloud.xyz_world, cloud.index, *arguments, self.keys, self.squares, self.counts)

    def nearest(self, removed: Bool[Tensor, " n1"]) -> Int[Tensor, "h w"]:
        lowest = torch.full(self.size, EMPTY_KEY, dtype=torch.int64, device=self.keys.device)
        _CUDA.launch("draw_squares", self.count, self.keys, self.squares, removed.view(torch.uint8), lowest, self.counts)
        return lowest


def _check_cuda(device: torch.device) -> str | None:
    """Compares two layers of points whose projections are exact in float32 with the reference."""
    generator = torch.Generator().manual_seed(0)
    depth = 2.0 ** torch.randint(-1, 3, (2048, 1), generator=generator)
    xyz = torch.cat([torch.randint(-80, 80, (2048, 2), generator=generator) / 64 * depth, depth], 1)
    cloud = ChunkedCloud.build(xyz.to(device))
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.full((1, 2), 32.0), torch.tensor([[24.0, 16.0]]), (32, 48)).to(device)
    footprint = Footprint(0.5, 4.5, 2.0)
    removed = torch.zeros(len(xyz) + 1, dtype=torch.bool, device=device)
    fast, plain = _CudaPoints(cloud, camera, footprint), _TorchPoints(cloud, camera, footprint)
    for layer in range(2):
        found, expected = fast.nearest(removed), plain.nearest(removed)
        if not torch.equal(found, expected):
            return f"layer {layer} differs from the reference"
        removed[Fragments(found).index.view(-1)] = True
    return None


_CUDA = CudaModule("peeling", _SOURCE, ("project_squares", "draw_squares"), _check_cuda)
