"""Small scenes that other programs wrote, or as they write them: read right, or refused by name. Skipped where they are not among the shared data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from npbgpp.core.config import as_typed
from npbgpp.data import CloudFile, Scene, read_cloud, read_photo
from npbgpp.engine.checkpoint import read_weights
from npbgpp.errors import InputError
from npbgpp.parsers import read_scene, with_cloud
from npbgpp.parsers.npbg import SceneFile, read_shots


@pytest.fixture(scope="module")
def cases(shared: Path) -> Path:
    if not (shared / "cases").is_dir():
        pytest.skip("the cases are not among the shared data")
    return shared / "cases"


def parse(folder: Path, **choices) -> Scene:
    pc_name = "cloud.ply" if (folder / "cloud.ply").is_file() else "mvs_pc.ply"
    scene = read_scene("auto", folder, folder, folder.name, CloudFile(folder / pc_name), choices)
    return with_cloud(scene, folder) if "10-scannet" not in folder.parts else scene


@pytest.mark.parametrize(
    ("name", "focal_length", "principal_point", "coefficients"),
    [
        ("shifted_cx_cy", (200, 200), (130, 80), None),
        ("fl_y_differs", (200, 215), (120, 90), None),
        ("per_frame_fl", (260, 260), (120, 90), None),
        ("k1", (200, 200), (120, 90), (-0.1, 0.02, 0, 0)),
    ],
)
def test_intrinsics_of_transforms_files(cases, name, focal_length, principal_point, coefficients):
    for view in parse(cases / "06-transforms" / name).views:
        if coefficients is None:
            assert view.lens is None and view.camera.focal_length[0].tolist() == pytest.approx(focal_length)
        else:
            assert view.lens is not None and view.lens.params == (*focal_length, *principal_point, *coefficients)
        assert view.camera.principal_point[0].tolist() == pytest.approx(principal_point)


@pytest.mark.parametrize(
    ("place", "views"),
    [
        *((f"06-transforms/{name}", 9) for name in ("backslash", "dotted_name", "bom", "rgb_png")),
        ("06-transforms/blendernerf_no_val", 6),
        *((f"03-text-models/{name}", 3) for name in ("b_two_blank_lines", "c_leading_blank", "g_indent_comment")),
        *((f"02-names-and-points/{name}", 3) for name in ("b1_bin", "b5_bin", "b6_bin")),
        ("02-names-and-points/c", 4),
        ("17-colmap/b_labels_dot", 3),
        ("17-colmap/o_ns_masks", 3),
        ("07-metashape/c3", 6),
        ("07-metashape/e", 6),
        ("07-metashape/g", 6),
        ("10-scannet/nan", 23),
    ],
)
def test_scenes_are_read(cases, place, views):
    scene = parse(cases / place)
    assert len(scene.views) == views
    for view in scene.views:
        assert read_photo(view).image.shape[1:] == view.camera.image_size
    if "10-scannet" not in place and "03-text" not in place:
        assert len(scene.cloud.read()) > 0


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("01-equirectangular/EQUIRECTANGULAR_bin", ["spherical photos", "split"]),
        ("01-equirectangular/EQUIRECTANGULAR_txt", ["spherical photos", "split"]),
        ("17-colmap/p_gbk", ["UTF-8", "_0.png"]),
        ("07-metashape/d", ["spherical"]),
        ("07-metashape/j2", ["A/DJI_0", "B/DJI_0"]),
    ],
)
def test_what_is_not_read_is_refused_by_name(cases, place, parts):
    with pytest.raises(InputError) as caught:
        parse(cases / place)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_masks_and_alpha(cases):
    for name in ("mask01", "maskRGBA", "rgba"):
        photo = read_photo(parse(cases / "04-pixels" / name).views[0])
        assert photo.mask is not None and (photo.mask > 127).float().mean().item() == pytest.approx(0.261, abs=5e-4)
        assert (photo.image[:, 0, 0] == 255).all()
    view = parse(cases / "21-masks" / "a", downscale=2.0).views[0]
    photo = read_photo(view)
    assert view.image.parent.name == "images_2" and photo.mask is not None and 0.1 < (photo.mask > 127).float().mean() < 0.12


def test_grey_of_16_bits(cases):
    image = read_photo(parse(cases / "04-pixels" / "grey16").views[0]).image
    assert image.float().mean().item() == pytest.approx(127.5, abs=0.1)


def test_colours_of_clouds(cases):
    files = sorted((cases / "05-ply").glob("*.ply"))
    assert len(files) == 8
    for path in files:
        cloud = read_cloud(path)
        assert cloud.rgb_u8 is not None and cloud.rgb_u8[0].tolist() == [120, 78, 63], path.name


def test_points_as_ply_alone(cases):
    scene = parse(cases / "02-names-and-points" / "c")
    assert scene.cloud.path.name == "points3D.ply" and len(scene.cloud.read()) == 400


def test_fisheye_photos_of_metashape(cases):
    """A ray at 60 degrees falls on f times the angle."""
    scene = parse(cases / "07-metashape" / "c3")
    lens = scene.views[0].lens
    assert lens is not None
    at = lens.project(np.array([[np.tan(np.pi / 3), 0.0]]))
    np.testing.assert_allclose(at, [[120 + 100 * np.pi / 3, 90]], atol=1e-9)


def test_rigs_of_metashape(cases):
    """The slave camera is 0.2 beside its master, turned by 0.1."""
    shots = read_shots(SceneFile.read(cases / "07-metashape" / "e" / "scene.yaml")).shots
    for master, slave in zip(shots[:3], shots[3:], strict=True):
        offset = master.camera.view(slave.camera.centers())[0, 0]
        torch.testing.assert_close(offset, torch.tensor([-0.2, 0.0, 0.0]), atol=1e-5, rtol=0)
        turn = master.camera.R[0].T @ slave.camera.R[0]
        assert torch.arccos((turn.trace() - 1) / 2).item() == pytest.approx(0.1, abs=1e-4)


def test_frames_and_their_maps(cases):
    scene = parse(cases / "19-monocular" / "unpadded")
    for k, view in enumerate(scene.frames):
        motion = view.motion
        assert motion is not None and motion.disparity is not None and view.name == motion.disparity.stem == f"f{k}"
        assert k == 11 or (motion.flow_forward is not None and motion.flow_forward.stem == f"f{k}")
        assert k == 0 or (motion.flow_backward is not None and motion.flow_backward.stem == f"f{k}")


@pytest.mark.parametrize("name", ["2024_05_01", "695e0514", "1e5", "0010"])
def test_scene_names_that_look_like_numbers(name):
    assert as_typed(f"datasets.scene_name={name}") == f"datasets.scene_name='{name}'"


@pytest.mark.parametrize("name", ["pl09.ckpt", "numpy scalar best score.ckpt"])
def test_weights_of_other_programs(cases, name):
    weights = read_weights(cases / "14-checkpoint" / name).tensors
    assert {key: tuple(value.shape) for key, value in weights.items()} == {"nerf_coarse.xyz_encoding_1.0.weight": (2, 3)}
