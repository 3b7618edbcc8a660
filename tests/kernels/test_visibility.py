"""Visible points: all implementations agree."""

import math

import pytest
import torch

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention, ProjectionSettings
from npbgpp.kernels.visibility import visible_points

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def cameras(count: int, image_size: tuple[int, int]) -> Cameras:
    R = torch.linalg.qr(torch.randn(count, 3, 3))[0]
    principal = torch.tensor([[image_size[1] / 2 + 0.3, image_size[0] / 2 - 0.7]]).repeat(count, 1)
    return Cameras(R, torch.tensor([0.1, -0.2, 3.0]).repeat(count, 1), torch.full((count, 2), 1.1 * max(image_size)), principal, image_size)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("convention", PixelConvention)
@pytest.mark.parametrize(("image_size", "scale"), [((37, 53), 0.5), ((37, 53), 0.3), ((2, 2), 1.0), ((64, 48), 1.0)])
@pytest.mark.parametrize(("count", "views"), [(0, 2), (1, 1), (3000, 3), (60_000, 1)])
def test_equal_to_plain_pytorch(count, views, image_size, scale, convention, device, monkeypatch):
    """With duplicates and non-finite points. Projections are rounded differently: points at the borders of cells may fall on either side."""
    if int(scale * min(image_size)) < 1:
        pytest.skip("no cell")
    points = torch.randn(count, 3)
    points[: count // 8] = points[count // 2 : count // 2 + count // 8]
    for k, value in enumerate((math.nan, math.inf, -math.inf)):
        points[k::97, k] = value
    points, views_of, projection = points.to(device), cameras(views, image_size).to(device), ProjectionSettings(0.5, convention)
    found = visible_points(points, views_of, scale, projection)
    monkeypatch.setenv("NPBGPP_KERNELS", "torch")
    expected = visible_points(points, views_of, scale, projection)
    assert found.shape == (views, count) and found.dtype == torch.bool
    assert (found != expected).sum() <= 1e-3 * expected.sum() + 2 * (count > 3000)
    assert not found[:, ~points.isfinite().all(1)].any()


def test_an_image_of_one_pixel():
    points = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 1.0], [0.1, 0.0, 1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.ones(1, 2), torch.full((1, 2), 0.5), (1, 1))
    assert visible_points(points, camera, 1.0, ProjectionSettings()).tolist() == [[False, True, True, False, False]]
