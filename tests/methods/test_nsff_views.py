"""Whole pictures: flow of the video and motion that a camera sees, depth in scene units, what the camera of a time step saw, pictures of numbers."""

from dataclasses import replace

import pytest
import torch

from npbgpp.geometry.cameras import Cameras
from npbgpp.methods.nsff.model import Nsff, NsffSampling, RayOutputs
from npbgpp.methods.nsff.system import FieldRenderer, TimedCamera, flow_image, grey_image

from .moving_camera import TIME_STEPS, moving_camera

SIZES = {"depth": 2, "width": 8, "skips": (), "xyz_frequencies": 2, "dir_frequencies": 1, "time_channels": 2}
DEPTH = 5.0


def renderer(scale: float = 1.0) -> FieldRenderer:
    torch.manual_seed(0)
    field = Nsff(NsffSampling(samples=6), time_steps=TIME_STEPS, **SIZES)
    return FieldRenderer(field, replace(moving_camera(), scale=scale), True, True, 50)


def camera(k: int) -> Cameras:
    time_step = moving_camera().frame_cameras[k]
    return replace(
        time_step,
        R=time_step.R.float(),
        T=time_step.T.float(),
        focal_length=time_step.focal_length.float(),
        principal_point=time_step.principal_point.float(),
    )


def wall(eye: Cameras, step: torch.Tensor) -> RayOutputs:
    """A wall at depth DEPTH that moves by a step to the next time step."""
    wall_renderer = renderer()
    rays, _ = wall_renderer.rays(eye)
    origins, along = (part[0].flatten(0, 1) for part in eye.rays())
    xyz = origins + along * (DEPTH / -along[:, 2:])
    ndc = wall_renderer.normalisation.field_to_ndc(xyz)
    z = (ndc[:, 2] - rays.origins[:, 2]) / rays.directions[:, 2]
    rgb, one = torch.rand(len(z), 3), torch.ones(len(z))
    forward, backward = (wall_renderer.normalisation.field_to_ndc(xyz + sign * step) for sign in (1, -1))
    return RayOutputs(rgb, z, one, rgb, z, rgb, z, forward, backward)


def test_flow_of_the_video_has_the_motion_of_the_camera_in_it():
    """A wall at depth 5 that stands still: the camera goes to the right by 0.1, pixels to the left by 20 x 0.1 / 5."""
    flow = renderer().optical_flow(wall(camera(1), torch.zeros(3)), 1, True)
    torch.testing.assert_close(flow, torch.tensor([-0.4, 0.0]).expand(16, 24, 2), atol=2e-3, rtol=0)
    back = renderer().optical_flow(wall(camera(1), torch.zeros(3)), 1, False)
    torch.testing.assert_close(back, torch.tensor([0.4, 0.0]).expand(16, 24, 2), atol=2e-3, rtol=0)


def test_motion_that_a_camera_sees_has_not():
    """The wall goes up by 0.5: pixels go up by 24 x 0.5 / 5."""
    motion = renderer().motion(wall(camera(2), torch.tensor([0.0, 0.5, 0.0])), camera(2))
    torch.testing.assert_close(motion, torch.tensor([0.0, -2.4]).expand(16, 24, 2), atol=3e-3, rtol=0)


@pytest.mark.parametrize("part", ["full", "static", "dynamic"])
def test_depth_is_in_scene_units(part):
    found = renderer(scale=1.0).depth(wall(camera(1), torch.zeros(3)), camera(1), part)
    torch.testing.assert_close(found, torch.full_like(found, DEPTH), atol=1e-3, rtol=0)


def test_what_hardly_moves_has_no_dynamic_depth():
    outputs = wall(camera(1), torch.zeros(3))
    outputs = replace(outputs, dynamic_alpha=torch.where(torch.arange(len(outputs.depth)) < 5, 1.0, 0.2))
    found = renderer().depth(outputs, camera(1), "dynamic")
    assert (found[:5] > 4).all() and not found[5:].any()


def test_the_camera_of_a_moment_saw_what_is_before_it():
    seen = renderer().visibility_test(1)
    frame = renderer().normalisation
    inside, aside = torch.tensor([[0.1, 0.0, -4.0]]), torch.tensor([[4.0, 0.0, -4.0]])
    assert seen(frame.field_to_ndc(inside)).item() and not seen(frame.field_to_ndc(aside)).item()
    assert replace(renderer(), empty_where_unseen=False).visibility_test(1) is None


def test_a_camera_that_looks_several_times_asks_its_moments_once():
    eye, shares = camera(1), [0.25, 0.5, 0.75]
    asked = []
    field = renderer().field
    plane = field.plane
    field.plane = lambda *a, **k: asked.append(1) or plane(*a, **k)
    with torch.no_grad():
        path = [TimedCamera(eye, 1), *(TimedCamera(eye, 1, share) for share in shares), TimedCamera(eye, 2)]
        found = list(replace(renderer(), field=field).along(path))
    assert len(found) == 5 and len(asked) == 2 * 6
    with torch.no_grad():
        (alone,) = renderer().between(eye, 1, [0.5])
    assert torch.equal(found[2].rgb, alone.rgb)


def test_pictures_of_flow_and_of_numbers():
    flow = torch.zeros(2, 3, 2)
    assert torch.equal(flow_image(flow), torch.ones(3, 2, 3))
    flow[0, 0], flow[1, 2], flow[1, 1] = torch.tensor([3.0, 0.0]), torch.tensor([-3.0, 0.0]), torch.nan
    picture = flow_image(flow)
    assert torch.equal(picture[:, 1, 1], torch.ones(3)), "unknown flow is drawn like none"
    assert (picture[:, 0, 0] - picture[:, 1, 2]).abs().max() > 0.3, "opposite directions have other hues"
    assert grey_image(torch.tensor([[1.0, 3.0, 9.0]]), 1.0, 5.0)[0].tolist() == [[0.0, 0.5, 1.0]]
