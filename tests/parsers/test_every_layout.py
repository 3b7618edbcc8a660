"""One drawn scene in every layout: all parsers find the same cameras, and points project where they were drawn. Damaged files are read or refused."""

import math
import re
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npbgpp.data.images import read_photo
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.parsers import LAYOUTS, read_scene, recognise

from ..helpers.layouts import colmap, dtu, h3ds, llff, monocular, nerf_synthetic, npbg, npcr, scannet, scannet_raw
from ..helpers.scenes import COLOURS, POINTS, central_intrinsics, centroid, look_at_origin

VIEWS, SIZE = 8, (48, 64)
# name -> (layout, writer, its cloud, further choices)
WRITTEN: dict[str, tuple[str, Callable[..., None], str, dict[str, Any]]] = {
    "nerf_synthetic": ("nerf_synthetic", nerf_synthetic.write, "mvs_pc.ply", {}),
    "scannet": ("scannet", scannet.write, "full.ply", {}),
    "scannet_raw": ("scannet", scannet_raw.write, "full.ply", {}),
    "dtu": ("dtu", dtu.write, "mvs_pc.ply", {}),
    "h3ds": ("h3ds", h3ds.write, "mvs_pc.ply", {}),
    "llff": ("llff", llff.write, "mvs_pc.ply", {}),
    "colmap": ("colmap", colmap.write, "mvs_pc.ply", {}),
    "colmap_text": ("colmap", partial(colmap.write, text=True), "mvs_pc.ply", {}),
    "colmap_distorted": ("colmap", partial(colmap.write, model="OPENCV"), "mvs_pc.ply", {}),
    "npbg": ("npbg", npbg.write, "point_cloud.ply", {}),
    "npbg_text": ("npbg", partial(npbg.write, text=True), "point_cloud.ply", {}),
    "monocular": ("monocular", monocular.write, "mvs_pc.ply", {}),
    "npcr": ("npcr", npcr.write, "pointclouds/frame1.xzy", {}),
}


def read(folder: Path, name: str) -> Scene:
    layout, _, cloud, choices = WRITTEN[name]
    return read_scene(layout, folder, folder, "scene", CloudFile(folder / cloud), choices)


def write(folder: Path, name: str, views: int = VIEWS, size: tuple[int, int] = SIZE) -> Path:
    WRITTEN[name][1](folder, views, size)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    root = tmp_path_factory.mktemp("layouts")
    return {name: read(write(root / name, name), name) for name in WRITTEN}


def test_every_layout_is_written():
    assert {layout for layout, *_ in WRITTEN.values()} == set(LAYOUTS)


@pytest.mark.parametrize("name", WRITTEN)
def test_all_parsers_agree_on_the_cameras(scenes, name):
    views = scenes[name].views
    w2c = torch.stack([torch.from_numpy(look_at_origin(2 * math.pi * k / VIEWS)) for k in range(VIEWS)]).float()
    K = torch.from_numpy(central_intrinsics(SIZE)).float()
    drawn = Cameras.from_opencv(w2c, K.diagonal()[None, :2].repeat(VIEWS, 1), (K[:2, 2] + 0.5).repeat(VIEWS, 1), SIZE)
    found = Cameras.cat([view.camera for view in views])
    assert len(views) == VIEWS and found.image_size == SIZE
    torch.testing.assert_close(found.R, drawn.R, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.T, drawn.T, atol=2e-4, rtol=0)
    torch.testing.assert_close(found.principal_point.float(), drawn.principal_point, atol=1e-3, rtol=0)
    zoom = found.focal_length.float() / drawn.focal_length
    torch.testing.assert_close(zoom, torch.full_like(zoom, float(zoom.mean())), atol=1e-4, rtol=0)
    # taking the distortion out may magnify a little
    assert abs(zoom.mean() - 1) < 1e-4 or (name == "colmap_distorted" and 1 <= zoom.mean() < 1.3)


@pytest.mark.parametrize("name", WRITTEN)
def test_points_project_where_they_were_drawn(scenes, name):
    compared = 0
    for view in scenes[name].views:
        uv_px, depth = view.camera.project(torch.from_numpy(POINTS).float())
        image = read_photo(view).image
        for k, colour in enumerate(COLOURS):
            if 3 < uv_px[0, k, 0] < SIZE[1] - 3 and 3 < uv_px[0, k, 1] < SIZE[0] - 3 and hidden(view, k) is False:
                assert (centroid(image, colour) - uv_px[0, k]).norm() < 0.5 and depth[0, k] > 0
                compared += 1
    assert compared >= 2 * VIEWS


def hidden(view, k: int) -> bool:
    """Whether another ball is before ball k, or touches it in the photo."""
    uv_px, _ = view.camera.project(torch.from_numpy(POINTS).float())
    others = (uv_px[0] - uv_px[0, k]).norm(dim=1) < 0.3 * view.camera.focal_length[0, 0] / 2.5
    return int(others.sum()) > 1


@pytest.mark.parametrize("name", WRITTEN)
def test_layouts_are_told_by_their_files(tmp_path, name):
    folder = write(tmp_path / "scene", name, 3, (24, 32))
    assert recognise(folder)[0] == WRITTEN[name][0]
    found = read_scene("auto", folder, folder, "scene", CloudFile(folder / WRITTEN[name][2]), {})
    assert found.layout == WRITTEN[name][0] and any(found.layout in note for note in found.notes)


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "monocular"])  # a video has three frames at least
def test_two_views_are_enough(tmp_path, name):
    folder = write(tmp_path / "scene", name, 3 if name == "nerf_synthetic" else 2, (24, 32))
    scene = read(folder, name).with_splits((), (1,))
    assert scene.splits == {"train": (0,), "val": (), "test": (1,)}


@pytest.mark.parametrize("name", WRITTEN)
def test_photos_may_be_reduced(tmp_path, name):
    folder = write(tmp_path / "scene", name, 3, (48, 64))
    layout, _, cloud, choices = WRITTEN[name]
    whole = read(folder, name)
    half = read_scene(layout, folder, folder, "scene", CloudFile(folder / cloud), {**choices, "downscale": 2.0})
    for large, small in zip(whole.views, half.views, strict=True):
        assert small.camera.image_size == (24, 32) == tuple(read_photo(small).image.shape[1:])
        uv_px, _ = large.camera.project(torch.from_numpy(POINTS).float())
        torch.testing.assert_close(small.camera.project(torch.from_numpy(POINTS).float())[0], uv_px / 2, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", WRITTEN)
def test_nothing_is_written_into_the_data(tmp_path, name):
    folder = write(tmp_path / "scene", name, 3, (24, 32))
    before = {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}
    read(folder, name).cloud.read()
    assert {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))} == before


def test_an_unknown_folder(tmp_path):
    with pytest.raises(InputError, match=r"looks like none of the layouts.*colmap.*datasets\.layout"):
        read_scene("auto", tmp_path, tmp_path, "scene", CloudFile(tmp_path / "a.ply"), {})


# ---------------------------------------------------------------------------------------------------------------------- damaged files
NUMBERS = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, 1e60, 1e-308, 5.0)
places = st.floats(0, 1, exclude_max=True)
damages = st.one_of(
    st.tuples(st.just("flip"), st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=6)),
    st.tuples(st.just("header"), st.lists(st.tuples(st.integers(0, 130), st.integers(1, 255)), min_size=1, max_size=3)),
    st.tuples(st.just("cut"), places),
    st.tuples(st.just("grow"), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("remove"), st.none()),
    st.tuples(st.just("empty"), st.none()),
    st.tuples(st.just("double"), st.tuples(places, st.sampled_from(NUMBERS))),
    st.tuples(
        st.just("word"),
        st.tuples(places, st.sampled_from(("nan", "inf", "-1", "0", "1e400", "9" * 30, "a", "", "../..", "\u00e4", "[]", "1"))),
    ),
)


def damaged(content: bytes, kind: str, what: Any) -> bytes:
    """The bytes of a file after one kind of accident."""
    changed = bytearray(content)
    if kind == "flip":
        for place, change in what:
            changed[int(place * len(changed))] ^= change
    elif kind == "header":
        for place, change in what:
            changed[min(place, len(changed) - 1)] ^= change
    elif kind == "cut":
        del changed[int(what * len(changed)) :]
    elif kind == "grow":
        changed += what
    elif kind == "empty":
        changed = bytearray()
    elif kind == "double" and len(changed) >= 8:
        place = int(what[0] * (len(changed) - 7))
        changed[place : place + 8] = struct.pack("<d", what[1])
    elif kind == "word":
        words = list(re.finditer(rb"[-+.\w]+", content))
        if words:
            word = words[int(what[0] * len(words))]
            changed[word.start() : word.end()] = what[1].encode()
    return bytes(changed)


@pytest.fixture(scope="module")
def playgrounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Scenes of three small photos whose files every example spoils and restores."""
    root = tmp_path_factory.mktemp("playgrounds")
    return {name: write(root / name / "scene", name, 3, (24, 32)) for name in WRITTEN}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=places, spoiling=damages)
def test_damaged_files_are_read_or_refused(playgrounds, name, place, spoiling):
    folder = playgrounds[name]
    # metadata as often as photos, which are many
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    photos = [path for path in files if path.suffix in (".png", ".jpg")]
    files = [path for path in files if path not in photos] * 3 + photos[::2]
    path = files[int(place * len(files))]
    whole = path.read_bytes()
    kind, what = spoiling
    try:
        if kind == "remove":
            path.unlink()
        else:
            path.write_bytes(damaged(whole, kind, what))
        check_read_or_refused(folder, name)
    finally:
        path.write_bytes(whole)


def check_read_or_refused(folder: Path, name: str) -> None:
    """Everything of a scene is read with finite numbers, or one message says what is wrong where."""
    try:
        scene = read(folder, name)
        for view in scene.views:
            photo = read_photo(view)
            assert photo.image.shape[1:] == view.camera.image_size
        cloud = scene.cloud.read()
    except InputError as error:
        assert str(error).strip() and ("scene" in str(error) or str(folder) in str(error)), str(error)
        return
    assert scene.views and cloud.xyz.isfinite().all() and len({view.name for view in scene.views}) == len(scene.views)
    for view in scene.views:
        camera = view.camera
        assert all(numbers.isfinite().all() for numbers in (camera.R, camera.T, camera.focal_length, camera.principal_point))
        assert (camera.focal_length > 0).all()


@pytest.mark.parametrize("name", WRITTEN)
def test_the_undamaged_playground_is_read(playgrounds, name):
    assert len(read(playgrounds[name], name).views) == 3


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("kind", ["loop", "folder"])
def test_files_that_are_no_files(tmp_path, name, kind):
    """Every file in turn is a link to itself, or a folder."""
    folder = write(tmp_path / "scene", name, 2 if name not in ("nerf_synthetic", "monocular") else 3, (24, 32))
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        path.unlink()
        if kind == "loop":
            path.symlink_to(path)
        else:
            path.mkdir()
        check_read_or_refused(folder, name)
        path.unlink() if kind == "loop" else path.rmdir()
        path.write_bytes(whole)


@pytest.mark.parametrize("name", WRITTEN)
def test_names_that_are_not_utf8(tmp_path, name):
    folder = write(tmp_path / "scene", name, 3, (24, 32))
    photo = next(p for p in sorted(folder.rglob("*")) if p.suffix in (".png", ".jpg"))
    bad = bytes(photo.parent) + b"/\xff\xfe3" + photo.suffix.encode()
    with open(bad, "wb") as file:
        file.write(photo.read_bytes())
    check_read_or_refused(folder, name)
