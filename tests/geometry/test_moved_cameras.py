"""Paths that move one camera: rigid, of equal steps, at equal distance; and what they refuse."""

import math

import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.trajectories import shifted, tumbled, turned

from ..conftest import ring_pose


def camera() -> Cameras:
    return Cameras.from_opengl(ring_pose(0.7)[None], torch.tensor([[40.0, 41.0]]), torch.tensor([[16.0, 15.0]]), (30, 32))


def check(path: Cameras) -> None:
    rotation = path.R.double()
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand_as(rotation), rtol=0, atol=1e-5)
    assert (torch.linalg.det(rotation) > 0).all()
    base = camera()
    assert (
        path.image_size == base.image_size
        and (path.focal_length == base.focal_length).all()
        and (path.principal_point == base.principal_point).all()
    )


def test_a_turn_goes_once_around_the_world_s_z_axis():
    path, base = turned(camera(), 9), camera()
    check(path)
    assert torch.equal(path.R[0], base.R[0]) or torch.allclose(path.R[0], base.R[0], atol=1e-6)
    assert torch.equal(path.R[0], path.R[-1]) and torch.equal(path.T[0], path.T[-1]), "the last frame repeats the first"
    eyes = path.centers()
    torch.testing.assert_close(eyes[:, 2], base.centers()[:, 2].expand(9), rtol=0, atol=1e-5)
    angles = torch.atan2(eyes[:, 1], eyes[:, 0])
    steps = (angles.diff() + math.pi) % (2 * math.pi) - math.pi
    torch.testing.assert_close(steps, torch.full((8,), 2 * math.pi / 8), rtol=0, atol=1e-4)
    middle, depth = path.project(torch.zeros(1, 3))  # what lies on the axis stays where it is in the picture
    torch.testing.assert_close(middle, middle[:1].expand_as(middle), rtol=0, atol=1e-3)
    torch.testing.assert_close(depth, depth[:1].expand_as(depth), rtol=0, atol=1e-4)


def test_a_turn_turns_what_is_seen():
    """The camera after a quarter turn sees a turned point where the first camera sees the point."""
    path = turned(camera(), 5)
    point = torch.tensor([[0.3, -0.2, 0.1]])
    quarter = torch.tensor([[0.2, 0.3, 0.1]])  # (x, y) to (-y, x)
    torch.testing.assert_close(path[1].project(quarter)[0], path[0].project(point)[0], rtol=0, atol=1e-3)


def test_a_straight_move_keeps_its_direction():
    path, base = shifted(camera(), (1.0, 0.0, 0.0), -2.0, 1.0, 301), camera()
    check(path)
    moved = path.centers() - base.centers()
    torch.testing.assert_close(moved[:, 0], torch.linspace(-2, 1, 301), rtol=0, atol=1e-4)
    torch.testing.assert_close(moved[:, 1:], torch.zeros(301, 2), rtol=0, atol=1e-4)
    assert (path.R == base.R).all()


def test_a_tumble_is_random_seeded_and_around_the_origin():
    path = tumbled(camera(), 200, 3)
    check(path)
    eyes = path.centers()
    torch.testing.assert_close(eyes.norm(dim=1), camera().centers().norm().expand(200), rtol=0, atol=1e-4)
    assert eyes.mean(0).norm() < 0.15 * eyes[0].norm(), "no side is preferred"
    assert torch.equal(tumbled(camera(), 200, 3).R, path.R) and not torch.equal(tumbled(camera(), 200, 4).R, path.R)


def test_paths_that_are_too_short():
    for make in (lambda: turned(camera(), 1), lambda: shifted(camera(), (1.0, 0.0, 0.0), 0.0, 1.0, 1), lambda: tumbled(camera(), 0, 0)):
        with pytest.raises(InputError, match="frames: "):
            make()
