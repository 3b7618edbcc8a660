"""``python -m npbgpp.export``: files of trained runs of every system, and one message when something is wrong."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData
from safetensors import safe_open
from safetensors.torch import load_file

from npbgpp.data.normalisation import ray_frame
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.export.__main__ import main
from npbgpp.geometry.point_cloud import read_ply
from npbgpp.methods.base import CHECKPOINT_FORMAT
from npbgpp.parsers import read_scene

from ..conftest import REPOSITORY, TINY_NPBGPP, TINY_OVERRIDES, ring_pose
from ..run_folders import remember
from .fields import octahedron

SEMI_AXES = (0.9, 0.6, 0.8)
RANGES = ("x_range=[-1,1]", "y_range=[-0.7,0.7]", "z_range=[-1,1]", "n_grid=25")
STEPS = np.array([2, 1.4, 2]) / 24
TINY_FIELD = ("width=6", "depth=1", "skips=[]", "xyz_frequencies=0", "dir_frequencies=0", "sampling.importance=0", "sampling.samples=16")
TINY_NERF = (
    *(word for word in TINY_OVERRIDES if not word.startswith("system")),
    "system=nerf",
    "system.occupancy_grid=false",
    *(f"system.field.{word}" for word in TINY_FIELD),
)


@pytest.fixture(scope="module")
def trained(run_in, tiny_root, tmp_path_factory) -> dict[str, Path]:
    """Run folders of every system, launched from one folder; the field of nerf is an octahedron. Never write into them."""
    launch = tmp_path_factory.mktemp("runs")
    quiet = ("trainer.limit_val_batches=0", "datasets.scenes.test=[]", f"datasets.data_root={tiny_root}")
    for name, tiny in (("npbg", TINY_OVERRIDES), ("npbgpp", TINY_NPBGPP)):
        remember(run_in(launch, *quiet, name=name, tiny=tiny), launch, *tiny, *quiet)
    content = {"state_dict": octahedron(SEMI_AXES, "field.nerf_coarse."), "npbgpp": {"format": CHECKPOINT_FORMAT, "system": "NeRF"}}
    for name, frame in (("nerf", "auto"), ("inward", "inward")):
        remember(launch / name, launch, *TINY_NERF, *quiet, f"system.ray_frame={frame}")
        (launch / name / "checkpoints").mkdir()
        torch.save(content, launch / name / "checkpoints" / "last.ckpt")
    return {path.name: path for path in launch.iterdir()}


@pytest.fixture
def export(monkeypatch, tmp_path, capsys, caplog) -> Callable[..., str]:
    """Runs the command in this process, in a folder of its own; returns what it said."""
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)

    def go(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["export", *words])
        caplog.clear()
        main()
        return " ".join((capsys.readouterr().out + " " + caplog.text).split())

    return go


def refused(export, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        export(*words)
    message = str(caught.value.code)
    assert message.startswith("error: ") and "\n" not in message
    return message


def mesh_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and their colours."""
    vertex = PlyData.read(path)["vertex"]
    return np.stack([vertex[c] for c in "xyz"], 1), np.stack([vertex[c] for c in ("red", "green", "blue")], 1).astype(int)


def assert_is_the_octahedron(xyz: np.ndarray) -> None:
    assert (np.abs(xyz.max(0) - SEMI_AXES) < STEPS).all() and (np.abs(xyz.min(0) + SEMI_AXES) < STEPS).all()
    assert np.abs(np.abs(xyz / SEMI_AXES).sum(1) - 1).max() < 0.25


def code(xyz: np.ndarray) -> np.ndarray:
    """A colour of its own for every place on the octahedron."""
    return 255 * (0.5 + 0.5 * xyz / SEMI_AXES)


def paint(folder: Path) -> None:
    """Photos of the octahedron in place of those of the ball: every pixel follows its ray."""
    for view in scene_of(folder).views:
        origins, along = view.camera.rays()
        steps = origins[0, :, :, None] + torch.linspace(1.5, 4.5, 600)[:, None] * along[0, :, :, None]
        inside = (steps / torch.tensor(SEMI_AXES)).abs().sum(-1) < 1
        first = inside.int().argmax(-1)[..., None, None].expand(-1, -1, 1, 3)
        pixels = np.where(inside.any(-1)[..., None], code(steps.gather(2, first)[:, :, 0].numpy()), 0)
        alpha = np.where(inside.any(-1)[..., None], 255, 0)
        Image.fromarray(np.concatenate([pixels, alpha], -1).clip(0, 255).astype(np.uint8), "RGBA").save(view.image)


def scene_of(folder: Path) -> Scene:
    return read_scene("auto", folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), {"white_bg": True})


# ------------------------------------------------------------------ radiance fields
def test_a_mesh(trained, export, tiny_root, tmp_path):
    shutil.copytree(tiny_root / "ball", tmp_path / "painted" / "ball")
    paint(tmp_path / "painted" / "ball")
    said = export("mesh", f"run={trained['nerf']}", "out=deep/mesh.ply", *RANGES, f"datasets.data_root={tmp_path / 'painted'}")
    assert "the largest of 1 pieces" in said and "deep/mesh.ply" in said and "no training photo" not in said
    xyz, rgb = mesh_of(tmp_path / "deep" / "mesh.ply")
    assert_is_the_octahedron(xyz)
    error = np.abs(rgb - code(xyz)).max(1)
    assert np.median(error) < 20 and np.quantile(error, 0.8) < 50  # a pixel is 16 wide
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["mesh.ply"]


def test_a_mesh_in_the_colours_of_its_field(trained, export, tmp_path):
    export("mesh", f"run={trained['nerf']}", "out=mesh.obj", "use_vertex_normal=true", *RANGES)
    vertices = [line.split()[1:] for line in (tmp_path / "mesh.obj").read_text().splitlines() if line.startswith("v ")]
    values = np.array(vertices, dtype=float)
    assert_is_the_octahedron(values[:, :3])
    assert np.abs(values[:, 3:] - 1 / (1 + np.exp([-3, 0, 3]))).max() < 0.003


def test_a_mesh_comes_back_to_the_world(trained, export, tiny_root, tmp_path):
    export("mesh", f"run={trained['inward']}", "out=mesh.ply", *RANGES)
    frame = ray_frame(scene_of(tiny_root / "ball"), "inward")
    assert frame.scale < 0.9 or frame.scale > 1.1
    world, _ = mesh_of(tmp_path / "mesh.ply")
    assert_is_the_octahedron(frame.points(torch.from_numpy(world)).numpy())


def test_a_cut_mesh_is_said_to_be_open(trained, export):
    said = export("mesh", f"run={trained['nerf']}", "out=mesh.ply", *RANGES, "x_range=[0,1]")
    assert "the mesh is open there" in said


def test_a_box_of_its_own(trained, export, tmp_path):
    """Without ranges it is that of the occupancy grid: 1.5 to every side in scenes of this layout."""
    said = export("volume", f"run={trained['nerf']}", "out=scene.npy", "n_grid=16", "system.occupancy_grid=true")
    assert "x -1.5 to 1.5, y -1.5 to 1.5, z -1.5 to 1.5" in said
    said = export("volume", f"run={trained['nerf']}", "out=other.npy", "n_grid=16", "y_range=[-2,2]")
    assert "x -1 to 1, y -2 to 2, z -1 to 1" in said
    values = np.load(tmp_path / "scene.npy")
    assert values.shape == (16, 16, 16) and values.max() > 20 and values.min() == 0


def test_a_volume(trained, export):
    run = trained["nerf"]
    export("volume", f"run={run}", *RANGES, "n_grid=17", "out=scene.vol")
    places, colours = np.fromfile("scene.vol", dtype="<u4").reshape(-1, 2).T
    xyz = np.stack([places // 17 % 17 / 8 - 1, 0.7 * (places // 289 / 8 - 1), places % 17 / 8 - 1], 1)
    assert np.abs(xyz / SEMI_AXES).sum(1).max() < 1.1 and len(places) > 100  # dense 220 - 200 r: up to r = 1.1
    assert (colours >> 8 == (242 << 16 | 127 << 8 | 12)).all()
    assert (colours & 255)[np.abs(xyz).sum(1) == 0] == 255


# ------------------------------------------------------------------ points
@pytest.mark.parametrize("system", ["npbg", "npbgpp"])
def test_a_cloud(trained, export, tiny_root, tmp_path, system):
    before = {path: path.stat().st_mtime_ns for path in trained[system].rglob("*")}
    said = export("cloud", f"run={trained[system]}", "out=cloud.ply")
    found, given = read_ply(tmp_path / "cloud.ply"), read_ply(tiny_root / "ball" / "mvs_pc.ply")
    assert f"{len(found)} points" in said and 300 < len(found) <= len(given)
    distance = torch.cdist(found.xyz, given.xyz, compute_mode="donot_use_mm_for_euclid_dist")
    assert (distance.min(1).values == 0).all() and len(distance.argmin(1).unique()) == len(found)
    assert {path: path.stat().st_mtime_ns for path in trained[system].rglob("*")} == before, "the run stays as it was"


def test_colours_are_those_of_the_descriptors(trained, export, tiny_root, tmp_path):
    export("cloud", f"run={trained['npbg']}", "out=cloud.ply")
    found, given = read_ply(tmp_path / "cloud.ply"), read_ply(tiny_root / "ball" / "mvs_pc.ply")
    rows = torch.cdist(found.xyz, given.xyz).argmin(1)
    weights = torch.load(trained["npbg"] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    descriptors = torch.load(trained["npbg"] / "descriptors" / "ball.pth", weights_only=True)[rows]
    colours = 0.9 * torch.sigmoid(descriptors @ weights["rgb_converter.lin1.weight"].T + weights["rgb_converter.lin1.bias"])
    assert found.rgb_u8 is not None and (found.rgb_u8 - 255 * colours).abs().max() <= 0.51
    assert found.rgb_u8.float().std(0).max() > 0.5


# ------------------------------------------------------------------ weights
@pytest.mark.parametrize("system", ["npbg", "npbgpp", "nerf"])
def test_weights_alone(trained, export, system):
    checkpoint = torch.load(trained[system] / "checkpoints" / "last.ckpt", weights_only=True)
    said = export("weights", f"run={trained[system]}", "out=new/alone.safetensors")
    weights = load_file("new/alone.safetensors")
    assert f"{len(weights)} tensors" in said and weights.keys() == checkpoint["state_dict"].keys()
    assert all(torch.equal(weights[name], value) for name, value in checkpoint["state_dict"].items())
    with safe_open("new/alone.safetensors", framework="pt") as file:
        assert {key: json.loads(value) for key, value in file.metadata().items()} == {
            "npbgpp": {k: checkpoint["npbgpp"][k] for k in ("format", "system")}
        }
    assert ("descriptors of scenes are not among them" in said) == (system == "npbg")


def test_weights_evaluate_as_their_checkpoint_does(trained, export, run_in, tmp_path):
    export("weights", f"run={trained['npbg']}", "out=alone.safetensors")
    files = {"checkpoint": trained["npbg"] / "checkpoints" / "last.ckpt", "alone": tmp_path / "alone.safetensors"}
    words = ("eval_only=true", f"system.descriptors_pretrained_dir={trained['npbg'] / 'descriptors'}")
    pictures = {}
    for name, path in files.items():
        folder = run_in(tmp_path, *words, f"weights_path={path}", name=name)
        pictures[name] = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*_rendered.png")}
    assert len(pictures["alone"]) == 2 and pictures["alone"] == pictures["checkpoint"]


def test_weights_of_an_evaluation_are_those_it_names(trained, export, tmp_path):
    """Relative to the folder that the run was started from, which is not the one that the command is."""
    run = tmp_path / "evaluation"
    remember(run, trained["nerf"].parent, *TINY_NERF, "eval_only=true", "weights_path=nerf/checkpoints/last.ckpt")
    export("weights", f"run={run}", "out=alone.safetensors")
    assert load_file("alone.safetensors")["field.nerf_coarse.sigma.bias"].item() == 220


# ------------------------------------------------------------------ where files go
def test_files_lie_in_the_run(trained, export, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(trained["nerf"], run)
    for command, words in (("weights", ()), ("mesh", RANGES), ("volume", RANGES)):
        export(command, "run=copy", *words)
        assert "overwrite=true" in refused(export, command, "run=copy", *words)
        export(command, "run=copy", "overwrite=true", *words)
    assert sorted(path.name for path in (run / "export").iterdir()) == ["ball.vol", "ball_mesh.ply", "copy.safetensors"]


@pytest.mark.parametrize(
    ("system", "words", "complaint"),
    [
        (
            "nerf",
            "mesh sigma_threshold=1e6",
            "sigma_threshold: expected a density between those found in x -1 to 1, .* which are 0 to 220, got 1e\\+06",
        ),
        ("nerf", "mesh x_range=[1,-1]", "x_range: expected two finite numbers that ascend, got 1 and -1"),
        ("nerf", "mesh x_range=3", "mesh.x_range: expected a list of 2 values"),
        ("nerf", "mesh n_grid=1", "n_grid: expected 2 to 1625"),
        ("nerf", "mesh near_t=-1", "near_t: expected a finite number"),
        ("nerf", "mesh samples=0", "samples: expected 1 or more"),
        ("nerf", "mesh occ_threshold=2", "occ_threshold: expected an opacity"),
        ("nerf", "mesh out=mesh.stl", "expected a name that ends in .ply or .obj"),
        ("nerf", "mesh sigma_treshold=3", "mesh.sigma_treshold: unknown key; did you mean mesh.sigma_threshold"),
        ("nerf", "volume x_range=[5,6]", "expected something dense in x 5 to 6"),
        ("nerf", "volume out=scene.raw", "expected a name that ends in .vol or .npy"),
        ("nerf", "mesh checkpoint=best", "checkpoint: expected one of last in"),
        ("nerf", "mesh scene=mars", "mars"),
        ("nerf", "cloud", "expected a run with descriptors of points, got one of NeRF: use mesh"),
        ("npbg", "mesh", "expected a run with a radiance field .*, got one of NPBG"),
        ("npbg", "volume", "expected a run with a radiance field .*, got one of NPBG"),
        ("npbg", "cloud out=cloud.obj", "expected a name that ends in .ply"),
        ("npbg", "weights checkpoint=best", "checkpoint: expected one of epoch0, last in"),
        ("npbg", "weights out=weights.ckpt", "expected a name that ends in .safetensors"),
        ("npbg", "weights datasets.scene_name=moon", "datasets.scene_name=moon: weights are read from a checkpoint alone"),
        ("npbg", "weights extra=1", "weights.extra: unknown key"),
        ("nerf", "mesh out", "out: expected key=value"),
        ("nerf", "mesh out=[", "parsing"),
    ],
)
def test_what_cannot_be_done(trained, export, tmp_path, system, words, complaint):
    command, *rest = words.split()
    box = [word for word in RANGES if word.split("=")[0] not in words] if command in ("mesh", "volume") else []
    where = [] if any(word.startswith("out") for word in rest) else ["out=out.ply" if command in ("mesh", "cloud") else "out=out.vol"]
    message = refused(export, command, f"run={trained[system]}", *rest, *box, *(where if command != "weights" else []))
    assert re.search(complaint, message), message
    assert list(tmp_path.iterdir()) == [], "no file is left"


@pytest.mark.parametrize("command", ["mesh", "volume"])
def test_bent_space_is_refused_by_name(trained, export, tiny_root, tmp_path, command):
    """Photos that all look the same way, in normalised device coordinates."""
    folder = tmp_path / "ahead" / "ball"
    shutil.copytree(tiny_root / "ball", folder)
    for path in folder.glob("transforms_*.json"):
        content = json.loads(path.read_text())
        for k, frame in enumerate(content["frames"]):
            frame["transform_matrix"] = ring_pose(0.02 * k).tolist()
        path.write_text(json.dumps(content))
    words = (command, f"run={trained['nerf']}", f"datasets.data_root={folder.parent}", "system.ray_frame=forward", *RANGES)
    message = refused(export, *words)
    assert (
        "system.ray_frame: expected a field in Euclidean coordinates" in message and "(forward)" in message and "inward or plain" in message
    )


def test_no_run(export, tmp_path):
    assert "expected the folder of a run" in refused(export, "mesh", "run=nowhere")
    assert "run: expected a path, got nothing" in refused(export, "weights")


def test_a_damaged_checkpoint(trained, export, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(trained["nerf"], run)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"PK" + bytes(100))
    for command in ("weights", "mesh"):
        assert "last.ckpt" in refused(export, command, f"run={run}")


def test_as_a_command(trained, tmp_path):
    words = [sys.executable, "-m", "npbgpp.export", "weights", f"run={trained['nerf']}", "out=alone.safetensors"]
    (tmp_path / "alone.safetensors").touch()
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == 1 and done.stderr.startswith("error: out=") and done.stderr.count("\n") == 1


def test_usage(export):
    with pytest.raises(SystemExit, match=r"(?s)usage: .*sigma_threshold") as caught:
        export()
    assert all(f"  {command}: run, checkpoint, out" in str(caught.value.code) for command in ("weights", "cloud", "mesh", "volume"))
