"""The rasterizer against its reference, and invalid arguments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention, PixelGrid, ProjectionSettings
from npbgpp.kernels import rasterization as module
from npbgpp.kernels.chunks import ChunkedCloud
from npbgpp.kernels.rasterization import Level, rasterize
from npbgpp.kernels.reference import rasterize_reference

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
    monkeypatch.setattr(module, "_CPU_BATCH", 512)  # several chunks and bound updates on a small cloud
    points, camera = cloud(6000, seed=1), dyadic_camera(image_size, convention)
    fragments = rasterize(ChunkedCloud.build(points, chunk_size=32), camera, levels, ProjectionSettings(1.0, convention))
    xyd = PixelGrid(convention, image_size).normalise(camera, points)[0]
    for level, found in zip(levels, fragments, strict=True):
        index, depth = rasterize_reference(xyd, image_size, level.scale, level.supersampling, 1.0, convention is PixelConvention.AUTHORS)
        assert torch.equal(found.index, index)
        assert torch.equal(found.depth, depth)
    assert (fragments[0].index >= 0).any()


@pytest.mark.parametrize("image_size", [(64, 64), (97, 61)])
def test_nested_levels_need_no_slot_table(image_size, monkeypatch):
    camera, looked_up, look_up = dyadic_camera(image_size, PixelConvention.EXACT), [], torch.index_select
    monkeypatch.setattr(torch, "index_select", lambda source, *rest, **out: (looked_up.append(source), look_up(source, *rest, **out))[1])
    grids = {}
    for levels in ((1.0, 0.5, 0.25), (1.0, 0.3)):
        looked_up.clear()
        rasterize(ChunkedCloud.build(cloud(500, 3)), camera, [Level(scale) for scale in levels], ProjectionSettings(1.0))
        grids[levels] = any(source.dtype == torch.int32 and source.dim() == 1 for source in looked_up)  # the table of slots
    assert list(grids.values()) == [False, True]


def test_few_points_are_ambiguous(monkeypatch):
    """Most points are drawn once for all levels."""
    waiting, drawn = [], []
    original = module._Canvas._scatter
    monkeypatch.setattr(
        module._Canvas, "_scatter", lambda self, buffer, xy, *rest: (drawn.append(xy.shape[1]), original(self, buffer, xy, *rest))[1]
    )
    level = module._Canvas._scatter_level
    monkeypatch.setattr(
        module._Canvas, "_scatter_level", lambda self, k, xy, *rest: (waiting.append(xy.shape[1]), level(self, k, xy, *rest))[1]
    )
    points = torch.cat([torch.rand(60_000, 2) * 2 - 1, torch.rand(60_000, 1) * 4 + 4], 1)
    rasterize(
        ChunkedCloud.build(points),
        dyadic_camera((256, 256), PixelConvention.AUTHORS),
        PYRAMID,
        ProjectionSettings(1.0, PixelConvention.AUTHORS),
    )
    assert 0 < waiting[0] < 0.1 * sum(drawn)
    waiting.clear()
    rasterize(ChunkedCloud.build(points), dyadic_camera((256, 256), PixelConvention.EXACT), PYRAMID, ProjectionSettings(1.0))
    assert not waiting


def test_invisible_chunks_are_culled(monkeypatch):
    """A camera that sees a small part of a cloud projects a small part of it."""
    seen, original = [], module._Canvas._project
    monkeypatch.setattr(
        module._Canvas, "_project", lambda self, cloud, part, *rest: (seen.append(len(part)), original(self, cloud, part, *rest))[1]
    )
    points = torch.cat([torch.rand(50_000, 2) * 40 - 20, torch.full((50_000, 1), 4.0)], 1)
    cloud = ChunkedCloud.build(points, chunk_size=64)
    rasterize(
        cloud,
        dyadic_camera((32, 32), PixelConvention.AUTHORS),
        PYRAMID,
        ProjectionSettings(1.0, PixelConvention.AUTHORS),
    )
    assert 0 < sum(seen) < 0.1 * cloud.index.shape[0]


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
        xh, yh = xh * fx + depth * cx, yh * fy + depth * cy
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
