"""``python -m npbgpp.prepare``: what it prints and writes, the clouds that training then uses, and one message when something is wrong."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from npbgpp.data.point_files import CloudManifest
from npbgpp.geometry.point_cloud import read_ply
from npbgpp.prepare.__main__ import main

from ..helpers.layouts import colmap, dtu, h3ds, llff, npbg, scannet_raw
from ..helpers.scenes import COLOURS, POINTS, RADIUS

SIZE = (96, 128)


@pytest.fixture
def prepare(monkeypatch, tmp_path, capsys, caplog) -> Callable[..., str]:
    """Runs the command in this process, in a folder of its own; returns what it printed."""
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def go(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["prepare", *words])
        caplog.clear()
        main()
        return " ".join((capsys.readouterr().out + " " + caplog.text).split())

    return go


def refused(prepare, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        prepare(*words)
    message = str(caught.value.code)
    assert message.startswith("error: ") and "\n" not in message.strip()
    return message


def assert_on_the_balls(path: Path, tolerance: float) -> None:
    """Points lie on the surfaces of the drawn balls, all of which have some, in their colours."""
    cloud = read_ply(path)
    offset = cloud.xyz[:, None] - torch.from_numpy(POINTS).float()
    nearest = offset.norm(dim=2).min(1)
    assert (nearest.values - RADIUS).abs().median() < tolerance
    for k, colour in enumerate(COLOURS):
        own = cloud.rgb[nearest.indices == k].float()
        assert len(own) >= 20 and (own.median(0).values - torch.tensor(colour).float()).abs().max() < 60


def test_a_good_scene(prepare, tmp_path):
    colmap.write(tmp_path / "scene", 12, SIZE)
    said = prepare("check", "scene=scene")
    assert "scene, read as colmap" in said and "12: 10 training, 1 validation, 1 test" in said and "128x96 (12 views)" in said
    assert "400 points with colours" in said and "check/scene.png" in said and "problem" not in said
    with Image.open(tmp_path / "check" / "scene.png") as picture:
        assert picture.width > 500 and picture.height > 4 * 150


def test_what_is_wrong_is_said(prepare, tmp_path):
    dtu.write(tmp_path / "scene", 10, SIZE)
    said = prepare("check", "scene=scene", "near=2.95", "pictures=1", "out=here")
    assert "problem: " in said and "system.near=" in said and (tmp_path / "here" / "scene.png").is_file()


def test_a_scene_that_cannot_be_read(prepare, tmp_path):
    dtu.write(tmp_path / "scene", 4)
    (tmp_path / "scene" / "cameras.npz").write_bytes(b"PK")
    assert "cameras.npz" in refused(prepare, "check", "scene=scene")


@pytest.mark.parametrize(
    ("write", "method", "tolerance"),
    [(scannet_raw.write, "depth", 0.01), (dtu.write, "hull", 0.03), (colmap.write, "sparse", 0.002), (llff.write, None, 0.0)],
)
def test_the_cloud_of_a_scene(prepare, tmp_path, write, method, tolerance):
    write(tmp_path / "scene", 16, SIZE)
    words = ("cloud", "scene=scene", "pc_name=made.ply", "val_indices=[1]", "holdout_indices=[0,4,9]")
    if method is None:
        assert "neither depth maps" in refused(prepare, *words) and "COLMAP" in refused(prepare, *words)
        return
    said = prepare(*words)
    assert f"{method} from 12 training views of 16" in said and "made.ply" in said
    assert_on_the_balls(tmp_path / "scene" / "made.ply", tolerance)
    manifest = CloudManifest.read(tmp_path / "scene" / "made.ply")
    assert manifest is not None and manifest.method == method and manifest.describes(tmp_path / "scene" / "made.ply")
    assert len(manifest.used_views) == 12 and len(manifest.held_out_views) == 4
    assert manifest.command.endswith("prepare cloud scene=scene pc_name=made.ply 'val_indices=[1]' 'holdout_indices=[0,4,9]'")


@pytest.mark.parametrize(("write", "photos"), [(scannet_raw.write, "color"), (dtu.write, "image"), (colmap.write, "images")])
def test_held_out_photos_are_never_opened(prepare, tmp_path, write, photos):
    write(tmp_path / "scene", 12, SIZE)
    words = ("cloud", "scene=scene", "pc_name=made.ply", "val_indices=[]", "holdout_indices=[0,3,7]", "overwrite=true")
    prepare(*words)
    first = read_ply(tmp_path / "scene" / "made.ply")
    files = sorted((tmp_path / "scene" / photos).iterdir(), key=lambda p: int("".join(c for c in p.stem if c.isdigit())))
    for k in (0, 3, 7):  # headers stay: parsers read sizes from them
        content = files[k].read_bytes()
        files[k].write_bytes(content[: max(len(content) // 3, 700)])
    prepare(*words)
    again = read_ply(tmp_path / "scene" / "made.ply")
    assert torch.equal(first.xyz, again.xyz) and torch.equal(first.rgb, again.rgb)


def test_a_hull_of_a_chosen_size(prepare, tmp_path):
    dtu.write(tmp_path / "scene", 12, SIZE)
    prepare("cloud", "scene=scene", "method=hull", "count=3000", "pc_name=hull.ply")
    assert 1500 < len(read_ply(tmp_path / "scene" / "hull.ply")) < 6000


def test_thinned_out(prepare, tmp_path):
    scannet_raw.write(tmp_path / "scene", 12, SIZE)
    prepare("cloud", "scene=scene", "pc_name=full2.ply")
    all_points = len(read_ply(tmp_path / "scene" / "full2.ply"))
    prepare("cloud", "scene=scene", "source=full2.ply", "voxel=0.2", "pc_name=coarse.ply")
    prepare("cloud", "scene=scene", "source=full2.ply", "count=50", "pc_name=few.ply")
    coarse, few = (read_ply(tmp_path / "scene" / name) for name in ("coarse.ply", "few.ply"))
    assert 10 < len(coarse) < all_points / 2 and len(few) == 50
    origin, manifest = (CloudManifest.read(tmp_path / "scene" / name) for name in ("full2.ply", "few.ply"))
    assert manifest.method == "decimate" and manifest.used_views == origin.used_views
    prepare("cloud", "scene=scene", "source=full.ply", "count=50", "pc_name=unknown.ply")  # nobody knows what this one was made from
    unknown = CloudManifest.read(tmp_path / "scene" / "unknown.ply")
    assert unknown.used_views == unknown.held_out_views == ()


def test_nothing_is_replaced_unasked(prepare, tmp_path):
    dtu.write(tmp_path / "scene", 10, SIZE)
    cloud = tmp_path / "scene" / "mvs_pc.ply"
    before = cloud.read_bytes()
    assert "overwrite=true" in refused(prepare, "cloud", "scene=scene") and cloud.read_bytes() == before
    assert not cloud.with_suffix(".json").exists()
    prepare("cloud", "scene=scene", "overwrite=true", "count=2000")
    assert cloud.read_bytes() != before and json.loads(cloud.with_suffix(".json").read_text())["method"] == "hull"


def test_heads_have_the_views_that_training_takes(prepare, tmp_path):
    h3ds.write(tmp_path / "5ae021f2805c0854", 69, (32, 32))
    assert "32: 22 training, 4 validation, 6 test" in prepare("check", "scene=5ae021f2805c0854", "pictures=1")


def test_what_cannot_be_written_leaves_the_cloud(prepare, tmp_path, monkeypatch):
    """A full disk, and a file of another kind where the manifest goes."""
    dtu.write(tmp_path / "scene", 10, SIZE)
    cloud = tmp_path / "scene" / "mvs_pc.ply"
    before = cloud.read_bytes()

    def full(path, points):
        path.write_bytes(b"ply")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("npbgpp.prepare.cloud.write_ply", full)
        assert "No space left" in refused(prepare, "cloud", "scene=scene", "overwrite=true", "count=500")
    cloud.with_suffix(".json").write_text('{"frames": []}')
    assert "mvs_pc.json" in refused(prepare, "cloud", "scene=scene", "overwrite=true", "count=500")
    assert cloud.read_bytes() == before and cloud.with_suffix(".json").read_text() == '{"frames": []}'
    assert sorted(p.name for p in (tmp_path / "scene").iterdir() if p.is_file()) == ["cameras.npz", "mvs_pc.json", "mvs_pc.ply"]


def test_scenes_of_a_paths_file(prepare, tmp_path):
    npbg.write(tmp_path / "npbg", 10, SIZE, paths=True)
    (paths,) = [p for p in (tmp_path / "npbg").glob("*.yaml") if p.name != "scene.yaml"]
    said = prepare("check", "scene=ball", f"paths_file={paths}", "layout=npbg")
    assert "ball, read as npbg" in said and (tmp_path / "check" / "ball.png").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("check", "scene=nowhere"), ["nowhere", "folder"]),
        (("check",), ["scene", "nothing"]),
        (("check", "scene"), ["scene", "key=value"]),
        (("check", "scene=scene", "neer=3"), ["neer", "near"]),
        (("check", "scene=scene", "pictures=0"), ["pictures", "0"]),
        (("check", "scene=scene", "layout=colmap"), ["scene", "COLMAP"]),
        (("check", "scene=scene", "pc_name=other.ply"), ["other.ply", "mvs_pc.ply", "prepare cloud"]),
        (("cloud", "scene=scene", "pc_name=a.ply", "method=magic"), ["method", "magic", "hull"]),
        (("cloud", "scene=scene", "pc_name=a.ply", "method=depth"), ["depth maps"]),
        (("cloud", "scene=scene", "pc_name=a.ply", "count=0"), ["count", "0"]),
        (("cloud", "scene=scene", "pc_name=a.ply", "holdout_indices=every:1"), ["holdout_indices", "every:1"]),
        (("cloud", "scene=scene", "pc_name=a.ply", "source=none.ply"), ["none.ply"]),
    ],
)
def test_one_message(prepare, tmp_path, words, expected):
    dtu.write(tmp_path / "scene", 6)
    message = refused(prepare, *words)
    assert all(word in message for word in expected), message
    assert not (tmp_path / "scene" / "a.ply").exists()


def test_as_a_user_types_it(tmp_path):
    """A process of its own: usage without arguments, exit code 1 and one line for a mistake."""
    command = [sys.executable, "-m", "npbgpp.prepare"]
    usage = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert usage.returncode == 1 and "check|cloud|llff scene=<folder>" in usage.stderr and "holdout_indices" in usage.stderr
    wrong = subprocess.run([*command, "check", "scene=nowhere"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: scene=nowhere") and wrong.stderr.count("\n") == 1
