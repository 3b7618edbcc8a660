"""Aggregation of NPBG++ (section 3.3): sums of products over the observations of points, and the learned basis functions in them.

With the values (1, a, y) of an observation, where a are m basis functions and y c channels, every summand is the product of two of them: 1; a; y; then, for
every basis function, its products with itself and the following basis functions, and with the channels: the layout that ``npbgpp.kernels.ridge`` solves.

Symbols: v observations, r rows, s sums, i inputs of the network of the basis.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from npbgpp.kernels.backend import Backend, CudaModule, backend, kernel, run_threads, spans, thread_count
from npbgpp.kernels.ridge import sums_length

_ONE = np.float32(1)
_LEAST_OBSERVATIONS = 1024  # per thread


def observation_products(basis: Float[Tensor, "v m"], features: Float[Tensor, "v c"]) -> Float[Tensor, "v s"]:
    """The summands of v observations; differentiable once."""
    found = _backend(basis, features)
    if found == "torch":
        return observation_products_reference(basis, features)
    return _Products.apply(basis, features)


@torch.no_grad()
def add_observations(
    sums: Float[Tensor, "r s"], rows: Int32[Tensor, " v"], basis: Float[Tensor, "v m"], features: Float[Tensor, "v c"]
) -> None:
    """Adds the summands of v observations to ``rows`` of the sums, which must be unique and in range."""
    if len(rows) == 0:
        return
    found = _backend(basis, features) if sums.dtype == torch.float32 and sums.is_contiguous() else "torch"
    if found == "numba":
        arrays = (sums.numpy(), rows.contiguous().numpy(), basis.contiguous().numpy(), features.contiguous().numpy())
        parts = spans(len(rows), thread_count(len(rows), _LEAST_OBSERVATIONS))
        run_threads(lambda k: _add(*arrays, *parts[k]), len(parts))
    elif found == "cuda":
        _launch("add", sums, rows, basis, features)
    else:
        sums.index_add_(0, rows, observation_products_reference(basis, features))


def _backend(basis: Tensor, features: Tensor) -> Backend:
    if not basis.dtype == features.dtype == torch.float32:
        return "torch"
    found = backend(basis.device)
    return "torch" if found == "cuda" and not _CUDA.usable(basis.device) else found


class _Products(torch.autograd.Function):
    """``observation_products`` by the kernels, with its gradients."""

    @staticmethod
    def forward(ctx: Any, basis: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(basis, features)
        out = basis.new_empty(len(basis), sums_length(basis.shape[1], features.shape[1]))
        if basis.device.type == "cpu":
            arrays = (basis.contiguous().numpy(), features.contiguous().numpy(), out.numpy())
            parts = spans(len(out), thread_count(len(out), _LEAST_OBSERVATIONS))
            run_threads(lambda k: _multiply(*arrays, *parts[k]), len(parts))
        else:
            _launch("multiply", out, None, basis, features)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        basis, features = ctx.saved_tensors
        if basis.device.type != "cpu":
            of_values = _differentiate_cuda(basis, features, gradient)
            return of_values[:, 1 : 1 + basis.shape[1]], of_values[:, 1 + basis.shape[1] :]
        of_basis, of_features = torch.empty(basis.shape), torch.empty(features.shape)
        arrays = [t.contiguous().numpy() for t in (basis, features, gradient, of_basis, of_features)]
        parts = spans(len(basis), thread_count(len(basis), _LEAST_OBSERVATIONS))
        run_threads(lambda k: _differentiate(*arrays, *parts[k]), len(parts))
        return of_basis, of_features


@functools.cache
def _factors(m: int, channels: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two values of every summand, as indices of (1, a, y)."""
    values = range(1 + m + channels)
    pairs = [(0, k) for k in values] + [(j, k) for j in range(1, 1 + m) for k in values[j:]]
    first, second = zip(*pairs, strict=True)
    return first, second


# ----------------------------------------------------------------------
# Reference


def observation_products_reference(basis: Float[Tensor, "v m"], features: Float[Tensor, "v c"]) -> Float[Tensor, "v s"]:
    """``observation_products`` in plain PyTorch."""
    rows = [part for j in range(basis.shape[1]) for part in (basis[:, j, None] * basis[:, j:], basis[:, j, None] * features)]
    return torch.cat([torch.ones_like(basis[:, :1]), basis, features, *rows], 1)


# ----------------------------------------------------------------------
# CPU


@kernel()
def _add(sums, rows, basis, features, begin, end):
    m, c = basis.shape[1], features.shape[1]
    for i in range(begin, end):
        row, a, y = sums[rows[i]], basis[i], features[i]
        row[0] += _ONE
        for j in range(m):
            row[1 + j] += a[j]
        for k in range(c):
            row[1 + m + k] += y[k]
        at = 1 + m + c
        for j in range(m):
            factor = a[j]
            for k in range(j, m):
                row[at + k - j] += factor * a[k]
            at += m - j
            for k in range(c):
                row[at + k] += factor * y[k]
            at += c


@kernel()
def _multiply(basis, features, out, begin, end):
    m, c = basis.shape[1], features.shape[1]
    for i in range(begin, end):
        row, a, y = out[i], basis[i], features[i]
        row[0] = _ONE
        for j in range(m):
            row[1 + j] = a[j]
        for k in range(c):
            row[1 + m + k] = y[k]
        at = 1 + m + c
        for j in range(m):
            factor = a[j]
            for k in range(j, m):
                row[at + k - j] = factor * a[k]
            at += m - j
            for k in range(c):
                row[at + k] = factor * y[k]
            at += c


@kernel()
def _differentiate(basis, features, gradient, of_basis, of_features, begin, end):
    m, c = basis.shape[1], features.shape[1]
    for i in range(begin, end):
        a, y, given, of_a, of_y = basis[i], features[i], gradient[i], of_basis[i], of_features[i]
        for j in range(m):
            of_a[j] = given[1 + j]
        for k in range(c):
            of_y[k] = given[1 + m + k]
        at = 1 + m + c
        for j in range(m):
            for k in range(j, m):
                of_a[j] += given[at + k - j] * a[k]
                of_a[k] += given[at + k - j] * a[j]
            at += m - j
            for k in range(c):
                of_a[j] += given[at + k] * y[k]
                of_y[k] += given[at + k] * a[j]
            at += c


# ----------------------------------------------------------------------
# CUDA: one thread per summand; one per value for gradients

_SOURCE = """
extern "C" __global__ void add(
    float* sums, const int* rows, const float* values, const int* first, const int* second, int observations, int width, int length
) {
    const long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long i = n / length;
    if (i >= observations) return;
    const int k = n % length;
    const float* value = values + i * width;
    sums[(long long)rows[i] * length + k] += value[first[k]] * value[second[k]];
}

extern "C" __global__ void multiply(
    float* out, const float* values, const int* first, const int* second, int observations, int width, int length
) {
    const long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long i = n / length;
    if (i >= observations) return;
    const int k = n % length;
    const float* value = values + i * width;
    out[n] = value[first[k]] * value[second[k]];
}

extern "C" __global__ void differentiate(
    const float* gradient, const float* values, const int* first, const int* second, float* of_values, int observations, int width, int length
) {
    const long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long i = n / width;
    if (i >= observations) return;
    const int which = n % width;
    const float* value = values + i * width;
    float sum = 0.0f;
    for (int k = 0; k < length; ++k) {
        if (first[k] == which) sum += gradient[i * length + k] * value[second[k]];
        if (second[k] == which) sum += gradient[i * length + k] * value[first[k]];
    }
    of_values[n] = sum;
}
"""


def _on_device(basis: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values (v, 1 + m + c) and the factors of every summand."""
    values = torch.cat([torch.ones_like(basis[:, :1]), basis, features], 1)
    first, second = (torch.tensor(i, dtype=torch.int32, device=basis.device) for i in _factors(basis.shape[1], features.shape[1]))
    return values, first, second


def _launch(name: str, target: Tensor, rows: Tensor | None, basis: Tensor, features: Tensor) -> None:
    values, first, second = _on_device(basis, features)
    length = len(first)
    chosen = [] if rows is None else [rows.contiguous()]
    _CUDA.launch(name, len(values) * length, target, *chosen, values, first, second, len(values), values.shape[1], length)


def _differentiate_cuda(basis: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
    values, first, second = _on_device(basis, features)
    of_values = torch.empty_like(values)
    sizes = (len(values), values.shape[1], len(first))
    _CUDA.launch("differentiate", values.numel(), gradient.contiguous(), values, first, second, of_values, *sizes)
    return of_values


def _check(device: torch.device) -> str | None:
    generator = torch.Generator().manual_seed(0)
    basis, features = (torch.randn(7, k, generator=generator).to(device) for k in (3, 5))
    expected = observation_products_reference(basis, features)
    sums = torch.zeros(9, expected.shape[1], device=device)
    rows = torch.tensor([8, 0, 3, 4, 1, 7, 5], dtype=torch.int32, device=device)
    _launch("add", sums, rows, basis, features)
    _launch("add", sums, rows, basis, features)
    out = torch.empty_like(expected)
    _launch("multiply", out, None, basis, features)
    if not torch.allclose(sums[rows.long()], 2 * expected, rtol=1e-5) or sums[[2, 6]].any() or not torch.allclose(out, expected, rtol=1e-5):
        return "sums differ from the reference"
    weights = torch.randn(expected.shape, generator=generator).to(device)
    with torch.enable_grad():
        leaves = [t.clone().requires_grad_() for t in (basis, features)]
        wanted = torch.autograd.grad((observation_products_reference(*leaves) * weights).sum(), leaves)
    found = _differentiate_cuda(basis, features, weights)
    return None if torch.allclose(found[:, 1:], torch.cat(wanted, 1), rtol=1e-4, atol=1e-5) else "gradients differ from the reference"


_CUDA = CudaModule("aggregation", _SOURCE, ("add", "multiply", "differentiate"), _check)


# ----------------------------------------------------------------------
# Basis functions of viewing directions: a small network of harmonics, without gradients, on the CPU.
#
# One pass over blocks of points that stay in the cache, in place of a dozen operations on all points. PyTorch serves gradients and other devices.


_BLOCK = 64  # points
_UNROLLED = 4  # inputs added at a time
_SMALLEST_DISTANCE = np.float32(1e-7)
_TWO = np.float32(2)
_LEAST_POINTS = 512  # per thread


def learned_basis_numba(
    offset: Float[Tensor, "v 3"],
    frequency: float,
    reads_distance: bool,
    layers: Sequence[tuple[Float[Tensor, "_ _"], Float[Tensor, " _"]]],
    slope: float,
) -> Float[Tensor, "v m"]:
    """Output of an MLP with leaky ReLUs whose inputs are the distance, if it is read, and 18 harmonics of the direction.

    Args:
        offset: point minus camera centre, scene units, float32 on the CPU.
        frequency: base frequency of the harmonics: the sines, then the cosines, of every coordinate at 1, 2 and 4 times it, by the formulas of double angles.
        reads_distance: the first input is the length of the offset.
        layers: weights (outputs, inputs) and biases.
        slope: of the leaky ReLU for negative values.
    """
    parts, shapes = [], []
    for weight, bias in layers:
        outputs, inputs = weight.shape
        padded = -(-inputs // _UNROLLED) * _UNROLLED
        packed = torch.zeros(outputs, 1 + padded)
        packed[:, 0], packed[:, 1 : 1 + inputs] = bias, weight
        parts.append(packed.flatten())
        shapes.append((outputs, padded))
    numbers, sizes = torch.cat(parts).numpy(), np.array(shapes, dtype=np.int64)
    out = torch.empty(len(offset), shapes[-1][0])
    arrays = (offset.contiguous().numpy(), np.float32(frequency), reads_distance, numbers, sizes, np.float32(slope), out.numpy())
    chunks = spans(len(out), thread_count(len(out), _LEAST_POINTS))
    run_threads(lambda k: _evaluate(*arrays, *chunks[k]), len(chunks))
    return out


@kernel(fastmath={"contract"})
def _evaluate(offset, frequency, reads_distance, numbers, sizes, slope, out, begin, end):
    rows = 20
    for layer in range(len(sizes)):
        rows = max(rows, sizes[layer, 0] + 3, sizes[layer, 1])
    x, y = np.zeros((rows, _BLOCK), np.float32), np.zeros((rows, _BLOCK), np.float32)
    first = 1 if reads_distance else 0
    for start in range(begin, end, _BLOCK):
        count = min(_BLOCK, end - start)
        for p in range(count):
            dx, dy, dz = offset[start + p, 0], offset[start + p, 1], offset[start + p, 2]
            distance = np.sqrt(dx * dx + dy * dy + dz * dz)
            if reads_distance:
                x[0, p] = distance
            scale = frequency / (distance + _SMALLEST_DISTANCE)
            for axis in range(3):
                phase = offset[start + p, axis] * scale
                sine, cosine = np.sin(phase), np.cos(phase)
                at = first + 3 * axis
                for octave in range(3):
                    x[at + octave, p], x[at + octave + 9, p] = sine, cosine
                    sine, cosine = _TWO * sine * cosine, _ONE - _TWO * sine * sine
        for row in range(first + 18, sizes[0, 1]):  # padding must be finite
            for p in range(_BLOCK):
                x[row, p] = 0
        at = 0
        for layer in range(len(sizes)):
            outputs, inputs = sizes[layer, 0], sizes[layer, 1]
            last = layer == len(sizes) - 1
            for row in range(outputs):
                target = y[row]
                for p in range(_BLOCK):
                    target[p] = numbers[at]
                at += 1
                for i in range(0, inputs, 4):
                    a, b, c, d = numbers[at + i], numbers[at + i + 1], numbers[at + i + 2], numbers[at + i + 3]
                    u, v, w, z = x[i], x[i + 1], x[i + 2], x[i + 3]
                    for p in range(_BLOCK):
                        target[p] += (a * u[p] + b * v[p]) + (c * w[p] + d * z[p])
                at += inputs
                if not last:
                    for p in range(_BLOCK):
                        target[p] = target[p] if target[p] > 0 else slope * target[p]
            for row in range(outputs, outputs + 3):
                for p in range(_BLOCK):
                    y[row, p] = 0
            x, y = y, x
        for p in range(count):
            for row in range(out.shape[1]):
                out[start + p, row] = x[row, p]
