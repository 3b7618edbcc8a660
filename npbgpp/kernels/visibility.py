"""Visibility of points by a depth buffer (NPBG++, section 3.2)."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbgpp.geometry import Cameras, PixelConvention, PixelGrid, ProjectionSettings
from npbgpp.kernels.backend import BLOCK, CudaModule, backend, kernel, run_threads, thread_count
from npbgpp.kernels.rasterization import homogeneous, projection_numbers

_POINTS_PER_THREAD = 1 << 14  # at least


@torch.no_grad()
def visible_points(
    xyz_world: Float[Tensor, "n 3"], cameras: Cameras, scale: float | None, projection: ProjectionSettings
) -> Bool[Tensor, "k n"]:
    """Whether each point is the nearest of its depth buffer cell, for each of k cameras. Points that tie in depth are all visible.

    Meant for small clouds and many cameras; the winners of ``npbgpp.kernels.rasterization.rasterize`` are the same points up to ties.

    Args:
        xyz_world: the points; those with non-finite coordinates are never visible.
        cameras: k cameras.
        scale: size of the depth buffer relative to the image; None disables occlusion.
        projection: near plane and pixel convention.

    Raises:
        ValueError: a depth buffer without cells.
    """
    if scale is None:
        return projection.in_frustum(cameras, xyz_world)
    grid = projection.grid(cameras.image_size)
    if min(grid.level_size(scale)) < 1:
        raise ValueError(f"visible_points: image of {cameras.image_size} pixels has no cell at scale {scale}")
    chosen = backend(xyz_world.device) if xyz_world.dtype == torch.float32 else "torch"
    if chosen == "numba":
        return _visible_numba(xyz_world, cameras, scale, grid, projection.near)
    if chosen == "cuda" and _CUDA.usable(xyz_world.device):
        return _visible_cuda(xyz_world, cameras, scale, grid, projection.near)
    return _visible_torch(xyz_world, cameras, scale, grid, projection.near)


# ----------------------------------------------------------------------
# Reference


def _visible_torch(xyz_world: Float[Tensor, "n 3"], cameras: Cameras, scale: float, grid: PixelGrid, near: float) -> Bool[Tensor, "k n"]:
    """Plain PyTorch, camera by camera."""
    height, width = size = grid.level_size(scale)
    views = []
    for x, y, depth in (view.unbind(1) for view in grid.normalise(cameras, xyz_world)):
        inside = grid.inside(x, y) & (depth > near)
        row, column = grid.cells(x, y, scale, size)
        inside &= (row >= 0) & (row < height) & (column >= 0) & (column < width)
        cell = torch.where(inside, row.long() * width + column, height * width)  # outside: a spare cell
        nearest = depth.new_full((height * width + 1,), torch.inf).scatter_reduce_(0, cell, depth, "amin")
        views.append(inside & (depth == nearest[cell]))
    return torch.stack(views)


# ----------------------------------------------------------------------
# CPU


def _visible_numba(xyz_world: Float[Tensor, "n 3"], cameras: Cameras, scale: float, grid: PixelGrid, near: float) -> Bool[Tensor, "k n"]:
    size = grid.level_size(scale)
    numbers = [projection_numbers(grid.projection(cameras[k]), grid, near) for k in range(len(cameras))]
    steps = np.array(grid.cell_steps(scale, size), dtype=np.float32)
    xyz, visible = xyz_world.contiguous().numpy(), np.empty((len(cameras), len(xyz_world)), np.bool_)
    tasks = iter(range(len(cameras)))

    def mark(_: int) -> None:
        nearest, cells, depths = np.empty(size, np.float32).reshape(-1), np.empty(len(xyz), np.int32), np.empty(len(xyz), np.float32)
        for k in tasks:
            _mark_visible(xyz, numbers[k], steps, *size, nearest, cells, depths, visible[k])

    run_threads(mark, min(len(cameras), thread_count(len(xyz) * len(cameras), _POINTS_PER_THREAD)) or 1)
    return torch.from_numpy(visible)


@kernel()
def _mark_visible(xyz, numbers, steps, height, width, nearest, cells, depths, visible):
    near, low_x, low_y, high_x, high_y = numbers[17], numbers[18], numbers[19], numbers[20], numbers[21]
    slope, start_x, start_y, shift, half = steps[0], steps[1], steps[2], steps[3], steps[4]
    for cell in range(height * width):
        nearest[cell] = np.float32(np.inf)
    for k in range(len(xyz)):
        xd, yd, depth = homogeneous(xyz[k, 0], xyz[k, 1], xyz[k, 2], numbers)
        x, y = xd / (depth + numbers[16]), yd / (depth + numbers[16])
        cells[k], depths[k] = -1, depth
        if depth > near and x >= low_x and x <= high_x and y >= low_y and y <= high_y:  # false for NaN
            column = np.int32(x * slope + start_x - shift + half)
            row = np.int32(y * slope + start_y - shift + half)
            if row >= 0 and row < height and column >= 0 and column < width:
                cell = row * width + column
                cells[k] = cell
                nearest[cell] = min(nearest[cell], depth)
    for k in range(len(xyz)):
        visible[k] = cells[k] >= 0 and depths[k] == nearest[cells[k]]


# ----------------------------------------------------------------------
# CUDA: a thread per point and camera

_SOURCE = r"""
// Whether a point lies in a cell of the depth buffer of a camera; numbers of a camera as in npbgpp/kernels/rasterization.py.
__device__ bool find_cell(const float* p, const float* numbers, const float* steps, int height, int width, long long* cell, int* order) {
    const float px = p[0], py = p[1], pz = p[2];
    // the order of operations and the fused multiply-adds of the matrix product on the CPU
    float hx = __fadd_rn(__fmaf_rn(pz, numbers[6], __fmaf_rn(py, numbers[3], __fmul_rn(px, numbers[0]))), numbers[9]);
    float hy = __fadd_rn(__fmaf_rn(pz, numbers[7], __fmaf_rn(py, numbers[4], __fmul_rn(px, numbers[1]))), numbers[10]);
    const float depth = __fadd_rn(__fmaf_rn(pz, numbers[8], __fmaf_rn(py, numbers[5], __fmul_rn(px, numbers[2]))), numbers[11]);
    hx = __fmaf_rn(depth, numbers[14], __fmul_rn(hx, numbers[12]));
    hy = __fmaf_rn(depth, numbers[15], __fmul_rn(hy, numbers[13]));
    const float divisor = __fadd_rn(depth, numbers[16]);
    const float x = __fdiv_rn(hx, divisor), y = __fdiv_rn(hy, divisor);
    if (!(depth > numbers[17] && x >= numbers[18] && y >= numbers[19] && x <= numbers[20] && y <= numbers[21])) return false;
    const int column = (int)__fadd_rn(__fsub_rn(__fadd_rn(__fmul_rn(x, steps[0]), steps[1]), steps[3]), steps[4]);
    const int row = (int)__fadd_rn(__fsub_rn(__fadd_rn(__fmul_rn(y, steps[0]), steps[2]), steps[3]), steps[4]);
    if (row < 0 || row >= height || column < 0 || column >= width) return false;
    *cell = (long long)row * width + column;
    const int bits = __float_as_int(depth + 0.0f);  // no negative zero
    *order = bits >= 0 ? bits : bits ^ 0x7fffffff;  // integers in the order of the depths
    return true;
}

extern "C" __global__ void draw_depths(
    const float* xyz, const float* numbers, const float* steps, int* nearest, int height, int width, int count)
{
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long cell;
    int order;
    if (k < count && find_cell(xyz + 3 * k, numbers + 24 * blockIdx.y, steps, height, width, &cell, &order))
        atomicMin(nearest + (long long)blockIdx.y * height * width + cell, order);
}

extern "C" __global__ void mark_visible(
    const float* xyz, const float* numbers, const float* steps, const int* nearest, unsigned char* visible, int height, int width, int count)
{
    const long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= count) return;
    long long cell;
    int order;
    const bool found = find_cell(xyz + 3 * k, numbers + 24 * blockIdx.y, steps, height, width, &cell, &order);
    visible[(long long)blockIdx.y * count + k] = found && nearest[(long long)blockIdx.y * height * width + cell] == order;
}
"""


def _visible_cuda(xyz_world: Float[Tensor, "n 3"], cameras: Cameras, scale: float, grid: PixelGrid, near: float) -> Bool[Tensor, "k n"]:
    device, count = xyz_world.device, len(xyz_world)
    size = grid.level_size(scale)
    visible = torch.zeros(len(cameras), count, dtype=torch.bool, device=device)
    if visible.numel() == 0:
        return visible
    numbers = torch.from_numpy(np.stack([projection_numbers(grid.projection(cameras[k]), grid, near) for k in range(len(cameras))])).to(
        device
    )
    steps = torch.tensor(grid.cell_steps(scale, size), device=device)
    nearest = torch.full((len(cameras), *size), 2**31 - 1, dtype=torch.int32, device=device)
    shape = ((-(-count // BLOCK), len(cameras), 1), (BLOCK, 1, 1))
    points = xyz_world.contiguous()
    _CUDA.launch_grid("draw_depths", *shape, points, numbers, steps, nearest, *size, count)
    _CUDA.launch_grid("mark_visible", *shape, points, numbers, steps, nearest, visible.view(torch.uint8), *size, count)
    return visible


def _check_cuda(device: torch.device) -> str | None:
    """Compares both implementations on points whose projections are exact in float32, with duplicates."""
    generator = torch.Generator().manual_seed(0)
    depth = 2.0 ** torch.randint(-1, 3, (2048, 1), generator=generator)
    xyz = torch.cat([torch.randint(-80, 80, (2048, 2), generator=generator) / 64 * depth, depth], 1)
    xyz[:50] = xyz[50:100]
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.full((1, 2), 32.0), torch.tensor([[24.0, 16.0]]), (32, 48))
    cameras = Cameras.cat([camera, camera.crop(0, 4, (32, 48))]).to(device)
    for convention in PixelConvention:
        grid = PixelGrid(convention, camera.image_size)
        found, expected = (visible(xyz.to(device), cameras, 0.5, grid, 0.5) for visible in (_visible_cuda, _visible_torch))
        differing = int((found != expected).sum())
        if differing > 4:  # rounding of the division may move single points to the next cell
            return f"{differing} points differ from the reference in the {convention.value} convention"
    return None


_CUDA = CudaModule("visibility", _SOURCE, ("draw_depths", "mark_visible"), _check_cuda)
