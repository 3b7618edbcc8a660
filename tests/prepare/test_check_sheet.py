"""The contact sheet of a scene check: where points are drawn, in which colours, and how top and side views lie."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from npbgpp.data.scene import Scene
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.point_cloud import PointCloud
from npbgpp.kernels.rasterization import ChunkedCloud
from npbgpp.prepare.check import (
    STAGE_COLOURS,
    OrthographicView,
    check_sheet,
    draw_points,
    render_depth,
    render_points,
    thumbnail,
    top_and_side_view,
    view_axes,
)
from npbgpp.prepare.scene_report import inspect_scene

from ..helpers.balls import cast_depth, project
from ..helpers.scenes import COLOURS, POINTS, RADIUS
from .conftest import NEAR, SIZE, VIEWS


def disc_of(ball: int, k: int, camera: Cameras) -> torch.Tensor:
    """Pixels of a ball in view k, and a margin of 3 pixels."""
    height, width = camera.image_size
    scale = width / SIZE[1]
    uv_px, depth = project(k, VIEWS, SIZE, POINTS[ball : ball + 1])
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.hypot(u - uv_px[0, 0] * scale, v - uv_px[0, 1] * scale) < 1.5 * 48 * scale * RADIUS / depth[0] + 3


def drawn_pixels(scene: Scene, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels with projected points, and pixels of the balls."""
    camera, photo = thumbnail(scene.views[k])
    drawn = draw_points(photo, camera, scene.cloud.read().xyz, NEAR)
    return (drawn != photo).any(0), torch.stack([disc_of(ball, k, camera) for ball in range(len(POINTS))]).any(0)


@pytest.mark.parametrize("k", [0, 3, 7])
def test_projected_points_lie_on_the_balls(scene, k):
    drawn, balls = drawn_pixels(scene, k)
    assert drawn.sum() > 200 and drawn[balls].sum() == drawn.sum() and drawn[balls].float().mean() > 0.05


def test_projected_points_of_mirrored_cameras_lie_elsewhere(scene):
    flip = torch.tensor([1.0, -1.0, 1.0])
    views = [replace(view, camera=replace(view.camera, R=view.camera.R * flip, T=view.camera.T * flip)) for view in scene.views]
    pairs = [drawn_pixels(replace(scene, views=tuple(views)), k) for k in range(0, VIEWS, 4)]
    assert sum((drawn & balls).sum() for drawn, balls in pairs) < 0.6 * sum(drawn.sum() for drawn, _ in pairs)


def test_rendered_depths_are_those_of_the_balls(scene):
    """Few pixels of this size are without a point."""
    camera, cloud = scene.views[2].camera.resize((48, 64)), scene.cloud.read()
    depth = render_depth(ChunkedCloud.build(cloud.xyz), camera, NEAR)
    exact = torch.from_numpy(cast_depth(camera)).float()
    both = (depth > 0) & (exact > 0)
    assert both.sum() > 0.8 * (exact > 0).sum() and (depth - exact)[both].abs().median() < 0.03  # of pixels 0.04 wide
    around = torch.nn.functional.max_pool2d(exact[None], 5, 1, 2)[0]
    assert not ((depth > 0) & (around == 0)).any()


def test_rendered_points_have_the_colours_of_the_balls(scene):
    cloud = scene.cloud.read()
    camera, _ = thumbnail(scene.views[2])
    image = render_points(ChunkedCloud.build(cloud.xyz), cloud, camera, NEAR)
    covered = (image != image[:, :1, :1]).any(0)
    found = torch.zeros_like(covered)
    for ball, colour in enumerate(COLOURS):
        pixels = covered & disc_of(ball, 2, camera)
        own = ((image[:, pixels].T * 255).round() == torch.from_numpy(colour)).all(1)
        assert pixels.sum() > 100 and own.float().mean() > 0.9  # two of them touch
        found |= pixels
    assert torch.equal(found, covered)
    by_depth = render_points(ChunkedCloud.build(cloud.xyz), PointCloud(cloud.xyz), camera, NEAR)
    assert torch.equal((by_depth != by_depth[:, :1, :1]).any(0), covered) and not torch.equal(by_depth, image)


def test_holes_between_points_are_filled_from_half_the_resolution():
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.full((1, 2), 5.0), torch.tensor([[2.5, 2.5]]), (5, 5))
    cloud = PointCloud(torch.tensor([[0.0, 0.0, 5.0]]), torch.tensor([[255, 0, 0]], dtype=torch.uint8))  # in the middle of pixel (2, 2)
    red = render_points(ChunkedCloud.build(cloud.xyz), cloud, camera, NEAR)[1] == 0
    assert red[2:4, 2:4].all() and red.sum() == 4


def test_view_without_points(scene):
    camera, photo = thumbnail(scene.views[0])
    xyz = torch.full((3, 3), 500.0)
    assert torch.equal(draw_points(photo, camera, xyz, NEAR), photo)
    empty = render_points(ChunkedCloud.build(xyz), PointCloud(xyz), camera, NEAR)
    assert (empty == empty[:, :1, :1]).all()


def test_sheet_has_a_row_per_drawn_view_above_the_top_and_side_view(scene, report):
    sheet = check_sheet(scene, report)
    assert sheet.size == (3 * 264 + 8, 64 + 4 * (192 + 30) + 388 + 2 * 24 + 8)
    pixels = np.asarray(sheet).astype(int)
    cloud = scene.cloud.read()
    for row, k in enumerate(report.drawn):
        camera, photo = thumbnail(scene.views[k])
        tiles = (photo, draw_points(photo, camera, cloud.xyz, NEAR), render_points(ChunkedCloud.build(cloud.xyz), cloud, camera, NEAR))
        for column, tile in enumerate(tiles):
            top, left = 64 + row * 222, 8 + column * 264
            assert np.abs(pixels[top : top + 192, left : left + 256] - tile.permute(1, 2, 0).numpy() * 255).max() <= 1
    drawings = top_and_side_view(scene, report, cloud, 800)
    assert np.array_equal(pixels[-drawings.height :], np.asarray(drawings))


def test_cameras_have_the_colour_of_their_split(scene, report):
    cloud = scene.cloud.read()
    for axes in view_axes(report.cameras.up, torch.tensor([6.0, 6.0, 1.0])):
        torch.testing.assert_close(axes @ axes.T, torch.eye(3))
        assert torch.linalg.det(axes) == pytest.approx(1)
        view = OrthographicView(axes, torch.zeros(3), 4.0, 400)
        pixels = np.asarray(view.draw(scene, report, cloud))
        for k in scene.splits["test"]:  # nothing is drawn over these
            ((u, v),) = view.project(scene.views[k].camera.centers()).tolist()
            assert tuple(pixels[int(v), int(u)]) == STAGE_COLOURS["test"]
        assert {tuple(c) for c in COLOURS} <= {tuple(c) for c in pixels.reshape(-1, 3)}


def test_axes_of_top_and_side_view():
    top, side = view_axes((0.1, -0.2, 0.9), torch.tensor([1.0, 2.0, 9.0]))
    assert top[2].tolist() == side[1].tolist() == [0, 0, 1] and top[0].tolist() == side[0].tolist() == [0, 1, 0]
    assert view_axes((0.1, -0.9, 0.2), torch.ones(3))[0][2].tolist() == [0, -1, 0]
    assert view_axes(None, torch.ones(3))[1][1].tolist() == [0, 0, 1]
    view = OrthographicView(side, torch.tensor([0.0, 1.0, 1.0]), 2.0, 100)
    assert view.project(torch.tensor([[5.0, 1.0, 1.0], [0.0, 3.0, 1.0], [0.0, 1.0, 3.0]])).tolist() == [[50, 50], [100, 50], [50, 0]]


@pytest.mark.parametrize("size", [(96, 32), (4, 6)])
def test_tall_and_tiny_images(scene, size):
    resized = replace(scene, views=tuple(replace(view, camera=view.camera.resize(size), resized=True) for view in scene.views))
    report = inspect_scene(resized, NEAR, drawn=2)
    assert len(report.drawn) == 2 and check_sheet(resized, report).width == 800
