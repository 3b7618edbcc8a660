"""Exports of ScanNet's own tools: cameras and depth maps that agree with the scene, lost poses, notes, what is refused; and real data."""

import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene, View
from npbgpp.errors import InputError
from npbgpp.parsers import LAYOUTS

from ..helpers.layouts import scannet_raw
from ..helpers.scenes import POINTS, RADIUS, central_intrinsics, look_at_origin, projection_errors, save_picture

VIEWS = 8


def parse(folder: Path, **options) -> Scene:
    return LAYOUTS["scannet"].parse(folder, folder, folder.name, CloudFile(folder / "full.ply"), **options)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Eight views that may be spoilt."""
    folder = tmp_path / "scene0001_00"
    scannet_raw.write(folder, VIEWS)
    return folder


@pytest.mark.parametrize("intrinsics", ["authors", "exact"])
def test_points_project_to_where_they_are_drawn(small, intrinsics):
    error = projection_errors(parse(small, intrinsics=intrinsics))
    assert error.abs().max() < 0.5 and (error.mean(0).abs() < 0.1).all()


def test_the_principal_point_is_dropped_unless_asked_for(tmp_path):
    K = central_intrinsics((48, 64)) + np.array([[0.0, 0.0, 2.0], [0.0, 0.0, -1.5], [0.0, 0.0, 0.0]])
    scannet_raw.write(tmp_path / "scene", VIEWS, K=K)
    exact, authors = parse(tmp_path / "scene", intrinsics="exact"), parse(tmp_path / "scene")
    assert exact.views[0].camera.principal_point.tolist() == [[34.0, 22.5]]
    assert authors.views[0].camera.principal_point.tolist() == [[32.0, 24.0]]
    error = projection_errors(exact)
    assert error.abs().max() < 0.5 and (error.mean(0).abs() < 0.1).all()
    assert authors.views[0].depth.camera.principal_point.tolist() == [[16.0, 12.0]]


@pytest.mark.parametrize("layout", ["scannet", "dtu", "h3ds", "nerf_synthetic"])
@pytest.mark.parametrize("size", [(48, 64), (64, 64)])
def test_cameras_are_those_of_the_same_scene_in_other_layouts(tmp_path, layout, size):
    scannet_raw.write(tmp_path / "raw", VIEWS, size)
    importlib.import_module(f"..helpers.layouts.{layout}", __package__).write(tmp_path / layout, VIEWS, size)
    other = LAYOUTS[layout].parse(tmp_path / layout, tmp_path / layout, layout, CloudFile(tmp_path / layout / "full.ply"))
    for k, (ours, theirs) in enumerate(zip(parse(tmp_path / "raw").views, other.views, strict=True)):
        world_to_cam = torch.from_numpy(look_at_origin(2 * np.pi * k / VIEWS)).float()
        for view in (ours, theirs):
            torch.testing.assert_close(view.camera.to_opencv()[0], world_to_cam, rtol=0, atol=1e-5)
            torch.testing.assert_close(view.camera.focal_length.float(), torch.full((1, 2), 1.5 * min(size)), rtol=1e-5, atol=0)
            torch.testing.assert_close(view.camera.principal_point.float(), torch.tensor([[size[1] / 2, size[0] / 2]]), rtol=1e-5, atol=0)
        torch.testing.assert_close(ours.camera.centers(), theirs.camera.centers(), rtol=0, atol=1e-5)


def surface_of(view: View) -> torch.Tensor:
    """(n, 3) world points that the depth map of a view shows."""
    depth_map = view.depth
    with Image.open(depth_map.path) as image:
        values = torch.from_numpy(np.asarray(image).astype(np.float32))
    assert values.shape == depth_map.camera.image_size
    row, column = values.nonzero().unbind(1)
    z = values[row, column] * depth_map.unit
    uv_px = torch.stack([column, row], 1) + 0.5
    xy = (depth_map.camera.principal_point - uv_px) / depth_map.camera.focal_length * z[:, None]
    return (torch.cat([xy, z[:, None]], 1) - depth_map.camera.T) @ depth_map.camera.R[0].T


def distance_from_surface(points: torch.Tensor) -> torch.Tensor:
    return (torch.cdist(points, torch.from_numpy(POINTS).float()).amin(1) - RADIUS).abs()


def test_depth_maps_show_the_surfaces_of_the_balls(small):
    """To the millimetre that they are rounded to."""
    for view in parse(small).views:
        points = surface_of(view)
        assert len(points) > 20 and distance_from_surface(points).max() < 1e-3


def test_the_depth_camera_may_stand_beside_the_one_of_the_photos(small):
    """Poses are those of the depth camera, the extrinsic leads from it to the photos'."""
    before = parse(small)
    to_photo = np.eye(4)
    to_photo[:3, :3] = look_at_origin(0.1)[:3, :3] @ look_at_origin(0.0)[:3, :3].T
    to_photo[:3, 3] = (0.04, -0.01, 0.02)
    np.savetxt(small / "intrinsic" / "extrinsic_depth.txt", to_photo)
    for photo in (small / "pose").iterdir():
        np.savetxt(photo, np.loadtxt(photo) @ to_photo)
    after = parse(small)
    for old, new in zip(before.views, after.views, strict=True):
        torch.testing.assert_close(new.camera.to_opencv(), old.camera.to_opencv(), rtol=0, atol=1e-5)
        moved = new.depth.camera.to_opencv()[0].double()
        torch.testing.assert_close(torch.from_numpy(to_photo) @ moved, old.depth.camera.to_opencv()[0].double(), rtol=0, atol=1e-5)


def test_extrinsics_may_be_missing(small):
    before = parse(small)
    for path in (small / "intrinsic").glob("extrinsic_*"):
        path.unlink()
    after = parse(small)
    assert all(torch.equal(old.camera.T, new.camera.T) for old, new in zip(before.views, after.views, strict=True))


def test_photos_are_in_the_order_of_their_numbers(small):
    """Not of their names, in which 12 comes before 3."""
    scene = parse(small)
    assert [view.name for view in scene.views] == [str(3 * k) for k in range(VIEWS)] and scene.notes == ()
    assert [view.depth.path.name for view in scene.views] == [f"{3 * k}.png" for k in range(VIEWS)]
    assert scene.carried_points is None and len(scene.cloud.read()) == 400


def lose(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (folder / "pose" / f"{number}.txt").write_text("-inf -inf -inf -inf\n" * 4)


def test_photos_without_tracking_are_left_out_and_told(small):
    whole = parse(small)
    lose(small, 3, 12, 15)
    scene = parse(small)
    assert [view.name for view in scene.views] == ["0", "6", "9", "18", "21"]
    by_name = {view.name: view for view in whole.views}
    for view in scene.views:
        assert torch.equal(view.camera.R, by_name[view.name].camera.R) and torch.equal(view.camera.T, by_name[view.name].camera.T)
        assert view.depth.path == by_name[view.name].depth.path
        assert torch.equal(view.depth.camera.T, by_name[view.name].depth.camera.T)
    assert scene.notes == ("3 of 8 photos are left out, tracking was lost at 3, 12, 15",)
    assert scene.splits["train"] == (0, 1, 2, 3, 4)


def test_intrinsics_of_another_size_are_told(small):
    """Photos of half the width of what the principal point suggests; nine tenths are near enough."""
    K = np.loadtxt(small / "intrinsic" / "intrinsic_color.txt")
    for centre, told in ((28.8, False), (28.7, False), (28.1, True), (34.6, False), (63.5, True)):
        K[0, 2] = centre
        np.savetxt(small / "intrinsic" / "intrinsic_color.txt", K)
        notes = parse(small).notes
        assert len(notes) == int(told)
    assert notes == (
        "intrinsic_color.txt may belong to photos of another size: its principal point is the middle of about 128 pixels, the photos are 64 wide",
    )


def test_scenes_need_no_depth(small):
    (small / "depth" / "9.png").unlink()
    scene = parse(small)
    assert [view.depth is None for view in scene.views] == [k == 3 for k in range(VIEWS)]
    assert scene.notes == ("1 of 8 photos have no depth map: 9",)
    for path in list((small / "depth").iterdir()):
        path.unlink()
    save_picture(small / "depth" / "99.png", np.zeros((24, 32), dtype=np.uint16))
    scene = parse(small)
    assert not any(view.depth for view in scene.views)
    assert scene.notes == ("8 of 8 photos have no depth map: 0, 3, 6, 9, 12 and others",)
    (small / "intrinsic" / "intrinsic_depth.txt").unlink()
    assert parse(small).notes == ("depth maps are not used, intrinsic_depth.txt is missing",)
    shutil.rmtree(small / "depth")
    scene = parse(small)
    assert len(scene.views) == VIEWS and scene.notes == ()


def test_matrices_of_the_authors_layout_come_first(small):
    (small / "extrinsics.npy").write_bytes(b"x")
    with pytest.raises(InputError, match=r"images: no such folder"):
        parse(small)


def test_hidden_files_are_ignored(small):
    for name in ("color/._0.jpg", "pose/._0.txt", "depth/.DS_Store", "pose/notes.md"):
        (small / name).write_bytes(b"\0\5\26\7")
    assert len(parse(small).views) == VIEWS


def set_entry(name: str, row: int, column: int, value: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        matrix = np.loadtxt(folder / name)
        matrix[row, column] = value
        np.savetxt(folder / name, matrix)

    return spoil


def write_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="latin-1")


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def loop(name: str) -> Callable[[Path], None]:
    """Makes a file a link to itself."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        os.symlink(folder / name, folder / name)

    return spoil


COLOUR_K, DEPTH_K = "intrinsic/intrinsic_color.txt", "intrinsic/intrinsic_depth.txt"
SPOILT = {
    "no photos": (remove("color"), ["color", "no such folder"]),
    "a photo less": (remove("color/9.jpg"), ["7 photos and 8 poses", "no photo for 9"]),
    "a pose less": (remove("pose/9.txt"), ["8 photos and 7 poses", "no pose for 9"]),
    "pose twice": (write_text("pose/09.txt", ""), ["9.txt", "one pose per number"]),
    "photo twice": (lambda folder: shutil.copy(folder / "color" / "9.jpg", folder / "color" / "09.jpg"), ["one picture per number"]),
    "pose without number": (write_text("pose/first.txt", ""), ["first.txt", "number"]),
    "all lost": (lambda folder: lose(folder, *range(0, 24, 3)), ["pose", "8 that are all minus infinity", "tracking"]),
    "partly lost": (set_entry("pose/9.txt", 0, 3, -np.inf), ["9.txt", "rigid", "not finite"]),
    "plus infinity": (write_text("pose/9.txt", "inf inf inf inf\n" * 4), ["9.txt", "not finite"]),
    "not a number": (set_entry("pose/9.txt", 1, 1, np.nan), ["9.txt", "not finite"]),
    "too large": (set_entry("pose/9.txt", 0, 3, 1e60), ["9.txt", "not finite"]),
    "scaled": (set_entry("pose/9.txt", 0, 0, 7.0), ["9.txt", "orthonormal"]),
    "last row": (set_entry("pose/9.txt", 3, 3, 2.0), ["9.txt", "last row"]),
    "three rows": (write_text("pose/9.txt", "1 0 0 0\n" * 3), ["9.txt", "4 rows of 4", "[4, 4, 4]"]),
    "five columns": (write_text("pose/9.txt", "1 0 0 0 0\n" * 4), ["9.txt", "[5, 5, 5, 5]"]),
    "empty pose": (write_text("pose/9.txt", ""), ["9.txt", "4 rows of 4"]),
    "words": (write_text("pose/9.txt", "1 0 0 x\n" * 4), ["9.txt", "'x'"]),
    "not text": (write_text("pose/9.txt", "\xff\xfe"), ["9.txt", "4x4 numbers"]),
    "pose links to itself": (loop("pose/9.txt"), ["9.txt", "4x4 numbers"]),
    "no intrinsics": (remove(COLOUR_K), ["intrinsic_color.txt", "no such file"]),
    "singular intrinsics": (set_entry(COLOUR_K, 0, 0, 0.0), ["intrinsic_color.txt", "focal lengths above 0"]),
    "infinite intrinsics": (set_entry(COLOUR_K, 0, 2, np.inf), ["intrinsic_color.txt", "finite"]),
    "intrinsics too large": (set_entry(COLOUR_K, 1, 1, 1e60), ["intrinsic_color.txt", "finite"]),
    "skewed": (set_entry(COLOUR_K, 0, 1, 3.0), ["intrinsic_color.txt", "otherwise the identity"]),
    "depth intrinsics": (set_entry(DEPTH_K, 2, 3, 1.0), ["intrinsic_depth.txt", "otherwise the identity"]),
    "extrinsics": (set_entry("intrinsic/extrinsic_depth.txt", 0, 0, 2.0), ["extrinsic_depth.txt", "rigid"]),
    "damaged photo": (write_text("color/9.jpg", "x"), ["9.jpg", "readable image"]),
    "damaged depth": (write_text("depth/9.png", "x"), ["9.png", "readable image"]),
    "photo of another size": (lambda folder: Image.new("RGB", (32, 24)).save(folder / "color" / "9.jpg"), ["9.jpg", "64x48", "32x24"]),
    "depth of another size": (lambda folder: Image.new("I;16", (9, 8)).save(folder / "depth" / "9.png"), ["9.png", "32x24", "9x8"]),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_scene_ends_in_one_message(small, case):
    spoil, words = SPOILT[case]
    spoil(small)
    with pytest.raises(InputError) as caught:
        parse(small)
    assert all(word in str(caught.value) for word in words), str(caught.value)


# ------------------------------------------------------------------ a real room
@pytest.fixture(scope="module")
def kitchen(shared) -> dict[str, Scene]:
    """The same room in both layouts."""
    folders = {name: shared / "data" / "scannet_like" / name / "kitchen0000_00" for name in ("raw", "npbgpp")}
    if not all(folder.is_dir() for folder in folders.values()):
        pytest.skip("the room in ScanNet's layouts is not among the shared data")
    cloud = CloudFile(folders["npbgpp"] / "full.ply")
    return {name: LAYOUTS["scannet"].parse(folder, folder, "kitchen0000_00", cloud) for name, folder in folders.items()}


def test_both_layouts_of_the_real_room_give_the_same_scene(kitchen):
    """To the six decimals of the texts."""
    raw, prepared = kitchen["raw"], kitchen["npbgpp"]
    assert raw.splits == prepared.splits and len(raw.views) == 59 and raw.notes == prepared.notes == ()
    for ours, theirs in zip(raw.views, prepared.views, strict=True):
        assert ours.name == theirs.name and ours.camera.image_size == theirs.camera.image_size
        assert torch.equal(ours.camera.focal_length, theirs.camera.focal_length)
        assert torch.equal(ours.camera.principal_point, theirs.camera.principal_point)
        torch.testing.assert_close(ours.camera.R, theirs.camera.R, rtol=0, atol=3e-6)
        torch.testing.assert_close(ours.camera.T, theirs.camera.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("index", [0, 30, 55])
def test_real_depth_maps_lie_on_the_real_cloud(kitchen, index):
    """Half of their points have one of the cloud within its voxels, 12 mm; from the pose of another photo they do not."""
    cloud = kitchen["raw"].cloud.read().xyz
    view, other = kitchen["raw"].views[index], kitchen["raw"].views[(index + 20) % 59]
    points = surface_of(view)[::97]
    assert torch.cdist(points, cloud).amin(1).median() < 0.02
    moved = view.depth.camera.view(points)[0]
    assert torch.cdist((moved - other.camera.T) @ other.camera.R[0].T, cloud).amin(1).median() > 0.04
