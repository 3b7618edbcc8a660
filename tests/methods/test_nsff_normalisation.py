"""Coordinates of the field of a video: published numbers, round trips, and what starts behind the near plane."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from npbgpp.data import CloudFile, ColmapModel, Scene, read_points
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.methods.nsff.normalisation import VideoNormalisation, nearest_depth, video_normalisation
from npbgpp.parsers import read_scene

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
    time_steps = Cameras.cat([turned(0.0), turned(0.2, (0.3, -0.1, -1.4))])
    return VideoNormalisation(eye, torch.zeros(3, dtype=torch.float64), 1.0, 400.0, 400.0, 252.0, 189.0, SIZE, time_steps)


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
    for time_step in (0, 1):
        uv_px, depth = frame.project(xyz, time_step)
        expected, expected_depth = frame.frame_cameras[time_step].project(xyz.reshape(1, 4, 3))
        torch.testing.assert_close(uv_px.reshape(1, 4, 2), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(depth.reshape(1, 4), expected_depth)


def test_a_point_on_the_ray_of_a_pixel_projects_to_its_centre(frame):
    origins, directions = frame.frame_cameras[1].rays()
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


# ------------------------------------------------------------------ scale of a video
FRAMES, VIDEO_SIZE = 8, (32, 48)


@pytest.fixture
def root(moving_root: Path, tmp_path: Path) -> Path:
    """A copy of the moving scene that may be changed."""
    return Path(shutil.copytree(moving_root / "hop", tmp_path / "hop"))


def read(root: Path, layout: str = "monocular", **choices) -> Scene:
    return read_scene(layout, root, root, "hop", CloudFile(root / "none.ply"), choices)


def test_the_scale_is_that_of_the_nearest_depth(root):
    """Disparity is exactly linear in 1 / depth here, so that its 95th percentile is a depth of the frame."""
    scene = read(root)
    frame = video_normalisation(scene)
    near = 1 / 0.75 / frame.scale
    points = read_points(scene.carried_points).cloud.xyz.double()
    depth = torch.cat([view.camera.project(points.float())[1][0] for view in scene.frames])
    assert depth[depth > 0].min() < near < depth[depth > 0].quantile(0.2)
    assert near == pytest.approx(_nearest_by_hand(scene), rel=0.02)
    assert len(frame) == FRAMES and frame.image_size == VIDEO_SIZE
    centres = frame.frame_cameras.centers()
    assert centres.mean(0).abs().max() < 1e-6
    torch.testing.assert_close(centres[:, 0], centres[:, 0].sort().values)  # the camera goes to the right


def _nearest_by_hand(scene: Scene) -> float:
    """Depths of the frames from their disparity and two depths that the generator stretched it between: those of the points do as well."""
    model = ColmapModel.read(scene.carried_points.parent)
    points = read_points(scene.carried_points)
    depths = []
    for view, image in zip(scene.frames, model.images, strict=True):
        xyz = points.cloud.xyz[np.searchsorted(points.number, image.point)]
        z = (xyz.double() @ image.world_to_cam[:3, :3].T + image.world_to_cam[:3, 3])[:, 2].numpy()
        column, row = np.floor(image.uv_px).astype(int).T
        disparity = np.asarray(Image.open(view.motion.disparity)).astype(float)
        slope, offset = np.polyfit(1 / z, disparity[row, column], 1)
        depths.append(slope / (np.percentile(disparity, 95) - offset))
    return min(depths)


def test_disparity_that_is_not_linear_leaves_the_depths_of_points(root):
    scene = read(root)
    rng = np.random.default_rng(0)
    for k in range(FRAMES):
        Image.fromarray(rng.integers(0, 65535, VIDEO_SIZE).astype(np.uint16)).save(root / "disps" / f"{k:05d}.png")
    depths = []
    points = read_points(scene.carried_points)
    for view, image in zip(scene.frames, ColmapModel.read(root / "sparse").images, strict=True):
        xyz = points.cloud.xyz[np.searchsorted(points.number, image.point)]
        depths.append(np.percentile(view.camera.project(xyz)[1][0].numpy(), 5))
    assert nearest_depth(scene.frames, scene.carried_points) == pytest.approx(min(depths), rel=1e-5)


def test_depth_in_place_of_disparity_is_noticed(root):
    for k in range(FRAMES):
        path = root / "disps" / f"{k:05d}.png"
        Image.fromarray(65535 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(InputError, match="larger numbers where the scene is nearer"):
        video_normalisation(read(root))


def test_still_scenes_have_no_video_frame(root):
    with pytest.raises(InputError, match="expected the frames of a video, got a still scene of layout colmap"):
        video_normalisation(read(root, "colmap"))


def test_the_scale_of_stated_bounds(root):
    scene = read(root)
    bounded = replace(scene, carried_points=None, views=tuple(replace(v, bounds=(1.5 + 0.1 * v.time_step, 9.0)) for v in scene.frames))
    assert nearest_depth(bounded.frames, None) == pytest.approx(1.5)
    assert video_normalisation(bounded).scale == pytest.approx(1 / 0.75 / 1.5)
    with pytest.raises(InputError, match="nearest depth"):
        video_normalisation(replace(bounded, views=tuple(replace(view, bounds=(-1.0, 1.0)) for view in bounded.views)))


def test_the_scale_of_a_real_video(shared):
    """poses_bounds.npy of the scene, by the rule of LLFF for all frames, states a nearest depth of 10.4."""
    root = shared / "data" / "monocular" / "lady-running"
    scene = read_scene("auto", root, root, "lady", CloudFile(root / "none.ply"), {"start_end": (2, 14)})
    assert 10 < 1 / 0.75 / video_normalisation(scene).scale < 25
