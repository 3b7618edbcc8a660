"""Static and dynamic matter along rays: the sums of the text ray by ray and sample by sample, and properties."""

import math

import pytest
import torch

from npbgpp.methods.nsff.compositing import (
    composite_both,
    composite_one,
    deltas,
    disocclusion_weights,
    dynamic_layer,
    mask_unseen,
    mean_along,
    near_motion,
    optical_depth,
)

DRAW = {"dtype": torch.float64}


def example(seed: int = 0, n: int = 3, s: int = 6):
    """Raw densities and colours of both kinds, sorted depths."""
    generator = torch.Generator().manual_seed(seed)
    static, dynamic = (torch.randn(n, s, generator=generator, **DRAW).mul(6).requires_grad_() for _ in range(2))
    static_rgb, dynamic_rgb = (torch.rand(n, s, 3, generator=generator, **DRAW).requires_grad_() for _ in range(2))
    return static, static_rgb, dynamic, dynamic_rgb, torch.rand(n, s, generator=generator, **DRAW).sort(-1).values


def plain(static, static_rgb, dynamic, dynamic_rgb, z):
    """Every ray and sample by itself: (colour, depth, weights of static, of dynamic, of both, static alone: colour, depth; dynamic on grey)."""
    rows = []
    for r in range(len(z)):
        colour, alone, moving = (torch.zeros(3, **DRAW) for _ in range(3))
        depth, alone_depth, passed, passed_static = 0.0, 0.0, 1.0, 1.0
        weights: tuple[list, list, list] = ([], [], [])
        for k in range(z.shape[1]):
            last = k + 1 == z.shape[1]
            a_static = 1 - torch.exp(-(100.0 if last else z[r, k + 1] - z[r, k]) * torch.log(1 + torch.exp(static[r, k])))
            a_dynamic = 1 - torch.exp(-(1e-3 if last else z[r, k + 1] - z[r, k]) * torch.log(1 + torch.exp(dynamic[r, k])))
            either = 1 - (1 - a_static) * (1 - a_dynamic)
            for kept, value in zip(weights, (a_static, a_dynamic, either), strict=True):
                kept.append(value * passed)
            colour = colour + weights[0][k] * static_rgb[r, k] + weights[1][k] * dynamic_rgb[r, k]
            moving = moving + weights[1][k] * dynamic_rgb[r, k]
            depth = depth + weights[2][k] * z[r, k]
            alone = alone + a_static * passed_static * static_rgb[r, k]
            alone_depth = alone_depth + a_static * passed_static * z[r, k]
            passed, passed_static = passed * (1 - either), passed_static * (1 - a_static)
        moving = moving + 0.8 * (1 - sum(weights[1]))
        rows.append((colour, depth, *map(torch.stack, weights), alone, alone_depth, moving))
    return [torch.stack(values) for values in zip(*rows, strict=True)]


def ours(static, static_rgb, dynamic, dynamic_rgb, z):
    static_tau, dynamic_tau = optical_depth(static, deltas(z, 100.0)), optical_depth(dynamic, deltas(z, 1e-3))
    seen = composite_both(static_tau, static_rgb, dynamic_tau, dynamic_rgb, z)
    alone = composite_one(static_tau, static_rgb, z)
    return [
        *(seen.rgb, seen.depth, seen.static_weights, seen.dynamic_weights, seen.weights),
        *(alone.rgb, alone.depth, dynamic_layer(seen, dynamic_rgb)),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_plain_sums_in_values_and_gradients(seed):
    inputs = example(seed)
    found, expected = ours(*inputs), plain(*inputs)
    gradients = []
    for outputs in (found, expected):
        generator = torch.Generator().manual_seed(9)
        total = sum((torch.rand(o.shape, generator=generator, **DRAW) * o).sum() for o in outputs)
        gradients.append(torch.autograd.grad(total, inputs[:4]))
    for a, b in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert all(bool(g.any()) for g in gradients[0])


def test_kinds_that_share_a_sample_add_up():
    tau = torch.tensor([[0.0, math.inf, 0.0]])
    rgb = torch.tensor([0.4, 0.5, 0.6]).expand(1, 3, 3)
    seen = composite_both(tau, rgb, tau, rgb / 2, torch.tensor([[0.1, 0.3, 0.7]]))
    torch.testing.assert_close(seen.rgb, torch.tensor([[0.6, 0.75, 0.9]]))
    assert seen.depth.item() == pytest.approx(0.3)
    assert seen.static_weights.tolist() == seen.dynamic_weights.tolist() == seen.weights.tolist() == [[0.0, 1.0, 0.0]]


def test_no_dynamic_matter_is_the_static_scene_alone():
    static, static_rgb, _, dynamic_rgb, z = example()
    tau = optical_depth(static, deltas(z, 100.0))
    seen, alone = composite_both(tau, static_rgb, torch.zeros_like(tau), dynamic_rgb, z), composite_one(tau, static_rgb, z)
    torch.testing.assert_close(seen.rgb, alone.rgb)
    torch.testing.assert_close(seen.depth, alone.depth)
    assert not seen.dynamic_alpha().any() and torch.equal(dynamic_layer(seen, dynamic_rgb), torch.full_like(seen.rgb, 0.8))
    assert composite_both(tau, None, tau, None, z).rgb is None


def test_behind_the_last_sample_everything_is_static():
    z = torch.linspace(0, 1, 4)[None]
    sigma = torch.tensor([[-40.0, -40.0, -40.0, 3.0]])
    seen = composite_both(optical_depth(sigma, deltas(z, 100.0)), None, optical_depth(sigma, deltas(z, 1e-3)), None, z)
    assert seen.static_weights[0, 3] > 0.999 and seen.dynamic_weights[0, 3] < 0.01


def test_noise_is_added_to_densities():
    sigma, z = torch.zeros(2, 4), torch.linspace(0, 1, 4).expand(2, 4)
    noise = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    noisy = optical_depth(sigma, deltas(z, 1.0), 0.5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(noisy, optical_depth(0.5 * noise, deltas(z, 1.0)))


def test_far_away_nothing_moves():
    motion = torch.ones(1, 3, 3)
    assert near_motion(motion, torch.tensor([[0.5, 0.95, 0.96]]))[0, :, 0].tolist() == [1.0, 1.0, 0.0]


def test_what_no_camera_saw_is_empty():
    sigma = torch.full((1, 2), 8.0)
    assert mask_unseen(sigma, torch.tensor([[True, False]])).tolist() == [[8.0, -10.0]]


def test_means_along_rays():
    weights, values = torch.tensor([[0.25, 0.5]]), torch.tensor([[[1.0, 2.0, 3.0], [4.0, 0.0, -2.0]]])
    assert mean_along(weights, values).tolist() == [[2.25, 0.5, -0.25]]


def test_trust_falls_where_weights_change_and_has_no_gradient():
    z, none = torch.linspace(0, 1, 3)[None], torch.zeros(1, 3)
    now = torch.tensor([[0.0, 50.0, 0.0]], requires_grad=True)
    then = torch.tensor([[50.0, 0.0, 0.0]], requires_grad=True)
    present, moved, gone = (composite_both(none, None, tau, None, z) for tau in (now, then, none))
    # as much is seen as before, though elsewhere along the ray: rays agree, samples do not
    disocclusion = disocclusion_weights(moved, present)
    torch.testing.assert_close(disocclusion.rays, torch.ones(1))
    torch.testing.assert_close(disocclusion.samples, torch.tensor([[0.0, 0.0, 1.0]]))
    torch.testing.assert_close(disocclusion_weights(gone, present).rays, torch.zeros(1))
    assert not disocclusion.rays.requires_grad and not disocclusion.samples.requires_grad
