"""The warp of the method on a plane that is known in advance."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from npbgpp_nearest_photo.method import NearestPhoto, NearestPhotoSettings

from npbgpp.core.paths import SearchPaths
from npbgpp.data import CloudFile, Scene, View, read_photo
from npbgpp.geometry import Cameras, PointCloud, write_ply
from npbgpp.io import write_png
from npbgpp.methods.base import RunContext
from npbgpp.metrics import ImageMetrics

SIZE, FOCAL, DEPTH = 16, 16.0, 4.0


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Two photos of a plane at ``DEPTH``, from the origin and from far away."""
    camera = Cameras(torch.eye(3)[None], torch.zeros(1, 3), torch.full((1, 2), FOCAL), torch.full((1, 2), SIZE / 2), (SIZE, SIZE))
    views = []
    for name, x in (("near", 0.0), ("far", 50.0)):
        write_png(tmp_path / f"{name}.png", torch.rand(3, SIZE, SIZE))
        views.append(View(name, tmp_path / f"{name}.png", replace(camera, T=torch.tensor([[-x, 0.0, 0.0]]))))
    write_ply(tmp_path / "cloud.ply", PointCloud(torch.randn(100, 3) * torch.tensor([1.0, 1.0, 0.0]) + torch.tensor([0.0, 0.0, DEPTH])))
    return Scene("plane", tuple(views), {"train": (0, 1), "val": (), "test": ()}, CloudFile(tmp_path / "cloud.ply"))


@pytest.fixture
def system(scene: Scene, tmp_path: Path) -> NearestPhoto:
    settings = NearestPhotoSettings(
        system_class="NearestPhoto",
        save_rendered_eval_images=False,
        lpips_weights=None,
        postprocessing_transform=None,
        lr=0.01,
        distance_weight=1.0,
        keep_photos=True,
    )
    return NearestPhoto(settings, RunContext({"plane": scene}, SearchPaths(tmp_path, tmp_path, tmp_path), ImageMetrics(None)))


def photo(scene: Scene, index: int) -> torch.Tensor:
    return read_photo(scene.views[index]).image[None] / 255


def test_a_training_view_is_its_photo(system, scene):
    for index, view in enumerate(scene.views):
        render = system.render(view.camera, "plane", depth=True)
        assert torch.allclose(render.rgb, photo(scene, index), atol=1e-5)
        assert torch.allclose(render.depth, torch.full((1, 1, SIZE, SIZE), DEPTH))


def test_a_moved_camera_sees_the_disparity_of_the_plane(system, scene):
    """0.5 scene units to the left are 0.5 * 16 / 4 = 2 pixels to the right."""
    moved = replace(scene.views[0].camera, T=torch.tensor([[-0.5, 0.0, 0.0]]))
    assert torch.allclose(system.render(moved, "plane").rgb[..., 2:], photo(scene, 0)[..., :-2], atol=1e-5)


def test_gradients_reach_the_weights(system, scene):
    rgb = system._warp(replace(scene.views[0].camera, T=torch.tensor([[-0.3, 0.0, 0.0]])), "plane")
    rgb.square().mean().backward()
    assert system.depth_scale.grad != 0 and system.colour.grad.abs().min() > 0


def test_a_training_view_is_rendered_from_the_others(system, scene):
    sources = system._sources_of("plane")
    assert sources.nearest(scene.views[0].camera, 1.0).name == "near"
    assert sources.nearest(scene.views[0].camera, 1.0, except_view="near").name == "far"


def test_the_cloud_has_colours_of_the_photo(system, scene):
    cloud = system.coloured_cloud("plane")
    uv_px, _ = scene.views[0].camera.project(cloud.xyz)
    assert 0 < len(cloud) <= 100 and ((uv_px >= 0) & (uv_px <= SIZE)).all() and cloud.rgb_u8.float().std() > 0
