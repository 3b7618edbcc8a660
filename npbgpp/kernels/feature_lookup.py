"""Lookup of features by row for the cells of a raster, with the gradient of the table.

On GPUs and for other types this is PyTorch's ``embedding``, one kernel for values and one for gradients; on the CPU its gradient takes several times as long as
the additions need. Symbols: m rows of the table, c channels.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

from npbgpp.kernels.backend import backend
from npbgpp.kernels.cpu import kernel, run_threads, spans, thread_count

_LEAST_CELLS = 1 << 13  # per thread


def look_up(row: Int[Tensor, "*cells"], table: Float[Tensor, "m c"]) -> Float[Tensor, "*cells c"]:
    """Row ``row + 1`` of the table for every cell, so that -1 is the first one; differentiable once with respect to the table.

    The gradient adds the cells of a row in order, however many threads there are.

    Raises:
        IndexError: a row outside of the table.
    """
    if backend(table.device) == "numba" and table.dtype in (torch.float32, torch.float64):
        return _LookUp.apply(row, table)
    return look_up_reference(row, table)


def look_up_reference(row: Int[Tensor, "*cells"], table: Float[Tensor, "m c"]) -> Float[Tensor, "*cells c"]:
    """``look_up`` in plain PyTorch."""
    return embedding(row + 1, table)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, row: Tensor, table: Tensor) -> Tensor:
        out = table.new_empty(*row.shape, table.shape[1])
        cells = row.contiguous().view(-1)
        ctx.save_for_backward(cells)
        ctx.rows = len(table)
        arrays = (cells.numpy(), table.detach().contiguous().numpy(), out.view(len(cells), table.shape[1]).numpy())
        parts = spans(len(cells), thread_count(len(cells), _LEAST_CELLS))
        valid = [True] * len(parts)

        def copy(k: int) -> None:
            valid[k] = _copy_rows(*arrays, *parts[k])

        run_threads(copy, len(parts))
        if not all(valid):
            raise IndexError(f"look_up: expected rows from -1 to {len(table) - 2}, got {cells.min().item()} to {cells.max().item()}")
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (cells,) = ctx.saved_tensors
        of_table = gradient.new_zeros(ctx.rows, gradient.shape[-1])
        arrays = (cells.numpy(), gradient.contiguous().view(len(cells), gradient.shape[-1]).numpy(), of_table.numpy())
        # every thread reads all cells and adds those of its part of the table
        parts = spans(ctx.rows, thread_count(len(cells), _LEAST_CELLS))
        run_threads(lambda k: _add_cells(*arrays, *parts[k]), len(parts))
        return None, of_table


@kernel()
def _copy_rows(cells, table, out, begin, end):
    """Whether all rows are in the table; cells of others are not written."""
    valid = True
    for k in range(begin, end):
        row = cells[k] + 1
        if row < 0 or row >= len(table):
            valid = False
            continue
        for channel in range(table.shape[1]):
            out[k, channel] = table[row, channel]
    return valid


@kernel()
def _add_cells(cells, gradient, of_table, begin, end):
    for k in range(len(cells)):
        row = cells[k] + 1
        if row >= begin and row < end:
            for channel in range(of_table.shape[1]):
                of_table[row, channel] += gradient[k, channel]
