"""COLMAP scenes: lenses, sub-models, photos left out, names, cameras of several sizes, downscaled photos, masks; and real scenes."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image
from torch.nn.functional import grid_sample

from npbgpp.data import CloudFile, ColmapModel, Scene, read_photo, read_points
from npbgpp.data.lens import MODELS
from npbgpp.parsers.colmap import parse_colmap

from ..helpers.damage import copy, edit, remove
from ..helpers.layouts.colmap import write
from ..helpers.scenes import BACKDROP, POINTS, projection_errors, save_mask

SIZE = (48, 64)
IMAGES = "sparse/0/images.txt"


def parse(folder: Path, **options) -> Scene:
    return parse_colmap(folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), **options)


def resize(path: Path, size: tuple[int, int], target: Path | None = None) -> None:
    """Resamples an image to this (height, width)."""
    with Image.open(path) as image:
        small = image.resize((size[1], size[0]), Image.Resampling.BOX)
    (target or path).parent.mkdir(parents=True, exist_ok=True)
    small.save(target or path)


def rename(folder: Path, old: str, new: str) -> None:
    """Renames a photo in a text model and in its folder."""
    edit(IMAGES, old, new)(folder)
    target = folder / "images" / new
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(folder / "images" / old) as image:
        image.save(target)
    (folder / "images" / old).unlink()


def names(scene: Scene) -> list[str]:
    return [view.name for view in scene.views]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colmap") / "scene"
    write(folder, views=4, text=True)
    return folder


@pytest.fixture
def small(four: Path, tmp_path: Path) -> Path:
    """Four views of a text model that may be changed."""
    return Path(shutil.copytree(four, tmp_path / "scene"))


# ------------------------------------------------------------------ cameras
@pytest.mark.parametrize("model", [name for name, _ in MODELS.values()])
def test_distorted_photos_are_undistorted(tmp_path, model):
    write(tmp_path, views=2, model=model)
    scene = parse(tmp_path)
    assert all((view.lens is None) == ("PINHOLE" in model) for view in scene.views)
    error = projection_errors(scene)
    assert error.abs().max() < 0.5 and (error.mean(0).abs() < 0.15).all()


def test_order_splits_and_points(tmp_path):
    """Natural order: 10 comes after 9. The points of the model lie on the balls, with tracks."""
    write(tmp_path, views=12, size=(24, 32))
    scene = parse(tmp_path)
    assert names(scene) == [f"view_{k}" for k in range(12)] and scene.notes == ()
    assert not any(view.resized or view.mask or view.background or view.alpha_is_mask for view in scene.views)
    assert scene.splits == {"train": tuple(range(12)), "val": (5,), "test": (10,)}
    assert scene.carried_points == tmp_path / "sparse" / "0" / "points3D.bin"
    points = read_points(scene.carried_points)
    distance = (points.cloud.xyz[:, None] - torch.from_numpy(POINTS).float()).norm(dim=2).amin(1)
    torch.testing.assert_close(distance, torch.full_like(distance, 0.15))
    reference = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    assert reference.compute_mean_track_length() > 2 and reference.num_images() == 12


@pytest.mark.parametrize("place", ["sparse", "."])
def test_the_model_may_be_in_other_folders(small, place):
    expected = parse(small)
    for path in (small / "sparse" / "0").iterdir():
        path.rename(small / place / path.name)
    found = parse(small)
    assert found.carried_points == small / place / "points3D.txt"
    assert all(torch.equal(a.camera.R, b.camera.R) for a, b in zip(found.views, expected.views, strict=True))


# ------------------------------------------------------------------ photos that are left out
def test_the_largest_of_several_models_is_used(small, tmp_path):
    for views, name in ((3, "00"), (2, "1")):
        write(tmp_path / name, views=views, size=(12, 16))
        (tmp_path / name / "sparse" / "0").rename(small / "sparse" / name)
    scene = parse(small)
    assert len(scene.views) == 4 and scene.carried_points == small / "sparse" / "0" / "points3D.txt"
    (note,) = scene.notes
    assert all(part in note for part in ("3 models", "sparse/0 (4 photos)", "sparse/00 (3 photos)", "sparse/1 (2 photos)"))


def test_unregistered_photos_are_left_out(small):
    for name in ("view_9.png", "view_10.png", "._view_0.png", "notes.txt"):
        copy("images/view_0.png", f"images/{name}")(small)
    scene = parse(small)
    assert len(scene.views) == 4 and len(scene.notes) == 1
    assert "2 of 6 photos" in scene.notes[0] and scene.notes[0].endswith("view_9.png, view_10.png")
    for k in range(11, 17):
        copy("images/view_0.png", f"images/view_{k}.png")(small)
    assert parse(small).notes[0].endswith("view_13.png and others")
    shutil.copy(small / "images" / "view_0.png", os.fsencode(small / "images") + b"/\xff.png")
    assert parse(small).notes[0].encode(), "names that are not UTF-8 can be printed"


def test_photos_without_file_are_left_out(small):
    remove("images/view_1.png")(small)
    scene = parse(small)
    assert names(scene) == ["view_0", "view_2", "view_3"] and len(scene.notes) == 1
    assert "1 of 4 registered" in scene.notes[0] and scene.notes[0].endswith("view_1.png")
    assert projection_errors(scene).abs().max() < 0.5


# ------------------------------------------------------------------ names
def test_photos_in_folders(small):
    rename(small, "view_0.png", "left/a.png")
    rename(small, "view_1.png", "right/a.png")
    copy("images/left/a.png", "images/left/b.png")(small)
    save_mask(small / "images" / "elsewhere" / "c.png", np.ones(SIZE, dtype=bool))
    scene = parse(small)
    assert names(scene) == ["left-a", "right-a", "view_2", "view_3"]
    assert len(scene.notes) == 1 and "1 of 5" in scene.notes[0] and scene.notes[0].endswith("left/b.png")
    assert projection_errors(scene).abs().max() < 0.5


def test_photos_that_differ_in_their_suffix(small):
    rename(small, "view_1.png", "view_0.jpg")
    scene = parse(small)
    assert names(scene) == ["view_0_jpg", "view_0_png", "view_2", "view_3"]
    assert [view.image.name for view in scene.views[:2]] == ["view_0.jpg", "view_0.png"]


def test_files_of_another_suffix(small):
    """Are used for the photo of that name, but not for two photos."""
    edit(IMAGES, ".png", ".JPG")(small)
    scene = parse(small)
    assert [view.image.name for view in scene.views] == [f"view_{k}.png" for k in range(4)] and scene.notes == ()
    assert projection_errors(scene).abs().max() < 0.5
    edit(IMAGES, "view_0.JPG", "view_0.tif")(small)
    edit(IMAGES, "view_1.JPG", "view_0.bmp")(small)
    assert names(parse(small)) == ["view_2", "view_3"]


# ------------------------------------------------------------------ sizes
def test_several_cameras_and_sizes(small):
    """The second photo is twice as large, the third is cropped, both with cameras of their own."""
    resize(small / "images" / "view_1.png", (96, 128))
    with Image.open(small / "images" / "view_2.png") as image:
        image.crop((4, 6, 60, 46)).save(small / "images" / "view_2.png")
    with (small / "sparse" / "0" / "cameras.txt").open("a") as file:
        file.write("8 SIMPLE_PINHOLE 128 96 144 64 48\n9 PINHOLE 56 40 72 72 28 18\n")
    edit(IMAGES, "7 view_1", "8 view_1")(small)
    edit(IMAGES, "7 view_2", "9 view_2")(small)
    scene = parse(small)
    assert [view.camera.image_size for view in scene.views] == [SIZE, (96, 128), (40, 56), SIZE]
    assert projection_errors(scene).abs().max() < 0.7
    assert [view.camera.image_size for view in parse(small, downscale=2.0).views] == [(24, 32), (48, 64), (20, 28), (24, 32)]


@pytest.mark.parametrize("model", ["PINHOLE", "RADIAL"])
def test_photos_are_downscaled_when_read(tmp_path, model):
    """Sides are rounded to integers, each by itself."""
    write(tmp_path, views=2, size=(97, 128), model=model)
    scene = parse(tmp_path, downscale=1.5)
    assert {view.camera.image_size for view in scene.views} == {(65, 85)} and all(view.resized for view in scene.views)
    assert projection_errors(scene).abs().max() < 0.5


@pytest.mark.parametrize("model", ["PINHOLE", "RADIAL"])
def test_downscaled_photos_are_used(tmp_path, model):
    """In images_2, with another suffix, or in place of those that were reconstructed."""
    write(tmp_path, views=2, size=(96, 128), model=model)
    for k in range(2):
        resize(tmp_path / "images" / f"view_{k}.png", SIZE, tmp_path / "images_2" / f"view_{k}.jpeg")
    found = parse(tmp_path, downscale=2.0)
    assert all(view.image.parent.name == "images_2" and not view.resized for view in found.views) and found.notes == ()
    assert projection_errors(found).abs().max() < 0.6
    assert {view.image.parent.name for view in parse(tmp_path).views} == {"images"}
    shutil.rmtree(tmp_path / "images")
    assert all(view.camera.image_size == SIZE for view in parse(tmp_path, downscale=2.0).views)
    (tmp_path / "images_2").rename(tmp_path / "images")
    replaced = parse(tmp_path)
    assert all(view.camera.image_size == SIZE and not view.resized for view in replaced.views)
    assert projection_errors(replaced).abs().max() < 0.6


def test_downscaled_photos_of_other_names_are_not_used(small):
    """LLFF calls them image000.png and so on."""
    for k in range(4):
        resize(small / "images" / f"view_{k}.png", (24, 32), small / "images_2" / f"image{k:03}.png")
    scene = parse(small, downscale=2.0)
    assert len(scene.notes) == 1 and "images_2" in scene.notes[0]
    assert all(view.image.parent.name == "images" and view.camera.image_size == (24, 32) for view in scene.views)


# ------------------------------------------------------------------ masks
def write_masks(folder: Path, form: str, place: str = "masks") -> None:
    """Bright on the balls."""
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            save_mask(folder / place / form.format(path.stem.partition("_")[2]), (np.asarray(image) != BACKDROP).any(2))


@pytest.mark.parametrize("form", ["view_{}.png.png", "view_{}.png"])
def test_masks_by_both_names(small, form):
    write_masks(small, form)
    scene = parse(small)
    assert len(scene.notes) == 1 and "white" in scene.notes[0] and parse(small, white_bg=False).notes == ()
    for view, stored in zip(scene.views, parse(small, white_bg=False).views, strict=True):
        photo, before = read_photo(view), read_photo(stored)
        outside = photo.mask[0] < 128
        assert 0.02 < (~outside).float().mean() < 0.5 and (photo.image[:, outside] == 255).all()
        assert (before.image[:, outside] == torch.tensor(BACKDROP)[:, None]).all() and torch.equal(photo.mask, before.mask)
        assert torch.equal(photo.image[:, ~outside], before.image[:, ~outside])
    write_masks(small, "view_{}.png.png")
    assert [view.mask.name for view in parse(small).views] == [f"view_{k}.png.png" for k in range(4)], "COLMAP's own name comes first"


def test_masks_of_some_photos_are_not_used(small):
    write_masks(small, "view_{}.png")
    remove("masks/view_2.png")(small)
    scene = parse(small)
    assert len(scene.notes) == 1 and "3 of 4" in scene.notes[0]
    assert all(view.mask is None and view.background is None for view in scene.views)
    remove("images/view_2.png")(small)
    assert all(view.mask is not None for view in parse(small).views), "all photos in use have one"


def test_downscaled_masks_of_downscaled_photos(small):
    write_masks(small, "view_{}.png")
    for k in range(4):
        for kind in ("images", "masks"):
            resize(small / kind / f"view_{k}.png", (24, 32), small / f"{kind}_2" / f"view_{k}.png")
    for view in parse(small, downscale=2.0).views:
        assert view.mask.parent.name == "masks_2" and read_photo(view).mask.shape == (1, 24, 32)


def test_masks_are_undistorted_with_their_photos(tmp_path):
    write(tmp_path, views=2, model="SIMPLE_RADIAL")
    write_masks(tmp_path, "view_{}.png.png")
    for view in parse(tmp_path, white_bg=False).views:
        photo = read_photo(view)
        balls = (photo.image != torch.tensor(BACKDROP)[:, None, None]).any(0)
        assert (balls != (photo.mask[0] > 0)).float().mean() < 0.01


def with_alpha(path: Path, alpha: int) -> np.ndarray:
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    rgba.putalpha(alpha)
    rgba.save(path)
    return np.asarray(rgba)[..., :3].astype(float)


def test_alpha_channels_are_the_masks(small):
    """Where all photos have one; colours are composited on white."""
    stored = [with_alpha(path, 100) for path in sorted((small / "images").iterdir())]
    for white_bg in (True, False):
        photo = read_photo(parse(small, white_bg=white_bg).views[0])
        expected = stored[0] * 100 / 255 + 155 if white_bg else stored[0]
        assert np.abs(photo.image.permute(1, 2, 0).numpy() - expected).max() < 1 and (photo.mask == 100).all()


def test_alpha_in_some_photos_is_no_mask(small):
    stored = with_alpha(small / "images" / "view_0.png", 100)
    scene = parse(small)
    photo = read_photo(scene.views[0])
    assert photo.mask is None and np.abs(photo.image.permute(1, 2, 0).numpy() - (stored * 100 / 255 + 155)).max() < 1
    assert any("1 of 4 photos have an alpha channel (view_0)" in note for note in scene.notes)


# ------------------------------------------------------------------ real scenes
@pytest.fixture(scope="module")
def real(shared: Path) -> Callable[..., Scene]:
    def go(place: str, **options) -> Scene:
        if not (shared / "data" / place).is_dir():
            pytest.skip(f"{place} is not among the shared data")
        return parse(shared / "data" / place, **options)

    return go


def test_real_scene_and_its_undistorted_photos(real):
    """COLMAP's undistorted workspace has the same poses; its photos, cropped to our focal length, are ours."""
    scene = real("colmap/alexander")
    assert len(scene.views) == 53 and all(view.lens is not None and view.mask is not None for view in scene.views)
    assert all(part in scene.notes[0] for part in ("4 of 57", "DSC05096.jpg, DSC05097.jpg, DSC05102.jpg, DSC05103.jpg"))
    assert len(scene.splits["test"]) == 5 and len(scene.with_splits(None, None).splits["train"]) == 43
    ours, theirs = real("colmap/alexander", white_bg=False), real("colmap/alexander/dense", white_bg=False)
    assert names(ours) == names(theirs) and theirs.views[0].lens is None
    for a, b in list(zip(ours.views, theirs.views, strict=True))[::26]:
        assert torch.equal(a.camera.R, b.camera.R) and torch.equal(a.camera.T, b.camera.T)
        half = (256 * b.camera.focal_length / a.camera.focal_length)[0].tolist()
        box = (256 - half[0], 256 - half[1], 256 + half[0], 256 + half[1])  # the part of theirs that ours shows
        with Image.open(b.image) as picture:
            expected = np.asarray(picture.resize((512, 512), Image.Resampling.BILINEAR, box=box)).astype(float)
        image = read_photo(a).image.permute(1, 2, 0).numpy().astype(float)
        error, shifted = np.abs(image - expected).mean(), np.abs(image[:, 2:] - expected[:, :-2]).mean()
        assert error < 0.5 * shifted


@pytest.mark.parametrize(("place", "downscale"), [("colmap/alexander", 1.0), ("colmap/alexander/dense", 1.0), ("llff/fern", 16.0)])
def test_colours_of_real_points_are_those_of_the_photos(real, place, downscale):
    """At their own pixels better than half a pixel aside, far better than four: lens, pose and pixels fit."""
    scene = real(place, downscale=downscale)
    points = read_points(scene.carried_points)
    images = {Path(image.name).stem: image for image in ColmapModel.read(scene.carried_points.parent).images}
    shifts = [(0.0, 0.0), *((du * k, dv * k) for k in (0.5, 4.0) for du, dv in ((1, 0), (-1, 0), (0, 1), (0, -1)))]
    errors = []
    for view in scene.views[:: max(1, len(scene.views) // 5)]:
        image = read_photo(replace(view, background=None)).image.float()
        observed = torch.from_numpy(np.isin(points.number, images[view.name].point))
        uv, depth = view.camera.project(points.cloud.xyz[observed])
        assert (depth > 0).all()
        height, width = view.camera.image_size
        at = (uv[0] + torch.tensor(shifts)[:, None]) / torch.tensor([width, height]) * 2 - 1
        colours = grid_sample(image[None], at[None], padding_mode="border", align_corners=False)[0]
        errors.append((colours - points.cloud.rgb_u8[observed].T[:, None]).abs().mean((0, 2)))
    here, *beside = torch.stack(errors).mean(0)
    assert min(beside) > here and min(beside[4:]) > 1.2 * here


@pytest.mark.parametrize("place", ["colmap/alexander", "colmap/alexander/dense", "monocular/lady-running"])
def test_real_points_project_to_their_observations(real, place):
    """Half of them within half a pixel, as in COLMAP itself (0.3 pixels); through the lens in distorted photos."""
    scene = real(place)
    points = read_points(scene.carried_points)
    model = ColmapModel.read(scene.carried_points.parent)
    index = {number: k for k, number in enumerate(points.number.tolist())}
    errors = []
    for image in model.images[::10]:
        seen = image.point >= 0
        xyz = points.cloud.xyz.double()[[index[number] for number in image.point[seen].tolist()]]
        xyz_cam = xyz @ image.world_to_cam[:3, :3].T + image.world_to_cam[:3, 3]
        at = model.lenses[image.camera].project((xyz_cam[:, :2] / xyz_cam[:, 2:]).numpy())
        errors.append(np.linalg.norm(at - image.uv_px[seen], axis=1))
    assert np.median(np.concatenate(errors)) < 0.5
