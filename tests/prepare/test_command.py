"""``npbgpp prepare check`` and ``cloud``: printed reports, written clouds and manifests, refusals."""

import json
import re
import shlex

import pytest
import torch
from PIL import Image

from npbgpp.data.point_files import CloudManifest
from npbgpp.geometry.point_cloud import read_ply
from npbgpp.prepare.__main__ import main

from ..helpers.balls import surface_distance, wrong_colour_fraction
from ..helpers.commands import Command
from ..helpers.layouts import colmap, dtu, h3ds, llff, nerf_synthetic, npbg, scannet_raw
from ..helpers.programs import run_program

SIZE = (96, 128)


@pytest.fixture
def prepare(request, tmp_path) -> Command:
    return Command(main, request, tmp_path)


# ------------------------------------------------------------------ check
def checked(prepare: Command, code: int, *words: str) -> str:
    """Output of a check that ends with this exit code: 0 for a good scene, 2 for problems."""
    with pytest.raises(SystemExit) as ended:
        prepare("check", *words)
    assert ended.value.code == code
    return " ".join((prepare.capsys.readouterr().out + " " + prepare.caplog.text).split())


@pytest.mark.parametrize("write", [dtu.write, llff.write, nerf_synthetic.write])
def test_check_of_a_scene_without_cloud(prepare, tmp_path, write):
    write(tmp_path / "scene", 12, SIZE)
    (tmp_path / "scene" / "mvs_pc.ply").unlink()
    output = checked(prepare, 0, "scene=scene")
    assert "none: NeRF, NSFF and gaussians need none" in output and "no problems" in output
    assert "median 3" in output and (tmp_path / "scene" / "check" / "scene.png").is_file()
    assert output.endswith("npbgpp prepare dense scene")
    assert "other.ply" in prepare.refused("check", "scene=scene", "pc_name=other.ply")


def test_check_cuts_no_paths(prepare, tmp_path, monkeypatch):
    """In narrow terminals they are continued on further lines."""
    monkeypatch.setenv("COLUMNS", "60")
    long = "a_folder_with_a_name_that_is_longer_than_the_terminal_is_wide_and_therefore_continued"
    colmap.write(tmp_path / long, 12, SIZE)
    (tmp_path / long / "mvs_pc.ply").unlink()
    output = checked(prepare, 0, f"scene={long}")
    assert "…" not in output and output.endswith(f"npbgpp prepare dense {long}")  # the points of the reconstruction are few


def test_check_decodes_every_photo(prepare, tmp_path):
    colmap.write(tmp_path / "scene", 12, SIZE)
    photo = tmp_path / "scene" / "images" / "view_7.png"
    photo.write_bytes(photo.read_bytes()[:-200])
    output = checked(prepare, 2, "scene=scene")
    assert "1 photo of 12 cannot be decoded" in output and "view_7.png" in output and "1 problem;" in output


def test_check_says_that_a_cloud_is_too_sparse(prepare, tmp_path):
    colmap.write(tmp_path / "scene", 12, (480, 640))
    output = checked(prepare, 2, "scene=scene")
    assert "too sparse for NPBG" in output and output.endswith("npbgpp prepare dense scene") and "system=gaussians" in output


def test_check_recommends_one_near_plane(prepare, tmp_path):
    colmap.write(tmp_path / "scene", 12, SIZE)
    assert "recommended near plane │ system.near=1 " in checked(prepare, 0, "scene=scene")
    (suggested,) = re.findall(r"recommended near plane │ system.near=([0-9.]+) ", checked(prepare, 2, "scene=scene", "near=2.8"))
    assert 0.5 < float(suggested) < 2


def test_check_of_a_good_scene(prepare, tmp_path):
    colmap.write(tmp_path / "scene", 12, SIZE)
    output = checked(prepare, 0, "scene=scene")
    assert "scene, read as colmap" in output and "12: 10 training, 1 validation, 1 test" in output and "128x96 (12 views)" in output
    assert "npbgpp prepare dense" not in output
    assert "400 points" in output and "check/scene.png" in output and "problem:" not in output
    with Image.open(tmp_path / "scene" / "check" / "scene.png") as sheet:
        assert sheet.width > 500 and sheet.height > 4 * 150


def test_check_prints_problems_and_square_brackets(prepare, tmp_path):
    dtu.write(tmp_path / "my[red]", 10, SIZE)
    output = checked(prepare, 2, "scene=my[red]", "near=2.95", "pictures=1", "out=here")
    assert "problem: " in output and "system.near=" in output and (tmp_path / "here" / "my[red].png").is_file()
    assert "my[red], read as dtu" in output  # would be a colour in rich's markup


def test_check_uses_the_published_views_of_h3ds(prepare, tmp_path):
    h3ds.write(tmp_path / "5ae021f2805c0854", 69, (32, 32))
    assert "32: 22 training, 4 validation, 6 test" in checked(prepare, 0, "scene=5ae021f2805c0854", "pictures=1")


def test_check_of_a_scene_in_a_paths_file(prepare, tmp_path):
    npbg.write(tmp_path / "npbg", 10, SIZE, paths=True)
    (paths,) = [p for p in (tmp_path / "npbg").glob("*.yaml") if p.name != "scene.yaml"]
    output = checked(prepare, 0, "scene=ball", f"paths_file={paths}", "layout=npbg")
    assert "ball, read as npbg" in output and (tmp_path / "npbg" / "check" / "ball.png").is_file()


# ------------------------------------------------------------------ cloud
@pytest.mark.parametrize(
    ("write", "photos", "method", "tolerance"),
    [(scannet_raw.write, "color", "depth", 0.01), (dtu.write, "image", "hull", 0.03), (colmap.write, "images", "sparse", 0.002)],
    ids=["depth", "hull", "sparse"],
)
def test_cloud_is_made_from_the_training_views(prepare, tmp_path, write, photos, method, tolerance):
    """Unreadable photos of the other views do not matter."""
    write(tmp_path / "scene", 16, SIZE)
    files = sorted((tmp_path / "scene" / photos).iterdir(), key=lambda p: int("".join(c for c in p.stem if c.isdigit())))
    for k in (0, 1, 4, 9):  # headers stay: parsers read sizes from them
        content = files[k].read_bytes()
        files[k].write_bytes(content[: max(len(content) // 3, 700)])
    output = prepare("cloud", "scene=scene", "pc_name=made.ply", "count=5000", "val_indices=[1]", "test_indices=[0,4,9]")
    assert f"{method} from 12 training views of 16" in output and "made.ply" in output
    words = (f"datasets.data_root={tmp_path}", "datasets.scene_name=scene", "datasets.pc_name=made.ply", "'datasets.test_indices=[0,4,9]'")
    assert "npbgpp train experiment=" in output and all(word in output for word in words)
    cloud, path = read_ply(tmp_path / "scene" / "made.ply"), tmp_path / "scene" / "made.ply"
    distance, ball = surface_distance(cloud.xyz)
    assert distance.abs().median() < tolerance and torch.bincount(ball, minlength=4).min() >= 20
    assert wrong_colour_fraction(cloud.rgb_u8, ball) < 0.3
    manifest = CloudManifest.read(path)
    assert manifest is not None and manifest.method == method and manifest.points == len(cloud)
    assert len(manifest.used_views) == 12 and len(manifest.held_out_views) == 4
    assert manifest.command.endswith("prepare cloud scene=scene pc_name=made.ply count=5000 'val_indices=[1]' 'test_indices=[0,4,9]'")


def test_decimated_cloud_keeps_the_views_of_its_source(prepare, tmp_path):
    scannet_raw.write(tmp_path / "scene", 12, SIZE)
    prepare("cloud", "scene=scene", "pc_name=fused.ply")
    prepare("cloud", "scene=scene", "source=fused.ply", "voxel=0.2", "pc_name=coarse.ply")
    prepare("cloud", "scene=scene", "source=fused.ply", "count=50", "pc_name=few.ply")
    fused, coarse, few = (read_ply(tmp_path / "scene" / name) for name in ("fused.ply", "coarse.ply", "few.ply"))
    assert 10 < len(coarse) < len(fused) / 2 and len(few) == 50
    origin, manifest = (CloudManifest.read(tmp_path / "scene" / name) for name in ("fused.ply", "few.ply"))
    assert manifest.method == "decimate" and manifest.used_views == origin.used_views
    prepare("cloud", "scene=scene", "source=full.ply", "count=50", "pc_name=unknown.ply")  # a source without a manifest
    unknown = CloudManifest.read(tmp_path / "scene" / "unknown.ply")
    assert unknown.used_views == unknown.held_out_views == ()


def test_existing_clouds_are_kept_or_replaced_as_a_whole(prepare, tmp_path, monkeypatch):
    dtu.write(tmp_path / "scene", 10, SIZE)
    cloud = tmp_path / "scene" / "mvs_pc.ply"
    manifest, before = cloud.with_suffix(".json"), cloud.read_bytes()
    assert "overwrite=true" in prepare.refused("cloud", "scene=scene") and not manifest.exists()

    def full(file, *_):
        file.write(b"ply")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("npbgpp.prepare.cloud.write_ply", full)
        assert "No space left" in prepare.refused("cloud", "scene=scene", "overwrite=true", "count=500")
    manifest.write_text('{"frames": []}')  # another file with the name of the manifest
    assert "mvs_pc.json" in prepare.refused("cloud", "scene=scene", "overwrite=true", "count=500")
    assert cloud.read_bytes() == before and manifest.read_text() == '{"frames": []}'
    assert sorted(p.name for p in (tmp_path / "scene").iterdir() if p.is_file()) == ["cameras.npz", "mvs_pc.json", "mvs_pc.ply"]
    manifest.unlink()
    prepare("cloud", "scene=scene", "overwrite=true", "count=3000")
    assert cloud.read_bytes() != before and 1500 < len(read_ply(cloud)) < 6000
    assert json.loads(manifest.read_text())["method"] == "hull"


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("check scene=nowhere", ["nowhere", "folder"]),
        ("check pictures=2", ["scene", "nothing", "npbgpp prepare check <scene>"]),
        ("photos 'my photos'", ["scene: expected", "npbgpp prepare photos 'my photos' <scene>"]),
        ("check scene more", ["more", "key=value"]),
        ("check scene=scene neer=3", ["neer", "near"]),
        ("check scene=scene pictures=0", ["pictures", "0"]),
        ("check scene=scene layout=colmap", ["scene", "COLMAP"]),
        ("check scene=scene pc_name=other.ply", ["other.ply", "mvs_pc.ply", "prepare cloud"]),
        ("check scene=damaged", ["cameras.npz"]),
        ("cloud scene=llff pc_name=a.ply", ["llff", "depth maps", "COLMAP", "source=<file>"]),
        ("cloud scene=scene pc_name=a.ply method=magic", ["method", "magic", "hull"]),
        ("cloud scene=scene pc_name=a.ply method=depth", ["depth maps"]),
        ("cloud scene=scene pc_name=a.ply count=0", ["count", "0"]),
        ("cloud scene=scene pc_name=a.ply voxel=0", ["voxel", "0"]),
        ("cloud scene=scene pc_name=a.ply test_indices=every:1", ["test_indices", "every:1"]),
        ("cloud scene=scene pc_name=a.ply source=none.ply", ["none.ply"]),
    ],
)
def test_refusals(prepare, tmp_path, arguments, expected):
    for name in ("scene", "damaged"):
        dtu.write(tmp_path / name, 6)
    (tmp_path / "damaged" / "cameras.npz").write_bytes(b"PK")
    llff.write(tmp_path / "llff", 6)
    message = prepare.refused(*shlex.split(arguments))
    assert all(word in message for word in expected), message
    assert not list(tmp_path.rglob("a.ply"))


def test_command_line(tmp_path):
    """Usage without arguments; a user error is one line and exit code 1."""
    usage = run_program("npbgpp.prepare", [], tmp_path)
    assert usage.returncode == 1 and all(f"  {name} " in usage.stderr for name in ("check", "cloud", "llff", "monocular"))
    wrong = run_program("npbgpp.prepare", ["check", "scene=nowhere"], tmp_path)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: scene=nowhere") and wrong.stderr.count("\n") == 1
