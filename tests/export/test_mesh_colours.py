"""Colours of vertices: photos that see them, photos that do not, and the field itself."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npbgpp.data.normalisation import SceneNormalisation
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene, View
from npbgpp.errors import InputError
from npbgpp.export.mesh import Occlusion, colours_along_normals, fused_colours
from npbgpp.geometry.cameras import Cameras

from .fields import ball, densities, either, facing

RADIUS, MARGIN, SIZE = 0.5, 0.02, 64
FRAME = SceneNormalisation(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1.0, 1.0, 5.0)
STEEP = 4000.0  # a hard surface: a soft one dims itself where rays graze it
SOLID = ball((0.0, 0.0, 0.0), (RADIUS,) * 3, STEEP)
OCCLUDER = ball((1.5, 0.0, 0.2), (0.1,) * 3, STEEP)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def camera_on_x(side: float) -> Cameras:
    """At distance 3 on the x axis, looking at the origin, z upwards."""
    pose = torch.eye(4)
    back = torch.tensor([side, 0.0, 0.0])
    right = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]), back)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, torch.linalg.cross(back, right), back, 3 * back
    return Cameras.from_opengl(pose[None], torch.full((1, 2), 1.5 * SIZE), torch.full((1, 2), SIZE / 2), (SIZE, SIZE))


def scene_of(folder: Path, *photos: tuple[Cameras, np.ndarray]) -> Scene:
    views = []
    for k, (camera, pixels) in enumerate(photos):
        path = folder / f"{k}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        views.append(View(str(k), path, camera))
    return Scene("ball", tuple(views), {"train": tuple(range(len(views))), "val": (), "test": ()}, CloudFile(folder / "none.ply"))


def plain(colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(colour), (SIZE, SIZE, 3))


def sphere(count: int = 2000) -> torch.Tensor:
    """Normals of the ball."""
    return torch.nn.functional.normalize(torch.randn(count, 3), dim=1)


def occlusion(field, **more) -> Occlusion:
    return dataclasses.replace(Occlusion(densities(field), FRAME, 64, 0.2, MARGIN), **more)


def behind_the_occluder(vertices: torch.Tensor) -> torch.Tensor:
    """Distance of the way from the red camera to vertices from the middle of the occluder."""
    eye, middle = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([1.5, 0.0, 0.2])
    along = torch.nn.functional.normalize(vertices - eye, dim=1)
    return torch.linalg.cross((middle - eye).expand_as(along), along, dim=1).norm(dim=1)


@pytest.mark.parametrize("occluder", [OCCLUDER, lambda xyz: torch.where(OCCLUDER(xyz) > 0, torch.nan, -1.0)], ids=["dense", "unknown"])
def test_photos_colour_what_they_see(tmp_path, occluder):
    scene = scene_of(tmp_path, (camera_on_x(1), plain(RED)), (camera_on_x(-1), plain(BLUE)))
    normals = sphere()
    vertices = RADIUS * normals

    def field(xyz):
        return torch.where(torch.isnan(occluder(xyz)), torch.nan, either(SOLID, occluder)(xyz))

    colours, known = fused_colours(scene, vertices, normals, occlusion(field))
    assert (
        known.all()
        and torch.allclose(colours[:, 1], torch.zeros(len(colours)))
        and torch.allclose(colours.sum(1), torch.ones(len(colours)))
    )
    red, off = colours[:, 0], behind_the_occluder(vertices)
    # the horizon of a ball of radius 0.5 seen from distance 3 lies at x = 0.083
    front, hidden = normals[:, 0] > 0.25, off < 0.07
    assert (front & hidden).sum() > 10 and (front & (off > 0.13)).sum() > 100
    assert (red[front & (off > 0.13)] > 0.95).all()
    assert (red[normals[:, 0] < -0.25] < 0.05).all()
    # no photo sees these: only nearness counts
    near, far = (vertices - torch.tensor([3.0, 0, 0])).norm(dim=1), (vertices + torch.tensor([3.0, 0, 0])).norm(dim=1)
    assert torch.allclose(red[front & hidden], (far / (near + far))[front & hidden], atol=1e-4)


def test_pixels_are_read_where_vertices_project(tmp_path):
    """A photo whose red grows to the right and whose green grows downwards, read between its pixels."""
    ramp = (np.arange(SIZE) + 0.5) * 3
    pixels = np.zeros((SIZE, SIZE, 3))
    pixels[:, :, 0], pixels[:, :, 1] = ramp[None], ramp[:, None]
    scene = scene_of(tmp_path, (camera_on_x(1), pixels.round()))
    normals = torch.nn.functional.normalize(sphere() + torch.tensor([3.0, 0.0, 0.0]), dim=1)
    vertices = RADIUS * normals
    colours, _ = fused_colours(scene, vertices, normals, occlusion(SOLID))
    uv_px, _ = scene.views[0].camera.project(vertices)
    assert (colours[:, :2] * 255 - 3 * uv_px[0]).abs().max() < 0.6
    # from +x with z upwards, +y is to the right
    assert torch.corrcoef(torch.stack([colours[:, 0], vertices[:, 1]]))[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([colours[:, 1], vertices[:, 2]]))[0, 1] < -0.99


def test_vertices_in_no_photo_are_grey(tmp_path):
    scene = scene_of(tmp_path, (camera_on_x(1), plain(RED)))
    vertices = torch.tensor([[0.5, 0.0, 0.0], [0.0, 2.0, 0.0], [9.0, 0.0, 0.0]])
    colours, known = fused_colours(scene, vertices, torch.tensor([[1.0, 0.0, 0.0]] * 3), occlusion(SOLID))
    assert known.tolist() == [True, False, False]
    assert torch.allclose(colours, torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]))


def test_a_scaled_frame_sees_the_same(tmp_path):
    """Coordinates of the field are twice those of the world, and turned."""
    turn = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    frame = SceneNormalisation(turn, torch.tensor([0.0, 0.1, 0.0], dtype=torch.float64), 2.0, 2.0, 10.0)
    scene = scene_of(tmp_path, (camera_on_x(1), plain(RED)), (camera_on_x(-1), plain(BLUE)))
    normals = sphere()
    middle = frame.points(torch.zeros(1, 3))
    turned = normals @ turn.float()
    field = ball(tuple(middle[0].tolist()), (2 * RADIUS,) * 3, STEEP)
    colours, _ = fused_colours(scene, middle + 2 * RADIUS * turned, turned, occlusion(field, frame=frame, margin=2 * MARGIN))
    assert (colours[normals[:, 0] > 0.25, 0] > 0.95).all() and (colours[normals[:, 0] < -0.25, 2] > 0.95).all()


@pytest.mark.parametrize(("place", "seen"), [(0.5, False), (0.95, False), (1.0, True), (1.2, True), (0.1, True)])
def test_only_what_is_between_hides(place, seen):
    """A wall of 0.04 across the ray, at a part of the distance: beyond the vertex, in its own surface and before near it does not count."""
    vertex = torch.tensor([[2.4, 1.8, 0.0]])  # at distance 3
    away = vertex / 3

    def wall(xyz):
        return 300 * ((xyz @ away[0] - 3 * place).abs() < 0.02).float()

    visible = occlusion(wall, samples=256, margin=0.06).visible(torch.zeros(1, 3), vertex)
    assert visible.tolist() == [seen]


def test_nothing_to_look_at():
    assert occlusion(SOLID).visible(torch.zeros(1, 3), torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize("near_t", [1.0, 1.2])
def test_colours_of_the_field_against_the_normals(near_t):
    normals = sphere(300)
    field = facing(RADIUS)
    asked = densities(field.final.density, chunk=100)
    colours = colours_along_normals(
        lambda rays, directions: field.render(rays, directions, False, asked.grid, asked.chunk).final(),
        RADIUS * normals,
        normals,
        asked,
        FRAME,
        near_t,
    )
    assert torch.allclose(colours, 0.5 - 0.5 * normals, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"), [({"samples": 0}, "samples"), ({"threshold": 0.0}, "occ_threshold"), ({"threshold": 1.5}, "occ_threshold")]
)
def test_numbers_out_of_range(change, words):
    with pytest.raises(InputError, match=words):
        occlusion(SOLID, **change)
