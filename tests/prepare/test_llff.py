"""``python -m npbgpp.prepare llff``: what it writes is a scene that the LLFF parser reads as the COLMAP parser reads the model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data.images import read_photo
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.parsers import read_scene
from npbgpp.prepare.llff import LlffSettings, prepare_llff

from ..helpers.layouts import colmap

SIZE = (48, 64)


def read(layout: str, folder: Path, **choices: object) -> Scene:
    return read_scene(layout, folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), choices)


def assert_same_views(llff: Scene, model: Scene) -> None:
    by_name = {view.name: view for view in model.views}
    assert [view.name for view in llff.views] == sorted(by_name)
    for view in llff.views:
        other = by_name[view.name].camera
        torch.testing.assert_close(view.camera.R, other.R, rtol=0, atol=1e-5)
        torch.testing.assert_close(view.camera.T, other.T, rtol=0, atol=1e-4)
        torch.testing.assert_close(view.camera.focal_length, other.focal_length, rtol=1e-5, atol=0, check_dtype=False)
        assert view.camera.image_size == other.image_size


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_poses_beside_the_photos(tmp_path, text):
    colmap.write(tmp_path, 12, SIZE, text=text)  # view_10 comes before view_2 for LLFF, not for COLMAP
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    path = prepare_llff(LlffSettings(tmp_path))
    assert path == tmp_path / "poses_bounds.npy" and np.load(path).shape == (12, 17)
    scene = read("llff", tmp_path)
    assert_same_views(scene, read("colmap", tmp_path))
    for view in scene.views:
        near, far = view.bounds
        assert 2.0 < near < 3.0 < far < 4.0, "the balls lie within 0.9 of the origin, the cameras 3 from it"
    assert all(path.read_bytes() == content for path, content in before.items())


def test_bounds_are_those_of_what_a_photo_shows(tmp_path):
    """Against the depths of the points, one by one; points of the model that a photo does not observe do not count."""
    colmap.write(tmp_path, 8, SIZE, text=True)
    with (tmp_path / "sparse" / "0" / "points3D.txt").open("a") as file:
        file.write("999999 0 0 500 1 2 3 0.5\n")
    prepare_llff(LlffSettings(tmp_path))
    view = read("llff", tmp_path).views[3]
    lines = [line for line in (tmp_path / "sparse" / "0" / "images.txt").read_text().splitlines() if not line.startswith("#")]
    shown = next(lines[k + 1] for k in range(0, len(lines), 2) if lines[k].endswith("view_3.png")).split()[2::3]
    points = {line.split()[0]: line.split()[1:4] for line in (tmp_path / "sparse" / "0" / "points3D.txt").read_text().splitlines()[1:]}
    xyz = torch.tensor([[float(x) for x in points[number]] for number in shown if number in points])
    depths = view.camera.project(xyz)[1][0]
    near, far = view.bounds
    assert depths.min() <= near < depths.quantile(0.02) and depths.quantile(0.98) < far <= depths.max()


def test_copies_are_undistorted_and_registered(tmp_path):
    """A lens that distorts and a photo without pose: refused beside the photos, written elsewhere."""
    colmap.write(tmp_path / "scene", 8, SIZE, model="SIMPLE_RADIAL")
    with pytest.raises(InputError, match="SIMPLE_RADIAL.*out=<folder>"):
        prepare_llff(LlffSettings(tmp_path / "scene"))
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "scene" / "images" / "another.png")
    with pytest.raises(InputError, match=r"these differ: another\.png; .*out=<folder>"):
        prepare_llff(LlffSettings(tmp_path / "scene"))
    prepare_llff(LlffSettings(tmp_path / "scene", out=tmp_path / "flat"))
    written, model = read("llff", tmp_path / "flat"), read("colmap", tmp_path / "scene", white_bg=False)
    assert_same_views(written, model)
    for view, other in zip(written.views, model.views, strict=True):
        assert torch.equal(read_photo(view).image, read_photo(other).image)
    assert not (tmp_path / "scene" / "poses_bounds.npy").exists()
    with pytest.raises(InputError, match="there already"):
        prepare_llff(LlffSettings(tmp_path / "scene", out=tmp_path / "flat"))
    prepare_llff(LlffSettings(tmp_path / "scene", out=tmp_path / "flat", overwrite=True))
    assert_same_views(read("llff", tmp_path / "flat"), model)


def test_smaller_copies(tmp_path):
    colmap.write(tmp_path / "scene", 8, SIZE)
    prepare_llff(LlffSettings(tmp_path / "scene", out=tmp_path / "half", downscale=2.0))
    assert_same_views(read("llff", tmp_path / "half"), read("colmap", tmp_path / "scene", downscale=2.0))
    with Image.open(tmp_path / "half" / "images" / "view_0.png") as picture:
        assert picture.size == (32, 24)


def test_what_the_format_cannot_say_is_said(tmp_path, caplog):
    colmap.write(tmp_path, 8, SIZE, text=True)
    path = tmp_path / "sparse" / "0" / "cameras.txt"
    prepare_llff(LlffSettings(tmp_path))
    assert "moves pixels" not in caplog.text
    path.write_text(path.read_text().replace(" 32 24", " 34.5 24"))
    prepare_llff(LlffSettings(tmp_path, overwrite=True))
    assert "moves pixels by up to 2.5" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "sparse" / "0" / "points3D.txt").unlink(), "points3D"),
        (lambda root: (root / "sparse" / "0" / "images.txt").unlink(), "expected a model of COLMAP"),
        (lambda root: (root / "poses_bounds.npy").write_bytes(b""), "there already.*overwrite=true"),
    ],
    ids=["no points", "no model", "already there"],
)
def test_what_cannot_be_done_is_said_in_one_message(tmp_path, spoil, message):
    colmap.write(tmp_path, 8, SIZE, text=True)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        prepare_llff(LlffSettings(tmp_path))
    assert "\n" not in str(caught.value)


def test_copies_do_not_mix_with_other_pictures(tmp_path):
    colmap.write(tmp_path / "scene", 8, SIZE)
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "mine.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected an empty folder.*mine\.png"):
        prepare_llff(LlffSettings(tmp_path / "scene", out=tmp_path / "out", overwrite=True))
    assert (tmp_path / "out" / "images" / "mine.png").read_bytes() == b"x"


@pytest.mark.parametrize(("key", "message"), [({"downscale": 0.5}, "1 or more"), ({"downscale": 2.0}, "out=<folder>")])
def test_settings_that_make_no_sense(key, message):
    with pytest.raises(InputError, match=message):
        LlffSettings(Path("scene"), **key)
