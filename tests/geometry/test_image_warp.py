"""Crops of input views around points: the authors' numbers, and what exact crops guarantee."""

import pytest
import torch

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.image_warp import Padding, _pad_as_authors, boxes_of_points, crop_to_points
from npbgpp.geometry.pixels import PixelConvention, PixelGrid, ndc_bounds

SIZE = (60, 80)


def two_cameras() -> Cameras:
    """The first looks along z from 4 units away, the second is shifted and has other intrinsics."""
    T = torch.tensor([[0.0, 0.0, 4.0], [0.3, -0.2, 4.5]])
    return Cameras(torch.eye(3).repeat(2, 1, 1), T, torch.tensor([[80.0, 80], [70, 75]]), torch.tensor([[40.0, 30], [43, 28]]), SIZE)


def recorded_views(recorded) -> tuple[Cameras, torch.Tensor]:
    """Cameras, and which points count: those that the mask names, nearer points than the authors' limit and points outside the image apart."""
    size = tuple(recorded["image_size"])
    cameras = Cameras.from_size_minus_one_ndc(recorded["R_row"], recorded["T"], recorded["fcl_ndc"], recorded["prp_ndc"], size)
    grid = PixelGrid(PixelConvention.SIZE_MINUS_ONE, size)
    x, y, depth = grid.normalise(cameras, recorded["region_points"]).unbind(-1)
    return cameras, recorded["region_mask"] & grid.inside(x, y) & (depth > 1)


# ------------------------------------------------------------------ the recordings
def test_recorded_boxes(parity):
    recorded = parity("e_view_processing.pt")
    cameras, seen = recorded_views(recorded)
    for name, margin in (("center_and_size", 30), ("center_and_size_margin4", 4)):
        boxes = boxes_of_points(cameras, recorded["region_points"], seen, PixelConvention.SIZE_MINUS_ONE, margin)
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
            PixelConvention.SIZE_MINUS_ONE,
            shrink=not case["args"].get("avoid_scaling_down", True),
        )
        assert found.cameras.image_size == tuple(case["crops"].shape[-2:])
        focal, principal = found.cameras.to_size_minus_one_ndc()
        assert (focal - case["fcl_ndc"]).abs().max() <= 1e-5 * case["fcl_ndc"].abs().max()
        assert torch.allclose(principal, case["prp_ndc"], atol=1e-5)
        assert (found.images - case["crops"]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["pad_to_size", "complete_padding"])
def test_recorded_padding(parity, name):
    """Our images are padded to squares; at another aspect the recorded numbers are those of the square times the bounds."""
    recorded = parity("e_view_processing.pt")
    cameras, _ = recorded_views(recorded)
    height, width = recorded["image_size"]
    left, right, top, bottom = recorded[name]["pad"]
    bounds = torch.tensor(ndc_bounds((height + top + bottom, width + left + right)))
    focal, principal = _pad_as_authors(cameras, Padding(left, right, top, bottom), width + left + right).to_size_minus_one_ndc()
    assert torch.allclose(focal * bounds, recorded[name]["fcl_ndc"], rtol=1e-5)
    assert torch.allclose(principal * bounds, recorded[name]["prp_ndc"], atol=1e-5)


def test_recorded_intrinsics(parity):
    """Their pixels have centres at whole numbers, ours at halves."""
    for case in parity("e_view_processing.pt")["intrinsics"]:
        height, width = case["image_size"]
        assert ndc_bounds((height, width)) == pytest.approx(tuple(case["bounds_xy"]))
        centre = [(width - 1) / 2 if case["cx"] is None else case["cx"], (height - 1) / 2 if case["cy"] is None else case["cy"]]
        pose = torch.eye(3)[None], torch.zeros(1, 3)
        focal, principal = torch.tensor([[case["fx"], case["fy"]]]), torch.tensor([centre]) + 0.5
        ndc = torch.cat(Cameras(*pose, focal, principal, (height, width)).to_size_minus_one_ndc(), 1)[0]
        assert torch.allclose(ndc, torch.tensor(case["ndc"]), rtol=1e-5, atol=1e-6)
        back = Cameras.from_size_minus_one_ndc(*pose, ndc[None, :2], ndc[None, 2:], (height, width))
        screen = case["K_screen"][0]
        assert torch.allclose(back.focal_length[0], screen[[0, 1], [0, 1]], rtol=1e-5)
        assert torch.allclose(back.principal_point[0], screen[:2, 2] + 0.5, rtol=1e-5)


# ------------------------------------------------------------------ properties
@pytest.mark.parametrize("count", [0, 1, 40])
def test_enough_room_gives_back_the_image(count):
    images, points = torch.rand(2, 3, *SIZE), torch.randn(count, 3) * 0.2
    found = crop_to_points(images, two_cameras(), points, torch.ones(2, count, dtype=torch.bool), SIZE, PixelConvention.EXACT)
    assert torch.allclose(found.images, images, atol=1e-4)
    assert torch.allclose(found.cameras.principal_point, two_cameras().principal_point)
    wide = crop_to_points(images, two_cameras(), points, torch.ones(2, count, dtype=torch.bool), (70, 84), PixelConvention.EXACT)
    assert torch.allclose(wide.images[:, :, 5:65, 2:82], images, atol=1e-4) and wide.images[:, :, :5].abs().max() < 1e-4


def test_exact_crops_are_copies_within_the_view():
    images, cameras = torch.rand(2, 3, *SIZE), two_cameras()
    points = torch.tensor([[-1.5, 0.9, 0.0]])  # near the right and the upper border: +x is left
    found = crop_to_points(images, cameras, points, torch.ones(2, 1, dtype=torch.bool), (20, 24), PixelConvention.EXACT, margin=4)
    for k in range(2):
        left, top = (cameras.principal_point[k] - found.cameras.principal_point[k]).tolist()
        assert left == int(left) and top == int(top) and 0 <= left <= 56 and 0 <= top <= 40
        assert torch.allclose(found.images[k], images[k, :, int(top) : int(top) + 20, int(left) : int(left) + 24], atol=1e-4)


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize(("rule", "tolerance"), [(PixelConvention.EXACT, 0.1), (PixelConvention.SIZE_MINUS_ONE, 0.6)])
def test_points_keep_their_content(rule, tolerance, shrink):
    """A blob drawn where a point projects is found where the camera of the crop projects it, within the half pixel of the authors' warp."""
    cameras, point = two_cameras(), torch.tensor([[0.5, -0.3, 0.2]])
    rows, columns = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(80) + 0.5, indexing="ij")
    uv = cameras.project(point)[0][:, 0]
    blobs = torch.exp(-((columns - uv[:, 0, None, None]) ** 2 + (rows - uv[:, 1, None, None]) ** 2) / 8)[:, None]
    others = torch.cat([point, torch.randn(30, 3) * 0.2])
    found = crop_to_points(blobs, cameras, others, torch.ones(2, 31, dtype=torch.bool), (40, 44), rule, shrink=shrink)
    weights = found.images[:, 0]
    x, y = (weights.sum(1) * (torch.arange(44) + 0.5)).sum(1), (weights.sum(2) * (torch.arange(40) + 0.5)).sum(1)
    centroid = torch.stack([x, y], 1) / weights.sum((1, 2))[:, None]
    assert (centroid - found.cameras.project(point)[0][:, 0]).abs().max() < tolerance
    assert (found.cameras.principal_point - cameras.principal_point).abs().max() > 1


@pytest.mark.parametrize("rule", PixelConvention)
def test_crops_as_large_as_the_boxes_hold_every_seen_point(rule):
    cameras, points = two_cameras(), torch.randn(50, 3) * 0.2
    seen = torch.rand(2, 50) < 0.5
    boxes = boxes_of_points(cameras, points, seen, rule, margin=4)
    found = crop_to_points(torch.rand(2, 3, *SIZE), cameras, points, seen, None, rule, margin=4)
    width, height = boxes.extent_px.amax(0).int().tolist()
    assert found.cameras.image_size == (height, width) == tuple(found.images.shape[-2:])
    uv = found.cameras.project(points)[0][seen]
    assert (uv >= 0).all() and (uv <= uv.new_tensor([width, height])).all()
    longer = crop_to_points(torch.rand(2, 3, *SIZE), cameras, points, seen, 70, rule, margin=4).cameras.image_size
    assert max(longer) == 70 and min(longer) / 70 == pytest.approx(min(height, width) / max(height, width), abs=1 / 70)


@pytest.mark.parametrize("rule", PixelConvention)
def test_only_seen_points_count(rule):
    cameras, points = two_cameras(), torch.randn(20, 3) * 0.2
    seen = torch.zeros(2, 20, dtype=torch.bool)
    seen[0, :10] = True  # the second view sees nothing
    reference = boxes_of_points(cameras, points, seen, rule)
    points[10:] = torch.tensor([0.0, 50.0, -4.0])  # at depth 0 of the first view
    found = boxes_of_points(cameras, points, seen, rule)
    assert torch.equal(found.centre, reference.centre) and torch.equal(found.extent_px, reference.extent_px)
    assert found.extent_px[1].tolist() == [80, 60]
    first, last = PixelGrid(rule, SIZE).extent(points.device)
    assert torch.equal(found.centre[1], (first + last) / 2)


def test_no_gradients():
    images, points = torch.rand(2, 3, *SIZE, requires_grad=True), torch.zeros(1, 3, requires_grad=True)
    found = crop_to_points(images, two_cameras(), points, torch.ones(2, 1, dtype=torch.bool), (32, 32), PixelConvention.EXACT)
    assert not found.images.requires_grad and not found.cameras.principal_point.requires_grad
