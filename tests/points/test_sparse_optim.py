"""Sparse optimizers against the dense ones of torch."""

import pytest
import torch
from torch import Tensor

from npbgpp.points.sparse_optim import SparseAdam, SparseParameter, SparseRMSprop

SIZES = (40, 25)
COLUMNS = 3
STEPS = 200


def random_step(step: int, generator: torch.Generator, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Rows and gradients of each table in one step; row 0 only in the first and the last step, the last row never."""
    parts = []
    for size in SIZES:
        share = torch.rand((), generator=generator).item() ** 3  # few rows in most steps, so that many steps are missed
        seen = torch.rand(size, generator=generator) < share
        seen[0], seen[-1] = step in (0, STEPS - 1), False
        rows = seen.nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        scale = 10.0 ** torch.randint(-4, 3, (), generator=generator).item()
        parts.append((rows, scale * torch.randn(len(rows), COLUMNS, generator=generator, dtype=dtype)))
    return parts


def start(dtype: torch.dtype) -> tuple[list[SparseParameter], list[Tensor]]:
    values = [torch.randn(size, COLUMNS, dtype=dtype) for size in SIZES]
    return [SparseParameter(v.clone()) for v in values], [v.clone().requires_grad_() for v in values]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_same_trajectory_as_dense_rmsprop_with_zero_gradients(dtype, tolerance):
    """Parameters share one step counter; ``reset_state`` corresponds to a new dense optimizer."""
    generator = torch.Generator().manual_seed(1)
    tables, parameters = start(dtype)
    begins = [table.values.clone() for table in tables]
    lazy = SparseRMSprop(0.01)
    for _ in range(2):
        dense = torch.optim.RMSprop(parameters, lr=0.01)
        lazy.steps = 0
        for table in tables:
            table.reset_state()
        for step in range(STEPS):
            lazy.begin_step()
            for (rows, gradient), table, parameter in zip(random_step(step, generator, dtype), tables, parameters, strict=True):
                parameter.grad = torch.zeros_like(parameter)
                parameter.grad[rows] = gradient
                lazy.update(table, rows, gradient)
            dense.step()
            for table, parameter in zip(tables, parameters, strict=True):
                torch.testing.assert_close(table.values, parameter.detach(), rtol=tolerance, atol=tolerance)
    assert all(
        not torch.equal(table.values[:-1], begin[:-1]) and torch.equal(table.values[-1], begin[-1])
        for table, begin in zip(tables, begins, strict=True)
    )


def test_parameters_added_later_start_without_state():
    """A scene added at step 100 behaves like a parameter whose gradient was zero until then."""
    values, gradient = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    parameter = values.clone().requires_grad_()
    dense, lazy, table = torch.optim.RMSprop([parameter], lr=0.1), SparseRMSprop(0.1, steps=99), SparseParameter(values.clone())
    lazy.begin_step()
    lazy.update(table, torch.arange(4), gradient)
    parameter.grad = gradient
    dense.step()
    torch.testing.assert_close(table.values, parameter.detach(), rtol=1e-12, atol=1e-12)


def test_reset_after_many_steps():
    """The step counter restarts; earlier values of ``last_step`` must not exceed it."""
    table, lazy = SparseParameter(torch.zeros(3, 2)), SparseRMSprop(0.1, steps=100_000)
    lazy.begin_step()
    lazy.update(table, torch.arange(3), torch.ones(3, 2))
    table.reset_state()
    table.values.zero_()
    lazy.steps = 0
    lazy.begin_step()
    lazy.update(table, torch.arange(3), torch.ones(3, 2))
    torch.testing.assert_close(table.values, torch.full((3, 2), -1.0), rtol=1e-5, atol=0)


def test_other_rows_are_unchanged():
    table, lazy = SparseParameter(torch.randn(50, 4)), SparseRMSprop(0.1)
    for _ in range(3):
        lazy.begin_step()
        lazy.update(table, torch.arange(50), torch.randn(50, 4))
    before = SparseParameter(table.values.clone(), table.square_average.clone(), table.last_step.clone())
    rows = torch.tensor([7, 3, 20])
    lazy.begin_step()
    lazy.update(table, rows, torch.randn(3, 4))
    others = torch.ones(50, dtype=torch.bool)
    others[rows] = False
    for name in ("values", "square_average", "last_step"):
        now, then = getattr(table, name), getattr(before, name)
        assert torch.equal(now[others], then[others])
        assert (now[rows] != then[rows]).all()


def test_updates_of_disjoint_rows_equal_one_update():
    whole, split = (SparseParameter(torch.ones(6, 2)) for _ in range(2))
    gradient = torch.randn(6, 2)
    optimizers = [SparseRMSprop(0.1), SparseRMSprop(0.1)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.begin_step()
        optimizers[0].update(whole, torch.arange(6), gradient)
        for rows in (torch.tensor([5, 0]), torch.tensor([1, 2, 3, 4])):
            optimizers[1].update(split, rows, gradient[rows])
    for name in ("values", "square_average", "last_step"):
        assert torch.equal(getattr(whole, name), getattr(split, name))


def test_update_of_no_rows():
    table, lazy = SparseParameter(torch.randn(5, 2)), SparseRMSprop(0.1)
    values = table.values.clone()
    lazy.begin_step()
    lazy.update(table, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
    assert torch.equal(table.values, values) and not table.last_step.any()


# ---------------------------------------------------------------------- Adam
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sparse_adam_equals_adam_if_all_rows_are_updated(weight_decay):
    start = torch.randn(7, 3)
    table, dense = SparseParameter(start.clone()), torch.nn.Parameter(start.clone())
    rows_adam, adam = SparseAdam(0.01, weight_decay), torch.optim.Adam([dense], lr=0.01, weight_decay=weight_decay)
    for step in range(20):
        gradient, rows = torch.randn(7, 3), torch.randperm(7)
        rows_adam.lr = adam.param_groups[0]["lr"] = 0.01 * (0.5 if step % 2 else 1.0)
        dense.grad = gradient.clone()
        adam.step()
        rows_adam.update(table, rows, gradient[rows])
    torch.testing.assert_close(table.values, dense.detach())


def test_sparse_adam_leaves_other_rows_unchanged():
    table, adam = SparseParameter(torch.randn(5, 2)), SparseAdam(0.1, 0.5)
    adam.update(table, torch.tensor([3, 0]), torch.randn(2, 2))
    before = table.values.clone()
    adam.update(table, torch.tensor([0]), torch.randn(1, 2))
    assert torch.equal(table.values[1:], before[1:]) and not torch.equal(table.values[0], before[0])
