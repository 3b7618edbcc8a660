"""Cameras of the browser and ours."""

import math

import numpy as np
import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, fit_to_size
from npbgpp.viewer.poses import Pose, ViewerFrame, Window, parse_viewport, top_of_cloud, viewer_frame

from ..conftest import ring_pose

FRAME = ViewerFrame(2.5, (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))


def camera(azimuth: float = 0.7, size: tuple[int, int] = (48, 64), focal: float = 55.0) -> Cameras:
    pose = ring_pose(azimuth)
    return Cameras.from_opengl(pose[None], torch.tensor([[focal, focal]]), torch.tensor([[size[1] / 2, size[0] / 2]]), size)


def same(one: Cameras, other: Cameras) -> None:
    assert one.image_size == other.image_size
    for name in ("R", "T", "focal_length", "principal_point"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=2e-5, rtol=1e-5)


def test_there_and_back():
    original = camera()
    pose = FRAME.pose(original, 64 / 48)
    assert np.linalg.norm(pose.wxyz) == pytest.approx(1)
    same(FRAME.camera(pose, (48, 64)), original)


@pytest.mark.parametrize("size", [(48, 64), (100, 64), (64, 300)])
def test_other_windows_show_what_fit_to_size_shows(size):
    pose = FRAME.pose(camera(), size[1] / size[0])
    same(FRAME.camera(pose, size), fit_to_size(camera(), size))


def test_axes_are_those_of_opencv():
    pose = FRAME.pose(camera(), 1.0)
    seen = camera()
    position = np.asarray(pose.position) / FRAME.scale
    for axis, (u, v) in enumerate(((1, 0), (0, 1))):
        ahead = torch.from_numpy(position + pose.rotation()[:, 2] + 0.1 * pose.rotation()[:, axis]).float()
        uv, depth = seen.project(ahead[None])
        assert depth.item() == pytest.approx(1, abs=1e-5), "z points forward"
        assert (uv[0, 0] - seen.principal_point[0]).tolist() == pytest.approx([5.5 * u, 5.5 * v], abs=1e-3), "x right, y down"


def test_field_of_view_is_vertical():
    pose = Pose((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0), math.radians(90), 2.0)
    assert FRAME.camera(pose, (100, 200)).focal_length.tolist() == [[pytest.approx(50), pytest.approx(50)]]


def test_fixed_viewports_are_letterboxed():
    wide = Window.fit((400, 800), (100, 100))
    assert (wide.size, wide.top, wide.left) == ((100, 200), 0, 50)
    high = Window.fit((800, 400), (100, 100))
    assert (high.size, high.top, high.left) == ((200, 100), 50, 0)
    assert high.place(torch.ones(3, 100, 100)).shape == (3, 200, 100)
    pose = Pose((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 1.0, 0.5)
    inner = high.pose(pose)
    assert math.tan(inner.fov / 2) == pytest.approx(math.tan(0.5) / 2)
    assert high.window_pose(inner).fov == pytest.approx(pose.fov)
    assert Window.fit((30, 40), None).scaled(0.5).picture == (16, 20)


@pytest.mark.parametrize(("text", "size"), [("70,50", (48, 64)), ("[2000,1328]", (1328, 2000)), ("640x480", (480, 640))])
def test_viewports_are_multiples_of_16(text, size):
    assert parse_viewport(text) == size


@pytest.mark.parametrize("text", ["", "640", "a,b", "8,800", "99999,100"])
def test_other_viewports_are_refused(text):
    with pytest.raises(InputError, match="viewport: expected"):
        parse_viewport(text)


def test_top_of_the_cloud():
    cloud = torch.rand(1001, 3) * torch.tensor([2.0, 4.0, 6.0])
    top = top_of_cloud(cloud, camera())
    (centre,) = top.centers()
    expected = [*cloud.median(0).values[:2].tolist(), float(np.percentile(cloud[:, 2], 90)) + 20]
    assert centre.tolist() == pytest.approx(expected, abs=1e-4)
    assert top.R[0, :, 2].tolist() == pytest.approx([0, 0, -1])


def test_scenes_of_any_size_look_alike():
    views = [camera(k / 3) for k in range(8)]
    small = viewer_frame(views, torch.randn(500, 3))
    large = viewer_frame(
        [Cameras(c.R, 1000 * c.T, c.focal_length, c.principal_point, c.image_size) for c in views], 1000 * torch.randn(500, 3)
    )
    assert small.scale == pytest.approx(1000 * large.scale, rel=0.05)
    assert small.up == pytest.approx((0, 0, 1)), "the axis that the views agree on"
    assert viewer_frame(views, None, speed=2.0).scale == pytest.approx(viewer_frame(views, None).scale / 2)
    assert 2 < small.scale * 3 < 6, "keys cross the scene in some seconds"


def test_level_views_keep_the_up_of_the_scene():
    assert FRAME.up_of(FRAME.pose(camera(), 1.0)) == (0.0, 0.0, 1.0)
    rolled = camera()
    roll = torch.tensor([[0.8, 0.6, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    rolled = Cameras(rolled.R @ roll, rolled.T @ roll, rolled.focal_length, rolled.principal_point, rolled.image_size)
    pose = FRAME.pose(rolled, 1.0)
    assert FRAME.up_of(pose) == pytest.approx(tuple(-pose.rotation()[:, 1]))


def test_the_pivot_lies_ahead():
    pose = FRAME.pose(camera(), 1.0)
    assert FRAME.pivot(pose) == pytest.approx((0, 0, 0), abs=1e-4)
