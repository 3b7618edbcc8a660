"""Ridge regression per point from sums over its observations: the solve of NPBG++ (section 3.3).

A row of sums of a point with N observations of m basis functions a and c channels y holds, in this order: N; A, the sum of a; Y, the sum of y; then, for
every basis function, its row of G, the sum of a aT, from the diagonal on, and its row of B, the sum of a yT: ``sums_length(m, c)`` numbers.

Symbols: r rows, n points, s sums, q = (1 + m) c coefficients.
"""

import functools
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from npbgpp.kernels.backend import Backend, CudaModule, backend, kernel, run_threads, spans, thread_count
from npbgpp.kernels.vectors import LANES, load, load_strided, maximum, splat, store, store_strided, where_less

_ONE = np.float32(1)
_LEAST_ROWS = 512  # per thread
_REFERENCE_ROWS = 1 << 16  # solved at a time


def sums_length(m: int, channels: int) -> int:
    """Numbers in a row of sums."""
    return 1 + m + channels + m * (m + 1) // 2 + m * channels


def ridge_solve(sums: Float[Tensor, "r s"], ridge: Float[Tensor, " m"], channels: int) -> Float[Tensor, "r q"]:
    """The mean, ``Y / N``, and the slopes, ``(G + diag(ridge))^-1 (B - A meanT)``, of every row; differentiable once.

    Slopes of rows with one observation are exactly zero; so is everything for rows of zeros.

    Args:
        sums: see the module docstring.
        ridge: positive number per basis function.
        channels: c.

    Returns:
        The c means, then the slopes by basis function.
    """
    if torch.is_grad_enabled() and (sums.requires_grad or ridge.requires_grad) and _backend(sums, len(ridge), channels) != "torch":
        return _RidgeSolve.apply(sums, ridge, channels)
    out = sums.new_empty(len(sums), (1 + len(ridge)) * channels)
    match _backend(sums, len(ridge), channels):
        case "numba":
            _solve_numba(sums.detach(), None, ridge.detach(), channels, out)
        case "cuda":
            _solve_cuda(sums.detach(), None, ridge.detach(), channels, out)
        case _:
            return ridge_solve_reference(sums, ridge, channels)
    return out


@torch.no_grad()
def ridge_solve_rows(
    sums: Float[Tensor, "r s"], rows: Int32[Tensor, " n"], ridge: Float[Tensor, " m"], channels: int, out: Float[Tensor, "n q"]
) -> None:
    """Writes the solution of row ``rows[i]`` of the sums to row i of ``out``, and zeros where ``rows[i]`` is -1; see ``ridge_solve``."""
    match _backend(sums, len(ridge), channels):
        case "numba":
            _solve_numba(sums, rows, ridge, channels, out)
        case "cuda":
            _solve_cuda(sums, rows, ridge, channels, out)
        case _:
            out.zero_()
            for first in range(0, len(rows), _REFERENCE_ROWS):
                part = rows[first : first + _REFERENCE_ROWS]
                known = (part >= 0).nonzero()[:, 0]
                out[first + known] = ridge_solve_reference(sums[part[known]], ridge, channels)


def _backend(sums: Tensor, m: int, channels: int) -> Backend:
    if sums.dtype != torch.float32:
        return "torch"
    found = backend(sums.device)
    return "torch" if found == "cuda" and not _cuda(m, channels).usable(sums.device) else found


class _RidgeSolve(torch.autograd.Function):
    """``ridge_solve`` by the kernels, with its gradients."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, ridge: Tensor, channels: int) -> Tensor:
        out = ridge_solve(sums, ridge, channels)
        ctx.save_for_backward(sums, ridge, out)
        ctx.channels = channels
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        sums, ridge, out = ctx.saved_tensors
        differentiate = _differentiate_numba if sums.device.type == "cpu" else _differentiate_cuda
        of_sums = differentiate(sums, ridge, ctx.channels, out, gradient.contiguous())
        # the ridge is added to the diagonal of G
        m, c = len(ridge), ctx.channels
        diagonal = [1 + m + c + sum(m - k + c for k in range(j)) for j in range(m)]
        return of_sums, of_sums[:, diagonal].sum(0), None


# ----------------------------------------------------------------------
# Reference


def ridge_solve_reference(sums: Float[Tensor, "r s"], ridge: Float[Tensor, " m"], channels: int) -> Float[Tensor, "r q"]:
    """``ridge_solve`` in plain PyTorch."""
    m = len(ridge)
    count, basis, total, *columns = sums.split([1, m, channels, *(size for j in range(m) for size in (m - j, channels))], 1)
    mean = total / count.clamp_min(1.0)
    upper = torch.stack([torch.nn.functional.pad(column, (m - column.shape[1], 0)) for column in columns[::2]], 1)
    gram = upper + upper.triu(1).transpose(1, 2)
    deviation = torch.stack(columns[1::2], 1) - basis[:, :, None] * mean[:, None]
    return torch.cat([mean, torch.linalg.solve(gram + torch.diag(ridge), deviation).flatten(1)], 1)


# ----------------------------------------------------------------------
# CPU


def _constants(ridge: Tensor, channels: int) -> tuple[tuple[np.float32, ...], tuple[int, ...]]:
    """The ridge, and c zeros: numba compiles a version per length of tuples, so that m and c are constants and loops over them are unrolled."""
    return tuple(np.float32(value) for value in ridge.tolist()), (0,) * channels


def _solve_numba(sums: Tensor, rows: Tensor | None, ridge: Tensor, channels: int, out: Tensor) -> None:
    table, target = sums.contiguous().numpy(), out.numpy()
    chosen = np.zeros(0, np.int32) if rows is None else rows.contiguous().numpy()
    constants = _constants(ridge, channels)
    parts = spans(len(out), thread_count(len(out), _LEAST_ROWS))
    run_threads(lambda k: _solve(table, chosen, *constants, target, *parts[k]), len(parts))


def _differentiate_numba(sums: Tensor, ridge: Tensor, channels: int, out: Tensor, gradient: Tensor) -> Tensor:
    of_sums = torch.empty_like(sums, memory_format=torch.contiguous_format)
    arrays = (sums.contiguous().numpy(), out.numpy(), gradient.numpy(), of_sums.numpy())
    constants = _constants(ridge, channels)
    parts = spans(len(sums), thread_count(len(sums), _LEAST_ROWS))
    run_threads(lambda k: _differentiate(*arrays, *constants, *parts[k]), len(parts))
    return of_sums


@kernel()
def _eliminate(row, ridge, channels, gram, pivots, x):
    """Solves (G + diag(ridge)) x = x, x (m, c), by G = L D LT without pivoting; ``gram`` (m, m) and ``pivots`` (m,) are overwritten.

    Row j of ``gram`` becomes that of D LT: elimination below the diagonal of a symmetric matrix.
    """
    m, c = len(ridge), len(channels)
    at = 1 + m + c
    for j in range(m):
        for k in range(j, m):
            gram[j, k] = row[at + k - j]
        gram[j, j] += ridge[j]
        at += m - j + c
        for i in range(j):
            factor = gram[i, j] * pivots[i]
            for k in range(j, m):
                gram[j, k] -= factor * gram[i, k]
            for k in range(c):
                x[j, k] -= factor * x[i, k]
        pivots[j] = _ONE / gram[j, j]
    for reverse in range(m):
        j = m - 1 - reverse
        for k in range(c):
            x[j, k] *= pivots[j]
        for i in range(j + 1, m):
            factor = gram[j, i] * pivots[j]
            for k in range(c):
                x[j, k] -= factor * x[i, k]


@kernel()
def _solve(sums, rows, ridge, channels, out, begin, end):
    """Rows ``begin`` to ``end`` of ``out``; no ``rows`` means all in order. Sixteen rows at a time, one in each lane of the vectors."""
    m, c = len(ridge), len(channels)
    length, solved = sums.shape[1], c + m * c
    part, found = np.zeros(LANES * length, np.float32), np.empty(LANES * solved, np.float32)
    # vectors: G, whose upper triangle is used, the reciprocals of its pivots, and the right-hand sides, which become the slopes
    pivots, x = m * m * LANES, (m * m + m) * LANES
    work = np.empty(x + m * c * LANES, np.float32)
    for first in range(begin, end, LANES):
        lanes = min(LANES, end - first)
        for lane in range(lanes):
            chosen = rows[first + lane] if len(rows) else first + lane
            at = lane * length
            if chosen < 0:
                part[at : at + length] = 0  # zeros are solved by zeros
                continue
            row = sums[chosen]
            for k in range(length):
                part[at + k] = row[k]
        count = maximum(load_strided(part, 0, length), _ONE)
        for k in range(c):
            store_strided(found, k, solved, load_strided(part, 1 + m + k, length) / count)
        at = 1 + m + c
        for j in range(m):
            for k in range(j, m):
                value = load_strided(part, at + k - j, length)
                store(work, (j * m + k) * LANES, value + ridge[j] if k == j else value)
            at += m - j
            basis = load_strided(part, 1 + j, length)
            for k in range(c):
                deviation = load_strided(part, at + k, length) - basis * load_strided(found, k, solved)
                # one observation deviates by rounding errors only
                store(work, x + (j * c + k) * LANES, where_less(count, np.float32(1.5), splat(np.float32(0)), deviation))
            at += c
        for j in range(m):
            for i in range(j):
                factor = load(work, (i * m + j) * LANES) * load(work, pivots + i * LANES)
                for k in range(j, m):
                    at = (j * m + k) * LANES
                    store(work, at, load(work, at) - factor * load(work, (i * m + k) * LANES))
                for k in range(c):
                    at = x + (j * c + k) * LANES
                    store(work, at, load(work, at) - factor * load(work, x + (i * c + k) * LANES))
            store(work, pivots + j * LANES, splat(_ONE) / load(work, (j * m + j) * LANES))
        for reverse in range(m):
            j = m - 1 - reverse
            pivot = load(work, pivots + j * LANES)
            for k in range(c):
                value = load(work, x + (j * c + k) * LANES) * pivot
                for i in range(j + 1, m):
                    value = value - load(work, (j * m + i) * LANES) * pivot * load(work, x + (i * c + k) * LANES)
                store(work, x + (j * c + k) * LANES, value)
                store_strided(found, c + j * c + k, solved, value)
        for lane in range(lanes):
            result = out[first + lane]
            for k in range(solved):
                result[k] = found[lane * solved + k]


@kernel()
def _differentiate(sums, out, gradient, of_sums, ridge, channels, begin, end):
    """Gradients of the sums. With x the solution for the right-hand side ``gradient``: B gets x, G gets -x slopesT, A gets -x mean."""
    m, c = len(ridge), len(channels)
    gram, pivots, x = np.empty((m, m), np.float32), np.empty(m, np.float32), np.empty((m, c), np.float32)
    for n in range(begin, end):
        row, result, target, given = sums[n], out[n], of_sums[n], gradient[n]
        for j in range(m):
            for k in range(c):
                x[j, k] = given[c + j * c + k]
        _eliminate(row, ridge, channels, gram, pivots, x)
        count = max(row[0], _ONE)
        of_count = np.float32(0)
        for k in range(c):
            of_mean = given[k]
            for j in range(m):
                of_mean -= x[j, k] * row[1 + j]
            target[1 + m + k] = of_mean / count
            of_count -= of_mean * result[k] / count
        target[0] = of_count if row[0] > _ONE else np.float32(0)
        at = 1 + m + c
        for j in range(m):
            of_basis = np.float32(0)
            for k in range(c):
                of_basis -= x[j, k] * result[k]
            target[1 + j] = of_basis
            for i in range(j, m):
                both = np.float32(0)
                for k in range(c):
                    both -= x[j, k] * result[c + i * c + k]
                    if i > j:  # stored once
                        both -= x[i, k] * result[c + j * c + k]
                target[at + i - j] = both
            at += m - j
            for k in range(c):
                target[at + k] = x[j, k]
            at += c


# ----------------------------------------------------------------------
# CUDA: one thread per row

_SOURCE = """
#define M %(m)d
#define C %(c)d
#define S (1 + M + C + M * (M + 1) / 2 + M * C)
#define Q (C + M * C)

__device__ void eliminate(const float* row, const float* ridge, float x[M][C]) {
    float gram[M][M], pivots[M];
    int at = 1 + M + C;
#pragma unroll
    for (int j = 0; j < M; ++j) {
#pragma unroll
        for (int k = j; k < M; ++k) gram[j][k] = row[at + k - j];
        gram[j][j] += ridge[j];
        at += M - j + C;
#pragma unroll
        for (int i = 0; i < j; ++i) {
            const float factor = gram[i][j] * pivots[i];
#pragma unroll
            for (int k = j; k < M; ++k) gram[j][k] -= factor * gram[i][k];
            for (int k = 0; k < C; ++k) x[j][k] -= factor * x[i][k];
        }
        pivots[j] = 1.0f / gram[j][j];
    }
#pragma unroll
    for (int j = M - 1; j >= 0; --j) {
        for (int k = 0; k < C; ++k) x[j][k] *= pivots[j];
#pragma unroll
        for (int i = j + 1; i < M; ++i) {
            const float factor = gram[j][i] * pivots[j];
            for (int k = 0; k < C; ++k) x[j][k] -= factor * x[i][k];
        }
    }
}

extern "C" __global__ void solve(const float* sums, const int* rows, int chosen, const float* ridge, float* out, int count) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const long long source = chosen ? rows[i] : i;
    float* result = out + i * Q;
    if (source < 0) {
        for (int k = 0; k < Q; ++k) result[k] = 0.0f;
        return;
    }
    const float* row = sums + source * S;
    const float n = fmaxf(row[0], 1.0f);
    float mean[C], x[M][C];
    for (int k = 0; k < C; ++k) mean[k] = result[k] = row[1 + M + k] / n;
    int at = 1 + M + C;
    for (int j = 0; j < M; ++j) {
        at += M - j;
        // not fused: for one observation a difference of equal products
        for (int k = 0; k < C; ++k) x[j][k] = __fsub_rn(row[at + k], __fmul_rn(row[1 + j], mean[k]));
        at += C;
    }
    eliminate(row, ridge, x);
    for (int j = 0; j < M; ++j)
        for (int k = 0; k < C; ++k) result[C + j * C + k] = x[j][k];
}

extern "C" __global__ void differentiate(
    const float* sums, const float* out, const float* gradient, float* of_sums, const float* ridge, int count
) {
    const long long n = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= count) return;
    const float* row = sums + n * S;
    const float* result = out + n * Q;
    const float* given = gradient + n * Q;
    float* target = of_sums + n * S;
    float x[M][C];
    for (int j = 0; j < M; ++j)
        for (int k = 0; k < C; ++k) x[j][k] = given[C + j * C + k];
    eliminate(row, ridge, x);
    const float observations = fmaxf(row[0], 1.0f);
    float of_count = 0.0f;
    for (int k = 0; k < C; ++k) {
        float of_mean = given[k];
        for (int j = 0; j < M; ++j) of_mean -= x[j][k] * row[1 + j];
        target[1 + M + k] = of_mean / observations;
        of_count -= of_mean * result[k] / observations;
    }
    target[0] = row[0] > 1.0f ? of_count : 0.0f;
    int at = 1 + M + C;
    for (int j = 0; j < M; ++j) {
        float of_basis = 0.0f;
        for (int k = 0; k < C; ++k) of_basis -= x[j][k] * result[k];
        target[1 + j] = of_basis;
        for (int i = j; i < M; ++i) {
            float both = 0.0f;
            for (int k = 0; k < C; ++k) {
                both -= x[j][k] * result[C + i * C + k];
                if (i > j) both -= x[i][k] * result[C + j * C + k];
            }
            target[at + i - j] = both;
        }
        at += M - j;
        for (int k = 0; k < C; ++k) target[at + k] = x[j][k];
        at += C;
    }
}
"""


@functools.cache
def _cuda(m: int, channels: int) -> CudaModule:
    """The kernels for one number of basis functions and channels, which are constants so that the matrix stays in registers."""
    return CudaModule(
        f"ridge_{m}x{channels}", _SOURCE % {"m": m, "c": channels}, ("solve", "differentiate"), lambda d: _check(d, m, channels)
    )


_cuda(6, 8)  # the sizes of the released models, so that tests compile them


def _solve_cuda(sums: Tensor, rows: Tensor | None, ridge: Tensor, channels: int, out: Tensor) -> None:
    chosen = torch.zeros(1, dtype=torch.int32, device=sums.device) if rows is None else rows.contiguous()
    module = _cuda(len(ridge), channels)
    module.launch("solve", len(out), sums.contiguous(), chosen, int(rows is not None), ridge.contiguous(), out, len(out))


def _differentiate_cuda(sums: Tensor, ridge: Tensor, channels: int, out: Tensor, gradient: Tensor) -> Tensor:
    of_sums = torch.empty_like(sums, memory_format=torch.contiguous_format)
    module = _cuda(len(ridge), channels)
    module.launch("differentiate", len(sums), sums.contiguous(), out, gradient, of_sums, ridge.contiguous(), len(sums))
    return of_sums


def _check(device: torch.device, m: int, channels: int) -> str | None:
    """Compares values and gradients of points with 0, 1 and 4 observations with the reference."""
    generator = torch.Generator().manual_seed(0)
    basis, features = torch.randn(5, 4, m, generator=generator), torch.randn(5, 4, channels, generator=generator)
    shown = torch.tensor([0, 1, 4, 4, 4])[:, None] > torch.arange(4)
    products = [part for j in range(m) for part in (basis[..., j, None] * basis[..., j:], basis[..., j, None] * features)]
    sums = torch.where(shown[..., None], torch.cat([torch.ones(5, 4, 1), basis, features, *products], -1), 0.0).sum(1).to(device)
    ridge = torch.linspace(0.5, 1.5, m, device=device)
    expected = ridge_solve_reference(sums, ridge, channels)
    out = torch.empty_like(expected)
    _solve_cuda(sums, torch.tensor([4, -1, 1, 0, 2], dtype=torch.int32, device=device), ridge, channels, out)
    rows = torch.stack([expected[4], torch.zeros_like(expected[0]), expected[1], expected[0], expected[2]])
    if not torch.allclose(out, rows, rtol=1e-3, atol=1e-4):
        return "solutions differ from the reference"
    weights = torch.randn(expected.shape, generator=generator).to(device)
    found = _differentiate_cuda(sums, ridge, channels, expected, weights)
    with torch.enable_grad():
        leaf = sums.clone().requires_grad_()
        (wanted,) = torch.autograd.grad((ridge_solve_reference(leaf, ridge, channels) * weights).sum(), leaf)
    return None if torch.allclose(found, wanted, rtol=1e-2, atol=1e-3) else "gradients differ from the reference"
