"""Files of NeRF-Synthetic, instant-ngp and nerfstudio as other programs write them: intrinsics, names, points, masks."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data import CloudFile, Scene, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import PointCloud, write_ply
from npbgpp.parsers import read_scene, recognise, with_cloud

SIZE = (36, 48)  # height, width
POSE = np.eye(4).tolist()
FOCAL = 40.0
ANGLE = 2 * math.atan(SIZE[1] / 2 / FOCAL)


def photo(path: Path, mode: str = "RGBA", size: tuple[int, int] = SIZE, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "RGBA": 4}[mode]
    Image.fromarray(np.full((*size, channels), value, np.uint8)).save(path)


def synthetic(folder: Path, mode: str = "RGBA", stages: tuple[str, ...] = ("train", "val", "test"), **keys: Any) -> Path:
    """Two frames for each stage; keys of the files replace the field of view."""
    for stage in stages:
        frames = []
        for k in range(2):
            photo(folder / stage / f"r_{k}.png", mode)
            frames.append({"file_path": f"./{stage}/r_{k}", "transform_matrix": POSE})
        content = {"camera_angle_x": ANGLE, **keys, "frames": frames}
        (folder / f"transforms_{stage}.json").write_text(json.dumps(content))
    return folder


def studio(folder: Path, names: tuple[str, ...] = ("images/a.png", "images/b.png"), mode: str = "RGB", **keys: Any) -> Path:
    """One transforms.json."""
    frames = []
    for name in names:
        photo(folder / name, mode)
        frames.append({"file_path": name, "transform_matrix": POSE})
    content = {"fl_x": FOCAL, "w": SIZE[1], "h": SIZE[0], **keys, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def change(folder: Path, function: Callable[[dict], Any], name: str = "transforms.json") -> Path:
    content = json.loads((folder / name).read_text())
    function(content)
    (folder / name).write_text(json.dumps(content))
    return folder


def parse(folder: Path, layout: str = "auto", **choices: Any) -> Scene:
    return read_scene(layout, folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), choices)


def intrinsics(scene: Scene, k: int = 0) -> tuple[float, float, float, float]:
    camera = scene.views[k].camera
    return (*camera.focal_length[0].tolist(), *camera.principal_point[0].tolist())


WRITERS = {"nerf_synthetic": synthetic, "nerfstudio": studio}


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"fl_x": 30, "fl_y": 33.5, "cx": 26.0, "cy": 15.0, "w": 48, "h": 36}, (30, 33.5, 26, 15)),
        ({"fl_x": 30}, (30, 30, 24, 18)),
        ({"fl_x": 60, "fl_y": 67, "cx": 52.0, "cy": 30.0, "w": 96, "h": 72}, (30, 33.5, 26, 15)),  # stated for larger photos
        ({"fl_x": None, "camera_angle_x": ANGLE, "camera_angle_y": 2 * math.atan(18 / 50)}, (40, 50, 24, 18)),
        ({"fl_x": 30.0, "camera_angle_x": 1.5, "k1": 0, "p2": 0.0, "camera_model": "OPENCV"}, (30, 30, 24, 18)),
    ],
)
def test_intrinsics_of_the_file(tmp_path, layout, keys, expected):
    scene = parse(WRITERS[layout](tmp_path / "scene", **keys))
    assert scene.layout == layout
    assert intrinsics(scene) == pytest.approx(expected) and scene.views[0].camera.image_size == SIZE and scene.views[0].lens is None


@pytest.mark.parametrize(("layout", "name"), [("nerf_synthetic", "transforms_train.json"), ("nerfstudio", "transforms.json")])
def test_intrinsics_of_a_frame_replace_those_of_the_file(tmp_path, layout, name):
    folder = WRITERS[layout](tmp_path / "scene", fl_x=30.0, cy=10.0, k1=-0.1)
    change(folder, lambda c: c["frames"][1].update(fl_x=80.0, fl_y=82.0, cx=20.0, w=96, h=72, k1=0.0), name)
    scene = parse(folder)
    assert intrinsics(scene, 1) == pytest.approx((40, 41, 10, 5)) and scene.views[1].lens is None
    assert scene.views[0].lens is not None and scene.views[0].lens.params == (30.0, 30.0, 24.0, 10.0, -0.1, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize(
    ("keys", "model", "coefficients"),
    [
        ({"k1": -0.1, "k2": 0.02, "p1": 0.003, "p2": 0.004}, "OPENCV", (-0.1, 0.02, 0.003, 0.004)),
        ({"k1": -0.1, "k3": 0.01, "camera_model": "OPENCV"}, "FULL_OPENCV", (-0.1, 0, 0, 0, 0.01, 0, 0, 0)),
        ({"k1": 0.1, "k4": 0.01, "camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE", (0.1, 0, 0, 0.01)),
        ({"is_fisheye": True}, "OPENCV_FISHEYE", (0, 0, 0, 0)),
    ],
)
def test_lenses(tmp_path, layout, keys, model, coefficients):
    """The photo is undistorted as one of the same COLMAP camera is."""
    scene = parse(WRITERS[layout](tmp_path / "scene", fl_x=FOCAL, **keys))
    lens = scene.views[0].lens
    assert lens is not None and (lens.model, lens.params) == (model, (FOCAL, FOCAL, 24.0, 18.0, *coefficients))
    assert read_photo(scene.views[0]).image.shape == (3, *SIZE)


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"camera_model": "EQUIRECTANGULAR"}, ["camera_model EQUIRECTANGULAR", "split"]),
        ({"ftheta_p0": 0.1}, ["ftheta_p0"]),
        ({"k4": 0.1}, ["k4"]),
        ({"camera_model": "OPENCV_FISHEYE", "p1": 0.1}, ["p1"]),
        ({"fl_x": -3.0}, ["fl_x", "-3.0"]),
        ({"fl_x": "wide"}, ["fl_x", "'wide'"]),
        ({"w": 48, "h": 48}, ["48x48", "48x36"]),
        ({"w": 0.5}, ["w:", "0.5"]),
        ({"cx": math.nan}, ["cx", "nan"]),
        ({"fl_x": 1e-9}, ["focal length"]),
    ],
)
def test_other_lenses_and_damaged_intrinsics_are_refused(tmp_path, layout, keys, parts):
    with pytest.raises(InputError) as caught:
        parse(WRITERS[layout](tmp_path / "scene", **keys))
    assert all(part in str(caught.value) for part in (*parts, "transforms")), caught.value


# ------------------------------------------------------------------ names and splits of NeRF-Synthetic
def test_train_and_test_files_are_enough(tmp_path):
    scene = parse(synthetic(tmp_path / "scene", stages=("train", "test")))
    assert scene.splits == {"train": (0, 1), "val": (), "test": (2, 3)} and "no transforms_val.json" in " ".join(scene.notes)


def test_renderings_without_alpha_are_photos_without_mask(tmp_path):
    scene = parse(synthetic(tmp_path / "scene", "RGB"))
    assert not any(view.alpha_is_mask for view in scene.views) and read_photo(scene.views[0]).mask is None
    assert "no alpha" in " ".join(scene.notes)


def test_alpha_in_some_renderings_is_refused(tmp_path):
    folder = synthetic(tmp_path / "scene")
    photo(folder / "test" / "r_1.png", "RGB")
    with pytest.raises(InputError, match=r"test/r_1\.png.*alpha.*5 of 6"):
        parse(folder)


def test_sizes_may_differ_where_the_intrinsics_say_for_which(tmp_path):
    folder = synthetic(tmp_path / "scene", fl_x=FOCAL, w=48, h=36)
    photo(folder / "train" / "r_1.png", size=(72, 96))
    assert intrinsics(parse(folder), 1) == pytest.approx((80, 80, 48, 36))


@pytest.mark.parametrize("layout", WRITERS)
def test_a_byte_order_mark_is_skipped(tmp_path, layout):
    folder = WRITERS[layout](tmp_path / "scene")
    for path in folder.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(parse(folder).views) >= 2


@pytest.mark.parametrize(("layout", "name"), [("nerf_synthetic", "transforms_train.json"), ("nerfstudio", "transforms.json")])
@pytest.mark.parametrize(
    ("stated", "file", "name_of_view"),
    [
        (".\\train\\x_1", "train/x_1.png", "train-x_1"),
        ("train\\x_1.jpg", "train/x_1.jpg", "train-x_1"),
        ("./train/1305031102.170", "train/1305031102.170.png", "train-1305031102.170"),
        ("train/x_1", "train/x_1.jpg", "train-x_1"),
        ("/home/other/scene/train/x_1.png", "train/x_1.png", "home-other-scene-train-x_1"),
        ("C:\\data\\scene\\train\\x_1.png", "train/x_1.png", "data-scene-train-x_1"),
    ],
)
def test_file_names_of_other_programs(tmp_path, layout, name, stated, file, name_of_view):
    folder = WRITERS[layout](tmp_path / "scene")
    photo(folder / file, "RGBA" if layout == "nerf_synthetic" and file.endswith("png") else "RGB")
    if file.endswith("jpg"):
        for path in folder.rglob("*.png"):
            photo(path, "RGB")
    change(folder, lambda c: c["frames"][1].update(file_path=stated), name)
    view = next(view for view in parse(folder).views if view.image == folder / file)
    assert view.name == name_of_view


# ------------------------------------------------------------------ nerfstudio
def test_photos_are_in_natural_order_and_split_by_rule_or_by_the_file(tmp_path):
    folder = studio(tmp_path / "scene", tuple(f"images/f{k}.png" for k in (11, 2, 10, 1)))
    scene = parse(folder)
    assert [view.name for view in scene.views] == ["images-f1", "images-f2", "images-f10", "images-f11"]
    assert scene.splits["test"] == (0,) and recognise(folder)[0] == "nerfstudio"
    lists = {
        "train_filenames": ["images/f1.png", "./images/f10.png"],
        "val_filenames": ["images/f2.png"],
        "test_filenames": ["images/f11.png"],
    }
    assert parse(change(folder, lambda c: c.update(lists))).splits == {"train": (0, 2), "val": (1,), "test": (3,)}


def test_frames_without_photo_are_left_out_with_a_note(tmp_path):
    folder = studio(tmp_path / "scene", tuple(f"images/f{k}.png" for k in range(3)))
    (folder / "images" / "f1.png").unlink()
    scene = parse(folder)
    assert len(scene.views) == 2 and any("images/f1.png" in note for note in scene.notes)
    (folder / "images" / "f2.png").unlink()
    with pytest.raises(InputError, match=r"at least 2 frames with a photo, got 1 of 3.*f1\.png"):
        parse(folder)


def test_masks_of_frames(tmp_path):
    folder = studio(tmp_path / "scene")
    values = np.zeros(SIZE, np.uint8)
    values[:9] = 1
    for name in "ab":
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(values).save(folder / "masks" / f"{name}.png")
    change(folder, lambda c: [frame.update(mask_path=frame["file_path"].replace("images", "masks")) for frame in c["frames"]])
    found = read_photo(parse(folder).views[0])
    assert found.mask is not None and (found.mask > 127).float().mean() == pytest.approx(0.25)
    assert (found.image[:, 9:] == 255).all() and (found.image[:, :9] == 100).all()
    change(folder, lambda c: c["frames"][0].pop("mask_path"))
    scene = parse(folder)
    assert read_photo(scene.views[1]).mask is None and any("no mask is used" in note for note in scene.notes)
    change(folder, lambda c: c["frames"][0].update(mask_path="masks/c.png"))
    with pytest.raises(InputError, match=r"frames\[0\]: mask_path.*masks/c\.png"):
        parse(folder)


def test_reduced_photos_are_used_for_a_downscale(tmp_path):
    folder = studio(tmp_path / "scene")
    for name in "ab":
        photo(folder / "images_2" / f"{name}.png", "RGB", (18, 24), 7)
    scene = parse(folder, downscale=2.0)
    assert intrinsics(scene) == pytest.approx((20, 20, 12, 9)) and (read_photo(scene.views[0]).image == 7).all()
    assert intrinsics(parse(folder, downscale=4.0)) == pytest.approx((10, 10, 6, 4.5))


def test_points_of_the_file(tmp_path):
    folder = studio(tmp_path / "scene", ply_file_path="points/sparse_pc.ply")
    write_ply(folder / "points" / "sparse_pc.ply", PointCloud(torch.tensor([[1.0, 2.0, 3.0]])))
    scene = with_cloud(parse(folder), folder)
    assert scene.cloud.read().xyz.tolist() == [[1, 2, 3]] and scene.cloud.path.name == "sparse_pc.ply"


def test_applied_transform_of_colmap_points(tmp_path):
    """Points of COLMAP are moved with the poses; without the key they may be in another world, and are not used."""
    folder = studio(tmp_path / "scene", applied_transform=[[0, 1, 0, 5.0], [1, 0, 0, 0], [0, 0, -1, 0]])
    model = folder / "colmap" / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text("1 PINHOLE 48 36 40 40 24 18\n")
    (model / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.png\n\n")
    (model / "points3D.txt").write_text("1 1 2 3 10 20 30 0.5\n")
    cloud = with_cloud(parse(folder), folder).cloud.read()
    assert cloud.xyz.tolist() == [[7, 1, -3]] and cloud.rgb_u8 is not None and cloud.rgb_u8.tolist() == [[10, 20, 30]]
    assert parse(change(folder, lambda c: c.pop("applied_transform"))).carried_points is None
    with pytest.raises(InputError, match="applied_transform"):
        parse(change(folder, lambda c: c.update(applied_transform=[[1, 2], [3, 4]])))


def test_depth_images_of_frames(tmp_path):
    folder = studio(tmp_path / "scene")
    (folder / "depth").mkdir()
    for name in "ab":
        Image.fromarray(np.full((18, 24), 2500, np.uint16)).save(folder / "depth" / f"{name}.png")
    change(folder, lambda c: [f.update(depth_file_path=f["file_path"].replace("images", "depth")) for f in c["frames"]])
    depth = parse(folder).views[0].depth
    assert depth is not None and depth.unit == 1e-3 and depth.camera.image_size == (18, 24)
    assert depth.camera.focal_length[0].tolist() == pytest.approx([20, 20])
    distorted = parse(change(folder, lambda c: c.update(k1=-0.1)))
    assert distorted.views[0].depth is None and any("depth images of 2 frames" in note for note in distorted.notes)


def test_alpha_of_photos_is_their_mask(tmp_path):
    folder = studio(tmp_path / "scene", mode="RGBA")
    found = read_photo(parse(folder).views[0])
    assert found.mask is not None and (found.mask == 100).all()
    expected = replace(parse(folder, white_bg=False).views[0])
    assert (read_photo(expected).image == 100).all() and (found.image > 150).all()
