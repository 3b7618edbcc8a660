"""ScanNet scenes: cameras that agree with the pictures, order of photos, the split, photos of another size, what is refused; and real data."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data.images import read_photo
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.parsers import LAYOUTS

from ..helpers.scenes import mean_intrinsics, projection_errors, write_scannet

SIZE = (60, 80)


def parse(folder: Path, **options) -> Scene:
    return LAYOUTS["scannet"].parse(folder, folder, folder.name, CloudFile(folder / "full.ply"), **options)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Twelve views that may be spoilt."""
    folder = tmp_path / "scene0001_00"
    write_scannet(folder, views=12)
    return folder


@pytest.mark.parametrize("intrinsics", ["authors", "exact"])
def test_points_project_to_where_they_are_drawn(small, intrinsics):
    error = projection_errors(parse(small, intrinsics=intrinsics))
    assert error.abs().max() < 0.6 and (error.mean(0).abs() < 0.1).all()


def test_the_principal_point_is_dropped_unless_asked_for(tmp_path):
    write_scannet(tmp_path / "scene", views=12, principal_point=(36.5, 33.0))
    exact, authors = parse(tmp_path / "scene", intrinsics="exact"), parse(tmp_path / "scene")
    error = projection_errors(exact)
    assert error.abs().max() < 0.6 and (error.mean(0).abs() < 0.1).all()
    for view in authors.views:
        assert view.camera.principal_point.tolist() == [[40.0, 30.0]]
        assert torch.equal(view.camera.to_authors_ndc()[1], torch.zeros(1, 2))
    torch.testing.assert_close(projection_errors(authors).mean(0).float(), torch.tensor([-3.0, 3.5]), rtol=0, atol=0.1)


def test_normalised_intrinsics_are_those_of_the_original(small):
    """2 f / (s - 1) with the short side s = 60."""
    fcl, _ = parse(small).views[0].camera.to_authors_ndc()
    torch.testing.assert_close(fcl[0], torch.from_numpy(mean_intrinsics(SIZE).diagonal()[:2] * 2 / 59).float())


def test_photos_are_in_the_order_of_their_numbers(small):
    """Not of their names, in which 12 comes before 3."""
    assert [view.name for view in parse(small).views] == [str(3 * k) for k in range(12)]


def split_of(tmp_path: Path, count: int) -> dict[str, tuple[int, ...]]:
    folder = tmp_path / "counted"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(folder / "images" / "0.jpg")
    for k in range(1, count):
        os.link(folder / "images" / "0.jpg", folder / "images" / f"{k}.jpg")
    np.save(folder / "intrinsics.npy", np.array({"K": np.diag([9.0, 9.0, 1.0]), "height": 6, "width": 8}, dtype=object))
    np.save(folder / "extrinsics.npy", np.tile(np.eye(4), (count, 1, 1)))
    return parse(folder).splits


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
def test_split(tmp_path, count, test, val):
    """Evenly spread; no view is held out and validates, none comes twice, none lies outside of a short scene."""
    splits = split_of(tmp_path, count)
    assert splits == {"train": tuple(range(count)), "val": val, "test": test}


def test_photos_of_another_size_are_resampled(tmp_path):
    folder = tmp_path / "scene"
    write_scannet(folder, views=12, photo_size=(121, 159))
    scene = parse(folder)
    error = projection_errors(scene)
    assert all(view.resized for view in scene.views) and read_photo(scene.views[0]).image.shape == (3, *SIZE)
    assert error.abs().max() < 0.6 and (error.mean(0).abs() < 0.1).all()
    with Image.open(scene.views[5].image) as image:
        expected = np.asarray(image.resize((80, 60), Image.Resampling.BILINEAR))
    assert np.array_equal(read_photo(scene.views[5]).image.permute(1, 2, 0), expected)


def test_photos_of_the_right_size_are_not_resampled(small):
    scene = parse(small)
    with Image.open(scene.views[5].image) as image:
        assert np.array_equal(read_photo(scene.views[5]).image.permute(1, 2, 0), np.asarray(image))
    assert not any(view.resized for view in scene.views)


def test_hidden_files_are_ignored_and_left_alone(small):
    for name in ("._0.jpg", ".DS_Store"):
        (small / "images" / name).write_bytes(b"\0\5\26\7")
    before = sorted(small.rglob("*"))
    assert len(parse(small).views) == 12 and sorted(small.rglob("*")) == before


class Makes:
    """Pickles to the creation of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_would_run_code_is_refused(small, tmp_path):
    np.save(small / "intrinsics.npy", np.array({"K": np.eye(3), "height": 60, "width": Makes(tmp_path / "made")}, dtype=object))
    with pytest.raises(InputError, match=r"intrinsics\.npy.*mkdir.*is not unpickled"):
        parse(small)
    assert not (tmp_path / "made").exists()
    np.load(small / "intrinsics.npy", allow_pickle=True)  # as the original reads it
    assert (tmp_path / "made").exists(), "the file is as bad as it should be"


def set_intrinsics(**changes) -> Callable[[Path], None]:
    """Changes entries of the dictionary; ``...`` removes one."""

    def spoil(folder: Path) -> None:
        content = {"K": mean_intrinsics(SIZE), "height": 60, "width": 80} | changes
        content = {key: value for key, value in content.items() if value is not ...}
        np.save(folder / "intrinsics.npy", np.array(content, dtype=object))

    return spoil


def set_extrinsics(change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Path], None]:
    """Replaces the matrices by what the function returns, or by what it does to them."""

    def spoil(folder: Path) -> None:
        matrices = np.load(folder / "extrinsics.npy")
        changed = change(matrices)
        np.save(folder / "extrinsics.npy", matrices if changed is None else changed)

    return spoil


def set_entry(row: int, column: int, value: float) -> Callable[[Path], None]:
    return set_extrinsics(lambda matrices: matrices.__setitem__((4, row, column), value))


def scaled(matrices: np.ndarray) -> None:
    matrices[4, :3, :3] *= 1.1


def mirrored(matrices: np.ndarray) -> None:
    matrices[4, 0] *= -1


SPOILT = {
    "no photos": (lambda folder: shutil.rmtree(folder / "images"), ["images", "no such folder"]),
    "a photo less": (lambda folder: (folder / "images" / "9.jpg").unlink(), ["extrinsics.npy", "11 photos", "12"]),
    "a matrix less": (set_extrinsics(lambda matrices: matrices[:-1]), ["extrinsics.npy", "12 photos", "got 11"]),
    "damaged photo": (lambda folder: (folder / "images" / "9.jpg").write_bytes(b"x"), ["9.jpg", "readable image"]),
    "no intrinsics": (lambda folder: (folder / "intrinsics.npy").unlink(), ["intrinsics.npy", "no such file"]),
    "plain matrix": (lambda folder: np.save(folder / "intrinsics.npy", np.eye(3)), ["intrinsics.npy", "dictionary"]),
    "no height": (set_intrinsics(height=...), ["intrinsics.npy", "K, height and width", "K, width"]),
    "empty dictionary": (set_intrinsics(K=..., height=..., width=...), ["intrinsics.npy", "nothing"]),
    "height of zero": (set_intrinsics(height=0), ["height", "positive", "0"]),
    "broken width": (set_intrinsics(width=80.5), ["width", "80.5"]),
    "infinite width": (set_intrinsics(width=float("inf")), ["width", "inf"]),
    "width as a word": (set_intrinsics(width="80"), ["width", "'80'"]),
    "K of a word": (set_intrinsics(K="K"), ["K: expected", "'K'"]),
    "K of 4x4": (set_intrinsics(K=np.eye(4)), ["K: expected 3x3"]),
    "K not finite": (set_intrinsics(K=np.diag([np.nan, 1, 1])), ["K: expected", "finite", "nan"]),
    "K singular": (set_intrinsics(K=np.diag([0.0, 1, 1])), ["K: expected", "positive focal lengths"]),
    "K too large": (set_intrinsics(K=np.diag([1e60, 1, 1])), ["K: expected", "finite"]),
    "K of another scale": (set_intrinsics(K=2 * mean_intrinsics(SIZE)), ["K: expected", "last row"]),
    "no extrinsics": (lambda folder: (folder / "extrinsics.npy").unlink(), ["extrinsics.npy", "no such file"]),
    "flat extrinsics": (set_extrinsics(lambda matrices: matrices.reshape(12, 16)), ["extrinsics.npy", "(M, 4, 4)", "(12, 16)"]),
    "pickled extrinsics": (set_extrinsics(lambda matrices: matrices.astype(object)), ["extrinsics.npy", "damaged or other"]),
    "several arrays": (lambda folder: several_arrays(folder / "extrinsics.npy"), ["extrinsics.npy", "several arrays"]),
    "cut off": (lambda folder: os.truncate(folder / "extrinsics.npy", 300), ["extrinsics.npy", "damaged"]),
    "not finite": (set_entry(0, 3, -np.inf), ["matrix 4", "not finite"]),
    "too far": (set_entry(0, 3, 1e60), ["matrix 4", "not finite"]),
    "last row": (set_entry(3, 0, 1.0), ["matrix 4", "last row"]),
    "scaled": (set_extrinsics(scaled), ["matrix 4", "rigid", "orthonormal"]),
    "mirrored": (set_extrinsics(mirrored), ["matrix 4", "mirror"]),
}


def several_arrays(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, a=1)


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_scene_ends_in_one_message(small, case):
    spoil, words = SPOILT[case]
    spoil(small)
    with pytest.raises(InputError) as caught:
        parse(small)
    assert all(word in str(caught.value) for word in words), str(caught.value)


# ------------------------------------------------------------------ a real room
@pytest.fixture(scope="module")
def kitchen(shared) -> Scene:
    folder = shared / "data" / "scannet_like" / "npbgpp" / "kitchen0000_00"
    if not folder.is_dir():
        pytest.skip("the room in ScanNet's layout is not among the shared data")
    return parse(folder)


def test_real_counts(kitchen):
    assert [view.name for view in kitchen.views] == [str(17 * k) for k in range(59)]
    camera = kitchen.views[0].camera
    assert (
        camera.image_size == (240, 320)
        and camera.focal_length.tolist() == [[262.5, 262.5]]
        and camera.principal_point.tolist() == [[160.0, 120.0]]
    )
    assert len(kitchen.cloud.read()) == 100_000 and len(kitchen.with_splits(None, None).splits["train"]) == 42


@pytest.mark.parametrize("index", [0, 30, 55])
def test_colours_of_the_real_cloud_are_those_of_the_photo(kitchen, index):
    """Points shown by the nearest-point rule have about the colour of their pixel; with another photo they do not."""
    cloud = kitchen.cloud.read()
    camera = kitchen.views[index].camera
    height, width = camera.image_size
    uv, depth = camera.project(cloud.xyz)
    column, row = uv[0].floor().long().unbind(1)
    inside = ((depth[0] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)).nonzero()[:, 0]
    assert len(inside) > 10_000
    order = inside[depth[0, inside].argsort(descending=True)].numpy()
    drawn = np.full((height, width), -1)
    drawn[row.numpy()[order], column.numpy()[order]] = order  # far to near: the last one written stays
    nearest = torch.from_numpy(drawn)
    shown = nearest >= 0

    def error(photo_of: int) -> float:
        image = read_photo(kitchen.views[photo_of]).image
        return (image[:, shown].float() - cloud.rgb_u8[nearest[shown]].T.float()).abs().mean().item()

    assert error(index) < 0.7 * error((index + 20) % 59)
