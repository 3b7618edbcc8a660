"""LLFF scenes: order of photos, splits, downscaled photos, notes, sparse points; and a real scene."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data import CloudFile, ColmapModel, Scene, read_points
from npbgpp.parsers.llff import parse_llff

from ..helpers.damage import entry
from ..helpers.layouts.llff import BOUNDS, write
from ..helpers.scenes import colour_error, projection_errors, save_picture

SIZE = (48, 64)


def parse(folder: Path, **choices) -> Scene:
    return parse_llff(folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), **choices)


@pytest.fixture
def folder(drawn, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn["llff"], tmp_path / "trex"))


def reduce_photos(source: Path, target: Path, size: tuple[int, int]) -> None:
    for photo in sorted(source.iterdir()):
        with Image.open(photo) as image:
            save_picture(target / photo.name, np.asarray(image.resize((size[1], size[0]), Image.Resampling.BOX)))


def test_views_bounds_and_splits(tmp_path, drawn):
    scene = parse(drawn["llff"])
    assert [view.name for view in scene.views] == [f"photo_{k:03}" for k in range(8)] and scene.notes == ()
    assert {view.bounds for view in scene.views} == {BOUNDS}
    write(tmp_path, views=21, size=(12, 16))
    assert parse(tmp_path).splits == {"train": tuple(range(21)), "val": (4, 12, 20), "test": (0, 8, 16)}


def test_photos_are_in_lexicographic_order(folder):
    """As the rows are: 10 comes before 2."""
    for k, photo in enumerate(sorted((folder / "images").iterdir())):
        photo.rename(photo.with_name(f"{k + 2}.png"))
    (folder / "images" / "9.png").rename(folder / "images" / "10.png")
    assert [view.name for view in parse(folder).views] == ["10", "2", "3", "4", "5", "6", "7", "8"]


def test_photos_downscaled_after_calibration_keep_their_size(tmp_path):
    """The focal length follows from the photo, as fern needs it."""
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


def test_downscale_uses_downscaled_photos(tmp_path):
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


def write_model(folder: Path, lens: str) -> None:
    """A COLMAP model in text with one photo and two points."""
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(f"1 {lens}\n")
    (folder / "images.txt").write_text("1 1 0 0 0 0 0 3 1 photo_000.png\n\n")
    (folder / "points3D.txt").write_text("1 0.5 0 0 255 0 0 0.1\n2 0 0.5 0 0 255 0 0.1\n")


def test_sparse_points_and_distortion_of_a_model(folder):
    assert parse(folder).carried_points is None
    model = folder / "sparse" / "0"
    write_model(model, "PINHOLE 64 48 72 72 32 24")
    scene = parse(folder)
    assert scene.carried_points == model / "points3D.txt" and scene.notes == ()
    (model / "points3D.txt").unlink()
    assert parse(folder).carried_points is None
    (model / "cameras.txt").write_text("1 SIMPLE_RADIAL 64 48 72 32 24 0.02\n")
    (note,) = parse(folder).notes
    assert "SIMPLE_RADIAL" in note and "72, 32, 24, 0.02" in note


@pytest.mark.parametrize(("near", "values"), [(0.25, ["0.25", "system.near=0.12"]), (0.0, ["0 ", "system.near"])])
def test_near_bounds_before_the_default_near_plane_are_noted(folder, near, values):
    entry("poses_bounds.npy", (5, 15), near)(folder)
    (note,) = parse(folder).notes
    assert all(value in note for value in values), note


# ------------------------------------------------------------------ a real scene
@pytest.fixture(scope="module")
def fern(shared) -> Path:
    folder = shared / "data" / "llff" / "fern"
    if not folder.is_dir():
        pytest.skip("fern is not among the shared data")
    return folder


@pytest.mark.parametrize(("downscale", "names"), [(1.0, "IMG_40"), (8.0, "image0")])
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


def test_real_poses_are_those_of_the_model_and_points_have_the_colours_of_the_photos(fern):
    """The poses of the model were computed from the file: colours check both."""
    scene, model = parse(fern), ColmapModel.read(fern / "sparse" / "0")
    assert [Path(image.name).stem for image in model.images] == [view.name for view in scene.views]
    for view, image in zip(scene.views, model.images, strict=True):
        found = view.camera.to_opencv()[0].double()
        torch.testing.assert_close(found[:3, :3], image.world_to_cam[:3, :3], rtol=0, atol=1e-5)
        centre = -image.world_to_cam[:3, :3].T @ image.world_to_cam[:3, 3]
        torch.testing.assert_close(view.camera.centers()[0].double(), centre, rtol=0, atol=1e-4)
    cloud = read_points(scene.carried_points).cloud
    for k in (0, 9, 19):
        assert colour_error(scene, cloud, k, k) < 0.8 * colour_error(scene, cloud, k, (k + 10) % 20)
