"""Terms of the loss on numbers computed by hand, and what each pushes where."""

import math

import pytest
import torch

from npbgpp.methods.nsff import losses

NAN = math.nan


def test_mean_of_the_largest_values():
    values = torch.tensor([[1.0, 4.0], [2.0, 3.0]])
    assert losses.mean_of_largest(values) == 2.5
    assert losses.mean_of_largest(values, 0.5) == 3.5
    assert losses.mean_of_largest(values, 0.01) == 4.0


def test_colour():
    found = losses.colour(torch.tensor([[0.5, 0.25, 1.0]]), torch.tensor([[0.0, 0.5, 1.0]]))
    assert found.tolist() == [[0.25, 0.0625, 0.0]]


def test_relative_depth():
    # depths 1 2 4: median 2, mean distance 1; disparities negated -4 -2 -1: median -2, mean distance 1
    found = losses.relative_depth(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([4.0, 2.0, 1.0]))
    assert found.tolist() == [1.0, 0.0, 1.0]


def test_relative_depth_knows_no_scale_and_offset():
    depth, disparity = torch.rand(9, dtype=torch.float64), torch.rand(9, dtype=torch.float64)
    torch.testing.assert_close(losses.relative_depth(3 * depth + 1, 7 * disparity - 2), losses.relative_depth(depth, disparity))
    assert not losses.relative_depth(-disparity, disparity).any()
    assert not losses.relative_depth(torch.ones(4), torch.ones(4)).any()  # a wall has no deviation


def test_entropy():
    found = losses.entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([math.log(2), 0.0]), atol=1e-6, rtol=0)


def test_cross_entropy():
    static = torch.tensor([[math.exp(-1), math.exp(-2), math.exp(-4)]], requires_grad=True)
    dynamic = torch.tensor([[0.0, 0.5, 0.25]], requires_grad=True)
    torch.testing.assert_close(losses.cross_entropy(static, dynamic), torch.tensor([-0.5 * 2 - 0.25 * 4]))
    # windows of three: 0.5, 0.75, 0.75
    found = losses.cross_entropy(static, dynamic, 3)
    torch.testing.assert_close(found, torch.tensor([-0.5 * 1 - 0.75 * 2 - 0.75 * 4]))
    found.sum().backward()
    assert (static.grad > 0).all() and dynamic.grad is None  # less static matter where something moves


def test_optical_flow():
    uv_px = torch.tensor([[1.0, 2.0], [5.0, 5.0], [3.0, 4.0]])
    target = torch.tensor([[2.5, 2.0], [NAN, NAN], [0.0, 0.0]])
    assert losses.optical_flow(uv_px, target, torch.tensor([True, True, False])).tolist() == [[1.5, 0.0]]
    assert losses.optical_flow(uv_px, target, torch.tensor([False, True, False])).shape == (0, 2)


def test_unknown_flow_has_no_gradient():
    uv_px = torch.ones(2, 2, requires_grad=True)
    losses.optical_flow(uv_px, torch.tensor([[NAN, NAN], [0.0, 0.0]]), torch.ones(2, dtype=torch.bool)).sum().backward()
    assert uv_px.grad.tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_photometric():
    found = losses.photometric(torch.tensor([[1.0, 0, 0], [0, 0, 0]]), torch.zeros(2, 3), torch.tensor([0.75, 0.25]))
    assert found.tolist() == [[1.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert not losses.photometric(torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2)).any()


def test_cycle():
    xyz = torch.zeros(1, 2, 3)
    found = losses.cycle(xyz + torch.tensor([0.1, -0.2, 0.0]), xyz, torch.tensor([[0.5, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([[[0.1, 0.2, 0.0], [0.2, 0.4, 0.0]]]) * torch.tensor([2 / 3]))


def test_smoothness_in_time():
    xyz = torch.tensor([[[1.0, 2.0, 3.0]]])
    step = torch.tensor([0.5, 0.0, -1.0])
    assert not losses.temporal_smoothness(xyz, xyz + step, xyz - step).any()
    assert losses.temporal_smoothness(xyz, xyz + step, xyz).tolist() == [[[0.5, 0.0, 1.0]]]
    assert losses.least_motion(xyz, xyz + step).tolist() == [[[0.5, 0.0, 1.0]]]


def test_smoothness_in_space():
    xyz = torch.tensor([[[0.0, 0, 0], [0.0, 0, 0.5], [0.0, 0, 2.5]]])
    neighbour = xyz + torch.tensor([[[1.0, 0, 0], [3.0, 0, 0], [3.0, 1.0, 0]]])
    expected = [[[2 * math.exp(-1), 0.0, 0.0], [0.0, math.exp(-4), 0.0]]]
    torch.testing.assert_close(losses.spatial_smoothness(xyz, neighbour), torch.tensor(expected))


@pytest.mark.parametrize("name", ["entropy", "cross_entropy", "relative_depth"])
def test_gradients_at_empty_rays_are_finite(name):
    weights = torch.zeros(3, 5, requires_grad=True)
    value = {
        "entropy": lambda: losses.entropy(weights),
        "cross_entropy": lambda: losses.cross_entropy(weights, torch.ones(3, 5)),
        "relative_depth": lambda: losses.relative_depth(weights.sum(1), torch.rand(3)),
    }[name]()
    value.sum().backward()
    assert torch.isfinite(weights.grad).all()
