"""Lookup of features against PyTorch's embedding, in values and gradients."""

import pytest
import torch

from npbgpp.kernels import rasterization as module
from npbgpp.kernels.rasterization import look_up, look_up_reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("cells", "rows", "channels"), [((1, 1, 1), 1, 1), ((0, 3, 4), 5, 2), ((2, 33, 17), 40, 9), ((1, 256, 256), 3000, 4)]
)
def test_equals_embedding(cells, rows, channels, integers, dtype, device):
    table = torch.randn(rows, channels, dtype=dtype, device=device, requires_grad=True)
    row = (
        torch.randint(-1, rows - 1, cells, dtype=integers, device=device)
        if rows > 1
        else torch.full(cells, -1, dtype=integers, device=device)
    )
    found, expected = look_up(row, table), look_up_reference(row, table)
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected).transpose(-1, -2).contiguous().transpose(-1, -2)  # as a network may return it
    one, other = (torch.autograd.grad((image * weights).sum(), table)[0] for image in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_gradients_do_not_depend_on_threads(monkeypatch):
    row, table = torch.randint(-1, 99, (1, 200, 200)), torch.randn(100, 5, requires_grad=True)
    weights, found = torch.randn(1, 200, 200, 5), []
    for threads in (1, 3):
        monkeypatch.setattr(module, "thread_count", lambda items, least, threads=threads: threads)
        found.append(torch.autograd.grad((look_up(row, table) * weights).sum(), table)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("outside", [-2, 4])
def test_rows_outside_of_the_table_are_refused(outside):
    with pytest.raises(IndexError):
        look_up(torch.tensor([[0, outside]]), torch.zeros(4, 2))
