"""Ridge solve and sums of observations against plain PyTorch, in values and gradients."""

import pytest
import torch
from torch import Tensor

from npbgpp.kernels import aggregation, ridge
from npbgpp.kernels.aggregation import add_observations, observation_products, observation_products_reference
from npbgpp.kernels.ridge import ridge_solve, ridge_solve_reference, ridge_solve_rows, sums_length

SIZES = [(6, 8), (1, 1), (4, 3), (3, 16)]  # basis functions, channels
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def observations(count: int, m: int, channels: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    return torch.randn(count, m, device=device), torch.randn(count, channels, device=device)


def sums_of(points: int, views: int, m: int, channels: int, device: str = "cpu") -> Tensor:
    """Point 0 has no observation, point 1 one, the others ``views``."""
    sums = torch.zeros(points, sums_length(m, channels), device=device)
    for view in range(views):
        rows = torch.tensor([k for k in range(points) if k > 1 or (k == 1 and view == 0)], dtype=torch.int64, device=device)
        sums.index_add_(0, rows, observation_products_reference(*observations(len(rows), m, channels, device)))
    return sums


def gradients(solve, *arguments: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.detach().clone().requires_grad_() for t in arguments]
    out = solve(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    return torch.autograd.grad((out * weights).sum(), leaves)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("m", "channels"), SIZES)
@pytest.mark.parametrize("points", [0, 1, 3, 2500])
def test_solve_equals_reference(points, m, channels, device):
    sums = sums_of(points, 5, m, channels, device)
    alpha = torch.linspace(0.5, 2, m, device=device)
    found, expected = (f(sums, alpha, channels) for f in (ridge_solve, ridge_solve_reference))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not found[:1].any() and not found[1:2, channels:].any(), "nothing without, no slope with one observation"
    for one, other in zip(
        *(gradients(lambda s, a, f=f: f(s, a, channels), sums, alpha) for f in (ridge_solve, ridge_solve_reference)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=5e-3, atol=2e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_solution_by_rows(device):
    sums, alpha = sums_of(40, 3, 6, 8, device), torch.ones(6, device=device)
    rows = torch.tensor([7, -1, 0, 39, -1, 2], dtype=torch.int32, device=device)
    out = torch.full((6, 56), torch.nan, device=device)
    ridge_solve_rows(sums, rows, alpha, 8, out)
    expected = torch.where((rows < 0)[:, None], 0.0, ridge_solve(sums, alpha, 8)[rows.long()])
    assert torch.equal(out, expected)
    ridge_solve_rows(sums[:0], rows[:0], alpha, 8, out[:0])
    out.fill_(torch.nan)
    ridge_solve_rows(sums[:0], torch.full_like(rows, -1), alpha, 8, out)
    assert not out.any()


def test_gradients_of_only_one_input():
    sums, alpha = sums_of(9, 4, 3, 2), torch.ones(3)
    whole = gradients(lambda s, a: ridge_solve(s, a, 2), sums, alpha)
    assert torch.equal(gradients(lambda s: ridge_solve(s, alpha, 2), sums)[0], whole[0])
    assert torch.equal(gradients(lambda a: ridge_solve(sums, a, 2), alpha)[0], whole[1])


def test_values_that_are_not_finite_stay_in_their_row():
    sums, alpha = sums_of(20, 4, 3, 2), torch.ones(3)
    clean = ridge_solve(sums, alpha, 2)
    sums[5] = torch.nan
    sums[6, 3] = torch.inf
    broken = ridge_solve(sums, alpha, 2)
    kept = torch.ones(20, dtype=torch.bool).index_fill(0, torch.tensor([5, 6]), False)
    assert torch.equal(broken[kept], clean[kept]) and broken[5].isnan().all() and not broken[6].isfinite().all()


def test_double_precision_takes_the_reference(monkeypatch):
    monkeypatch.setattr(ridge, "_solve_numba", None)
    sums = sums_of(5, 4, 3, 2).double()
    alpha = torch.ones(3).double()
    assert torch.equal(ridge_solve(sums, alpha, 2), ridge_solve_reference(sums, alpha, 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("m", "channels"), SIZES)
@pytest.mark.parametrize("count", [0, 1, 4000])
def test_products_equal_reference(count, m, channels, device):
    basis, features = observations(count, m, channels, device)
    assert torch.equal(observation_products(basis, features), observation_products_reference(basis, features))
    for one, other in zip(*(gradients(f, basis, features) for f in (observation_products, observation_products_reference)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("m", "channels"), SIZES)
@pytest.mark.parametrize("count", [0, 1, 4000])
def test_added_observations_equal_reference(count, m, channels, device):
    basis, features = observations(count, m, channels, device)
    rows = torch.randperm(count + 7)[:count].to(device, torch.int32)
    sums = torch.randn(count + 7, sums_length(m, channels), device=device)
    expected = sums.clone().index_add_(0, rows, observation_products_reference(basis, features))
    add_observations(sums, rows, basis, features)
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=1e-6)


def test_observations_of_other_layouts():
    """Sampled features come transposed, tables may be parts of others."""
    basis, features = torch.randn(30, 3), torch.randn(4, 30).t()
    whole = torch.zeros(30, 40)
    sums = whole[:, : sums_length(3, 4)]
    add_observations(sums, torch.arange(30, dtype=torch.int32), basis, features)
    assert torch.equal(sums, observation_products_reference(basis, features)) and not whole[:, sums.shape[1] :].any()
    assert torch.equal(observation_products(basis, features), sums)


@pytest.mark.parametrize("forced", ["torch", "cuda", "numba"])
def test_forced_implementations_agree(forced, monkeypatch):
    sums, alpha = sums_of(300, 4, 6, 8), torch.ones(6)
    expected = ridge_solve_reference(sums, alpha, 8)
    monkeypatch.setenv("NPBGPP_KERNELS", forced)
    called = []
    for module, name in ((ridge, "_solve_numba"), (aggregation, "_multiply")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, function=function, name=name: (called.append(name), function(*a)))
    torch.testing.assert_close(ridge_solve(sums, alpha, 8), expected, rtol=1e-3, atol=1e-4)
    observation_products(*observations(5, 6, 8))
    assert called == (["_solve_numba", "_multiply"] if forced == "numba" else [])
