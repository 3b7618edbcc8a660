"""Scenes moved to geo-referenced coordinates: the same pictures as before, and files with the coordinates of the scene."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData
from scipy.spatial.transform import Rotation

from npbgpp.data import CloudFile, Scene, read_poses, write_npcr_cameras, write_poses
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, far_offset, read_ply, write_ply
from npbgpp.parsers import read_scene, with_cloud
from npbgpp.prepare.llff import prepare_llff
from npbgpp.prepare.settings import CloudSettings, LlffSettings

from ..helpers.every_layout import WRITTEN

UTM = (500000.25, 4650002.3, 125.0)


def move_colmap(folder: Path) -> None:
    model = folder / "sparse" / "0"
    comment, *lines = (model / "images.txt").read_text().splitlines()
    for k in range(0, len(lines), 2):
        number, *pose, camera, name = lines[k].split()
        w, x, y, z, *t = map(float, pose)
        moved = np.array(t) - Rotation.from_quat([x, y, z, w]).as_matrix() @ UTM
        lines[k] = " ".join([number, *pose[:4], *(f"{part:.17g}" for part in moved), camera, name])
    (model / "images.txt").write_text("\n".join([comment, *lines]) + "\n")
    comment, *lines = (model / "points3D.txt").read_text().splitlines()
    for k, line in enumerate(lines):
        number, *words = line.split()
        lines[k] = " ".join([number, *(f"{float(word) + part:.17g}" for word, part in zip(words, UTM, strict=False)), *words[3:]])
    (model / "points3D.txt").write_text("\n".join([comment, *lines]) + "\n")


def move_transforms(folder: Path) -> None:
    path = folder / "transforms.json"
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        for row, part in zip(frame["transform_matrix"], UTM, strict=False):
            row[3] += part
    path.write_text(json.dumps(content))


def move_llff(folder: Path) -> None:
    rows = np.load(folder / "poses_bounds.npy").astype(np.float64)
    rows[:, [3, 8, 13]] += UTM
    np.save(folder / "poses_bounds.npy", rows)


def move_npbg(folder: Path) -> None:
    import re

    def moved(match: re.Match) -> str:
        pose = np.array(match[1].split(), np.float64).reshape(4, 4)
        pose[:3, 3] += UTM
        return f"<transform>{' '.join(f'{value:.17g}' for value in pose.ravel())}</transform>"

    path = folder / "cameras.xml"
    path.write_text(re.sub("<transform>([^<]*)</transform>", moved, path.read_text()))


def move_npbg_text(folder: Path) -> None:
    table = np.loadtxt(folder / "view_matrix.txt").reshape(-1, 4, 4)
    table[:, :3, 3] += UTM
    np.savetxt(folder / "view_matrix.txt", table.reshape(-1, 4), fmt="%.17g")


MOVES: dict[str, Callable[[Path], None]] = {
    **{"colmap_text": move_colmap, "nerfstudio": move_transforms, "llff": move_llff, "monocular": move_llff},
    **{"npbg": move_npbg, "npbg_text": move_npbg_text},
}


def parse(name: str, folder: Path) -> Scene:
    layout, _, cloud = WRITTEN[name]
    return with_cloud(read_scene(layout, folder, folder, "scene", CloudFile(folder / cloud), {}), folder)


@pytest.fixture
def far(drawn, tmp_path) -> Callable[[str], Path]:
    def go(name: str) -> Path:
        folder = Path(shutil.copytree(drawn[name], tmp_path / "scene"))
        MOVES[name](folder)
        cloud = folder / WRITTEN[name][2]
        write_ply(cloud, read_ply(cloud), UTM)
        return folder

    return go


@pytest.mark.parametrize("name", MOVES)
def test_points_project_to_the_same_pixels(drawn, far, name):
    near_scene, scene = parse(name, drawn[name]), parse(name, far(name))
    assert scene.offset is not None and near_scene.offset is None and any("reduced by" in note for note in scene.notes)
    near_xyz, xyz = near_scene.cloud.read().xyz, scene.cloud.read().xyz
    for near_view, view in zip(near_scene.views, scene.views, strict=True):
        expected, found = near_view.camera.project(near_xyz)[0], view.camera.project(xyz)[0]
        assert (found - expected).abs().max() < 5e-3
    moved = torch.tensor(scene.offset, dtype=torch.float64) - torch.tensor(UTM, dtype=torch.float64)
    assert (xyz.double() + moved - near_xyz).abs().max() < 1e-5


def test_points_of_the_model_are_moved_too(far):
    folder = far("colmap_text")
    (folder / "mvs_pc.ply").unlink()
    scene = parse("colmap_text", folder)
    assert scene.cloud.path.name == "points3D.txt" and scene.cloud.read().xyz.abs().max() < 100


def test_written_files_have_the_coordinates_of_the_scene(far, tmp_path):
    scene = parse("colmap_text", far("colmap_text"))
    cameras = [view.camera for view in scene.views]
    write_poses(tmp_path / "cameras.json", cameras, scene.offset)
    centre = np.array(json.loads((tmp_path / "cameras.json").read_text())["cameras"][0]["cam_to_world"])[:3, 3]
    expected = cameras[0].centers()[0].double().numpy() + scene.offset
    np.testing.assert_allclose(centre, expected, atol=1e-6)
    write_npcr_cameras(tmp_path, cameras, scene.offset)
    for path in (tmp_path / "cameras.json", tmp_path / "CamPose.inf"):
        back = Cameras.cat(list(read_poses(path, cameras[0], scene.offset)))
        torch.testing.assert_close(back.T, Cameras.cat(cameras).T, atol=1e-5, rtol=0)
    write_ply(tmp_path / "cloud.ply", scene.cloud.read(), scene.offset)
    vertex = PlyData.read(str(tmp_path / "cloud.ply"))["vertex"].data
    assert vertex.dtype["x"] == np.float64 and abs(vertex["y"].mean() - UTM[1]) < 5


def test_prepared_clouds_and_llff_scenes_keep_the_coordinates(far):
    from npbgpp.prepare.cloud import make_cloud

    folder = far("colmap_text")
    make_cloud(CloudSettings(scene=str(folder), layout="colmap", pc_name="made.ply", method="sparse"), "test")
    vertex = PlyData.read(str(folder / "made.ply"))["vertex"].data
    assert abs(vertex["x"].mean() - UTM[0]) < 5 and abs(vertex["y"].mean() - UTM[1]) < 5
    prepare_llff(LlffSettings(scene=folder))
    rows = np.load(folder / "poses_bounds.npy")
    assert (np.abs(rows[:, [3, 8, 13]] - UTM) < 10).all() and 0 < rows[:, 15].min() < rows[:, 16].max() < 20


def test_clouds_of_far_llff_scenes_with_a_model(far):
    """The offsets of model and scene may differ: points of the model are those of the scene."""
    from npbgpp.prepare.cloud import make_cloud

    folder = far("colmap_text")
    prepare_llff(LlffSettings(scene=folder))
    make_cloud(CloudSettings(scene=str(folder), layout="llff", pc_name="made.ply", method="sparse"), "test")
    xyz = PlyData.read(str(folder / "made.ply"))["vertex"].data
    assert abs(xyz["x"].mean() - UTM[0]) < 5 and abs(xyz["y"].mean() - UTM[1]) < 5
    scene = parse("llff", folder)
    assert scene.carried_points is not None
    moved = replace(scene, cloud=scene.cloud.of_points(scene.carried_points, scene.carried_transform)).cloud.read()
    assert (scene.cloud.read().xyz.mean(0) - moved.xyz.mean(0)).norm() < 0.5


def test_points_of_a_model_are_not_taken_for_those_of_transforms_json(drawn, tmp_path):
    from npbgpp.prepare.cloud import make_cloud

    folder = Path(shutil.copytree(drawn["nerfstudio"], tmp_path / "scene"))
    shutil.copytree(drawn["colmap_text"] / "sparse", folder / "colmap" / "sparse")
    with pytest.raises(InputError, match="method=sparse: the poses of transforms.json may be in another world"):
        make_cloud(CloudSettings(scene=str(folder), pc_name="made.ply", method="sparse"), "test")
    with pytest.raises(InputError, match="got none of them"):
        make_cloud(CloudSettings(scene=str(folder), pc_name="made.ply"), "test")


def test_other_layouts_are_refused_by_name(drawn, tmp_path):
    folder = Path(shutil.copytree(drawn["scannet_raw"], tmp_path / "scene"))
    for path in (folder / "pose").iterdir():
        pose = np.loadtxt(path)
        pose[:3, 3] += UTM
        np.savetxt(path, pose, fmt="%.17g")
    with pytest.raises(InputError, match=r"near the origin for layout scannet, got positions about .*subtract this position"):
        parse("scannet_raw", folder)


@pytest.mark.parametrize(
    ("centres", "expected"),
    [
        (torch.zeros(0, 3), None),
        (torch.tensor([[1e6, 0.0, 0.0], [1e6 + 1, 0.4, 0.0]]), (1000000.0, 0.0, 0.0)),
        (torch.tensor([[900.0, 0.0, 0.0], [900.0, 0.1, 0.0]]), None),
        (torch.tensor([[1e5, 0.0, 0.0], [2e5, 0.0, 0.0]]), None),
        (torch.tensor([[torch.nan, 0.0, 0.0]]), None),
    ],
)
def test_only_far_cameras_are_moved(centres, expected):
    assert far_offset(centres) == expected
