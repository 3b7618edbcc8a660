"""Visibility and coverage: properties, a reference loop over cells, and recordings of the authors' code.

The recordings with ``variant`` 1 (binary visibility, used by NPBG++) are compared; ``variant`` 0, a soft score that decreases with the
distance to the nearest point of the cell, is not implemented."""

import math

import pytest
import torch
from torch import Tensor

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention, PixelGrid, ProjectionSettings
from npbgpp.kernels.rasterization import ChunkedCloud, Level, rasterize
from npbgpp.kernels.visibility import visible_points
from npbgpp.points import visibility as module
from npbgpp.points.visibility import cloud_coverage

SIZE = (24, 40)
NEAR = 1.0


def two_cameras() -> Cameras:
    """One camera along z and a nearer one from the side."""
    turn = torch.tensor([[0.9, 0.1], [-0.1, 0.9]]).div(math.hypot(0.9, 0.1))
    R = torch.eye(3).repeat(2, 1, 1)
    R[1, 0, ::2], R[1, 2, ::2] = turn[0], turn[1]
    T = torch.tensor([[0.0, 0.0, 3.0], [0.2, -0.1, 2.0]])
    return Cameras(R, T, torch.full((2, 2), 20.0), torch.tensor([[20.0, 12.0], [21.0, 11.0]]), SIZE)


def cloud(points: int = 3000) -> Tensor:
    return torch.randn(points, 3) * torch.tensor([1.5, 1.0, 1.0])


def by_loop(xyz: Tensor, cameras: Cameras, scale: float, convention: PixelConvention) -> Tensor:
    """Reference loop: a point is visible if no point of its cell is nearer."""
    grid = PixelGrid(convention, cameras.image_size)
    height, width = grid.level_size(scale)
    seen = torch.zeros(len(cameras), len(xyz), dtype=torch.bool)
    for k, view in enumerate(grid.normalise(cameras, xyz)):
        cells: dict[tuple[int, int], list[int]] = {}
        rows, columns = grid.cells(view[:, 0].clone(), view[:, 1].clone(), scale, (height, width))
        for point, (x, y, depth) in enumerate(view):
            row, column = int(rows[point]), int(columns[point])
            if bool(grid.inside(x, y)) and depth > NEAR and 0 <= row < height and 0 <= column < width:
                cells.setdefault((row, column), []).append(point)
        for points in cells.values():
            nearest = min(view[p, 2].item() for p in points)
            seen[k, [p for p in points if view[p, 2].item() == nearest]] = True
    return seen


@pytest.mark.parametrize("convention", PixelConvention)
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
def test_nearest_point_of_a_cell_is_visible(convention, scale):
    xyz = cloud(600)
    found = visible_points(xyz, two_cameras(), scale, ProjectionSettings(NEAR, convention))
    assert found.any(1).all() and not found.all()
    assert torch.equal(found, by_loop(xyz, two_cameras(), scale, convention))


@pytest.mark.parametrize("convention", PixelConvention)
def test_point_behind_another_is_occluded_unless_scale_is_none(convention):
    projection = ProjectionSettings(NEAR, convention)
    camera = two_cameras()[0]
    xyz = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, -5.0], [9.0, 0.0, 0.0], [0.0, 0.0, -2.0]])
    assert visible_points(xyz, camera, 1.0, projection).tolist() == [[True, False, False, False, False, False]]
    assert visible_points(xyz[1:], camera, 1.0, projection).tolist() == [[True, True, False, False, False]]  # both twins
    assert visible_points(xyz, camera, None, projection).tolist() == [[True, True, True, False, False, False]]
    assert visible_points(xyz, camera, 1.0, ProjectionSettings(0.5, convention)).tolist() == [
        [False, False, False, False, False, True]
    ]  # depth 1 counts now


@pytest.mark.parametrize("convention", PixelConvention)
def test_visibility_is_independent_of_other_cameras_and_point_order(convention):
    projection = ProjectionSettings(NEAR, convention)
    xyz, cameras, order = cloud(), two_cameras(), torch.randperm(3000)
    both = visible_points(xyz, cameras, 0.5, projection)
    assert torch.equal(both, torch.cat([visible_points(xyz, cameras[k], 0.5, projection) for k in range(2)]))
    assert torch.equal(both[:, order], visible_points(xyz[order], cameras, 0.5, projection))
    coarse, every = (
        visible_points(xyz, cameras, 0.25, projection),
        visible_points(xyz, cameras, None, projection),
    )
    assert coarse.sum() < both.sum() < every.sum() and not (both & ~every).any()


@pytest.mark.parametrize("convention", PixelConvention)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_visibility_agrees_with_the_rasterizer(convention, scale):
    xyz, cameras = cloud(), two_cameras()
    for k in range(2):
        index = rasterize(ChunkedCloud.build(xyz), cameras[k], [Level(scale)], ProjectionSettings(NEAR, convention))[0].index
        assert torch.equal(
            visible_points(xyz, cameras[k], scale, ProjectionSettings(NEAR, convention))[0].nonzero()[:, 0],
            index[index >= 0].sort().values,
        )


def test_empty_cloud_and_empty_depth_buffer():
    assert visible_points(torch.zeros(0, 3), two_cameras(), 1.0, ProjectionSettings(NEAR)).shape == (2, 0)
    with pytest.raises(ValueError, match="no cell at scale 0.01"):
        visible_points(cloud(), two_cameras(), 0.01, ProjectionSettings(NEAR))


@pytest.mark.parametrize(("scale", "masked"), [(1.0, True), (0.5, True), (0.25, True), (0.125, True), (1.0, False), (0.25, False)])
def test_recorded_visibility(parity, scale, masked):
    """Points are recorded in normalised coordinates, which a camera with focal length 1 reproduces; invalid points are left out."""
    recorded = parity("b_pixels_visibility.pt")
    (case,) = [c for c in recorded["visibility"] if (c["scale"], c["variant"], c["use_mask"]) == (scale, 1, masked)]
    ndc = recorded["vis_ndc_points" if masked else "ndc_points_in"]
    valid = recorded["vis_valid_mask"] if masked else torch.ones(ndc.shape[:2], dtype=torch.bool)
    size = tuple(recorded["vis_image_size"])
    ones, zeros = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    camera = Cameras.from_authors_ndc(torch.eye(3)[None], torch.zeros(1, 3), ones, zeros, size)
    for k in range(len(ndc)):
        kept = valid[k].nonzero()[:, 0]
        points = torch.cat([ndc[k, kept, :2] * (ndc[k, kept, 2:] + 1e-7), ndc[k, kept, 2:]], 1)
        found = torch.zeros_like(case["score"][k])
        found[kept] = visible_points(points, camera, scale, ProjectionSettings(0.0, PixelConvention.AUTHORS))[0].float()
        assert torch.equal(found, case["score"][k])


# ------------------------------------------------------------------ coverage


CAMERA = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.tensor([[32.0, 32.0]]), torch.tensor([[32.0, 32.0]]), (64, 64))
BACK = Cameras(torch.diag(torch.tensor([-1.0, 1.0, -1.0]))[None], torch.zeros(1, 3), CAMERA.focal_length, CAMERA.principal_point, (64, 64))


@pytest.mark.parametrize("convention", PixelConvention)
def test_coverage_of_an_example(convention):
    before_near = [[0.0, 0.0, 0.5]] * 3
    seen = [[0.1, 0.0, 2.0]] * 5
    beside = [[9.0, 0.0, 2.0]] * 4
    behind = [[0.0, 0.0, -2.0]] * 8
    points = torch.tensor(before_near + seen + beside + behind)
    found = cloud_coverage(points, [CAMERA], ProjectionSettings(1.0, convention))
    assert found.seen == pytest.approx(5 / 20) and found.largest_cut == pytest.approx(3 / 8)
    both = cloud_coverage(points, [CAMERA, BACK], ProjectionSettings(1.0, convention))
    assert both.seen == pytest.approx(13 / 20) and both.largest_cut == pytest.approx(3 / 8)


def test_coverage_without_visible_points_or_cameras():
    points = torch.tensor([[0.0, 0.0, -2.0], [0.0, 0.0, -3.0]])
    found = cloud_coverage(points, [CAMERA], ProjectionSettings(1.0))
    assert found.seen == 0 and found.largest_cut == 0
    assert cloud_coverage(points, [], ProjectionSettings(1.0)).seen == 0


def test_coverage_behind_the_near_plane():
    found = cloud_coverage(torch.tensor([[0.0, 0.0, 0.4]]), [CAMERA], ProjectionSettings(1.0))
    assert found.seen == 0 and found.largest_cut == 1
    assert cloud_coverage(torch.tensor([[0.0, 0.0, 0.4]]), [CAMERA], ProjectionSettings(0.1)).seen == 1


def test_coverage_of_sampled_clouds_finds_single_visible_points(monkeypatch):
    monkeypatch.setattr(module, "_SAMPLE", 10)
    points = torch.full((100, 3), -2.0)
    points[37] = torch.tensor([0.0, 0.0, 2.0])  # not in the sample
    assert cloud_coverage(points, [CAMERA], ProjectionSettings(1.0)).seen == pytest.approx(1 / 100)
    half = torch.where(torch.arange(100)[:, None] < 50, torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, -2.0]))
    assert cloud_coverage(half, [CAMERA], ProjectionSettings(1.0)).seen == pytest.approx(0.5)
