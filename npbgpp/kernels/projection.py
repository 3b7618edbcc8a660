"""Projection and frustum culling of chunks of a cloud on the CPU, shared by the kernels that draw points."""

import numpy as np

from npbgpp.geometry import PixelGrid, Projection
from npbgpp.kernels.cpu import fma, kernel

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
