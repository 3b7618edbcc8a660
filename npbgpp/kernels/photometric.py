"""Photometric loss of 3D Gaussians, L1 and structural dissimilarity (Wang et al. 2004), with its gradient in one pass.

The window of SSIM is separable. The fast kernel goes through the rows of a channel with three stages that follow each other by five rows, the radius of the
window: window sums along rows; window sums across rows, SSIM and its derivatives; and the transposed window on the derivatives. So the maps between the
stages are a few rows each, and stay in the cache.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from npbgpp.errors import InputError
from npbgpp.kernels.backend import backend, kernel, run_threads, spans, thread_count
from npbgpp.kernels.vectors import load, maximum, splat, store, total, where_less

f32 = np.float32

_RADIUS, _SIGMA = 5, 1.5
_MIN_SIDE = 6  # of images: reflection padding by 5 pixels needs 6
_C1, _C2 = f32(0.01**2), f32(0.03**2)
_ZERO, _ONE, _TWO = f32(0), f32(1), f32(2)
_MARGIN = 32  # values before and after the rows of a buffer
_FAST = {"fastmath": {"contract", "arcp", "nsz", "reassoc", "nnan", "ninf"}, "error_model": "numpy"}


@dataclass(frozen=True)
class PhotometricLoss:
    """Loss of a rendering and its terms.

    Attributes:
        loss: (1 - ssim_weight) * l1 + ssim_weight * (1 - ssim).
        l1: weighted mean absolute difference, without gradient.
        ssim: weighted mean of the structural similarity, without gradient; 1 if its weight is 0.
    """

    loss: Float[Tensor, ""]
    l1: Float[Tensor, ""]
    ssim: Float[Tensor, ""]


def photometric_loss(
    image: Float[Tensor, "c h w"], target: Float[Tensor, "c h w"], mask: Float[Tensor, "1 h w"] | None, ssim_weight: float
) -> PhotometricLoss:
    """(1 - ssim_weight) * L1 + ssim_weight * (1 - SSIM), the loss of 3DGS for a weight of 0.2.

    SSIM is that of ``npbgpp.losses.ssim_map``: 11x11 Gaussian window (sigma 1.5), data range 1, reflection padding. Both terms are means over the pixels,
    with the mask as their weights; an empty mask gives 0. The window of SSIM also sees pixels outside of the mask.

    Args:
        image: the rendering; the loss is differentiable in it.
        target: the photo.
        mask: weight of each pixel, from 0; None for 1.
        ssim_weight: from 0 to 1; with 0, SSIM is not calculated.

    Raises:
        InputError: an image side shorter than 6 pixels and an SSIM weight above 0.
    """
    if ssim_weight > 0 and min(image.shape[1:]) < _MIN_SIDE:
        raise InputError(
            f"photometric loss: expected images of at least {_MIN_SIDE}x{_MIN_SIDE} pixels for SSIM, got {image.shape[1]}x{image.shape[2]}; "
            "use larger images or an SSIM weight of 0"
        )
    tensors = (image, target) if mask is None else (image, target, mask)
    if backend(image.device) == "numba" and all(t.dtype == torch.float32 for t in tensors):
        return PhotometricLoss(*_CpuLoss.apply(image, target, mask, ssim_weight))
    return _photometric_reference(image, target, mask, ssim_weight)


def _photometric_reference(
    image: Float[Tensor, "c h w"], target: Float[Tensor, "c h w"], mask: Float[Tensor, "1 h w"] | None, ssim_weight: float
) -> PhotometricLoss:
    weights = torch.ones_like(image) if mask is None else mask.expand_as(image)
    weights = weights / weights.sum().clamp_min(torch.finfo(image.dtype).tiny)
    l1, dissimilarity = ((image - target).abs() * weights).sum(), image.new_zeros(())
    if ssim_weight > 0:
        maps = torch.stack([image, target, image * image, target * target, image * target])
        taps = torch.exp(torch.arange(-_RADIUS, _RADIUS + 1, dtype=image.dtype, device=image.device).square() / (-2 * _SIGMA**2))
        window = torch.outer(taps, taps) / taps.sum().square()
        padded = F.pad(maps, [_RADIUS] * 4, mode="reflect").flatten(0, 1)[:, None]
        mean_a, mean_b, aa, bb, ab = F.conv2d(padded, window[None, None])[:, 0].unflatten(0, (5, -1))
        variance = (aa - mean_a**2 + bb - mean_b**2).clamp_min(0)
        similarity = (2 * mean_a * mean_b + 0.01**2) * (2 * (ab - mean_a * mean_b) + 0.03**2)
        similarity = similarity / ((mean_a**2 + mean_b**2 + 0.01**2) * (variance + 0.03**2))
        dissimilarity = ((1 - similarity) * weights).sum()
    return PhotometricLoss((1 - ssim_weight) * l1 + ssim_weight * dissimilarity, l1.detach(), 1 - dissimilarity.detach())


class _CpuLoss(torch.autograd.Function):
    """Loss, L1 and SSIM; the gradient is calculated with the values."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, target: Tensor, mask: Tensor | None, ssim_weight: float) -> tuple[Tensor, Tensor, Tensor]:
        channels, height, width = image.shape
        values = tuple(t.detach().contiguous().view(-1).numpy() for t in (image, target, image.new_empty(0) if mask is None else mask))
        weight_sum = float(width * height if mask is None else mask.sum(dtype=torch.float64)) * channels
        scale = 1 / weight_sum if weight_sum > 0 else 0.0
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty(image.numel() if wanted else 0)
        taps = [math.exp(-0.5 * (d / _SIGMA) ** 2) for d in range(_RADIUS + 1)]
        window = np.array(taps, f32) / f32(2 * sum(taps) - taps[0])
        row_sums = np.zeros((2, channels, height), f32)
        threads = thread_count(channels * height, 32)
        strips = spans(height, threads if channels % threads else 1)
        jobs = np.array([(c, *strip) for strip in strips for c in range(channels)], np.int64).reshape(-1, 3)
        padded = -(-width // 16) * 16 + 2 * _MARGIN

        def work(thread: int) -> None:
            scratch = np.zeros(120 * padded, f32)
            constants = (f32(scale), f32(ssim_weight), wanted, window, row_sums, gradient.numpy())
            _photometric(np.ascontiguousarray(jobs[thread::threads]), scratch, padded, height, width, *values, mask is not None, *constants)

        run_threads(work, threads)
        l1, similarity = (scale * row_sums.sum((1, 2), dtype=np.float64)).tolist()
        if not ssim_weight > 0 or mask is not None and not weight_sum > 0:
            similarity = 1.0
        if wanted:
            ctx.save_for_backward(gradient.view(image.shape))
        loss = (1 - ssim_weight) * l1 + ssim_weight * (1 - similarity)
        terms = tuple(torch.tensor(value, dtype=torch.float32) for value in (loss, l1, similarity))
        ctx.mark_non_differentiable(*terms[1:])
        return terms  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, g_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * g_loss, None, None, None


@kernel(**_FAST)
def _window_row(source, begin, target, at, count, taps):
    """Window sums along a row: ``count`` values, rounded up to 16."""
    t0, t1, t2, t3, t4, t5 = taps[0], taps[1], taps[2], taps[3], taps[4], taps[5]
    for x in range(0, count, 16):
        k = begin + x
        value = load(source, k) * t0 + (load(source, k - 1) + load(source, k + 1)) * t1
        value = value + (load(source, k - 2) + load(source, k + 2)) * t2 + (load(source, k - 3) + load(source, k + 3)) * t3
        value = value + (load(source, k - 4) + load(source, k + 4)) * t4 + (load(source, k - 5) + load(source, k + 5)) * t5
        store(target, at + x, value)


@kernel(**_FAST)
def _transposed_tap(y, r, height, taps):
    """Weight of derivatives at row r in the gradient at row y: also those of the reflected rows."""
    tap = taps[abs(y - r)]
    if y >= 1 and y + r <= 5:
        tap += taps[y + r]
    beyond = 2 * (height - 1) - y - r
    if y <= height - 2 and beyond <= 5:
        tap += taps[beyond]
    return tap


@kernel(**_FAST)
def _copy_row(source, begin, target, at, count):
    x = 0
    while x + 16 <= count:
        store(target, at + x, load(source, begin + x))
        x += 16
    while x < count:
        target[at + x] = source[begin + x]
        x += 1


@kernel(**_FAST)
def _weight_row(mask, has_mask, begin, scratch, at, count, rounded):
    """Weights of a row of pixels, 0 after its end."""
    if has_mask:
        _copy_row(mask, begin, scratch, at, count)
    else:
        for x in range(0, rounded, 16):
            store(scratch, at + x, splat(_ONE))
    for x in range(count, rounded):
        scratch[at + x] = _ZERO


@kernel(**_FAST)
def _across(scratch, at, places, taps):
    """Weighted sum of vectors in eleven rows that begin at ``places``."""
    value = load(scratch, at + places[5]) * taps[0] + (load(scratch, at + places[4]) + load(scratch, at + places[6])) * taps[1]
    value = value + (load(scratch, at + places[3]) + load(scratch, at + places[7])) * taps[2]
    value = value + (load(scratch, at + places[2]) + load(scratch, at + places[8])) * taps[3]
    value = value + (load(scratch, at + places[1]) + load(scratch, at + places[9])) * taps[4]
    return value + (load(scratch, at + places[0]) + load(scratch, at + places[10])) * taps[5]


@kernel(**_FAST)
def _photometric(
    jobs, scratch, padded, height, width, image, target, mask, has_mask, scale, ssim_weight, wanted, taps, row_sums, gradient
):  # fmt: skip
    """Jobs are (channel, first row, end row); row_sums: unscaled L1 and SSIM per channel and row; wanted: fill the gradient.

    scratch: rings of 16 rows of four window sums and of three derivatives, then single rows: four products, three transposed sums, weights.
    """
    margin, rounded = 32, padded - 64
    derivatives, products = 64 * padded, 112 * padded
    sums, weights = products + 4 * padded, products + 7 * padded
    with_ssim = ssim_weight > _ZERO
    step = (_ONE - ssim_weight) * scale
    places, tap_of_row = np.zeros(11, np.int64), np.zeros(11, f32)
    for job in range(len(jobs)):
        channel, first, end = jobs[job, 0], jobs[job, 1], jobs[job, 2]
        for r in range(max(0, first - 10), end + 10):
            if with_ssim and r < height:  # window sums along row r of a, b, a^2 + b^2, a b
                source = (channel * height + r) * width
                at = products + margin
                _copy_row(image, source, scratch, at, width)
                _copy_row(target, source, scratch, at + padded, width)
                for x in range(1, 6):
                    for plane in range(2):
                        row = at + plane * padded
                        scratch[row - x] = scratch[row + x]
                        scratch[row + width - 1 + x] = scratch[row + width - 1 - x]
                for x in range(-16, rounded + 16, 16):
                    a, b = load(scratch, at + x), load(scratch, at + padded + x)
                    store(scratch, at + 2 * padded + x, a * a + b * b)
                    store(scratch, at + 3 * padded + x, a * b)
                for plane in range(4):
                    _window_row(scratch, at + plane * padded, scratch, ((r & 15) * 4 + plane) * padded, rounded, taps)
            y = r - 5
            if with_ssim and max(0, first - 5) <= y < min(height, end + 5):  # across rows, SSIM and derivatives
                _weight_row(mask, has_mask, y * width, scratch, weights, width, rounded)
                for d in range(-5, 6):
                    row = abs(y + d)
                    if row >= height:
                        row = 2 * (height - 1) - row
                    places[d + 5] = (row & 15) * 4 * padded
                similarity = splat(_ZERO)
                out = derivatives + (y & 15) * 3 * padded + margin
                for x in range(0, rounded, 16):
                    mean_a, mean_b = _across(scratch, x, places, taps), _across(scratch, x + padded, places, taps)
                    square, product = _across(scratch, x + 2 * padded, places, taps), _across(scratch, x + 3 * padded, places, taps)
                    weight = load(scratch, weights + x)
                    squares, mean_ab = mean_a * mean_a + mean_b * mean_b, mean_a * mean_b
                    n1, n2 = mean_ab * _TWO + _C1, (product - mean_ab) * _TWO + _C2
                    inverse1, inverse2 = _ONE / (squares + _C1), _ONE / (maximum(square - squares, _ZERO) + _C2)
                    luminance = n1 * inverse1
                    value = luminance * n2 * inverse2
                    similarity = similarity + value * weight
                    weight = weight * (_ZERO - ssim_weight * scale)
                    by_product = luminance * inverse2 * _TWO * weight
                    by_square = (_ZERO - value) * inverse2 * weight
                    by_mean = (mean_b * n2 * inverse2 - mean_a * value) * inverse1 * _TWO * weight
                    store(scratch, out + x, by_mean - by_product * mean_b - by_square * mean_a * _TWO)
                    store(scratch, out + padded + x, by_square)
                    store(scratch, out + 2 * padded + x, by_product)
                if first <= y < end:
                    row_sums[1, channel, y] = total(similarity)
            y = r - 10
            if first <= y < end:
                source = (channel * height + y) * width
                if with_ssim and wanted:  # transposed window; the products of the last row are no longer needed
                    for k in range(11):
                        row = min(max(y - 5 + k, 0), height - 1)
                        places[k] = derivatives + (row & 15) * 3 * padded + margin
                        tap_of_row[k] = _transposed_tap(y, row, height, taps) if row == y - 5 + k else _ZERO
                    for plane in range(3):
                        begin = products + plane * padded + margin
                        for x in range(0, rounded, 16):
                            value = splat(_ZERO)
                            for k in range(11):
                                value = value + load(scratch, places[k] + plane * padded + x) * tap_of_row[k]
                            store(scratch, begin + x, value)
                        store(scratch, begin - 32, splat(_ZERO))
                        store(scratch, begin - 16, splat(_ZERO))
                        store(scratch, begin + rounded, splat(_ZERO))
                        store(scratch, begin + rounded + 16, splat(_ZERO))
                        row = sums + plane * padded
                        _window_row(scratch, begin - 16, scratch, row + 16, rounded + 32, taps)
                        row += margin
                        for x in range(1, 6):
                            scratch[row + x] += scratch[row - x]
                        for x in range(1, 6):
                            scratch[row + width - 1 - x] += scratch[row + width - 1 + x]
                _weight_row(mask, has_mask, y * width, scratch, weights, width, rounded)
                at, out = products + margin, sums + margin
                _copy_row(image, source, scratch, at, width)
                _copy_row(target, source, scratch, at + padded, width)
                difference, none = splat(_ZERO), splat(_ZERO)
                for x in range(0, rounded, 16):
                    a, b, weight = load(scratch, at + x), load(scratch, at + padded + x), load(scratch, weights + x)
                    above, below = a - b, b - a
                    difference = difference + maximum(above, below) * weight
                    weight = weight * step
                    value = where_less(above, _ZERO, none - weight, where_less(below, _ZERO, weight, none))
                    if with_ssim:
                        value = (
                            value
                            + load(scratch, out + x)
                            + a * _TWO * load(scratch, out + padded + x)
                            + b * load(scratch, out + 2 * padded + x)
                        )
                    store(scratch, at + 2 * padded + x, value)
                if wanted:
                    _copy_row(scratch, at + 2 * padded, gradient, source, width)
                row_sums[0, channel, y] = total(difference)
