"""DTU scenes: cameras that agree with the pictures, masks, the split, what is refused; and the real scan, where it is present."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import max_pool2d

from npbgpp.data.images import read_photo
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.parsers import LAYOUTS

from ..helpers.scenes import BACKDROP, COLOURS, POINTS, alternating_intrinsics, centroid, mean_intrinsics, write_dtu

SIZE = (48, 64)


def parse(folder: Path, **options) -> Scene:
    return LAYOUTS["dtu"].parse(folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), **options)


def files_of(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 49 views. Never write into it: copy it."""
    folder = tmp_path_factory.mktemp("dtu") / "scan1"
    write_dtu(folder, size=SIZE)
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Nine views that may be spoilt."""
    folder = tmp_path / "scan2"
    write_dtu(folder, views=9, size=SIZE)
    return folder


def test_points_project_to_where_they_are_drawn(whole):
    """With the intrinsics of each view; half a pixel of error in their convention would move the mean."""
    scene = parse(whole, intrinsics="exact")
    errors = []
    for view in scene.views:
        uv, depth = view.camera.project(torch.from_numpy(POINTS).float())
        assert view.camera.image_size == SIZE and (depth > 1).all()
        errors += [centroid(read_photo(view).image, colour) - uv[0, k] for k, colour in enumerate(COLOURS)]
    error = torch.stack(errors)
    assert error.abs().max() < 0.6 and (error.mean(0).abs() < 0.1).all()


def test_all_views_share_the_mean_of_the_intrinsics_by_default(whole):
    cameras = [view.camera for view in parse(whole).views]
    expected = np.mean([alternating_intrinsics(SIZE, k) for k in range(49)], axis=0)
    assert np.abs(expected - mean_intrinsics(SIZE)).max() < 0.1
    for camera, exact in zip(cameras, parse(whole, intrinsics="exact").views, strict=True):
        np.testing.assert_allclose(camera.focal_length[0], expected.diagonal()[:2], rtol=1e-5)
        np.testing.assert_allclose(camera.principal_point[0], expected[:2, 2] + 0.5, rtol=1e-5)
        assert torch.equal(camera.R, exact.camera.R) and torch.equal(camera.T, exact.camera.T)


def test_views_and_splits_of_the_data_set(whole):
    scene = parse(whole)
    assert [view.name for view in scene.views] == [str(k) for k in range(49)]
    assert scene.splits["val"] == (5, 15, 25, 35, 45) and scene.splits["test"] == (7, 12, 17, 22, 27, 32, 37, 42, 47)
    train = scene.with_splits(None, None).splits["train"]
    assert sorted({*train, *scene.splits["val"], *scene.splits["test"]}) == list(range(49)) and len(train) == 35
    other = scene.with_splits((0,), (1, 2))
    assert other.splits["train"] == tuple(range(3, 49)), "views that no longer validate train"


def test_shorter_scenes_have_what_is_left_of_the_lists(small):
    splits = parse(small).with_splits(None, None).splits
    assert splits == {"train": (0, 1, 2, 3, 4, 6, 8), "val": (5,), "test": (7,)}


def test_photos_are_white_outside_the_masks(small):
    white, stored = parse(small).views[3], parse(small, white_bg=False).views[3]
    on_white, as_stored = read_photo(white), read_photo(stored)
    outside = on_white.mask[0] < 128
    assert 0.02 < (~outside).float().mean() < 0.5
    assert (on_white.image[:, outside] == 255).all() and torch.equal(on_white.image[:, ~outside], as_stored.image[:, ~outside])
    assert torch.equal(as_stored.image[:, outside].unique(dim=1), torch.tensor(BACKDROP, dtype=torch.uint8)[:, None])
    assert torch.equal(on_white.mask, as_stored.mask)


def test_masks_are_the_mean_of_their_colours(small):
    """One half is reached by 383 of 765: the sum decides, not one colour."""
    path = small / "mask" / "000.png"
    pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[0, 2], pixels[0, 3] = (255, 127, 0), (255, 128, 0), (127, 127, 127), (0, 255, 254)
    Image.fromarray(pixels).save(path)
    photo = read_photo(parse(small).views[0])
    assert photo.mask[0, 0, :5].tolist() == [127, 128, 127, 170, 0]
    assert (photo.image[:, 0, :5] == 255).all(0).tolist() == [True, False, True, False, True]
    grey = Image.fromarray(pixels[..., 0])
    for suffix, options in ((".png", {}), (".jpg", {"quality": 100})):
        path.unlink()
        path = path.with_suffix(suffix)
        grey.save(path, **options)
        assert read_photo(parse(small).views[0]).mask.shape == (1, *SIZE)


def test_an_alpha_channel_beside_a_mask_is_ignored(small):
    before = read_photo(parse(small).views[0])
    path = small / "image" / "000000.png"
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    rgba.putalpha(100)
    rgba.save(path)
    after = read_photo(parse(small).views[0])
    assert torch.equal(before.image, after.image) and torch.equal(before.mask, after.mask)


def test_hidden_files_are_ignored_and_left_alone(small):
    for name in ("image/._000000.png", "image/.DS_Store", "mask/._000.png", "image/notes.txt"):
        (small / name).write_bytes(b"\0\5\26\7")
    before = files_of(small)
    scene = parse(small)
    for view in scene.views:
        read_photo(view)
    assert len(scene.views) == 9 and files_of(small) == before


def test_cameras_of_the_other_normalisation_serve_where_the_first_are_missing(small):
    """Both files hold the same projections."""
    before = parse(small)
    (small / "cameras_sphere.npz").write_bytes(b"x")  # not read
    assert parse(small).notes == before.notes == ()
    (small / "cameras.npz").rename(small / "cameras_sphere.npz")
    after = parse(small)
    assert after.notes == ("cameras are read from cameras_sphere.npz, there is no cameras.npz",)
    assert all(torch.equal(old.camera.T, new.camera.T) for old, new in zip(before.views, after.views, strict=True))


def change_matrix(number: int, change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Path], None]:
    """Replaces one matrix by what the function makes of it; None removes it."""

    def spoil(folder: Path) -> None:
        with np.load(folder / "cameras.npz") as file:
            matrices = dict(file)
        new = change(matrices.pop(f"world_mat_{number}"))
        np.savez(folder / "cameras.npz", **matrices, **({} if new is None else {f"world_mat_{number}": new}))

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rewrite(name: str, size: tuple[int, int]) -> Callable[[Path], None]:
    """Replaces a picture by a black one of this (height, width)."""
    return lambda folder: Image.new("RGB", (size[1], size[0])).save(folder / name)


def not_a_number(matrix: np.ndarray) -> np.ndarray:
    matrix[1, 3] = np.nan
    return matrix


def too_far(matrix: np.ndarray) -> np.ndarray:
    matrix[:, 3] *= 1e60
    return matrix


def singular(matrix: np.ndarray) -> np.ndarray:
    matrix[:, 2] = matrix[:, 1]
    return matrix


def one_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.eye(4))
    return buffer.getvalue()


SPOILT = {
    "no photos": (lambda folder: shutil.rmtree(folder / "image"), ["image", "no such folder"]),
    "no masks": (lambda folder: shutil.rmtree(folder / "mask"), ["mask", "no such folder"]),
    "empty folder": (lambda folder: [p.unlink() for p in (folder / "image").iterdir()], ["image", "expected pictures", "none"]),
    "no cameras": (remove("cameras.npz"), ["cameras.npz", "no such file"]),
    "a photo less": (remove("image/000004.png"), ["8 photos", "9 masks", "9 matrices", "at 4)"]),
    "a mask less": (remove("mask/004.png"), ["9 photos, 8 masks (different at 4)"]),
    "a matrix less": (change_matrix(4, lambda matrix: None), ["9 photos, 8 matrices (different at 4)"]),
    "photo of another size": (rewrite("image/000004.png", (47, 64)), ["000004.png", "64x48", "64x47"]),
    "mask of another size": (rewrite("mask/004.png", (24, 32)), ["004.png", "64x48", "32x24"]),
    "name without number": (rewrite("image/cover.png", SIZE), ["cover.png", "number"]),
    "number twice": (rewrite("image/0004.png", SIZE), ["0004.png", "000004.png", "one picture per number"]),
    "not finite": (change_matrix(4, not_a_number), ["world_mat_4", "not finite"]),
    "singular": (change_matrix(4, singular), ["world_mat_4", "singular"]),
    "too far": (change_matrix(4, too_far), ["cameras.npz", "beyond single precision"]),
    "three rows": (change_matrix(4, lambda matrix: matrix[:3]), ["world_mat_4", "4x4", "(3, 4)"]),
    "texts": (change_matrix(4, lambda matrix: matrix.astype(str)), ["world_mat_4", "4x4", "<U"]),
    "objects": (change_matrix(4, lambda matrix: matrix.astype(object)), ["cameras.npz", "damaged or other file"]),
    "other arrays": (lambda folder: np.savez(folder / "cameras.npz", a=1), ["cameras.npz", "world_mat_0", "none"]),
    "one array": (lambda folder: (folder / "cameras.npz").write_bytes(one_array()), ["cameras.npz", "a single array"]),
    "cut off": (lambda folder: os.truncate(folder / "cameras.npz", 500), ["cameras.npz", "damaged"]),
    "damaged photo": (lambda folder: (folder / "image" / "000004.png").write_bytes(b"x"), ["000004.png", "readable image"]),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_scene_ends_in_one_message(small, case):
    spoil, words = SPOILT[case]
    spoil(small)
    with pytest.raises(InputError) as caught:
        parse(small)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_mask_that_changes_after_parsing_is_refused(small):
    scene = parse(small)
    rewrite("mask/004.png", (24, 32))(small)
    with pytest.raises(InputError, match=r"mask .*004\.png: expected 64x48 .*got 32x24"):
        read_photo(scene.views[4])
    remove("mask/004.png")(small)
    with pytest.raises(InputError, match=r"004\.png: no such file"):
        read_photo(scene.views[4])


# ------------------------------------------------------------------ the real scan
@pytest.fixture(scope="module")
def scan(shared) -> Scene:
    folder = shared / "data" / "dtu" / "scan65"
    if not folder.is_dir():
        pytest.skip("the DTU scan is not among the shared data")
    return parse(folder)


def test_real_counts(scan):
    assert len(scan.views) == 49 and scan.views[0].camera.image_size == (240, 320) and len(scan.cloud.read()) == 43_453
    assert scan.splits["test"] == (7, 12, 17, 22, 27, 32, 37, 42, 47)


def test_both_files_of_the_real_scan_hold_the_same_cameras(shared, scan, tmp_path):
    source = shared / "data" / "dtu" / "scan65"
    for name in ("image", "mask", "cameras_sphere.npz"):
        (tmp_path / name).symlink_to(source / name)
    for ours, theirs in zip(parse(tmp_path).views, scan.views, strict=True):
        assert torch.equal(ours.camera.R, theirs.camera.R) and torch.equal(ours.camera.T, theirs.camera.T)


@pytest.mark.parametrize("index", [0, 20, 40])
def test_the_real_cloud_projects_into_the_mask(scan, index):
    """At least 99 % of what falls into the image falls on the object, grown by two pixels; in another view's mask less does."""
    view = scan.views[index]
    height, width = view.camera.image_size
    uv, depth = view.camera.project(scan.cloud.read().xyz)
    column, row = uv[0].floor().long().unbind(1)
    inside = (depth[0] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    assert inside.float().mean() > 0.9

    def share(mask_of: int) -> float:
        mask = max_pool2d((read_photo(scan.views[mask_of]).mask >= 128).float()[None], 5, stride=1, padding=2)[0, 0] > 0
        return mask[row[inside], column[inside]].float().mean().item()

    assert share(index) >= 0.99 and share((index + 25) % 49) < 0.98
