"""Sampling along rays: properties, a numpy reference of inverse transform sampling, examples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npbgpp.errors import InputError
from npbgpp.volume import PackedSamples, Rays, intervals, sample_pdf, stratified, to_ndc


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rays(near: list[float], far: list[float]) -> Rays:
    n = len(near)
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=seeded()), dim=-1)
    return Rays(torch.randn(n, 3, generator=seeded(1)), directions, torch.tensor(near), torch.tensor(far))


# ---------------------------------------------------------------------- rays
@pytest.mark.parametrize(("near", "far"), [(2.0, 2.0), (3.0, 2.0), (float("nan"), 2.0), (0.0, float("inf")), (-float("inf"), 1.0)])
def test_invalid_bounds_are_refused(near, far):
    with pytest.raises(InputError, match=rf"near < far, got near {near:g} and far {far:g} for ray 1 \(1 of 3 rays\)"):
        rays([0.0, near, 0.0], [1.0, far, 1.0])


def test_slices_and_points_of_rays():
    whole = rays([0.0, 1.0, 2.0], [1.0, 3.0, 4.0])
    part = whole[1:3]
    assert len(whole) == 3 and len(part) == 2 and part.far.tolist() == [3.0, 4.0]
    z = torch.tensor([[0.5, 2.0], [1.0, 3.0]])
    for r in range(2):
        for k in range(2):
            torch.testing.assert_close(part.points(z)[r, k], part.origins[r] + z[r, k] * part.directions[r])
    packed = PackedSamples(torch.tensor([0, 1, 1]), torch.tensor([2.0, 1.0, 3.0]), torch.ones(3))
    assert len(packed) == 3
    torch.testing.assert_close(packed.points(part), torch.stack([part.points(z)[0, 1], *part.points(z)[1]]))


def test_empty_rays():
    assert len(rays([], [])) == 0


# ---------------------------------------------------------------------- even depths
def test_even_depths_from_near_to_far():
    z = stratified(torch.tensor([2.0, 0.0]), torch.tensor([6.0, 1.0]), 5)
    torch.testing.assert_close(z, torch.tensor([[2.0, 3.0, 4.0, 5.0, 6.0], [0.0, 0.25, 0.5, 0.75, 1.0]]))
    assert torch.equal(intervals(z)[0], torch.tensor([1.0, 1.0, 1.0, 1.0, 1e10]))


def test_even_disparity():
    z = stratified(torch.tensor([1.0]), torch.tensor([4.0]), 4, disparity=True)
    torch.testing.assert_close(1 / z, torch.tensor([[1.0, 0.75, 0.5, 0.25]]))


@pytest.mark.parametrize("near", [0.0, -1.0])
def test_disparity_needs_positive_depths(near):
    with pytest.raises(InputError, match="disparity: expected rays that start at positive depths"):
        stratified(torch.tensor([1.0, near]), torch.tensor([4.0, 4.0]), 4, disparity=True)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.01, 50), st.floats(0.01, 50), st.integers(1, 12), st.sampled_from([0.25, 1.0]), st.booleans(), st.integers(0, 99))
def test_random_depths_stay_in_their_stratum(near, length, count, perturb, disparity, seed):
    """Every sample lies between the midpoints to its neighbours."""
    near, far = torch.tensor([near], dtype=torch.float64), torch.tensor([near + length], dtype=torch.float64)
    even = stratified(near, far, count, 0.0, disparity)[0].tolist()
    drawn = stratified(near, far, count, perturb, disparity, seeded(seed))[0].tolist()
    uniform = torch.rand(1, count, generator=seeded(seed), dtype=torch.float64)[0].tolist()
    for k in range(count):
        lower = even[0] if k == 0 else (even[k - 1] + even[k]) / 2
        upper = even[-1] if k == count - 1 else (even[k] + even[k + 1]) / 2
        assert drawn[k] == pytest.approx(lower + (upper - lower) * perturb * uniform[k], abs=1e-9)
    assert drawn == sorted(drawn)


# ---------------------------------------------------------------------- depths by weight
def inverse_distribution(bins: np.ndarray, weights: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """One ray, quantile by quantile."""
    chances = (weights + 1e-5) / (weights + 1e-5).sum()
    depths = []
    for quantile in quantiles:
        before = 0.0
        for k, chance in enumerate(chances):
            if quantile < before + chance or k == len(chances) - 1:
                depths.append(bins[k] + min(1.0, (quantile - before) / chance) * (bins[k + 1] - bins[k]))
                break
            before += chance
    return np.array(depths)


def test_quantiles_of_an_example():
    found = sample_pdf(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 0.0]]), 3)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.5, 3.0]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("perturb", [0.0, 1.0])
def test_sample_pdf_equals_numpy_reference(perturb):
    bins = torch.randn(6, 9, generator=seeded(), dtype=torch.float64).sort(-1).values
    weights = torch.rand(6, 8, generator=seeded(1), dtype=torch.float64)
    found = sample_pdf(bins, weights, 21, perturb, seeded(2))
    drawn = torch.rand(6, 21, generator=seeded(2), dtype=torch.float64).numpy()
    for r in range(6):
        quantiles = np.linspace(0, 1, 21) if perturb == 0 else drawn[r]
        np.testing.assert_allclose(found[r], inverse_distribution(bins[r].numpy(), weights[r].numpy(), quantiles), atol=1e-9)


def test_zero_weights_are_uniform_and_get_no_gradients():
    bins = torch.linspace(0, 4, 5)[None]
    torch.testing.assert_close(sample_pdf(bins, torch.zeros(1, 4), 5), bins)
    weights = torch.rand(1, 4, requires_grad=True)
    assert not sample_pdf(bins, weights, 5).requires_grad


def test_samples_follow_the_weights():
    bins, weights = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0]])
    drawn = sample_pdf(bins, weights, 20_000, 1.0, seeded())
    share = torch.histc(drawn, 4, 0, 4) / drawn.numel()
    torch.testing.assert_close(share, weights[0] / 4, rtol=0, atol=0.015)


def test_samples_stay_in_the_bins_in_single_precision():
    """Weights that differ by a factor of 1e7, so that the cumulative sum rounds."""
    weights = torch.rand(64, 190, generator=seeded()) ** 20 * 1e4
    bins = torch.linspace(2, 6, 191).expand(64, -1)
    for perturb in (0.0, 1.0):
        found = sample_pdf(bins, weights, 128, perturb, seeded(1))
        assert torch.isfinite(found).all() and found.min() >= 2 and found.max() <= 6


# ---------------------------------------------------------------------- normalised device coordinates
def test_ndc_of_an_example():
    origins, directions = to_ndc(torch.tensor([[0.1, -0.2, 0.05]]), torch.tensor([[0.1, 0.2, -0.97]]), 400.0, (378, 504))
    torch.testing.assert_close(origins, torch.tensor([[0.330551, 0.034910, -1.0]]), rtol=0, atol=2e-6)
    torch.testing.assert_close(directions, torch.tensor([[-0.166912, 0.401462, 2.0]]), rtol=0, atol=2e-6)


def test_ndc_rays_contain_projected_points():
    """A point of a ray, projected with the perspective matrix (near plane 1, far plane at infinity), lies on the ray in NDC, between depths 0 and 1."""
    origins = torch.randn(5, 3, generator=seeded(), dtype=torch.float64) * 0.3
    directions = torch.cat([torch.randn(5, 2, generator=seeded(1), dtype=torch.float64), -torch.ones(5, 1, dtype=torch.float64)], -1)
    found_origins, found_directions = to_ndc(origins, directions, 50.0, (40, 60))
    for r in range(5):
        for beyond in (0.0, 0.5, 3.0, 1e4):
            x, y, z = (origins[r] + (origins[r, 2] + 1 + beyond) * directions[r]).tolist()
            projected = torch.tensor([50 / 30 * x / -z, 50 / 20 * y / -z, (-z - 2) / -z], dtype=torch.float64)
            depth = (projected - found_origins[r])[2] / found_directions[r, 2]
            assert 0 <= depth < 1 and depth == pytest.approx(1 - 1 / (1 + beyond), abs=1e-9)
            torch.testing.assert_close(found_origins[r] + depth * found_directions[r], projected, rtol=0, atol=1e-9)


def test_ndc_refuses_backward_rays():
    directions = torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    with pytest.raises(InputError, match="look along -z, got 2 of 3 that do not"):
        to_ndc(torch.zeros(3, 3), directions, 100.0, (10, 10))
