"""The layout of monocular videos: what is read, by which names, and what is refused."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data.colmap_model import ColmapModel, read_points
from npbgpp.data.motion_maps import read_disparity, read_static, read_uv, write_flow
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.methods.nsff.normalisation import nearest_depth, video_frame
from npbgpp.parsers import read_scene, recognise

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


# ----------------------------------------------------------------------- reading
def test_every_frame_has_its_maps(root):
    scene = read(root, "auto")
    assert recognise(root)[0] == "monocular" and scene.layout == "monocular"
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
    assert [view.moment for view in scene.frames] == [0, 1, 2, 3]
    assert scene.frames[0].motion.flow_backward is None and scene.frames[-1].motion.flow_forward is None
    assert scene.frames[0].motion.flow_forward.name == "00002.flo" and scene.frames[1].motion.flow_backward.name == "00003.flo"
    assert [(view.name, view.moment) for view in scene.views[4:]] == [(f"novel_{k:05d}", k - 2) for k in (2, 3, 4, 5)]
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
    near = nearest_depth(before.frames, before.carried_points)

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
    assert nearest_depth(scene.frames, scene.carried_points) == pytest.approx(near)


def test_the_undistorted_model_in_sparse_goes_before_the_one_below_it(root):
    shutil.copytree(root / "sparse", root / "sparse" / "0")
    cameras = root / "sparse" / "0" / "cameras.txt"
    cameras.write_text("1 SIMPLE_RADIAL 48 32 60 24 16 0.2\n")
    assert read(root).frames[0].camera.focal_length[0, 0] == pytest.approx(48 / 1.24)
    for name in ("cameras", "images", "points3D"):
        (root / "sparse" / f"{name}.txt").unlink()
    with pytest.raises(
        InputError, match=r"sparse/0/cameras.txt: expected the camera of undistorted frames, got SIMPLE_RADIAL.* moves pixels by up to"
    ):
        read(root)
    cameras.write_text("1 SIMPLE_RADIAL 48 32 60 24 16 0.001\n")
    assert any("is ignored" in note for note in read(root).notes)
    cameras.write_text("1 SIMPLE_RADIAL 48 32 60 24 16 0\n")
    assert not any("is ignored" in note for note in read(root).notes)


def test_poses_bounds_stand_in_for_a_model(root):
    reference = read(root)
    rows = []
    for view in reference.frames:
        pose = view.camera.to_opengl()[0].double().numpy()
        matrix = np.stack([-pose[:3, 1], pose[:3, 0], pose[:3, 2], pose[:3, 3], [*SIZE, view.camera.focal_length[0, 0].item()]], 1)
        rows.append([*matrix.ravel(), 1.5 + 0.1 * view.moment, 9.0])
    np.save(root / "poses_bounds.npy", np.array(rows))
    shutil.rmtree(root / "sparse")
    scene = read(root, start_end=(1, 7))
    for view, old in zip(scene.frames, reference.frames[1:], strict=False):
        torch.testing.assert_close(view.camera.R, old.camera.R, atol=1e-5, rtol=0)
        torch.testing.assert_close(view.camera.T, old.camera.T, atol=1e-5, rtol=0)
    assert scene.carried_points is None and nearest_depth(scene.frames, None) == pytest.approx(1.6)
    assert video_frame(scene).scale == pytest.approx(1 / 0.75 / 1.6)
    np.save(root / "poses_bounds.npy", np.array(rows) * [*[1] * 15, -1, 1])
    with pytest.raises(InputError, match="a positive nearest depth"):
        video_frame(read(root))
    np.save(root / "poses_bounds.npy", np.array(rows)[:5])
    with pytest.raises(InputError, match="8 photos, got 5"):
        read(root)
    (root / "poses_bounds.npy").unlink()
    with pytest.raises(InputError, match="expected poses of the frames.*stages"):
        read(root)


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
    assert read_static(scene.frames[2]).all() and any("counts as standing still" in note for note in scene.notes)


def test_disparity_may_be_numbers(root):
    expected = read_disparity(read(root).frames[1])
    for k in range(FRAMES):
        path = root / "disps" / f"{k:05d}.png"
        np.save(path.with_suffix(".npy"), np.asarray(Image.open(path)).astype(np.float64) / 65535)
        path.unlink()
    torch.testing.assert_close(read_disparity(read(root).frames[1]), expected)


# -------------------------------------------------------------------- coordinates
def test_the_scale_is_that_of_the_nearest_depth(root):
    """Disparity is exactly linear in 1 / depth here, so that its 95th percentile is a depth of the frame."""
    scene = read(root)
    frame = video_frame(scene)
    near = 1 / 0.75 / frame.scale
    points = read_points(scene.carried_points).cloud.xyz.double()
    depth = torch.cat([view.camera.project(points.float())[1][0] for view in scene.frames])
    assert depth[depth > 0].min() < near < depth[depth > 0].quantile(0.2)
    assert near == pytest.approx(_nearest_by_hand(scene), rel=0.02)
    assert len(frame) == FRAMES and frame.image_size == SIZE
    centres = frame.moments.centers()
    assert centres.mean(0).abs().max() < 1e-6
    torch.testing.assert_close(centres[:, 0], centres[:, 0].sort().values)  # the camera goes to the right


def _nearest_by_hand(scene: Scene) -> float:
    """Depths of the frames from their disparity and two depths that the generator stretched it between: those of the points do as well."""
    model = ColmapModel.read(scene.carried_points.parent)
    points = read_points(scene.carried_points)
    depths = []
    for view, image in zip(scene.frames, model.images, strict=True):
        xyz = points.cloud.xyz[np.searchsorted(points.number, image.point)]
        z = (xyz.double() @ image.world_to_cam[:3, :3].T + image.world_to_cam[:3, 3])[:, 2].numpy()
        column, row = np.floor(image.uv_px).astype(int).T
        disparity = np.asarray(Image.open(view.motion.disparity)).astype(float)
        slope, offset = np.polyfit(1 / z, disparity[row, column], 1)
        depths.append(slope / (np.percentile(disparity, 95) - offset))
    return min(depths)


def test_disparity_that_is_not_linear_leaves_the_depths_of_points(root):
    scene = read(root)
    rng = np.random.default_rng(0)
    for k in range(FRAMES):
        Image.fromarray(rng.integers(0, 65535, SIZE).astype(np.uint16)).save(root / "disps" / f"{k:05d}.png")
    depths = []
    points = read_points(scene.carried_points)
    for view, image in zip(scene.frames, ColmapModel.read(root / "sparse").images, strict=True):
        xyz = points.cloud.xyz[np.searchsorted(points.number, image.point)]
        depths.append(np.percentile(view.camera.project(xyz)[1][0].numpy(), 5))
    assert nearest_depth(scene.frames, scene.carried_points) == pytest.approx(min(depths), rel=1e-5)


def test_depth_in_place_of_disparity_is_noticed(root):
    for k in range(FRAMES):
        path = root / "disps" / f"{k:05d}.png"
        Image.fromarray(65535 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(InputError, match="larger numbers where the scene is nearer"):
        video_frame(read(root))


def test_still_scenes_have_no_video_frame(root):
    with pytest.raises(InputError, match="expected the frames of a video, got a still scene of layout colmap"):
        video_frame(read(root, "colmap"))


# ---------------------------------------------------------------------- bad input
def remove_all_but(folder: Path, count: int) -> None:
    for path in sorted(folder.iterdir())[count:]:
        path.unlink()


def unregister(root: Path) -> None:
    rename_in_model(root, lambda k, lines: None if k in (2, 5) else lines)


def other_size(root: Path) -> None:
    Image.fromarray(np.zeros((10, 48, 3), np.uint8)).save(root / "images" / "00004.png")


def camera_of_other_shape(root: Path) -> None:
    (root / "sparse" / "cameras.txt").write_text("1 PINHOLE 48 48 40 40 24 24\n")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: remove_all_but(root / "images", 2), "images: expected at least 3 frames of a video, got 2"),
        (lambda root: (root / "flow_fw" / "00003.flo").unlink(), "flow_fw: expected 7 files.*but the last, got 6"),
        (lambda root: shutil.copy(root / "flow_bw" / "00003.flo", root / "flow_bw" / "00000.flo"), "flow_bw: expected 7 files.*got 8"),
        (lambda root: (root / "disps" / "00003.png").unlink(), "disps: expected 8 files .*disparity of every frame, got 7"),
        (lambda root: (root / "masks" / "00003.png.png").unlink(), "masks: expected a mask.*for 00003.png"),
        (
            lambda root: write_flow(root / "flow_fw" / "00002.flo", np.zeros((32, 40, 2), np.float32)),
            "00002.flo: expected 48x32 pixels.*got 40x32",
        ),
        (lambda root: (root / "flow_bw" / "00002.flo").write_bytes(b"\0" * 40), "00002.flo: expected the number 202021.25"),
        (unregister, "not registered: 00002.png, 00005.png"),
        (other_size, "image .*00004.png: expected 48x32 pixels as .*00000.png has, got 48x10"),
        (camera_of_other_shape, "00000.png: expected 48x48 pixels as its camera in the model"),
        (lambda root: shutil.rmtree(root / "novel" / "images"), "novel/images: expected photos of other cameras"),
        (lambda root: (root / "novel" / "images" / "00002.png").unlink(), "cameras.json: expected a camera for each of 7 photos"),
        (
            lambda root: (root / "novel" / "images" / "00002.png").rename(root / "novel" / "images" / "2.png"),
            "masks: expected a mask .*for 2.png",
        ),
    ],
)
def test_damaged_videos_are_refused(root, break_it, message):
    break_it(root)
    with pytest.raises(InputError, match=message):
        read(root)


def test_unknown_novel_frames_are_refused(root):
    shutil.rmtree(root / "novel" / "masks")
    (root / "novel" / "images" / "00002.png").rename(root / "novel" / "images" / "2.png")
    with pytest.raises(InputError, match="2.png: expected the name of a frame, such as 00000"):
        read(root)


@pytest.mark.parametrize("wrong", [(0, 2), (3, 3), (-1, 5), (7, 20), (5, 2)])
def test_ranges_without_three_frames_are_refused(root, wrong):
    with pytest.raises(InputError, match="datasets.start_end"):
        read(root, start_end=wrong)
    assert len(read(root, start_end=(4, 100)).frames) == 4


def test_sizes_that_cannot_be_are_refused(root):
    with pytest.raises(InputError, match="img_wh: expected a positive"):
        read(root, img_wh=(0, 16))
    with pytest.raises(InputError, match="expected one of them"):
        read(root, img_wh=(24, 16), downscale=2.0)
    with pytest.raises(InputError, match="layout colmap has no such choice"):
        read(root, "colmap", start_end=(0, 5))


def test_maps_that_say_nothing_are_refused(root):
    view = read(root).frames[3]
    mask = root / "masks" / "00003.png.png"
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(mask)
    with pytest.raises(
        InputError, match=r"mask .*00003.png.png: expected some pixels that stand still, got none; masks in masks are dark \(0\) where"
    ):
        read_static(view)
    Image.fromarray(np.full((10, 10), 255, np.uint8)).save(mask)
    with pytest.raises(InputError, match="00003.png.png: expected 48x32 pixels.*got 10x10"):
        read_static(view)
    disparity = root / "disps" / "00003.png"
    Image.fromarray(np.full(SIZE, 700, np.uint16)).save(disparity)
    with pytest.raises(InputError, match="disparity .*00003.png: expected larger numbers where the scene is nearer, got .* everywhere"):
        read_disparity(view)
    disparity.write_bytes(b"no picture")
    with pytest.raises(InputError, match="00003.png: expected a readable image"):
        read_disparity(view)
    (root / "flow_fw" / "00003.flo").write_bytes((root / "flow_fw" / "00003.flo").read_bytes()[:-8])
    with pytest.raises(InputError, match="00003.flo: expected .* bytes"):
        read_uv(view, True)


def test_disparity_that_is_not_finite_is_refused(root):
    for k in range(FRAMES):
        (root / "disps" / f"{k:05d}.png").unlink()
        np.save(root / "disps" / f"{k:05d}.npy", np.where(np.arange(48) == k, np.nan, np.ones(SIZE)))
    with pytest.raises(InputError, match="00002.npy: expected finite numbers, got 32 of 1536"):
        read_disparity(read(root).frames[2])
    np.save(root / "disps" / "00002.npy", np.ones(5))
    with pytest.raises(InputError, match="00002.npy: expected an array"):
        read_disparity(read(root).frames[2])


def test_real_video(shared):
    """COLMAP's points and disparity that classical programs made."""
    root = shared / "data" / "monocular" / "lady-running"
    scene = read_scene("auto", root, root, "lady", CloudFile(root / "none.ply"), {"start_end": (2, 14)})
    assert scene.layout == "monocular" and len(scene.views) == 12
    frame = video_frame(scene)
    assert 10 < 1 / 0.75 / frame.scale < 25  # poses_bounds.npy beside it, by LLFF's rule for all frames, says 10.4
    for view in scene.frames[1:-1]:
        assert 0.5 < read_static(view).float().mean() < 0.97
        assert read_uv(view, True).norm(dim=-1).mean() < 20 and read_disparity(view).std() > 0.05
