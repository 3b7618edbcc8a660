"""Paths of cameras: through views, around an object, before a scene."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.trajectories import average_pose, circle, fit, interpolate, orbit_of, spiral

SIZE = (48, 64)


def looking_at(eyes: torch.Tensor, target: torch.Tensor, up: torch.Tensor) -> Cameras:
    """Cameras with intrinsics of their own, built from OpenGL matrices."""
    poses = torch.eye(4).repeat(len(eyes), 1, 1)
    back = torch.nn.functional.normalize(eyes - target, dim=1)
    right = torch.nn.functional.normalize(torch.linalg.cross(up.expand_as(back), back), dim=1)
    poses[:, :3] = torch.stack([right, torch.linalg.cross(back, right), back, eyes], 2)
    numbers = torch.arange(len(eyes))[:, None]
    return Cameras.from_opengl(poses, 70.0 + numbers * torch.tensor([1.0, 2.0]), torch.tensor([[31.0, 25.0]]) + 0.5 * numbers, SIZE)


def around(count: int = 9, elevation: float = 0.5, centre: tuple[float, float, float] = (1.0, -2.0, 0.5)) -> Cameras:
    """Level cameras on a ring with the z axis, all at distance 4 of ``centre``."""
    angle = torch.arange(count) * (2 * math.pi / count)
    offset = torch.stack(
        [angle.cos() * math.cos(elevation), angle.sin() * math.cos(elevation), torch.full((count,), math.sin(elevation))], 1
    )
    return looking_at(torch.tensor(centre) + 4 * offset, torch.tensor(centre), torch.tensor([0.0, 0.0, 1.0]))


def forward_facing(count: int = 12) -> Cameras:
    generator = torch.Generator().manual_seed(3)
    eyes = torch.randn(count, 3, generator=generator) * torch.tensor([0.5, 0.3, 0.1]) + torch.tensor([2.0, 1.0, 0.0])
    targets = torch.tensor([2.0, 1.0, -20.0]) + torch.randn(count, 3, generator=generator)
    return Cameras.cat([looking_at(eye[None], target, torch.tensor([0.0, 1.0, 0.0])) for eye, target in zip(eyes, targets, strict=True)])


def assert_rigid(cameras: Cameras) -> None:
    identity = torch.eye(3).expand(len(cameras), 3, 3)
    assert torch.allclose(cameras.R.transpose(1, 2) @ cameras.R, identity, atol=1e-6)
    assert torch.allclose(torch.linalg.det(cameras.R), torch.ones(len(cameras)), atol=1e-5)


def assert_same(one: Cameras, other: Cameras) -> None:
    assert one.image_size == other.image_size
    for name in ("R", "T", "focal_length", "principal_point"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


# ------------------------------------------------------------------ through views
@pytest.mark.parametrize(("count", "loop"), [(33, False), (36, True), (9, True), (9, False)])
def test_a_path_goes_through_its_views(count, loop):
    views = around()
    path = interpolate(views, count, loop)
    assert len(path) == count
    assert_rigid(path)
    step = count // 9 if loop else (count - 1) // 8
    assert_same(path[list(range(0, count, step))], views)


def test_the_way_between_views_is_smooth():
    views = around(8)
    path = interpolate(views, 160, loop=True)
    distance = (path.centers() - torch.tensor([1.0, -2.0, 0.5])).norm(dim=1)
    assert (distance - 4).abs().max() < 0.05  # Catmull-Rom leaves a circle of 8 views by this much
    closed = torch.cat([path.centers(), path.centers()[:1]])
    steps = (closed[1:] - closed[:-1]).norm(dim=1)
    assert steps.max() < 1.3 * steps.min() and (steps[1:] / steps[:-1]).max() < 1.1
    turns = (path.R[1:].transpose(1, 2) @ path.R[:-1]).diagonal(dim1=1, dim2=2).sum(1)
    angle = torch.acos(((turns - 1) / 2).clamp(-1, 1))
    assert angle.max() < 1.5 * 2 * math.pi / 160


def test_half_way_between_two_views():
    """Two views are joined by a line, a turn about one axis, and the mean of their numbers."""
    views = around(8)[[0, 1]]
    middle = interpolate(views, 3)[1]
    assert torch.allclose(middle.centers(), views.centers().mean(0, keepdim=True), atol=1e-6)
    assert torch.allclose(middle.focal_length, views.focal_length.mean(0, keepdim=True))
    assert torch.allclose(middle.principal_point, views.principal_point.mean(0, keepdim=True))
    first, second = (views.R[k].T @ middle.R[0] for k in (0, 1))
    assert torch.allclose(first, second.T, atol=1e-6)  # as far from one as from the other


def test_the_shorter_way_round():
    """From 350 to 10 degrees is 20 degrees."""
    up = torch.tensor([0.0, 0.0, 1.0])
    ends = [torch.tensor([[math.cos(a), math.sin(a), 0.0]]) for a in (math.radians(350), math.radians(10))]
    views = Cameras.cat([looking_at(eye, torch.zeros(3), up) for eye in ends])
    middle = interpolate(views, 3).R[1, :, 2]
    assert torch.allclose(middle, torch.tensor([-1.0, 0.0, 0.0]), atol=1e-6)


def test_one_frame_is_the_first_view_and_one_view_is_no_path():
    assert_same(interpolate(around(), 1), around()[0])
    with pytest.raises(InputError, match="at least two views, got 1"):
        interpolate(around(1), 5)


def test_numbers_in_double_precision_stay_so():
    views = around()
    double = replace(views, focal_length=views.focal_length.double(), principal_point=views.principal_point.double())
    path = interpolate(double, 20)
    assert path.focal_length.dtype == torch.float64 and path.R.dtype == path.T.dtype == torch.float32


# ------------------------------------------------------------------ circles
def test_a_circle_keeps_its_distance_and_looks_at_its_centre():
    centre, up, target = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.3, -2.0, 0.5]), torch.tensor([1.2, 2.0, 3.1])
    like = around()[2]
    path = circle(centre, up, 2.5, 1.5, 16, target, like)
    assert_rigid(path)
    axis = up / up.norm()
    offset = path.centers() - centre
    assert torch.allclose(offset @ axis, torch.full((16,), 1.5), atol=1e-5)
    flat = offset - (offset @ axis)[:, None] * axis
    assert torch.allclose(flat.norm(dim=1), torch.full((16,), 2.5), atol=1e-5)
    seen, depth = path.project(target[None])
    assert (depth > 0).all() and torch.allclose(seen[:, 0], like.principal_point.expand(16, 2), atol=1e-3)
    assert (path.R[:, :, 1] @ axis > 0).all() and (path.R[:, :, 0] @ axis).abs().max() < 1e-6  # upright
    around_axis = torch.linalg.cross(flat, flat.roll(-1, 0)) @ axis
    assert torch.allclose(
        around_axis, torch.full((16,), 2.5**2 * math.sin(2 * math.pi / 16)), atol=1e-4
    )  # equal steps, one sense, once around
    assert torch.equal(path.focal_length, like.focal_length.expand(16, 2)) and path.image_size == like.image_size


@pytest.mark.parametrize("elevation", [0.0, 0.5, 1.2, -0.4])
def test_the_circle_of_views_on_a_circle_is_theirs(elevation):
    path = orbit_of(around(elevation=elevation), 30)
    offset = path.centers() - torch.tensor([1.0, -2.0, 0.5])
    assert torch.allclose(offset.norm(dim=1), torch.full((30,), 4.0), atol=1e-4)
    assert torch.allclose(offset[:, 2], torch.full((30,), 4 * math.sin(elevation)), atol=1e-4)
    assert torch.equal(path.focal_length, around().focal_length[:1].expand(30, 2))


def test_up_is_found_from_views_of_one_side():
    """Level cameras high above one side of an object: the mean of their vertical axes leans over."""
    views = around(32, elevation=1.0)[list(range(6))]
    path = orbit_of(views, 7)
    assert (path.centers()[:, 2] - path.centers()[0, 2]).abs().max() < 1e-4
    assert (path.R[:, 2, 0]).abs().max() < 1e-5  # level


def test_up_of_views_that_are_not_level():
    """Rolled to and fro: what is left is their mean."""
    views = around(16, elevation=0.3)
    angle = torch.tensor([0.6, -0.6]).repeat(8)
    roll = torch.eye(3).repeat(16, 1, 1)
    roll[:, 0, 0] = roll[:, 1, 1] = angle.cos()
    roll[:, 0, 1], roll[:, 1, 0] = angle.sin(), -angle.sin()
    rolled = replace(views, R=views.R @ roll, T=(views.T[:, None] @ roll)[:, 0])
    height = orbit_of(rolled, 9).centers()[:, 2]
    assert torch.allclose(height, torch.full((9,), 0.5 + 4 * math.sin(0.3)), atol=1e-2)


def test_views_that_no_circle_is_made_of():
    parallel = replace(around(3), R=around(3).R[:1].expand(3, 3, 3))
    with pytest.raises(InputError, match="look in one direction"):
        orbit_of(parallel, 5)
    with pytest.raises(InputError, match="look in one direction"):
        orbit_of(around(1), 5)
    views = around(elevation=0.0)
    half = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))  # turned about the vertical axis: they look outwards
    with pytest.raises(InputError, match="look away from each other"):
        orbit_of(replace(views, R=views.R @ half, T=views.T @ half), 5)
    upside_down = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    R, T = views.R.clone(), views.T.clone()
    R[::2], T[::2] = R[::2] @ upside_down, T[::2] @ upside_down
    with pytest.raises(InputError, match="no common upward direction"):
        orbit_of(replace(views, R=R, T=T)[list(range(8))], 5)


# ------------------------------------------------------------------ spirals
def poses_of_nerf(cam_to_world: np.ndarray, focus: float, count: int) -> np.ndarray:
    """The spiral of spec and code of NeRF, in numpy, on matrices with axes right, up, backward."""
    unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
    z = unit(cam_to_world[:, :3, 2].mean(0))
    x = unit(np.cross(cam_to_world[:, :3, 1].mean(0), z))
    average = np.eye(4)
    average[:3] = np.stack([x, np.cross(z, x), z, cam_to_world[:, :3, 3].mean(0)], 1)
    centred = np.linalg.inv(average) @ cam_to_world
    radii = np.percentile(np.abs(centred[:, :3, 3]), 90, axis=0)
    found = []
    for t in np.linspace(0, 4 * np.pi, count + 1)[:-1]:
        position = np.array([np.cos(t), -np.sin(t), -np.sin(0.5 * t)]) * radii
        z = unit(position - np.array([0, 0, -focus]))
        x = unit(np.cross([0.0, 1.0, 0.0], z))
        pose = np.eye(4)
        pose[:3] = np.stack([x, np.cross(z, x), z, position], 1)
        found.append(average @ pose)
    return np.stack(found)


def test_the_spiral_is_that_of_nerf():
    views = forward_facing()
    path = spiral(views, 3.5, 25)
    assert_rigid(path)
    expected = poses_of_nerf(views.to_opengl().double().numpy(), 3.5, 25)
    assert np.abs(path.to_opengl().numpy() - expected).max() < 1e-5
    middle = average_pose(views)
    target = middle.centers() + 3.5 * middle.R[:, :, 2]
    seen, _ = path.project(target)
    assert torch.allclose(seen[:, 0], middle.principal_point.expand(25, 2), atol=1e-3)
    assert torch.allclose(middle.focal_length[0], views.focal_length.mean(0))


def test_the_mean_of_one_view_is_itself():
    view = around()[3]
    mean = average_pose(view)
    assert torch.allclose(mean.R, view.R, atol=1e-6) and torch.allclose(mean.T, view.T, atol=1e-5)


def test_views_in_all_directions_have_no_mean():
    with pytest.raises(InputError, match="all directions"):
        average_pose(around(8, elevation=0.0))


# ------------------------------------------------------------------ other sizes
def test_the_same_shape_is_the_same_picture():
    view, other = around()[4], fit(around()[4], (96, 128))
    resized = view.resize((96, 128))
    assert torch.allclose(other.focal_length, resized.focal_length) and torch.allclose(other.principal_point, resized.principal_point)
    assert_same(fit(view, SIZE), view)


@pytest.mark.parametrize("size", [(48, 48), (48, 200), (31, 17), (300, 64)])
def test_another_shape_shows_everything_undistorted(size):
    view = around()[4]
    origins, directions = view.rays()
    corners = (origins + 3 * directions)[0][[0, 0, -1, -1], [0, -1, 0, -1]]
    other = fit(view, size)
    uv, _ = other.project(corners)
    assert (uv[0] > 0).all() and (uv[0] < torch.tensor([size[1], size[0]])).all()
    assert torch.allclose(other.focal_length[0, 0] / other.focal_length[0, 1], view.focal_length[0, 0] / view.focal_length[0, 1])
    extent = uv[0].amax(0) - uv[0].amin(0)
    assert ((extent - torch.tensor([63.0, 47.0]) * min(size[0] / 48, size[1] / 64)).abs() < 1e-2).all()
