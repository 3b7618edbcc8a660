"""CPU kernels for 3D Gaussians (numba).

A rendering takes four steps: project the gaussians to rows of a table, sort them by depth and list them per tile, blend the tiles, and, backward, blend
again from front to back and go through the projection. A row of a tile has 16 pixels, so that it fills a vector register; its planes lie in one array,
with constant distances, so that the compiler knows that they do not overlap.

Every pair of a gaussian and a tile has a *slot*, a row of sums over the pixels; the slots of a gaussian are consecutive and added in a fixed order. So the
results do not depend on the threads.

Columns of the table (float32, the integers by their bits; ``slot`` is the first of the gaussian):
u, v, xx, xy, yy, log2 opacity, first and last column, first and last row (pixels), slot, features, depth.
alpha = 2^(xx dx^2 + xy dx dy + yy dy^2 + log2 opacity). A gaussian that is not visible has last column -1.

Columns of a slot, s = d loss / d log(alpha): sums of s, s dx, s dy, s dx^2, s dx dy, s dy^2, then of the weight times the gradient of each feature.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.geometry import Cameras
from npbgpp.kernels.cpu import kernel, run_threads, spans, thread_count
from npbgpp.kernels.gaussians.types import FOV_MARGIN, MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, SplattingSettings
from npbgpp.kernels.vectors import lanes, largest, load, maximum, minimum, splat, store, total, where_less

f32 = np.float32

_HEAD = 11  # columns of the table before the features
_SUMS = 6  # columns of a slot before the features
_STRIDE = 8  # gaussians between two looks at the transmittance of a tile

_ZERO, _HALF, _ONE, _TWO = f32(0), f32(0.5), f32(1), f32(2)
_LOG2E, _LN2 = f32(1 / math.log(2)), f32(math.log(2))
_TINY = f32(np.finfo(np.float32).tiny)
_MAX_ALPHA = f32(MAX_ALPHA)
_LEAST_EXPONENT = f32(math.log2(MIN_ALPHA))
_MIN_TRANSMITTANCE = f32(MIN_TRANSMITTANCE)
_SLACK = f32(1e-3)  # pixels by which boxes exceed the exact ones, against rounding

# 2^x on [-1, 0], relative error 7e-8: weighted least squares, reweighted to the smallest largest error
_E0, _E1, _E2 = f32(0.9999999250634342), f32(0.6931422525893447), f32(0.24017218921978473)
_E3, _E4, _E5 = f32(0.05527972250463764), f32(0.009188611646603435), f32(0.0009387883040302472)
_EIGHTH, _FLOOR = f32(0.125), f32(-8.0)

_Y0, _Y1 = f32(math.sqrt(1 / math.pi) / 2), f32(math.sqrt(3 / (4 * math.pi)))
_Y20, _Y21, _Y22 = f32(math.sqrt(15 / math.pi) / 2), f32(math.sqrt(5 / math.pi) / 4), f32(math.sqrt(15 / math.pi) / 4)
_Y30, _Y31 = f32(math.sqrt(35 / (2 * math.pi)) / 4), f32(math.sqrt(105 / math.pi) / 4)
_Y32, _Y33 = f32(math.sqrt(21 / (2 * math.pi)) / 4), f32(math.sqrt(7 / math.pi) / 4)
_3, _5, _6, _10, _15 = f32(3), f32(5), f32(6), f32(10), f32(15)

# options of the kernels: NaN keeps its meaning in the first
_SAFE = {"fastmath": {"contract", "arcp", "nsz"}, "error_model": "numpy"}
_FAST = {"fastmath": {"contract", "arcp", "nsz", "reassoc", "nnan", "ninf"}, "error_model": "numpy"}


# ----------------------------------------------------------------------
# Projection


@kernel(**_SAFE)
def _sh_basis(x, y, z, degree, basis):
    """Spherical harmonics in the order and with the signs of 3DGS."""
    basis[0] = _Y0
    if degree > 0:
        basis[1], basis[2], basis[3] = -_Y1 * y, _Y1 * z, -_Y1 * x
    if degree > 1:
        basis[4], basis[5], basis[6] = _Y20 * x * y, -_Y20 * y * z, _Y21 * (_3 * z * z - _ONE)
        basis[7], basis[8] = -_Y20 * x * z, _Y22 * (x * x - y * y)
    if degree > 2:
        basis[9], basis[10] = -_Y30 * y * (_3 * x * x - y * y), _TWO * _Y31 * x * y * z
        basis[11], basis[12] = -_Y32 * y * (_5 * z * z - _ONE), _Y33 * z * (_5 * z * z - _3)
        basis[13], basis[14] = -_Y32 * x * (_5 * z * z - _ONE), _Y31 * z * (x * x - y * y)
        basis[15] = -_Y30 * x * (x * x - _3 * y * y)


@kernel(**_SAFE)
def _sh_slope(x, y, z, degree, g):
    """Sum over k of g[k] times the gradient of harmonic k with respect to the direction."""
    gx, gy, gz = -_Y1 * g[3], -_Y1 * g[1], _Y1 * g[2]
    if degree > 1:
        gx += _Y20 * (g[4] * y - g[7] * z) + _TWO * _Y22 * g[8] * x
        gy += _Y20 * (g[4] * x - g[5] * z) - _TWO * _Y22 * g[8] * y
        gz += -_Y20 * (g[5] * y + g[7] * x) + _6 * _Y21 * g[6] * z
    if degree > 2:
        inner = _5 * z * z - _ONE
        gx += -_6 * _Y30 * g[9] * x * y + _TWO * _Y31 * g[10] * y * z - _Y32 * g[13] * inner
        gx += _TWO * _Y31 * g[14] * x * z - _3 * _Y30 * g[15] * (x * x - y * y)
        gy += -_3 * _Y30 * g[9] * (x * x - y * y) + _TWO * _Y31 * g[10] * x * z - _Y32 * g[11] * inner
        gy += -_TWO * _Y31 * g[14] * y * z + _6 * _Y30 * g[15] * x * y
        gz += _TWO * _Y31 * g[10] * x * y - _10 * _Y32 * z * (g[11] * y + g[13] * x)
        gz += _Y33 * g[12] * (_15 * z * z - _3) + _Y31 * g[14] * (x * x - y * y)
    return gx, gy, gz


@kernel(**_SAFE)
def _rotation(quaternions, i, Q):
    """Fills a rotation matrix; returns the normalised quaternion and the inverse of its length."""
    w, x, y, z = quaternions[i, 0], quaternions[i, 1], quaternions[i, 2], quaternions[i, 3]
    inverse = _ONE / max(math.sqrt(w * w + x * x + y * y + z * z), f32(1e-12))
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    Q[0, 0], Q[0, 1], Q[0, 2] = _ONE - _TWO * (y * y + z * z), _TWO * (x * y - w * z), _TWO * (x * z + w * y)
    Q[1, 0], Q[1, 1], Q[1, 2] = _TWO * (x * y + w * z), _ONE - _TWO * (x * x + z * z), _TWO * (y * z - w * x)
    Q[2, 0], Q[2, 1], Q[2, 2] = _TWO * (x * z - w * y), _TWO * (y * z + w * x), _ONE - _TWO * (x * x + y * y)
    return w, x, y, z, inverse


@kernel(**_SAFE)
def _image_axes(camera, log_scales, i, xc, yc, z, Q, M, J, A):
    """Fills the axes of a gaussian in camera coordinates M, the Jacobian J and A = J M; returns the clamped slopes."""
    fx, fy = camera[12], camera[13]
    sx, sy = xc / z, yc / z
    sx, sy = min(max(sx, camera[19]), camera[20]), min(max(sy, camera[21]), camera[22])
    J[0, 0], J[0, 1], J[0, 2] = -fx / z, _ZERO, fx * sx / z
    J[1, 0], J[1, 1], J[1, 2] = _ZERO, -fy / z, fy * sy / z
    for j in range(3):
        scale = math.exp(log_scales[i, j])
        for k in range(3):
            M[k, j] = (camera[k] * Q[0, j] + camera[3 + k] * Q[1, j] + camera[6 + k] * Q[2, j]) * scale
        A[0, j] = J[0, 0] * M[0, j] + J[0, 2] * M[2, j]
        A[1, j] = J[1, 1] * M[1, j] + J[1, 2] * M[2, j]
    return sx, sy


@kernel(**_SAFE)
def _project(begin, end, means, log_scales, quaternions, logits, sh, camera, degree, options, height, width, table, whole):
    """Fills rows of the table, except for slots. camera: see ``_camera_values``; options: dilation, near, antialiased, rgb; whole: table as int32."""
    dilation, near, antialiased, rgb = options[0], options[1], options[2] > _ZERO, options[3] > _ZERO
    Q, M = np.empty((3, 3), f32), np.empty((3, 3), f32)
    J, A = np.empty((2, 3), f32), np.empty((2, 3), f32)
    basis = np.empty(16, f32)
    channels, harmonics = sh.shape[2], (degree + 1) * (degree + 1)
    for i in range(begin, end):
        whole[i, 7] = -1
        mx, my, mz = means[i, 0], means[i, 1], means[i, 2]
        z = mx * camera[2] + my * camera[5] + mz * camera[8] + camera[11]
        if not z > near:
            continue
        logit = logits[i]
        opacity = _ONE / (_ONE + math.exp(-logit))
        if not opacity >= f32(MIN_ALPHA):
            continue
        xc = mx * camera[0] + my * camera[3] + mz * camera[6] + camera[9]
        yc = mx * camera[1] + my * camera[4] + mz * camera[7] + camera[10]
        u, v = camera[14] - camera[12] * xc / z, camera[15] - camera[13] * yc / z
        _rotation(quaternions, i, Q)
        _image_axes(camera, log_scales, i, xc, yc, z, Q, M, J, A)
        xx = A[0, 0] * A[0, 0] + A[0, 1] * A[0, 1] + A[0, 2] * A[0, 2]
        xy = A[0, 0] * A[1, 0] + A[0, 1] * A[1, 1] + A[0, 2] * A[1, 2]
        yy = A[1, 0] * A[1, 0] + A[1, 1] * A[1, 1] + A[1, 2] * A[1, 2]
        before = xx * yy - xy * xy
        xx, yy = xx + dilation, yy + dilation
        after = xx * yy - xy * xy
        if antialiased:
            opacity *= math.sqrt(max(before / after, _TINY))
        if not (after > _ZERO and opacity >= f32(MIN_ALPHA)):
            continue
        reach = _TWO * math.log(opacity / f32(MIN_ALPHA))
        half_u, half_v = math.sqrt(reach * xx) + _SLACK, math.sqrt(reach * yy) + _SLACK
        left, right = u - half_u - _HALF, u + half_u - _HALF
        top, bottom = v - half_v - _HALF, v + half_v - _HALF
        if not (right >= _ZERO and left <= f32(width - 1) and bottom >= _ZERO and top <= f32(height - 1)):
            continue
        x0, x1 = int(math.ceil(max(left, _ZERO))), int(math.floor(min(right, f32(width - 1))))
        y0, y1 = int(math.ceil(max(top, _ZERO))), int(math.floor(min(bottom, f32(height - 1))))
        if x0 > x1 or y0 > y1:
            continue
        whole[i, 6], whole[i, 7], whole[i, 8], whole[i, 9] = x0, x1, y0, y1
        table[i, 0], table[i, 1] = u, v
        table[i, 2], table[i, 3], table[i, 4] = -_HALF * _LOG2E * yy / after, _LOG2E * xy / after, -_HALF * _LOG2E * xx / after
        table[i, 5] = math.log2(opacity)
        dx, dy, dz = mx - camera[16], my - camera[17], mz - camera[18]
        length = max(math.sqrt(dx * dx + dy * dy + dz * dz), f32(1e-12))
        _sh_basis(dx / length, dy / length, dz / length, degree, basis)
        for c in range(channels):
            table[i, 11 + c] = _HALF if rgb else _ZERO
        for k in range(harmonics):
            for c in range(channels):
                table[i, 11 + c] += basis[k] * sh[i, k, c]
        if rgb:
            for c in range(channels):
                table[i, 11 + c] = max(table[i, 11 + c], _ZERO)
        table[i, 11 + channels] = z


@kernel(**_SAFE)
def _tile_count(whole, i):
    return ((whole[i, 7] >> 4) - (whole[i, 6] >> 4) + 1) * ((whole[i, 9] >> 4) - (whole[i, 8] >> 4) + 1)


@kernel(**_SAFE)
def _project_backward(
    begin, end, means, log_scales, quaternions, logits, sh, camera, degree, options, table, whole, slots,
    g_means, g_log_scales, g_quaternions, g_logits, g_sh,
):  # fmt: skip
    """Gradients of the parameters from the slots, which have a column for the depth or not."""
    dilation, antialiased, rgb = options[0], options[2] > _ZERO, options[3] > _ZERO
    Q, M, G = np.empty((3, 3), f32), np.empty((3, 3), f32), np.empty((3, 3), f32)
    J, A, GA = np.empty((2, 3), f32), np.empty((2, 3), f32), np.empty((2, 3), f32)
    basis, along = np.empty(16, f32), np.empty(16, f32)
    columns, channels, harmonics = slots.shape[1], sh.shape[2], (degree + 1) * (degree + 1)
    sums = np.empty(columns, f32)
    for i in range(begin, end):
        for j in range(3):
            g_means[i, j] = g_log_scales[i, j] = _ZERO
        for j in range(4):
            g_quaternions[i, j] = _ZERO
        g_logits[i] = _ZERO
        for k in range(sh.shape[1]):
            for c in range(channels):
                g_sh[i, k, c] = _ZERO
        if whole[i, 7] < 0:
            continue
        for c in range(columns):
            sums[c] = _ZERO
        for slot in range(whole[i, 10], whole[i, 10] + _tile_count(whole, i)):
            for c in range(columns):
                sums[c] += slots[slot, c]

        mx, my, mz = means[i, 0], means[i, 1], means[i, 2]
        xc = mx * camera[0] + my * camera[3] + mz * camera[6] + camera[9]
        yc = mx * camera[1] + my * camera[4] + mz * camera[7] + camera[10]
        z = mx * camera[2] + my * camera[5] + mz * camera[8] + camera[11]
        w, x, y, q, inverse = _rotation(quaternions, i, Q)
        sx, sy = _image_axes(camera, log_scales, i, xc, yc, z, Q, M, J, A)
        fx, fy = camera[12], camera[13]

        # the exponent: centre and inverse covariance (kxx, kxy, kyy)
        kxx, kxy, kyy = -_TWO * _LN2 * table[i, 2], -_LN2 * table[i, 3], -_TWO * _LN2 * table[i, 4]
        gu, gv = kxx * sums[1] + kxy * sums[2], kxy * sums[1] + kyy * sums[2]
        hxx, hxy, hyy = _HALF * sums[3], _HALF * sums[4], _HALF * sums[5]
        axx, axy = kxx * hxx + kxy * hxy, kxx * hxy + kxy * hyy
        ayx, ayy = kxy * hxx + kyy * hxy, kxy * hxy + kyy * hyy
        cxx, cxy, cyy = axx * kxx + axy * kxy, axx * kxy + axy * kyy, ayx * kxy + ayy * kyy
        g_logits[i] = sums[0] / (_ONE + math.exp(logits[i]))
        if antialiased:
            xx = A[0, 0] * A[0, 0] + A[0, 1] * A[0, 1] + A[0, 2] * A[0, 2]
            xy = A[0, 0] * A[1, 0] + A[0, 1] * A[1, 1] + A[0, 2] * A[1, 2]
            yy = A[1, 0] * A[1, 0] + A[1, 1] * A[1, 1] + A[1, 2] * A[1, 2]
            factor = _HALF * sums[0]
            before = max(xx * yy - xy * xy, _TINY)
            cxx += factor * (yy / before - kxx)
            cxy += factor * (-xy / before - kxy)
            cyy += factor * (xx / before - kyy)

        # A = J M, then the Jacobian and the axes
        for j in range(3):
            GA[0, j] = _TWO * (cxx * A[0, j] + cxy * A[1, j])
            GA[1, j] = _TWO * (cxy * A[0, j] + cyy * A[1, j])
        j00 = GA[0, 0] * M[0, 0] + GA[0, 1] * M[0, 1] + GA[0, 2] * M[0, 2]
        j02 = GA[0, 0] * M[2, 0] + GA[0, 1] * M[2, 1] + GA[0, 2] * M[2, 2]
        j11 = GA[1, 0] * M[1, 0] + GA[1, 1] * M[1, 1] + GA[1, 2] * M[1, 2]
        j12 = GA[1, 0] * M[2, 0] + GA[1, 1] * M[2, 1] + GA[1, 2] * M[2, 2]
        gz = ((j00 - j02 * sx) * fx + (j11 - j12 * sy) * fy) / (z * z)
        gx, gy = -gu * fx / z, -gv * fy / z
        if camera[19] <= xc / z <= camera[20]:
            gx += j02 * fx / (z * z)
            gz -= j02 * fx * sx / (z * z)
        if camera[21] <= yc / z <= camera[22]:
            gy += j12 * fy / (z * z)
            gz -= j12 * fy * sy / (z * z)
        gz += (gu * fx * xc + gv * fy * yc) / (z * z)
        if columns > 6 + channels:
            gz += sums[6 + channels]
        for j in range(3):
            scale = math.exp(log_scales[i, j])
            m0, m1 = J[0, 0] * GA[0, j], J[1, 1] * GA[1, j]
            m2 = J[0, 2] * GA[0, j] + J[1, 2] * GA[1, j]
            for k in range(3):
                G[k, j] = (camera[3 * k] * m0 + camera[3 * k + 1] * m1 + camera[3 * k + 2] * m2) * scale
            g_log_scales[i, j] = G[0, j] * Q[0, j] + G[1, j] * Q[1, j] + G[2, j] * Q[2, j]

        # the rotation, with (w, x, y, q) the normalised quaternion
        gw = _TWO * (x * (G[2, 1] - G[1, 2]) + y * (G[0, 2] - G[2, 0]) + q * (G[1, 0] - G[0, 1]))
        gqx = _TWO * (y * (G[0, 1] + G[1, 0]) + q * (G[0, 2] + G[2, 0]) + w * (G[2, 1] - G[1, 2])) - _TWO * _TWO * x * (G[1, 1] + G[2, 2])
        gqy = _TWO * (x * (G[0, 1] + G[1, 0]) + q * (G[1, 2] + G[2, 1]) + w * (G[0, 2] - G[2, 0])) - _TWO * _TWO * y * (G[0, 0] + G[2, 2])
        gqz = _TWO * (x * (G[0, 2] + G[2, 0]) + y * (G[1, 2] + G[2, 1]) + w * (G[1, 0] - G[0, 1])) - _TWO * _TWO * q * (G[0, 0] + G[1, 1])
        inside = w * gw + x * gqx + y * gqy + q * gqz
        g_quaternions[i, 0], g_quaternions[i, 1] = (gw - w * inside) * inverse, (gqx - x * inside) * inverse
        g_quaternions[i, 2], g_quaternions[i, 3] = (gqy - y * inside) * inverse, (gqz - q * inside) * inverse

        # features and their direction
        dx, dy, dz = mx - camera[16], my - camera[17], mz - camera[18]
        length = max(math.sqrt(dx * dx + dy * dy + dz * dz), f32(1e-12))
        dx, dy, dz = dx / length, dy / length, dz / length
        _sh_basis(dx, dy, dz, degree, basis)
        if rgb:
            for c in range(channels):
                if table[i, 11 + c] <= _ZERO:
                    sums[6 + c] = _ZERO
        for k in range(harmonics):
            along[k] = _ZERO
            for c in range(channels):
                g_sh[i, k, c] = basis[k] * sums[6 + c]
                along[k] += sh[i, k, c] * sums[6 + c]
        ax, ay, az = _ZERO, _ZERO, _ZERO
        if degree > 0:
            ax, ay, az = _sh_slope(dx, dy, dz, degree, along)
        inside = ax * dx + ay * dy + az * dz
        g_means[i, 0] = camera[0] * gx + camera[1] * gy + camera[2] * gz + (ax - dx * inside) / length
        g_means[i, 1] = camera[3] * gx + camera[4] * gy + camera[5] * gz + (ay - dy * inside) / length
        g_means[i, 2] = camera[6] * gx + camera[7] * gy + camera[8] * gz + (az - dz * inside) / length


# ----------------------------------------------------------------------
# Order


@kernel(**_SAFE)
def _sort_by_depth(table, whole, depth_column):
    """Visible gaussians by depth, the lowest index first in ties: a radix sort of the bits of the positive depths."""
    n, digits = len(table), 2048
    count = 0
    for i in range(n):
        count += whole[i, 7] >= 0
    order, other = np.empty(count, np.int32), np.empty(count, np.int32)
    keys, other_keys = np.empty(count, np.int32), np.empty(count, np.int32)
    histogram = np.zeros((3, digits), np.int32)
    k = 0
    for i in range(n):
        if whole[i, 7] >= 0:
            key = whole[i, depth_column]
            order[k], keys[k] = i, key
            k += 1
            histogram[0, key & 2047] += 1
            histogram[1, (key >> 11) & 2047] += 1
            histogram[2, key >> 22] += 1
    for digit in range(3):
        place = 0
        for value in range(digits):
            place, histogram[digit, value] = place + histogram[digit, value], place
        for k in range(count):
            key = keys[k]
            value = (key >> (11 * digit)) & 2047
            at = histogram[digit, value]
            histogram[digit, value] = at + 1
            other[at], other_keys[at] = order[k], key
        order, other, keys, other_keys = other, order, other_keys, keys
    return order


@kernel(**_SAFE)
def _list_tiles(order, whole, height, width):
    """Assigns slots; returns the gaussians of every tile in the order of their depth, and the beginnings of the lists of the tiles (rows first)."""
    across, down = (width + 15) >> 4, (height + 15) >> 4
    starts = np.zeros(across * down + 1, np.int64)
    for i in range(len(whole)):  # counts, moved on by two so that the lists can be filled in place
        if whole[i, 7] >= 0:
            for row in range(whole[i, 8] >> 4, (whole[i, 9] >> 4) + 1):
                for column in range(whole[i, 6] >> 4, (whole[i, 7] >> 4) + 1):
                    starts[row * across + column + 1] += 1
    for tile in range(across * down):
        starts[tile + 1] += starts[tile]
    slot = 0
    for i in range(len(whole)):
        if whole[i, 7] >= 0:
            whole[i, 10] = slot
            slot += _tile_count(whole, i)
    listed, place = np.empty(slot, np.int32), starts[:-1].copy()
    for k in range(len(order)):
        i = order[k]
        for row in range(whole[i, 8] >> 4, (whole[i, 9] >> 4) + 1):
            for column in range(whole[i, 6] >> 4, (whole[i, 7] >> 4) + 1):
                tile = row * across + column
                listed[place[tile]] = i
                place[tile] += 1
    return listed, starts


# ----------------------------------------------------------------------
# Blending


@kernel(**_FAST)
def _alpha(exponent):
    """2^exponent up to MAX_ALPHA, 0 below MIN_ALPHA; relative error 1e-6. A polynomial and three squarings need no operation on bits. Pixels at MAX_ALPHA are saturated."""
    x = maximum(exponent, _FLOOR) * _EIGHTH
    power = ((((x * _E5 + _E4) * x + _E3) * x + _E2) * x + _E1) * x + _E0
    power = power * power
    power = power * power
    power = power * power
    return where_less(exponent, _LEAST_EXPONENT, splat(_ZERO), minimum(power, _MAX_ALPHA))


@kernel(**_FAST)
def _slot(whole, i, tile_x, tile_y):
    """Slot of a gaussian in a tile."""
    row, column = (tile_y >> 4) - (whole[i, 8] >> 4), (tile_x >> 4) - (whole[i, 6] >> 4)
    return whole[i, 10] + row * ((whole[i, 7] >> 4) - (whole[i, 6] >> 4) + 1) + column


@kernel(**_FAST)
def _clear(rows, stride, inside_x, inside_y):
    """Transmittance 1 in the pixels of the image, 0 beyond; 0 in all other planes."""
    for r in range(16):
        for x in range(16):
            rows[r * stride + x] = _ONE if r < inside_y and x < inside_x else _ZERO
        for x in range(16, stride):
            rows[r * stride + x] = _ZERO


@kernel(**_FAST)
def _is_dark(rows, stride):
    """Whether nothing behind is seen in the tile."""
    most = load(rows, 0)
    for r in range(1, 16):
        most = maximum(most, load(rows, r * stride))
    return largest(most) < _MIN_TRANSMITTANCE


@kernel(**_FAST)
def _blend(thread, threads, rows, schedule, starts, listed, table, whole, background, image, alpha, depth, ends, pair_weights):
    """Renders every ``threads``-th tile of the schedule.

    rows: scratch, per row of the tile planes of 16 values, transmittance, features, depth. ends: of the lists, where tiles stopped. pair_weights: per slot.
    """
    channels, height, width = image.shape
    across = (width + 15) >> 4
    stride = 16 * (channels + 2)
    step_y, step_x = background.shape[1] > 1, background.shape[2] > 1
    for number in range(thread, len(schedule), threads):
        tile = schedule[number]
        tile_x, tile_y = (tile % across) << 4, (tile // across) << 4
        inside_x, inside_y = min(16, width - tile_x), min(16, height - tile_y)
        _clear(rows, stride, inside_x, inside_y)
        first, last = starts[tile], starts[tile + 1]
        k = first
        while k < last:
            if (k - first) & (_STRIDE - 1) == 0 and k > first and _is_dark(rows, stride):
                break
            i = listed[k]
            k += 1
            dx, to_v = lanes() + (f32(tile_x) + _HALF - table[i, 0]), f32(tile_y) + _HALF - table[i, 1]
            xx, xy, yy, power = table[i, 2], table[i, 3], table[i, 4], table[i, 5]
            begin, end = max(whole[i, 8] - tile_y, 0), min(whole[i, 9] - tile_y, 15) + 1
            weights = splat(_ZERO)
            if channels == 3:
                f0, f1, f2, f3 = table[i, _HEAD], table[i, _HEAD + 1], table[i, _HEAD + 2], table[i, _HEAD + 3]
                for r in range(begin, end):
                    dy, at = to_v + f32(r), r * 80
                    a = _alpha((dx * xx + xy * dy) * dx + (yy * dy * dy + power))
                    transmittance = load(rows, at)
                    weight = a * transmittance
                    store(rows, at, transmittance - weight)
                    store(rows, at + 16, load(rows, at + 16) + weight * f0)
                    store(rows, at + 32, load(rows, at + 32) + weight * f1)
                    store(rows, at + 48, load(rows, at + 48) + weight * f2)
                    store(rows, at + 64, load(rows, at + 64) + weight * f3)
                    weights = weights + weight
            else:
                for r in range(begin, end):
                    dy, at = to_v + f32(r), r * stride
                    a = _alpha((dx * xx + xy * dy) * dx + (yy * dy * dy + power))
                    transmittance = load(rows, at)
                    weight = a * transmittance
                    store(rows, at, transmittance - weight)
                    for c in range(channels + 1):
                        at += 16
                        store(rows, at, load(rows, at) + weight * table[i, _HEAD + c])
                    weights = weights + weight
            pair_weights[_slot(whole, i, tile_x, tile_y)] = total(weights)
        ends[tile] = k
        for rest in range(k, last):
            pair_weights[_slot(whole, listed[rest], tile_x, tile_y)] = _ZERO
        for r in range(inside_y):
            y, at = tile_y + r, r * stride
            for x in range(inside_x):
                alpha[0, y, tile_x + x] = _ONE - rows[at + x]
                depth[0, y, tile_x + x] = rows[at + 16 * (channels + 1) + x]
            for c in range(channels):
                for x in range(inside_x):
                    behind = background[c, y if step_y else 0, tile_x + x if step_x else 0]
                    image[c, y, tile_x + x] = rows[at + 16 * (c + 1) + x] + rows[at + x] * behind


@kernel(**_SAFE)
def _add_weights(begin, end, whole, pair_weights, weights):
    for i in range(begin, end):
        weights[i] = _ZERO
        if whole[i, 7] >= 0:
            for slot in range(whole[i, 10], whole[i, 10] + _tile_count(whole, i)):
                weights[i] += pair_weights[slot]


@kernel(**_FAST)
def _blend_backward(
    thread, threads, rows, schedule, starts, ends, listed, table, whole, image, alpha, depth, g_image, g_alpha, g_depth, has_alpha, has_depth, slots
):  # fmt: skip
    """Fills the slots of every ``threads``-th tile of the schedule, front to back.

    rows: scratch, per row of the tile planes of 16 values, transmittance, light from behind, gradients of the features; then a plane of sums per feature.
    The light from behind a gaussian is that of the whole pixel minus what has been passed, so that nothing is divided by the transmittance.
    """
    channels, height, width = image.shape
    across = (width + 15) >> 4
    columns = channels + 1 if has_depth else channels
    stride = 16 * (columns + 2)
    sums = 16 * stride
    for number in range(thread, len(schedule), threads):
        tile = schedule[number]
        tile_x, tile_y = (tile % across) << 4, (tile // across) << 4
        inside_x, inside_y = min(16, width - tile_x), min(16, height - tile_y)
        _clear(rows, stride, inside_x, inside_y)
        for r in range(inside_y):
            y, at = tile_y + r, r * stride
            for c in range(channels):
                for x in range(inside_x):
                    rows[at + 32 + 16 * c + x] = g_image[c, y, tile_x + x]
                    rows[at + 16 + x] += g_image[c, y, tile_x + x] * image[c, y, tile_x + x]
            if has_depth:
                for x in range(inside_x):
                    rows[at + 32 + 16 * channels + x] = g_depth[0, y, tile_x + x]
                    rows[at + 16 + x] += g_depth[0, y, tile_x + x] * depth[0, y, tile_x + x]
            if has_alpha:
                for x in range(inside_x):
                    rows[at + 16 + x] -= g_alpha[0, y, tile_x + x] * (_ONE - alpha[0, y, tile_x + x])
        for k in range(starts[tile], ends[tile]):
            i = listed[k]
            dx, to_v = lanes() + (f32(tile_x) + _HALF - table[i, 0]), f32(tile_y) + _HALF - table[i, 1]
            xx, xy, yy, power = table[i, 2], table[i, 3], table[i, 4], table[i, 5]
            begin, end = max(whole[i, 8] - tile_y, 0), min(whole[i, 9] - tile_y, 15) + 1
            slot = _slot(whole, i, tile_x, tile_y)
            s0, s1, s2 = splat(_ZERO), splat(_ZERO), splat(_ZERO)
            if columns == 3:
                f0, f1, f2 = table[i, _HEAD], table[i, _HEAD + 1], table[i, _HEAD + 2]
                t0, t1, t2 = splat(_ZERO), splat(_ZERO), splat(_ZERO)
                for r in range(begin, end):
                    dy, at = to_v + f32(r), r * 80
                    a = _alpha((dx * xx + xy * dy) * dx + (yy * dy * dy + power))
                    transmittance, g0, g1, g2 = load(rows, at), load(rows, at + 32), load(rows, at + 48), load(rows, at + 64)
                    weight = a * transmittance
                    own = weight * (g0 * f0 + g1 * f1 + g2 * f2)
                    behind = load(rows, at + 16) - own
                    store(rows, at, transmittance - weight)
                    store(rows, at + 16, behind)
                    s = where_less(a, _MAX_ALPHA, own - behind * a / (_ONE - a), splat(_ZERO))
                    s0 = s0 + s
                    s1 = s1 + s * dy
                    s2 = s2 + s * (dy * dy)
                    t0 = t0 + weight * g0
                    t1 = t1 + weight * g1
                    t2 = t2 + weight * g2
                slots[slot, _SUMS], slots[slot, _SUMS + 1], slots[slot, _SUMS + 2] = total(t0), total(t1), total(t2)
            else:
                for c in range(columns):
                    store(rows, sums + 16 * c, splat(_ZERO))
                for r in range(begin, end):
                    dy, at = to_v + f32(r), r * stride
                    a = _alpha((dx * xx + xy * dy) * dx + (yy * dy * dy + power))
                    transmittance = load(rows, at)
                    weight, gain = a * transmittance, splat(_ZERO)
                    for c in range(columns):
                        g = load(rows, at + 32 + 16 * c)
                        gain = gain + g * table[i, _HEAD + c]
                        store(rows, sums + 16 * c, load(rows, sums + 16 * c) + weight * g)
                    own = weight * gain
                    behind = load(rows, at + 16) - own
                    store(rows, at, transmittance - weight)
                    store(rows, at + 16, behind)
                    s = where_less(a, _MAX_ALPHA, own - behind * a / (_ONE - a), splat(_ZERO))
                    s0 = s0 + s
                    s1 = s1 + s * dy
                    s2 = s2 + s * (dy * dy)
                for c in range(columns):
                    slots[slot, _SUMS + c] = total(load(rows, sums + 16 * c))
            slots[slot, 0], slots[slot, 1], slots[slot, 2] = total(s0), total(s0 * dx), total(s1)
            slots[slot, 3], slots[slot, 4], slots[slot, 5] = total(s0 * dx * dx), total(s1 * dx), total(s2)
        for k in range(ends[tile], starts[tile + 1]):
            slot = _slot(whole, listed[k], tile_x, tile_y)
            for c in range(_SUMS + columns):
                slots[slot, c] = _ZERO


# ----------------------------------------------------------------------
# Autograd


class CpuRenderer(torch.autograd.Function):
    """``render_gaussians`` for float32 tensors on the CPU: image, alpha, depth, visible, weights."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Float[Tensor, "n 3"],
        log_scales: Float[Tensor, "n 3"],
        quaternions: Float[Tensor, "n 4"],
        opacity_logits: Float[Tensor, " n"],
        sh: Float[Tensor, "n k c"],
        background: Float[Tensor, "c _ _"],
        camera: Cameras,
        sh_degree: int,
        settings: SplattingSettings,
        rgb: bool,
    ) -> tuple[Tensor, ...]:
        height, width = camera.image_size
        n, channels = len(means), sh.shape[2]
        parameters = tuple(p.detach().contiguous() for p in (means, log_scales, quaternions, opacity_logits, sh))
        arrays = tuple(p.numpy() for p in parameters)
        view = _camera_values(camera)
        options = np.array([settings.dilation, settings.near, settings.antialiased, rgb], f32)
        table = np.empty((n, -(-(_HEAD + channels + 1) // 4) * 4), f32)
        whole = table.view(np.int32)
        parts = spans(n, thread_count(n, 2000))
        run_threads(lambda k: _project(*parts[k], *arrays, view, sh_degree, options, height, width, table, whole), len(parts))
        order = _sort_by_depth(table, whole, _HEAD + channels)
        listed, starts = _list_tiles(order, whole, height, width)
        schedule = np.argsort(starts[:-1] - starts[1:], kind="stable")  # long lists first, so that threads end together
        image, alpha, depth = (torch.empty(c, height, width) for c in (channels, 1, 1))
        ends, pair_weights = np.empty(len(schedule), np.int64), np.empty(len(listed), f32)
        threads = thread_count(len(schedule))
        constants = background.detach().contiguous().numpy()
        outputs = (image.numpy(), alpha.numpy(), depth.numpy())
        run_threads(
            lambda k: _blend(k, threads, _scratch(16 * (channels + 2)), schedule, starts, listed, table, whole, constants, *outputs, ends, pair_weights), threads
        )
        weights = torch.empty(n)
        _add_weights(0, n, whole, pair_weights, weights.numpy())
        visible = torch.from_numpy(whole[:, 7] >= 0)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(visible, weights)
        ctx.save_for_backward(*parameters, background, image, alpha, depth)
        ctx.state = (view, sh_degree, options, table, whole, listed, starts, ends, schedule)
        return image, alpha, depth, visible, weights

    @staticmethod
    def backward(ctx: Any, g_image: Tensor | None, g_alpha: Tensor | None, g_depth: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        *parameters, background, image, alpha, depth = ctx.saved_tensors
        view, sh_degree, options, table, whole, listed, starts, ends, schedule = ctx.state
        n, channels = len(parameters[0]), image.shape[0]
        has_depth, has_alpha = g_depth is not None, g_alpha is not None
        g_image = torch.zeros_like(image) if g_image is None else g_image.contiguous()
        none = alpha.new_empty(1, 0, 0)
        given = tuple((none if g is None else g.contiguous()).numpy() for g in (g_alpha, g_depth))
        slots = np.empty((len(listed), _SUMS + channels + has_depth), f32)
        threads = thread_count(len(schedule))
        outputs = (image.numpy(), alpha.numpy(), depth.numpy(), g_image.numpy(), *given, has_alpha, has_depth)
        run_threads(
            lambda k: _blend_backward(k, threads, _scratch(17 * (channels + 3)), schedule, starts, ends, listed, table, whole, *outputs, slots), threads
        )
        gradients = tuple(torch.empty_like(p) for p in parameters)
        arrays = tuple(p.numpy() for p in (*parameters, *gradients))
        parts = spans(n, thread_count(n, 2000))
        run_threads(
            lambda k: _project_backward(*parts[k], *arrays[:5], view, sh_degree, options, table, whole, slots, *arrays[5:]), len(parts)
        )
        g_background = None
        if ctx.needs_input_grad[5]:
            g_background = (g_image * (1 - alpha)).sum_to_size(background.shape)
        return *gradients, g_background, None, None, None, None


def _scratch(planes: int) -> np.ndarray:
    """Planes of 16 values that begin at cache lines."""
    memory = np.empty(16 * planes + 15, f32)
    first = -(memory.ctypes.data // 4) % 16
    return memory[first : first + 16 * planes]


def _camera_values(camera: Cameras) -> np.ndarray:
    """R (rows), T, fx, fy, cx, cy, centre, and the smallest and largest x/z and y/z in the Jacobian."""
    height, width = camera.image_size
    (fx, fy), (cx, cy) = camera.focal_length[0].tolist(), camera.principal_point[0].tolist()
    centre = camera.centers()[0].tolist()
    margin_x, margin_y = FOV_MARGIN * width / (2 * fx), FOV_MARGIN * height / (2 * fy)
    limits = [-(width - cx) / fx - margin_x, cx / fx + margin_x, -(height - cy) / fy - margin_y, cy / fy + margin_y]
    return np.array([*camera.R[0].flatten().tolist(), *camera.T[0].tolist(), fx, fy, cx, cy, *centre, *limits], f32)
