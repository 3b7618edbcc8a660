"""Projection matrices: their parts put together again, the recordings, the half pixel between OpenCV's pixels and ours, and what is no camera."""

import math

import pytest
import torch

from npbgpp.geometry.pixels import PixelConvention, PixelGrid
from npbgpp.parsers.idr import cameras_from_projections, decompose_projection, projection_defect


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(K, R, t) of 20 cameras in random poses; K has no skew."""
    generator = torch.Generator().manual_seed(1)
    R = torch.linalg.qr(torch.randn(20, 3, 3, generator=generator, dtype=torch.float64))[0]
    R = R * torch.linalg.det(R).sign()[:, None, None]
    K = torch.zeros(20, 3, 3, dtype=torch.float64)
    K[:, 0, 0], K[:, 1, 1], K[:, 2, 2] = *(50 + 900 * torch.rand(2, 20, generator=generator, dtype=torch.float64)), 1.0
    K[:, :2, 2] = 300 * torch.rand(20, 2, generator=generator, dtype=torch.float64) - 50
    return K, R, 10 * torch.randn(20, 3, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 0.37, -1.0, -40.0, 1e-6])
def test_parts_are_found_again(parts, scale):
    """Whatever the scale and sign of the matrix, which say nothing about the camera."""
    K, R, t = parts
    found = decompose_projection(scale * K @ torch.cat([R, t], 2))
    torch.testing.assert_close(found[0] / abs(scale), K, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(found[1], R, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[2], t, rtol=1e-9, atol=1e-9)


def test_recordings(parity):
    recorded = parity("j_third_party_semantics.pt")["KRt"]
    K, R, t = decompose_projection(recorded["P"])
    torch.testing.assert_close(K, recorded["K"], rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(R, recorded["R"], rtol=0, atol=1e-9)
    torch.testing.assert_close(t, recorded["t"], rtol=1e-9, atol=1e-9)


def test_recordings_of_negated_matrices_without_their_mirror(parity):
    """The original keeps the sign, so that its rotation has determinant -1; K is the same."""
    recorded = parity("j_third_party_semantics.pt")["KRt_negated"]
    assert (torch.linalg.det(recorded["R"]) < 0).all()
    K, R, t = decompose_projection(recorded["P"])
    torch.testing.assert_close(K, recorded["K"], rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(R, -recorded["R"], rtol=0, atol=1e-9)
    torch.testing.assert_close(t, -recorded["t"], rtol=1e-9, atol=1e-9)


def test_cameras_project_as_their_matrices_do(parts):
    K, R, t = parts
    P = K @ torch.cat([R, t], 2)
    points = torch.randn(30, 3, dtype=torch.float64)
    homogeneous = torch.cat([points, torch.ones(30, 1, dtype=torch.float64)], 1)
    uvw = (P @ homogeneous.T).transpose(1, 2)
    uv, depth = cameras_from_projections(P, (48, 64), shared_intrinsics=False).project(points.float())
    near = uvw[..., 2].abs() < 1  # where single precision says little
    torch.testing.assert_close(depth.double(), uvw[..., 2], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(uv.double()[~near], (uvw[..., :2] / uvw[..., 2:] + 0.5)[~near], rtol=1e-4, atol=1e-2)


def test_shared_intrinsics_are_the_mean_of_the_normalised_ones(parts):
    K, R, t = parts
    scales = torch.linspace(-3, 4, 20, dtype=torch.float64)[:, None, None]
    cameras = cameras_from_projections(scales * K @ torch.cat([R, t], 2), (48, 64), shared_intrinsics=True)
    mean = K.mean(0)
    for k in range(20):
        torch.testing.assert_close(cameras.focal_length[k].double(), mean.diagonal()[:2], rtol=1e-6, atol=0)
        torch.testing.assert_close(cameras.principal_point[k].double(), mean[:2, 2] + 0.5, rtol=1e-5, atol=0)
    torch.testing.assert_close(cameras.to_opencv()[:, :3, :3].double(), R, rtol=0, atol=1e-6)


def test_numbers_of_the_original():
    """Image 100x200, fx 150, fy 160, cx 90, cy 40, OpenCV point (0.2, 0.1, 2): its normalised intrinsics, point and pixel."""
    P = torch.tensor([[[150.0, 0.0, 90.0, 0.0], [0.0, 160.0, 40.0, 0.0], [0.0, 0.0, 1.0, 0.0]]], dtype=torch.float64)
    camera = cameras_from_projections(P, (100, 200), shared_intrinsics=False)
    fcl, prp = camera.to_authors_ndc()
    torch.testing.assert_close(fcl, torch.tensor([[3.030303, 3.232323]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(prp, torch.tensor([[0.191919, 0.191919]]), rtol=0, atol=1e-6)
    point = torch.tensor([[0.2, 0.1, 2.0]])
    ndc = PixelGrid(PixelConvention.AUTHORS, (100, 200)).normalise(camera, point)
    torch.testing.assert_close(ndc[0, 0], torch.tensor([-0.111111, 0.030303, 2.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(camera.project(point)[0][0, 0], torch.tensor([105.5, 48.5]))


def changed(row: int, column: int, value: float) -> torch.Tensor:
    P = torch.tensor([[150.0, 0.0, 90.0, 1.0], [0.0, 160.0, 40.0, 2.0], [0.0, 0.0, 1.0, 3.0]], dtype=torch.float64)
    P[row, column] = value
    return P


@pytest.mark.parametrize(
    ("P", "words"),
    [
        (changed(0, 3, math.nan), "not finite"),
        (changed(1, 1, math.inf), "not finite"),
        (changed(2, 2, 0.0), "singular"),
        (changed(1, 1, 0.0), "singular"),
        (torch.zeros(3, 4, dtype=torch.float64), "singular"),
        (changed(0, 1, 15.0), "skewed by 0.1 "),
    ],
)
def test_what_is_no_camera(P, words):
    assert words in (projection_defect(P) or "")


def test_cameras_have_no_defect(parts):
    K, R, t = parts
    assert [projection_defect(P) for P in -0.01 * K @ torch.cat([R, t], 2)] == [None] * 20
    assert projection_defect(changed(0, 1, 1.0)) is None
