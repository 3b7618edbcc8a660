"""LLFF scenes: cameras that agree with the pictures, reduced photos, notes, points that come along, what is refused; and real data."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data.colmap_model import ColmapModel, read_points
from npbgpp.data.images import read_photo
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.parsers.llff import parse_llff

from ..helpers.layouts.llff import write
from ..helpers.scenes import central_intrinsics, look_at_origin, projection_errors, save_picture

SIZE = (48, 64)


def parse(folder: Path, **choices) -> Scene:
    return parse_llff(folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), **choices)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight views that may be spoilt."""
    write(tmp_path / "trex")
    return tmp_path / "trex"


def reduce_photos(source: Path, target: Path, size: tuple[int, int]) -> None:
    for photo in sorted(source.iterdir()):
        with Image.open(photo) as image:
            save_picture(target / photo.name, np.asarray(image.resize((size[1], size[0]), Image.Resampling.BOX)))


def test_cameras_are_those_that_drew_the_photos(folder):
    scene = parse(folder)
    poses = torch.from_numpy(np.stack([look_at_origin(2 * math.pi * k / 8) for k in range(8)])).float()
    focal_length = torch.tensor([[central_intrinsics(SIZE)[0, 0]] * 2])
    for k, view in enumerate(scene.views):
        expected = Cameras.from_opencv(poses[k : k + 1], focal_length, torch.tensor([[32.0, 24.0]]), SIZE)
        for found, wanted in (
            (view.camera.R, expected.R),
            (view.camera.T, expected.T),
            (view.camera.principal_point, expected.principal_point),
        ):
            torch.testing.assert_close(found.float(), wanted, rtol=0, atol=1e-5)
        assert torch.equal(view.camera.focal_length.float(), focal_length.float()) and view.camera.image_size == SIZE


def test_points_project_to_where_they_are_drawn(folder):
    scene = parse(folder)
    error = projection_errors(scene)
    assert error.abs().max() < 0.5 and (error.mean(0).abs() < 0.1).all()
    assert [view.name for view in scene.views] == [f"photo_{k:03}" for k in range(8)] and scene.notes == ()
    assert not any(view.resized for view in scene.views) and len(scene.cloud.read()) == 400


def test_split(tmp_path):
    write(tmp_path / "long", views=21, size=(12, 16))
    assert parse(tmp_path / "long").splits == {"train": tuple(range(21)), "val": (4, 12, 20), "test": (0, 8, 16)}
    write(tmp_path / "short", views=2, size=(12, 16))
    assert parse(tmp_path / "short").splits == {"train": (0, 1), "val": (), "test": (0,)}


def test_photos_are_in_the_order_of_their_characters(folder):
    """As the rows are: 10 comes before 2."""
    for k, photo in enumerate(sorted((folder / "images").iterdir())):
        photo.rename(photo.with_name(f"{(2 + 8 * k) if k < 1 else k + 2}.png"))
    assert [view.name for view in parse(folder).views] == ["2", "3", "4", "5", "6", "7", "8", "9"]
    (folder / "images" / "9.png").rename(folder / "images" / "10.png")
    assert [view.name for view in parse(folder).views] == ["10", "2", "3", "4", "5", "6", "7", "8"]


def test_photos_reduced_since_then_keep_their_size(tmp_path):
    """Whatever is asked for up to that: the focal length follows from the photo, as fern needs it."""
    folder = tmp_path / "scene"
    write(folder, size=(96, 128))
    reduce_photos(folder / "images", folder / "half", (48, 64))
    shutil.rmtree(folder / "images")
    (folder / "half").rename(folder / "images")
    for downscale in (1.0, 1.5, 2.0):
        scene = parse(folder, downscale=downscale)
        assert {view.camera.image_size for view in scene.views} == {(48, 64)} and not any(view.resized for view in scene.views)
        assert scene.views[3].camera.focal_length.tolist() == [[72.0, 72.0]] and projection_errors(scene).abs().max() < 0.5
    quarter = parse(folder, downscale=4.0)
    assert quarter.views[0].resized and quarter.views[0].camera.image_size == (24, 32)


def test_downscale_takes_the_reduced_photos_where_there_are_some(tmp_path):
    folder = tmp_path / "scene"
    write(folder, size=(96, 128))
    resampled = parse(folder, downscale=2.0)
    reduce_photos(folder / "images", folder / "images_2", SIZE)
    stored = parse(folder, downscale=2.0)
    assert all(view.image.parent.name == "images" and view.resized for view in resampled.views)
    assert all(view.image.parent.name == "images_2" and not view.resized for view in stored.views)
    for scene in (resampled, stored):
        assert scene.views[0].camera.principal_point.tolist() == [[32.0, 24.0]] and scene.views[0].camera.image_size == SIZE
        assert projection_errors(scene).abs().max() < 0.5
    shutil.rmtree(folder / "images")
    assert len(parse(folder, downscale=2.0).views) == 8
    with pytest.raises(InputError, match=r"images: expected the folder.*datasets\.downscale=<n>"):
        parse(folder)


def write_model(folder: Path, lens: str) -> None:
    """A COLMAP model in text with one photo and two points."""
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(f"1 {lens}\n")
    (folder / "images.txt").write_text("1 1 0 0 0 0 0 3 1 photo_000.png\n\n")
    (folder / "points3D.txt").write_text("1 0.5 0 0 255 0 0 0.1\n2 0 0.5 0 0 255 0 0.1\n")


def test_points_of_a_model_come_along(folder):
    assert parse(folder).carried_points is None
    write_model(folder / "sparse" / "0", "PINHOLE 64 48 72 72 32 24")
    scene = parse(folder)
    assert scene.carried_points == folder / "sparse" / "0" / "points3D.txt" and scene.notes == ()
    (folder / "sparse" / "0" / "points3D.txt").unlink()
    assert parse(folder).carried_points is None


def test_distortion_that_is_ignored_is_told(folder):
    write_model(folder / "sparse" / "0", "SIMPLE_RADIAL 64 48 72 32 24 0.02")
    (note,) = parse(folder).notes
    assert all(word in note for word in ("SIMPLE_RADIAL", "72, 32, 24, 0.02", "datasets=colmap_one_scene"))


def set_rows(change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Path], None]:
    """Replaces the rows by what the function returns, or by what it does to them."""

    def spoil(folder: Path) -> None:
        rows = np.load(folder / "poses_bounds.npy")
        changed = change(rows)
        np.save(folder / "poses_bounds.npy", rows if changed is None else changed)

    return spoil


def set_entry(column: int, value: float) -> Callable[[Path], None]:
    return set_rows(lambda rows: rows.__setitem__((5, column), value))


@pytest.mark.parametrize(("near", "words"), [(0.25, ["0.25 scene units", "system.near=0.12"]), (0.0, ["states 0 ", "system.near"])])
def test_a_near_bound_that_the_usual_plane_cuts_off_is_told(folder, near, words):
    set_entry(15, near)(folder)
    (note,) = parse(folder).notes
    assert all(word in note for word in words), note


def scaled(rows: np.ndarray) -> None:
    rows[5, [0, 1, 2, 5, 6, 7, 10, 11, 12]] *= 1.1


def mirrored(rows: np.ndarray) -> None:
    rows[5, [0, 5, 10]] *= -1


def several_arrays(folder: Path) -> None:
    with (folder / "poses_bounds.npy").open("wb") as file:
        np.savez(file, a=1)


def loop(folder: Path) -> None:
    shutil.rmtree(folder / "images")
    (folder / "images").symlink_to(folder / "images")


def other_bytes(folder: Path) -> None:
    os.rename(folder / "images" / "photo_003.png", os.fsencode(folder / "images") + b"/photo_\xff.png")


def cut(folder: Path) -> None:
    save_picture(folder / "images" / "photo_003.png", np.zeros((48, 60, 3), dtype=np.uint8))


SPOILT = {
    "no folder": (lambda folder: shutil.rmtree(folder / "images"), ["images", "No such file"]),
    "a loop of links": (loop, ["images", "symbolic links"]),
    "no photos": (lambda folder: [p.unlink() for p in (folder / "images").iterdir()], ["images", "got none"]),
    "a photo less": (lambda folder: (folder / "images" / "photo_003.png").unlink(), ["poses_bounds.npy", "7 photos", "got 8"]),
    "damaged photo": (lambda folder: (folder / "images" / "photo_003.png").write_bytes(b"x"), ["photo_003.png", "readable image"]),
    "a name twice": (
        lambda folder: (folder / "images" / "photo_003.png").rename(folder / "images" / "photo_002.jpg"),
        ["photo_002.png", "photo_002.jpg", "name of its own"],
    ),
    "a name of other bytes": (other_bytes, ["photo_\\udcff.png", "UTF-8"]),
    "cut photo": (cut, ["photo_003.png", "64x48", "60x48"]),
    "no cameras": (lambda folder: (folder / "poses_bounds.npy").unlink(), ["poses_bounds.npy", "no such file"]),
    "no npy": (lambda folder: (folder / "poses_bounds.npy").write_bytes(b"x"), ["poses_bounds.npy", "damaged"]),
    "cut off": (lambda folder: os.truncate(folder / "poses_bounds.npy", 300), ["poses_bounds.npy", "damaged"]),
    "pickled": (set_rows(lambda rows: rows.astype(object)), ["poses_bounds.npy", "damaged or other"]),
    "several arrays": (several_arrays, ["poses_bounds.npy", "several arrays"]),
    "whole numbers": (set_rows(lambda rows: rows.astype(np.int64)), ["(N, 17)", "int64"]),
    "without bounds": (set_rows(lambda rows: rows[:, :15]), ["(N, 17)", "(8, 15)"]),
    "a row less": (set_rows(lambda rows: rows[:-1]), ["8 photos", "got 7"]),
    "not finite": (set_entry(3, np.nan), ["row 5", "finite"]),
    "far beyond": (set_entry(3, 1e38), ["row 5", "usual size"]),
    "bound not finite": (set_entry(16, np.inf), ["row 5", "finite"]),
    "height of zero": (set_entry(4, 0.0), ["row 5", "whole pixels", "0.0"]),
    "broken width": (set_entry(9, 64.5), ["row 5", "whole pixels", "64.5"]),
    "huge width": (set_entry(9, 1e9), ["row 5", "whole pixels"]),
    "no focal length": (set_entry(14, 0.0), ["row 5", "positive focal length"]),
    "scaled": (set_rows(scaled), ["row 5", "rigid", "orthonormal"]),
    "mirrored": (set_rows(mirrored), ["row 5", "mirror"]),
    "damaged model": (lambda folder: broken_model(folder / "sparse"), ["cameras.txt", "damaged"]),
}


def broken_model(folder: Path) -> None:
    write_model(folder, "PINHOLE 64 48 72 72 32 24")
    (folder / "cameras.txt").write_text("1 PINHOLE 64 x\n")


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_scene_ends_in_one_message(folder, case):
    spoil, words = SPOILT[case]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        parse(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_too_small_is_refused(folder):
    with pytest.raises(InputError, match=r"datasets\.downscale: view photo_000"):
        parse(folder, downscale=500.0)


def test_hidden_and_other_files_are_ignored_and_left_alone(folder):
    for name in ("._photo_000.png", ".DS_Store", "read.txt"):
        (folder / "images" / name).write_bytes(b"\0\5\26\7")
    before = sorted(folder.rglob("*"))
    assert len(parse(folder).views) == 8 and sorted(folder.rglob("*")) == before


# ------------------------------------------------------------------ a real scene
@pytest.fixture(scope="module")
def fern(shared) -> Path:
    folder = shared / "data" / "llff" / "fern"
    if not folder.is_dir():
        pytest.skip("fern is not among the shared data")
    return folder


@pytest.mark.parametrize(("downscale", "names"), [(1.0, "IMG_40"), (4.0, "IMG_40"), (8.0, "image0")])
def test_real_sizes(fern, downscale, names):
    """The file states 4032x3024, both folders hold 504x378."""
    scene = parse(fern, downscale=downscale)
    assert len(scene.views) == 20 and all(view.name.startswith(names) and not view.resized for view in scene.views)
    for view in scene.views:
        camera = view.camera
        assert camera.image_size == (378, 504) and camera.principal_point.tolist() == [[252.0, 189.0]]
        assert camera.focal_length[0].tolist() == pytest.approx([3260.52633 / 8] * 2, rel=1e-6)
    assert scene.splits["test"] == (0, 8, 16) and scene.splits["val"] == (4, 12)
    (note,) = scene.notes
    assert "SIMPLE_RADIAL" in note and scene.carried_points == fern / "sparse" / "0" / "points3D.bin"


def test_real_poses_are_those_of_the_model_beside_them(fern):
    views, model = parse(fern).views, ColmapModel.read(fern / "sparse" / "0")
    assert [Path(image.name).stem for image in model.images] == [view.name for view in views]
    for view, image in zip(views, model.images, strict=True):
        found = view.camera.to_opencv()[0].double()
        torch.testing.assert_close(found[:3, :3], image.world_to_cam[:3, :3], rtol=0, atol=1e-5)
        centre = -image.world_to_cam[:3, :3].T @ image.world_to_cam[:3, 3]
        torch.testing.assert_close(view.camera.centers()[0].double(), centre, rtol=0, atol=1e-4)


def test_colours_of_the_real_points_are_those_of_the_photo(fern):
    """Which the model's own poses do not show, they were computed from the file: with another photo the colours differ more."""
    scene = parse(fern)
    cloud = read_points(scene.carried_points).cloud

    def error(camera: Cameras, photo_of: int) -> float:
        image = read_photo(scene.views[photo_of]).image
        uv, depth = camera.project(cloud.xyz)
        column, row = uv[0].floor().long().unbind(1)
        inside = (depth[0] > 0) & (column >= 0) & (column < 504) & (row >= 0) & (row < 378)
        assert inside.sum() > 5000
        return (image[:, row[inside], column[inside]].float() - cloud.rgb_u8[inside].T.float()).abs().mean().item()

    for k in (0, 9, 19):
        assert error(scene.views[k].camera, k) < 0.8 * error(scene.views[k].camera, (k + 10) % 20)
