"""ScanNet scenes, prepared and exported: principal points, order of photos, splits, depth images, lost poses, notes; and a real room."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data import CloudFile, Scene, View, read_photo
from npbgpp.errors import InputError
from npbgpp.parsers.scannet import parse_scannet, spread_splits

from ..helpers.damage import put
from ..helpers.layouts import scannet_raw
from ..helpers.scenes import (
    POINTS,
    RADIUS,
    central_intrinsics,
    colour_error,
    look_at_origin,
    mean_intrinsics,
    projection_errors,
    save_picture,
    write_scannet,
)

VIEWS = 8


def parse(folder: Path, **options) -> Scene:
    return parse_scannet(folder, folder, folder.name, CloudFile(folder / "full.ply"), **options)


@pytest.fixture
def raw(drawn, tmp_path: Path) -> Path:
    """An exported scene that may be damaged."""
    return Path(shutil.copytree(drawn["scannet_raw"], tmp_path / "raw"))


@pytest.mark.parametrize("prepared", [True, False])
def test_principal_point_is_central_unless_exact(tmp_path, prepared):
    if prepared:
        write_scannet(tmp_path, views=4, principal_point=(36.5, 33.0))
        centre, offset = [40.0, 30.0], [-3.0, 3.5]
    else:
        K = central_intrinsics((48, 64)) + np.array([[0.0, 0.0, 2.0], [0.0, 0.0, -1.5], [0.0, 0.0, 0.0]])
        scannet_raw.write(tmp_path, 4, K=K)
        centre, offset = [32.0, 24.0], [2.0, -1.5]
    exact, authors = parse(tmp_path, intrinsics="exact"), parse(tmp_path)
    error = projection_errors(exact)
    assert error.abs().max() < 0.6 and (error.mean(0).abs() < 0.15).all()
    for view in authors.views:
        assert view.camera.principal_point.tolist() == [centre]
        assert torch.equal(view.camera.to_authors_ndc()[1], torch.zeros(1, 2))
    torch.testing.assert_close(projection_errors(authors).mean(0).float(), torch.tensor(offset), rtol=0, atol=0.15)
    assert prepared or authors.views[0].depth.camera.principal_point.tolist() == [[16.0, 12.0]]


def test_normalised_intrinsics_are_those_of_the_original(tmp_path):
    """2 f / (s - 1) with the short side s = 60."""
    write_scannet(tmp_path, views=2)
    fcl, _ = parse(tmp_path).views[0].camera.to_authors_ndc()
    torch.testing.assert_close(fcl[0], torch.from_numpy(mean_intrinsics((60, 80)).diagonal()[:2] * 2 / 59).float())


def test_photos_are_in_numerical_order(drawn):
    """12 comes after 3."""
    for name in ("scannet", "scannet_raw"):
        scene = parse(drawn[name])
        assert [view.name for view in scene.views] == [str(3 * k) for k in range(VIEWS)] and scene.notes == ()
    assert [view.depth.path.name for view in scene.views] == [f"{3 * k}.png" for k in range(VIEWS)]


@pytest.mark.parametrize(
    ("count", "test", "val"),
    [
        (100, (10, 18, 27, 36, 45, 54, 63, 72, 81, 90), (5, 13, 22, 31, 40, 49, 58, 67, 76, 85)),
        (110, (10, 20, 30, 40, 50, 60, 70, 80, 90, 100), (5, 15, 25, 35, 45, 55, 65, 75, 85, 95)),
        (59, (10, 14, 18, 23, 27, 31, 36, 40, 44, 49), (5, 9, 13, 22, 26, 35, 39)),
        (20, (10,), (5,)),
        (12, (10,), (5,)),
        (10, (), ()),
    ],
)
def test_splits(count, test, val):
    """Evenly spaced, without a view in both or outside of a short scene."""
    assert spread_splits(count) == {"train": tuple(range(count)), "val": val, "test": test}


def test_photos_of_another_size_are_resampled(tmp_path):
    write_scannet(tmp_path, views=4, photo_size=(121, 159))
    scene = parse(tmp_path)
    error = projection_errors(scene)
    assert all(view.resized for view in scene.views) and read_photo(scene.views[0]).image.shape == (3, 60, 80)
    assert error.abs().max() < 0.6 and (error.mean(0).abs() < 0.15).all()
    with Image.open(scene.views[3].image) as image:
        expected = np.asarray(image.resize((80, 60), Image.Resampling.BILINEAR))
    assert np.array_equal(read_photo(scene.views[3]).image.permute(1, 2, 0), expected)


class Makes:
    """Pickles to the creation of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_would_run_code_is_refused(drawn, tmp_path):
    folder = Path(shutil.copytree(drawn["scannet"], tmp_path / "scene"))
    np.save(folder / "intrinsics.npy", np.array({"K": np.eye(3), "height": 60, "width": Makes(tmp_path / "made")}, dtype=object))
    with pytest.raises(InputError, match=r"intrinsics\.npy.*mkdir"):
        parse(folder)
    assert not (tmp_path / "made").exists()
    np.load(folder / "intrinsics.npy", allow_pickle=True)  # as the original reads it
    assert (tmp_path / "made").exists(), "the file is malicious indeed"


# ------------------------------------------------------------------ exported scenes
def surface_of(view: View) -> torch.Tensor:
    """(n, 3) world points of the depth image of a view."""
    depth_map = view.depth
    with Image.open(depth_map.path) as image:
        values = torch.from_numpy(np.asarray(image).astype(np.float32))
    row, column = values.nonzero().unbind(1)
    z = values[row, column] * depth_map.unit
    uv_px = torch.stack([column, row], 1) + 0.5
    xy = (depth_map.camera.principal_point - uv_px) / depth_map.camera.focal_length * z[:, None]
    return (torch.cat([xy, z[:, None]], 1) - depth_map.camera.T) @ depth_map.camera.R[0].T


def test_depth_images_lie_on_the_surfaces_of_the_balls(raw):
    """To the millimetre that they are rounded to."""
    for view in parse(raw).views:
        points = surface_of(view)
        distance = (torch.cdist(points, torch.from_numpy(POINTS).float()).amin(1) - RADIUS).abs()
        assert len(points) > 20 and distance.max() < 1e-3


def test_depth_camera_beside_the_colour_camera(raw):
    """Poses are those of the depth camera, the extrinsic maps it to the colour camera."""
    before = parse(raw)
    to_photo = np.eye(4)
    to_photo[:3, :3] = look_at_origin(0.1)[:3, :3] @ look_at_origin(0.0)[:3, :3].T
    to_photo[:3, 3] = (0.04, -0.01, 0.02)
    np.savetxt(raw / "intrinsic" / "extrinsic_depth.txt", to_photo)
    for photo in (raw / "pose").iterdir():
        np.savetxt(photo, np.loadtxt(photo) @ to_photo)
    after = parse(raw)
    for old, new in zip(before.views, after.views, strict=True):
        torch.testing.assert_close(new.camera.to_opencv(), old.camera.to_opencv(), rtol=0, atol=1e-5)
        moved = new.depth.camera.to_opencv()[0].double()
        torch.testing.assert_close(torch.from_numpy(to_photo) @ moved, old.depth.camera.to_opencv()[0].double(), rtol=0, atol=1e-5)
    for path in (raw / "intrinsic").glob("extrinsic_*"):
        path.unlink()
    for photo in (raw / "pose").iterdir():
        np.savetxt(photo, np.loadtxt(photo) @ np.linalg.inv(to_photo))
    for old, new in zip(before.views, parse(raw).views, strict=True):
        torch.testing.assert_close(new.camera.T, old.camera.T, rtol=0, atol=1e-5)


def test_photos_with_lost_tracking_are_left_out(raw):
    whole = parse(raw)
    for number in (3, 12, 15):
        put(f"pose/{number}.txt", "-inf -inf -inf -inf\n" * 4)(raw)
    scene = parse(raw)
    assert [view.name for view in scene.views] == ["0", "6", "9", "18", "21"]
    by_name = {view.name: view for view in whole.views}
    for view in scene.views:
        assert torch.equal(view.camera.R, by_name[view.name].camera.R) and torch.equal(view.camera.T, by_name[view.name].camera.T)
        assert view.depth.path == by_name[view.name].depth.path
        assert torch.equal(view.depth.camera.T, by_name[view.name].depth.camera.T)
    assert len(scene.notes) == 1 and "3 of 8 photos" in scene.notes[0] and "3, 12, 15" in scene.notes[0]
    assert scene.splits["train"] == (0, 1, 2, 3, 4)


def test_intrinsics_of_another_size_are_noted(raw):
    """Principal points farther than a tenth of the width from the centre."""
    K = np.loadtxt(raw / "intrinsic" / "intrinsic_color.txt")
    for centre, noted in ((28.8, False), (28.7, False), (28.1, True), (34.6, False), (63.5, True)):
        K[0, 2] = centre
        np.savetxt(raw / "intrinsic" / "intrinsic_color.txt", K)
        notes = parse(raw).notes
        assert len(notes) == int(noted)
    assert "intrinsic_color.txt" in notes[0] and "128" in notes[0] and "64" in notes[0]


def test_depth_images_are_optional(raw):
    (raw / "depth" / "9.png").unlink()
    scene = parse(raw)
    assert [view.depth is None for view in scene.views] == [k == 3 for k in range(VIEWS)]
    assert len(scene.notes) == 1 and "1 of 8" in scene.notes[0] and scene.notes[0].endswith(" 9")
    for path in list((raw / "depth").iterdir()):
        path.unlink()
    save_picture(raw / "depth" / "99.png", np.zeros((24, 32), dtype=np.uint16))
    scene = parse(raw)
    assert not any(view.depth for view in scene.views) and "8 of 8" in scene.notes[0]
    (raw / "intrinsic" / "intrinsic_depth.txt").unlink()
    (note,) = parse(raw).notes
    assert "intrinsic_depth.txt" in note
    shutil.rmtree(raw / "depth")
    assert len(parse(raw).views) == VIEWS and parse(raw).notes == ()


# ------------------------------------------------------------------ a real room
@pytest.fixture(scope="module")
def kitchen(shared) -> dict[str, Scene]:
    """The same room, exported and prepared."""
    folders = {name: shared / "data" / "scannet_like" / name / "kitchen0000_00" for name in ("raw", "npbgpp")}
    if not all(folder.is_dir() for folder in folders.values()):
        pytest.skip("the room in the layouts of ScanNet is not among the shared data")
    cloud = CloudFile(folders["npbgpp"] / "full.ply")
    return {name: parse_scannet(folder, folder, "kitchen0000_00", cloud) for name, folder in folders.items()}


def test_both_layouts_of_the_real_room_give_the_same_scene(kitchen):
    """To the six decimals of the text files."""
    raw, prepared = kitchen["raw"], kitchen["npbgpp"]
    assert raw.splits == prepared.splits and raw.notes == prepared.notes == ()
    assert [view.name for view in raw.views] == [view.name for view in prepared.views] == [str(17 * k) for k in range(59)]
    camera = prepared.views[0].camera
    assert camera.image_size == (240, 320) and camera.principal_point.tolist() == [[160.0, 120.0]]
    assert camera.focal_length.tolist() == [[262.5, 262.5]] and len(prepared.with_splits(None, None).splits["train"]) == 42
    for ours, theirs in zip(raw.views, prepared.views, strict=True):
        assert torch.equal(ours.camera.focal_length, theirs.camera.focal_length)
        assert torch.equal(ours.camera.principal_point, theirs.camera.principal_point)
        torch.testing.assert_close(ours.camera.R, theirs.camera.R, rtol=0, atol=3e-6)
        torch.testing.assert_close(ours.camera.T, theirs.camera.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("index", [0, 55])
def test_real_cloud_fits_photos_and_depth_images(kitchen, index):
    """Colours of points are those of their own photo; half of the depth points are within the voxels of the cloud, 12 mm."""
    scene, other = kitchen["raw"], (index + 20) % 59
    cloud = scene.cloud.read()
    assert len(cloud) == 100_000
    assert colour_error(scene, cloud, index, index) < 0.7 * colour_error(scene, cloud, index, other)
    points = surface_of(scene.views[index])[::197]
    assert torch.cdist(points, cloud.xyz).amin(1).median() < 0.02
    moved, camera = scene.views[index].depth.camera.view(points)[0], scene.views[other].camera
    assert torch.cdist((moved - camera.T) @ camera.R[0].T, cloud.xyz).amin(1).median() > 0.04
