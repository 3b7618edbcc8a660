"""``npbgpp prepare dense`` on photos of a textured room with a COLMAP model."""

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from plyfile import PlyData

from npbgpp.errors import InputError
from npbgpp.geometry import read_ply
from npbgpp.prepare import dense
from npbgpp.prepare.__main__ import main

from ..helpers.layouts.textured_colmap import SIZE, write
from ..helpers.room import ROOM, distance_to_room


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """The scene, with the cloud that the first call made: all views but the last train, and its photo cannot be read."""
    folder = tmp_path_factory.mktemp("dense") / "room"
    write(folder)
    (folder / "images" / "view_7.png").write_bytes((folder / "images" / "view_7.png").read_bytes()[:300])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prepare", "dense", str(folder), "val_indices=[]", "test_indices=[7]", "keep_depth=true"])
        main()
    return folder


@pytest.fixture
def prepare(original, tmp_path, monkeypatch) -> Callable[..., Path]:
    """Runs the command on a copy of the scene; returns its folder."""

    def go(*words: str, command: str = "dense") -> Path:
        folder = tmp_path / "room"
        if not folder.exists():
            copytree(original, folder)
        held_out = () if any("indices" in word for word in words) else ("val_indices=[]", "test_indices=[7]")
        monkeypatch.setattr(sys, "argv", ["prepare", command, str(folder), *held_out, *words])
        main()
        return folder

    return go


def test_points_lie_on_the_surfaces(original):
    """Made from the training views alone: the photo of the held-out view cannot be read."""
    cloud = read_ply(original / "mvs_pc.ply")
    distance = distance_to_room(cloud.xyz.numpy())
    assert len(cloud) > 3000 and (distance < 0.02).mean() > 0.8 and np.median(distance) < 0.008, (len(cloud), np.median(distance))
    assert cloud.rgb_u8 is not None
    r, g, b = cloud.rgb_u8.float().numpy().T
    assert np.abs(r / 2 + 60 - g).max() < 3 and np.abs(255 - r - b).max() < 3
    vertex = PlyData.read(str(original / "mvs_pc.ply"))["vertex"].data
    normal = np.stack([vertex[name] for name in ("nx", "ny", "nz")], 1)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, rtol=1e-4)
    # of the far wall they look at the cameras
    wall = np.abs(cloud.xyz[:, 2].numpy() - 2.2) < 0.01
    assert wall.sum() > 300 and np.median(-normal[wall, 2]) > 0.95
    manifest = json.loads((original / "mvs_pc.json").read_text())
    assert manifest["method"] == "mvs" and len(manifest["used_views"]) == 7 and manifest["held_out_views"] == ["view_7"]
    assert not list(original.glob(".mvs_pc.ply*"))


def test_depth_maps_are_kept_as_colmap_writes_them(original):
    room = ROOM.rendered(1, *SIZE)
    content = (original / "depth" / "stereo" / "depth_maps" / "view_0.png.geometric.bin").read_bytes()
    assert content.startswith(b"128&96&1&")
    depth = np.frombuffer(content[9:], "<f4").reshape(SIZE)
    known = depth > 0
    assert known.mean() > 0.5 and np.median(np.abs(depth / room.depths[0] - 1)[known]) < 0.003
    content = (original / "depth" / "stereo" / "normal_maps" / "view_0.png.geometric.bin").read_bytes()
    normal = np.frombuffer(content[len(b"128&96&3&") :], "<f4").reshape(3, *SIZE)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=0)[known], 1, rtol=1e-4)
    v, u = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    ray = np.einsum("ij,jhw->ihw", np.linalg.inv(room.views[0].K), np.stack([u, v, np.ones(SIZE)]))
    assert ((normal * ray).sum(0)[known] < 0).all(), "they face the camera"
    seen = (original / "mvs_pc.ply.vis").read_bytes()
    count, rows, place = int(np.frombuffer(seen[:8], "<u8")[0]), np.frombuffer(seen[8:], "<u4"), 0
    for _ in range(count):
        length = rows[place]
        assert 4 <= length <= 7 and rows[place + 1 : place + 1 + length].max() < 7
        place += length + 1
    assert count == len(read_ply(original / "mvs_pc.ply")) and place == len(rows)


def test_an_interrupted_call_goes_on(original, prepare, monkeypatch):
    calls, estimate = [], dense.estimate_planes

    def limited(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return estimate(*arguments)

    monkeypatch.setattr(dense, "estimate_planes", limited)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        prepare("pc_name=again.ply")
    folder = prepare("pc_name=again.ply")
    assert len(calls) == 4 + 4, "three maps were there"
    assert (folder / "again.ply").read_bytes() == (original / "mvs_pc.ply").read_bytes()
    assert not list(folder.glob(".again*"))


def test_views_that_do_not_fit_into_memory_are_read_again(original, prepare, monkeypatch):
    monkeypatch.setattr(dense, "_COMPARED", 3)
    whole = (prepare("pc_name=whole.ply", "size=64") / "whole.ply").read_bytes()
    monkeypatch.setattr(dense, "_CACHED_BYTES", 0)
    assert (prepare("pc_name=parts.ply", "size=64") / "parts.ply").read_bytes() == whole


def test_fewer_points(prepare, caplog):
    caplog.set_level(logging.INFO)
    folder = prepare("pc_name=few.ply", "count=500", "size=96", "min_views=3")
    assert len(read_ply(folder / "few.ply")) == 500
    assert re.search(r"7 photos, about \d+ s \(depth maps \d+ s, fusion \d+ s\)", caplog.text)
    with pytest.raises(SystemExit, match="exists; choose another name"):
        prepare("pc_name=few.ply")


def test_method_of_prepare_cloud(prepare):
    folder = prepare("method=mvs", "pc_name=other.ply", "count=1000", command="cloud")
    assert len(read_ply(folder / "other.ply")) == 1000
    assert json.loads((folder / "other.json").read_text())["method"] == "mvs"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("min_views=8", "pc_name=a.ply"), "min_views: expected points that at least 8 of 7"),
        (("val_indices=[]", "test_indices=[0,1,2,3,4,5]", "pc_name=a.ply"), "at least 3 training views"),
        (("size=10",), "size: expected 64 or more"),
        (("pc_name=mvs_pc.ply",), "overwrite=true"),
    ],
)
def test_refusals(prepare, words, message):
    with pytest.raises((SystemExit, InputError), match=message):
        prepare(*words)


def test_photos_that_share_nothing(prepare, tmp_path, original):
    """Every view has points of its own."""
    copytree(original, tmp_path / "room")
    images = tmp_path / "room" / "sparse" / "0" / "images.txt"
    lines, shared = images.read_text().splitlines(), set()
    for k in range(2, len(lines), 2):
        words = lines[k].split()
        own = [number for number in words[2::3] if number not in shared]
        shared |= set(own)
        lines[k] = " ".join(" ".join(words[j : j + 2] + [words[j + 2] if words[j + 2] in own else "-1"]) for j in range(0, len(words), 3))
    images.write_text("\n".join(lines) + "\n")
    with pytest.raises(SystemExit, match="show the same points"):
        prepare("pc_name=a.ply")
