"""Occupancy grids: nothing dense is skipped, most of the empty space is, and compositing equals that of all samples."""

import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.volume import OccupancyGrid, Rays, composite, composite_packed, stratified

RADIUS = 0.5


def ball(xyz: torch.Tensor) -> torch.Tensor:
    """Raw density: 20 inside a ball around (0.2, -0.1, 0), negative outside."""
    return torch.where((xyz - torch.tensor([0.2, -0.1, 0.0])).norm(dim=-1) < RADIUS, 20.0, -3.0)


def colours(xyz: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(3 * xyz)


def grid_of(field=ball, resolution: int = 16, steps: int = 3, **keywords) -> OccupancyGrid:
    grid = OccupancyGrid((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), resolution=resolution, **keywords)
    for step in range(steps):
        grid.update(field, step, torch.Generator().manual_seed(step))
    return grid


def rays(n: int = 40, seed: int = 0) -> Rays:
    """From a sphere of radius 3 to points of the box."""
    generator = torch.Generator().manual_seed(seed)
    origins = 3 * torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    aims = torch.rand(n, 3, generator=generator) * 1.6 - 0.8
    return Rays(origins, torch.nn.functional.normalize(aims - origins, dim=-1), torch.full((n,), 1.0), torch.full((n,), 5.0))


def test_before_the_first_update_exactly_the_box_is_occupied():
    grid = OccupancyGrid((0.0, -1.0, 2.0), (1.0, 1.0, 4.0), resolution=4)
    inside = torch.tensor([[0.0, -1.0, 2.0], [1.0, 1.0, 4.0], [0.5, 0.0, 3.0]])
    outside = torch.tensor([[-0.01, 0.0, 3.0], [0.5, 1.01, 3.0], [0.5, 0.0, 1.99], [torch.nan, 0.0, 3.0], [0.5, torch.inf, 3.0]])
    assert grid.occupied(inside).all() and not grid.occupied(outside).any()
    assert grid.occupied(inside.view(3, 1, 3)).shape == (3, 1)


def test_axes_are_not_mixed_up():
    """With density in a single cell of a long box, exactly this cell and its neighbours are occupied."""
    low, high = torch.tensor([0.0, -2.0, 1.0]), torch.tensor([8.0, 2.0, 3.0])
    centre = low + (high - low) * (torch.tensor([1, 4, 6]) + 0.5) / 8

    def field(xyz):
        return torch.where(((xyz - centre).abs() < (high - low) / 16).all(-1), 1e3, 0.0)

    grid = OccupancyGrid(low.tolist(), high.tolist(), resolution=8)
    grid.update(field, 0)
    for i in range(8):
        for j in range(8):
            for k in range(8):
                cell_centre = low + (high - low) * (torch.tensor([i, j, k]) + 0.5) / 8
                near = abs(i - 1) <= 1 and abs(j - 4) <= 1 and abs(k - 6) <= 1
                assert bool(grid.occupied(cell_centre)) == near, (i, j, k)


@pytest.mark.parametrize("resolution", [1, 8, 32])
def test_dense_points_are_occupied(resolution):
    grid = grid_of(resolution=resolution)
    xyz = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(9)) * 2 - 1
    dense = ball(xyz) > 0
    assert dense.sum() > 500 and grid.occupied(xyz[dense]).all()


def test_most_of_the_empty_space_is_empty():
    grid = grid_of(resolution=32)
    xyz = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(9)) * 2 - 1
    far_off = (xyz - torch.tensor([0.2, -0.1, 0.0])).norm(dim=-1) > RADIUS + 3.5 * 2 / 32
    assert far_off.sum() > 5_000 and not grid.occupied(xyz[far_off]).any()


def test_march_returns_sorted_samples_in_occupied_cells():
    grid, seen = grid_of(), rays()
    z = stratified(seen.near, seen.far, 33, 1.0, generator=torch.Generator().manual_seed(2))
    samples = grid.march(seen, z)
    expected = []
    for r in range(len(seen)):
        for k in range(33):
            if grid.occupied(seen.origins[r] + z[r, k] * seen.directions[r]):
                reach = float(z[r, k + 1] - z[r, k]) if k < 32 else 1e10
                expected.append((r, float(z[r, k]), reach))
    assert list(zip(samples.ray.tolist(), samples.z.tolist(), samples.delta.tolist(), strict=True)) == expected
    assert 50 < len(samples) < 0.5 * z.numel()


@pytest.mark.parametrize("count", [48, 160])
def test_composited_march_equals_all_samples(count):
    grid, seen = grid_of(), rays()
    z = stratified(seen.near, seen.far, count)
    samples, norms, white = grid.march(seen, z), seen.directions.norm(dim=-1), torch.ones(3)
    xyz = samples.points(seen)
    found = composite_packed(ball(xyz), colours(xyz), samples, norms, white)
    dense = seen.origins[:, None] + z[..., None] * seen.directions[:, None]
    expected = composite(ball(dense), colours(dense), z, norms, white)
    for name in ("rgb", "depth", "opacity"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    assert 5 < int((found.opacity > 0.5).sum()) < 40 and len(samples) < z.numel() / 2


def test_rays_that_miss_everything():
    grid, seen = grid_of(), rays(3)
    away = Rays(seen.origins, -seen.directions, seen.near, seen.far)
    samples = grid.march(away, stratified(away.near, away.far, 8))
    assert len(samples) == 0
    shown = composite_packed(torch.zeros(0), torch.zeros(0, 3), samples, torch.ones(3), torch.ones(3))
    assert torch.equal(shown.rgb, torch.ones(3, 3)) and not shown.opacity.any()


def test_updates_after_warm_up_sample_part_of_the_cells_and_find_new_density():
    grid, asked = grid_of(warmup_steps=3), []

    def moved(xyz):
        asked.append(len(xyz))
        return ball(xyz + torch.tensor([1.0, 0.0, 0.0]))

    place, old = torch.tensor([-0.8, -0.1, 0.0]), torch.tensor([0.2, -0.1, 0.0])
    assert not grid.occupied(place) and grid.occupied(old)
    generator = torch.Generator().manual_seed(4)
    for step in range(3, 40):
        grid.update(moved, step, generator)
    assert asked == [2 * 16**3 // 4] * 37
    assert grid.occupied(place)
    for step in range(40, 400):  # what is gone fades by 5 per cent each time that it is looked at
        grid.update(moved, step, generator)
    assert not grid.occupied(old) and grid.occupied(place)


def test_only_sampled_cells_decay():
    grid = grid_of(steps=1, warmup_steps=1)
    before = grid.densities.clone()
    grid.update(lambda xyz: torch.zeros(len(xyz)), 1, torch.Generator().manual_seed(0))
    held = before > 0
    kept, faded = grid.densities[held] == before[held], torch.isclose(grid.densities[held], 0.95 * before[held])
    assert (kept | faded).all() and kept.any() and faded.any()


@pytest.mark.parametrize("density", [0.0, 1e-6, -1.0])
def test_uniformly_thin_field_is_occupied(density):
    grid = grid_of(lambda xyz: torch.full((len(xyz),), density))
    assert grid.cells.all()


def test_thin_haze_is_empty_below_the_opacity_threshold():
    diagonal = 3**0.5 * 2 / 16

    def hazy(xyz):
        return torch.where(ball(xyz) > 0, 20.0, 0.05 / diagonal)

    corner = torch.tensor([-0.95, 0.95, -0.95])
    assert not grid_of(hazy, least_opacity=0.1).occupied(corner)
    assert grid_of(hazy, least_opacity=0.02).occupied(corner)


def test_nan_density_counts_as_occupied():
    grid = grid_of(lambda xyz: torch.where(xyz[:, 0] > 0.5, torch.nan, 0.0))
    assert grid.occupied(torch.tensor([0.9, 0.0, 0.0])) and not grid.occupied(torch.zeros(3))
    grid.update(ball, 10_000)
    assert grid.occupied(torch.tensor([0.9, 0.0, 0.0]))


def test_state_dict_round_trip():
    grid = grid_of()
    other = OccupancyGrid((0.0, 0.0, 0.0), (9.0, 9.0, 9.0), resolution=16)
    other.load_state_dict(grid.state_dict())
    xyz = torch.rand(500, 3) * 2.4 - 1.2
    assert torch.equal(other.occupied(xyz), grid.occupied(xyz)) and not list(grid.parameters())


@pytest.mark.parametrize(
    ("low", "high", "keywords", "message"),
    [
        ((0.0, 0.0, 0.0), (1.0, 0.0, 1.0), {}, "box of the occupancy grid"),
        ((0.0, 0.0), (1.0, 1.0), {}, "box of the occupancy grid"),
        ((0.0, 0.0, 0.0), (1.0, float("inf"), 1.0), {}, "box of the occupancy grid"),
        ((0.0, 0.0, 0.0), (1.0, float("nan"), 1.0), {}, "box of the occupancy grid"),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), {"resolution": 0}, "resolution of the occupancy grid"),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), {"least_opacity": 1.0}, "least_opacity of the occupancy grid"),
    ],
)
def test_invalid_grids_are_refused(low, high, keywords, message):
    with pytest.raises(InputError, match=message):
        OccupancyGrid(low, high, **keywords)
