"""Hierarchical rendering against a reference per ray in numpy; occupancy grid; memory."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.methods.nerf import Nerf, NerfSampling
from npbgpp.volume import OccupancyGrid, RadianceField, Rays, composite

SMALL = {"depth": 3, "width": 16, "skips": (1,), "xyz_frequencies": 3, "dir_frequencies": 2}
FEW = NerfSampling(samples=6, importance=5, marched=40)
PLAIN = replace(FEW, perturb=0.0, noise_std=0.0)
BOX = ((-1.5, -1.5, -1.5), (1.5, 1.5, 1.5))
RADIUS = 0.7


def rays(n: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64) -> Rays:
    """From a sphere of radius 4 to points near the origin; directions of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    origins = 4 * torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=dtype), dim=-1)
    aims = torch.rand(n, 3, generator=generator, dtype=dtype) * 2 - 1
    directions = torch.nn.functional.normalize(aims - origins, dim=-1) * (1 + 0.5 * torch.rand(n, 1, generator=generator, dtype=dtype))
    return Rays(origins, directions, torch.full((n,), 1.5, dtype=dtype), torch.full((n,), 4.0, dtype=dtype))


def dense_fields(sampling: NerfSampling, dtype: torch.dtype = torch.float64) -> Nerf:
    """Random fields that are partly dense, partly empty."""
    torch.manual_seed(1)
    nerf = Nerf(sampling, **SMALL).to(dtype)
    for field in (nerf.nerf_coarse, nerf.nerf_fine):
        if field is not None:
            field.sigma.weight.data *= 8
            field.sigma.bias.data -= field.density(torch.rand(500, 3, dtype=dtype) * 4 - 2).median().detach()
    return nerf


class Ball(RadianceField):
    """Density 20 within a ball around the origin, none outside; colours by place. Counts the points that it is asked about."""

    def __init__(self, limit: float = math.inf) -> None:
        super().__init__(**SMALL)
        self.limit, self.asked, self.largest = limit, 0, 0

    def density(self, xyz):
        return self(xyz, xyz)[0]

    def forward(self, xyz, directions):
        self.largest = max(self.largest, len(xyz))
        if len(xyz) > self.limit:
            raise torch.OutOfMemoryError("no memory for so many points")
        self.asked += len(xyz)
        return torch.where(xyz.norm(dim=-1) < RADIUS, 20.0, -1.0).to(xyz), torch.sigmoid(3 * xyz)


def ball_nerf(sampling: NerfSampling, limit: float = math.inf) -> Nerf:
    nerf = Nerf(sampling, **SMALL)
    nerf.nerf_coarse, nerf.nerf_fine = Ball(limit), Ball(limit) if sampling.importance else None
    return nerf


def ball_grid(resolution: int = 32) -> OccupancyGrid:
    grid = OccupancyGrid(*BOX, resolution=resolution)
    for step in range(3):
        grid.update(Ball().density, step, torch.Generator().manual_seed(step))
    return grid


# ---------------------------------------------------------------------- the procedure, written out
def ray_by_ray(nerf: Nerf, seen: Rays, view_directions, sampling: NerfSampling, draws, empty=None, behind=0.0):
    """(rgb, depth, opacity) of the coarse and the fine field of each ray: sums over samples in numpy, sharing nothing but the fields."""

    def look(field, r, z, noise):
        colour, depth, opacity, passed, weights = np.zeros(3), 0.0, 0.0, 1.0, []
        length = np.linalg.norm(seen.directions[r])
        for k in range(len(z)):
            xyz = seen.origins[r] + z[k] * seen.directions[r]
            sigma, rgb = (v[0].detach().numpy() for v in field(xyz[None], view_directions[r][None]))
            reach = z[k + 1] - z[k] if k + 1 < len(z) else 1e10
            thick = 0.0 if empty is not None and empty(xyz) else max(0.0, sigma + sampling.noise_std * noise[k])
            alpha = 1 - np.exp(-thick * reach * length)
            weights.append(alpha * passed)
            colour, depth, opacity = colour + weights[-1] * rgb, depth + weights[-1] * z[k], opacity + weights[-1]
            passed *= 1 - alpha + 1e-10
        return (colour + (1 - opacity) * behind, depth, opacity), np.array(weights)

    results = []
    for r in range(len(seen)):
        even = [sampling_depth(seen.near[r].item(), seen.far[r].item(), k, sampling) for k in range(sampling.samples)]
        middle = [(a + b) / 2 for a, b in zip(even[1:], even[:-1], strict=True)]
        lower, upper = [even[0], *middle], [*middle, even[-1]]
        z = np.array(even) if sampling.perturb == 0 else np.array(lower) + np.subtract(upper, lower) * sampling.perturb * draws[0][r]
        coarse, weights = look(nerf.nerf_coarse, r, z, draws[1][r])
        chances = (weights[1:-1] + 1e-5) / (weights[1:-1] + 1e-5).sum()
        quantiles = np.linspace(0, 1, sampling.importance) if sampling.perturb == 0 else draws[2][r]
        drawn = np.interp(quantiles, np.concatenate([[0], chances.cumsum()]), (z[1:] + z[:-1]) / 2)
        fine, _ = look(nerf.nerf_fine, r, np.sort(np.concatenate([z, drawn])), draws[3][r])
        results.append((coarse, fine))
    return results


def sampling_depth(near, far, k, sampling):
    share = k / (sampling.samples - 1)
    return 1 / ((1 - share) / near + share / far) if sampling.disparity else near * (1 - share) + far * share


def all_draws(n: int, sampling: NerfSampling, seed: int):
    """In the order of nerf_pl: depths, noise, quantiles, noise."""
    generator = torch.Generator().manual_seed(seed)
    keywords = {"generator": generator, "dtype": torch.float64}
    return [
        torch.rand(n, sampling.samples, **keywords).numpy(),
        torch.randn(n, sampling.samples, **keywords).numpy(),
        torch.rand(n, sampling.importance, **keywords).numpy(),
        torch.randn(n, sampling.samples + sampling.importance, **keywords).numpy(),
    ]


def agree(composited, expected):
    for r, (colour, depth, opacity) in enumerate(expected):
        np.testing.assert_allclose(composited.rgb[r].detach(), colour, atol=1e-7)
        assert composited.depth[r].item() == pytest.approx(depth, abs=1e-7)
        assert composited.opacity[r].item() == pytest.approx(opacity, abs=1e-7)


@pytest.mark.parametrize(("settings", "behind"), [({}, 0.0), ({"perturb": 0.5, "noise_std": 0.3}, 1.0), ({"disparity": True}, 0.0)])
def test_training_equals_the_reference(settings, behind):
    sampling = replace(FEW, **settings)
    nerf, seen, view = dense_fields(sampling), rays(), torch.randn(7, 3, dtype=torch.float64)
    background = torch.full((3,), behind, dtype=torch.float64)
    found = nerf.render(seen, view, True, generator=torch.Generator().manual_seed(5), chunk=10, background=background)
    expected = ray_by_ray(nerf, seen, view, sampling, all_draws(7, sampling, 5), behind=behind)
    agree(found.coarse, [coarse for coarse, _ in expected])
    agree(found.fine, [fine for _, fine in expected])
    assert found.final() is found.fine and 0.05 < found.fine.opacity.mean() < 0.999


@pytest.mark.parametrize("chunk", [1, 23, 32768])
@pytest.mark.parametrize("behind", [0.0, 1.0])
def test_evaluation_is_deterministic_without_coarse_colours(chunk, behind):
    trained = FEW
    nerf, seen = dense_fields(trained), rays()
    background = torch.full((7, 3), behind, dtype=torch.float64)
    state = torch.get_rng_state()
    found = nerf.render(seen, seen.directions, False, chunk=chunk, background=background)
    assert torch.equal(torch.get_rng_state(), state)
    still = replace(trained, perturb=0.0, noise_std=0.0)
    expected = ray_by_ray(nerf, seen, seen.directions, still, all_draws(7, still, 0), behind=behind)
    agree(found.fine, [fine for _, fine in expected])
    assert found.coarse.rgb is None
    np.testing.assert_allclose(found.coarse.opacity.detach(), [coarse[2] for coarse, _ in expected], atol=1e-7)
    both = nerf.render(seen, seen.directions, False, chunk=chunk, coarse_colours=True, background=background)
    agree(both.coarse, [coarse for coarse, _ in expected])


def test_without_importance_the_coarse_field_is_all():
    nerf, seen = dense_fields(replace(PLAIN, importance=0)), rays()
    assert nerf.nerf_fine is None and nerf.final is nerf.nerf_coarse and not any("fine" in name for name in nerf.state_dict())
    with_fine = dense_fields(PLAIN)
    with_fine.nerf_coarse.load_state_dict(nerf.nerf_coarse.state_dict())
    for training in (True, False):
        found = nerf.render(seen, seen.directions, training, chunk=8)
        assert found.fine is None and found.final() is found.coarse
        torch.testing.assert_close(found.coarse.rgb, with_fine.render(seen, seen.directions, True).coarse.rgb)


def test_training_reaches_all_weights_and_the_fine_loss_not_the_coarse_ones():
    nerf, seen = dense_fields(FEW), rays(20)
    found = nerf.render(seen, seen.directions, True)
    fine = torch.autograd.grad(found.fine.rgb.sum(), nerf.parameters(), retain_graph=True, allow_unused=True)
    reached = {name for (name, _), g in zip(nerf.named_parameters(), fine, strict=True) if g is not None}
    assert reached == {name for name, _ in nerf.named_parameters() if name.startswith("nerf_fine.")}
    (found.fine.rgb.square().sum() + found.coarse.rgb.square().sum()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in nerf.parameters())


# ---------------------------------------------------------------------- with a grid
def test_training_with_a_grid_is_training_with_no_density_where_it_is_empty():
    sampling = replace(FEW, samples=24, importance=8, noise_std=0.3)
    nerf, seen, grid = dense_fields(sampling), rays(), ball_grid(8)
    found = nerf.render(seen, seen.directions, True, grid, generator=torch.Generator().manual_seed(5))
    expected = ray_by_ray(nerf, seen, seen.directions, sampling, all_draws(7, sampling, 5), lambda xyz: not grid.occupied(xyz))
    agree(found.coarse, [coarse for coarse, _ in expected])
    agree(found.fine, [fine for _, fine in expected])
    full = nerf.render(seen, seen.directions, True, generator=torch.Generator().manual_seed(5))
    assert not torch.allclose(found.fine.rgb, full.fine.rgb, atol=1e-3)
    (found.fine.rgb.square().sum() + found.coarse.rgb.square().sum()).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) and bool(p.grad.any()) for p in nerf.parameters())


def test_training_where_everything_is_empty():
    nerf, seen, grid = dense_fields(FEW), rays(), ball_grid(8)
    away = Rays(seen.origins, -seen.directions, seen.near, seen.far)
    found = nerf.render(away, away.directions, True, grid)
    assert not found.coarse.opacity.any() and not found.fine.rgb.any()
    (found.fine.rgb.sum() + found.coarse.rgb.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in nerf.parameters())


@pytest.mark.parametrize("importance", [0, 32])
@pytest.mark.parametrize("chunk", [40, 32768])
def test_grid_saves_queries_and_renders_the_same(importance, chunk):
    sampling = NerfSampling(samples=96, importance=importance, marched=96 + importance)
    nerf, seen = ball_nerf(sampling), rays(60, dtype=torch.float32)
    found, count = nerf.render(seen, seen.directions, False, ball_grid(), chunk, background=torch.ones(3)), 96 + importance
    assert (found.fine is None) == (importance == 0) and (found.coarse is None) == (importance > 0)
    asked, largest = nerf.final.asked, nerf.final.largest
    z = torch.linspace(1.5, 4.0, count).expand(60, -1)
    sigma, rgb = Ball()(seen.points(z), seen.points(z))
    expected = composite(sigma, rgb, z, seen.directions.norm(dim=-1), torch.ones(3))
    for name in ("rgb", "depth", "opacity"):  # rays end where a ten-thousandth of the light passes, from depth 4 at most
        torch.testing.assert_close(getattr(found.final(), name), getattr(expected, name), rtol=0, atol=4.1e-4)
    in_or_near = int((seen.points(z).norm(dim=-1) < RADIUS + 3.5 * 3 / 32).sum())
    assert largest <= chunk and 0 < asked < 0.8 * in_or_near < 0.4 * z.numel()
    hit = found.final().opacity > 0.5
    assert 10 < int(hit.sum()) < 50
    towards = seen.origins + found.final().normalised_depth()[:, None] * seen.directions
    assert (towards[hit].norm(dim=-1) - RADIUS).abs().max() < 0.1  # the front of the ball, to two steps


def test_early_termination_of_opaque_rays():
    """Samples 0.1 apart, directions of length 1: at density 20 a ray is opaque after five, at 0.1 never."""
    seen = Rays(torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[0.0, 0.0, -1.0]]), torch.tensor([0.0]), torch.tensor([9.9]))
    everywhere = OccupancyGrid((-20.0, -20.0, -20.0), (20.0, 20.0, 20.0), resolution=1)
    for density, expected in ((20.0, 32), (0.1, 100)):
        nerf = ball_nerf(NerfSampling(marched=100))
        asked = []

        def field(xyz, directions, density=density, asked=asked):
            asked.append(len(xyz))
            return torch.where(xyz[:, 2] < 0.05, density, -1.0), torch.rand_like(xyz)

        nerf.nerf_fine.forward = field
        opacity = nerf.render(seen, seen.directions, False, everywhere).fine.opacity.item()
        assert sum(asked) == expected and opacity == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("disparity", [False, True])
def test_rendering_with_a_full_grid_is_rendering_at_the_depths_without_it(disparity):
    nerf, seen = dense_fields(NerfSampling(samples=30, importance=0, disparity=disparity, marched=30)), rays()
    everywhere, view = OccupancyGrid((-9.0, -9.0, -9.0), (9.0, 9.0, 9.0), resolution=1), torch.randn(7, 3, dtype=torch.float64)
    found, expected = (nerf.render(seen, view, False, grid, chunk=5).coarse for grid in (everywhere, None))
    for name in ("rgb", "depth", "opacity"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=5e-4)
    torch.testing.assert_close(found.weights, expected.weights.flatten(), rtol=0, atol=1e-4)
    turned = nerf.render(seen, view.flip(0), False, everywhere).coarse
    assert not torch.allclose(turned.rgb, found.rgb, atol=1e-4)


def test_no_rays_make_no_pixels():
    nerf, none = ball_nerf(FEW), rays(7, dtype=torch.float32)[0:0]
    for grid in (None, ball_grid(4)):
        for training in (True, False):
            assert nerf.render(none, none.directions, training, grid).final().rgb.shape == (0, 3)


# ---------------------------------------------------------------------- memory
@pytest.mark.parametrize("with_grid", [False, True])
def test_chunks_are_halved_until_memory_suffices(with_grid):
    seen = rays(30, dtype=torch.float32)
    grid = ball_grid(16) if with_grid else None
    small, large = ball_nerf(PLAIN, limit=30), ball_nerf(PLAIN)
    found, expected = (nerf.render(seen, seen.directions, False, grid, chunk=400) for nerf in (small, large))
    torch.testing.assert_close(found.fine.rgb, expected.fine.rgb)
    assert small.nerf_fine.largest > 30 >= 400 // 16


@pytest.mark.parametrize("training", [True, False])
def test_memory_that_never_suffices_is_reported(training):
    seen = rays(2, dtype=torch.float32)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        ball_nerf(FEW, limit=0).render(seen, seen.directions, training)


# ---------------------------------------------------------------------- checkpoints of nerf_pl
def test_full_size_has_twice_the_weights_of_one_field():
    assert sum(p.numel() for p in Nerf(NerfSampling()).parameters()) == 2 * 595_844


# ---------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 2}, "samples of rays: expected 3 or more, got 2"),
        ({"samples": 0, "importance": 0}, "samples of rays: expected 1 or more, got 0"),
        ({"importance": -1}, "importance of rays"),
        ({"perturb": 1.5}, "perturb of rays: expected 0 to 1, got 1.5"),
        ({"noise_std": -0.1}, "noise_std of rays: expected 0 or more"),
        ({"noise_std": math.nan}, "noise_std of rays"),
        ({"marched": 0}, "marched of rays"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        NerfSampling(**settings)
