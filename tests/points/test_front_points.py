"""Several points per cell: against a plain loop, against the nearest points alone, and in training."""

import math

import pytest
import torch

from npbgpp.core.files import load_tensors
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, ProjectionSettings
from npbgpp.kernels.rasterization import ChunkedCloud, Level, rasterize
from npbgpp.points import FeaturePyramid, front_points

SIZE = (20, 28)
NEAR = 0.75
LEVELS = [Level(1.0), Level(0.5, 2), Level(0.25), Level(0.125, 2)]


def cameras(count: int) -> Cameras:
    """Power-of-two intrinsics and shifts: projections are exact in float32."""
    shift = torch.zeros(count, 3)
    shift[:, 0] = 0.25 * torch.arange(count)
    middle = torch.tensor([[SIZE[1] / 2, SIZE[0] / 2]]).expand(count, 2)
    return Cameras(torch.eye(3).expand(count, 3, 3), shift, torch.full((count, 2), 16.0), middle, SIZE)


def points(count: int, seed: int) -> torch.Tensor:
    """Some behind the near plane, with equal depths."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randint(1, 12, (count,), generator=g) / 4
    return torch.stack([*(torch.randint(-70, 70, (2, count), generator=g) / 64 * z), z], 1)


def expected(xyz: torch.Tensor, camera: Cameras, level: Level, count: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = (int(level.scale * size) * level.supersampling for size in SIZE)
    rows, weights = torch.full((count, height, width), -1), torch.zeros(count, height, width)
    weights[0] = 1.0
    cells: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for k, (x, y, z) in enumerate((xyz + camera.T).tolist()):
        if z > NEAR:
            u = (SIZE[1] / 2 - 16.0 * x / z) * level.cells_per_pixel()
            v = (SIZE[0] / 2 - 16.0 * y / z) * level.cells_per_pixel()
            cells.setdefault((math.floor(v), math.floor(u)), []).append((z, k))
    for (row, column), found in cells.items():
        if 0 <= row < height and 0 <= column < width:
            kept = sorted(found)[:count]
            shares = [math.exp(-(z / kept[0][0] - 1) / spread) for z, _ in kept]
            for layer, (_, k) in enumerate(kept):
                rows[layer, row, column], weights[layer, row, column] = k, shares[layer] / sum(shares)
    return rows, weights


@pytest.mark.parametrize("kernels", ["numba", "torch"])
@pytest.mark.parametrize("spread", [0.01, 0.5])
def test_points_and_weights_are_those_of_a_loop_over_points(spread, kernels, monkeypatch):
    monkeypatch.setenv("NPBGPP_KERNELS", kernels)
    views = cameras(2)
    clouds = [points(900, seed) for seed in range(2)]
    found = front_points([ChunkedCloud.build(xyz) for xyz in clouds], views, LEVELS, 3, spread, NEAR)
    for level, front in zip(LEVELS, found, strict=True):
        for view in range(2):
            rows, weights = expected(clouds[view], views[view], level, 3, spread)
            assert torch.equal(front.rows[:, view].long(), rows)
            torch.testing.assert_close(front.weights[:, view], weights, atol=1e-6, rtol=0)
        assert (front.rows[2] >= 0).any(), "three points in a cell"
    assert (found[0].rows[0] < 0).any(), "empty cells"


def test_the_first_points_are_the_nearest():
    cloud, view = ChunkedCloud.build(points(500, 5)), cameras(1)
    found = front_points([cloud], view, LEVELS, 2, 0.1, NEAR)
    nearest = rasterize(cloud, view, LEVELS, ProjectionSettings(NEAR))
    assert all(torch.equal(front.rows[0, 0], fragments.index) for front, fragments in zip(found, nearest, strict=True))


def test_a_cloud_without_points():
    (front,) = front_points([ChunkedCloud.build(torch.zeros(0, 3))], cameras(1), [Level(1.0)], 2, 0.1, 0.0)
    assert (front.rows == -1).all() and (front.weights[0] == 1).all() and (front.weights[1] == 0).all()


def test_images_are_weighted_means():
    """In values and gradients; cells without points have the background."""
    xyz, view = points(700, 2), cameras(1)
    found = front_points([ChunkedCloud.build(xyz)], view, LEVELS[:3:2], 3, 0.5, NEAR)
    pyramid = FeaturePyramid(descriptor_dim=4, scales=(1.0, 0.25), ss_scale=(1, 1), learnable=True)
    descriptors = torch.randn(len(xyz), 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    images = pyramid([front.rows[0] for front in found], descriptors, found)
    table = torch.cat(
        [torch.cat([pyramid.bg_feature.flatten(), torch.zeros(1)])[None], torch.cat([descriptors, torch.ones(len(xyz), 1)], 1)]
    )
    means = [(front.weights[..., None] * table[front.rows.long() + 1]).sum(0).permute(0, 3, 1, 2) for front in found]
    factors = [torch.randn_like(image) for image in images]
    parameters = (descriptors, pyramid.bg_feature)
    gradients = [
        torch.autograd.grad(sum((i * f).sum() for i, f in zip(side, factors, strict=True)), parameters, retain_graph=True)
        for side in (images, means)
    ]
    for image, mean in zip(images, means, strict=True):
        torch.testing.assert_close(image, mean, atol=1e-5, rtol=0)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


EXACT = ("system.pixel_convention=exact", "system.rasterizer.ss_scale=[2,1,1,1,1]")


def test_training_moves_the_points_behind(run_in, tmp_path):
    """More descriptors are learned than with the nearest points alone; a resumed run ends with the same weights."""
    words = (*EXACT, "system.front_points=3", "system.front_spread=0.5", "trainer.max_epochs=2", "test_after_fit=true")
    run = run_in(tmp_path, *words, name="several")
    alone = run_in(tmp_path, *words, "system.front_points=1", name="one")
    moved = [(load_tensors(folder / "descriptors" / "ball.pth", "descriptors") != 0).any(1).sum() for folder in (run, alone)]
    assert moved[0] > moved[1] > 0 and (run / "report.png").is_file()
    again = run_in(tmp_path, *words, "trainer.max_epochs=1", name="resumed")
    run_in(tmp_path, *words, "resume=auto", name="resumed")
    ours, theirs = (load_tensors(folder / "checkpoints" / "last.ckpt", "checkpoint")["state_dict"] for folder in (run, again))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("system.front_points=3",), "system.pixel_convention=exact, got authors"),
        ((*EXACT, "system.front_points=0"), "from 1 to 8, got 0"),
        ((*EXACT, "system.front_points=9"), "from 1 to 8, got 9"),
        ((*EXACT, "system.front_points=2", "system.front_spread=0"), "system.front_spread: expected a positive number"),
    ],
)
def test_refusals(run_in, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        run_in(tmp_path, *words)
