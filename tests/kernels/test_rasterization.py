"""The rasterizer against its reference, and invalid arguments."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention, PixelGrid, ProjectionSettings
from npbgpp.kernels import rasterization as module
from npbgpp.kernels.rasterization import INSIDE, OUTSIDE, ChunkedCloud, Level, chunk_state, projection_numbers, rasterize

from ..helpers.rasterize_reference import rasterize_reference

PYRAMID = [Level(1.0), Level(0.5), Level(0.25), Level(0.125), Level(0.0625)]


def dyadic_camera(image_size: tuple[int, int], convention: PixelConvention) -> Cameras:
    """Identity pose and power-of-two intrinsics: projections of dyadic points are exact in float32, so both rasterizers get the same values."""
    if convention is PixelConvention.EXACT:
        height, width = image_size
        return Cameras(
            torch.eye(3)[None], torch.zeros(1, 3), torch.tensor([[64.0, 64.0]]), torch.tensor([[width / 2, height / 2]]), image_size
        )
    return Cameras.from_authors_ndc(torch.eye(3)[None], torch.zeros(1, 3), torch.tensor([[2.0, 2.0]]), torch.zeros(1, 2), image_size)


def cloud(n: int, seed: int, spread: float = 1.4) -> torch.Tensor:
    """Dyadic points around the view, a fifth of them behind the near plane or the camera, with exact depth ties and duplicates."""
    g = torch.Generator().manual_seed(seed)
    z = 2.0 ** torch.randint(-1, 3, (n,), generator=g)
    xy = ((torch.rand(n, 2, generator=g) * 2 - 1) * spread * 1024).round() / 1024 * z[:, None] / 2
    points = torch.cat([xy, z[:, None] * torch.where(torch.rand(n, generator=g) < 0.1, -1.0, 1.0)[:, None]], 1)
    points[: n // 10] = points[n // 2 : n // 2 + n // 10]
    return points


@pytest.mark.parametrize("convention", PixelConvention)
@pytest.mark.parametrize("image_size", [(64, 64), (48, 80), (97, 61), (33, 40)])
@pytest.mark.parametrize("levels", [[*PYRAMID, Level(0.5, 2), Level(0.3)], PYRAMID[:3], [Level(0.5)]], ids=["any", "nested", "half"])
def test_equals_reference(convention, image_size, levels, monkeypatch):
    monkeypatch.setattr(module, "_POINTS_PER_TASK", 512)  # several tasks and threads on a small cloud
    monkeypatch.setattr(module, "_POINTS_PER_THREAD", 256)
    points, camera = cloud(1500, seed=1), dyadic_camera(image_size, convention)
    fragments = rasterize(ChunkedCloud.build(points, chunk_size=32), camera, levels, ProjectionSettings(1.0, convention))
    xyd = PixelGrid(convention, image_size).normalise(camera, points)[0]
    for level, found in zip(levels, fragments, strict=True):
        index, depth = rasterize_reference(xyd, image_size, level.scale, level.supersampling, 1.0, convention is PixelConvention.AUTHORS)
        assert torch.equal(found.index, index)
        assert torch.equal(found.depth, depth)
    assert (fragments[0].index >= 0).any()


def test_nested_levels_are_reduced():
    """Only the finest of nested levels is drawn; a level that another does not cover is drawn, too."""

    def drawn(*levels: Level, convention: PixelConvention = PixelConvention.EXACT, image_size: tuple[int, int] = (63, 40)) -> int:
        grid = PixelGrid(convention, image_size)
        targets = [module._Target(level.cells_per_pixel(), grid.level_size(level.scale, level.supersampling)) for level in levels]
        return sum(k == source for k, source in module._sources(convention, targets).items())

    assert drawn(*PYRAMID) == 1
    assert drawn(*PYRAMID, Level(0.3)) == 2
    assert drawn(*PYRAMID, convention=PixelConvention.AUTHORS) == len(PYRAMID)
    assert drawn(Level(0.25, 4), Level(0.5)) == 2  # 60 rows of single pixels do not cover 31 rows of two


def test_invisible_chunks_are_culled():
    """Chunks outside of the view frustum are skipped, and few others touch its border."""
    points = torch.cat([torch.rand(50_000, 2) * 40 - 20, torch.full((50_000, 1), 4.0)], 1)
    cloud = ChunkedCloud.build(points, chunk_size=64)
    for convention in PixelConvention:
        grid = PixelGrid(convention, (32, 32))
        numbers = projection_numbers(grid.projection(dyadic_camera((32, 32), convention)), grid, 1.0)
        states = [chunk_state(cloud.corners.numpy(), k, numbers, np.float32(0)) for k in range(len(cloud.index))]
        assert 0 < sum(state != OUTSIDE for state in states) < 0.1 * len(states)
        xyd = grid.normalise(dyadic_camera((32, 32), convention), cloud.xyz_world.flatten(1).t())[0].view(*cloud.index.shape, 3)
        inside = grid.inside(xyd[..., 0], xyd[..., 1]) & (xyd[..., 2] > 1.0)
        for state, chunk in zip(states, inside, strict=True):
            assert state != OUTSIDE or not chunk.any()
            assert state != INSIDE or chunk.all()


@pytest.mark.parametrize("convention", PixelConvention)
def test_non_finite_points_are_not_drawn(convention):
    points = cloud(300, 2)
    points[::7, 0], points[1::7, 1], points[2::7, 2] = math.nan, math.inf, -math.inf
    camera = dyadic_camera((32, 32), convention)
    found = rasterize(ChunkedCloud.build(points, chunk_size=16), camera, PYRAMID, ProjectionSettings(1.0, convention))
    finite = points.isfinite().all(1)
    expected = rasterize(ChunkedCloud.build(points[finite]), camera, PYRAMID, ProjectionSettings(1.0, convention))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.depth, b.depth)
        assert finite[a.index[a.index >= 0]].all()


@pytest.mark.parametrize("convention", PixelConvention)
def test_threads_do_not_change_the_result(convention, monkeypatch):
    monkeypatch.setattr(module, "_POINTS_PER_TASK", 512)
    chunked, camera = ChunkedCloud.build(cloud(6000, 4), chunk_size=32), dyadic_camera((97, 61), convention)
    keys = []
    for threads in (1, 3):
        monkeypatch.setattr(module, "thread_count", lambda *_, threads=threads: threads)
        keys.append([f.keys for f in rasterize(chunked, camera, PYRAMID, ProjectionSettings(1.0, convention))])
    assert all(torch.equal(a, b) for a, b in zip(*keys, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(17, 70), st.integers(17, 70), st.sampled_from(list(PixelConvention)))
def test_result_is_independent_of_point_order_and_chunks(seed, height, width, convention):
    points, camera = cloud(800, seed), dyadic_camera((height, width), convention)
    levels = [Level(s) for s in (1.0, 0.5, 0.25)]
    whole = rasterize(ChunkedCloud.build(points, chunk_size=16), camera, levels, ProjectionSettings(1.0, convention))
    permutation = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    shuffled = rasterize(ChunkedCloud.build(points[permutation]), camera, levels, ProjectionSettings(1.0, convention))
    for a, b in zip(whole, shuffled, strict=True):
        assert torch.equal(a.depth, b.depth)
        hit = a.index >= 0
        assert torch.equal(points[a.index[hit]][:, 2], points[permutation][b.index[hit]][:, 2])


@pytest.mark.parametrize("convention", PixelConvention)
@pytest.mark.parametrize("image_size", [(512, 512), (363, 480), (200, 725)])
def test_random_points_equal_one_pass_per_level(convention, image_size):
    """Coordinates that are not exact in float32, many near cell borders: the refined grid against separate levels."""
    height, width = image_size
    rotation = torch.linalg.qr(torch.randn(3, 3))[0]
    rotation = rotation * torch.linalg.det(rotation).sign()
    principal = torch.tensor([[width / 2 + 0.3, height / 2 - 0.7]])
    camera = Cameras(rotation[None], torch.tensor([[0.1, -0.2, 4.0]]), torch.full((1, 2), 1.1 * width), principal, image_size)
    points = torch.randn(100_000, 3)
    levels, grid = [*PYRAMID, Level(0.3)], PixelGrid(convention, image_size)
    # the projection in the order of the fast path, so that both see the same bits
    projection = grid.projection(camera)
    matrix, offset = projection.matrix[0].tolist(), projection.offset[0].tolist()
    px, py, pz = points.T.contiguous()
    xh, yh, depth = ((px * matrix[0][k]).add_(py, alpha=matrix[1][k]).add_(pz, alpha=matrix[2][k]).add_(offset[k]) for k in range(3))
    if projection.scale is not None:
        (fx, fy), (cx, cy) = projection.scale[0].tolist(), projection.shift[0].tolist()
        xh, yh = (xh * fx).add_(depth, alpha=cx), (yh * fy).add_(depth, alpha=cy)
    x, y = xh / (depth + grid.epsilon), yh / (depth + grid.epsilon)
    seen = grid.inside(x, y) & (depth > 1.0)
    keys = (depth.view(torch.int32).long() << 32) | torch.arange(len(points))
    for level, found in zip(
        levels, rasterize(ChunkedCloud.build(points), camera, levels, ProjectionSettings(1.0, convention)), strict=True
    ):
        size = grid.level_size(level.scale)
        row, column = grid.cells(x, y, level.scale, size)
        kept = seen & (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
        nearest = torch.full(size, 2**63 - 1).view(-1)
        nearest.scatter_reduce_(0, (row.long() * size[1] + column)[kept], keys[kept], "amin")
        expected = torch.where(nearest == 2**63 - 1, -1, nearest & 0xFFFFFFFF).view(size)
        assert torch.equal(found.index, expected)


def test_ties_near_plane_and_large_indices():
    camera = dyadic_camera((16, 16), PixelConvention.AUTHORS)
    two = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 2.0], [0.0, 0.0, 2.0], [0.3, 0.0, 1.0], [-0.3, 0.0, 1.0001]])
    found = rasterize(ChunkedCloud.build(two), camera, [Level(1.0)], ProjectionSettings(1.0, PixelConvention.AUTHORS))[0]
    assert sorted(found.index[found.index >= 0].tolist()) == [1, 4]
    many = torch.full((2**24 + 3, 3), -1.0)
    many[-1] = torch.tensor([0.0, 0.0, 2.0])
    many[-2] = torch.tensor([0.0, 0.0, 2.0])
    found = rasterize(ChunkedCloud.build(many), camera, [Level(1.0)], ProjectionSettings(1.0, PixelConvention.AUTHORS))[0]
    assert found.index.max() == 2**24 + 1


def test_exact_levels_are_minima_of_2x2_cells():
    points, camera = cloud(3000, 5), dyadic_camera((64, 64), PixelConvention.EXACT)
    fine, coarse = rasterize(ChunkedCloud.build(points), camera, PYRAMID[:2], ProjectionSettings(1.0))
    blocks = fine.depth.unfold(0, 2, 2).unfold(1, 2, 2).amin((-1, -2))
    assert torch.equal(coarse.depth, blocks)


def test_empty_clouds_and_errors():
    camera = dyadic_camera((32, 32), PixelConvention.EXACT)
    assert (rasterize(ChunkedCloud.build(torch.zeros(0, 3)), camera, PYRAMID, ProjectionSettings(1.0))[0].index == -1).all()
    with pytest.raises(ValueError, match="one camera"):
        rasterize(ChunkedCloud.build(torch.zeros(1, 3)), Cameras.cat([camera, camera]), PYRAMID, ProjectionSettings(1.0))
    with pytest.raises(ValueError, match="near"):
        rasterize(ChunkedCloud.build(torch.zeros(1, 3)), camera, PYRAMID, ProjectionSettings(-0.5))
    with pytest.raises(ValueError, match="no cell at scale"):
        rasterize(ChunkedCloud.build(torch.zeros(1, 3)), camera, [Level(0.01)], ProjectionSettings(1.0))


@pytest.mark.parametrize("case", range(2))
def test_recorded_index_pyramids(parity, case):
    """Point index per pixel at five scales, equal to the authors' code."""
    scene, recorded = parity("h0_scene.pt"), parity("h4_npbg.pt")[("plain", "aligned")[case]]
    height, width = recorded["raster_size"]
    for k in range(2):
        camera = Cameras.from_authors_ndc(
            recorded["raster_R_row"][k : k + 1],
            recorded["raster_T"][k : k + 1],
            recorded["raster_fcl_ndc"][k : k + 1],
            recorded["raster_prp_ndc"][k : k + 1],
            (int(height), int(width)),
        )
        fragments = rasterize(ChunkedCloud.build(scene["points"]), camera, PYRAMID, ProjectionSettings(1.0, PixelConvention.AUTHORS))
        for found, expected in zip(fragments, recorded["index_pyramid"], strict=True):
            assert torch.equal(found.index, expected[k].long())
