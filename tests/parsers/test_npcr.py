"""NPCR scenes: cameras that agree with the pictures, mattes, intrinsics of one or all photos, the cloud that comes along, what is refused."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from npbgpp.data.images import read_photo
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.parsers.npcr import parse_npcr

from ..helpers.layouts.npcr import write
from ..helpers.scenes import central_intrinsics, draw, look_at_origin, projection_errors, save_mask, save_picture

SIZE = (48, 64)
BLOCK = "72 0 32\n0 72 24\n0 0 1\n"  # of the photos that are drawn


def parse(folder: Path, **choices) -> Scene:
    return parse_npcr(folder, folder, folder.name, CloudFile(folder / "pointclouds" / "frame1.xzy"), **choices)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight views that may be spoilt."""
    write(tmp_path / "Hair")
    return tmp_path / "Hair"


def test_cameras_are_those_that_drew_the_photos(folder):
    scene = parse(folder)
    poses = torch.from_numpy(np.stack([look_at_origin(2 * math.pi * k / 8) for k in range(8)])).float()
    focal_length = torch.tensor([[central_intrinsics(SIZE)[0, 0]] * 2])
    for k, view in enumerate(scene.views):
        expected = Cameras.from_opencv(poses[k : k + 1], focal_length, torch.tensor([[32.0, 24.0]]), SIZE)
        for found, wanted in (
            (view.camera.R, expected.R),
            (view.camera.T, expected.T),
            (view.camera.principal_point, expected.principal_point),
        ):
            torch.testing.assert_close(found.float(), wanted, rtol=0, atol=1e-5)
        assert torch.equal(view.camera.focal_length.float(), focal_length.float()) and view.camera.image_size == SIZE


def test_a_row_written_by_hand(folder):
    """At (1, 2, 3) looking along the world's y axis with its z axis up: z of the camera is (0, 1, 0), x (1, 0, 0), y (0, 0, -1)."""
    rows = (folder / "CamPose.inf").read_text().splitlines()
    rows[0] = "0 1 0 1 0 0 0 0 -1 1 2 3"
    (folder / "CamPose.inf").write_text("\n".join(rows))
    camera = parse(folder).views[0].camera
    uv, depth = camera.project(torch.tensor([[1.0, 6.0, 3.0], [2.0, 6.0, 3.0], [1.0, 6.0, 4.0]]))
    torch.testing.assert_close(depth[0], torch.full((3,), 4.0))
    torch.testing.assert_close(uv[0], torch.tensor([[32.0, 24.0], [50.0, 24.0], [32.0, 6.0]]))
    torch.testing.assert_close(camera.centers(), torch.tensor([[1.0, 2.0, 3.0]]))


def test_the_published_sample_sees_45_degrees_about_the_middle(folder):
    """As much to the left as to the right: K counts from the corner."""
    for photo in (folder / "img" / "0").glob("*.png"):
        photo.unlink()
    for photo in (folder / "img" / "0").iterdir():
        save_picture(photo, np.zeros((800, 800, 3), dtype=np.uint8))
    (folder / "Intrinsic.inf").write_text("0\n965.6854 0 400\n0 965.6854 400\n0 0 1\n\n")
    camera = parse(folder).views[0].camera
    forward = camera.R[0, :, 2]
    left, right = (float(camera.rays()[1][0, 400, column] @ forward) for column in (0, -1))
    assert left == pytest.approx(right, abs=1e-6) and left == pytest.approx(math.cos(math.atan(399.5 / 965.6854)), abs=1e-6)
    assert 2 * math.degrees(math.atan(400 / camera.focal_length[0, 0])) == pytest.approx(45, abs=1e-5)


def test_points_project_to_where_they_are_drawn(folder):
    scene = parse(folder)
    error = projection_errors(scene)
    assert error.abs().max() < 0.5 and (error.mean(0).abs() < 0.1).all()
    assert [view.name for view in scene.views] == [f"img_{k + 1:04}" for k in range(8)] and scene.notes == ()
    assert scene.splits == {"train": tuple(range(8)), "val": (4,), "test": (0,)} and len(scene.cloud.read()) == 400


def test_mattes_are_masks_and_their_outside_is_white(folder):
    scene = parse(folder)
    assert all(view.mask == view.image.with_name(f"{view.name}_alpha.png") and view.background == (1.0, 1.0, 1.0) for view in scene.views)
    _, drawn = draw(central_intrinsics(SIZE), look_at_origin(0.0), SIZE)
    photo = read_photo(scene.views[0])
    assert np.array_equal(photo.mask[0].numpy() > 127, drawn) and (photo.image[:, ~torch.from_numpy(drawn)] == 255).all()
    assert all(view.background is None and view.mask is not None for view in parse(folder, white_bg=False).views)


def test_mattes_may_be_absent(folder):
    for matte in (folder / "img" / "0").glob("*_alpha.png"):
        matte.unlink()
    assert all(view.mask is None and view.background is None for view in parse(folder).views)


def test_photos_are_in_the_order_of_their_numbers(folder):
    """Not of their names, in which 10 comes before 9; the first one may be 0."""
    for path in sorted((folder / "img" / "0").iterdir()):
        number, _, rest = path.name.removeprefix("img_").partition(path.suffix if "_alpha" not in path.name else "_alpha")
        path.rename(path.with_name(f"img_{int(number) - 1}{'_alpha' if '_alpha' in path.name else ''}{path.suffix}"))
        assert rest in ("", ".png")
    assert [view.name for view in parse(folder).views] == [f"img_{k}" for k in range(8)]
    assert projection_errors(parse(folder)).abs().max() < 0.5
    write(folder.parent / "long", views=11, size=(12, 16))
    for path in sorted((folder.parent / "long" / "img" / "0").iterdir()):
        path.rename(path.with_name(path.name.replace("img_00", "img_").replace("img_0", "img_")))
    assert [view.name for view in parse(folder.parent / "long").views] == [f"img_{k}" for k in range(1, 12)]


def test_one_block_serves_all(folder):
    several = parse(folder)
    (folder / "Intrinsic.inf").write_text("0\n" + BLOCK)
    one = parse(folder)
    assert all(torch.equal(a.camera.focal_length, b.camera.focal_length) for a, b in zip(several.views, one.views, strict=True))


def test_each_photo_has_its_block_and_its_size(folder):
    """Numbers of blocks and short lines are not read."""
    blocks = ["000\n" + BLOCK, "a\n\n  \n140 0 60.5\n0 130 50\n0 0 1"] + [BLOCK] * 6
    (folder / "Intrinsic.inf").write_text("\n".join(blocks))
    picture = np.zeros((100, 121, 3), dtype=np.uint8)
    save_picture(folder / "img" / "0" / "img_0002.jpg", picture)
    save_picture(folder / "img" / "0" / "img_0002_alpha.png", picture)
    first, second = (view.camera for view in parse(folder).views[:2])
    assert first.image_size == SIZE and first.focal_length.tolist() == [[72.0, 72.0]]
    assert second.image_size == (100, 121)
    assert second.focal_length.tolist() == [[140.0, 130.0]] and second.principal_point.tolist() == [[60.5, 50.0]]


def test_the_cloud_beside_the_photos_comes_along(folder):
    clouds = [folder / "pointclouds" / f"frame1.{suffix}" for suffix in ("xzy", "obj", "txt", "ply")]
    for cloud in clouds:
        cloud.touch()
    for cloud in clouds:
        assert parse(folder).carried_points == cloud
        cloud.unlink()
    assert parse(folder).carried_points is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "img" / "1").mkdir(), ["only img/0", "1 more"]),
        (lambda folder: (folder / "Intrinsic.inf").write_text("0\n72 3 32\n0 72 24\n0 0 1"), ["skew", "8 photos", "img_0001"]),
        (lambda folder: (folder / "Intrinsic.inf").write_text("0\n72 0 50\n0 72 24\n0 0 1"), ["(50, 24)", "64x48", "another size"]),
        (lambda folder: (folder / "Intrinsic.inf").write_text("0\n72 0 32\n0 72 40\n0 0 1"), ["(32, 40)", "64x48", "another size"]),
    ],
)
def test_what_is_left_out_or_doubtful_is_told(folder, change, words):
    change(folder)
    (note,) = parse(folder).notes
    assert all(word in note for word in words), note


def set_line(file: str, line: int, text: str | None) -> Callable[[Path], None]:
    """Replaces a line, or removes it."""

    def spoil(folder: Path) -> None:
        lines = (folder / file).read_text().splitlines()
        lines[line : line + 1] = [] if text is None else [text]
        (folder / file).write_text("\n".join(lines))

    return spoil


def pictures(folder: Path) -> Path:
    return folder / "img" / "0"


def loop(folder: Path) -> None:
    shutil.rmtree(pictures(folder))
    pictures(folder).symlink_to(pictures(folder))


def gap(folder: Path) -> None:
    for ending in (".jpg", "_alpha.png"):
        (pictures(folder) / f"img_0008{ending}").rename(pictures(folder) / f"img_0009{ending}")


SPOILT = {
    "no folder": (lambda folder: shutil.rmtree(folder / "img"), ["img/0", "No such file"]),
    "a loop of links": (loop, ["img/0", "symbolic links"]),
    "no photos": (lambda folder: [p.unlink() for p in pictures(folder).iterdir()], ["img_0001.jpg", "got none"]),
    "only mattes": (lambda folder: [p.unlink() for p in pictures(folder).glob("*.jpg")], ["img_0001.jpg", "got none"]),
    "a photo less": (lambda folder: (pictures(folder) / "img_0004.jpg").unlink(), ["without gaps", "1, 2, 3, 5, 6 and others"]),
    "a gap": (gap, ["without gaps"]),
    "first photos gone": (
        lambda folder: [(pictures(folder) / f"img_000{k}{e}").unlink() for k in (1, 2) for e in (".jpg", "_alpha.png")],
        ["without gaps", "3, 4, 5"],
    ),
    "another name": (lambda folder: (pictures(folder) / "img_0004.jpg").rename(pictures(folder) / "a.jpg"), ["'a.jpg'", "img_0001.jpg"]),
    "a number twice": (
        lambda folder: shutil.copy(pictures(folder) / "img_0004.jpg", pictures(folder) / "img_4.jpg"),
        ["img_4.jpg", "one picture"],
    ),
    "a matte less": (lambda folder: (pictures(folder) / "img_0004_alpha.png").unlink(), ["matte", "not so 4"]),
    "a matte of another size": (
        lambda folder: save_mask(pictures(folder) / "img_0004_alpha.png", np.zeros((24, 32), dtype=bool)),
        ["img_0004_alpha.png", "64x48", "32x24"],
    ),
    "damaged photo": (lambda folder: (pictures(folder) / "img_0004.jpg").write_bytes(b"x"), ["img_0004.jpg", "readable image"]),
    "no poses": (lambda folder: (folder / "CamPose.inf").unlink(), ["CamPose.inf", "no such file"]),
    "poses in other bytes": (lambda folder: (folder / "CamPose.inf").write_bytes(b"\xff\xfe1\0"), ["CamPose.inf", "unreadable"]),
    "a pose less": (set_line("CamPose.inf", 3, None), ["CamPose.inf", "8 photos", "got 7"]),
    "a number less": (set_line("CamPose.inf", 3, "1 2 3 4 5 6 7 8 9 10 11"), ["CamPose.inf: line 4", "12", "got 11"]),
    "a word": (set_line("CamPose.inf", 3, "0 0 1 1 0 0 0 1 0 1 2 x"), ["CamPose.inf: line 4", "'x'"]),
    "not finite": (set_line("CamPose.inf", 3, "0 0 1 1 0 0 0 1 0 1 2 nan"), ["CamPose.inf: line 4", "finite", "nan"]),
    "far beyond": (set_line("CamPose.inf", 3, "0 0 1 1 0 0 0 1 0 1 2 1e38"), ["CamPose.inf: line 4", "usual size"]),
    "scaled": (set_line("CamPose.inf", 3, "0 0 2 2 0 0 0 2 0 1 2 3"), ["pose 3", "rigid", "orthonormal"]),
    "mirrored": (set_line("CamPose.inf", 3, "1 0 0 0 0 1 0 1 0 1 2 3"), ["pose 3", "mirror"]),
    "no intrinsics": (lambda folder: (folder / "Intrinsic.inf").unlink(), ["Intrinsic.inf", "no such file"]),
    "empty intrinsics": (lambda folder: (folder / "Intrinsic.inf").write_text("0\n"), ["Intrinsic.inf", "8 photos", "got 0 rows"]),
    "two blocks": (lambda folder: (folder / "Intrinsic.inf").write_text(BLOCK * 2), ["Intrinsic.inf", "8 photos", "got 6 rows"]),
    "a row of K less": (set_line("Intrinsic.inf", 8, None), ["Intrinsic.inf", "got 23 rows"]),
    "four numbers": (set_line("Intrinsic.inf", 1, "72 0 32 0"), ["Intrinsic.inf: line 2", "3", "got 4"]),
    "a long word": (set_line("Intrinsic.inf", 0, "camera"), ["Intrinsic.inf: line 1", "'camera'"]),
    "negative focal length": (set_line("Intrinsic.inf", 2, "0 -72 24"), ["block 0", "positive focal lengths", "-72"]),
    "K transposed": (set_line("Intrinsic.inf", 2, "9 72 24"), ["block 0", "0 fy cy"]),
    "K of another scale": (set_line("Intrinsic.inf", 3, "0 0 2"), ["block 0", "0 0 1"]),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_scene_ends_in_one_message(folder, case):
    spoil, words = SPOILT[case]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        parse(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_hidden_and_other_files_are_ignored_and_left_alone(folder):
    for name in ("._img_0001.jpg", ".DS_Store", "read.txt"):
        (pictures(folder) / name).write_bytes(b"\0\5\26\7")
    before = sorted(folder.rglob("*"))
    assert len(parse(folder).views) == 8 and sorted(folder.rglob("*")) == before
