"""``npbgpp export``: files of trained runs, refusals."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation

from npbgpp.api import load_run
from npbgpp.core.bundle import run_folder
from npbgpp.data.normalisation import scene_normalisation
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.export.__main__ import main
from npbgpp.geometry.point_cloud import read_ply
from npbgpp.methods.base import CHECKPOINT_FORMAT
from npbgpp.parsers import read_scene
from npbgpp.prepare.photo_poses import Similarity
from npbgpp.prepare.photos_manifest import PhotosManifest
from npbgpp.render import main as render_main

from ..conftest import TINY_GAUSSIANS, TINY_NPBGPP, TINY_OVERRIDES, ring_pose
from ..helpers.commands import Command
from ..helpers.fields import octahedron_weights
from ..helpers.programs import run_program
from ..run_folders import remember

SEMI_AXES = (0.9, 0.6, 0.8)
RANGES = ("x_range=[-1,1]", "y_range=[-0.7,0.7]", "z_range=[-1,1]", "n_grid=25")
STEPS = np.array([2, 1.4, 2]) / 24
TINY_FIELD = ("width=6", "depth=1", "skips=[]", "xyz_frequencies=0", "dir_frequencies=0", "sampling.importance=0", "sampling.samples=16")
TINY_NERF = (
    *(override for override in TINY_OVERRIDES if not override.startswith("system")),
    "system=nerf",
    "system.occupancy_grid=false",
    *(f"system.field.{override}" for override in TINY_FIELD),
)


@pytest.fixture(scope="module")
def trained(run_in, tiny_root, tmp_path_factory) -> dict[str, Path]:
    """Run folders launched from one folder; the field of nerf and inward is an octahedron. Tests must not write into them."""
    launch = tmp_path_factory.mktemp("runs")
    quiet = ("trainer.limit_val_batches=0", "datasets.scenes.test=[]", f"datasets.data_root={tiny_root}")
    for name, tiny in (("npbg", TINY_OVERRIDES), ("npbgpp", TINY_NPBGPP)):
        remember(run_in(launch, *quiet, name=name, tiny=tiny), launch, *tiny, *quiet)
    weights = octahedron_weights(SEMI_AXES, "field.nerf_coarse.")
    content = {"state_dict": weights, "npbgpp": {"format": CHECKPOINT_FORMAT, "system": "NeRF"}}
    for name, frame in (("nerf", "auto"), ("inward", "inward")):
        remember(launch / name, launch, *TINY_NERF, *quiet, f"system.ray_frame={frame}")
        (launch / name / "checkpoints").mkdir()
        torch.save(content, launch / name / "checkpoints" / "last.ckpt")
    return {path.name: path for path in launch.iterdir()}


@pytest.fixture
def export(request, tmp_path) -> Command:
    return Command(main, request, tmp_path)


def read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and their colours."""
    vertex = PlyData.read(path)["vertex"]
    return np.stack([vertex[c] for c in "xyz"], 1), np.stack([vertex[c] for c in ("red", "green", "blue")], 1).astype(int)


def assert_octahedron(xyz: np.ndarray) -> None:
    assert (np.abs(xyz.max(0) - SEMI_AXES) < STEPS).all() and (np.abs(xyz.min(0) + SEMI_AXES) < STEPS).all()
    assert np.abs(np.abs(xyz / SEMI_AXES).sum(1) - 1).max() < 0.25


def position_colours(xyz: np.ndarray) -> np.ndarray:
    return 255 * (0.5 + 0.5 * xyz / SEMI_AXES)


def draw_octahedron(folder: Path) -> None:
    """Replaces the photos of the ball: each pixel follows its ray."""
    for view in read_tiny_scene(folder).views:
        origins, along = view.camera.rays()
        steps = origins[0, :, :, None] + torch.linspace(1.5, 4.5, 600)[:, None] * along[0, :, :, None]
        inside = (steps / torch.tensor(SEMI_AXES)).abs().sum(-1) < 1
        first = inside.int().argmax(-1)[..., None, None].expand(-1, -1, 1, 3)
        hit = inside.any(-1)[..., None]
        pixels = np.where(hit, position_colours(steps.gather(2, first)[:, :, 0].numpy()), 0)
        Image.fromarray(np.concatenate([pixels, np.where(hit, 255, 0)], -1).clip(0, 255).astype(np.uint8), "RGBA").save(view.image)


def read_tiny_scene(folder: Path) -> Scene:
    return read_scene("auto", folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), {"white_bg": True})


# ------------------------------------------------------------------ mesh and volume
def test_mesh_in_the_colours_of_the_photos(trained, export, tiny_root, tmp_path):
    shutil.copytree(tiny_root / "ball", tmp_path / "drawn" / "ball")
    draw_octahedron(tmp_path / "drawn" / "ball")
    # the density of the surface that is drawn: another one is nearer to or farther from the centre
    words = (*RANGES, "sigma_threshold=20", f"datasets.data_root={tmp_path / 'drawn'}")
    output = export("mesh", f"run={trained['nerf']}", "out=deep/mesh.ply", *words)
    assert "deep/mesh.ply" in output and "no training photo" not in output and "x_range" not in output
    xyz, rgb = read_mesh(tmp_path / "deep" / "mesh.ply")
    assert_octahedron(xyz)
    error = np.abs(rgb - position_colours(xyz)).max(1)
    assert np.median(error) < 20 and np.quantile(error, 0.8) < 50  # a pixel spans 16
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["mesh.ply"]


def test_mesh_in_the_colours_of_the_field(trained, export, tmp_path):
    """The box cuts the octahedron."""
    output = export("mesh", f"run={trained['nerf']}", "out=mesh.obj", "use_vertex_normal=true", *RANGES, "x_range=[0,1]")
    assert "widen x_range" in output
    vertices = [line.split()[1:] for line in (tmp_path / "mesh.obj").read_text().splitlines() if line.startswith("v ")]
    values = np.array(vertices, dtype=float)
    assert np.abs(np.abs(values[:, :3] / SEMI_AXES).sum(1) - 1).max() < 0.25 and values[:, 0].min() >= 0
    assert np.abs(values[:, 3:] - 1 / (1 + np.exp([-3, 0, 3]))).max() < 0.003


def test_mesh_in_world_coordinates(trained, export, tiny_root, tmp_path):
    export("mesh", f"run={trained['inward']}", "out=mesh.ply", *RANGES)
    normalisation = scene_normalisation(read_tiny_scene(tiny_root / "ball"), "inward")
    assert normalisation.scale < 0.9 or normalisation.scale > 1.1
    assert_octahedron(normalisation.points(torch.from_numpy(read_mesh(tmp_path / "mesh.ply")[0])).numpy())


def test_default_box_is_that_of_the_occupancy_grid(trained, export, tmp_path):
    output = export("volume", f"run={trained['nerf']}", "out=scene.npy", "n_grid=16", "system.occupancy_grid=true")
    assert "x -1.5 to 1.5, y -1.5 to 1.5, z -1.5 to 1.5" in output
    output = export("volume", f"run={trained['nerf']}", "out=other.npy", "n_grid=16", "y_range=[-2,2]")
    assert "x -1 to 1, y -2 to 2, z -1 to 1" in output
    values = np.load(tmp_path / "scene.npy")
    assert values.shape == (16, 16, 16) and values.max() > 20 and values.min() == 0


def test_mesh_of_gaussians_is_fused_from_depth_maps(run_gaussians, export, tiny_root, tmp_path):
    launch, words = tmp_path / "launch", ("trainer.limit_val_batches=0", "datasets.train_num_samples=20", "trainer.max_epochs=2")
    run = run_gaussians(launch, *words)
    remember(run, launch, *TINY_GAUSSIANS, f"datasets.data_root={tiny_root}", *words)
    export("mesh", f"run={run}", "n_grid=40", "out=mesh.ply")
    vertices, colours = read_mesh(tmp_path / "mesh.ply")
    distance = np.linalg.norm(vertices, axis=1)
    assert len(vertices) > 200 and 0.5 < np.median(distance) < 1.3  # the ball has radius 1
    assert colours.std() > 1
    assert "sigma_threshold" in export.refused("mesh", f"run={run}", "n_grid=40", "sigma_threshold=3", "out=other.ply")
    assert not (tmp_path / "other.ply").exists()
    assert re.search("export volume: Gaussians .*export mesh", export.refused("volume", f"run={run}", "out=other.vol"))


def test_volume(trained, export):
    export("volume", f"run={trained['nerf']}", *RANGES, "n_grid=17", "out=scene.vol")
    index, colours = np.fromfile("scene.vol", dtype="<u4").reshape(-1, 2).T
    xyz = np.stack([index // 17 % 17 / 8 - 1, 0.7 * (index // 289 / 8 - 1), index % 17 / 8 - 1], 1)
    assert np.abs(xyz / SEMI_AXES).sum(1).max() < 1.1 and len(index) > 100  # density 220 - 200 r: up to r = 1.1
    assert (colours >> 8 == (242 << 16 | 127 << 8 | 12)).all() and (colours & 255)[np.abs(xyz).sum(1) == 0] == 255


# ------------------------------------------------------------------ cloud
@pytest.mark.parametrize("system", ["npbg", "npbgpp"])
def test_cloud(trained, export, tiny_root, tmp_path, system):
    before = {path: path.stat().st_mtime_ns for path in trained[system].rglob("*")}
    output = export("cloud", f"run={trained[system]}", "out=cloud.ply")
    found, given = read_ply(tmp_path / "cloud.ply"), read_ply(tiny_root / "ball" / "mvs_pc.ply")
    assert f"{len(found)} points" in output and 300 < len(found) <= len(given)
    nearest = torch.cdist(found.xyz, given.xyz, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert (nearest.values == 0).all() and len(nearest.indices.unique()) == len(found)
    assert {path: path.stat().st_mtime_ns for path in trained[system].rglob("*")} == before, "the run stays unchanged"
    if system == "npbg":  # colours of its descriptors
        weights = torch.load(trained["npbg"] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        descriptors = torch.load(trained["npbg"] / "descriptors" / "ball.pth", weights_only=True)[nearest.indices]
        colours = 0.9 * torch.sigmoid(descriptors @ weights["rgb_converter.lin1.weight"].T + weights["rgb_converter.lin1.bias"])
        assert found.rgb_u8 is not None and (found.rgb_u8 - 255 * colours).abs().max() <= 0.51 and found.rgb_u8.float().std(0).max() > 0.5


# ------------------------------------------------------------------ coordinates
@pytest.fixture(scope="module")
def moved(tiny_root, tmp_path_factory) -> tuple[Path, Similarity]:
    """The ball as a scene of ``prepare photos``, and the change from the original coordinates, which are far from the origin."""
    root, (turn,) = tmp_path_factory.mktemp("moved"), Rotation.random(1, rng=np.random.default_rng(0)).as_matrix()
    shutil.copytree(tiny_root / "ball", root / "ball")
    similarity = Similarity(0.5, tuple(map(tuple, turn.tolist())), tuple((-0.5 * turn @ [300_000.0, -40_000, 20_000] + 0.1).tolist()))
    PhotosManifest("photos", (), 0, 0.0, (), similarity, {}, {}, (), "command").write(root / "ball")
    return root, similarity


@pytest.mark.parametrize(("command", "system", "keys"), [("cloud", "npbg", ("x_range=[0,3]",)), ("mesh", "nerf", RANGES)])
def test_clouds_and_meshes_in_original_coordinates(trained, export, moved, tmp_path, command, system, keys):
    """The way back gives the file in coordinates of the scene; boxes are in those."""
    (root, similarity), found = moved, []
    for coordinates in ("scene", "original"):
        words = (f"run={trained[system]}", f"out={coordinates}.ply", f"coordinates={coordinates}", f"datasets.data_root={root}")
        export(command, *words, *keys)
        found.append(PlyData.read(tmp_path / f"{coordinates}.ply"))
    scene, original = (np.stack([file["vertex"][axis] for axis in "xyz"], 1) for file in found)
    assert np.abs(original.mean(0) - [300_000, -40_000, 20_000]).max() < 100 and len(scene) > 100
    np.testing.assert_allclose(similarity.apply(original), scene, atol=1e-4)
    for name in ("red", "green", "blue"):
        assert (found[0]["vertex"][name] == found[1]["vertex"][name]).all()
    if command == "mesh":
        assert all((a == b).all() for a, b in zip(*(file["face"]["vertex_indices"] for file in found), strict=True))


def test_cameras_in_original_coordinates(trained, export, moved, tmp_path):
    (root, similarity), poses = moved, []
    for coordinates in ("scene", "original"):
        export(
            "cameras",
            f"run={trained['npbg']}",
            "path=test",
            f"out={coordinates}",
            f"coordinates={coordinates}",
            f"datasets.data_root={root}",
        )
        poses.append(np.loadtxt(tmp_path / coordinates / "CamPose.inf").reshape(-1, 4, 3))
    scene, original = poses
    np.testing.assert_allclose(similarity.apply(original[:, 3]), scene[:, 3], atol=1e-3)
    np.testing.assert_allclose(original[:, :3] @ np.array(similarity.rotation).T, scene[:, :3], atol=1e-5)


# ------------------------------------------------------------------ weights
@pytest.mark.parametrize("system", ["npbg", "npbgpp", "nerf"])
def test_weights(trained, export, system):
    checkpoint = torch.load(trained[system] / "checkpoints" / "last.ckpt", weights_only=True)
    output = export("weights", f"run={trained[system]}", "out=new/weights.safetensors")
    weights = load_file("new/weights.safetensors")
    assert f"{len(weights)} tensors" in output and weights.keys() == checkpoint["state_dict"].keys()
    assert all(torch.equal(weights[name], value) for name, value in checkpoint["state_dict"].items())
    with safe_open("new/weights.safetensors", framework="pt") as file:
        origin = {key: json.loads(value) for key, value in file.metadata().items()}
    assert origin == {"npbgpp": {key: checkpoint["npbgpp"][key] for key in ("format", "system")}}
    assert (str(trained[system] / "descriptors") in output) == (system == "npbg")


def test_exported_weights_render_the_same_images(trained, export, run_in, tmp_path):
    export("weights", f"run={trained['npbg']}", "out=weights.safetensors")
    files = {"checkpoint": trained["npbg"] / "checkpoints" / "last.ckpt", "exported": tmp_path / "weights.safetensors"}
    overrides = ("eval_only=true", f"system.descriptors_pretrained_dir={trained['npbg'] / 'descriptors'}")
    images = {}
    for name, path in files.items():
        folder = run_in(tmp_path, *overrides, f"weights_path={path}", name=name)
        images[name] = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*_rendered.png")}
    assert len(images["exported"]) == 2 and images["exported"] == images["checkpoint"]


def test_weights_of_an_evaluation(trained, export, tmp_path):
    """``weights_path`` is relative to the folder from which the run was launched."""
    run = tmp_path / "evaluation"
    remember(run, trained["nerf"].parent, *TINY_NERF, "eval_only=true", "weights_path=nerf/checkpoints/last.ckpt")
    export("weights", f"run={run}", "out=weights.safetensors")
    assert load_file("weights.safetensors")["field.nerf_coarse.sigma.bias"].item() == 220


def test_default_files_are_in_the_run(trained, export, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(trained["nerf"], run)
    for command, keys in (("weights", ()), ("mesh", RANGES), ("volume", RANGES)):
        export(command, "run=copy", *keys)
        assert "overwrite=true" in export.refused(command, "run=copy", *keys)
        export(command, "run=copy", "overwrite=true", *keys)
    assert sorted(path.name for path in (run / "export").iterdir()) == ["ball.vol", "ball_mesh.ply", "copy.safetensors"]


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("system", "arguments", "message"),
    [
        ("nerf", "mesh sigma_threshold=1e6", r"sigma_threshold: .* 0 to 220, got 1e\+06"),
        ("nerf", "mesh x_range=[1,-1]", "x_range: .* 1 and -1"),
        ("nerf", "mesh x_range=3", "^error: x_range: .* 2 values"),
        ("nerf", "mesh n_grid=1", "n_grid: .* got 1"),
        ("nerf", "mesh near_t=-1", "near_t: .* -1"),
        ("nerf", "mesh samples=0", "samples: .* 0"),
        ("nerf", "mesh occ_threshold=2", "occ_threshold: .* 2"),
        ("nerf", "mesh out=mesh.stl", "mesh.stl: .* .ply or .obj"),
        ("nerf", "mesh sigma_treshold=3", "^error: sigma_treshold: .* sigma_threshold"),
        ("nerf", "volume x_range=[5,6]", "x 5 to 6"),
        ("nerf", "volume out=scene.raw", "scene.raw: .* .vol or .npy"),
        ("nerf", "mesh checkpoint=best", "checkpoint: .* last .* best"),
        ("nerf", "mesh scene=mars", "mars"),
        ("nerf", "cloud", "NeRF"),
        ("npbg", "mesh", "NPBG"),
        ("npbg", "volume", "NPBG"),
        ("nerf", "weights out=a.zip", "out=a.zip: .* descriptors, NeRF has none.* .safetensors"),
        ("npbg", "splats", "NPBG"),
        ("nerf", "splats out=scene.obj", "scene.obj: .* .ply or .splat or .glb"),
        ("npbg", "cloud coordinates=original", "coordinates=original: .*photos.json.* ball has none"),
        ("nerf", "mesh coordinates=orignal", "^error: coordinates: .*original"),
        ("npbg", "cloud out=cloud.obj", "cloud.obj: .* .ply"),
        ("npbg", "weights checkpoint=best", "checkpoint: .* epoch0, last .* best"),
        ("npbg", "weights out=weights.ckpt", "weights.ckpt: .* .safetensors"),
        ("npbg", "weights datasets.scene_name=moon", "datasets.scene_name=moon"),
        ("npbg", "weights extra=1", "^error: extra: "),
        ("nerf", "mesh out", "out: .* key=value"),
        ("nerf", "mesh out=[", r"out=.*/\[: .* .ply or .obj"),
    ],
)
def test_refusals(trained, export, tmp_path, system, arguments, message):
    command, *keys = arguments.split()
    box = [key for key in RANGES if key.split("=")[0] not in arguments] if command in ("mesh", "volume") else []
    if command != "weights" and not any(key.startswith("out") for key in keys):
        keys.append("out=out.vol" if command == "volume" else "out=out.ply")
    found = export.refused(command, f"run={trained[system]}", *keys, *box)
    assert re.search(message, found), found
    assert list(tmp_path.iterdir()) == [], "no file is left"


@pytest.mark.parametrize("command", ["mesh", "volume"])
def test_fields_in_ndc_are_refused(trained, export, tiny_root, tmp_path, command):
    """All photos look in about the same direction."""
    folder = tmp_path / "forward" / "ball"
    shutil.copytree(tiny_root / "ball", folder)
    for path in folder.glob("transforms_*.json"):
        content = json.loads(path.read_text())
        for k, frame in enumerate(content["frames"]):
            frame["transform_matrix"] = ring_pose(0.02 * k).tolist()
        path.write_text(json.dumps(content))
    message = export.refused(command, f"run={trained['nerf']}", f"datasets.data_root={folder.parent}", "system.ray_frame=forward", *RANGES)
    assert "system.ray_frame" in message and "(forward)" in message and "inward or plain" in message


def test_missing_runs_and_damaged_checkpoints_are_refused(trained, export, tmp_path):
    assert "nowhere" in export.refused("mesh", "run=nowhere")
    assert "run: " in export.refused("weights", "overwrite=true")
    run = tmp_path / "copy"
    shutil.copytree(trained["nerf"], run)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"PK" + bytes(100))
    for command in ("weights", "mesh"):
        assert "last.ckpt" in export.refused(command, f"run={run}")


def test_command_line(trained, export, tmp_path):
    """Usage without arguments; a user error is one line and exit code 1."""
    with pytest.raises(SystemExit, match="usage: npbgpp export") as caught:
        export()
    assert all(f"  {command} " in str(caught.value.code) for command in ("weights", "cloud", "splats", "mesh", "volume", "cameras"))
    with pytest.raises(SystemExit, match=r"(?s)usage: npbgpp export mesh.* run=.* sigma_threshold=null"):
        export("mesh")
    for command, words in (("weights", [".zip", ".safetensors"]), ("cloud", ["descriptors", "gaussians"])):
        with pytest.raises(SystemExit) as caught:
            export(command)
        assert all(word in str(caught.value.code) for word in words) and "NPBG" not in str(caught.value.code)
    (tmp_path / "weights.safetensors").touch()
    done = run_program("npbgpp.export", ["weights", f"run={trained['nerf']}", "out=weights.safetensors"], tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: out=") and done.stderr.count("\n") == 1


# ------------------------------------------------------------------ a scene in one file
def test_a_scene_in_one_file_renders_where_its_data_are_not(trained, export, request, tmp_path):
    """The pictures are those of the run, to the last bit."""
    output = export("weights", f"run={trained['npbg']}", "out=ball.zip")
    assert "400 points" in output and "npbgpp render ball.zip" in output
    (tmp_path / "away").mkdir()
    shutil.move(tmp_path / "ball.zip", tmp_path / "away" / "ball.zip")
    render = Command(render_main, request, tmp_path)
    words = ("path=test", "video=none")
    render(trained["npbg"], "out=here", *words)
    render(tmp_path / "away" / "ball.zip", "out=there", *words)
    pictures = sorted(path.name for path in (tmp_path / "here").glob("0*.png"))
    assert len(pictures) == 2
    assert all((tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes() for name in pictures)
    assert load_run(tmp_path / "away" / "ball.zip").method == "NPBG"  # unpacked already
    (tmp_path / "away" / "ball" / ".bundle").write_text("another")
    assert "of something else" in render.refused(tmp_path / "away" / "ball.zip")


@pytest.mark.parametrize("name", ["../evil.png", "bundled_scenes/a/../../../evil.png", "/evil.png", "run.py", "bundled_scenes/a/b/c.png"])
def test_archives_with_other_files_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(".hydra/config.yaml", "a: 1")
        archive.writestr(name, b"x")
    with pytest.raises(InputError, match=r"a\.zip: expected a file of npbgpp export weights, got"):
        run_folder(tmp_path / "a.zip")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zip"]


def test_archives_that_are_damaged_or_swell_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(".hydra/config.yaml", "a: 1")
        archive.writestr("checkpoints/last.ckpt", bytes(50 << 20))
    with pytest.raises(InputError, match="far more bytes"):
        run_folder(tmp_path / "a.zip")
    (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    with pytest.raises(InputError, match="damaged"):
        run_folder(tmp_path / "b.zip")
