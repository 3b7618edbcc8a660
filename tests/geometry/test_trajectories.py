"""Camera trajectories."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.trajectories import (
    average_pose,
    circle_path,
    fit_to_size,
    interpolate_path,
    linear_path,
    loop_path,
    orbit_path,
    random_rotation_path,
    spiral_along_path,
    spiral_path,
    surrounds,
    turntable_path,
)

from ..conftest import ring_pose

SIZE = (48, 64)


def looking_at(eyes: torch.Tensor, target: torch.Tensor, up: torch.Tensor) -> Cameras:
    """Cameras with different intrinsics, built from OpenGL matrices."""
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


# ------------------------------------------------------------------ interpolation
@pytest.mark.parametrize(("count", "loop"), [(33, False), (36, True), (9, True), (9, False)])
def test_interpolation_passes_through_the_views(count, loop):
    views = around()
    path = interpolate_path(views, count, loop)
    assert len(path) == count
    assert_rigid(path)
    step = count // 9 if loop else (count - 1) // 8
    assert_same(path[list(range(0, count, step))], views)


def test_interpolation_is_smooth():
    views = around(8)
    path = interpolate_path(views, 160, loop=True)
    distance = (path.centers() - torch.tensor([1.0, -2.0, 0.5])).norm(dim=1)
    assert (distance - 4).abs().max() < 0.05  # Catmull-Rom leaves a circle of 8 views by this much
    closed = torch.cat([path.centers(), path.centers()[:1]])
    steps = (closed[1:] - closed[:-1]).norm(dim=1)
    assert steps.max() < 1.3 * steps.min() and (steps[1:] / steps[:-1]).max() < 1.1
    turns = (path.R[1:].transpose(1, 2) @ path.R[:-1]).diagonal(dim1=1, dim2=2).sum(1)
    angle = torch.acos(((turns - 1) / 2).clamp(-1, 1))
    assert angle.max() < 1.5 * 2 * math.pi / 160


def test_midpoint_of_two_views():
    """The midpoint has the mean centre, half the rotation and the mean intrinsics."""
    views = around(8)[[0, 1]]
    middle = interpolate_path(views, 3)[1]
    assert torch.allclose(middle.centers(), views.centers().mean(0, keepdim=True), atol=1e-6)
    assert torch.allclose(middle.focal_length, views.focal_length.mean(0, keepdim=True))
    assert torch.allclose(middle.principal_point, views.principal_point.mean(0, keepdim=True))
    first, second = (views.R[k].T @ middle.R[0] for k in (0, 1))
    assert torch.allclose(first, second.T, atol=1e-6)  # as far from one as from the other


def test_rotations_take_the_shorter_way():
    """From 350 to 10 degrees is 20 degrees."""
    up = torch.tensor([0.0, 0.0, 1.0])
    ends = [torch.tensor([[math.cos(a), math.sin(a), 0.0]]) for a in (math.radians(350), math.radians(10))]
    views = Cameras.cat([looking_at(eye, torch.zeros(3), up) for eye in ends])
    middle = interpolate_path(views, 3).R[1, :, 2]
    assert torch.allclose(middle, torch.tensor([-1.0, 0.0, 0.0]), atol=1e-6)


def test_single_frame_and_single_view():
    assert_same(interpolate_path(around(), 1), around()[0])
    with pytest.raises(InputError, match="at least two views, got 1"):
        interpolate_path(around(1), 5)


def test_intrinsics_keep_double_precision():
    views = around()
    double = replace(views, focal_length=views.focal_length.double(), principal_point=views.principal_point.double())
    path = interpolate_path(double, 20)
    assert path.focal_length.dtype == torch.float64 and path.R.dtype == path.T.dtype == torch.float32


# ------------------------------------------------------------------ circles
def test_circle_has_constant_radius_and_looks_at_the_target():
    centre, up, target = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.3, -2.0, 0.5]), torch.tensor([1.2, 2.0, 3.1])
    like = around()[2]
    path = circle_path(centre, up, 2.5, 1.5, 16, target, like)
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
def test_orbit_of_views_on_a_circle_is_that_circle(elevation):
    path = orbit_path(around(elevation=elevation), 30)
    offset = path.centers() - torch.tensor([1.0, -2.0, 0.5])
    assert torch.allclose(offset.norm(dim=1), torch.full((30,), 4.0), atol=1e-4)
    assert torch.allclose(offset[:, 2], torch.full((30,), 4 * math.sin(elevation)), atol=1e-4)
    assert torch.equal(path.focal_length, around().focal_length[:1].expand(30, 2))


def test_views_surround_an_object():
    ring, ahead = around(count=12), forward_facing()
    views = [ring[k] for k in range(12)]
    assert surrounds(views) and not surrounds(views[:7]) and not surrounds([ahead[k] for k in range(12)]) and not surrounds(views[:1])
    assert surrounds([views[0].resize((17, 40)), *views[1:]]), "images of different sizes"
    for count in (2, 4):
        few = around(count=count)
        assert surrounds([few[k] for k in range(count)]) == (count == 4)


def test_up_from_level_views_on_one_side():
    """Level cameras high above one side of an object: the mean of their vertical axes is tilted."""
    views = around(32, elevation=1.0)[list(range(6))]
    path = orbit_path(views, 7)
    assert (path.centers()[:, 2] - path.centers()[0, 2]).abs().max() < 1e-4
    assert (path.R[:, 2, 0]).abs().max() < 1e-5  # level


def test_up_from_rolled_views_is_their_mean():
    """Cameras rolled alternately to both sides."""
    views = around(16, elevation=0.3)
    angle = torch.tensor([0.6, -0.6]).repeat(8)
    roll = torch.eye(3).repeat(16, 1, 1)
    roll[:, 0, 0] = roll[:, 1, 1] = angle.cos()
    roll[:, 0, 1], roll[:, 1, 0] = angle.sin(), -angle.sin()
    rolled = replace(views, R=views.R @ roll, T=(views.T[:, None] @ roll)[:, 0])
    height = orbit_path(rolled, 9).centers()[:, 2]
    assert torch.allclose(height, torch.full((9,), 0.5 + 4 * math.sin(0.3)), atol=1e-2)


def test_orbit_refuses_parallel_diverging_and_inconsistent_views():
    parallel = replace(around(3), R=around(3).R[:1].expand(3, 3, 3))
    with pytest.raises(InputError, match="look in one direction"):
        orbit_path(parallel, 5)
    with pytest.raises(InputError, match="look in one direction"):
        orbit_path(around(1), 5)
    views = around(elevation=0.0)
    half = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))  # turned about the vertical axis: they look outwards
    with pytest.raises(InputError, match="look away from each other"):
        orbit_path(replace(views, R=views.R @ half, T=views.T @ half), 5)
    upside_down = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    R, T = views.R.clone(), views.T.clone()
    R[::2], T[::2] = R[::2] @ upside_down, T[::2] @ upside_down
    with pytest.raises(InputError, match="no common upward direction"):
        orbit_path(replace(views, R=R, T=T)[list(range(8))], 5)


# ------------------------------------------------------------------ spirals
def poses_of_nerf(cam_to_world: np.ndarray, focus: float, count: int) -> np.ndarray:
    """The spiral of NeRF, in numpy, on matrices with axes right, up, backward."""
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


def test_spiral_equals_nerf():
    views = forward_facing()
    path = spiral_path(views, 3.5, 25)
    assert_rigid(path)
    expected = poses_of_nerf(views.to_opengl().double().numpy(), 3.5, 25)
    assert np.abs(path.to_opengl().numpy() - expected).max() < 1e-5
    middle = average_pose(views)
    target = middle.centers() + 3.5 * middle.R[:, :, 2]
    seen, _ = path.project(target)
    assert torch.allclose(seen[:, 0], middle.principal_point.expand(25, 2), atol=1e-3)
    assert torch.allclose(middle.focal_length[0], views.focal_length.mean(0))


def test_average_pose_of_one_view_is_that_view():
    view = around()[3]
    mean = average_pose(view)
    assert torch.allclose(mean.R, view.R, atol=1e-6) and torch.allclose(mean.T, view.T, atol=1e-5)


def test_average_pose_refuses_views_in_all_directions():
    with pytest.raises(InputError, match="all directions"):
        average_pose(around(8, elevation=0.0))


# ------------------------------------------------------------------ image sizes
def test_same_aspect_ratio_is_a_resize():
    view, other = around()[4], fit_to_size(around()[4], (96, 128))
    resized = view.resize((96, 128))
    assert torch.allclose(other.focal_length, resized.focal_length) and torch.allclose(other.principal_point, resized.principal_point)
    assert_same(fit_to_size(view, SIZE), view)


@pytest.mark.parametrize("size", [(48, 48), (48, 200), (31, 17), (300, 64)])
def test_other_aspect_ratios_show_the_whole_image_undistorted(size):
    view = around()[4]
    origins, directions = view.rays()
    corners = (origins + 3 * directions)[0][[0, 0, -1, -1], [0, -1, 0, -1]]
    other = fit_to_size(view, size)
    uv, _ = other.project(corners)
    assert (uv[0] > 0).all() and (uv[0] < torch.tensor([size[1], size[0]])).all()
    assert torch.allclose(other.focal_length[0, 0] / other.focal_length[0, 1], view.focal_length[0, 0] / view.focal_length[0, 1])
    extent = uv[0].amax(0) - uv[0].amin(0)
    assert ((extent - torch.tensor([63.0, 47.0]) * min(size[0] / 48, size[1] / 64)).abs() < 1e-2).all()


# ------------------------------------------------------------------ motions of one camera


def camera() -> Cameras:
    return Cameras.from_opengl(ring_pose(0.7)[None], torch.tensor([[40.0, 41.0]]), torch.tensor([[16.0, 15.0]]), (30, 32))


def assert_same_intrinsics(path: Cameras) -> None:
    rotation = path.R.double()
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand_as(rotation), rtol=0, atol=1e-5)
    assert (torch.linalg.det(rotation) > 0).all()
    base = camera()
    assert (
        path.image_size == base.image_size
        and (path.focal_length == base.focal_length).all()
        and (path.principal_point == base.principal_point).all()
    )


def test_turntable_rotates_once_around_the_z_axis():
    path, base = turntable_path(camera(), 9), camera()
    assert_same_intrinsics(path)
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


def test_turntable_rotates_the_scene_in_the_image():
    """After a quarter turn the camera sees a rotated point where the first camera sees the point."""
    path = turntable_path(camera(), 5)
    point = torch.tensor([[0.3, -0.2, 0.1]])
    quarter = torch.tensor([[0.2, 0.3, 0.1]])  # (x, y) to (-y, x)
    torch.testing.assert_close(path[1].project(quarter)[0], path[0].project(point)[0], rtol=0, atol=1e-3)


def test_linear_path_is_a_translation():
    path, base = linear_path(camera(), (1.0, 0.0, 0.0), -2.0, 1.0, 301), camera()
    assert_same_intrinsics(path)
    moved = path.centers() - base.centers()
    torch.testing.assert_close(moved[:, 0], torch.linspace(-2, 1, 301), rtol=0, atol=1e-4)
    torch.testing.assert_close(moved[:, 1:], torch.zeros(301, 2), rtol=0, atol=1e-4)
    assert (path.R == base.R).all()


def test_random_rotations_are_seeded_uniform_and_about_the_origin():
    path = random_rotation_path(camera(), 200, 3)
    assert_same_intrinsics(path)
    eyes = path.centers()
    torch.testing.assert_close(eyes.norm(dim=1), camera().centers().norm().expand(200), rtol=0, atol=1e-4)
    assert eyes.mean(0).norm() < 0.15 * eyes[0].norm(), "no side is preferred"
    assert torch.equal(random_rotation_path(camera(), 200, 3).R, path.R) and not torch.equal(
        random_rotation_path(camera(), 200, 4).R, path.R
    )


def test_too_few_frames_are_refused():
    for make in (
        lambda: turntable_path(camera(), 1),
        lambda: linear_path(camera(), (1.0, 0.0, 0.0), 0.0, 1.0, 1),
        lambda: random_rotation_path(camera(), 0, 0),
    ):
        with pytest.raises(InputError, match="frames: "):
            make()


# ------------------------------------------------------------------ paths through a video


FRAMES, STEP = 5, 0.5


def video() -> Cameras:
    """Frames half a unit apart, from left to right, that look along -z."""
    poses = torch.eye(4).repeat(FRAMES, 1, 1)
    poses[:, 0, 3] = STEP * torch.arange(FRAMES)
    return Cameras.from_opengl(poses, torch.full((FRAMES, 2), 20.0), torch.tensor([[12.0, 8.0]]).repeat(FRAMES, 1), (16, 24))


def test_spiral_along_a_video():
    path = spiral_along_path(video(), 48).to_opengl()
    offset = path[:, :3, 3] - torch.stack([torch.linspace(0, STEP * (FRAMES - 1), 48), torch.zeros(48), torch.zeros(48)], 1)
    t = torch.arange(48) * (8 * math.pi / 48)
    expected = STEP * torch.stack([t.cos(), -t.sin(), torch.zeros(48)], 1)
    torch.testing.assert_close(offset, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(path[:, :3, :3], torch.eye(3).repeat(48, 1, 1))


def test_loop_around_a_frame():
    path, reach = loop_path(video(), 2, 8).to_opengl(), STEP * (FRAMES - 1) / 5
    t = torch.arange(8) * (2 * math.pi / 8)
    expected = torch.tensor([2 * STEP, 0, 0]) - reach * torch.stack([t.sin(), t.cos() / 2, t.cos()], 1)
    torch.testing.assert_close(path[:, :3, 3], expected, atol=1e-5, rtol=0)
