"""Camera trajectories on disk: round trips, text poses, damaged files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from npbgpp.data import CloudFile, read_poses, write_poses
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


def test_round_trip(tmp_path):
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


def test_axes_and_units_of_the_file(tmp_path):
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


def entry(key: str, value: object) -> str:
    return file_of(GOOD | {key: value})


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ("", ["none"]),
        ("\n \n", ["none"]),
        ("1 2 3\n4 5 6\n", ["2 of 3"]),
        (TEXT + "1 0 0 0\n", ["5 of 4"]),
        (TEXT.replace("\n", " 7\n", 1), ["5 numbers"]),
        (TEXT.replace("1.0", "one", 1), ["'one'"]),
        (TEXT.replace("1.0", "nan", 1), ["finite"]),
        (TEXT.replace("1.0", "1e300", 1), ["1e+30"]),
        (TEXT.replace("1.0", "0", 1), ["pose 0", "orthonormal"]),
        (TEXT + TEXT.replace("1.0", "-1", 1), ["pose 1", "mirror"]),
        ("1 " * 12, ["pose 0", "orthonormal"]),
        ("# Some text\n\nof a few lines", ["JSON", "numbers", "got '#'"]),
        ("1 2 3 4\n1 2 3", ["rows of 4", "one of 3"]),
        ("{", ["JSON"]),
        ("[" * 5 + "1", ["rows"]),
        ('{"cameras": ' + "[" * 100_000, ["JSON"]),
        ("{}", ["format"]),
        (file_of(GOOD, format="npbgpp cameras 2"), ["format"]),
        ('{"format": "npbgpp cameras 1", "cameras": {}}', ["cameras"]),
        (file_of(), ["none"]),
        (file_of(GOOD, 7), ["camera 1", "cam_to_world"]),
        (file_of("text"), ["camera 0", "cam_to_world"]),
        (file_of({k: v for k, v in GOOD.items() if k != "focal_length"}), ["camera 0", "focal_length"]),
        (entry("cam_to_world", np.eye(3).tolist()), ["cam_to_world", "4x4"]),
        (entry("cam_to_world", [[1], [1, 2]]), ["cam_to_world"]),
        (entry("cam_to_world", None), ["cam_to_world"]),
        (entry("cam_to_world", (2 * np.eye(4)).tolist()), ["camera 0", "last row"]),
        (entry("cam_to_world", np.full((4, 4), np.nan).tolist()), ["cam_to_world", "nan"]),
        (entry("focal_length", [50.0, -1.0]), ["focal_length", "-1.0"]),
        (entry("focal_length", [50.0, 1e-60]), ["focal_length", "1e-60"]),
        (entry("focal_length", 50.0), ["focal_length", "50.0"]),
        (entry("focal_length", ["wide", 50.0]), ["focal_length"]),
        (entry("focal_length", [10**400, 50.0]), ["focal_length"]),
        (entry("principal_point", [float("inf"), 1.0]), ["principal_point", "inf"]),
        (entry("image_size", [48.5, 64]), ["image_size", "48.5x64"]),
        (entry("image_size", [0, 64]), ["image_size", "0x64"]),
        (entry("image_size", [10**6, 64]), ["image_size", "1e+06x64"]),
        (b"\xe9\xff 1 2 3", ["utf-8"]),
        (None, ["No such file"]),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, values):
    path = tmp_path / "path.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_poses(path, LIKE)
    assert all(value in str(caught.value) for value in (str(path), *values)), str(caught.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        read_poses(tmp_path, LIKE)
