"""Resampling to other intrinsics: the authors' warp against their numbers, and how it differs from the exact one."""

import torch

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.image_warp import resample, resample_as_authors, rotate_about_centre


def plain_camera(size: tuple[int, int], batch: int = 1) -> Cameras:
    height, width = size
    centre = torch.tensor([[width / 2, height / 2]]).expand(batch, 2)
    return Cameras(torch.eye(3).repeat(batch, 1, 1), torch.zeros(batch, 3), torch.full((batch, 2), 50.0), centre, size)


def test_recorded_warps(parity):
    recorded = parity("e_view_processing.pt")
    pose = recorded["R_row"], recorded["T"]
    source = Cameras.from_size_minus_one_ndc(*pose, recorded["fcl_ndc"], recorded["prp_ndc"], tuple(recorded["image_size"]))
    assert len(recorded["warp"]) == 3
    for case in recorded["warp"]:
        target = Cameras.from_size_minus_one_ndc(*pose, case["dst_fcl"], case["dst_prp"], tuple(case["dst_size"]))
        found = resample_as_authors(recorded["images"], source, target)
        assert (found - case["out"]).abs().max() < 1e-4
        assert (resample(recorded["images"], source, target) - case["out"]).abs().max() > 1e-2  # the exact warp is another one


def test_recorded_identity_homography(parity):
    recorded = parity("j_third_party_semantics.pt")["homography_warper"]
    image = recorded["image"]
    camera = plain_camera(tuple(image.shape[-2:]), len(image))
    assert (resample_as_authors(image, camera, camera) - recorded["identity_out"]).abs().max() < 1e-4


def test_authors_warp_halves_the_border_of_a_white_image():
    white = resample_as_authors(torch.ones(1, 1, 7, 9), plain_camera((7, 9)), plain_camera((7, 9)))[0, 0]
    assert torch.allclose(white[1:-1, 1:-1], torch.ones(5, 7))
    assert torch.allclose(white[0, 1:-1], torch.full((7,), 0.5), atol=1e-6) and torch.allclose(
        white[1:-1, -1], torch.full((5,), 0.5), atol=1e-6
    )
    assert abs(white[-1, 0] - 0.25) < 1e-6


def test_authors_warp_comes_near_the_exact_one_where_content_is_smooth():
    """They are at most half a pixel apart, so a ramp differs by at most half its step."""
    source, target = plain_camera((60, 80)), plain_camera((60, 80)).zoom(2.0)
    ramp = torch.arange(80.0).expand(1, 1, 60, 80)
    apart = (resample_as_authors(ramp, source, target) - resample(ramp, source, target)).abs().max()
    assert 0.1 < apart <= 0.5


def test_mixed_precision_moves_no_pixel():
    images, camera = torch.rand(2, 3, 60, 80), plain_camera((60, 80), 2)
    degrees = torch.tensor([33.0, -7.0])
    plain = resample_as_authors(images, camera, camera.zoom(1.3)), rotate_about_centre(images, degrees)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = resample_as_authors(images, camera, camera.zoom(1.3)), rotate_about_centre(images, degrees)
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed, strict=True))
