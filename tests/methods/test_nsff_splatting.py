"""Forward warping against pixels carried one by one, and what must stay as it is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npbgpp.methods.nsff.compositing import splat_mean, splat_sum


def carried(image, flow, weight):
    """Every pixel by itself to its four neighbours: (sums of weighted values, sums of weights)."""
    batch, channels, height, width = image.shape
    values = [[[[torch.zeros((), dtype=image.dtype)] * width for _ in range(height)] for _ in range(channels + 1)] for _ in range(batch)]
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                x, y = j + flow[b, 0, i, j], i + flow[b, 1, i, j]
                for u in (math.floor(x.item()), math.floor(x.item()) + 1):
                    for v in (math.floor(y.item()), math.floor(y.item()) + 1):
                        if 0 <= u < width and 0 <= v < height:
                            share = (1 - abs(x - u)) * (1 - abs(y - v)) * weight[b, 0, i, j]
                            for c in range(channels):
                                values[b][c][v][u] = values[b][c][v][u] + share * image[b, c, i, j]
                            values[b][channels][v][u] = values[b][channels][v][u] + share
    sums = torch.stack([torch.stack([torch.stack([torch.stack(row) for row in plane]) for plane in one]) for one in values])
    return sums[:, :-1], sums[:, -1:]


def example(seed: int):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    flow = (torch.randn(2, 2, 4, 5, generator=generator, dtype=torch.float64) * 2).requires_grad_()
    return image, flow, torch.randn(2, 1, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["sum", "average", "softmax"])
def test_equals_pixels_carried_one_by_one_in_values_and_gradients(seed, kind):
    image, flow, importance = example(seed)
    if kind == "sum":
        found, (expected, _) = splat_sum(image, flow), carried(image, flow, torch.ones_like(importance))
    else:
        weight = torch.ones_like(importance) if kind == "average" else importance.exp()
        added, total = carried(image, flow, weight)
        found = splat_mean(image, flow, importance if kind == "softmax" else None)
        expected = added / torch.where(total == 0, 1.0, total)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    inputs = [image, flow, *([importance] if kind == "softmax" else [])]
    weights = torch.rand(found.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((weights * result).sum(), inputs, retain_graph=True) for result in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
        assert bool(a.any())


def test_two_pixels_by_hand():
    flow = torch.zeros(1, 2, 1, 2)
    flow[0, 0, 0, 0] = 0.5
    torch.testing.assert_close(splat_mean(torch.tensor([[[[1.0, 2.0]]]]), flow), torch.tensor([[[[1.0, 5 / 3]]]]))


def test_without_flow_nothing_changes():
    image, _, _ = example(0)
    assert torch.equal(splat_sum(image, torch.zeros(2, 2, 4, 5, dtype=torch.float64)), image)
    assert torch.equal(splat_mean(image, torch.zeros(2, 2, 4, 5, dtype=torch.float64)), image)


@settings(deadline=None, max_examples=20)
@given(st.integers(-6, 6), st.integers(-6, 6))
def test_whole_steps_shift_the_image(right, down):
    image, _, _ = example(0)
    image = image.detach()
    flow = torch.tensor([float(right), float(down)], dtype=torch.float64)[None, :, None, None].expand(2, 2, 4, 5)
    expected = torch.zeros_like(image)
    for i in range(4):
        for j in range(5):
            if 0 <= i + down < 4 and 0 <= j + right < 5:
                expected[:, :, i + down, j + right] = image[:, :, i, j]
    torch.testing.assert_close(splat_mean(image, flow), expected)


def test_far_and_unknown_flows_land_nowhere_and_do_no_harm():
    image = torch.ones(1, 1, 2, 2)
    flow = torch.tensor([[[[1e30, -1e30], [math.nan, math.inf]], [[0.0, 0.0], [0.0, 0.0]]]], requires_grad=True)
    found = splat_mean(image, flow)
    found.sum().backward()
    assert not found.any() and not flow.grad.any()


def test_a_large_importance_wins_and_does_not_overflow():
    image = torch.tensor([[[[1.0, 2.0]]]])
    flow = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]]])
    found = splat_mean(image, flow, torch.tensor([[[[500.0, 100.0]]]]))
    torch.testing.assert_close(found, torch.tensor([[[[0.0, 1.0]]]]))
