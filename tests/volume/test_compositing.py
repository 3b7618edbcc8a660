"""Compositing of samples along rays and of layers: reference loops and properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npbgpp.volume import PackedSamples, composite, composite_layers, composite_packed


def example(seed: int = 0, n: int = 4, s: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Raw densities, colours, sorted depths, norms of directions."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    sigma = torch.randn(n, s, **draw).requires_grad_()
    rgb = torch.rand(n, s, 3, **draw).requires_grad_()
    return sigma, rgb, torch.rand(n, s, **draw).mul(4).add(2).sort(-1).values, torch.rand(n, **draw) + 0.5


def loop(sigma, rgb, z, norms, background):
    """Equation 3 of the paper as loops over rays and samples."""
    colours, depths, opacities = [], [], []
    for r in range(len(z)):
        colour, depth, opacity, passed = torch.zeros(3, dtype=torch.float64), 0.0, 0.0, 1.0
        for k in range(z.shape[1]):
            reach = (z[r, k + 1] - z[r, k]) if k + 1 < z.shape[1] else 1e10
            alpha = 1 - torch.exp(-torch.clamp(sigma[r, k], min=0) * reach * norms[r])
            weight = alpha * passed
            colour, depth, opacity = colour + weight * rgb[r, k], depth + weight * z[r, k], opacity + weight
            passed = passed * (1 - alpha)
        colours.append(colour + (1 - opacity) * background[r])
        depths.append(depth)
        opacities.append(opacity)
    return torch.stack(colours), torch.stack(depths), torch.stack(opacities)


def total(rgb, depth, opacity):
    """A scalar that depends on all outputs."""
    return (rgb * torch.tensor([1.0, 2.0, 3.0])).sum() + 0.7 * depth.sum() + 1.3 * opacity.sum()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_composite_equals_reference_in_values_and_gradients(seed):
    sigma, rgb, z, norms = example(seed)
    background = torch.rand(4, 3, dtype=torch.float64)
    seen = composite(sigma, rgb, z, norms, background)
    expected = loop(sigma, rgb, z, norms, background)
    for a, b in zip((seen.rgb, seen.depth, seen.opacity), expected, strict=True):
        close(a, b)
    found = torch.autograd.grad(total(seen.rgb, seen.depth, seen.opacity), [sigma, rgb])
    for a, b in zip(found, torch.autograd.grad(total(*expected), [sigma, rgb]), strict=True):
        close(a, b)
    assert all(bool(g.any()) for g in found)


def test_empty_space_on_white():
    seen = composite(torch.zeros(2, 5), torch.rand(2, 5, 3), torch.rand(2, 5).sort(-1).values, torch.ones(2), torch.ones(3))
    assert torch.equal(seen.rgb, torch.ones(2, 3)) and not seen.depth.any() and not seen.opacity.any()
    assert torch.equal(seen.normalised_depth(), torch.full((2,), torch.inf))
    black = composite(torch.zeros(2, 5), torch.rand(2, 5, 3), torch.rand(2, 5).sort(-1).values, torch.ones(2))
    assert not black.rgb.any()


def test_shared_background_colour():
    sigma, rgb, z, norms = example()
    colour = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    assert torch.equal(composite(sigma, rgb, z, norms, colour).rgb, composite(sigma, rgb, z, norms, colour.expand(4, 3)).rgb)


def test_opaque_and_thin_surfaces():
    rgb = torch.eye(3)[None]
    z = torch.tensor([[1.0, 2.0, 4.0]])
    wall = composite(torch.tensor([[-5.0, 1e6, 1e6]]), rgb, z, torch.ones(1), torch.ones(3))
    torch.testing.assert_close(wall.rgb, torch.tensor([[0.0, 1.0, 0.0]]))
    torch.testing.assert_close(wall.depth, torch.tensor([2.0]))
    sheet = composite(torch.tensor([[0.3, 0.0, 0.0]]), rgb, z, torch.tensor([2.0]), torch.ones(3))
    opacity = 1 - math.exp(-0.3 * 1 * 2)
    torch.testing.assert_close(sheet.opacity, torch.tensor([opacity]))
    torch.testing.assert_close(sheet.rgb, torch.tensor([[1.0, 1 - opacity, 1 - opacity]]))
    torch.testing.assert_close(sheet.depth, torch.tensor([opacity]))
    torch.testing.assert_close(sheet.normalised_depth(), torch.tensor([1.0]))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.sampled_from([1e-3, 1.0, 1e3]), st.floats(-3, 3))
def test_opacity_is_at_most_one_and_invariant_to_depth_shifts(seed, density, shift):
    sigma, rgb, z, norms = example(seed)
    seen, moved = composite(sigma * density, rgb, z, norms), composite(sigma * density, rgb, z + shift, norms)
    close(seen.weights.sum(-1), seen.opacity)
    assert bool((seen.weights >= 0).all()) and bool((seen.opacity <= 1 + 1e-9).all())
    torch.testing.assert_close(moved.weights, seen.weights, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(moved.depth, seen.depth + shift * seen.opacity, rtol=1e-6, atol=1e-7)
    # depths half as long along directions twice as long are the same lengths
    close(composite(sigma * density, rgb, z / 2, norms * 2).weights, seen.weights)


def test_noise_is_added_before_clamping_and_not_to_empty_space():
    sigma, rgb, z, norms = example()
    sigma = sigma.detach().clone()
    sigma[:, 2] = -torch.inf
    noise = torch.randn(sigma.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noisy = composite(sigma, rgb, z, norms, None, 0.8, torch.Generator().manual_seed(3))
    close(noisy.rgb, composite(sigma + 0.8 * noise, rgb, z, norms).rgb)
    assert not noisy.weights[:, 2].any() and not torch.equal(noisy.rgb, composite(sigma, rgb, z, norms).rgb)


def test_composite_without_colours():
    sigma, rgb, z, norms = example()
    seen, with_colours = composite(sigma, None, z, norms, torch.ones(3)), composite(sigma, rgb, z, norms)
    assert seen.rgb is None and torch.equal(seen.weights, with_colours.weights) and torch.equal(seen.depth, with_colours.depth)


# ---------------------------------------------------------------------- any number of samples
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("background", [None, "one", "each"])
def test_packed_equals_composite_in_values_and_gradients(share, background):
    sigma, rgb, z, norms = example(5, n=6, s=9)
    kept = torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) < share
    kept[2], kept[3] = False, share > 0  # a ray without samples, one with all
    behind = {None: None, "one": torch.rand(3, dtype=torch.float64), "each": torch.rand(6, 3, dtype=torch.float64)}[background]
    dense = composite(torch.where(kept, sigma, 0.0), rgb, z, norms, behind)
    ray, k = kept.nonzero(as_tuple=True)
    reach = torch.cat([z[:, 1:] - z[:, :-1], torch.full((6, 1), 1e10, dtype=torch.float64)], 1)
    packed = composite_packed(sigma[ray, k], rgb[ray, k], PackedSamples(ray, z[ray, k], reach[ray, k]), norms, behind)
    for name in ("rgb", "depth", "opacity"):
        close(getattr(packed, name), getattr(dense, name))
    close(packed.weights, dense.weights[kept])
    found, expected = (
        torch.autograd.grad(total(s.rgb, s.depth, s.opacity), [sigma, rgb], materialize_grads=True, allow_unused=True)
        for s in (packed, dense)
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.isfinite(a).all()
        close(a, b)
    assert bool(found[0].any()) == (share > 0)


# ------------------------------------------------------------------ layers


def composite_reference(layers: torch.Tensor) -> torch.Tensor:
    """The over operator applied back to front."""
    colour, opacity = torch.zeros_like(layers[0, :3]), torch.zeros_like(layers[0, 3:])
    for layer in reversed(layers):
        a = layer[3:].clamp(0, 1)
        colour, opacity = a * layer[:3] + (1 - a) * colour, a + (1 - a) * opacity
    return torch.cat([colour, opacity])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8))
def test_layers_equal_the_recursive_definition(seed, count):
    g = torch.Generator().manual_seed(seed)
    layers = (torch.rand(2, count, 4, 3, 5, generator=g) * 1.6 - 0.3).double()  # opacities below 0 and above 1 as networks predict them
    torch.testing.assert_close(composite_layers(layers), torch.stack([composite_reference(item) for item in layers]))
    layers[:, :, 3] = torch.rand(2, count, 3, 5, generator=g).double()  # gradients outside are another matter, see below
    ours, theirs = layers.clone().requires_grad_(), layers.clone().requires_grad_()
    found, expected = composite_layers(ours), torch.stack([composite_reference(item) for item in theirs])
    torch.testing.assert_close(found, expected)
    weights = torch.rand(found.shape, generator=g).double()
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(("opacity", "wanted", "gradient"), [(-0.5, 1.0, -2.0), (-0.5, -1.0, 0.0), (1.5, 0.0, 2.0), (1.5, 2.0, 0.0)])
def test_opacities_outside_get_gradients_towards_the_range_only(opacity, wanted, gradient):
    """Fully transparent and opaque layers get gradients."""
    layers = torch.zeros(1, 2, 4, 1, 1)
    layers[0, 0, 3] = opacity
    layers.requires_grad_()
    (composite_layers(layers)[0, 3, 0, 0] - wanted).square().backward()
    assert layers.grad is not None and float(layers.grad[0, 0, 3]) == pytest.approx(gradient)


def test_opaque_and_transparent_layers():
    layers = torch.rand(1, 3, 4, 2, 2)
    layers[0, 0, 3], layers[0, 1, 3] = 0.0, 1.0
    assert torch.equal(composite_layers(layers)[0, :3], layers[0, 1, :3]) and (composite_layers(layers)[0, 3] == 1).all()


@pytest.mark.parametrize("opacity", [-0.5, 0.3, 2.0])
def test_single_layer_is_unchanged(opacity):
    layer = torch.rand(1, 1, 4, 2, 2)
    layer[0, 0, 3] = opacity
    assert torch.equal(composite_layers(layer), layer[:, 0])
