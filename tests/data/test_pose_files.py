"""Files with the cameras of a film: what is written is read back, and damage is named."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from npbgpp.data.point_files import CloudFile
from npbgpp.data.pose_files import read_poses, write_poses
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.parsers.npcr import parse_npcr

from ..helpers.layouts import npcr
from ..helpers.scenes import look_at_origin

GOOD = {
    "cam_to_world": np.eye(4).tolist(),
    "focal_length": [50.0, 51.0],
    "principal_point": [32.0, 24.0],
    "image_size": [48, 64],
}


def views(count: int = 5) -> Cameras:
    poses = torch.from_numpy(np.stack([look_at_origin(0.3 + k) for k in range(count)]))
    focal = 50 + torch.rand(count, 2, dtype=torch.float64)
    cameras = Cameras.from_opencv(poses, focal, 20 + torch.rand(count, 2, dtype=torch.float64), (48, 64))
    return replace(cameras, R=cameras.R.float(), T=cameras.T.float())


LIKE = views()[0]


def file_of(*entries: object, format: object = "npbgpp cameras 1") -> str:
    return json.dumps({"format": format, "cameras": list(entries)})


def test_what_is_written_is_read_back(tmp_path):
    cameras = views()
    other_size = replace(views(1), image_size=(100, 30))
    write_poses(tmp_path / "cameras.json", [cameras, other_size])
    found = read_poses(tmp_path / "cameras.json", LIKE)
    assert len(found) == 6 and all(len(camera) == 1 for camera in found) and found[5].image_size == (100, 30)
    together = Cameras.cat(found[:5])
    assert together.R.dtype == together.T.dtype == torch.float32
    for name in ("R", "T"):  # to the last bit, apart from zeros
        mine, given = getattr(together, name), getattr(cameras, name)
        assert torch.equal(mine, given.where(given.abs() > 1e-12, mine)) and (mine - given).abs().max() < 1e-15, name
    assert torch.equal(together.focal_length, cameras.focal_length) and torch.equal(together.principal_point, cameras.principal_point)


def test_the_file_says_what_its_module_says(tmp_path):
    cameras = views()
    write_poses(tmp_path / "cameras.json", [cameras])
    content = json.loads((tmp_path / "cameras.json").read_text())
    assert content["format"] == "npbgpp cameras 1"
    pose = np.array(content["cameras"][2]["cam_to_world"])
    expected = np.linalg.inv(look_at_origin(2.3)) @ np.diag([1.0, -1.0, -1.0, 1.0])  # right, up, backward
    assert np.abs(pose - expected).max() < 1e-6
    assert content["cameras"][2]["image_size"] == [48, 64]
    assert content["cameras"][2]["focal_length"] == cameras.focal_length[2].tolist()


def test_stacked_matrices(tmp_path):
    matrices = views().to_opengl()
    np.savetxt(tmp_path / "path.txt", matrices.reshape(-1, 4).numpy(), fmt="%.9g")
    found = Cameras.cat(read_poses(tmp_path / "path.txt", LIKE))
    assert torch.allclose(found.to_opengl(), matrices, atol=1e-6)
    assert torch.equal(found.focal_length, LIKE.focal_length.expand(5, 2)) and found.image_size == LIKE.image_size


def test_poses_of_npcr(tmp_path):
    npcr.write(tmp_path / "scene", 6)
    scene = parse_npcr(tmp_path / "scene", tmp_path / "scene", "scene", CloudFile(tmp_path / "scene" / "mvs_pc.ply"))
    found = read_poses(tmp_path / "scene" / "CamPose.inf", LIKE)
    assert len(found) == 6
    for camera, view in zip(found, scene.views, strict=True):
        assert torch.allclose(camera.R, view.camera.R, atol=1e-6) and torch.allclose(camera.T, view.camera.T, atol=1e-6)


TEXT = "\n".join(" ".join(map(str, row)) for row in np.eye(4)) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "at least one pose, got none"),
        ("\n \n", "at least one pose"),
        ("1 2 3\n4 5 6\n", "rows of 4 numbers.* got 2 of 3"),
        (TEXT + "1 0 0 0\n", "rows of 4 numbers, 4 for each pose.* got 5 of 4"),
        (TEXT.replace("\n", " 7\n", 1), "rows of 5 numbers as the first one, got others"),
        (TEXT.replace("1.0", "one", 1), "got others"),
        (TEXT.replace("1.0", "nan", 1), "finite numbers"),
        (TEXT.replace("1.0", "1e300", 1), "finite numbers"),
        (TEXT.replace("1.0", "0", 1), "pose 0: expected a rigid .* not orthonormal"),
        (TEXT + TEXT.replace("1.0", "-1", 1), "pose 1: expected a rigid .* mirror"),
        ("1 " * 12, "pose 0: expected a rigid"),
        ("{", "expected JSON, got a damaged file"),
        ("[" * 5 + "1", "rows of"),
        ('{"cameras": ' + "[" * 100_000, "expected JSON, got a damaged file"),
        ("{}", '"format": "npbgpp cameras 1"'),
        (file_of(GOOD, format="npbgpp cameras 2"), '"format": "npbgpp cameras 1"'),
        ('{"format": "npbgpp cameras 1", "cameras": {}}', 'a list "cameras"'),
        (file_of(), "at least one pose, got none"),
        (file_of(GOOD, 7), "camera 1: cam_to_world: expected numbers"),
        (file_of("text"), "camera 0: cam_to_world: expected numbers"),
        (file_of({k: v for k, v in GOOD.items() if k != "focal_length"}), "focal_length: expected numbers"),
        (file_of(GOOD | {"cam_to_world": np.eye(3).tolist()}), r"cam_to_world: expected finite numbers \(4x4\)"),
        (file_of(GOOD | {"cam_to_world": [[1], [1, 2]]}), "cam_to_world: expected numbers"),
        (file_of(GOOD | {"cam_to_world": None}), "cam_to_world"),
        (file_of(GOOD | {"cam_to_world": (2 * np.eye(4)).tolist()}), "camera 0: expected a rigid"),
        (file_of(GOOD | {"cam_to_world": np.full((4, 4), np.nan).tolist()}), "finite numbers"),
        (file_of(GOOD | {"focal_length": [50.0, -1.0]}), "focal_length: expected positive"),
        (file_of(GOOD | {"focal_length": [50.0, 1e-60]}), "focal_length: expected positive"),
        (file_of(GOOD | {"focal_length": 50.0}), "focal_length: expected finite numbers"),
        (file_of(GOOD | {"focal_length": ["wide", 50.0]}), "focal_length: expected numbers"),
        (file_of(GOOD | {"focal_length": [10**400, 50.0]}), "focal_length: expected"),
        (file_of(GOOD | {"principal_point": [float("inf"), 1.0]}), "principal_point: expected finite"),
        (file_of(GOOD | {"image_size": [48.5, 64]}), "image_size: expected height and width from 1 to 16384 pixels, got 48.5x64"),
        (file_of(GOOD | {"image_size": [0, 64]}), "image_size: .* got 0x64"),
        (file_of(GOOD | {"image_size": [10**6, 64]}), "image_size: "),
    ],
)
def test_damage_is_named(tmp_path, content, message):
    (tmp_path / "path.txt").write_text(content)
    with pytest.raises(InputError) as caught:
        read_poses(tmp_path / "path.txt", LIKE)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert str(tmp_path / "path.txt") in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin").write_bytes(b"\xe9\xff 1 2 3")
    for name in ("missing.json", "latin", "."):
        with pytest.raises(InputError, match="expected a file with poses, got none that can be read"):
            read_poses(tmp_path / name, LIKE)
