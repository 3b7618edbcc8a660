"""The visual hull: on the surfaces of drawn balls, in their colours, from the given views alone; what silhouettes say of balls; what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import View
from npbgpp.errors import InputError
from npbgpp.parsers.nerf_synthetic import parse_nerf_synthetic
from npbgpp.prepare.visual_hull import EMPTY, INSIDE, UNDECIDED, Silhouette, clearance, judge, visual_hull

from ..helpers.scenes import POINTS, RADIUS
from .balls import farthest_uncovered, to_surfaces, write_views, wrong_colours

PIXEL = 3 / (1.5 * 96)  # of the views, at the depth of the balls


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> tuple[View, ...]:
    return write_views(tmp_path_factory.mktemp("balls"))


def repaint(view: View, folder: Path, mask: np.ndarray) -> View:
    path = folder / f"{view.name}.png"
    Image.fromarray(mask).save(path)
    return replace(view, mask=path)


def test_points_lie_on_the_balls_and_cover_them(views):
    cloud = visual_hull(views, 20_000)
    outside, ball = to_surfaces(cloud.xyz)
    # cones of 16 views around leave a little more than the balls; masks are wrong by up to 0.7 of a pixel, and points are half a voxel (0.2) inside
    assert outside.min() > -1.2 * PIXEL and outside.max() < PIXEL
    assert outside.abs().mean() < 0.5 * PIXEL
    assert farthest_uncovered(cloud.xyz) < 1.2 * PIXEL
    assert wrong_colours(cloud.rgb, ball) < 0.01


@pytest.mark.parametrize("count", [300, 1000, 20_000])
def test_about_as_many_points_as_asked_for(views, count):
    found = len(visual_hull(views, count))
    assert 0.8 * count < found < 1.25 * count


def test_points_are_distinct_and_evenly_spread(views):
    xyz = visual_hull(views, 2000).xyz
    distance = torch.cdist(xyz, xyz).fill_diagonal_(math.inf).amin(1)
    side = distance.min()
    assert 0.2 * PIXEL < side < 2 * PIXEL
    assert (distance < 1.001 * side).double().mean() > 0.95  # neighbours on one lattice, across a face unless the surface is steep


def test_views_that_are_held_out_are_not_opened(tmp_path):
    views = write_views(tmp_path, views=8, size=(48, 64))
    expected = visual_hull(views[::2], 500)
    for view in views[1::2]:
        view.image.write_bytes(b"held out")
        view.mask.write_bytes(b"held out")
    found = visual_hull(views[::2], 500)
    assert torch.equal(found.xyz, expected.xyz) and torch.equal(found.rgb, expected.rgb)


def test_alpha_channel_is_as_good_as_a_mask(tmp_path, views):
    keyed = []
    for view in views:
        rgba = np.dstack([np.asarray(Image.open(view.image)), np.asarray(Image.open(view.mask))[..., 0]])
        Image.fromarray(rgba).save(tmp_path / f"{view.name}.png")
        keyed.append(replace(view, image=tmp_path / f"{view.name}.png", mask=None, alpha_is_mask=True))
    expected, found = visual_hull(views, 1000), visual_hull(keyed, 1000)
    assert torch.equal(found.xyz, expected.xyz) and torch.equal(found.rgb, expected.rgb)


def test_what_is_outside_a_photo_is_not_carved_by_it(tmp_path, views):
    view = views[0]
    for path in (view.image, view.mask):
        Image.open(path).crop((0, 0, 128, 48)).save(tmp_path / f"{path.parent.name}.png")
    upper = replace(view, image=tmp_path / "image.png", mask=tmp_path / "mask.png", camera=view.camera.crop(0, 0, (48, 128)))
    cloud = visual_hull([upper, *views[1:]], 2000)
    assert farthest_uncovered(cloud.xyz) < 2.5 * PIXEL
    assert to_surfaces(cloud.xyz)[0].max() < 2 * PIXEL


def test_points_are_in_every_mask_and_in_two_photos(views):
    few = [views[0], views[5]]
    cloud = visual_hull(few, 3000)
    assert (judge(cloud.xyz, 0.0, [Silhouette.read(view) for view in few], 2) == INSIDE).all()
    assert wrong_colours(cloud.rgb, to_surfaces(cloud.xyz)[1]) < 0.6  # points that no photo sees have the colours of others, never none
    assert (cloud.rgb.amax(1) > 100).all()


def test_views_that_see_nothing_of_the_object_change_nothing(views):
    away = replace(views[0], name="away", camera=replace(views[0].camera, R=views[0].camera.R * views[0].camera.R.new_tensor([-1, 1, -1])))
    away = replace(away, camera=replace(away.camera, T=away.camera.T * away.camera.T.new_tensor([-1, 1, -1])))
    expected, found = visual_hull(views, 1500), visual_hull([*views, away], 1500)
    assert abs(len(found) - len(expected)) < 150
    assert farthest_uncovered(found.xyz) < 2.5 * PIXEL and to_surfaces(found.xyz)[0].max() < 2 * PIXEL


def test_clearance_is_that_of_every_pixel_one_by_one():
    generator = torch.Generator().manual_seed(3)
    blobs = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 46, 38, generator=generator), 7, stride=1)[0, 0]
    mask = (blobs > blobs.median()).to(torch.uint8) * 255
    mask[:, :12] = 255
    found = clearance(mask)
    radii = torch.tensor([0, 1, 2, 3, 5, 8, 12, 20, 32, 50, 80, 126])
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            is_set = bool(mask[row, column] >= 128)
            fits = []
            for radius in radii.tolist():
                top, left = max(row - radius, 0), max(column - radius, 0)
                square = mask[top : row + radius + 1, left : column + radius + 1] >= 128
                whole = square.numel() == (2 * radius + 1) ** 2
                fits.append(bool(square.all()) if is_set else whole and not square.any())
            largest = int(radii[[k for k, fit in enumerate(fits) if fit][-1]])
            assert int(found[row, column]) == (largest + 1) * (1 if is_set else -1)


def test_what_is_said_of_a_ball_holds_for_its_points(views):
    silhouettes = [Silhouette.read(view) for view in views[::3]]
    generator = torch.Generator().manual_seed(2)
    middles = torch.cat(
        [
            (torch.rand(3000, 3, generator=generator) - 0.5) * torch.tensor([9.0, 9.0, 3.0]),
            torch.from_numpy(POINTS).float().repeat(250, 1) + 0.1 * torch.randn(1000, 3, generator=generator),
        ]
    )
    seen = set()
    for radius in (0.005, 0.05, 0.3):
        state = judge(middles, radius, silhouettes, 2)
        shift = torch.randn(len(middles), 60, 3, generator=generator)
        shift[:, 30:] = torch.nn.functional.normalize(shift[:, 30:], dim=2)
        shift[:, :30] *= torch.rand(len(middles), 30, 1, generator=generator) / shift[:, :30].norm(dim=2, keepdim=True)
        points = judge((middles[:, None] + 0.999 * radius * shift).flatten(0, 1), 0.0, silhouettes, 2).view(len(middles), -1)
        assert (points != UNDECIDED).all()
        assert (points[state == EMPTY] == EMPTY).all()
        assert (points[state == INSIDE] == INSIDE).all()
        seen |= {(radius, s) for s in state.unique().tolist()}
    # the answers are not all evasive
    assert {(r, s) for r in (0.005, 0.05) for s in (EMPTY, INSIDE, UNDECIDED)} <= seen
    assert (judge(torch.from_numpy(POINTS).float(), RADIUS / 3, silhouettes, 2) == INSIDE).all()


def test_views_without_masks_are_refused(views):
    with pytest.raises(InputError, match="1 of 16 without, 3 among them"):
        visual_hull([replace(view, mask=None) if view.name == "3" else view for view in views])


@pytest.mark.parametrize(("count", "number", "words"), [(0, 16, "count: expected a positive number"), (10, 1, "at least 2 views, got 1")])
def test_too_little_is_refused(views, count, number, words):
    with pytest.raises(InputError, match=words):
        visual_hull(views[:number], count)


def test_masks_that_leave_nothing_are_refused(tmp_path, views):
    black = [repaint(view, tmp_path, np.zeros((96, 128), np.uint8)) for view in views]
    with pytest.raises(InputError, match="16 of 16 masks are black"):
        visual_hull(black, 100)
    with pytest.raises(InputError, match="no point of the scene is in all of them"):
        visual_hull([black[0], *views[1:]], 100)


def test_cameras_that_look_apart_are_refused(views):
    """Two cameras back to back on the ring, both looking outwards."""
    apart = []
    for view in (views[0], views[8]):
        turned = view.camera.R * torch.tensor([-1.0, 1.0, -1.0])
        apart.append(replace(view, camera=replace(view.camera, R=turned, T=view.camera.T * torch.tensor([-1.0, 1.0, -1.0]))))
    with pytest.raises(InputError, match="the cameras do not look at one place|no point of the scene"):
        visual_hull(apart, 100)


def test_real_scene_lies_in_the_silhouettes_of_its_test_views(shared):
    root = shared / "data" / "nerf_synthetic" / "lego"
    scene = parse_nerf_synthetic(root, root, "lego", CloudFile(root / "mvs_pc.ply"))
    used, held_out = ([scene.views[k] for k in scene.splits[stage]] for stage in ("train", "test"))
    cloud = visual_hull(used, 4000, dissent=0.0)  # these masks are perfect
    inside = [1 - Silhouette.read(view).says(cloud.xyz, 0.0).empty.double().mean().item() for view in held_out]
    assert np.mean(inside) > 0.985 and min(inside) > 0.94


def test_a_wrong_mask_does_not_carve_the_object(views, tmp_path):
    """One of sixteen masks misses all but a corner."""
    corner = np.zeros(views[0].camera.image_size, dtype=np.uint8)
    corner[:8, :8] = 255
    wrong = [repaint(views[0], tmp_path, corner), *views[1:]]
    with pytest.raises(InputError, match="no point of the scene"):
        visual_hull(wrong, 1500, dissent=0.0)
    found = visual_hull(wrong, 1500, dissent=0.07)
    outside, _ = to_surfaces(found.xyz)
    assert outside.max() < 3 * PIXEL and farthest_uncovered(found.xyz) < 2 * PIXEL
    with pytest.raises(InputError, match="dissent"):
        visual_hull(views, 100, dissent=0.5)
