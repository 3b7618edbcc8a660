"""NeRF-Synthetic scenes: order of views, splits, file names; and the real lego scene."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npbgpp.data import CloudFile, Scene
from npbgpp.parsers.nerf_synthetic import parse_nerf_synthetic

from ..helpers.scenes import colour_error, share_in_mask


def parse(folder: Path) -> Scene:
    return parse_nerf_synthetic(folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"))


def write(folder: Path, train: int, val: int, test: int) -> None:
    """Frames that share one picture."""
    folder.mkdir()
    Image.fromarray(np.zeros((4, 4, 4), dtype=np.uint8)).save(folder / "picture.png")
    pose = np.eye(4).tolist()
    for stage, count in (("train", train), ("val", val), ("test", test)):
        (folder / stage).mkdir()
        for k in range(count):
            os.link(folder / "picture.png", folder / stage / f"r_{k}.png")
        frames = [{"file_path": f"./{stage}/r_{k}", "transform_matrix": pose} for k in range(count)]
        (folder / f"transforms_{stage}.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))


def test_views_are_ordered_train_val_test(tmp_path):
    write(tmp_path / "scene", 4, 2, 2)
    scene = parse(tmp_path / "scene")
    names = [f"train-r_{k}" for k in range(4)] + ["val-r_0", "val-r_1", "test-r_0", "test-r_1"]
    assert [view.name for view in scene.views] == names
    assert scene.splits == {"train": (0, 1, 2, 3), "val": (4,), "test": (6, 7)} and scene.name == "scene"


@pytest.mark.parametrize(("count", "chosen"), [(0, 0), (1, 1), (10, 1), (11, 2), (25, 3)])
def test_every_tenth_validation_frame_validates(tmp_path, count, chosen):
    write(tmp_path / "scene", 3, count, 2)
    assert parse(tmp_path / "scene").splits == {
        "train": (0, 1, 2),
        "val": tuple(range(3, 3 + count, 10))[:chosen],
        "test": (3 + count, 4 + count),
    }


def test_file_names_with_suffix(tmp_path):
    write(tmp_path / "scene", 1, 1, 1)
    file = tmp_path / "scene" / "transforms_train.json"
    file.write_text(file.read_text().replace("train/r_0", "train/r_0.png"))
    view = parse(file.parent).views[0]
    assert view.image == file.parent / "train" / "r_0.png" and view.name == "train-r_0"


# ------------------------------------------------------------------ the real lego scene
@pytest.fixture(scope="module")
def lego(shared) -> Scene:
    folder = shared / "data" / "nerf_synthetic" / "lego"
    if not folder.is_dir():
        pytest.skip("the lego scene is not among the shared data")
    return parse(folder)


def test_real_scene(lego):
    """Its cloud lies in the masks and has the colours of the photos."""
    names = [view.name for view in lego.views]
    assert [sum(name.startswith(stage) for name in names) for stage in ("train-", "val-", "test-")] == [80, 5, 15]
    assert lego.splits == {"train": tuple(range(80)), "val": (80,), "test": tuple(range(85, 100))}
    cloud = lego.cloud.read()
    assert len(cloud) == 60_000 and cloud.rgb_u8 is not None
    for k in (0, 40, 90):
        assert share_in_mask(lego, cloud.xyz, k, k) >= 0.99
    assert colour_error(lego, cloud, 0, 0) < 0.6 * colour_error(lego, cloud, 0, 40)
