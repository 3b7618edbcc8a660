"""Radiance field: positional encoding and layers against references, names and sizes of nerf_pl."""

import math

import numpy as np
import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.volume import RadianceField, positional_encoding


def embedded(x: list[float], frequencies: int) -> list[float]:
    """One vector, component by component."""
    out = list(x)
    for k in range(frequencies):
        out += [math.sin(2**k * v) for v in x]
        out += [math.cos(2**k * v) for v in x]
    return out


def layer_by_layer(state, xyz, direction, depth, skips, frequencies):
    """Raw density and colour of one point, in double precision."""
    weights = {name: value.double().numpy() for name, value in state.items()}

    def linear(name, x):
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    point = np.array(embedded(xyz, frequencies[0]))
    hidden = point
    for k in range(depth):
        if k in skips:
            hidden = np.concatenate([point, hidden])
        hidden = np.maximum(linear(f"xyz_encoding_{k + 1}.0", hidden), 0)
    feature = np.concatenate([linear("xyz_encoding_final", hidden), embedded(direction, frequencies[1])])
    feature = np.maximum(linear("dir_encoding.0", feature), 0)
    return linear("sigma", hidden)[0], 1 / (1 + np.exp(-linear("rgb.0", feature)))


@pytest.mark.parametrize(("frequencies", "channels"), [(0, 3), (1, 9), (4, 27), (10, 63)])
def test_positional_encoding(frequencies, channels):
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    found = positional_encoding(x, frequencies)
    assert found.shape == (2, 5, channels)
    for b in range(2):
        for n in range(5):
            torch.testing.assert_close(found[b, n], torch.tensor(embedded(x[b, n].tolist(), frequencies), dtype=torch.float64))


@pytest.mark.parametrize(("depth", "skips", "frequencies"), [(8, (4,), (10, 4)), (3, (1, 2), (2, 0)), (1, (), (0, 1))])
def test_field_equals_reference(depth, skips, frequencies):
    field = RadianceField(depth=depth, width=12, skips=skips, xyz_frequencies=frequencies[0], dir_frequencies=frequencies[1])
    xyz, directions = torch.randn(6, 3), torch.randn(6, 3)
    sigma, rgb = field(xyz, directions)
    for n in range(6):
        raw, colour = layer_by_layer(field.state_dict(), xyz[n].tolist(), directions[n].tolist(), depth, skips, frequencies)
        assert sigma[n].item() == pytest.approx(raw, abs=1e-5)
        np.testing.assert_allclose(rgb[n].detach(), colour, atol=1e-5)
    assert torch.equal(field.density(xyz), sigma)


def test_names_and_sizes_are_those_of_nerf_pl():
    sizes = {f"xyz_encoding_{k}.0": (256, 256) for k in range(1, 9)}
    sizes |= {"xyz_encoding_1.0": (256, 63), "xyz_encoding_5.0": (256, 319), "xyz_encoding_final": (256, 256)}
    sizes |= {"dir_encoding.0": (128, 283), "sigma": (1, 256), "rgb.0": (3, 128)}
    expected = {f"{name}.weight": size for name, size in sizes.items()} | {f"{name}.bias": size[:1] for name, size in sizes.items()}
    field = RadianceField()
    assert {name: tuple(value.shape) for name, value in field.state_dict().items()} == expected
    assert sum(p.numel() for p in field.parameters()) == 595_844


def test_output_ranges_and_gradients_of_all_parameters():
    field = RadianceField(width=32)
    xyz = torch.randn(300, 3) * 3
    directions = torch.randn(300, 3)
    sigma, rgb = field(xyz, directions)
    assert bool((rgb > 0).all()) and bool((rgb < 1).all())
    field.sigma.bias.data -= sigma.detach().median()
    sigma, rgb = field(xyz, directions)
    assert 0 < int((sigma < 0).sum()) < 300
    (sigma.sum() + rgb.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in field.parameters())


def test_only_colour_depends_on_direction():
    field = RadianceField(width=32)
    xyz = torch.randn(4, 3)
    (sigma, rgb), (other_sigma, other_rgb) = field(xyz, torch.randn(4, 3)), field(xyz, torch.randn(4, 3))
    assert torch.equal(sigma, other_sigma) and not torch.allclose(rgb, other_rgb)


def test_no_points():
    sigma, rgb = RadianceField(width=8)(torch.zeros(0, 3), torch.zeros(0, 3))
    assert sigma.shape == (0,) and rgb.shape == (0, 3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"depth": 0}, "depth of the radiance field: expected 1 or more, got 0"),
        ({"width": 1}, "width of the radiance field: expected 2 or more, got 1"),
        ({"xyz_frequencies": -1}, "xyz_frequencies of the radiance field"),
        ({"dir_frequencies": -1}, "dir_frequencies of the radiance field"),
        ({"depth": 4}, r"skips of the radiance field: expected layers from 1 to 3 \(depth 4\), got \[4\]"),
        ({"skips": (0,)}, "skips of the radiance field"),
    ],
)
def test_invalid_sizes_are_refused(keywords, message):
    with pytest.raises(InputError, match=message):
        RadianceField(**keywords)
