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
from npbgpp.kernels.backend import kernel, run_threads, spans, thread_count
from npbgpp.kernels.gaussians.camera_values import camera_values
from npbgpp.kernels.gaussians.types import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, SplattingSettings
from npbgpp.kernels.vectors import (
    exp2,
    lanes,
    largest,
    load,
    load_strided,
    log2,
    maximum,
    minimum,
    splat,
    square_root,
    store,
    store_strided,
    total,
    where_less,
)

f32 = np.float32

_HEAD = 11  # columns of the table before the features
_SUMS = 6  # columns of a slot before the features
_STRIDE = 8  # gaussians between two checks of the transmittance of a tile

_ZERO, _HALF, _ONE, _TWO = f32(0), f32(0.5), f32(1), f32(2)
_LOG2E, _LN2 = f32(1 / math.log(2)), f32(math.log(2))
_TINY, _SMALL = f32(np.finfo(np.float32).tiny), f32(1e-12)
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
_3, _5, _6, _10 = f32(3), f32(5), f32(6), f32(10)

_OPTIONS = {"fastmath": {"contract", "arcp", "nsz", "reassoc"}, "error_model": "numpy"}  # not nnan: NaN fails comparisons


# ----------------------------------------------------------------------
# Projection


@kernel(**_OPTIONS)
def _sh_basis(x, y, z, degree, fields, at):
    """Stores the spherical harmonics of 16 directions, in the order and with the signs of 3DGS."""
    store(fields, at, splat(_Y0))
    if degree > 0:
        store(fields, at + 16, y * -_Y1)
        store(fields, at + 32, z * _Y1)
        store(fields, at + 48, x * -_Y1)
    if degree > 1:
        store(fields, at + 64, x * y * _Y20)
        store(fields, at + 80, y * z * -_Y20)
        store(fields, at + 96, z * z * (_3 * _Y21) - _Y21)
        store(fields, at + 112, x * z * -_Y20)
        store(fields, at + 128, (x * x - y * y) * _Y22)
    if degree > 2:
        inner = z * z * _5 - _ONE
        store(fields, at + 144, y * (x * x * _3 - y * y) * -_Y30)
        store(fields, at + 160, x * y * z * (_TWO * _Y31))
        store(fields, at + 176, y * inner * -_Y32)
        store(fields, at + 192, z * (inner - _TWO) * _Y33)
        store(fields, at + 208, x * inner * -_Y32)
        store(fields, at + 224, z * (x * x - y * y) * _Y31)
        store(fields, at + 240, x * (x * x - y * y * _3) * -_Y30)


@kernel(**_OPTIONS)
def _sh_slope(x, y, z, degree, fields, at):
    """Sum over k of field k times the gradient of harmonic k with respect to the direction."""
    gx, gy, gz = load(fields, at + 48) * -_Y1, load(fields, at + 16) * -_Y1, load(fields, at + 32) * _Y1
    if degree > 1:
        g4, g5, g6 = load(fields, at + 64) * _Y20, load(fields, at + 80) * _Y20, load(fields, at + 96) * (_6 * _Y21)
        g7, g8 = load(fields, at + 112) * _Y20, load(fields, at + 128) * (_TWO * _Y22)
        gx = gx + g4 * y - g7 * z + g8 * x
        gy = gy + g4 * x - g5 * z - g8 * y
        gz = gz + g6 * z - g5 * y - g7 * x
    if degree > 2:
        inner, squares = z * z * _5 - _ONE, x * x - y * y
        g9, g10, g11 = load(fields, at + 144) * (_3 * _Y30), load(fields, at + 160) * (_TWO * _Y31), load(fields, at + 176) * _Y32
        g12, g13 = load(fields, at + 192) * (_3 * _Y33), load(fields, at + 208) * _Y32
        g14, g15 = load(fields, at + 224) * _Y31, load(fields, at + 240) * (_3 * _Y30)
        gx = gx - g9 * x * y * _TWO + g10 * y * z - g13 * inner + g14 * x * z * _TWO - g15 * squares
        gy = gy - g9 * squares + g10 * x * z - g11 * inner - g14 * y * z * _TWO + g15 * x * y * _TWO
        gz = gz + g10 * x * y - (g11 * y + g13 * x) * z * _10 + g12 * inner + g14 * squares
    return gx, gy, gz


@kernel(**_OPTIONS)
def _direction(x, y, z, camera):
    """From the camera centre, and the inverse of the distance."""
    dx, dy, dz = x - camera[16], y - camera[17], z - camera[18]
    inverse = _ONE / maximum(square_root(dx * dx + dy * dy + dz * dz), _SMALL)
    return dx * inverse, dy * inverse, dz * inverse, inverse


@kernel(**_OPTIONS)
def _rotation(quaternions, i):
    """Rows of the rotation matrices of 16 gaussians, their normalised quaternions, and the inverse of the lengths."""
    w, x, y, z = (load_strided(quaternions, 4 * i, 4), load_strided(quaternions, 4 * i + 1, 4),
                  load_strided(quaternions, 4 * i + 2, 4), load_strided(quaternions, 4 * i + 3, 4))  # fmt: skip
    inverse = _ONE / maximum(square_root(w * w + x * x + y * y + z * z), _SMALL)
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    row0 = _ONE - (y * y + z * z) * _TWO, (x * y - w * z) * _TWO, (x * z + w * y) * _TWO
    row1 = (x * y + w * z) * _TWO, _ONE - (x * x + z * z) * _TWO, (y * z - w * x) * _TWO
    row2 = (x * z - w * y) * _TWO, (y * z + w * x) * _TWO, _ONE - (x * x + y * y) * _TWO
    return row0, row1, row2, (w, x, y, z), inverse


@kernel(**_OPTIONS)
def _to_camera(camera, k, column):
    """Coordinate k in the camera of a direction in the world."""
    return column[0] * camera[k] + column[1] * camera[3 + k] + column[2] * camera[6 + k]


@kernel(**_OPTIONS)
def _axis(camera, column, scale, j00, j02, j11, j12):
    """An axis of the gaussians in camera coordinates and its image."""
    m0, m1, m2 = _to_camera(camera, 0, column) * scale, _to_camera(camera, 1, column) * scale, _to_camera(camera, 2, column) * scale
    return m0, m1, m2, j00 * m0 + j02 * m2, j11 * m1 + j12 * m2


@kernel(**_OPTIONS)
def _project(begin, end, means, log_scales, quaternions, logits, sh, camera, degree, options, height, width, table, whole):
    """Fills rows of the table, except for slots, 16 at a time; the last 16 may overlap those before.

    means, log_scales, quaternions: flat. camera: see ``camera_values``; options: dilation, near, antialiased, rgb; whole: the table as int32.
    """
    dilation, near, antialiased, rgb = options[0], options[1], options[2] > _ZERO, options[3] > _ZERO
    channels, harmonics = sh.shape[2], (degree + 1) * (degree + 1)
    fields = np.empty(26 * 16, f32)
    for block in range(begin, end, 16):
        first = min(block, end - 16)
        x, y, z = load_strided(means, 3 * first, 3), load_strided(means, 3 * first + 1, 3), load_strided(means, 3 * first + 2, 3)
        xc, yc, zc = (x * camera[0] + y * camera[3] + z * camera[6] + camera[9], x * camera[1] + y * camera[4] + z * camera[7] + camera[10],
                      x * camera[2] + y * camera[5] + z * camera[8] + camera[11])  # fmt: skip
        store(fields, 0, zc)
        inverse = _ONE / where_less(splat(near), zc, zc, splat(_ONE))
        power = _ZERO - log2(exp2(load(logits, first) * -_LOG2E) + _ONE)
        tx, ty = xc * inverse, yc * inverse
        sx, sy = minimum(maximum(tx, camera[19]), camera[20]), minimum(maximum(ty, camera[21]), camera[22])
        j00, j11 = inverse * -camera[12], inverse * -camera[13]
        j02, j12 = _ZERO - j00 * sx, _ZERO - j11 * sy
        row0, row1, row2, _, _ = _rotation(quaternions, first)
        e0, e1, e2 = (exp2(load_strided(log_scales, 3 * first, 3) * _LOG2E), exp2(load_strided(log_scales, 3 * first + 1, 3) * _LOG2E),
                      exp2(load_strided(log_scales, 3 * first + 2, 3) * _LOG2E))  # fmt: skip
        _, _, _, a0, b0 = _axis(camera, (row0[0], row1[0], row2[0]), e0, j00, j02, j11, j12)
        _, _, _, a1, b1 = _axis(camera, (row0[1], row1[1], row2[1]), e1, j00, j02, j11, j12)
        _, _, _, a2, b2 = _axis(camera, (row0[2], row1[2], row2[2]), e2, j00, j02, j11, j12)
        xx, xy, yy = a0 * a0 + a1 * a1 + a2 * a2, a0 * b0 + a1 * b1 + a2 * b2, b0 * b0 + b1 * b1 + b2 * b2
        before = xx * yy - xy * xy
        xx, yy = xx + dilation, yy + dilation
        scale = _LOG2E / (xx * yy - xy * xy)
        if antialiased:
            power = power + log2(maximum(before * scale * _LN2, _TINY)) * _HALF
        reach = maximum(power - _LEAST_EXPONENT, _ZERO) * (_TWO * _LN2)
        store(fields, 16, tx * -camera[12] + camera[14])
        store(fields, 32, ty * -camera[13] + camera[15])
        store(fields, 48, yy * scale * -_HALF)
        store(fields, 64, xy * scale)
        store(fields, 80, xx * scale * -_HALF)
        store(fields, 96, power)
        store(fields, 112, square_root(reach * xx) + _SLACK)
        store(fields, 128, square_root(reach * yy) + _SLACK)
        dx, dy, dz, _ = _direction(x, y, z, camera)
        _sh_basis(dx, dy, dz, degree, fields, 160)
        for lane in range(16):
            i = first + lane
            whole[i, 7] = -1
            u, v, half_u, half_v = fields[16 + lane], fields[32 + lane], fields[112 + lane], fields[128 + lane]
            if not (fields[lane] > near and fields[96 + lane] >= _LEAST_EXPONENT):
                continue
            left, right = u - half_u - _HALF, u + half_u - _HALF
            top, bottom = v - half_v - _HALF, v + half_v - _HALF
            if not (right >= _ZERO and left <= f32(width - 1) and bottom >= _ZERO and top <= f32(height - 1)):
                continue
            x0, x1 = int(math.ceil(max(left, _ZERO))), int(math.floor(min(right, f32(width - 1))))
            y0, y1 = int(math.ceil(max(top, _ZERO))), int(math.floor(min(bottom, f32(height - 1))))
            if x0 > x1 or y0 > y1:
                continue
            whole[i, 6], whole[i, 7], whole[i, 8], whole[i, 9] = x0, x1, y0, y1
            table[i, 0], table[i, 1], table[i, 2], table[i, 3] = u, v, fields[48 + lane], fields[64 + lane]
            table[i, 4], table[i, 5], table[i, _HEAD + channels] = fields[80 + lane], fields[96 + lane], fields[lane]
            if channels == 3:
                f0 = f1 = f2 = _HALF if rgb else _ZERO
                for k in range(harmonics):
                    basis = fields[160 + 16 * k + lane]
                    f0 += basis * sh[i, k, 0]
                    f1 += basis * sh[i, k, 1]
                    f2 += basis * sh[i, k, 2]
                table[i, _HEAD], table[i, _HEAD + 1], table[i, _HEAD + 2] = f0, f1, f2
            else:
                for c in range(channels):
                    value = _HALF if rgb else _ZERO
                    for k in range(harmonics):
                        value += fields[160 + 16 * k + lane] * sh[i, k, c]
                    table[i, _HEAD + c] = value
            if rgb:
                for c in range(channels):
                    table[i, _HEAD + c] = max(table[i, _HEAD + c], _ZERO)


@kernel(**_OPTIONS)
def _tile_count(whole, i):
    return ((whole[i, 7] >> 4) - (whole[i, 6] >> 4) + 1) * ((whole[i, 9] >> 4) - (whole[i, 8] >> 4) + 1)


@kernel(**_OPTIONS)
def _axis_backward(camera, column, scale, m0, m1, m2, a, b, cxx, cxy, cyy, j00, j02, j11, j12):
    """From the gradient of the covariance: those of the Jacobian and of one column of rotation times scale."""
    ga, gb = (cxx * a + cxy * b) * _TWO, (cxy * a + cyy * b) * _TWO
    g0, g1, g2 = j00 * ga * scale, j11 * gb * scale, (j02 * ga + j12 * gb) * scale
    world0 = g0 * camera[0] + g1 * camera[1] + g2 * camera[2]
    world1 = g0 * camera[3] + g1 * camera[4] + g2 * camera[5]
    world2 = g0 * camera[6] + g1 * camera[7] + g2 * camera[8]
    by_log_scale = world0 * column[0] + world1 * column[1] + world2 * column[2]
    return ga * m0, ga * m2, gb * m1, gb * m2, world0, world1, world2, by_log_scale


@kernel(**_OPTIONS)
def _keep(visible, value):
    return where_less(splat(_HALF), visible, value, splat(_ZERO))


@kernel(**_OPTIONS)
def _project_backward(
    begin, end, means, log_scales, quaternions, logits, sh, camera, degree, options, table, whole, slots,
    g_means, g_log_scales, g_quaternions, g_logits, g_sh,
):  # fmt: skip
    """Gradients of the parameters from the slots, which have a column for the depth or not."""
    near, antialiased, rgb = options[1], options[2] > _ZERO, options[3] > _ZERO
    columns, channels, harmonics = slots.shape[1], sh.shape[2], (degree + 1) * (degree + 1)
    spread = np.empty(28 * 16, f32)  # sums of six, gradient of the depth, visible, three of the exponent, then harmonics
    sums = np.empty(columns, f32)
    for block in range(begin, end, 16):
        first = min(block, end - 16)
        seen = False
        for lane in range(16):
            seen = seen or whole[first + lane, 7] >= 0
        if not seen:
            for i in range(first, first + 16):
                for j in range(3):
                    g_means[3 * i + j] = g_log_scales[3 * i + j] = _ZERO
                for j in range(4):
                    g_quaternions[4 * i + j] = _ZERO
                g_logits[i] = _ZERO
                for k in range(sh.shape[1]):
                    for c in range(channels):
                        g_sh[i, k, c] = _ZERO
            continue

        x, y, z = load_strided(means, 3 * first, 3), load_strided(means, 3 * first + 1, 3), load_strided(means, 3 * first + 2, 3)
        dx, dy, dz, nearness = _direction(x, y, z, camera)
        _sh_basis(dx, dy, dz, degree, spread, 12 * 16)
        for lane in range(16):  # sums over slots, and the harmonics
            i = first + lane
            if whole[i, 7] < 0:
                for field in range(28):
                    spread[16 * field + lane] = _ZERO
                for k in range(sh.shape[1]):
                    for c in range(channels):
                        g_sh[i, k, c] = _ZERO
                continue
            for c in range(columns):
                sums[c] = _ZERO
            for slot in range(whole[i, 10], whole[i, 10] + _tile_count(whole, i)):
                for c in range(columns):
                    sums[c] += slots[slot, c]
            for c in range(6):
                spread[16 * c + lane] = sums[c]
            spread[96 + lane] = sums[_SUMS + channels] if columns > _SUMS + channels else _ZERO
            spread[112 + lane] = _ONE
            spread[128 + lane], spread[144 + lane], spread[160 + lane] = table[i, 2], table[i, 3], table[i, 4]
            if rgb:
                for c in range(channels):
                    if table[i, _HEAD + c] <= _ZERO:
                        sums[_SUMS + c] = _ZERO
            if channels == 3:
                t0, t1, t2 = sums[_SUMS], sums[_SUMS + 1], sums[_SUMS + 2]
                for k in range(harmonics):
                    basis = spread[192 + 16 * k + lane]
                    g_sh[i, k, 0], g_sh[i, k, 1], g_sh[i, k, 2] = basis * t0, basis * t1, basis * t2
                    spread[192 + 16 * k + lane] = sh[i, k, 0] * t0 + sh[i, k, 1] * t1 + sh[i, k, 2] * t2
            else:
                for k in range(harmonics):
                    basis, along = spread[192 + 16 * k + lane], _ZERO
                    for c in range(channels):
                        g_sh[i, k, c] = basis * sums[_SUMS + c]
                        along += sh[i, k, c] * sums[_SUMS + c]
                    spread[192 + 16 * k + lane] = along
            for k in range(harmonics, sh.shape[1]):
                for c in range(channels):
                    g_sh[i, k, c] = _ZERO

        visible = load(spread, 112)
        xc, yc, zc = (x * camera[0] + y * camera[3] + z * camera[6] + camera[9], x * camera[1] + y * camera[4] + z * camera[7] + camera[10],
                      x * camera[2] + y * camera[5] + z * camera[8] + camera[11])  # fmt: skip
        inverse = _ONE / where_less(splat(near), zc, zc, splat(_ONE))
        tx, ty = xc * inverse, yc * inverse
        sx, sy = minimum(maximum(tx, camera[19]), camera[20]), minimum(maximum(ty, camera[21]), camera[22])
        j00, j11 = inverse * -camera[12], inverse * -camera[13]
        j02, j12 = _ZERO - j00 * sx, _ZERO - j11 * sy
        row0, row1, row2, quaternion, shortness = _rotation(quaternions, first)
        e0, e1, e2 = (exp2(load_strided(log_scales, 3 * first, 3) * _LOG2E), exp2(load_strided(log_scales, 3 * first + 1, 3) * _LOG2E),
                      exp2(load_strided(log_scales, 3 * first + 2, 3) * _LOG2E))  # fmt: skip
        column0, column1, column2 = (row0[0], row1[0], row2[0]), (row0[1], row1[1], row2[1]), (row0[2], row1[2], row2[2])
        m00, m10, m20, a0, b0 = _axis(camera, column0, e0, j00, j02, j11, j12)
        m01, m11, m21, a1, b1 = _axis(camera, column1, e1, j00, j02, j11, j12)
        m02, m12, m22, a2, b2 = _axis(camera, column2, e2, j00, j02, j11, j12)

        # the exponent: centre and inverse covariance (kxx, kxy, kyy), then the covariance (cxx, cxy, cyy)
        s, s1, s2 = load(spread, 0), load(spread, 16), load(spread, 32)
        kxx, kxy, kyy = load(spread, 128) * (-_TWO * _LN2), load(spread, 144) * -_LN2, load(spread, 160) * (-_TWO * _LN2)
        gu, gv = kxx * s1 + kxy * s2, kxy * s1 + kyy * s2
        hxx, hxy, hyy = load(spread, 48) * _HALF, load(spread, 64) * _HALF, load(spread, 80) * _HALF
        axx, axy = kxx * hxx + kxy * hxy, kxx * hxy + kxy * hyy
        ayx, ayy = kxy * hxx + kyy * hxy, kxy * hxy + kyy * hyy
        cxx, cxy, cyy = axx * kxx + axy * kxy, axx * kxy + axy * kyy, ayx * kxy + ayy * kyy
        if antialiased:
            xx, xy, yy = a0 * a0 + a1 * a1 + a2 * a2, a0 * b0 + a1 * b1 + a2 * b2, b0 * b0 + b1 * b1 + b2 * b2
            half, scale = s * _HALF, _ONE / maximum(xx * yy - xy * xy, _TINY)
            cxx, cxy, cyy = cxx + half * (yy * scale - kxx), cxy - half * (xy * scale + kxy), cyy + half * (xx * scale - kyy)

        p00, p02, p11, p12, n00, n10, n20, l0 = _axis_backward(
            camera, column0, e0, m00, m10, m20, a0, b0, cxx, cxy, cyy, j00, j02, j11, j12
        )
        q00, q02, q11, q12, n01, n11, n21, l1 = _axis_backward(
            camera, column1, e1, m01, m11, m21, a1, b1, cxx, cxy, cyy, j00, j02, j11, j12
        )
        r00, r02, r11, r12, n02, n12, n22, l2 = _axis_backward(
            camera, column2, e2, m02, m12, m22, a2, b2, cxx, cxy, cyy, j00, j02, j11, j12
        )
        store_strided(g_log_scales, 3 * first, 3, _keep(visible, l0))
        store_strided(g_log_scales, 3 * first + 1, 3, _keep(visible, l1))
        store_strided(g_log_scales, 3 * first + 2, 3, _keep(visible, l2))

        # the Jacobian, where the slope is clamped or not, and the centre
        g00, g02, g11, g12 = p00 + q00 + r00, p02 + q02 + r02, p11 + q11 + r11, p12 + q12 + r12
        square = inverse * inverse
        fx, fy = square * camera[12], square * camera[13]
        none, low_x, low_y = splat(_ZERO), splat(camera[19]), splat(camera[21])
        free_x = where_less(low_x, tx, where_less(tx, camera[20], g02 * fx, none), none)
        free_y = where_less(low_y, ty, where_less(ty, camera[22], g12 * fy, none), none)
        gx, gy = free_x - gu * inverse * camera[12], free_y - gv * inverse * camera[13]
        gz = (g00 - g02 * sx) * fx + (g11 - g12 * sy) * fy - free_x * sx - free_y * sy
        gz = gz + gu * fx * xc + gv * fy * yc + load(spread, 96)

        # the rotation: n is the gradient of its columns
        w, qx, qy, qz = quaternion
        gw = (qx * (n21 - n12) + qy * (n02 - n20) + qz * (n10 - n01)) * _TWO
        gqx = (qy * (n01 + n10) + qz * (n02 + n20) + w * (n21 - n12) - qx * (n11 + n22) * _TWO) * _TWO
        gqy = (qx * (n01 + n10) + qz * (n12 + n21) + w * (n02 - n20) - qy * (n00 + n22) * _TWO) * _TWO
        gqz = (qx * (n02 + n20) + qy * (n12 + n21) + w * (n10 - n01) - qz * (n00 + n11) * _TWO) * _TWO
        inside = w * gw + qx * gqx + qy * gqy + qz * gqz
        store_strided(g_quaternions, 4 * first, 4, _keep(visible, (gw - w * inside) * shortness))
        store_strided(g_quaternions, 4 * first + 1, 4, _keep(visible, (gqx - qx * inside) * shortness))
        store_strided(g_quaternions, 4 * first + 2, 4, _keep(visible, (gqy - qy * inside) * shortness))
        store_strided(g_quaternions, 4 * first + 3, 4, _keep(visible, (gqz - qz * inside) * shortness))

        store(g_logits, first, _keep(visible, s / (exp2(load(logits, first) * _LOG2E) + _ONE)))
        world0 = gx * camera[0] + gy * camera[1] + gz * camera[2]
        world1 = gx * camera[3] + gy * camera[4] + gz * camera[5]
        world2 = gx * camera[6] + gy * camera[7] + gz * camera[8]
        if degree > 0:
            ax, ay, az = _sh_slope(dx, dy, dz, degree, spread, 192)
            inside = ax * dx + ay * dy + az * dz
            world0, world1 = world0 + (ax - dx * inside) * nearness, world1 + (ay - dy * inside) * nearness
            world2 = world2 + (az - dz * inside) * nearness
        store_strided(g_means, 3 * first, 3, _keep(visible, world0))
        store_strided(g_means, 3 * first + 1, 3, _keep(visible, world1))
        store_strided(g_means, 3 * first + 2, 3, _keep(visible, world2))


# ----------------------------------------------------------------------
# Order


@kernel(**_OPTIONS)
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


@kernel(**_OPTIONS)
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


@kernel(**_OPTIONS)
def _alpha(exponent):
    """2^exponent up to MAX_ALPHA, 0 below MIN_ALPHA; relative error 1e-6. A polynomial and three squarings need no operation on bits."""
    x = maximum(exponent, _FLOOR) * _EIGHTH
    power = ((((x * _E5 + _E4) * x + _E3) * x + _E2) * x + _E1) * x + _E0
    power = power * power
    power = power * power
    power = power * power
    return where_less(exponent, _LEAST_EXPONENT, splat(_ZERO), minimum(power, _MAX_ALPHA))


@kernel(**_OPTIONS)
def _slot(whole, i, tile_x, tile_y):
    """Slot of a gaussian in a tile."""
    row, column = (tile_y >> 4) - (whole[i, 8] >> 4), (tile_x >> 4) - (whole[i, 6] >> 4)
    return whole[i, 10] + row * ((whole[i, 7] >> 4) - (whole[i, 6] >> 4) + 1) + column


@kernel(**_OPTIONS)
def _clear(rows, stride, inside_x, inside_y):
    """Transmittance 1 in the pixels of the image, 0 beyond; 0 in all other planes."""
    for r in range(16):
        for x in range(16):
            rows[r * stride + x] = _ONE if r < inside_y and x < inside_x else _ZERO
        for x in range(16, stride):
            rows[r * stride + x] = _ZERO


@kernel(**_OPTIONS)
def _is_dark(rows, stride):
    """Whether nothing behind is seen in the tile."""
    most = load(rows, 0)
    for r in range(1, 16):
        most = maximum(most, load(rows, r * stride))
    return largest(most) < _MIN_TRANSMITTANCE


@kernel(**_OPTIONS)
def _blend(thread, threads, rows, schedule, starts, listed, table, whole, background, image, alpha, depth, ends):
    """Renders every ``threads``-th tile of the schedule.

    rows: scratch, per row of the tile planes of 16 values, transmittance, features, depth. ends: of the lists, where tiles stopped.
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
        ends[tile] = k
        for r in range(inside_y):
            y, at = tile_y + r, r * stride
            for x in range(inside_x):
                alpha[0, y, tile_x + x] = _ONE - rows[at + x]
                depth[0, y, tile_x + x] = rows[at + 16 * (channels + 1) + x]
            for c in range(channels):
                for x in range(inside_x):
                    behind = background[c, y if step_y else 0, tile_x + x if step_x else 0]
                    image[c, y, tile_x + x] = rows[at + 16 * (c + 1) + x] + rows[at + x] * behind


@kernel(**_OPTIONS)
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
    """``render_gaussians`` for float32 tensors on the CPU: image, alpha, depth, visible."""

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
        channels = sh.shape[2]
        parameters = _at_least_16(*(p.detach().contiguous() for p in (means, log_scales, quaternions, opacity_logits, sh)))
        n, arrays = len(parameters[0]), _arrays(parameters)
        view = np.array(camera_values(camera), f32)
        options = np.array([settings.dilation, settings.near, settings.antialiased, rgb], f32)
        table = np.empty((n, -(-(_HEAD + channels + 1) // 4) * 4), f32)
        whole = table.view(np.int32)
        parts = spans(n, thread_count(n, 2000))
        run_threads(lambda k: _project(*parts[k], *arrays, view, sh_degree, options, height, width, table, whole), len(parts))
        order = _sort_by_depth(table, whole, _HEAD + channels)
        listed, starts = _list_tiles(order, whole, height, width)
        schedule = np.argsort(starts[:-1] - starts[1:], kind="stable")  # long lists first, so that threads end together
        image, alpha, depth = (torch.empty(c, height, width) for c in (channels, 1, 1))
        ends = np.empty(len(schedule), np.int64)
        threads = thread_count(len(schedule))
        constants = background.detach().contiguous().numpy()
        outputs = (image.numpy(), alpha.numpy(), depth.numpy())
        run_threads(
            lambda k: _blend(k, threads, _scratch(16 * (channels + 2)), schedule, starts, listed, table, whole, constants, *outputs, ends),
            threads,
        )
        visible = torch.from_numpy(whole[: len(means), 7] >= 0)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(visible)
        ctx.save_for_backward(*parameters, background, image, alpha, depth)
        ctx.count = len(means)
        ctx.state = (view, sh_degree, options, table, whole, listed, starts, ends, schedule)
        return image, alpha, depth, visible

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
            lambda k: _blend_backward(
                k, threads, _scratch(17 * (channels + 3)), schedule, starts, ends, listed, table, whole, *outputs, slots
            ),
            threads,
        )
        gradients = tuple(torch.empty_like(p) for p in parameters)
        arrays = (*_arrays(tuple(parameters)), *_arrays(gradients))
        parts = spans(n, thread_count(n, 2000))
        run_threads(
            lambda k: _project_backward(*parts[k], *arrays[:5], view, sh_degree, options, table, whole, slots, *arrays[5:]), len(parts)
        )
        g_background = None
        if ctx.needs_input_grad[5]:
            g_background = (g_image * (1 - alpha)).sum_to_size(background.shape)
        return *(g[: ctx.count] for g in gradients), g_background, None, None, None, None


def _at_least_16(*parameters: Tensor) -> tuple[Tensor, ...]:
    """Fewer than 16 gaussians, filled up with invisible ones."""
    missing = 16 - len(parameters[0])
    if missing <= 0:
        return parameters
    fill = [p.new_full((missing, *p.shape[1:]), -1e3 if p.dim() == 1 else 1.0) for p in parameters]
    return tuple(torch.cat(pair) for pair in zip(parameters, fill, strict=True))


def _arrays(parameters: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    """Flat, except for the harmonics."""
    *flat, sh = parameters
    return *(p.view(-1).numpy() for p in flat), sh.numpy()


def _scratch(planes: int) -> np.ndarray:
    """Planes of 16 values that begin at cache lines."""
    memory = np.empty(16 * planes + 15, f32)
    first = -(memory.ctypes.data // 4) % 16
    return memory[first : first + 16 * planes]
