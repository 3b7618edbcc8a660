"""Vertical alignment: properties, and the authors' numbers."""

import numpy as np
import pytest
import torch

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.image_warp import align_vertically, radians, resample, rotate_about_centre
from npbgpp.geometry.pixels import PixelConvention


def rolled_camera(degrees: float) -> Cameras:
    angle = torch.deg2rad(torch.tensor(degrees))
    c, s = angle.cos(), angle.sin()
    R = torch.stack([torch.stack([c, s, torch.tensor(0.0)]), torch.stack([-s, c, torch.tensor(0.0)]), torch.tensor([0.0, 0.0, 1.0])])[None]
    return Cameras(R, torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[80.0, 80.0]]), torch.tensor([[32.0, 24.0]]), (48, 64))


@pytest.mark.parametrize("rule", PixelConvention)
def test_aligned_view_of_a_rolled_camera_is_upright(rule):
    points = torch.randn(50, 3) * 0.3
    plain, rolled = (align_vertically(rolled_camera(d), rule) for d in (0.0, 37.0))
    assert torch.allclose(rolled.cameras.project(points)[0], plain.cameras.project(points)[0], atol=1e-3)
    up = rolled.cameras.project(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))[0][0]
    assert abs(up[1, 0] - up[0, 0]) < 1e-3 and up[1, 1] < up[0, 1]


def test_images_turn_with_their_camera():
    """A blob drawn where a point projects is found where the aligned camera projects it."""
    camera = rolled_camera(25.0)
    aligned = align_vertically(camera, PixelConvention.EXACT)
    point = torch.tensor([[0.3, 0.2, 0.0]])
    u, v = camera.project(point)[0][0, 0]
    rows, columns = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    blob = torch.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 32)[None, None]
    turned = aligned.apply(blob)[0, 0]
    side = turned.shape[-1]
    axis = torch.arange(side) + 0.5
    found = torch.stack([(turned.sum(0) * axis).sum(), (turned.sum(1) * axis).sum()]) / turned.sum()
    assert torch.allclose(found, aligned.cameras.project(point)[0][0, 0], atol=0.1)
    assert (aligned.undo(aligned.apply(blob)) - blob).abs().max() < 0.05
    assert aligned.undo(aligned.apply(blob)).shape == blob.shape


def test_quarter_turns_are_exact_and_identity_warp_is_the_identity():
    image = torch.rand(1, 3, 9, 9)
    assert torch.allclose(rotate_about_centre(image, torch.tensor([90.0])), torch.rot90(image, 1, (2, 3)), atol=1e-5)
    camera = rolled_camera(0.0)
    picture = torch.rand(1, 3, 48, 64)
    assert torch.allclose(resample(picture, camera, camera), picture, atol=1e-5)
    cut = camera.crop(8, 4, (20, 30))
    assert torch.allclose(resample(picture, camera, cut), picture[:, :, 8:28, 4:34], atol=1e-5)


def test_angles_are_rounded_as_kornia_rounds_them():
    """The product first, in float32: the library's conversion differs in the last bit at some of these angles."""
    degrees = torch.linspace(-180, 180, 721)
    expected = [np.float32(a) * np.float32(np.pi) / np.float32(180.0) for a in degrees.tolist()]
    assert torch.equal(radians(degrees), torch.tensor(expected))
    assert not torch.equal(torch.deg2rad(degrees), radians(degrees))


def test_recorded_alignment(parity):
    source = parity("e_view_processing.pt")
    cases = [case for case in source["align"] if case["args"]["pad"]]  # we always pad
    assert len(cases) >= 4
    for case in cases:
        height, width = source["image_size"]
        cameras = Cameras.from_size_minus_one_ndc(source["R_row"], source["T"], case["fcl_in"], case["prp_in"], (height, width))
        found = align_vertically(cameras, PixelConvention.SIZE_MINUS_ONE, tuple(case["args"].get("v", (0.0, 1.0, 0.0))))
        assert [found.padding.left, found.padding.right, found.padding.top, found.padding.bottom] == case["pad"]
        focal, principal = found.cameras.to_size_minus_one_ndc()
        assert torch.allclose(found.degrees, case["degrees"], atol=1e-3)
        for ours, theirs in ((found.cameras.R, case["R_row"]), (found.cameras.T, case["T"]), (focal, case["fcl_ndc"])):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        assert torch.allclose(principal, case["prp_ndc"], atol=1e-5)
        if case["images"] is not None and "warp_padding_mode" not in case["args"]:
            assert (found.apply(source["images"]) - case["images"]).abs().max() < 1e-4
