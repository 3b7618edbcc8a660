"""Monocular videos: maps, frames in use, splits, poses by name, masks and disparity of both kinds; damaged videos; and a real one."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data import CloudFile, Scene, read_disparity, read_static, read_uv
from npbgpp.errors import InputError
from npbgpp.parsers import read_scene

from ..helpers.damage import clear, image, put, remove

FRAMES, SIZE = 8, (32, 48)


@pytest.fixture
def root(moving_root: Path, tmp_path: Path) -> Path:
    """A copy of the moving scene that may be changed."""
    copy = tmp_path / "hop"
    shutil.copytree(moving_root / "hop", copy)
    return copy


def read(root: Path, layout: str = "monocular", **choices) -> Scene:
    return read_scene(layout, root, root, "hop", CloudFile(root / "none.ply"), choices)


def rename_in_model(root: Path, change) -> None:
    """Changes the two lines of every photo of the model."""
    path = root / "sparse" / "images.txt"
    comment, *lines = path.read_text().splitlines()
    pairs = [change(k, [first, second]) for k, (first, second) in enumerate(zip(lines[::2], lines[1::2], strict=True))]
    path.write_text("\n".join([comment, *(line for pair in pairs if pair is not None for line in pair)]) + "\n")


def test_every_frame_has_its_maps(root):
    scene = read(root, "auto")
    assert scene.layout == "monocular"
    for k, view in enumerate(scene.frames):
        motion = view.motion
        assert view.name == f"{k:05d}" and motion.disparity == root / "disps" / f"{k:05d}.png"
        assert motion.flow_forward == (None if k == 7 else root / "flow_fw" / f"{k:05d}.flo")
        assert motion.flow_backward == (None if k == 0 else root / "flow_bw" / f"{k:05d}.flo")
        assert motion.static_mask == root / "masks" / f"{k:05d}.png.png" and not motion.inverted
    assert scene.carried_points == root / "sparse" / "points3D.txt"


def test_frames_in_use_are_counted_from_zero_and_end_without_flow(root):
    scene = read(root, start_end=(2, 6))
    assert [view.name for view in scene.frames] == ["00002", "00003", "00004", "00005"]
    assert [view.time_step for view in scene.frames] == [0, 1, 2, 3]
    assert scene.frames[0].motion.flow_backward is None and scene.frames[-1].motion.flow_forward is None
    assert scene.frames[0].motion.flow_forward.name == "00002.flo" and scene.frames[1].motion.flow_backward.name == "00003.flo"
    assert [(view.name, view.time_step) for view in scene.views[4:]] == [(f"novel_{k:05d}", k - 2) for k in (2, 3, 4, 5)]
    assert scene.splits == {"train": (0, 1, 2, 3), "val": (2,), "test": (4, 5, 6, 7)}


def test_without_novel_views_all_frames_are_tested_and_all_train(root):
    shutil.rmtree(root / "novel")
    scene = read(root)
    assert scene.splits == {"train": tuple(range(8)), "val": (4,), "test": tuple(range(8))}
    assert scene.with_splits(None, None).splits == scene.splits
    chosen = scene.with_splits(None, (1, 5)).splits
    assert chosen == {"train": (0, 2, 3, 4, 6, 7), "val": (4,), "test": (1, 5)}
    assert scene.with_splits((2,), None).splits == {"train": (0, 1, 3, 4, 5, 6, 7), "val": (2,), "test": (0, 1, 3, 4, 5, 6, 7)}
    assert scene.with_splits(None, (4,)).splits == {"train": (0, 1, 2, 3, 5, 6, 7), "val": (), "test": (4,)}


def test_flow_is_taken_in_order_whatever_it_is_called(root):
    """One revision of RAFT's helper names backward flow by the second frame, the other by the first."""
    by_second = [view.motion.flow_backward for view in read(root).frames]
    for path in sorted((root / "flow_bw").iterdir()):
        path.rename(path.with_name(f"{int(path.stem) - 1:05d}.flo"))
    by_first = [view.motion.flow_backward for view in read(root).frames]
    assert by_first[1].name == "00000.flo" and by_second[1].name == "00001.flo"
    assert [p.name for p in by_first[1:]] == [f"{k:05d}.flo" for k in range(7)]


def test_poses_are_matched_by_names_not_by_numbers(root):
    """Numbers of COLMAP are in the order in which photos were registered."""
    before = read(root)

    def renumbered(k, lines):
        return [re.sub(r"^\d+", str(8 - k), lines[0]), lines[1]]

    rename_in_model(root, renumbered)
    path = root / "sparse" / "images.txt"
    comment, *lines = path.read_text().splitlines()
    pairs = list(zip(lines[::2], lines[1::2], strict=True))[::-1]
    path.write_text("\n".join([comment, *(line for pair in pairs for line in pair)]) + "\n")
    scene = read(root)
    for view, old in zip(scene.frames, before.frames, strict=True):
        torch.testing.assert_close(view.camera.R, old.camera.R)
        torch.testing.assert_close(view.camera.T, old.camera.T)


def test_the_undistorted_model_in_sparse_goes_before_the_one_below_it(root):
    shutil.copytree(root / "sparse", root / "sparse" / "0")
    cameras = root / "sparse" / "0" / "cameras.txt"
    cameras.write_text("1 SIMPLE_RADIAL 48 32 60 24 16 0.2\n")
    assert read(root).frames[0].camera.focal_length[0, 0] == pytest.approx(48 / 1.24)
    for name in ("cameras", "images", "points3D"):
        (root / "sparse" / f"{name}.txt").unlink()
    with pytest.raises(InputError, match=r"sparse/0/cameras\.txt: .*SIMPLE_RADIAL"):
        read(root)
    cameras.write_text("1 SIMPLE_RADIAL 48 32 60 24 16 0.001\n")
    assert any("distortion" in note for note in read(root).notes)
    cameras.write_text("1 SIMPLE_RADIAL 48 32 60 24 16 0\n")
    assert not any("distortion" in note for note in read(root).notes)


def test_poses_bounds_replace_a_missing_model(root):
    reference = read(root)
    rows = []
    for view in reference.frames:
        pose = view.camera.to_opengl()[0].double().numpy()
        matrix = np.stack([-pose[:3, 1], pose[:3, 0], pose[:3, 2], pose[:3, 3], [*SIZE, view.camera.focal_length[0, 0].item()]], 1)
        rows.append([*matrix.ravel(), 1.5 + 0.1 * view.time_step, 9.0])
    np.save(root / "poses_bounds.npy", np.array(rows))
    shutil.rmtree(root / "sparse")
    scene = read(root, start_end=(1, 7))
    for view, old in zip(scene.frames, reference.frames[1:], strict=False):
        torch.testing.assert_close(view.camera.R, old.camera.R, atol=1e-5, rtol=0)
        torch.testing.assert_close(view.camera.T, old.camera.T, atol=1e-5, rtol=0)
    assert scene.carried_points is None and scene.frames[0].bounds == (pytest.approx(1.6), 9.0)


def test_motion_masks_mean_the_opposite(root):
    expected = read_static(read(root).frames[2])
    (root / "motion_masks").mkdir()
    for k in range(FRAMES):
        mask = np.asarray(Image.open(root / "masks" / f"{k:05d}.png.png"))
        Image.fromarray(255 - mask).save(root / "motion_masks" / f"{k:05d}.png")
    shutil.rmtree(root / "masks")
    view = read(root).frames[2]
    assert view.motion.inverted and torch.equal(read_static(view), expected)
    shutil.rmtree(root / "motion_masks")
    scene = read(root)
    assert read_static(scene.frames[2]).all() and any("masks" in note for note in scene.notes)


def test_disparity_may_be_numbers(root):
    expected = read_disparity(read(root).frames[1])
    for k in range(FRAMES):
        path = root / "disps" / f"{k:05d}.png"
        np.save(path.with_suffix(".npy"), np.asarray(Image.open(path)).astype(np.float64) / 65535)
        path.unlink()
    torch.testing.assert_close(read_disparity(read(root).frames[1]), expected)


# ------------------------------------------------------------------ damaged videos
NOVEL = "novel/images/00002.png"
BAD = {
    "frame of another size": (image("images/00004.png", (10, 48)), "00004.png", "48x32", "48x10"),
    "frames without pose": (
        lambda root: rename_in_model(root, lambda k, lines: None if k in (2, 5) else lines),
        "sparse",
        "00002.png, 00005.png",
    ),
    "camera of another ratio": (put("sparse/cameras.txt", "1 PINHOLE 48 48 40 40 24 24\n"), "00000.png", "48x48", "48x32"),
    "no novel photos": (clear("novel/images"), "novel/images", "none"),
    "a novel photo less": (remove(NOVEL), "cameras.json", "7 photos", "8"),
    "novel photo without mask": (lambda root: (root / NOVEL).rename(root / "novel/images/2.png"), "novel/masks", "2.png"),
    "novel photo without frame": (
        lambda root: [shutil.rmtree(root / "novel" / "masks"), (root / NOVEL).rename(root / "novel/images/2.png")],
        "2.png",
        "00000",
    ),
    "novel photo of another size": (image(NOVEL, (10, 48)), "00002.png", "48x32", "48x10"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_videos_are_refused(root, case):
    damage, *parts = BAD[case]
    damage(root)
    with pytest.raises(InputError) as caught:
        read(root)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_frames_in_use_end_with_the_video(root):
    assert len(read(root, start_end=(4, 100)).frames) == 4


MAPS = {
    "moving mask": (
        lambda root: Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / "masks" / "00003.png.png"),
        read_static,
        "00003.png.png",
        "none",
    ),
    "mask of another ratio": (image("masks/00003.png.png", (10, 10), "L"), read_static, "00003.png.png", "48x32", "10x10"),
    "constant disparity": (image("disps/00003.png", SIZE, "I;16"), read_disparity, "00003.png", "0 everywhere"),
    "no disparity": (put("disps/00003.png", b"no image"), read_disparity, "00003.png"),
    "truncated flow": (
        lambda root: put("flow_fw/00003.flo", (root / "flow_fw" / "00003.flo").read_bytes()[:-8])(root),
        lambda view: read_uv(view, True),
        "00003.flo",
    ),
}


@pytest.mark.parametrize("case", MAPS)
def test_damaged_maps_are_refused(root, case):
    damage, read_map, *parts = MAPS[case]
    view = read(root).frames[3]
    damage(root)
    with pytest.raises(InputError) as caught:
        read_map(view)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_disparity_that_is_not_finite_is_refused(root):
    for k in range(FRAMES):
        (root / "disps" / f"{k:05d}.png").unlink()
        np.save(root / "disps" / f"{k:05d}.npy", np.where(np.arange(48) == k, np.nan, np.ones(SIZE)))
    with pytest.raises(InputError, match=r"00002\.npy: .*32 of 1536"):
        read_disparity(read(root).frames[2])
    np.save(root / "disps" / "00002.npy", np.ones(5))
    with pytest.raises(InputError, match=r"00002\.npy: .*\(5,\)"):
        read_disparity(read(root).frames[2])


def test_real_video(shared):
    """Disparity and flow of classical programs."""
    root = shared / "data" / "monocular" / "lady-running"
    scene = read_scene("auto", root, root, "lady", CloudFile(root / "none.ply"), {"start_end": (2, 14)})
    assert scene.layout == "monocular" and len(scene.views) == 12
    for view in scene.frames[1:-1]:
        assert 0.5 < read_static(view).float().mean() < 0.97
        assert read_uv(view, True).norm(dim=-1).mean() < 20 and read_disparity(view).std() > 0.05
