"""Adam on chosen rows against torch.optim.Adam and against its reference."""

import pytest
import torch

from npbgpp.kernels.adam import adam_rows

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-15}


def state(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Parameter and both moments."""
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g).to(dtype), torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)]


@pytest.mark.parametrize("shape", [(0, 3), (40,), (300, 3), (70, 9, 3), (20000, 4)])
def test_fast_equals_reference(shape):
    """float64 tensors get the reference; untouched rows stay bitwise as they are."""
    fast, plain = state(shape, torch.float32), state(shape, torch.float64)
    g = torch.Generator().manual_seed(1)
    never = torch.rand(shape[0], generator=g) < 0.2
    initial = fast[0].clone()
    for step in range(1, 6):
        gradient, rows = torch.randn(shape, generator=g), (torch.rand(shape[0], generator=g) < 0.7) & ~never
        for (parameter, *moments), dtype in ((fast, torch.float32), (plain, torch.float64)):
            adam_rows(parameter, gradient.to(dtype), *moments, rows, step=step, **OPTIONS)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-6, rtol=1e-5)
    assert torch.equal(fast[0][never], initial[never]) and not fast[1][never].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_rows_are_the_adam_of_torch(dtype):
    (parameter, *moments), g = state((50, 7), dtype), torch.Generator().manual_seed(2)
    leaf = parameter.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], **OPTIONS)
    for step in range(1, 5):
        leaf.grad = torch.randn(50, 7, generator=g).to(dtype)
        optimizer.step()
        adam_rows(parameter, leaf.grad, *moments, torch.ones(50, dtype=torch.bool), step=step, **OPTIONS)
    torch.testing.assert_close(parameter, leaf.detach(), atol=1e-6, rtol=1e-5)


def test_zero_gradients_and_a_leaf():
    """A step of nothing changes nothing, also with the smallest eps, and a parameter that requires gradients is changed in place."""
    parameter, *moments = state((30, 3), torch.float32)
    leaf = parameter.clone().requires_grad_()
    adam_rows(leaf, torch.zeros(30, 3), *moments, torch.ones(30, dtype=torch.bool), step=1, **OPTIONS)
    assert torch.equal(leaf.detach(), parameter)
    with pytest.raises(ValueError, match="from 1"):
        adam_rows(leaf, torch.zeros(30, 3), *moments, torch.ones(30, dtype=torch.bool), step=0, **OPTIONS)
