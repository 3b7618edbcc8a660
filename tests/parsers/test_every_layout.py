"""One drawn scene in every layout: all parsers find the same cameras, points project where they were drawn, masks and sizes are handled alike."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from npbgpp.data import Scene, read_photo
from npbgpp.geometry import Cameras
from npbgpp.parsers import layouts, recognise

from ..helpers.every_layout import WRITTEN, read_layout, write_layout
from ..helpers.scenes import BACKDROP, COLOURS, POINTS, central_intrinsics, centroid, look_at_origin

VIEWS, SIZE = 8, (48, 64)


@pytest.fixture(scope="module")
def scenes(drawn) -> dict[str, Scene]:
    return {name: read_layout(name, folder) for name, folder in drawn.items()}


def test_every_layout_is_written():
    assert {layout for layout, *_ in WRITTEN.values()} == set(layouts())


@pytest.mark.parametrize("name", WRITTEN)
def test_all_parsers_agree_on_the_cameras(scenes, name):
    views = scenes[name].views
    w2c = torch.stack([torch.from_numpy(look_at_origin(2 * math.pi * k / VIEWS)) for k in range(VIEWS)]).float()
    K = torch.from_numpy(central_intrinsics(SIZE)).float()
    expected = Cameras.from_opencv(w2c, K.diagonal()[None, :2].repeat(VIEWS, 1), (K[:2, 2] + 0.5).repeat(VIEWS, 1), SIZE)
    found = Cameras.cat([view.camera for view in views])
    assert len(views) == VIEWS and found.image_size == SIZE and not any(view.resized for view in views)
    torch.testing.assert_close(found.R, expected.R, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.T, expected.T, atol=2e-4, rtol=0)
    torch.testing.assert_close(found.principal_point.float(), expected.principal_point, atol=1e-3, rtol=0)
    zoom = found.focal_length.float() / expected.focal_length
    torch.testing.assert_close(zoom, torch.full_like(zoom, float(zoom.mean())), atol=1e-4, rtol=0)
    # undistortion may magnify a little
    assert abs(zoom.mean() - 1) < 1e-4 or (name.endswith(("_distorted", "_fisheye")) and 1 <= zoom.mean() < 1.3)


@pytest.mark.parametrize("name", WRITTEN)
def test_points_project_to_where_they_are_drawn(scenes, name):
    errors = []
    for view in scenes[name].views:
        uv_px, depth = view.camera.project(torch.from_numpy(POINTS).float())
        image = read_photo(view).image
        for k, colour in enumerate(COLOURS):
            inside = 3 < uv_px[0, k, 0] < SIZE[1] - 3 and 3 < uv_px[0, k, 1] < SIZE[0] - 3
            apart = (uv_px[0] - uv_px[0, k]).norm(dim=1) > 0.3 * view.camera.focal_length[0, 0] / 2.5
            if inside and int(apart.sum()) == len(POINTS) - 1:
                errors.append(centroid(image, colour) - uv_px[0, k])
                assert errors[-1].norm() < 0.5 and depth[0, k] > 0
    assert len(errors) >= 2 * VIEWS and (torch.stack(errors).mean(0).abs() < 0.15).all()


@pytest.mark.parametrize("name", WRITTEN)
def test_layouts_are_recognised_by_their_files(drawn, name):
    layout = WRITTEN[name][0]
    assert recognise(drawn[name])[0] == layout and read_layout(name, drawn[name]).layout == layout


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "monocular"])  # a video has three frames at least
def test_two_views_are_enough(tmp_path, name):
    folder = write_layout(name, tmp_path / "scene", 3 if name == "nerf_synthetic" else 2, (12, 16))
    scene = read_layout(name, folder)
    assert scene.with_splits((), (1,)).splits == {"train": (0,), "val": (), "test": (1,)}
    assert len(scene.with_splits(None, None).splits["train"]) >= 1


@pytest.mark.parametrize("name", WRITTEN)
def test_photos_may_be_downscaled(scenes, drawn, name):
    for large, small in zip(scenes[name].views, read_layout(name, drawn[name], downscale=2.0).views, strict=True):
        assert small.camera.image_size == (24, 32) == tuple(read_photo(small).image.shape[1:])
        uv_px, _ = large.camera.project(torch.from_numpy(POINTS).float())
        torch.testing.assert_close(small.camera.project(torch.from_numpy(POINTS).float())[0], uv_px / 2, atol=1e-3, rtol=0)
        assert small.bounds == large.bounds


@pytest.mark.parametrize("name", WRITTEN)
def test_hidden_files_are_ignored_and_nothing_is_written(drawn, tmp_path, name):
    folder = Path(shutil.copytree(drawn[name], tmp_path / "scene"))
    for path in [path for path in folder.rglob("*") if path.suffix in (".png", ".jpg", ".txt")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
    (folder / ".DS_Store").write_bytes(b"\0")
    before = {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}
    scene = read_layout(name, folder)
    for view in scene.views:
        read_photo(view)
    scene.cloud.read()
    assert len(scene.views) == VIEWS and {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))} == before


@pytest.mark.parametrize("name", ["dtu", "h3ds", "npcr", "nerf_synthetic", "npbg"])
def test_photos_are_white_outside_the_masks(drawn, name):
    """Unless white_bg is false, which keeps the stored colours."""
    options = {"paths_file": str(drawn[name] / "paths.yaml")} if name == "npbg" else {}
    scene_name = "ball" if name == "npbg" else "scene"
    white, stored = (read_layout(name, drawn[name], scene_name, white_bg=white_bg, **options) for white_bg in (True, False))
    for a, b in zip(white.views, stored.views, strict=True):
        on_white, as_stored = read_photo(a), read_photo(b)
        outside = on_white.mask[0] < 128
        assert 0.02 < (~outside).float().mean() < 0.5 and torch.equal(on_white.mask, as_stored.mask)
        assert (on_white.image[:, outside] == 255).all() and torch.equal(on_white.image[:, ~outside], as_stored.image[:, ~outside])
        assert (as_stored.image[:, outside].float().mean(1) - torch.tensor(BACKDROP)).abs().max() < 10


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in ("nerf_synthetic", "scannet", "scannet_raw", "monocular")])
def test_splits_leave_out_what_they_hold_out(scenes, name):
    scene = scenes[name].with_splits(None, None)
    held_out = {*scene.splits["val"], *scene.splits["test"]}
    assert held_out and not held_out & {*scene.splits["train"]} and {*range(VIEWS)} == held_out | {*scene.splits["train"]}
