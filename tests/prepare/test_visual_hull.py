"""The visual hull of drawn balls: distance from the balls, colours, robustness to wrong masks; classification of balls against sampled points."""

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
from npbgpp.prepare.visual_hull import BOUNDARY, INSIDE, OUTSIDE, Silhouette, classify_balls, mask_clearance, masks_carve, visual_hull

from ..helpers.balls import largest_gap, surface_distance, write_views, wrong_colour_fraction
from ..helpers.scenes import POINTS, RADIUS

PIXEL = 3 / (1.5 * 96)  # at the depth of the balls


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> tuple[View, ...]:
    return write_views(tmp_path_factory.mktemp("balls"))


def replace_mask(view: View, folder: Path, mask: np.ndarray) -> View:
    path = folder / f"{view.name}.png"
    Image.fromarray(mask).save(path)
    return replace(view, mask=path)


def look_back(view: View) -> View:
    """The camera turned around at its position."""
    turn = view.camera.R.new_tensor([-1, 1, -1])
    return replace(view, name="back", camera=replace(view.camera, R=view.camera.R * turn, T=view.camera.T * turn))


def test_masks_that_are_bright_everywhere_are_refused(views, tmp_path):
    full = [replace_mask(view, tmp_path, np.full(view.camera.image_size, 255, np.uint8)) for view in views]
    with pytest.raises(InputError, match=rf"expected masks of an object, got {len(full)} masks that are bright everywhere.*method=sparse"):
        visual_hull(full)
    assert (
        not masks_carve(full)
        and masks_carve([*full[1:], views[0]])
        and not masks_carve([replace(views[0], mask=None, alpha_is_mask=False)])
    )


@pytest.mark.parametrize("count", [300, 5000])
def test_points_cover_the_balls_evenly(views, count):
    cloud = visual_hull(views, count)
    assert 0.8 * count < len(cloud) < 1.25 * count
    distance = torch.cdist(cloud.xyz, cloud.xyz).fill_diagonal_(math.inf).amin(1)
    side = distance.min()
    assert (distance < 1.001 * side).double().mean() > 0.95  # neighbours in the voxel grid, across a face unless the surface is steep
    # the cones of 16 views enclose a little more than the balls; masks are wrong by up to 0.7 of a pixel, points up to a voxel inside
    outside, ball = surface_distance(cloud.xyz)
    assert outside.min() > -PIXEL - side and outside.max() < PIXEL
    assert outside.abs().mean() < 0.5 * PIXEL + side / 2 and largest_gap(cloud.xyz) < PIXEL + 1.5 * side
    assert wrong_colour_fraction(cloud.rgb_u8, ball) < 0.01


def test_files_of_other_views_are_not_opened(tmp_path):
    views = write_views(tmp_path, views=8, size=(48, 64))
    expected = visual_hull(views[::2], 500)
    for view in views[1::2]:
        view.image.write_bytes(b"held out")
        view.mask.write_bytes(b"held out")
    found = visual_hull(views[::2], 500)
    assert torch.equal(found.xyz, expected.xyz) and torch.equal(found.rgb_u8, expected.rgb_u8)


def test_alpha_channels_are_masks(tmp_path, views):
    keyed = []
    for view in views[::2]:
        rgba = np.dstack([np.asarray(Image.open(view.image)), np.asarray(Image.open(view.mask))[..., 0]])
        Image.fromarray(rgba).save(tmp_path / f"{view.name}.png")
        keyed.append(replace(view, image=tmp_path / f"{view.name}.png", mask=None, alpha_is_mask=True))
    expected, found = visual_hull(views[::2], 500), visual_hull(keyed, 500)
    assert torch.equal(found.xyz, expected.xyz) and torch.equal(found.rgb_u8, expected.rgb_u8)


def test_views_carve_nothing_outside_their_image(tmp_path, views):
    """One view is cropped to its upper half, another looks away."""
    for path in (views[0].image, views[0].mask):
        Image.open(path).crop((0, 0, 128, 48)).save(tmp_path / f"{path.parent.name}.png")
    camera = views[0].camera.crop(0, 0, (48, 128))
    cropped = replace(views[0], image=tmp_path / "image.png", mask=tmp_path / "mask.png", camera=camera)
    cloud = visual_hull([cropped, look_back(views[3]), *views[1:]], 2000)
    assert largest_gap(cloud.xyz) < 2.5 * PIXEL and surface_distance(cloud.xyz)[0].max() < 2 * PIXEL


def test_hull_of_two_views(views):
    cloud = visual_hull([views[0], views[5]], 3000)
    assert (classify_balls(cloud.xyz, 0.0, [Silhouette.read(view) for view in (views[0], views[5])], 2) == INSIDE).all()
    # unseen points take the colour of others nearby
    assert wrong_colour_fraction(cloud.rgb_u8, surface_distance(cloud.xyz)[1]) < 0.6 and (cloud.rgb_u8.amax(1) > 100).all()


def test_dissent_allows_for_a_wrong_mask(views, tmp_path):
    """One of sixteen masks misses all but a corner."""
    corner = np.zeros(views[0].camera.image_size, dtype=np.uint8)
    corner[:8, :8] = 255
    wrong = [replace_mask(views[0], tmp_path, corner), *views[1:]]
    cloud = visual_hull(wrong, 1500, dissent=0.07)
    assert surface_distance(cloud.xyz)[0].max() < 3 * PIXEL and largest_gap(cloud.xyz) < 2 * PIXEL


# ------------------------------------------------------------------ silhouettes
@pytest.mark.parametrize("fill", [None, 0, 255])
def test_clearance_matches_a_loop(fill):
    generator = torch.Generator().manual_seed(3)
    blobs = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 26, 38, generator=generator), 7, stride=1)[0, 0]
    mask = (blobs > blobs.median()).to(torch.uint8) * 255 if fill is None else torch.full((20, 32), fill, dtype=torch.uint8)
    found = mask_clearance(mask)
    padded = torch.nn.functional.pad(mask >= 128, (1, 1, 1, 1), value=True)
    rows, columns = torch.meshgrid(torch.arange(padded.shape[0]), torch.arange(padded.shape[1]), indexing="ij")
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            inside = padded[row + 1, column + 1]
            distance = torch.maximum((rows - row - 1).abs(), (columns - column - 1).abs())[padded != inside]
            expected = min(int(distance.min()) if len(distance) else 127, 127)
            assert int(found[row, column]) == (expected if inside else -expected)


def test_classification_of_balls_holds_for_their_points(views):
    silhouettes = [Silhouette.read(view) for view in views[::3]]
    generator = torch.Generator().manual_seed(2)
    centres = torch.cat(
        [
            (torch.rand(1000, 3, generator=generator) - 0.5) * torch.tensor([9.0, 9.0, 3.0]),
            torch.from_numpy(POINTS).float().repeat(150, 1) + 0.1 * torch.randn(600, 3, generator=generator),
        ]
    )
    found = set()
    for radius in (0.005, 0.05, 0.3):
        state = classify_balls(centres, radius, silhouettes, 2)
        offset = torch.nn.functional.normalize(torch.randn(len(centres), 40, 3, generator=generator), dim=2)
        offset[:, ::2] *= torch.rand(len(centres), 20, 1, generator=generator)
        points = classify_balls((centres[:, None] + 0.999 * radius * offset).flatten(0, 1), 0.0, silhouettes, 2).view(len(centres), -1)
        assert (points != BOUNDARY).all() and (points[state == OUTSIDE] == OUTSIDE).all() and (points[state == INSIDE] == INSIDE).all()
        found |= {(radius, s) for s in state.unique().tolist()}
    assert {(r, s) for r in (0.005, 0.05) for s in (OUTSIDE, INSIDE, BOUNDARY)} <= found
    assert (classify_balls(torch.from_numpy(POINTS).float(), RADIUS / 3, silhouettes, 2) == INSIDE).all()


BLACK = np.zeros((96, 128), np.uint8)
REFUSALS = {
    "no mask": (lambda v, out: visual_hull([replace(v[3], mask=None), *v[:3]]), "4 views, got none for 1 .3."),
    "zero points": (lambda v, out: visual_hull(v, 0), "count: .* 0"),
    "single view": (lambda v, out: visual_hull(v[:1], 10), "2 views, got 1"),
    "large dissent": (lambda v, out: visual_hull(v, 100, dissent=0.5), "dissent: .* 0.5"),
    "black masks": (lambda v, out: visual_hull([replace_mask(view, out, BLACK) for view in v], 100), "16 of 16 masks"),
    "one black mask": (lambda v, out: visual_hull([replace_mask(v[0], out, BLACK), *v[4::4]], 100), "no point"),
    "looking apart": (lambda v, out: visual_hull([look_back(v[0]), look_back(v[8])], 100), "common point|no point"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(views, tmp_path, case):
    call, message = REFUSALS[case]
    with pytest.raises(InputError, match=message):
        call(views, tmp_path)


def test_real_scene_is_inside_the_masks_of_its_test_views(shared):
    root = shared / "data" / "nerf_synthetic" / "lego"
    scene = parse_nerf_synthetic(root, root, "lego", CloudFile(root / "mvs_pc.ply"))
    train, test = ([scene.views[k] for k in scene.splits[stage]] for stage in ("train", "test"))
    cloud = visual_hull(train, 4000, dissent=0.0)  # these masks are exact
    inside = [1 - Silhouette.read(view).test(cloud.xyz, 0.0).carved.double().mean().item() for view in test]
    assert np.mean(inside) > 0.985 and min(inside) > 0.94
