"""``npbgpp prepare llff``: the LLFF parser reads what it writes as the COLMAP parser reads the model."""

import shutil
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
from npbgpp.prepare.llff import prepare_llff
from npbgpp.prepare.settings import LlffSettings

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
    colmap.write(tmp_path, 12, SIZE, text=text)  # LLFF sorts view_10 before view_2, COLMAP after it
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    path = prepare_llff(LlffSettings(tmp_path))
    assert path == tmp_path / "poses_bounds.npy" and np.load(path).shape == (12, 17)
    scene = read("llff", tmp_path)
    assert_same_views(scene, read("colmap", tmp_path))
    for view in scene.views:
        near, far = view.bounds
        assert 2.0 < near < 3.0 < far < 4.0, "the balls are within 0.9 of the origin, the cameras 3 from it"
    assert all(path.read_bytes() == content for path, content in before.items())


def test_bounds_are_percentiles_of_the_observed_points(tmp_path):
    """A far point that no photo observes does not count."""
    colmap.write(tmp_path, 8, SIZE, text=True)
    with (tmp_path / "sparse" / "0" / "points3D.txt").open("a") as file:
        file.write("999999 0 0 500 1 2 3 0.5\n")
    prepare_llff(LlffSettings(tmp_path))
    view = read("llff", tmp_path).views[3]
    lines = [line for line in (tmp_path / "sparse" / "0" / "images.txt").read_text().splitlines() if not line.startswith("#")]
    observed = next(lines[k + 1] for k in range(0, len(lines), 2) if lines[k].endswith("view_3.png")).split()[2::3]
    points = {line.split()[0]: line.split()[1:4] for line in (tmp_path / "sparse" / "0" / "points3D.txt").read_text().splitlines()[1:]}
    xyz = torch.tensor([[float(x) for x in points[number]] for number in observed if number in points])
    depths = view.camera.project(xyz)[1][0]
    near, far = view.bounds
    assert depths.min() <= near < depths.quantile(0.02) and depths.quantile(0.98) < far <= depths.max()


def test_copies_are_undistorted_and_registered(tmp_path):
    colmap.write(tmp_path / "scene", 8, SIZE, model="SIMPLE_RADIAL")
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "scene" / "images" / "another.png")
    settings = LlffSettings(tmp_path / "scene", out=tmp_path / "flat")
    prepare_llff(settings)
    written, model = read("llff", tmp_path / "flat"), read("colmap", tmp_path / "scene", white_bg=False)
    assert_same_views(written, model)
    for view, other in zip(written.views, model.views, strict=True):
        assert torch.equal(read_photo(view).image, read_photo(other).image)
    assert not (tmp_path / "scene" / "poses_bounds.npy").exists()
    with pytest.raises(InputError, match="exists"):
        prepare_llff(settings)
    prepare_llff(LlffSettings(tmp_path / "scene", out=tmp_path / "flat", overwrite=True))
    assert_same_views(read("llff", tmp_path / "flat"), model)
    (tmp_path / "flat" / "images" / "mine.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"mine\.png"):
        prepare_llff(LlffSettings(tmp_path / "scene", out=tmp_path / "flat", overwrite=True))
    assert (tmp_path / "flat" / "images" / "mine.png").read_bytes() == b"x"


def test_smaller_copies(tmp_path):
    colmap.write(tmp_path / "scene", 8, SIZE)
    prepare_llff(LlffSettings(tmp_path / "scene", out=tmp_path / "half", downscale=2.0))
    assert_same_views(read("llff", tmp_path / "half"), read("colmap", tmp_path / "scene", downscale=2.0))
    with Image.open(tmp_path / "half" / "images" / "view_0.png") as image:
        assert image.size == (32, 24)


def test_warning_of_lost_intrinsics(tmp_path, caplog):
    colmap.write(tmp_path, 8, SIZE, text=True)
    path = tmp_path / "sparse" / "0" / "cameras.txt"
    prepare_llff(LlffSettings(tmp_path))
    assert not caplog.records
    path.write_text(path.read_text().replace(" 32 24", " 34.5 24"))
    prepare_llff(LlffSettings(tmp_path, overwrite=True))
    assert "2.5" in caplog.text


REFUSALS = {
    "no points": (lambda root: (root / "sparse" / "0" / "points3D.txt").unlink(), {}, "points3D"),
    "no model": (lambda root: (root / "sparse" / "0" / "images.txt").unlink(), {}, "COLMAP model"),
    "existing file": (lambda root: (root / "poses_bounds.npy").write_bytes(b""), {}, "poses_bounds.npy.*overwrite=true"),
    "unregistered photo": (lambda root: Image.new("RGB", (64, 48)).save(root / "images" / "new.png"), {}, r"new\.png; .*out=<folder>"),
    "distortion": (
        lambda root: (shutil.rmtree(root / "sparse"), colmap.write(root, 8, SIZE, text=True, model="SIMPLE_RADIAL")),
        {},
        "SIMPLE_RADIAL.*out=<folder>",
    ),
    "enlarged copies": (lambda root: None, {"downscale": 0.5, "out": Path("out")}, "downscale: .* 0.5"),
    "smaller originals": (lambda root: None, {"downscale": 2.0}, "downscale: .* 2.*out=<folder>"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(tmp_path, case):
    change, keys, message = REFUSALS[case]
    colmap.write(tmp_path, 8, SIZE, text=True)
    change(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        prepare_llff(LlffSettings(tmp_path, **keys))
    assert "\n" not in str(caught.value)
