"""Coordinates of the field of a video: published numbers, round trips, and what starts behind the near plane."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.methods.nsff.normalisation import VideoNormalisation

SIZE = (378, 504)


def turned(angle: float, centre=(0.0, 0.0, 0.0)) -> Cameras:
    """A camera turned about the vertical axis, in Euclidean field coordinates."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 0] = pose[2, 2] = math.cos(angle)
    pose[0, 2], pose[2, 0] = math.sin(angle), -math.sin(angle)
    pose[:3, 3] = torch.tensor(centre)
    size = torch.tensor([[252.0, 189.0]]).double()
    return Cameras.from_opengl(pose[None], torch.full((1, 2), 400.0).double(), size, SIZE)


@pytest.fixture
def frame():
    eye = torch.eye(3, dtype=torch.float64)
    moments = Cameras.cat([turned(0.0), turned(0.2, (0.3, -0.1, -1.4))])
    return VideoNormalisation(eye, torch.zeros(3, dtype=torch.float64), 1.0, 400.0, 400.0, 252.0, 189.0, SIZE, moments)


def test_rays_have_the_numbers_of_the_published_formula(frame):
    origins, directions = frame.rays(torch.tensor([[0.1, -0.2, 0.05]]), torch.tensor([[0.1, 0.2, -0.97]]))
    assert origins[0].tolist() == pytest.approx([0.330551, 0.034910, -1], abs=1e-6)
    assert directions[0].tolist() == pytest.approx([-0.166912, 0.401462, 2], abs=1e-6)


def test_rays_of_a_camera_past_the_near_plane_begin_at_the_camera(frame):
    origin, direction = torch.tensor([[0.3, -0.1, -1.4]]), torch.tensor([[0.1, 0.2, -0.97]])
    begin, along = frame.rays(origin, direction)
    torch.testing.assert_close(begin, frame.field_to_ndc(origin))
    torch.testing.assert_close(begin + along, torch.tensor([[-400 / 252 * 0.1 / -0.97, -400 / 189 * 0.2 / -0.97, 1.0]]))


def test_points_of_a_ray_lie_on_the_ray_in_ndc(frame):
    origin, direction = torch.tensor([[0.1, -0.2, 0.05]]).double(), torch.tensor([[0.1, 0.2, -0.97]]).double()
    begin, along = frame.rays(origin, direction)
    for length in (2.0, 5.0, 100.0):
        at = frame.field_to_ndc(origin + length * direction)
        t = (at[0, 2] - begin[0, 2]) / along[0, 2]
        torch.testing.assert_close(begin + t * along, at)
        assert 0 < t < 1


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(-500, -0.5))
def test_ndc_and_back(x, y, z):
    camera = turned(0.0)
    frame = VideoNormalisation(
        torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1.0, 400.0, 380.0, 250.0, 190.0, SIZE, camera
    )
    xyz = torch.tensor([[x, y, z]], dtype=torch.float64)
    # the far end is a number, at the price of z / 2 parts in a million
    torch.testing.assert_close(frame.ndc_to_field(frame.field_to_ndc(xyz)), xyz, rtol=1e-6 * (1 - z), atol=1e-12)


def test_depth_two_is_the_middle_of_ndc_and_infinity_stays_finite(frame):
    assert frame.field_to_ndc(torch.tensor([[0.4, 0.1, -2.0]]))[0, 2] == 0
    torch.testing.assert_close(
        frame.ndc_to_field(frame.field_to_ndc(torch.tensor([[0.4, 0.1, -2.0]]))), torch.tensor([[0.4, 0.1, -2.0]]), atol=1e-5, rtol=0
    )
    assert torch.isfinite(frame.ndc_to_field(torch.tensor([[0.1, 0.2, 1.0]]))).all()


def test_points_project_where_the_camera_of_their_moment_sees_them(frame):
    xyz = torch.tensor([[[0.2, 0.3, -3.0], [-1.0, 0.2, -6.0]], [[0.0, 0.0, -9.0], [2.0, 1.0, -5.0]]]).double()
    for moment in (0, 1):
        uv_px, depth = frame.project(xyz, moment)
        expected, expected_depth = frame.moments[moment].project(xyz.reshape(1, 4, 3))
        torch.testing.assert_close(uv_px.reshape(1, 4, 2), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(depth.reshape(1, 4), expected_depth)


def test_a_point_on_the_ray_of_a_pixel_projects_to_its_centre(frame):
    origins, directions = frame.moments[1].rays()
    begin, along = frame.rays(origins[0, 10, 20:21], directions[0, 10, 20:21])
    uv_px, _ = frame.project(frame.ndc_to_field(begin + 0.6 * along), 1)
    assert uv_px[0].tolist() == pytest.approx([20.5, 10.5], abs=1e-3)


def test_gradients_are_finite_also_at_the_camera(frame):
    xyz = torch.tensor([[0.3, -0.1, -1.4], [0.3, -0.1, 5.0], [1.0, 2.0, -3.0]], requires_grad=True)
    uv_px, depth = frame.project(xyz, 1)
    (uv_px.sum() + depth.sum()).backward()
    assert torch.isfinite(xyz.grad).all() and depth[1] < 0 < depth[2]
    ndc = torch.tensor([[0.3, -0.1, 1.0], [0.3, -0.1, -1.0]], requires_grad=True)
    frame.ndc_to_field(ndc).sum().backward()
    assert torch.isfinite(ndc.grad).all()


def test_rays_that_look_back_are_refused(frame):
    with pytest.raises(InputError, match="look along -z"):
        frame.rays(torch.zeros(2, 3), torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 0.5]]))
