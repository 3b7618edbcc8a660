"""Aggregators: recordings of the authors' code, a dense ridge regression, independence of order, gradients."""

import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.nets.aggregation import MeanAggregator, PointDirections, SphereAggregator


def looked(points, R_row, T) -> PointDirections:
    return PointDirections(points + R_row @ T, R_row[None, :, 2])


def close(found, expected, relative=1e-5):
    assert (found - expected).abs().max() <= relative * expected.abs().max().clamp_min(1e-12)


def observe_all(aggregator, recording, weights=None):
    """Sums of both recorded scenes after the three recorded updates, added view by view."""
    scenes = []
    for scene in range(2):
        points = recording["points"][scene]
        sums = torch.zeros(len(points), aggregator.sums)
        for call, update in enumerate(recording["updates"]):
            for view in range(update["features"].shape[1]):
                rows = update["valid_mask"][scene, view].nonzero()[:, 0]
                features = update["features"][scene, view].t()[rows]
                weight = torch.ones(len(rows)) if weights is None else weights[call][scene, view][rows]
                seen = looked(points[rows], update["R_row"][scene, view], update["T"][scene, view])
                sums = sums.index_add(0, rows, aggregator.observe(features, weight, seen))
        scenes.append(sums)
    return torch.stack(scenes)


def target(recording, scene):
    return looked(recording["points"][scene], recording["target"]["R_row"][scene], recording["target"]["T"][scene])


@pytest.mark.parametrize("case", range(7))
def test_recorded_sphere(parity, case):
    recording = parity("d_aggregators.pt")
    expected = recording["sphere"][case]
    aggregator = SphereAggregator(descriptor_dim=8, **expected["kwargs"])
    aggregator.load_state_dict(expected["state_dict"])
    m = aggregator.m
    for update in recording["updates"]:
        update["features"].requires_grad_(True)
    sums = observe_all(aggregator, recording)
    count, basis, total, *rows = sums.split([1, m, 8, *(size for j in range(m) for size in (m - j, 8))], 2)
    close(count, expected["total"][..., 0])
    close(basis, expected["xt_sum"])
    close(total.transpose(1, 2), expected["y_sum"])
    if "xt_dot_x_sum" in expected:
        first, second = torch.triu_indices(m, m)
        close(torch.cat(rows[::2], 2), expected["xt_dot_x_sum"][:, :, first, second])
        close(torch.stack(rows[1::2], 2), expected["xt_dot_y_sum"])
    coefficients = torch.stack([aggregator.solve(s) for s in sums])
    close(coefficients[:, :, :8].transpose(1, 2), expected["ym"])
    close(coefficients[:, :, 8:].reshape(2, -1, m, 8), expected["beta"], 1e-4)
    assert torch.equal(aggregator.observed(sums.flatten(0, 1)).view(2, -1), expected["visible_mask"])
    out = torch.stack([aggregator.evaluate(coefficients[k], target(recording, k)) for k in range(2)]).transpose(1, 2)
    close(out, expected["out"])
    if "cotangent" in expected:
        (out * expected["cotangent"]).sum().backward()
        for name, gradient in expected["grad_params"].items():
            close(aggregator.get_parameter(name).grad, gradient, 1e-4)
        for update, gradient in zip(recording["updates"], expected["grad_features"], strict=True):
            close(update["features"].grad, gradient, 1e-4)
    elif "out_index1" in expected:  # two cameras for the second scene
        for k in range(2):
            camera = looked(recording["points"][1], recording["target"]["R_row"][k], recording["target"]["T"][k])
            close(aggregator.evaluate(coefficients[1], camera).t(), expected["out_index1"][k])


@pytest.mark.parametrize("case", range(2))
def test_recorded_mean(parity, case):
    recording = parity("d_aggregators.pt")
    expected = recording["mean"][case]
    aggregator = MeanAggregator(descriptor_dim=8, weighted=expected["weighted"])
    sums = observe_all(aggregator, recording)
    close(sums[..., 0], expected["features_total"])
    scenes = [aggregator.evaluate(aggregator.solve(s), target(recording, k)) for k, s in enumerate(sums)]
    close(torch.stack(scenes).transpose(1, 2), expected["out"])
    assert torch.equal(torch.stack([aggregator.observed(s) for s in sums]), expected["visible_mask"])
    sums = observe_all(aggregator, recording, expected["real_scores"])
    close(sums[..., 0], expected["real_scores_total"])
    close(torch.stack([aggregator.solve(s) for s in sums]).transpose(1, 2), expected["real_scores_out"])
    assert torch.equal(torch.stack([aggregator.observed(s) for s in sums]), expected["real_scores_visible"])


def dense_ridge(aggregator, directions, features):
    """Coefficients of one point by torch.linalg on the full system, in double precision."""
    a = aggregator.basis(directions).double()
    y = features.double()
    n = len(a)
    mean = y.mean(0)
    ridge = torch.diag(aggregator.alpha[:, 0].double())
    beta = torch.linalg.inv((a.t() @ a + ridge) / n) @ (a.t() @ y / n - a.mean(0)[:, None] * mean)
    return torch.cat([mean[None], beta]).flatten()


def test_sums_are_order_independent_and_solve_equals_dense_ridge():
    aggregator = SphereAggregator(descriptor_dim=5, m=6)
    offsets, features = torch.randn(9, 3) * 3, torch.randn(9, 5)
    axis = torch.tensor([[0.0, 0.0, 1.0]])
    rows = aggregator.observe(features, torch.ones(9), PointDirections(offsets, axis))
    shuffled = rows[torch.randperm(9)].sum(0, keepdim=True)
    close(shuffled, rows.sum(0, keepdim=True))
    expected = dense_ridge(aggregator, PointDirections(offsets, axis), features)
    close(aggregator.solve(shuffled)[0].double(), expected, 1e-4)


def test_gradients_of_solve_equal_torch_linalg():
    aggregator = SphereAggregator(descriptor_dim=3, m=4, learnable_alpha=False).double()
    axis = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    offsets, features = torch.randn(7, 3).double(), torch.randn(7, 3, requires_grad=True, dtype=torch.float64)
    weights = torch.randn(15).double()
    fast = aggregator.solve(aggregator.observe(features, torch.ones(7).double(), PointDirections(offsets, axis)).sum(0, keepdim=True))[0]
    (gradient,) = torch.autograd.grad((fast * weights).sum(), features)
    plain = dense_ridge(aggregator, PointDirections(offsets, axis), features)
    (expected,) = torch.autograd.grad((plain * weights).sum(), features)
    assert torch.allclose(gradient, expected, atol=1e-10)


def test_solve_does_not_modify_the_sums():
    """Also for a single point, whose transposed sums share memory with the sums."""
    aggregator = SphereAggregator(descriptor_dim=3)
    for rows in (1, 2, 7):
        sums = torch.rand(rows, aggregator.sums) + 1
        before = sums.clone()
        with torch.no_grad():
            alone = aggregator.solve(sums)
        assert torch.equal(sums, before)
        torch.testing.assert_close(aggregator.solve(sums.requires_grad_(True)), alone, rtol=1e-6, atol=1e-7)


def test_ridge_gets_gradients_alone():
    """With fixed features and a fixed basis only the ridge requires gradients."""
    aggregator = SphereAggregator(descriptor_dim=3, type="spherical", m=4, learnable_alpha=True)
    sums = aggregator.observe(torch.randn(5, 3), torch.ones(5), PointDirections(torch.randn(5, 3), torch.ones(1, 3))).sum(0, keepdim=True)
    assert not sums.requires_grad
    aggregator.solve(sums).square().sum().backward()
    assert aggregator.alpha.grad.abs().min() > 0


def test_points_without_observations_have_zero_coefficients():
    for aggregator in (SphereAggregator(descriptor_dim=3), MeanAggregator(descriptor_dim=3)):
        sums = torch.zeros(2, aggregator.sums)
        assert not aggregator.solve(sums).any() and not aggregator.observed(sums).any()
        assert aggregator.solve(torch.zeros(0, aggregator.sums)).shape == (0, aggregator.coefficients)


def test_one_observation_is_reproduced():
    aggregator = SphereAggregator(descriptor_dim=3)
    features = torch.randn(4, 3)
    axis = torch.tensor([[0.0, 0.0, 1.0]])
    coefficients = aggregator.solve(aggregator.observe(features, torch.ones(4), PointDirections(torch.randn(4, 3), axis)))
    close(aggregator.evaluate(coefficients, PointDirections(torch.randn(4, 3), axis)), features)


def test_invalid_settings_are_refused():
    with pytest.raises(InputError, match="system.aggregator.type: expected one of learnable_v"):
        SphereAggregator(descriptor_dim=8, type="cubic")
    with pytest.raises(InputError, match="system.aggregator.m=4"):
        SphereAggregator(descriptor_dim=8, type="spherical", m=6)


@pytest.mark.parametrize("type", ["learnable_v", "learnable_vd", "learnable_vo", "learnable_vdo"])
@pytest.mark.parametrize("learnable_freq", [False, True])
@pytest.mark.parametrize(("m", "depth", "width", "tanh"), [(6, 1, 16, False), (1, 0, 1, True), (5, 3, 10, False)])
def test_basis_without_gradients_equals_that_with_gradients(type, learnable_freq, m, depth, width, tanh):
    """For views of any number of points, some of which lie at the camera centre or are not finite."""
    options = {"depth": depth, "width": width, "tanh": tanh, "learnable_freq": learnable_freq}
    aggregator = SphereAggregator(descriptor_dim=3, type=type, m=m, **options)
    for count in (0, 1, 63, 3000):
        offset = torch.randn(count, 3)
        offset[:1] = 0
        offset[5:7] = torch.tensor([[torch.nan, 0, 0], [0, torch.inf, 0]])[: len(offset[5:7])]
        directions = PointDirections(offset, torch.tensor([[0.6, 0.0, 0.8]]))
        with torch.no_grad():
            found = aggregator.basis(directions)
        torch.testing.assert_close(found, aggregator.basis(directions).detach(), rtol=1e-4, atol=2e-6, equal_nan=True)
