"""The loss of NSFF: which terms a batch has, what projects where, weights through training, and pixels that are drawn more often."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from npbgpp.methods.nsff.data import HardSampling, PixelWeights, VideoBatch
from npbgpp.methods.nsff.losses import LossSchedule, LossWeights, loss_terms, weighted_means
from npbgpp.methods.nsff.model import Nsff, NsffSampling, Training
from npbgpp.volume import Rays

from ..helpers.settings import system_settings
from .moving_camera import TIME_STEPS, moving_camera

RAYS = 6
ALL = {"colour", "disparity", "entropy", "cross_entropy", "photometric", "cycle", "least_motion", "spatial_smoothness"}


def schedule_of(**changes: object) -> LossSchedule:
    return replace(system_settings("nsff").loss_schedule, **changes)


def weights_of(**changes: float) -> LossWeights:
    return replace(system_settings("nsff").loss_weights, **changes)


def batch(time_step: int) -> VideoBatch:
    generator = torch.Generator().manual_seed(time_step)
    uv_px = torch.rand(RAYS, 2, generator=generator) * torch.tensor([24.0, 16.0])
    origins, along = (part[0].float() for part in moving_camera().frame_cameras[time_step].rays_through(uv_px.double()))
    directions = moving_camera().rays(origins, along)
    return VideoBatch(
        *directions,
        along,
        torch.rand(RAYS, 3, generator=generator),
        torch.full((RAYS,), time_step),
        torch.rand(RAYS, generator=generator),
        torch.ones(RAYS, dtype=torch.bool),
        uv_px + 1,
        uv_px - 1,
        torch.arange(RAYS),
    )


def seen(rays: VideoBatch, time_step: int, importance: int = 0) -> Training:
    torch.manual_seed(0)
    sizes = {"depth": 2, "width": 8, "skips": (), "xyz_frequencies": 2, "dir_frequencies": 1, "time_channels": 2}
    field = Nsff(NsffSampling(samples=8, importance=importance, perturb=0.0, noise_std=0.0), time_steps=TIME_STEPS, **sizes)
    ends = torch.zeros(RAYS), torch.ones(RAYS)
    return field.render_training(Rays(rays.origins, rays.directions, *ends), rays.view_directions, time_step)


@pytest.mark.parametrize(
    ("time_step", "further"),
    [
        (0, {"flow_forward"}),
        (1, {"flow_forward", "flow_backward", "temporal_smoothness"}),
        (3, {"flow_backward"}),
    ],
)
def test_terms_are_those_that_the_neighbours_allow(time_step, further):
    rays = batch(time_step)
    terms = loss_terms(seen(rays, time_step), rays, moving_camera(), time_step, 1)
    assert set(terms) == ALL | further
    assert all(torch.isfinite(term).all() for term in terms.values())


def test_terms_of_maps_that_are_not_there_are_left_out():
    rays, unknown = batch(1), torch.full((RAYS, 2), torch.nan)
    lacking = replace(rays, uv_forward_px=unknown, uv_backward_px=unknown, disparity=torch.full((RAYS,), torch.nan))
    assert set(loss_terms(seen(rays, 1), lacking, moving_camera(), 1, 1)) == (ALL - {"disparity"}) | {"temporal_smoothness"}


def test_a_coarse_field_has_terms_of_its_own():
    rays = batch(0)
    terms = loss_terms(seen(rays, 0, importance=3), rays, moving_camera(), 0, 1)
    assert set(terms) == ALL | {"flow_forward", "coarse_colour", "coarse_disparity"}


def test_flow_is_where_the_next_camera_sees_the_moved_point():
    """By hand: the point of each ray in Euclidean coordinates, projected with the next pose."""
    rays = batch(1)
    training = seen(rays, 1)
    found = loss_terms(training, rays, moving_camera(), 1, 1)["flow_forward"]
    for k, (x, y, z) in enumerate(training.forward.point.detach().double().numpy()):
        depth = -2 / (z - 1 - 1e-6)
        X, Y = x * depth * 12 / 20, y * depth * 8 / 24
        uv_px = np.array([12 + 20 * (X - 0.2) / depth, 8 - 24 * Y / depth])
        expected = np.abs(uv_px - rays.uv_forward_px[k].double().numpy())
        np.testing.assert_allclose(found[k].detach().numpy(), expected, rtol=1e-3, atol=1e-3)


def test_motion_terms_leave_out_what_is_infinitely_far():
    rays = batch(1)
    training = seen(rays, 1)
    terms = loss_terms(training, rays, moving_camera(), 1, 1)
    assert terms["least_motion"].shape == (RAYS, 7, 3) and terms["spatial_smoothness"].shape == (RAYS, 6, 3)
    assert terms["cycle"].shape == (RAYS, 8, 3)


def test_every_term_reaches_the_field():
    rays = batch(1)
    for name, term in loss_terms(seen(rays, 1), rays, moving_camera(), 1, 1).items():
        assert term.requires_grad and term.mean().item() != 0, name


@pytest.mark.parametrize(
    ("schedule", "epoch", "step", "geometry", "cross_entropy"),
    [
        (schedule_of(), 0, 900, 1.0, 0.0),
        (schedule_of(), 9, 0, 1.0, 0.9),
        (schedule_of(), 25, 0, 0.01, 1.0),
        (schedule_of(unit="step", geometry_every=1000, cross_entropy_over=500), 99, 250, 1.0, 0.5),
        (schedule_of(unit="step", geometry_every=1000, cross_entropy_over=500), 0, 1000, 0.1, 1.0),
        (schedule_of(geometry_every=0, cross_entropy_over=0), 50, 0, 1.0, 1.0),
    ],
)
def test_weights_change_with_epochs_or_steps(schedule, epoch, step, geometry, cross_entropy):
    terms = {
        name: torch.tensor([1.0, 3.0])
        for name in ("colour", "disparity", "coarse_disparity", "flow_forward", "flow_backward", "cross_entropy")
    }
    found = weighted_means(terms, weights_of(), schedule, epoch, step, 1.0)
    expected = {"colour": 2.0, "disparity": 0.08 * geometry, "coarse_disparity": 0.08 * geometry}
    expected |= {"flow_forward": 0.04 * geometry, "flow_backward": 0.04 * geometry, "cross_entropy": 4e-4 * cross_entropy}
    assert {name: value.item() for name, value in found.items()} == pytest.approx({k: v for k, v in expected.items() if v})
    largest = weighted_means(terms, weights_of(), schedule, epoch, step, 0.5)
    assert largest["colour"] == 3.0


def test_a_weight_of_zero_switches_a_term_off():
    terms = {"colour": torch.ones(2), "cycle": torch.full((2,), torch.nan)}
    assert set(weighted_means(terms, weights_of(cycle=0.0), schedule_of(), 0, 0, 1.0)) == {"colour"}


# ---------------------------------------------------------------------------------------------------------------- hard pixels
def test_pixels_unlike_the_photo_are_drawn_more_often():
    weights = PixelWeights([0, 2], (16, 20))
    hard, generator = HardSampling(weights), torch.Generator().manual_seed(0)
    photo = torch.rand(16, 20, 3, generator=generator)
    rendered = photo.clone()
    rendered[2:8, 3:9] = 1 - rendered[2:8, 3:9]
    pixel = torch.randperm(320, generator=generator)
    hard.record(2, pixel, rendered.view(-1, 3)[pixel], photo.view(-1, 3)[pixel])
    hard.reweigh()
    found = weights.of(2)
    assert found[3:7, 4:8].min() > 10 * found[:, 16:].max() and (weights.of(0) == 1).all()
    drawn = np.bincount(weights.draw(2, 4000, 0, np.random.default_rng(0)), minlength=320).reshape(16, 20)
    assert np.corrcoef(drawn.ravel(), found.numpy().ravel())[0, 1] > 0.8


def test_pixels_that_were_never_drawn_keep_their_weight():
    weights = PixelWeights([0], (16, 16))
    hard = HardSampling(weights)
    pixel = torch.arange(64)
    hard.record(0, pixel, torch.full((64, 3), 0.5), torch.full((64, 3), 0.5))
    hard.reweigh()
    assert (weights.of(0).flatten()[64:] == 1).all() and weights.of(0).flatten()[:64].max() < 0.1
