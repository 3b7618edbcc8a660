"""Projection and pixel conventions: examples, round trips, and recordings of the authors' code (discrete values equal exactly)."""

import pytest
import torch

from npbgpp.geometry.cameras import Cameras, rigid_defect
from npbgpp.geometry.pixels import PixelConvention, PixelGrid, ProjectionSettings, ndc_bounds
from npbgpp.kernels.rasterization import ChunkedCloud, Level, rasterize


def some_cameras(count: int = 3) -> Cameras:
    rotation = torch.linalg.qr(torch.randn(count, 3, 3))[0]
    rotation = rotation * torch.linalg.det(rotation).sign()[:, None, None]
    return Cameras(rotation, torch.randn(count, 3), torch.rand(count, 2) * 20 + 60, torch.rand(count, 2) * 5 + 30, (60, 80))


def test_authors_ndc_of_an_example():
    """100x200 image, K = (150, 160, 90, 40) with centres at integers; OpenCV point (0.2, 0.1, 2) projects to screen position (105, 48)."""
    camera = Cameras.from_opencv(torch.eye(4)[None], torch.tensor([[150.0, 160.0]]), torch.tensor([[90.5, 40.5]]), (100, 200))
    focal, principal = camera.to_authors_ndc()
    assert torch.allclose(focal, torch.tensor([[3.030303, 3.232323]]), atol=1e-6)
    assert torch.allclose(principal, torch.tensor([[0.191919, 0.191919]]), atol=1e-6)
    point = torch.tensor([[0.2, 0.1, 2.0]])
    ndc = PixelGrid(PixelConvention.AUTHORS, (100, 200)).normalise(camera, point)[0, 0]
    assert torch.allclose(ndc, torch.tensor([-0.111111, 0.030303, 2.0]), atol=1e-5)
    row, column = PixelGrid(PixelConvention.AUTHORS, (100, 200)).cells(ndc[:1], ndc[1:2], 1.0, (100, 200))
    assert (row.item(), column.item()) == (48, 105)
    uv, depth = camera.project(point)
    assert torch.allclose(uv[0, 0], torch.tensor([105.5, 48.5]), atol=1e-4) and depth.item() == 2.0
    assert ndc_bounds((100, 200)) == (2.0, 1.0)


def test_round_trips():
    cameras = some_cameras()
    back = Cameras.from_opengl(cameras.to_opengl(), cameras.focal_length, cameras.principal_point, cameras.image_size)
    forth = Cameras.from_opencv(cameras.to_opencv(), cameras.focal_length, cameras.principal_point, cameras.image_size)
    for other in (back, forth):
        assert torch.allclose(other.R, cameras.R, atol=1e-5) and torch.allclose(other.T, cameras.T, atol=1e-5)
    same = Cameras.from_authors_ndc(cameras.R, cameras.T, *cameras.to_authors_ndc(), cameras.image_size)
    assert torch.allclose(same.focal_length, cameras.focal_length) and torch.allclose(
        same.principal_point, cameras.principal_point, atol=1e-4
    )


def test_rays_invert_projection():
    cameras = some_cameras()
    origins, directions = cameras.rays()
    points = origins[:, 11, 23] + 2.5 * directions[:, 11, 23]
    uv, _ = cameras.project(points[:, None])
    assert torch.allclose(uv[:, 0], torch.tensor([23.5, 11.5]), atol=1e-3)
    assert torch.allclose(origins[:, 0, 0], cameras.centers(), atol=1e-5)


def test_crop_resize_zoom_transform_projections_like_pixels():
    cameras = some_cameras()
    points = torch.randn(20, 3)
    uv, _ = cameras.project(points)
    assert torch.allclose(cameras.crop(5, 7, (30, 40)).project(points)[0], uv - torch.tensor([7.0, 5.0]), rtol=1e-4, atol=1e-3)
    assert torch.allclose(cameras.resize((30, 40)).project(points)[0], uv / 2, rtol=1e-4, atol=1e-3)
    centre = torch.tensor([40.0, 30.0])
    assert torch.allclose(cameras.zoom(1.5).project(points)[0], centre + 1.5 * (uv - centre), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("matrix", "word"),
    [
        (torch.full((4, 4), torch.nan), "finite"),
        (2 * torch.eye(4), "last row"),
        (torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])), "orthonormal"),
        (torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0])), "mirror"),
    ],
)
def test_rigid_defect_names_the_cause(matrix, word):
    defect = rigid_defect(matrix)
    assert defect is not None and word in defect
    assert rigid_defect(torch.eye(4)) is None


def test_both_conventions_agree_at_full_resolution():
    """At scale 1 the conventions differ only in the outermost half pixel, which `authors` drops."""
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.tensor([[50.0, 50.0]]), torch.tensor([[32.0, 24.0]]), (48, 64))
    points = torch.cat([torch.rand(3000, 2) - 0.5, torch.rand(3000, 1) + 1.01], 1)
    exact, authors = (
        rasterize(ChunkedCloud.build(points), camera, [Level(1.0)], ProjectionSettings(1.0, convention))[0].index
        for convention in (PixelConvention.EXACT, PixelConvention.AUTHORS)
    )
    assert (exact == authors)[1:-1, 1:-1].float().mean() > 0.995


def test_recorded_projection(parity):
    record = parity("a_project_points.pt")
    for case in record["cases"]:
        size = tuple(case["image_size"])
        cameras = Cameras.from_authors_ndc(record["R_row"], record["T"], record["fcl_ndc"], record["prp_ndc"], size)
        grid = PixelGrid(PixelConvention.AUTHORS, size)
        found = torch.cat([grid.normalise(cameras[k], record["points"][k]) for k in range(len(cameras))])
        error = (found - case["ndc_points"]).abs()
        scale = case["ndc_points"].abs().amax(-1)
        assert (
            error[..., :2].amax(-1)[record["xy_comparable"]] <= torch.maximum(1e-5 * scale, torch.tensor(1e-5))[record["xy_comparable"]]
        ).all()
        assert (error[..., 2] <= 1e-5).all()
        mask = grid.inside(found[..., 0], found[..., 1]) & (found[..., 2] > 1.0)
        assert torch.equal(mask[case["safe"]], case["mask"][case["safe"]])
    for case in record["exact_cases"]:
        size = tuple(case["image_size"])
        camera = Cameras.from_authors_ndc(torch.eye(3)[None], torch.zeros(1, 3), torch.ones(1, 2), torch.zeros(1, 2), size)
        grid = PixelGrid(PixelConvention.AUTHORS, size)
        found = grid.normalise(camera, record["exact_points"][0])
        assert torch.equal(grid.inside(found[..., 0], found[..., 1]) & (found[..., 2] > 1.0), case["mask"])


def test_recorded_pixels(parity):
    record = parity("b_pixels_visibility.pt")
    for case in [*record["pixels"], *record["pixels_exact"]]:
        height, width = case["image_size"]
        grid = PixelGrid(PixelConvention.AUTHORS, (height, width))
        x, y = case["ndc_points"][..., 0].reshape(-1), case["ndc_points"][..., 1].reshape(-1)
        row, column = grid.cells(x, y, 1.0, (height, width))
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        found = torch.where(inside, row.long() * width + column, height * width)
        safe = case["safe"].reshape(-1) if "safe" in case else torch.ones_like(inside)
        assert torch.equal(found[safe], case["pixel_id"].reshape(-1)[safe])


@pytest.mark.parametrize("convention", PixelConvention)
def test_frustum_ends_at_the_image_border_and_behind_the_near_plane(convention):
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.tensor([[32.0, 32.0]]), torch.tensor([[32.0, 32.0]]), (64, 64))
    points = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 1.0], [0.0, 0.0, -2.0], [1.9, 0.0, 2.0], [2.1, 0.0, 2.0], [0.0, -2.1, 2.0]])
    projection = ProjectionSettings(1.0, convention)
    assert projection.in_frustum(camera, points).tolist() == [[True, False, False, True, False, False]]
    assert projection.grid((48, 64)) == PixelGrid(convention, (48, 64))
