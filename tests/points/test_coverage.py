"""Which share of a cloud cameras see, and what the near plane takes."""

import pytest
import torch

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention
from npbgpp.points import visibility as module
from npbgpp.points.visibility import cloud_coverage

CAMERA = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.tensor([[32.0, 32.0]]), torch.tensor([[32.0, 32.0]]), (64, 64))
BACK = Cameras(torch.diag(torch.tensor([-1.0, 1.0, -1.0]))[None], torch.zeros(1, 3), CAMERA.focal_length, CAMERA.principal_point, (64, 64))


@pytest.mark.parametrize("rule", PixelConvention)
def test_shares_by_hand(rule):
    before_near = [[0.0, 0.0, 0.5]] * 3
    seen = [[0.1, 0.0, 2.0]] * 5
    beside = [[9.0, 0.0, 2.0]] * 4
    behind = [[0.0, 0.0, -2.0]] * 8
    points = torch.tensor(before_near + seen + beside + behind)
    found = cloud_coverage(points, [CAMERA], 1.0, rule)
    assert found.seen == pytest.approx(5 / 20) and found.largest_cut == pytest.approx(3 / 8)
    both = cloud_coverage(points, [CAMERA, BACK], 1.0, rule)
    assert both.seen == pytest.approx(13 / 20) and both.largest_cut == pytest.approx(3 / 8)


def test_nothing_seen_and_no_camera():
    points = torch.tensor([[0.0, 0.0, -2.0], [0.0, 0.0, -3.0]])
    found = cloud_coverage(points, [CAMERA], 1.0, PixelConvention.EXACT)
    assert found.seen == 0 and found.largest_cut == 0
    assert cloud_coverage(points, [], 1.0, PixelConvention.EXACT).seen == 0


def test_cut_by_the_near_plane_alone_is_nothing_seen():
    found = cloud_coverage(torch.tensor([[0.0, 0.0, 0.4]]), [CAMERA], 1.0, PixelConvention.EXACT)
    assert found.seen == 0 and found.largest_cut == 1
    assert cloud_coverage(torch.tensor([[0.0, 0.0, 0.4]]), [CAMERA], 0.1, PixelConvention.EXACT).seen == 1


def test_large_clouds_are_sampled_but_a_single_seen_point_is_found(monkeypatch):
    monkeypatch.setattr(module, "_SAMPLE", 10)
    points = torch.full((100, 3), -2.0)
    points[37] = torch.tensor([0.0, 0.0, 2.0])  # not in the sample
    assert cloud_coverage(points, [CAMERA], 1.0, PixelConvention.EXACT).seen == pytest.approx(1 / 100)
    half = torch.where(torch.arange(100)[:, None] < 50, torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, -2.0]))
    assert cloud_coverage(half, [CAMERA], 1.0, PixelConvention.EXACT).seen == pytest.approx(0.5)
