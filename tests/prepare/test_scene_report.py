"""Statistics and diagnostics of a scene, against the matrices that its photos are drawn with."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.point_cloud import PointCloud, read_ply, write_ply
from npbgpp.parsers import with_cloud
from npbgpp.prepare import scene_report
from npbgpp.prepare.check import format_report
from npbgpp.prepare.scene_report import coarse_scale, diagnose, format_number, inspect_scene, nearest_axis

from ..helpers.balls import project
from ..helpers.scenes import COLOURS, look_at_origin, save_mask, save_picture
from .conftest import NEAR, SIZE, VIEWS


def replace_cameras(scene: Scene, change: Callable[[int, Cameras], Cameras]) -> Scene:
    return replace(scene, views=tuple(replace(view, camera=change(k, view.camera)) for k, view in enumerate(scene.views)))


def flip_axes(scene: Scene, *signs: float) -> Scene:
    factor = torch.tensor(signs)
    return replace_cameras(scene, lambda k, camera: replace(camera, R=camera.R * factor, T=camera.T * factor))


def permute_cameras(scene: Scene) -> Scene:
    return replace_cameras(scene, lambda k, camera: scene.views[(k + VIEWS // 3) % VIEWS].camera)


def rotate_in_place(scene: Scene) -> Scene:
    first = scene.views[0].camera

    def roll(angle: float) -> Cameras:
        cos, sin = math.cos(angle), math.sin(angle)
        rotation = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        return replace(first, R=first.R @ rotation, T=first.T @ rotation)

    return replace_cameras(scene, lambda k, camera: roll(0.05 * k))


def replace_cloud(scene: Scene, path: Path, cloud: PointCloud) -> Scene:
    write_ply(path, cloud)
    return replace(scene, cloud=CloudFile(path))


def add_outliers(scene: Scene, path: Path) -> Scene:
    cloud = scene.cloud.read()
    assert cloud.rgb_u8 is not None
    xyz = torch.cat([cloud.xyz, cloud.xyz + 500.0]).repeat(2, 1)[200:]
    return replace_cloud(scene, path, PointCloud(xyz, cloud.rgb_u8.repeat(4, 1)[200:]))


def replace_photos(scene: Scene, path: Path, value: int) -> Scene:
    save_picture(path, np.full((*SIZE, 3), value, dtype=np.uint8))
    return replace(scene, views=tuple(replace(view, image=path, mask=None) for view in scene.views))


def replace_masks(scene: Scene, path: Path, value: bool) -> Scene:
    save_mask(path, np.full(SIZE, value))
    return replace(scene, views=tuple(replace(view, mask=path, background=None) for view in scene.views))


def resize_view(scene: Scene, k: int) -> Scene:
    resized = replace(scene.views[k], camera=scene.views[k].camera.resize((24, 32)), resized=True)
    return replace(scene, views=(*scene.views[:k], resized, *scene.views[k + 1 :]))


# ------------------------------------------------------------------ statistics
def test_views_and_files(report, folder):
    assert [report.count(stage) for stage in ("train", "val", "test", None)] == [12, 2, 2, 0]
    assert report.sizes == ((SIZE, VIEWS),) and report.masks == VIEWS and report.lenses == () and report.resized == 0
    assert report.cloud.path == folder / "mvs_pc.ply" and not report.cloud.from_reconstruction and report.cloud.coloured
    assert report.cloud.points == report.cloud.sampled == 400 and report.cloud.unseen == 0
    xyz = read_ply(folder / "mvs_pc.ply").xyz
    assert report.cloud.low == pytest.approx(xyz.amin(0).tolist()) and report.cloud.high == pytest.approx(xyz.amax(0).tolist())


@pytest.mark.parametrize("near", [1.0, 3.0])
def test_points_per_view(scene, near):
    """Images are cropped so that some points are outside."""
    cropped = replace(scene, views=tuple(replace(view, camera=view.camera.crop(0, 30, (48, 34)), resized=True) for view in scene.views))
    report = inspect_scene(cropped, near)
    xyz = scene.cloud.read().xyz.double().numpy()
    seen, clipped = np.zeros(len(xyz), dtype=bool), []
    for k, view in enumerate(report.views):
        uv_px, depth = project(k, VIEWS, SIZE, xyz)
        inside = (uv_px[:, 0] >= 30) & (uv_px[:, 0] < 64) & (uv_px[:, 1] >= 0) & (uv_px[:, 1] < 48)
        depths = np.sort(depth[inside])
        assert 0 < inside.sum() < len(xyz)
        assert (view.in_image, view.beyond_near) == (inside.sum(), (depths > near).sum())
        assert (view.min_depth, view.near_depth, view.median_depth) == pytest.approx(
            (depths[0], depths[0], depths[len(depths) // 2]), rel=1e-5
        )
        cells = {(int(v // 8), int((u - 30) // 8)) for u, v in uv_px[inside & (depth > near)] if u < 62}
        assert (view.covered_cells, view.cells, view.behind) == (len(cells), 6 * 4, 0)
        seen |= inside
        clipped.append((inside & (depth <= near)).sum() / inside.sum())
    assert report.cloud.unseen == pytest.approx(1 - seen.mean())
    assert min(clipped) <= report.clipped <= max(clipped) and (report.clipped > 0) == (near == 3)


def test_cameras_of_a_ring(report):
    centres = np.array([-w2c[:3, :3].T @ w2c[:3, 3] for w2c in (look_at_origin(2 * math.pi * k / VIEWS) for k in range(VIEWS))])
    cameras = report.cameras
    assert cameras.low == pytest.approx(centres.min(0), abs=1e-4) and cameras.high == pytest.approx(centres.max(0), abs=1e-4)
    assert (cameras.distance, cameras.spread, cameras.depth) == pytest.approx((3, 3, 3), abs=0.1)
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=2) + 10 * np.eye(VIEWS)
    assert cameras.baseline == pytest.approx(np.median(distances.min(1)), abs=0.05)
    assert cameras.angle == pytest.approx(math.degrees(2 * math.asin(cameras.baseline / 6)), abs=1)
    assert cameras.field_of_view == pytest.approx((2 * math.degrees(math.atan(64 / 2 / (1.5 * 48))),) * 2, abs=1e-3)
    assert cameras.up is not None and nearest_axis(cameras.up) == "+z" and cameras.duplicates == ()


def test_drawn_and_decoded_views_are_far_from_each_other(scene, report):
    assert report.drawn == (0, 4, 8, 12)
    assert {photo.name for photo in report.photos} == {scene.views[k].name for k in range(0, VIEWS, 2)}
    assert all(photo.masked is not None and 0.02 < photo.masked < 0.3 for photo in report.photos)
    assert all(photo.brightness == pytest.approx(COLOURS.mean() / 255, abs=0.05) for photo in report.photos)  # inside the masks


def test_large_clouds_are_sampled(scene, report, monkeypatch):
    monkeypatch.setattr(scene_report, "_MAX_POINTS", 200)
    first, second = (inspect_scene(scene, NEAR) for _ in range(2))
    assert first == second and first.cloud.sampled == 200 and first.cloud.points == 400
    assert [view.in_image for view in first.views] == [400] * VIEWS
    assert first.suggested_near == pytest.approx(report.suggested_near, rel=0.1) and diagnose(first) == {}
    monkeypatch.setattr(scene_report, "_MAX_PROJECTIONS", VIEWS * 150)
    assert inspect_scene(scene, NEAR).cloud.sampled == 150


def test_points_of_the_reconstruction_replace_a_missing_cloud(scene, report, tmp_path):
    without = replace(scene, cloud=CloudFile(tmp_path / "mvs_pc.ply"))
    bare = inspect_scene(without, NEAR)
    assert bare.cloud is None and bare.cameras.distance == pytest.approx(3, abs=0.1) and diagnose(bare) == {}
    found = inspect_scene(with_cloud(replace(without, carried_points=scene.cloud.path), tmp_path), NEAR)
    assert found.cloud.from_reconstruction and found.views == report.views
    assert any(str(scene.cloud.path) in note for note in found.notes)
    assert inspect_scene(replace(scene, carried_points=tmp_path / "other.ply"), NEAR) == report


def test_single_view(scene):
    single = replace(scene, views=scene.views[:1], splits={"train": (0,), "val": (), "test": ()})
    report = inspect_scene(single, NEAR)
    assert (report.cameras.angle, report.cameras.baseline, report.cameras.duplicates) == (0, 0, ())
    assert diagnose(report).keys() == {"training views"}


def test_depth_buffer_of_small_images():
    assert (coarse_scale((480, 640)), coarse_scale((8, 8)), coarse_scale((7, 640))) == (0.125, 0.125, 1.0)


# ------------------------------------------------------------------ diagnostics
# kind, how the scene is changed, numbers and names in the message
PROBLEMS: list[tuple[str, Callable[[Scene, Path], Scene], tuple[str, ...]]] = [
    ("reversed cameras", lambda s, out: flip_axes(s, -1.0, 1.0, -1.0), ("16 of 16",)),
    (
        "empty views",
        lambda s, out: replace_cameras(s, lambda k, c: c.crop(0, 10_000, SIZE) if k == 3 else c),
        ("1 of 16", "100 points", "(3)"),
    ),
    ("colours", lambda s, out: flip_axes(s, 1.0, -1.0, 1.0), ("8 pixels", "ratio")),
    ("colours", lambda s, out: permute_cameras(s), ("8 pixels", "ratio")),
    ("single viewpoint", lambda s, out: rotate_in_place(s), ()),
    ("training views", lambda s, out: replace(s, splits=s.splits | {"train": (1, 2)}), ("2 training views",)),
    ("duplicate poses", lambda s, out: replace_cameras(s, lambda k, c: s.views[8].camera if k == 5 else c), ("1 pair ", "5 and 8")),
    ("dark photos", lambda s, out: replace_photos(s, out / "a.png", 2), ("8 of 8", "(0, ", "5 more)")),
    ("bright photos", lambda s, out: replace_photos(s, out / "a.png", 254), ("8 of 8",)),
    ("masks", lambda s, out: replace_masks(s, out / "a.png", False), ("8 of 8", "empty")),
    ("masks", lambda s, out: replace_masks(s, out / "a.png", True), ("All 8",)),
    ("unseen points", lambda s, out: add_outliers(s, out / "a.ply"), ("57 %",)),
]


def test_good_scene_has_no_problems(report):
    assert diagnose(report) == {}


@pytest.mark.parametrize(("kind", "change", "details"), PROBLEMS)
def test_each_problem_is_diagnosed(scene, kind, change, details, tmp_path):
    problems = diagnose(inspect_scene(change(scene, tmp_path), NEAR))
    assert all(detail in problems[kind] for detail in details)
    assert problems.keys() - {kind} <= {"colours"}  # permuted and moved cameras also show other colours


@pytest.mark.parametrize(("near", "clipped"), [(2.95, None), (50.0, "100.0 %")])
def test_suggested_near_plane_solves_the_problem(scene, near, clipped):
    report = inspect_scene(scene, near)
    problems = diagnose(report)
    assert problems.keys() == {"near plane"} and report.clipped > 0.05 and (clipped is None or clipped in problems["near plane"])
    suggested = re.search(r"system\.near=([0-9.]+)\.$", problems["near plane"])
    assert suggested is not None and diagnose(inspect_scene(scene, float(suggested[1]))) == {}


def test_near_plane_that_empties_a_single_view(scene):
    """A view close to the points, among many that are far: the fraction of all points stays small."""
    close = replace(scene.views[3], camera=replace(scene.views[3].camera, T=scene.views[3].camera.T - torch.tensor([0.0, 0.0, 1.5])))
    report = inspect_scene(replace(scene, views=(*scene.views, *scene.views, close)), 2.2)
    assert report.clipped < 0.05 and "1 view keeps fewer than 100 points (3)" in diagnose(report)["near plane"]
    assert report.suggested_near == pytest.approx(0.5, abs=0.1)


def test_colours_without_contrast_are_not_compared(scene, tmp_path):
    wrong, cloud = permute_cameras(scene), scene.cloud.read()
    for rgb in (None, torch.full((len(cloud), 3), 128, dtype=torch.uint8)):
        report = inspect_scene(replace_cloud(wrong, tmp_path / "cloud.ply", PointCloud(cloud.xyz, rgb)), NEAR)
        assert not report.cloud.coloured and report.colours is None and diagnose(report) == {}
    report = inspect_scene(replace_photos(wrong, tmp_path / "grey.png", 128), NEAR)
    assert report.cloud.coloured and report.colours is None and diagnose(report) == {}


def test_cloud_made_with_test_views(scene):
    names = tuple(view.name for view in scene.views)
    report = inspect_scene(scene, NEAR, cloud_views=names[:8])
    assert report.leaked == (names[0],) and diagnose(report).keys() == {"leaked test views"}
    assert "1 of 2 test views (0)" in diagnose(report)["leaked test views"]
    assert diagnose(inspect_scene(scene, NEAR, cloud_views=names[1:8])) == {}


def test_photos_of_several_sizes_are_no_problem(scene):
    """Batches of one photo are the default."""
    report = inspect_scene(resize_view(scene, 3), NEAR)
    assert diagnose(report) == {} and "datasets.train_image_size" in dict(format_report(report))["image sizes"]


# ------------------------------------------------------------------ printed report
def test_printed_report(report):
    rows = dict(format_report(replace(report, notes=("Photos [1, 2] are left out.",))))
    assert rows["views"].split(": ")[1] == "12 training, 2 validation, 2 test" and "64x48 (16 views)" in rows["image sizes"]
    assert "mvs_pc.ply: 400 points" in rows["cloud"] and f"{report.colours.ratio:.2f}" in rows["colours against photos"]
    assert "400 (0) to 400 (" in rows["points per view"] and rows["recommended near plane"] == "system.near=1"
    assert rows["scene"] == f"{report.scene}, read as {report.layout}"
    assert "+z" in rows["up direction"] and rows["note"] == "Photos [1, 2] are left out."


def test_how_the_folder_was_read_is_printed_once(report):
    reading = f"read as {report.layout} (it could also be llff: choose with datasets.layout)"
    rows = format_report(replace(report, notes=(reading,)))
    assert ("scene", f"{report.scene}, {reading}") in rows and not [name for name, _ in rows if name == "note"]


def test_a_printed_report_of_one_photo(scene):
    single = replace(scene, views=scene.views[:1], splits={"train": (), "val": (), "test": ()})
    report = inspect_scene(replace(single, views=(replace(single.views[0], resized=True),)), NEAR)
    rows = dict(format_report(report))
    assert "64x48 (1 view); 1 photo is resampled" in rows["image sizes"] and rows["masks"] == "1 view"
    assert "1 unused (of no split" in rows["views"]


@pytest.mark.parametrize(("number", "text"), [(0.123456, "0.123"), (-0.0, "0"), (1234.5, "1230"), (-3.0, "-3")])
def test_formatted_numbers(number, text):
    assert format_number(number) == text
