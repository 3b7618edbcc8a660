"""Which points photos show: what must hold for any cloud, a loop over cells, and the recordings of the authors' code.

Of the recordings, ``variant`` 1 (a point is visible or not) is what NPBG++ uses and what is compared; ``variant`` 0, a soft score that falls with the
distance to the nearest point of the cell, has no counterpart here.
"""

import math

import pytest
import torch
from torch import Tensor

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention, PixelGrid
from npbgpp.kernels.chunks import ChunkedCloud
from npbgpp.kernels.rasterization import Level, rasterize
from npbgpp.points.visibility import visible_points

SIZE = (24, 40)
NEAR = 1.0


def two_cameras() -> Cameras:
    """Looking along z, the second from the side and nearer."""
    turn = torch.tensor([[0.9, 0.1], [-0.1, 0.9]]).div(math.hypot(0.9, 0.1))
    R = torch.eye(3).repeat(2, 1, 1)
    R[1, 0, ::2], R[1, 2, ::2] = turn[0], turn[1]
    T = torch.tensor([[0.0, 0.0, 3.0], [0.2, -0.1, 2.0]])
    return Cameras(R, T, torch.full((2, 2), 20.0), torch.tensor([[20.0, 12.0], [21.0, 11.0]]), SIZE)


def cloud(points: int = 3000) -> Tensor:
    return torch.randn(points, 3) * torch.tensor([1.5, 1.0, 1.0])


def by_loop(xyz: Tensor, cameras: Cameras, scale: float, rule: PixelConvention) -> Tensor:
    """Point by point: visible if no point of its cell is nearer."""
    grid = PixelGrid(rule, cameras.image_size)
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


@pytest.mark.parametrize("rule", PixelConvention)
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
def test_the_nearest_of_a_cell_is_seen(rule, scale):
    xyz = cloud(600)
    found = visible_points(xyz, two_cameras(), scale, NEAR, rule)
    assert found.any(1).all() and not found.all()
    assert torch.equal(found, by_loop(xyz, two_cameras(), scale, rule))


@pytest.mark.parametrize("rule", PixelConvention)
def test_a_point_behind_another_is_hidden_until_cells_no_longer_count(rule):
    camera = two_cameras()[0]
    xyz = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, -5.0], [9.0, 0.0, 0.0], [0.0, 0.0, -2.0]])
    assert visible_points(xyz, camera, 1.0, NEAR, rule).tolist() == [[True, False, False, False, False, False]]
    assert visible_points(xyz[1:], camera, 1.0, NEAR, rule).tolist() == [[True, True, False, False, False]]  # both twins
    assert visible_points(xyz, camera, None, NEAR, rule).tolist() == [[True, True, True, False, False, False]]
    assert visible_points(xyz, camera, 1.0, 0.5, rule).tolist() == [[False, False, False, False, False, True]]  # depth 1 counts now


@pytest.mark.parametrize("rule", PixelConvention)
def test_cameras_and_the_order_of_points_do_not_matter_to_each_other(rule):
    xyz, cameras, order = cloud(), two_cameras(), torch.randperm(3000)
    both = visible_points(xyz, cameras, 0.5, NEAR, rule)
    assert torch.equal(both, torch.cat([visible_points(xyz, cameras[k], 0.5, NEAR, rule) for k in range(2)]))
    assert torch.equal(both[:, order], visible_points(xyz[order], cameras, 0.5, NEAR, rule))
    coarse, every = visible_points(xyz, cameras, 0.25, NEAR, rule), visible_points(xyz, cameras, None, NEAR, rule)
    assert coarse.sum() < both.sum() < every.sum() and not (both & ~every).any()


@pytest.mark.parametrize("rule", PixelConvention)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_it_agrees_with_the_rasteriser(rule, scale):
    xyz, cameras = cloud(), two_cameras()
    for k in range(2):
        index = rasterize(ChunkedCloud.build(xyz), cameras[k], [Level(scale)], NEAR, rule)[0].index
        assert torch.equal(visible_points(xyz, cameras[k], scale, NEAR, rule)[0].nonzero()[:, 0], index[index >= 0].sort().values)


def test_no_points_and_no_cells():
    assert visible_points(torch.zeros(0, 3), two_cameras(), 1.0, NEAR, PixelConvention.EXACT).shape == (2, 0)
    with pytest.raises(ValueError, match="no cell at scale 0.01"):
        visible_points(cloud(), two_cameras(), 0.01, NEAR, PixelConvention.EXACT)


@pytest.mark.parametrize(("scale", "masked"), [(1.0, True), (0.5, True), (0.25, True), (0.125, True), (1.0, False), (0.25, False)])
def test_recorded_visibility(parity, scale, masked):
    """Points were recorded as the authors' coordinates: a camera with focal length 1 sees them there. Those that are not valid do not exist."""
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
        found[kept] = visible_points(points, camera, scale, 0.0, PixelConvention.AUTHORS)[0].float()
        assert torch.equal(found, case["score"][k])
