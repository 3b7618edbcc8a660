"""The examination of a scene: what it counts, which problems it finds, what it draws."""

import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.point_cloud import PointCloud, read_ply, write_ply
from npbgpp.kernels.chunks import ChunkedCloud
from npbgpp.parsers import LAYOUTS
from npbgpp.parsers import with_cloud as with_points
from npbgpp.prepare import scene_report
from npbgpp.prepare.check import rows, table
from npbgpp.prepare.check_sheet import COLOURS as STAGE_COLOURS
from npbgpp.prepare.check_sheet import Plan, alone, check_sheet, depth_colours, dots, plans, reduced, search_paths
from npbgpp.prepare.diagnostics import problems
from npbgpp.prepare.scene_report import Findings, axis_name, coarse_scale, examine, short

from ..helpers.layouts.dtu import write
from ..helpers.scenes import COLOURS, POINTS, RADIUS, central_intrinsics, look_at_origin, save_mask, save_picture

VIEWS = 16
SIZE = (48, 64)
NEAR = 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Balls seen from a ring. Never write into it: ``elsewhere`` is for that."""
    path = tmp_path_factory.mktemp("check") / "balls"
    write(path, VIEWS, SIZE)
    return path


@pytest.fixture(scope="module")
def scene(folder: Path) -> Scene:
    """12 training views, 2 for validation, 2 for tests."""
    parsed = LAYOUTS["dtu"].parse(folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"))
    return parsed.with_splits((4, 12), (0, 8))


@pytest.fixture(scope="module")
def good(scene: Scene) -> Findings:
    return examine(scene, "dtu", NEAR)


def with_cameras(scene: Scene, change: Callable[[int, Cameras], Cameras]) -> Scene:
    return replace(scene, views=tuple(replace(view, camera=change(k, view.camera)) for k, view in enumerate(scene.views)))


def turned(camera: Cameras, *signs: float) -> Cameras:
    """A camera with other axes at the same place."""
    return replace(camera, R=camera.R * torch.tensor(signs), T=camera.T * torch.tensor(signs))


def mirrored(scene: Scene) -> Scene:
    return with_cameras(scene, lambda k, camera: turned(camera, 1.0, -1.0, 1.0))


def exchanged(scene: Scene) -> Scene:
    return with_cameras(scene, lambda k, camera: scene.views[(k + VIEWS // 3) % VIEWS].camera)


def with_cloud(scene: Scene, path: Path, cloud: PointCloud) -> Scene:
    write_ply(path, cloud)
    return replace(scene, cloud=CloudFile(path))


def with_pictures(scene: Scene, path: Path, value: int) -> Scene:
    save_picture(path, np.full((*SIZE, 3), value, dtype=np.uint8))
    return replace(scene, views=tuple(replace(view, image=path, mask=None) for view in scene.views))


def with_masks(scene: Scene, path: Path, value: bool) -> Scene:
    save_mask(path, np.full(SIZE, value))
    return replace(scene, views=tuple(replace(view, mask=path, background=None) for view in scene.views))


def projected(k: int, xyz_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uv_px (from the corner of the picture) and depth, from the matrices that the scene was drawn with."""
    w2c = look_at_origin(2 * math.pi * k / VIEWS)
    xyz_cam = xyz_world @ w2c[:3, :3].T + w2c[:3, 3]
    uvw = xyz_cam @ central_intrinsics(SIZE).T
    return uvw[:, :2] / uvw[:, 2:] + 0.5, xyz_cam[:, 2]


# ---------------------------------------------------------------------------- what is counted
def test_a_good_scene_has_no_problems(good):
    assert problems(good) == ()


def test_views_and_files(good, folder):
    assert [good.count(stage) for stage in ("train", "val", "test", None)] == [12, 2, 2, 0]
    assert good.sizes == ((SIZE, VIEWS),) and good.masks == VIEWS and good.lenses == () and good.resized == 0
    assert good.cloud.path == folder / "mvs_pc.ply" and not good.cloud.carried and good.cloud.coloured
    assert good.cloud.points == good.cloud.examined == 400 and good.cloud.unseen == 0
    xyz = read_ply(folder / "mvs_pc.ply").xyz
    assert good.cloud.low == pytest.approx(xyz.amin(0).tolist()) and good.cloud.high == pytest.approx(xyz.amax(0).tolist())


@pytest.mark.parametrize("near", [1.0, 3.0])
def test_points_of_every_view_are_counted(scene, near):
    """The left part of the pictures is cut off, so that some points are outside; against the matrices that the scene was drawn with."""
    cut = replace(scene, views=tuple(replace(view, camera=view.camera.crop(0, 30, (48, 34)), resized=True) for view in scene.views))
    found = examine(cut, "dtu", near)
    xyz = scene.cloud.read().xyz.double().numpy()
    seen = np.zeros(len(xyz), dtype=bool)
    shares = []
    for k, view in enumerate(found.views):
        uv_px, depth = projected(k, xyz)
        inside = (uv_px[:, 0] >= 30) & (uv_px[:, 0] < 64) & (uv_px[:, 1] >= 0) & (uv_px[:, 1] < 48)
        depths = np.sort(depth[inside])
        assert 0 < inside.sum() < len(xyz)
        assert (view.in_image, view.shown) == (inside.sum(), (depths > near).sum())
        assert (view.nearest, view.early, view.median) == pytest.approx((depths[0], depths[0], depths[len(depths) // 2]), rel=1e-5)
        cells = {(int(v // 8), int((u - 30) // 8)): None for u, v in uv_px[inside & (depth > near)] if u < 62}
        assert (view.visible, view.cells, view.behind) == (len(cells), 6 * 4, 0)
        seen |= inside
        shares.append((inside & (depth <= near)).sum() / inside.sum())
    assert found.cloud.unseen == pytest.approx(1 - seen.mean())
    assert min(shares) <= found.before_near <= max(shares) and (found.before_near > 0) == (near == 3)


def test_cameras_of_a_ring(good):
    eyes = np.array([-w2c[:3, :3].T @ w2c[:3, 3] for w2c in (look_at_origin(2 * math.pi * k / VIEWS) for k in range(VIEWS))])
    cameras = good.cameras
    assert cameras.low == pytest.approx(eyes.min(0), abs=1e-4) and cameras.high == pytest.approx(eyes.max(0), abs=1e-4)
    assert cameras.distance == pytest.approx(3, abs=0.05) and cameras.spread == pytest.approx(3, abs=0.1)
    assert cameras.depth == pytest.approx(3, abs=0.1)
    apart = np.linalg.norm(eyes[:, None] - eyes[None], axis=2) + 10 * np.eye(VIEWS)
    assert cameras.baseline == pytest.approx(np.median(apart.min(1)), abs=0.05)
    assert cameras.angle == pytest.approx(math.degrees(2 * math.asin(cameras.baseline / 6)), abs=1)
    angle = math.degrees(2 * math.atan(64 / 2 / (1.5 * 48)))
    assert cameras.field_of_view == pytest.approx((angle, angle), abs=1e-3)
    assert cameras.up is not None and axis_name(cameras.up) == "+z"
    assert cameras.twins == ()


def test_photos_are_those_of_views_far_from_each_other(scene, good):
    assert good.pictured == (0, 4, 8, 12)
    assert {photo.name for photo in good.photos} == {scene.views[k].name for k in range(0, VIEWS, 2)}
    assert all(photo.masked is not None and 0.02 < photo.masked < 0.3 for photo in good.photos)
    mean = COLOURS.mean() / 255  # of the object, not of the white around it
    assert all(photo.brightness == pytest.approx(mean, abs=0.05) for photo in good.photos)


def test_a_sample_of_a_large_cloud_is_enough(scene, good, monkeypatch):
    monkeypatch.setattr(scene_report, "_MOST_POINTS", 200)
    first, second = (examine(scene, "dtu", NEAR) for _ in range(2))
    assert first == second
    assert first.cloud.examined == 200 and first.cloud.points == 400
    assert [view.in_image for view in first.views] == [400] * VIEWS
    assert first.suggested_near == pytest.approx(good.suggested_near, rel=0.1)
    assert problems(first) == ()


def test_many_views_share_the_work(scene, monkeypatch):
    monkeypatch.setattr(scene_report, "_PROJECTIONS", VIEWS * 150)
    assert examine(scene, "dtu", NEAR).cloud.examined == 150


def test_neighbours_do_not_depend_on_how_many_are_compared_at_once(scene, good, monkeypatch):
    monkeypatch.setattr(scene_report, "_ROWS_AT_ONCE", 3)
    assert examine(scene, "dtu", NEAR) == good


def test_points_that_came_with_the_poses_stand_in_for_a_cloud(scene, good, tmp_path):
    without = replace(scene, cloud=CloudFile(tmp_path / "none.ply"))
    with pytest.raises(InputError, match="none.ply"):
        examine(without, "dtu", NEAR)
    found = examine(with_points(replace(without, carried_points=scene.cloud.path), tmp_path), "dtu", NEAR)
    assert found.cloud.carried and found.views == good.views and any(str(scene.cloud.path) in note for note in found.notes)
    kept = examine(replace(scene, carried_points=tmp_path / "other.ply"), "dtu", NEAR)
    assert kept == good


def test_one_view_is_enough_to_look_at(scene):
    alone_view = replace(scene, views=scene.views[:1], splits={"train": (0,), "val": (), "test": ()})
    found = examine(alone_view, "dtu", NEAR)
    assert (found.cameras.angle, found.cameras.baseline, found.cameras.twins) == (0, 0, ())
    assert re.match("1 views are left for training", " ".join(problems(found)))


def test_small_images_have_cells_of_their_own():
    assert (coarse_scale((480, 640)), coarse_scale((8, 8)), coarse_scale((7, 640))) == (0.125, 0.125, 1.0)


# ---------------------------------------------------------------------------- what is wrong
def at_one_place(scene: Scene) -> Scene:
    """Rolled around one viewing direction."""
    first = scene.views[0].camera

    def rolled(angle: float) -> Cameras:
        cos, sin = math.cos(angle), math.sin(angle)
        roll = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        return replace(first, R=first.R @ roll, T=first.T @ roll)

    return with_cameras(scene, lambda k, camera: rolled(0.05 * k))


def with_a_blind_view(scene: Scene) -> Scene:
    return with_cameras(scene, lambda k, camera: camera.crop(0, 10_000, SIZE) if k == 3 else camera)


def with_copies(scene: Scene) -> Scene:
    return with_cameras(scene, lambda k, camera: scene.views[8].camera if k in (5, 9) else camera)


def with_a_smaller_view(scene: Scene) -> Scene:
    smaller = replace(scene.views[3], camera=scene.views[3].camera.resize((24, 32)), resized=True)
    return replace(scene, views=(*scene.views[:3], smaller, *scene.views[4:]))


def with_stray_points(scene: Scene, path: Path) -> Scene:
    cloud = scene.cloud.read()
    assert cloud.rgb is not None
    return with_cloud(scene, path, PointCloud(torch.cat([cloud.xyz, cloud.xyz + 500.0]).repeat(2, 1)[200:], cloud.rgb.repeat(4, 1)[200:]))


PROBLEMS: dict[str, tuple[Callable[[Scene, Path], Scene], str]] = {
    "reversed": (lambda scene, out: with_cameras(scene, lambda k, c: turned(c, -1.0, 1.0, -1.0)), "behind 16 of 16 cameras"),
    "blind": (
        lambda scene, out: with_a_blind_view(scene),
        r"1 of 16 views have fewer than 100 points in their image, 1 of them none \(3\)",
    ),
    "mirrored": (lambda scene, out: mirrored(scene), "colours of the points fit .* 8 pixels beside .* ratio (0.[89]|1)"),
    "exchanged": (lambda scene, out: exchanged(scene), "colours of the points fit .* 8 pixels beside .* ratio (0.[89]|1)"),
    "one place": (lambda scene, out: at_one_place(scene), "nearly all at one place: they are "),
    "few": (lambda scene, out: replace(scene, splits=scene.splits | {"train": (1, 2)}), "2 views are left for training"),
    "copies": (lambda scene, out: with_copies(scene), "2 pairs of views have the same pose, such as 5 and 8"),
    "black": (
        lambda scene, out: with_pictures(scene, out / "black.png", 2),
        r"8 of 8 photos looked at are nearly black \(0, .* and 5 more\)",
    ),
    "white": (lambda scene, out: with_pictures(scene, out / "white.png", 254), "8 of 8 photos looked at are nearly white"),
    "empty": (lambda scene, out: with_masks(scene, out / "empty.png", False), "8 of 8 masks looked at are empty"),
    "full": (lambda scene, out: with_masks(scene, out / "full.png", True), "All 8 masks looked at are full"),
    "stray": (lambda scene, out: with_stray_points(scene, out / "stray.ply"), "57 % of the cloud is in no image"),
    "sizes": (lambda scene, out: with_a_smaller_view(scene), r"2 sizes \(32x24, 64x48\).*train_image_size.*train_total_batch_size=1"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_each_problem_is_said(scene, name, tmp_path):
    spoil, sentence = PROBLEMS[name]
    found = problems(examine(spoil(scene, tmp_path), "dtu", NEAR))
    assert [problem for problem in found if re.search(sentence, problem)], found
    # exchanged and moved cameras also show other colours; nothing else may be said
    others = [problem for problem in found if not re.search(sentence, problem) and "colours of the points" not in problem]
    assert others == []


@pytest.mark.parametrize(("near", "share"), [(2.95, None), (50.0, "100.0 %")])
def test_near_plane_too_far_and_the_advice_helps(scene, near, share):
    spoiled = examine(scene, "dtu", near)
    (problem,) = problems(spoiled)
    assert spoiled.before_near > 0.05 and (share is None or share in problem)
    advice = re.search(r"system\.near=([0-9.]+)\.$", problem)
    assert advice is not None
    assert problems(examine(scene, "dtu", float(advice[1]))) == ()


def test_one_view_without_points_beyond_the_near_plane_is_enough(scene):
    """A view close to the points, among many that are far: the share of all points stays small."""
    close = replace(scene.views[3], camera=replace(scene.views[3].camera, T=scene.views[3].camera.T - torch.tensor([0.0, 0.0, 1.5])))
    more = replace(scene, views=(*scene.views, *scene.views, close))
    found = examine(more, "dtu", 2.2)
    assert found.before_near < 0.05
    (sentence,) = [problem for problem in problems(found) if "near plane" in problem]
    assert "1 views are left with fewer than 100 points (3)" in sentence
    assert found.suggested_near == pytest.approx(0.5, abs=0.1)


def test_clouds_without_colours_say_nothing_about_poses(scene, tmp_path):
    cloud = scene.cloud.read()
    grey = torch.full((len(cloud), 3), 128, dtype=torch.uint8)
    for name, rgb in (("none", None), ("grey", grey)):
        found = examine(with_cloud(exchanged(scene), tmp_path / f"{name}.ply", PointCloud(cloud.xyz, rgb)), "dtu", NEAR)
        assert not found.cloud.coloured and found.colours is None and problems(found) == ()


def test_photos_of_one_colour_say_nothing_about_poses(scene, tmp_path):
    found = examine(with_pictures(exchanged(scene), tmp_path / "grey.png", 128), "dtu", NEAR)
    assert found.cloud.coloured and found.colours is None and problems(found) == ()


def test_test_views_that_the_cloud_was_made_from(scene):
    names = tuple(view.name for view in scene.views)
    found = examine(scene, "dtu", NEAR, cloud_used=names[:8])
    assert found.leaked == (names[0],)
    (problem,) = problems(found)
    assert "made with 1 of 2 test views (0)" in problem
    assert problems(examine(scene, "dtu", NEAR, cloud_used=names[1:8])) == ()


# ---------------------------------------------------------------------------- what is written
def test_words(scene, good):
    found = dict(rows(good))
    assert found["scene"] == "balls, read as dtu"
    assert found["views"] == "16: 12 training, 2 validation, 2 test"
    assert found["image sizes"] == "64x48 (16 views)" and found["masks"] == "16 views"
    assert found["cloud"] == "mvs_pc.ply: 400 points with colours, 0.0 % of them in no image"
    assert found["points per view"].startswith("400 (0) to 400 (") and "estimated" not in found["points per view"]
    assert f"ratio {good.colours.ratio:.2f}" in found["colours against photos"] and "of 8 photos" in found["colours against photos"]
    assert found["near plane"].startswith("1: 0.0 %") and f"{good.suggested_near:g} would" in found["near plane"]
    assert "nearest to +z" in found["up in the photos"]


def test_notes_are_printed_as_they_are(good):
    """Square brackets mean colours to the printer."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(replace(good, notes=("Photos [1, 2] and [red] are left out.",))))
    assert "Photos [1, 2] and [red] are left out." in console.export_text()


@pytest.mark.parametrize(("number", "word"), [(0.123456, "0.123"), (-0.0, "0"), (1234.5, "1230"), (-3.0, "-3")])
def test_short_numbers(number, word):
    assert short(number) == word


# ---------------------------------------------------------------------------- what is drawn
def dot_pixels(scene: Scene, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where dots are in the drawing of a view, and where its balls are (in the picture that the true matrices give)."""
    camera, photo = reduced(scene.views[k])
    drawn = dots(photo, camera, scene.cloud.read().xyz, NEAR)
    height, width = camera.image_size
    scale = width / SIZE[1]
    uv_px, depth = projected(k, POINTS)
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    balls = torch.zeros(height, width, dtype=torch.bool)
    for (x, y), z in zip(uv_px * scale, depth, strict=True):
        balls |= ((u - x) ** 2 + (v - y) ** 2).sqrt() < 1.5 * 48 * scale * RADIUS / z + 3  # a dot reaches beyond its point
    return (drawn != photo).any(0), balls


@pytest.mark.parametrize("k", [0, 3, 7])
def test_dots_are_where_the_balls_are(scene, k):
    where, balls = dot_pixels(scene, k)
    assert where.sum() > 200 and where[balls].sum() == where.sum()
    assert where[balls].float().mean() > 0.05


def test_dots_of_a_mirrored_scene_are_elsewhere(scene):
    inside, total = 0, 0
    for k in range(VIEWS):
        where, balls = dot_pixels(mirrored(scene), k)
        inside, total = inside + int((where & balls).sum()), total + int(where.sum())
    assert inside < 0.6 * total


def test_points_alone_show_the_colours_of_the_balls(scene):
    cloud = scene.cloud.read()
    camera, photo = reduced(scene.views[2])
    picture = alone(ChunkedCloud.build(cloud.xyz), cloud, camera, NEAR)
    covered = (picture != picture[:, :1, :1]).any(0)
    uv_px, depth = projected(2, POINTS)
    scale = camera.image_size[1] / SIZE[1]
    v, u = torch.meshgrid(torch.arange(photo.shape[1]) + 0.5, torch.arange(photo.shape[2]) + 0.5, indexing="ij")
    found = torch.zeros_like(covered)
    for (x, y), z, colour in zip(uv_px * scale, depth, COLOURS, strict=True):
        ball = covered & (((u - x) ** 2 + (v - y) ** 2).sqrt() < 1.5 * 48 * scale * RADIUS / z + 3)
        own = ((picture[:, ball].T * 255).round() == torch.from_numpy(colour)).all(1)
        assert ball.sum() > 100 and own.float().mean() > 0.9  # two of them touch
        found |= ball
    assert torch.equal(found, covered)
    plain = alone(ChunkedCloud.build(cloud.xyz), PointCloud(cloud.xyz), camera, NEAR)
    assert torch.equal((plain != plain[:, :1, :1]).any(0), covered) and not torch.equal(plain, picture)


def test_holes_between_points_show_coarser_pixels():
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.full((1, 2), 5.0), torch.tensor([[2.5, 2.5]]), (5, 5))
    cloud = PointCloud(torch.tensor([[0.0, 0.0, 5.0]]), torch.tensor([[255, 0, 0]], dtype=torch.uint8))  # in the middle of pixel (2, 2)
    red = alone(ChunkedCloud.build(cloud.xyz), cloud, camera, NEAR)[1] == 0
    assert red[2:4, 2:4].all() and red.sum() == 4


def test_colours_of_depths():
    colour = depth_colours(torch.linspace(1, 2, 101))
    assert colour[0, 0] > 0.8 > colour[0, 2] and colour[-1, 2] > 0.8 > colour[-1, 0]
    assert torch.equal(depth_colours(torch.full((3,), 2.0)), colour[:1].expand(3, 3))
    assert depth_colours(torch.zeros(0)).shape == (0, 3)


def test_the_sheet_holds_photos_dots_points_and_plans(scene, good):
    sheet = check_sheet(scene, good)
    assert sheet.size == (3 * 264 + 8, 64 + 4 * (192 + 30) + 388 + 2 * 24 + 8)
    pixels = np.asarray(sheet).astype(int)
    cloud = scene.cloud.read()
    for row, k in enumerate(good.pictured):
        camera, photo = reduced(scene.views[k])
        tiles = (photo, dots(photo, camera, cloud.xyz, NEAR), alone(ChunkedCloud.build(cloud.xyz), cloud, camera, NEAR))
        for column, tile in enumerate(tiles):
            top, left = 64 + row * 222, 8 + column * 264
            drawn = pixels[top : top + 192, left : left + 256]
            assert np.abs(drawn - tile.permute(1, 2, 0).numpy() * 255).max() <= 1
    drawings = plans(scene, good, cloud, 800)
    assert np.array_equal(pixels[-drawings.height :], np.asarray(drawings))


def test_cameras_are_drawn_in_the_colours_of_their_purpose(scene, good):
    cloud = scene.cloud.read()
    for basis in search_paths(good, torch.tensor([6.0, 6.0, 1.0])):
        torch.testing.assert_close(basis @ basis.T, torch.eye(3))
        assert torch.linalg.det(basis) == pytest.approx(1)
        plan = Plan(basis, torch.zeros(3), 4.0, 400)
        pixels = np.asarray(plan.draw(scene, good, cloud))
        for k, view in enumerate(good.views):
            if view.stage == "test":  # nothing is drawn over these
                ((u, v),) = plan.place(scene.views[k].camera.centers()).tolist()
                assert tuple(pixels[int(v), int(u)]) == STAGE_COLOURS["test"]
        assert {tuple(c) for c in COLOURS} <= {tuple(c) for c in pixels.reshape(-1, 3)}


def test_plans_show_what_is_up(good):
    above, side = search_paths(good, torch.tensor([1.0, 2.0, 9.0]))
    assert above[2].tolist() == side[1].tolist() == [0, 0, 1]
    assert above[0].tolist() == side[0].tolist() == [0, 1, 0]
    down = replace(good, cameras=replace(good.cameras, up=(0.1, -0.9, 0.2)))
    assert search_paths(down, torch.ones(3))[0][2].tolist() == [0, -1, 0]
    unknown = replace(good, cameras=replace(good.cameras, up=None))
    assert search_paths(unknown, torch.ones(3))[1][1].tolist() == [0, 0, 1]
    plan = Plan(side, torch.tensor([0.0, 1.0, 1.0]), 2.0, 100)
    assert plan.place(torch.tensor([[5.0, 1.0, 1.0], [0.0, 3.0, 1.0], [0.0, 1.0, 3.0]])).tolist() == [[50, 50], [100, 50], [50, 0]]


def test_pictures_of_any_shape(scene, tmp_path):
    """Tall, and smaller than a coarse cell."""
    for size in ((96, 32), (4, 6)):
        reshaped = replace(scene, views=tuple(replace(view, camera=view.camera.resize(size), resized=True) for view in scene.views))
        found = examine(reshaped, "dtu", NEAR, pictures=2)
        assert isinstance(check_sheet(reshaped, found), Image.Image) and len(found.pictured) == 2
