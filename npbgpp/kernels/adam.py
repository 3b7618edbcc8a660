"""Adam (Kingma & Ba, ICLR 2015) on chosen rows of a parameter, in place."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbgpp.kernels.backend import backend, kernel, run_threads, spans, thread_count
from npbgpp.kernels.vectors import load, splat, square_root, store

f32 = np.float32

_LEAST = 1 << 15  # values per thread


def adam_rows(
    parameter: Float[Tensor, "n *rest"],
    gradient: Float[Tensor, "n *rest"],
    exp_avg: Float[Tensor, "n *rest"],
    exp_avg_sq: Float[Tensor, "n *rest"],
    rows: Bool[Tensor, " n"],
    *,
    lr: float,
    step: int,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of Adam on the rows of a mask; the other rows and their moments stay as they are.

    Moments do not decay in rows that are left out. The bias correction is that of ``step`` for all rows, as in the sparse Adam of 3DGS, so a row that is
    first touched late starts with a smaller step than with a count of its own.

    Args:
        parameter: changed in place, like both moments; contiguous on the CPU.
        gradient: of the loss.
        exp_avg: first moment.
        exp_avg_sq: second moment.
        rows: which rows to step.
        lr: learning rate.
        step: number of this step, from 1.
        betas: decay of the moments.
        eps: added to the square root of the second moment.

    Raises:
        ValueError: a step below 1.
    """
    if step < 1:
        raise ValueError(f"adam_rows: steps count from 1, got {step}")
    tensors = [t.detach() for t in (parameter, gradient, exp_avg, exp_avg_sq)]
    first, second = 1 - betas[0] ** step, 1 - betas[1] ** step
    if backend(parameter.device) == "numba" and all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors):
        arrays = [t.view(-1).numpy() for t in tensors]
        mask, length = rows.numpy(), parameter[:1].numel()
        constants = np.array([*betas, 1 - betas[0], 1 - betas[1], lr / first, 1 / math.sqrt(second), eps], f32)
        parts = spans(len(mask), thread_count(parameter.numel(), _LEAST))
        run_threads(lambda k: _adam(*parts[k], length, *arrays, mask, constants), len(parts))
        return
    _adam_reference(parameter.detach(), gradient.detach(), exp_avg, exp_avg_sq, rows, lr / first, math.sqrt(second), betas, eps)


def _adam_reference(
    parameter: Float[Tensor, "n *rest"],
    gradient: Float[Tensor, "n *rest"],
    exp_avg: Float[Tensor, "n *rest"],
    exp_avg_sq: Float[Tensor, "n *rest"],
    rows: Bool[Tensor, " n"],
    lr: float,
    root: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """root: square root of the bias correction of the second moment."""
    chosen = rows.nonzero()[:, 0]
    g = gradient[chosen]
    m = exp_avg[chosen].mul_(betas[0]).add_(g, alpha=1 - betas[0])
    v = exp_avg_sq[chosen].mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
    exp_avg[chosen], exp_avg_sq[chosen] = m, v
    parameter[chosen] = parameter[chosen] - lr * m / (v.sqrt() / root + eps)


@kernel(fastmath={"contract"})
def _adam(begin, end, length, parameter, gradient, exp_avg, exp_avg_sq, rows, constants):
    """Rows begin to end, one dimension; runs of chosen rows at once. constants: both betas, 1 - both, step size, 1 / root, eps."""
    beta1, beta2, keep1, keep2 = constants[0], constants[1], constants[2], constants[3]
    size, inverse, eps = constants[4], constants[5], constants[6]
    row = begin
    while row < end:
        if not rows[row]:
            row += 1
            continue
        first = row
        while row < end and rows[row]:
            row += 1
        k, last = first * length, row * length
        while k + 16 <= last:
            g = load(gradient, k)
            m = load(exp_avg, k) * beta1 + g * keep1
            v = load(exp_avg_sq, k) * beta2 + g * g * keep2
            store(exp_avg, k, m)
            store(exp_avg_sq, k, v)
            store(parameter, k, load(parameter, k) - m * size / (square_root(v) * inverse + splat(eps)))
            k += 16
        while k < last:
            g = gradient[k]
            m = exp_avg[k] * beta1 + g * keep1
            v = exp_avg_sq[k] * beta2 + g * g * keep2
            exp_avg[k], exp_avg_sq[k] = m, v
            parameter[k] -= m * size / (math.sqrt(v) * inverse + eps)
            k += 1
