"""NPCR scenes: conventions of poses and intrinsics, order of photos, optional mattes, the cloud of the scene, notes."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from npbgpp.data import CloudFile, Scene
from npbgpp.parsers.npcr import parse_npcr

from ..helpers.damage import clear, line, put
from ..helpers.layouts.npcr import write
from ..helpers.scenes import projection_errors, save_picture

SIZE = (48, 64)
BLOCK = "72 0 32\n0 72 24\n0 0 1\n"  # of the drawn photos


def parse(folder: Path, **choices) -> Scene:
    return parse_npcr(folder, folder, folder.name, CloudFile(folder / "pointclouds" / "frame1.xzy"), **choices)


@pytest.fixture
def folder(drawn, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn["npcr"], tmp_path / "Hair"))


def test_a_pose_written_by_hand(folder):
    """At (1, 2, 3) looking along the world's y axis with its z axis up: z of the camera is (0, 1, 0), x (1, 0, 0), y (0, 0, -1)."""
    line("CamPose.inf", 0, "0 1 0 1 0 0 0 0 -1 1 2 3")(folder)
    camera = parse(folder).views[0].camera
    uv, depth = camera.project(torch.tensor([[1.0, 6.0, 3.0], [2.0, 6.0, 3.0], [1.0, 6.0, 4.0]]))
    torch.testing.assert_close(depth[0], torch.full((3,), 4.0))
    torch.testing.assert_close(uv[0], torch.tensor([[32.0, 24.0], [50.0, 24.0], [32.0, 6.0]]))
    torch.testing.assert_close(camera.centers(), torch.tensor([[1.0, 2.0, 3.0]]))


def test_the_published_sample_has_a_centred_field_of_view_of_45_degrees(folder):
    """K is relative to the image corner."""
    clear("img/0", "*.png")(folder)
    for photo in (folder / "img" / "0").iterdir():
        save_picture(photo, np.zeros((800, 800, 3), dtype=np.uint8))
    put("Intrinsic.inf", "0\n965.6854 0 400\n0 965.6854 400\n0 0 1\n\n")(folder)
    camera = parse(folder).views[0].camera
    forward = camera.R[0, :, 2]
    left, right = (float(camera.rays()[1][0, 400, column] @ forward) for column in (0, -1))
    assert left == pytest.approx(right, abs=1e-6) and left == pytest.approx(math.cos(math.atan(399.5 / 965.6854)), abs=1e-6)
    assert 2 * math.degrees(math.atan(400 / camera.focal_length[0, 0])) == pytest.approx(45, abs=1e-5)


def test_views_and_mattes(folder):
    scene = parse(folder)
    assert [view.name for view in scene.views] == [f"img_{k + 1:04}" for k in range(8)] and scene.notes == ()
    assert scene.splits == {"train": tuple(range(8)), "val": (4,), "test": (0,)} and len(scene.cloud.read()) == 400
    assert all(view.mask == view.image.with_name(f"{view.name}_alpha.png") and view.background == (1.0, 1.0, 1.0) for view in scene.views)
    clear("img/0", "*_alpha.png")(folder)
    assert all(view.mask is None and view.background is None for view in parse(folder).views)


def test_photos_are_in_numerical_order(folder):
    """10 comes after 9; the first number may be 0."""
    for path in sorted((folder / "img" / "0").iterdir()):
        number, rest = path.name[4:8], path.name[8:]
        path.rename(path.with_name(f"img_{int(number) - 1}{rest}"))
    assert [view.name for view in parse(folder).views] == [f"img_{k}" for k in range(8)]
    assert projection_errors(parse(folder)).abs().max() < 0.5
    write(folder.parent / "long", views=11, size=(12, 16))
    for path in sorted((folder.parent / "long" / "img" / "0").iterdir()):
        path.rename(path.with_name(path.name.replace("img_00", "img_").replace("img_0", "img_")))
    assert [view.name for view in parse(folder.parent / "long").views] == [f"img_{k}" for k in range(1, 12)]


def test_one_block_of_intrinsics_or_one_per_photo(folder):
    """Numbers of blocks and short lines are ignored."""
    several = parse(folder)
    put("Intrinsic.inf", "0\n" + BLOCK)(folder)
    assert all(torch.equal(a.camera.focal_length, b.camera.focal_length) for a, b in zip(several.views, parse(folder).views, strict=True))
    put("Intrinsic.inf", "\n".join(["000\n" + BLOCK, "a\n\n  \n140 0 60.5\n0 130 50\n0 0 1"] + [BLOCK] * 6))(folder)
    for name in ("img_0002.jpg", "img_0002_alpha.png"):
        save_picture(folder / "img" / "0" / name, np.zeros((100, 121, 3), dtype=np.uint8))
    first, second = (view.camera for view in parse(folder).views[:2])
    assert first.image_size == SIZE and first.focal_length.tolist() == [[72.0, 72.0]] and second.image_size == (100, 121)
    assert second.focal_length.tolist() == [[140.0, 130.0]] and second.principal_point.tolist() == [[60.5, 50.0]]


def test_the_cloud_of_the_scene(folder):
    clouds = [folder / "pointclouds" / f"frame1.{suffix}" for suffix in ("xzy", "obj", "txt", "ply")]
    for cloud in clouds:
        cloud.touch()
    for cloud in clouds:
        assert parse(folder).carried_points == cloud
        cloud.unlink()
    assert parse(folder).carried_points is None


@pytest.mark.parametrize(
    ("change", "values"),
    [
        (lambda folder: (folder / "img" / "1").mkdir(), ["img/0", "1 more"]),
        (put("Intrinsic.inf", "0\n72 3 32\n0 72 24\n0 0 1"), ["skew", "8 photos", "img_0001"]),
        (put("Intrinsic.inf", "0\n72 0 50\n0 72 24\n0 0 1"), ["(50, 24)", "64x48"]),
        (put("Intrinsic.inf", "0\n72 0 32\n0 72 40\n0 0 1"), ["(32, 40)", "64x48"]),
    ],
)
def test_ignored_and_doubtful_input_is_noted(folder, change, values):
    change(folder)
    (note,) = parse(folder).notes
    assert all(value in note for value in values), note
