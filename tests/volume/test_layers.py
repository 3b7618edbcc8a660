"""Layers over each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npbgpp.volume.compositing import over


def plain(layers: torch.Tensor) -> torch.Tensor:
    """Back to front, the other way around: the recursive definition of the operator."""
    colour, opacity = torch.zeros_like(layers[0, :3]), torch.zeros_like(layers[0, 3:])
    for layer in reversed(layers):
        a = layer[3:].clamp(0, 1)
        colour, opacity = a * layer[:3] + (1 - a) * colour, a + (1 - a) * opacity
    return torch.cat([colour, opacity])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8))
def test_equals_the_recursive_definition(seed, count):
    g = torch.Generator().manual_seed(seed)
    layers = (torch.rand(2, count, 4, 3, 5, generator=g) * 1.6 - 0.3).double()  # opacities below 0 and above 1 as networks predict them
    torch.testing.assert_close(over(layers), torch.stack([plain(item) for item in layers]))
    layers[:, :, 3] = torch.rand(2, count, 3, 5, generator=g).double()  # gradients outside are another matter, see below
    ours, theirs = layers.clone().requires_grad_(), layers.clone().requires_grad_()
    found, expected = over(ours), torch.stack([plain(item) for item in theirs])
    torch.testing.assert_close(found, expected)
    weights = torch.rand(found.shape, generator=g).double()
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(("opacity", "wanted", "gradient"), [(-0.5, 1.0, -2.0), (-0.5, -1.0, 0.0), (1.5, 0.0, 2.0), (1.5, 2.0, 0.0)])
def test_opacities_outside_learn_to_come_back_and_no_farther(opacity, wanted, gradient):
    """A layer that is all clear, or all opaque, can be taught otherwise."""
    layers = torch.zeros(1, 2, 4, 1, 1)
    layers[0, 0, 3] = opacity
    layers.requires_grad_()
    (over(layers)[0, 3, 0, 0] - wanted).square().backward()
    assert layers.grad is not None and float(layers.grad[0, 0, 3]) == pytest.approx(gradient)


def test_an_opaque_layer_hides_what_is_behind_it_and_a_clear_one_nothing():
    layers = torch.rand(1, 3, 4, 2, 2)
    layers[0, 0, 3], layers[0, 1, 3] = 0.0, 1.0
    assert torch.equal(over(layers)[0, :3], layers[0, 1, :3]) and (over(layers)[0, 3] == 1).all()


@pytest.mark.parametrize("opacity", [-0.5, 0.3, 2.0])
def test_a_single_layer_is_the_output_as_it_is(opacity):
    layer = torch.rand(1, 1, 4, 2, 2)
    layer[0, 0, 3] = opacity
    assert torch.equal(over(layer), layer[:, 0])
