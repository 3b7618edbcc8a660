"""COLMAP scenes: cameras that agree with the pictures, sub-models, photos left out, several cameras, masks, reduced photos, what is refused; real scenes."""

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

from npbgpp.data.colmap_model import ColmapModel, read_points
from npbgpp.data.images import read_photo
from npbgpp.data.lens import MODELS
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.parsers.colmap import parse_colmap

from ..helpers.layouts.colmap import CAMERA, write
from ..helpers.scenes import POINTS, look_at_origin, projection_errors, save_mask

SIZE = (48, 64)


def parse(folder: Path, **options) -> Scene:
    return parse_colmap(folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), **options)


def resize(path: Path, size: tuple[int, int], target: Path | None = None) -> None:
    """Resamples a picture to this (height, width)."""
    with Image.open(path) as image:
        small = image.resize((size[1], size[0]), Image.Resampling.BOX)
    (target or path).parent.mkdir(parents=True, exist_ok=True)
    small.save(target or path)


def in_text(folder: Path, change: Callable[[list[str]], list[str] | None], name: str = "images") -> None:
    """Changes the lines of a file of a text model; of ``images`` these are two per photo."""
    path = folder / "sparse" / "0" / f"{name}.txt"
    comment, *lines = path.read_text().splitlines()
    changed = change(lines)
    path.write_text("\n".join([comment, *(lines if changed is None else changed)]) + "\n")


def rename(folder: Path, old: str, new: str) -> None:
    """Renames a photo in a text model and in its folder."""
    in_text(folder, lambda lines: [line.replace(old, new) for line in lines])
    target = folder / "images" / new
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(folder / "images" / old) as image:
        image.save(target)
    (folder / "images" / old).unlink()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Four views of a text model that may be spoilt."""
    folder = tmp_path / "scene"
    write(folder, views=4, text=True)
    return folder


# ------------------------------------------------------------------ cameras
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("model", [name for name, _ in MODELS.values()])
def test_points_project_to_where_they_are_drawn(tmp_path, model, text):
    """A photo drawn through a lens is undistorted when it is read."""
    write(tmp_path / "scene", views=2 if text else 3, model=model, text=text)
    scene = parse(tmp_path / "scene")
    assert all((view.lens is None) == ("PINHOLE" in model) for view in scene.views)
    error = projection_errors(scene)
    assert error.abs().max() < 0.5 and (error.mean(0).abs() < 0.15).all()


def test_cameras_order_and_split(tmp_path):
    write(tmp_path / "scene", views=12)
    scene = parse(tmp_path / "scene")
    assert [view.name for view in scene.views] == [f"view_{k}" for k in range(12)], "10 comes after 9"
    for k, view in enumerate(scene.views):
        np.testing.assert_allclose(view.camera.to_opencv()[0], look_at_origin(2 * np.pi * k / 12), atol=1e-6)
        assert view.camera.focal_length.tolist() == [[72.0, 72.0]] and view.camera.principal_point.tolist() == [[32.0, 24.0]]
        assert not view.resized and view.mask is None and view.background is None and not view.alpha_is_mask
    assert scene.splits == {"train": tuple(range(12)), "val": (5,), "test": (10,)}
    assert scene.carried_points == tmp_path / "scene" / "sparse" / "0" / "points3D.bin" and scene.notes == ()


def test_two_views_are_a_scene(tmp_path):
    write(tmp_path / "scene", views=2)
    assert parse(tmp_path / "scene").splits == {"train": (0, 1), "val": (), "test": (1,)}


def test_the_points_of_the_model_lie_on_the_balls(tmp_path):
    """The tracks of the tiny scene are those of its points."""
    write(tmp_path / "scene", views=6)
    points = read_points(parse(tmp_path / "scene").carried_points)
    distance = (points.cloud.xyz[:, None] - torch.from_numpy(POINTS).float()).norm(dim=2).amin(1)
    torch.testing.assert_close(distance, torch.full_like(distance, 0.15))
    reference = pycolmap.Reconstruction(str(tmp_path / "scene" / "sparse" / "0"))
    assert reference.compute_mean_track_length() > 2 and reference.num_images() == 6


@pytest.mark.parametrize("place", ["sparse", "."])
def test_the_model_may_lie_elsewhere(small, place):
    expected = parse(small)
    for path in (small / "sparse" / "0").iterdir():
        path.rename(small / place / path.name)
    found = parse(small)
    assert found.carried_points == small / place / "points3D.txt"
    assert all(torch.equal(a.camera.R, b.camera.R) for a, b in zip(found.views, expected.views, strict=True))


# ------------------------------------------------------------------ what is left out
def test_the_largest_of_several_models_is_used(small, tmp_path):
    write(tmp_path / "other", views=3)
    write(tmp_path / "third", views=2)
    (tmp_path / "other" / "sparse" / "0").rename(small / "sparse" / "00")
    (tmp_path / "third" / "sparse" / "0").rename(small / "sparse" / "1")
    scene = parse(small)
    assert len(scene.views) == 4 and scene.carried_points == small / "sparse" / "0" / "points3D.txt"
    assert scene.notes == ("there are 3 models, sparse/0 (4 photos) is used and sparse/00 (3 photos), sparse/1 (2 photos) left out",)


def test_photos_that_are_not_registered_are_left_out(small):
    for name in ("view_9.png", "view_10.png", "._view_0.png", "notes.txt"):
        shutil.copy(small / "images" / "view_0.png", small / "images" / name)
    scene = parse(small)
    assert len(scene.views) == 4
    assert scene.notes == ("2 of 6 photos are not registered and are left out: view_9.png, view_10.png",)


def test_registered_photos_without_file_are_left_out(small):
    (small / "images" / "view_1.png").unlink()
    scene = parse(small)
    assert [view.name for view in scene.views] == ["view_0", "view_2", "view_3"]
    assert scene.notes == ("1 of 4 registered photos have no file and are left out: view_1.png",)
    error = projection_errors(scene)
    assert error.abs().max() < 0.5
    (small / "images" / "view_2.png").unlink()
    (small / "images" / "view_3.png").unlink()
    with pytest.raises(InputError, match=r"expected at least 2 photos of the model .*, got 1 of 4 \(one is view_0\.png\)"):
        parse(small)


def test_many_names_are_cut_short(small):
    for k in range(10, 17):
        shutil.copy(small / "images" / "view_0.png", small / "images" / f"view_{k}.png")
    (note,) = parse(small).notes
    assert note.startswith("7 of 11 photos") and note.endswith("view_13.png, view_14.png and others")


# ------------------------------------------------------------------ names
def test_photos_in_folders(small):
    rename(small, "view_0.png", "left/a.png")
    rename(small, "view_1.png", "right/a.png")
    shutil.copy(small / "images" / "left" / "a.png", small / "images" / "left" / "b.png")
    save_mask(small / "images" / "elsewhere" / "c.png", np.ones(SIZE, dtype=bool))
    scene = parse(small)
    assert [view.name for view in scene.views] == ["left-a", "right-a", "view_2", "view_3"]
    assert scene.notes == ("1 of 5 photos are not registered and are left out: left/b.png",)
    assert projection_errors(scene).abs().max() < 0.5


def test_photos_that_differ_in_their_suffix_only(small):
    rename(small, "view_1.png", "view_0.jpg")
    scene = parse(small)
    assert [view.name for view in scene.views] == ["view_0_jpg", "view_0_png", "view_2", "view_3"]
    assert [view.image.name for view in scene.views[:2]] == ["view_0.jpg", "view_0.png"]


def test_names_that_cannot_be_told_apart_are_refused(small):
    rename(small, "view_0.png", "left/a.png")
    rename(small, "view_1.png", "left-a.png")
    with pytest.raises(InputError, match="photos left-a.png, left/a.png: .* got left-a_png for each; rename one"):
        parse(small)


def test_a_file_of_another_suffix_stands_for_its_photo(small):
    in_text(small, lambda lines: [line.replace(".png", ".JPG") for line in lines])
    scene = parse(small)
    assert [view.image.name for view in scene.views] == [f"view_{k}.png" for k in range(4)] and scene.notes == ()
    assert projection_errors(scene).abs().max() < 0.5


def test_a_file_does_not_stand_for_two_photos(small):
    in_text(small, lambda lines: [line.replace("view_0.png", "view_0.tif").replace("view_1.png", "view_0.bmp") for line in lines])
    assert [view.name for view in parse(small).views] == ["view_2", "view_3"]


# ------------------------------------------------------------------ sizes
def test_several_cameras_and_sizes(small):
    """The second photo is twice as large, the third is cut, both with cameras of their own."""
    resize(small / "images" / "view_1.png", (96, 128))
    with Image.open(small / "images" / "view_2.png") as image:
        image.crop((4, 6, 60, 46)).save(small / "images" / "view_2.png")
    in_text(small, lambda lines: [*lines, "8 SIMPLE_PINHOLE 128 96 144 64 48", "9 PINHOLE 56 40 72 72 28 18"], "cameras")
    in_text(small, lambda lines: [line.replace("7 view_1", "8 view_1").replace("7 view_2", "9 view_2") for line in lines])
    scene = parse(small)
    assert [view.camera.image_size for view in scene.views] == [SIZE, (96, 128), (40, 56), SIZE]
    assert projection_errors(scene).abs().max() < 0.7
    halves = parse(small, downscale=2.0)
    assert [view.camera.image_size for view in halves.views] == [(24, 32), (48, 64), (20, 28), (24, 32)]


@pytest.mark.parametrize("model", ["PINHOLE", "RADIAL"])
@pytest.mark.parametrize("downscale", [1.5, 2.0])
def test_photos_are_reduced_when_read(tmp_path, model, downscale):
    """Sides that are no whole number of pixels are rounded, each by itself."""
    write(tmp_path / "scene", views=3, size=(97, 128), model=model)
    scene = parse(tmp_path / "scene", downscale=downscale)
    assert {view.camera.image_size for view in scene.views} == {(round(97 / downscale), round(128 / downscale))}
    assert all(view.resized for view in scene.views)
    assert projection_errors(scene).abs().max() < 0.5


@pytest.mark.parametrize("model", ["PINHOLE", "RADIAL"])
def test_reduced_photos_beside_the_full_ones_are_used(tmp_path, model):
    """As images_2, with another suffix, or in place of those that the model was made from."""
    folder = tmp_path / "scene"
    write(folder, views=3, size=(96, 128), model=model)
    for k in range(3):
        resize(folder / "images" / f"view_{k}.png", SIZE, folder / "images_2" / f"view_{k}.jpeg")
    found = parse(folder, downscale=2.0)
    assert all(view.image.parent.name == "images_2" and not view.resized for view in found.views) and found.notes == ()
    assert projection_errors(found).abs().max() < 0.6
    assert {view.image.parent.name for view in parse(folder).views} == {"images"}
    shutil.rmtree(folder / "images")
    assert all(view.camera.image_size == SIZE for view in parse(folder, downscale=2.0).views)
    (folder / "images_2").rename(folder / "images")
    replaced = parse(folder)
    assert all(view.camera.image_size == SIZE and not view.resized for view in replaced.views)
    assert projection_errors(replaced).abs().max() < 0.6


def test_reduced_photos_under_other_names_are_not_used(small):
    """LLFF calls them image000.png and so on."""
    for k in range(4):
        resize(small / "images" / f"view_{k}.png", (24, 32), small / "images_2" / f"image{k:03}.png")
    scene = parse(small, downscale=2.0)
    assert scene.notes == ("images_2 lacks photos of the model, those of images are used",)
    assert all(view.image.parent.name == "images" and view.camera.image_size == (24, 32) for view in scene.views)


# ------------------------------------------------------------------ masks
def write_masks(folder: Path, form: str, place: str = "masks") -> None:
    """Bright on the balls."""
    for k in range(4):
        with Image.open(folder / "images" / f"view_{k}.png") as image:
            save_mask(folder / place / form.format(k), (np.asarray(image) != (70, 80, 90)).any(2))


@pytest.mark.parametrize("form", ["view_{}.png.png", "view_{}.png"])
def test_masks_by_both_names(small, form):
    write_masks(small, form)
    scene = parse(small)
    assert scene.notes == ("the photos are white outside the masks in masks",) and parse(small, white_bg=False).notes == ()
    for view, stored in zip(scene.views, parse(small, white_bg=False).views, strict=True):
        photo, before = read_photo(view), read_photo(stored)
        outside = photo.mask[0] < 128
        assert 0.02 < (~outside).float().mean() < 0.5 and (photo.image[:, outside] == 255).all()
        assert (before.image[:, outside] == torch.tensor([70, 80, 90])[:, None]).all() and torch.equal(photo.mask, before.mask)
        assert torch.equal(photo.image[:, ~outside], before.image[:, ~outside])


def test_colmaps_own_name_of_a_mask_comes_first(small):
    write_masks(small, "view_{}.png")
    write_masks(small, "view_{}.png.png")
    assert [view.mask.name for view in parse(small).views] == [f"view_{k}.png.png" for k in range(4)]


def test_masks_of_some_photos_are_not_used(small):
    write_masks(small, "view_{}.png")
    (small / "masks" / "view_2.png").unlink()
    scene = parse(small)
    assert scene.notes == ("3 of 4 photos have a mask in masks, so that none is used",)
    assert all(view.mask is None and view.background is None for view in scene.views)
    (small / "images" / "view_2.png").unlink()
    assert all(view.mask is not None for view in parse(small).views), "all photos that are used have one"


def test_masks_have_the_size_of_their_photos(small):
    write_masks(small, "view_{}.png")
    resize(small / "masks" / "view_2.png", (24, 32))
    with pytest.raises(InputError, match=r"mask .*view_2\.png: expected 64x48 pixels as its photo has, got 32x24"):
        parse(small)


def test_reduced_masks_lie_beside_reduced_photos(small):
    write_masks(small, "view_{}.png")
    for k in range(4):
        for what in ("images", "masks"):
            resize(small / what / f"view_{k}.png", (24, 32), small / f"{what}_2" / f"view_{k}.png")
    for view in parse(small, downscale=2.0).views:
        assert view.mask.parent.name == "masks_2" and read_photo(view).mask.shape == (1, 24, 32)


def test_masks_are_undistorted_with_their_photos(tmp_path):
    folder = tmp_path / "scene"
    write(folder, views=4, model="SIMPLE_RADIAL")
    write_masks(folder, "view_{}.png.png")
    for view in parse(folder, white_bg=False).views:
        photo = read_photo(view)
        balls = (photo.image != torch.tensor([70, 80, 90])[:, None, None]).any(0)
        assert (balls != (photo.mask[0] > 0)).float().mean() < 0.01


def test_an_alpha_channel_is_no_mask(small):
    path = small / "images" / "view_0.png"
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    rgba.putalpha(100)
    rgba.save(path)
    photo = read_photo(parse(small).views[0])
    assert photo.mask is None and np.array_equal(photo.image.permute(1, 2, 0), np.asarray(rgba)[..., :3])


# ------------------------------------------------------------------ what is refused
def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / "sparse" / "0" / name, 150)


def long_name(folder: Path) -> None:
    in_text(folder, lambda lines: [line.replace(" view_", " " + 400 * "x") for line in lines])


SPOILT = {
    "no model": (lambda folder: shutil.rmtree(folder / "sparse"), ["expected a model of COLMAP", "none"]),
    "no cameras": (lambda folder: (folder / "sparse" / "0" / "cameras.txt").unlink(), ["expected a model of COLMAP"]),
    "cut off": (cut("images.txt"), ["images.txt", "damaged"]),
    "no photos": (lambda folder: shutil.rmtree(folder / "images"), ["images", "got 0 of 4"]),
    "a file for the folder": (
        lambda folder: (shutil.rmtree(folder / "images"), (folder / "images").write_text("x")),
        ["images", "got 0 of 4"],
    ),
    "a ring of links": (
        lambda folder: (shutil.rmtree(folder / "images"), (folder / "images").symlink_to(folder / "images")),
        ["images", "got 0 of 4"],
    ),
    "endless names": (long_name, ["got 0 of 4"]),
    "damaged photo": (lambda folder: (folder / "images" / "view_1.png").write_bytes(b"x"), ["view_1.png", "readable image"]),
    "folder for a photo": (
        lambda folder: ((folder / "images" / "view_1.png").unlink(), (folder / "images" / "view_1.png").mkdir()),
        ["view_1.png", "readable image"],
    ),
    "photo turned": (
        lambda folder: resize(folder / "images" / "view_1.png", (64, 48)),
        ["view_1.png", "expected 64x48", "got 48x64"],
    ),
    "photo cropped": (lambda folder: resize(folder / "images" / "view_1.png", (40, 64)), ["view_1.png", "expected 64x48", "got 64x40"]),
    "lens that is none": (
        lambda folder: in_text(folder, lambda lines: [f"{CAMERA} SIMPLE_RADIAL 64 48 72 32 24 1e9"], "cameras"),
        ["SIMPLE_RADIAL", "cannot be undistorted"],
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_scene_ends_in_one_message(small, case):
    spoil, words = SPOILT[case]
    spoil(small)
    with pytest.raises(InputError) as caught:
        parse(small)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_names_of_files_that_are_not_utf8_can_be_printed(small):
    shutil.copy(small / "images" / "view_0.png", os.fsencode(small / "images") + b"/\xff.png")
    (note,) = parse(small).notes
    assert note.endswith("\\udcff.png") and note.encode()


def test_nothing_is_written(small):
    write_masks(small, "view_{}.png")
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    for view in parse(small, downscale=2.0).views:
        read_photo(view)
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_a_reduction_to_nothing_is_refused(small):
    with pytest.raises(InputError, match="datasets.downscale: view view_0 has 64x48 pixels, got 200"):
        parse(small, downscale=200.0)


# ------------------------------------------------------------------ real scenes
@pytest.fixture(scope="module")
def real(shared: Path) -> Callable[..., Scene]:
    def go(place: str, **options) -> Scene:
        if not (shared / "data" / place).is_dir():
            pytest.skip(f"{place} is not among the shared data")
        return parse(shared / "data" / place, **options)

    return go


def test_real_counts(real):
    scene = real("colmap/alexander")
    assert len(scene.views) == 53 and all(view.lens is not None and view.mask is not None for view in scene.views)
    assert scene.notes[0] == "4 of 57 photos are not registered and are left out: DSC05096.jpg, DSC05097.jpg, DSC05102.jpg, DSC05103.jpg"
    assert len(scene.splits["test"]) == 5 and len(scene.with_splits(None, None).splits["train"]) == 43


def test_our_pinhole_photos_are_those_of_colmap(real):
    """COLMAP's undistorted workspace has the same poses; its photos, seen with our focal length, are ours."""
    ours, theirs = real("colmap/alexander", white_bg=False), real("colmap/alexander/dense", white_bg=False)
    assert [view.name for view in ours.views] == [view.name for view in theirs.views] and theirs.views[0].lens is None
    for a, b in list(zip(ours.views, theirs.views, strict=True))[::20]:
        assert torch.equal(a.camera.R, b.camera.R) and torch.equal(a.camera.T, b.camera.T)
        half = (256 * b.camera.focal_length / a.camera.focal_length)[0].tolist()
        box = (256 - half[0], 256 - half[1], 256 + half[0], 256 + half[1])  # what ours shows of theirs
        with Image.open(b.image) as picture:
            expected = np.asarray(picture.resize((512, 512), Image.Resampling.BILINEAR, box=box)).astype(float)
        image = read_photo(a).image.permute(1, 2, 0).numpy().astype(float)
        error, shifted = np.abs(image - expected).mean(), np.abs(image[:, 2:] - expected[:, :-2]).mean()
        assert error < 0.5 * shifted


@pytest.mark.parametrize(
    ("place", "options"),
    [("colmap/alexander", {}), ("colmap/alexander/dense", {}), ("llff/fern", {"downscale": 8.0}), ("llff/fern", {"downscale": 16.0})],
)
def test_colours_of_real_points_are_those_of_the_photos(real, place, options):
    """The points that a photo observes, better than half a pixel beside in every direction, far better than four: lens, pose and pixels belong together."""
    scene = real(place, **options)
    points = read_points(scene.carried_points)
    images = {Path(image.name).stem: image for image in ColmapModel.read(scene.carried_points.parent).images}
    shifts = [(0.0, 0.0), *((du * k, dv * k) for k in (0.5, 4.0) for du, dv in ((1, 0), (-1, 0), (0, 1), (0, -1)))]
    errors = []
    for view in scene.views[::5]:
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
def test_real_points_are_where_the_photos_observe_them(real, place):
    """Half of them within half a pixel, as COLMAP itself has it (0.3 pixels); in photos with distortion by way of the lens."""
    scene = real(place)
    points = read_points(scene.carried_points)
    model = ColmapModel.read(scene.carried_points.parent)
    index = {number: k for k, number in enumerate(points.number.tolist())}
    errors = []
    for image in model.images[::5]:
        seen = image.point >= 0
        xyz = points.cloud.xyz.double()[[index[number] for number in image.point[seen].tolist()]]
        xyz_cam = xyz @ image.world_to_cam[:3, :3].T + image.world_to_cam[:3, 3]
        at = model.lenses[image.camera].shown_at((xyz_cam[:, :2] / xyz_cam[:, 2:]).numpy())
        errors.append(np.linalg.norm(at - image.uv_px[seen], axis=1))
    assert np.median(np.concatenate(errors)) < 0.5
