"""Crops, vertical alignment and resampling: recordings of the authors' code, and properties of the exact versions."""

import numpy as np
import pytest
import torch

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.image_warp import (
    Padding,
    _pad_as_authors,
    align_vertically,
    boxes_of_points,
    crop_to_points,
    radians,
    resample,
    resample_as_authors,
    rotate_about_centre,
)
from npbgpp.geometry.pixels import PixelConvention, PixelGrid, ndc_bounds

SIZE = (60, 80)


def two_cameras() -> Cameras:
    """The first looks along z from 4 units away, the second is shifted and has other intrinsics."""
    T = torch.tensor([[0.0, 0.0, 4.0], [0.3, -0.2, 4.5]])
    return Cameras(torch.eye(3).repeat(2, 1, 1), T, torch.tensor([[80.0, 80], [70, 75]]), torch.tensor([[40.0, 30], [43, 28]]), SIZE)


def recorded_views(recorded) -> tuple[Cameras, torch.Tensor]:
    """Cameras and visible points: in the recorded mask, in the image, and beyond the authors' near plane (depth 1)."""
    size = tuple(recorded["image_size"])
    cameras = Cameras.from_authors_ndc(recorded["R_row"], recorded["T"], recorded["fcl_ndc"], recorded["prp_ndc"], size)
    grid = PixelGrid(PixelConvention.AUTHORS, size)
    x, y, depth = grid.normalise(cameras, recorded["region_points"]).unbind(-1)
    return cameras, recorded["region_mask"] & grid.inside(x, y) & (depth > 1)


# ------------------------------------------------------------------ crops: recordings of the authors' code
def test_recorded_boxes(parity):
    recorded = parity("e_view_processing.pt")
    cameras, seen = recorded_views(recorded)
    for name, margin in (("center_and_size", 30), ("center_and_size_margin4", 4)):
        boxes = boxes_of_points(cameras, recorded["region_points"], seen, PixelConvention.AUTHORS, margin)
        assert torch.allclose(boxes.centre, recorded[name]["center_ndc"], atol=1e-5)
        assert torch.equal(boxes.extent_px, torch.stack([recorded[name]["w_pix"], recorded[name]["h_pix"]], 1))


def test_recorded_crops(parity):
    recorded = parity("e_view_processing.pt")
    cameras, seen = recorded_views(recorded)
    assert len(recorded["regions"]) == 5
    for case in recorded["regions"]:
        size = case["args"]["max_size"]
        found = crop_to_points(
            recorded["images"],
            cameras,
            recorded["region_points"],
            seen,
            tuple(size) if isinstance(size, list) else size,
            PixelConvention.AUTHORS,
            shrink=not case["args"].get("avoid_scaling_down", True),
        )
        assert found.cameras.image_size == tuple(case["crops"].shape[-2:])
        focal, principal = found.cameras.to_authors_ndc()
        assert (focal - case["fcl_ndc"]).abs().max() <= 1e-5 * case["fcl_ndc"].abs().max()
        assert torch.allclose(principal, case["prp_ndc"], atol=1e-5)
        assert (found.images - case["crops"]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["pad_to_size", "complete_padding"])
def test_recorded_padding(parity, name):
    """We pad to squares; recorded numbers of other aspect ratios are those of the square times the bounds."""
    recorded = parity("e_view_processing.pt")
    cameras, _ = recorded_views(recorded)
    height, width = recorded["image_size"]
    left, right, top, bottom = recorded[name]["pad"]
    bounds = torch.tensor(ndc_bounds((height + top + bottom, width + left + right)))
    focal, principal = _pad_as_authors(cameras, Padding(left, right, top, bottom), width + left + right).to_authors_ndc()
    assert torch.allclose(focal * bounds, recorded[name]["fcl_ndc"], rtol=1e-5)
    assert torch.allclose(principal * bounds, recorded[name]["prp_ndc"], atol=1e-5)


def test_recorded_intrinsics(parity):
    """Pixel centres are at integers in the recordings, at half-integers here."""
    for case in parity("e_view_processing.pt")["intrinsics"]:
        height, width = case["image_size"]
        assert ndc_bounds((height, width)) == pytest.approx(tuple(case["bounds_xy"]))
        centre = [(width - 1) / 2 if case["cx"] is None else case["cx"], (height - 1) / 2 if case["cy"] is None else case["cy"]]
        pose = torch.eye(3)[None], torch.zeros(1, 3)
        focal, principal = torch.tensor([[case["fx"], case["fy"]]]), torch.tensor([centre]) + 0.5
        ndc = torch.cat(Cameras(*pose, focal, principal, (height, width)).to_authors_ndc(), 1)[0]
        assert torch.allclose(ndc, torch.tensor(case["ndc"]), rtol=1e-5, atol=1e-6)
        back = Cameras.from_authors_ndc(*pose, ndc[None, :2], ndc[None, 2:], (height, width))
        screen = case["K_screen"][0]
        assert torch.allclose(back.focal_length[0], screen[[0, 1], [0, 1]], rtol=1e-5)
        assert torch.allclose(back.principal_point[0], screen[:2, 2] + 0.5, rtol=1e-5)


# ------------------------------------------------------------------ crops: properties
@pytest.mark.parametrize("count", [0, 1, 40])
def test_crop_as_large_as_the_image_is_the_image(count):
    images, points = torch.rand(2, 3, *SIZE), torch.randn(count, 3) * 0.2
    found = crop_to_points(images, two_cameras(), points, torch.ones(2, count, dtype=torch.bool), SIZE, PixelConvention.EXACT)
    assert torch.allclose(found.images, images, atol=1e-4)
    assert torch.allclose(found.cameras.principal_point, two_cameras().principal_point)
    wide = crop_to_points(images, two_cameras(), points, torch.ones(2, count, dtype=torch.bool), (70, 84), PixelConvention.EXACT)
    assert torch.allclose(wide.images[:, :, 5:65, 2:82], images, atol=1e-4) and wide.images[:, :, :5].abs().max() < 1e-4


def test_exact_crops_copy_pixels():
    images, cameras = torch.rand(2, 3, *SIZE), two_cameras()
    points = torch.tensor([[-1.5, 0.9, 0.0]])  # near the right and the upper border: +x is left
    found = crop_to_points(images, cameras, points, torch.ones(2, 1, dtype=torch.bool), (20, 24), PixelConvention.EXACT, margin=4)
    for k in range(2):
        left, top = (cameras.principal_point[k] - found.cameras.principal_point[k]).tolist()
        assert left == int(left) and top == int(top) and 0 <= left <= 56 and 0 <= top <= 40
        assert torch.allclose(found.images[k], images[k, :, int(top) : int(top) + 20, int(left) : int(left) + 24], atol=1e-4)


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize(("convention", "tolerance"), [(PixelConvention.EXACT, 0.1), (PixelConvention.AUTHORS, 0.6)])
def test_crops_and_their_cameras_agree(convention, tolerance, shrink):
    """A blob drawn where a point projects is found where the camera of the crop projects it, within the half pixel of the authors' warp."""
    cameras, point = two_cameras(), torch.tensor([[0.5, -0.3, 0.2]])
    rows, columns = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(80) + 0.5, indexing="ij")
    uv = cameras.project(point)[0][:, 0]
    blobs = torch.exp(-((columns - uv[:, 0, None, None]) ** 2 + (rows - uv[:, 1, None, None]) ** 2) / 8)[:, None]
    others = torch.cat([point, torch.randn(30, 3) * 0.2])
    found = crop_to_points(blobs, cameras, others, torch.ones(2, 31, dtype=torch.bool), (40, 44), convention, shrink=shrink)
    weights = found.images[:, 0]
    x, y = (weights.sum(1) * (torch.arange(44) + 0.5)).sum(1), (weights.sum(2) * (torch.arange(40) + 0.5)).sum(1)
    centroid = torch.stack([x, y], 1) / weights.sum((1, 2))[:, None]
    assert (centroid - found.cameras.project(point)[0][:, 0]).abs().max() < tolerance
    assert (found.cameras.principal_point - cameras.principal_point).abs().max() > 1


@pytest.mark.parametrize("convention", PixelConvention)
def test_crops_as_large_as_the_boxes_contain_all_visible_points(convention):
    cameras, points = two_cameras(), torch.randn(50, 3) * 0.2
    seen = torch.rand(2, 50) < 0.5
    boxes = boxes_of_points(cameras, points, seen, convention, margin=4)
    found = crop_to_points(torch.rand(2, 3, *SIZE), cameras, points, seen, None, convention, margin=4)
    width, height = boxes.extent_px.amax(0).int().tolist()
    assert found.cameras.image_size == (height, width) == tuple(found.images.shape[-2:])
    uv = found.cameras.project(points)[0][seen]
    assert (uv >= 0).all() and (uv <= uv.new_tensor([width, height])).all()
    longer = crop_to_points(torch.rand(2, 3, *SIZE), cameras, points, seen, 70, convention, margin=4).cameras.image_size
    assert max(longer) == 70 and min(longer) / 70 == pytest.approx(min(height, width) / max(height, width), abs=1 / 70)


@pytest.mark.parametrize("convention", PixelConvention)
def test_boxes_depend_on_visible_points_only(convention):
    cameras, points = two_cameras(), torch.randn(20, 3) * 0.2
    seen = torch.zeros(2, 20, dtype=torch.bool)
    seen[0, :10] = True  # the second view sees nothing
    reference = boxes_of_points(cameras, points, seen, convention)
    points[10:] = torch.tensor([0.0, 50.0, -4.0])  # at depth 0 of the first view
    found = boxes_of_points(cameras, points, seen, convention)
    assert torch.equal(found.centre, reference.centre) and torch.equal(found.extent_px, reference.extent_px)
    assert found.extent_px[1].tolist() == [80, 60]
    first, last = PixelGrid(convention, SIZE).extent(points.device)
    assert torch.equal(found.centre[1], (first + last) / 2)


def test_crops_have_no_gradients():
    images, points = torch.rand(2, 3, *SIZE, requires_grad=True), torch.zeros(1, 3, requires_grad=True)
    found = crop_to_points(images, two_cameras(), points, torch.ones(2, 1, dtype=torch.bool), (32, 32), PixelConvention.EXACT)
    assert not found.images.requires_grad and not found.cameras.principal_point.requires_grad


# ------------------------------------------------------------------ vertical alignment


def rolled_camera(degrees: float) -> Cameras:
    angle = torch.deg2rad(torch.tensor(degrees))
    c, s = angle.cos(), angle.sin()
    R = torch.stack([torch.stack([c, s, torch.tensor(0.0)]), torch.stack([-s, c, torch.tensor(0.0)]), torch.tensor([0.0, 0.0, 1.0])])[None]
    return Cameras(R, torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[80.0, 80.0]]), torch.tensor([[32.0, 24.0]]), (48, 64))


@pytest.mark.parametrize("convention", PixelConvention)
def test_aligned_view_of_a_rolled_camera_is_upright(convention):
    points = torch.randn(50, 3) * 0.3
    plain, rolled = (align_vertically(rolled_camera(d), convention) for d in (0.0, 37.0))
    assert torch.allclose(rolled.cameras.project(points)[0], plain.cameras.project(points)[0], atol=1e-3)
    up = rolled.cameras.project(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))[0][0]
    assert abs(up[1, 0] - up[0, 0]) < 1e-3 and up[1, 1] < up[0, 1]


def test_aligned_images_and_cameras_agree():
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


def test_rotation_by_90_degrees_and_identity_warp_are_exact():
    image = torch.rand(1, 3, 9, 9)
    assert torch.allclose(rotate_about_centre(image, torch.tensor([90.0])), torch.rot90(image, 1, (2, 3)), atol=1e-5)
    camera = rolled_camera(0.0)
    picture = torch.rand(1, 3, 48, 64)
    assert torch.allclose(resample(picture, camera, camera), picture, atol=1e-5)
    cut = camera.crop(8, 4, (20, 30))
    assert torch.allclose(resample(picture, camera, cut), picture[:, :, 8:28, 4:34], atol=1e-5)


def test_radians_are_rounded_like_kornia():
    """kornia multiplies before it divides, in float32; torch.deg2rad differs in the last bit at some of these angles."""
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
        cameras = Cameras.from_authors_ndc(source["R_row"], source["T"], case["fcl_in"], case["prp_in"], (height, width))
        found = align_vertically(cameras, PixelConvention.AUTHORS, tuple(case["args"].get("v", (0.0, 1.0, 0.0))))
        assert [found.padding.left, found.padding.right, found.padding.top, found.padding.bottom] == case["pad"]
        focal, principal = found.cameras.to_authors_ndc()
        assert torch.allclose(found.degrees, case["degrees"], atol=1e-3)
        for ours, theirs in ((found.cameras.R, case["R_row"]), (found.cameras.T, case["T"]), (focal, case["fcl_ndc"])):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        assert torch.allclose(principal, case["prp_ndc"], atol=1e-5)
        if case["images"] is not None and "warp_padding_mode" not in case["args"]:
            assert (found.apply(source["images"]) - case["images"]).abs().max() < 1e-4


# ------------------------------------------------------------------ resampling


def plain_camera(size: tuple[int, int], batch: int = 1) -> Cameras:
    height, width = size
    centre = torch.tensor([[width / 2, height / 2]]).expand(batch, 2)
    return Cameras(torch.eye(3).repeat(batch, 1, 1), torch.zeros(batch, 3), torch.full((batch, 2), 50.0), centre, size)


def test_recorded_warps(parity):
    recorded = parity("e_view_processing.pt")
    pose = recorded["R_row"], recorded["T"]
    source = Cameras.from_authors_ndc(*pose, recorded["fcl_ndc"], recorded["prp_ndc"], tuple(recorded["image_size"]))
    assert len(recorded["warp"]) == 3
    for case in recorded["warp"]:
        target = Cameras.from_authors_ndc(*pose, case["dst_fcl"], case["dst_prp"], tuple(case["dst_size"]))
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


def test_authors_warp_is_within_half_a_pixel_of_the_exact_one():
    """They are at most half a pixel apart, so a ramp differs by at most half its step."""
    source, target = plain_camera((60, 80)), plain_camera((60, 80)).zoom(2.0)
    ramp = torch.arange(80.0).expand(1, 1, 60, 80)
    apart = (resample_as_authors(ramp, source, target) - resample(ramp, source, target)).abs().max()
    assert 0.1 < apart <= 0.5


def test_warps_ignore_autocast():
    images, camera = torch.rand(2, 3, 60, 80), plain_camera((60, 80), 2)
    degrees = torch.tensor([33.0, -7.0])
    plain = resample_as_authors(images, camera, camera.zoom(1.3)), rotate_about_centre(images, degrees)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = resample_as_authors(images, camera, camera.zoom(1.3)), rotate_about_centre(images, degrees)
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed, strict=True))
