"""Meshes of known densities: position, orientation, components, colours, files."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData

from npbgpp.data.normalisation import SceneNormalisation
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Scene, View
from npbgpp.errors import InputError
from npbgpp.export.mesh import (
    Box,
    Mesh,
    OcclusionTest,
    extract_surface,
    is_open,
    photo_colours,
    rendered_colours,
    surface_density,
    write_mesh,
)
from npbgpp.geometry.cameras import Cameras
from npbgpp.volume import Composited, OccupancyGrid, Rays, composite, stratified

from ..helpers.fields import THRESHOLD, DirectionField, densities, ellipsoid, union

CENTRE, RADII = (0.1, -0.2, 0.3), (0.5, 0.3, 0.2)
BOX = Box((-0.7, -0.6, 0.0), (0.8, 0.3, 0.65), 32)


def mesh_of(field, box: Box = BOX) -> Mesh:
    return extract_surface(densities(field).on_grid(box), box, THRESHOLD)


def signed_volume(mesh: Mesh) -> float:
    """By the divergence theorem; positive if triangles are counter-clockwise seen from outside."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


def tetrahedra(count: int) -> Mesh:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float64)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    vertices = np.concatenate([corners + 5 * k for k in range(count)])
    return Mesh(vertices, np.zeros_like(vertices), np.concatenate([faces + 4 * k for k in range(count)]))


# ------------------------------------------------------------------ surface
def test_surface_of_an_ellipsoid():
    mesh = mesh_of(ellipsoid(CENTRE, RADII))
    middle = (mesh.vertices.max(0) + mesh.vertices.min(0)) / 2
    extent = (mesh.vertices.max(0) - mesh.vertices.min(0)) / 2
    steps = np.array(BOX.steps())
    # a sixth of a cell: dividing by the number of nodes, or a shift by half a cell, would be three times as far off
    assert (np.abs(middle - CENTRE) < steps / 6).all() and (np.abs(extent - RADII) < steps / 6).all()
    distance = np.abs(np.linalg.norm((mesh.vertices - CENTRE) / RADII, axis=1) - 1) * max(RADII)
    assert distance.max() < max(BOX.steps())
    assert signed_volume(mesh) == pytest.approx(4 / 3 * math.pi * np.prod(RADII), rel=0.03)
    outward = (mesh.vertices - CENTRE) / np.array(RADII) ** 2
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5) and ((mesh.normals * outward).sum(1) > 0.9).all()


def test_largest_component():
    mesh = mesh_of(union(ellipsoid(CENTRE, (0.3,) * 3), ellipsoid((0.7, 0.2, 0.05), (0.1,) * 3)))
    assert len(np.unique(mesh.components())) == 2
    largest = mesh.largest_component()
    assert len(np.unique(largest.components())) == 1 and 0 < len(largest.faces) < len(mesh.faces)
    assert sorted(np.unique(largest.faces)) == list(range(len(largest.vertices)))  # no vertex without a triangle
    assert signed_volume(largest) == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=0.05)
    mesh = tetrahedra(3)
    largest = Mesh(mesh.vertices, mesh.normals, np.delete(mesh.faces, [0, 10], axis=0)).largest_component()
    assert len(largest.faces) == 4 and np.array_equal(largest.vertices, mesh.vertices[4:8])


def test_empty_cells_are_not_evaluated():
    field, counts = ellipsoid(CENTRE, RADII), []
    grid = OccupancyGrid((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), resolution=32)
    grid.update(field, 0)

    def counting(xyz):
        counts.append(len(xyz))
        return field(xyz)

    skipped = extract_surface(densities(counting, grid, chunk=100).on_grid(BOX), BOX, THRESHOLD)
    whole = mesh_of(field)
    assert sum(counts) < 0.6 * BOX.count**3 and max(counts) <= 100
    assert np.array_equal(skipped.vertices, whole.vertices) and np.array_equal(skipped.faces, whole.faces)


def test_world_coordinates():
    angle = torch.tensor(0.7, dtype=torch.float64)
    rotation = torch.eye(3, dtype=torch.float64)
    rotation[:2, :2] = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    normalisation = SceneNormalisation(rotation, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 0.25, 1.0, 2.0)
    mesh = mesh_of(ellipsoid(CENTRE, RADII))
    world = mesh.to_world(normalisation)
    assert np.allclose(normalisation.points(torch.from_numpy(world.vertices)).numpy(), mesh.vertices)
    step = normalisation.points(torch.from_numpy(world.vertices + world.normals)).numpy() - mesh.vertices
    assert np.allclose(step, 0.25 * mesh.normals)
    assert signed_volume(world) == pytest.approx(64 * signed_volume(mesh))


def test_surfaces_that_leave_the_box_are_open():
    assert not is_open(densities(ellipsoid(CENTRE, RADII)).on_grid(BOX), THRESHOLD)
    for axis in range(3):
        for side in (-1, 1):
            centre = [*CENTRE]
            centre[axis] += side * 0.4
            assert is_open(densities(ellipsoid(tuple(centre), RADII)).on_grid(BOX), THRESHOLD)


REFUSALS = {
    "high threshold": (lambda values: extract_surface(values, BOX, 500.0), r"sigma_threshold.* 0 to 2\d\d.* got 500"),
    "low threshold": (lambda values: extract_surface(values, BOX, 0.0), "sigma_threshold.* got 0"),
    "NaN threshold": (lambda values: extract_surface(values, BOX, math.nan), "sigma_threshold.* got nan"),
    "diverged field": (
        lambda values: densities(lambda xyz: torch.where(xyz[:, 0] > 0.5, torch.nan, 1.0)).on_grid(BOX),
        r"x -0.7 to 0.8.* \d+ of 32768 nodes",
    ),
    "empty box": (lambda values: Box((0.0, 0.0, 0.0), (1.0, 0.0, 1.0), 8), "y_range"),
    "NaN box": (lambda values: Box((0.0, 0.0, math.nan), (1.0, 1.0, 1.0), 8), "z_range"),
    "infinite box": (lambda values: Box((-math.inf, 0.0, 0.0), (1.0, 1.0, 1.0), 8), "x_range"),
    "single node": (lambda values: Box((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1), "n_grid.* got 1"),
    "many nodes": (lambda values: Box((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1626), "n_grid.* got 1626"),
    "no samples": (lambda values: occlusion_test(SOLID, samples=0), "samples.* got 0"),
    "zero opacity": (lambda values: occlusion_test(SOLID, threshold=0.0), "occ_threshold.* got 0"),
    "large opacity": (lambda values: occlusion_test(SOLID, threshold=1.5), "occ_threshold.* got 1.5"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    call, message = REFUSALS[case]
    values = densities(ellipsoid(CENTRE, RADII)).on_grid(BOX)
    with pytest.raises(InputError, match=message):
        call(values)


# ------------------------------------------------------------------ files
def test_ply_file(tmp_path: Path):
    mesh = tetrahedra(2)
    colours = np.arange(24, dtype=np.uint8).reshape(8, 3) * 10
    write_mesh(tmp_path / "deep" / "mesh.ply", mesh, colours)
    file = PlyData.read(tmp_path / "deep" / "mesh.ply")
    vertex = file["vertex"]
    assert [p.name for p in vertex.properties] == ["x", "y", "z", "red", "green", "blue"] and vertex["red"].dtype == np.uint8
    assert np.array_equal(np.stack([vertex[c] for c in "xyz"], 1), mesh.vertices)
    assert np.array_equal(np.stack([vertex[c] for c in ("red", "green", "blue")], 1), colours)
    assert np.array_equal(np.stack(file["face"]["vertex_indices"]), mesh.faces)


def test_obj_file(tmp_path: Path):
    mesh = tetrahedra(2)
    write_mesh(tmp_path / "mesh.obj", mesh, np.full((8, 3), (255, 0, 51), dtype=np.uint8))
    lines = (tmp_path / "mesh.obj").read_text().splitlines()
    vertices = np.array([line.split()[1:] for line in lines if line.startswith("v ")], dtype=float)
    faces = np.array([line.split()[1:] for line in lines if line.startswith("f ")], dtype=int)
    assert len(lines) == 16 and np.allclose(vertices[:, :3], mesh.vertices) and np.allclose(vertices[:, 3:], (1, 0, 0.2))
    assert np.array_equal(faces, mesh.faces + 1)


# ------------------------------------------------------------------ colours
RADIUS, MARGIN, SIZE = 0.5, 0.02, 64
IDENTITY = SceneNormalisation(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1.0, 1.0, 5.0)
STEEP = 4000.0  # a hard surface: a soft one occludes itself where rays graze it
SOLID = ellipsoid((0.0, 0.0, 0.0), (RADIUS,) * 3, STEEP)
OCCLUDER_CENTRE = (1.5, 0.0, 0.2)
OCCLUDER = ellipsoid(OCCLUDER_CENTRE, (0.1,) * 3, STEEP)
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
        Image.fromarray(np.broadcast_to(pixels, (SIZE, SIZE, 3)).astype(np.uint8)).save(path)
        views.append(View(str(k), path, camera))
    return Scene("ball", tuple(views), {"train": tuple(range(len(views))), "val": (), "test": ()}, CloudFile(folder / "none.ply"))


def sphere_normals(count: int = 2000) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 3), dim=1)


def occlusion_test(field, **changes) -> OcclusionTest:
    return dataclasses.replace(OcclusionTest(densities(field), IDENTITY, 64, 0.2, MARGIN), **changes)


@pytest.mark.parametrize("occluder", [OCCLUDER, lambda xyz: torch.where(OCCLUDER(xyz) > 0, torch.nan, -1.0)], ids=["dense", "NaN"])
def test_photos_colour_the_vertices_that_they_see(tmp_path, occluder):
    scene = scene_of(tmp_path, (camera_on_x(1), RED), (camera_on_x(-1), BLUE))
    normals = sphere_normals()
    vertices = RADIUS * normals

    def field(xyz):
        return torch.where(torch.isnan(occluder(xyz)), torch.nan, union(SOLID, occluder)(xyz))

    colours, known = photo_colours(scene, vertices, normals, occlusion_test(field))
    assert known.all() and (colours[:, 1] == 0).all() and torch.allclose(colours.sum(1), torch.ones(len(colours)))
    eye, red = torch.tensor([3.0, 0.0, 0.0]), colours[:, 0]
    along = torch.nn.functional.normalize(vertices - eye, dim=1)
    offset = torch.linalg.cross((torch.tensor(OCCLUDER_CENTRE) - eye).expand_as(along), along, dim=1).norm(dim=1)
    front = normals[:, 0] > 0.25  # the horizon of the ball seen from distance 3 is at x = 0.083
    assert (front & (offset < 0.07)).sum() > 10 and (front & (offset > 0.13)).sum() > 100
    assert (red[front & (offset > 0.13)] > 0.95).all() and (red[normals[:, 0] < -0.25] < 0.05).all()
    # no photo sees the occluded vertices: they are weighted by distance
    near, far = (vertices - eye).norm(dim=1), (vertices + eye).norm(dim=1)
    hidden = front & (offset < 0.07)
    assert torch.allclose(red[hidden], (far / (near + far))[hidden], atol=1e-4)


def test_photos_are_sampled_at_the_projection(tmp_path):
    """A photo whose red grows to the right and whose green grows downwards."""
    ramp = (np.arange(SIZE) + 0.5) * 3
    pixels = np.zeros((SIZE, SIZE, 3))
    pixels[:, :, 0], pixels[:, :, 1] = ramp[None], ramp[:, None]
    scene = scene_of(tmp_path, (camera_on_x(1), pixels.round()))
    normals = torch.nn.functional.normalize(sphere_normals() + torch.tensor([3.0, 0.0, 0.0]), dim=1)
    vertices = RADIUS * normals
    colours, _ = photo_colours(scene, vertices, normals, occlusion_test(SOLID))
    uv_px, _ = scene.views[0].camera.project(vertices)
    assert (colours[:, :2] * 255 - 3 * uv_px[0]).abs().max() < 0.6
    # from +x with z upwards, +y is to the right
    assert torch.corrcoef(torch.stack([colours[:, 0], vertices[:, 1]]))[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([colours[:, 1], vertices[:, 2]]))[0, 1] < -0.99


def test_vertices_outside_of_all_photos_are_grey(tmp_path):
    scene = scene_of(tmp_path, (camera_on_x(1), RED))
    vertices = torch.tensor([[0.5, 0.0, 0.0], [0.0, 2.0, 0.0], [9.0, 0.0, 0.0]])
    colours, known = photo_colours(scene, vertices, torch.tensor([[1.0, 0.0, 0.0]] * 3), occlusion_test(SOLID))
    assert known.tolist() == [True, False, False]
    assert torch.allclose(colours, torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]))


def test_normalised_scenes(tmp_path):
    """Field coordinates are rotated, translated and twice those of the world."""
    rotation = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    normalisation = SceneNormalisation(rotation, torch.tensor([0.0, 0.1, 0.0], dtype=torch.float64), 2.0, 2.0, 10.0)
    scene = scene_of(tmp_path, (camera_on_x(1), RED), (camera_on_x(-1), BLUE))
    normals = sphere_normals()
    centre, rotated = normalisation.points(torch.zeros(1, 3)), normals @ rotation.float()
    field = ellipsoid(tuple(centre[0].tolist()), (2 * RADIUS,) * 3, STEEP)
    test = occlusion_test(field, normalisation=normalisation, margin=2 * MARGIN)
    colours, _ = photo_colours(scene, centre + 2 * RADIUS * rotated, rotated, test)
    assert (colours[normals[:, 0] > 0.25, 0] > 0.95).all() and (colours[normals[:, 0] < -0.25, 2] > 0.95).all()


@pytest.mark.parametrize(("position", "seen"), [(0.5, False), (0.95, False), (1.0, True), (1.2, True), (0.1, True)])
def test_only_walls_between_camera_and_vertex_occlude(position, seen):
    """A wall across the ray, at a fraction of the distance: behind the vertex, in its own surface, and before the near bound it does not occlude."""
    vertex = torch.tensor([[2.4, 1.8, 0.0]])  # at distance 3

    def wall(xyz):
        return 300 * ((xyz @ vertex[0] / 3 - 3 * position).abs() < 0.02).float()

    test = occlusion_test(wall, samples=256, margin=0.06)
    assert test.visible(torch.zeros(1, 3), vertex).tolist() == [seen]
    assert test.visible(torch.zeros(1, 3), torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize("near_t", [1.0, 1.2])
def test_rendered_colours_against_the_normals(near_t):
    field, normals, counts = DirectionField(RADIUS), sphere_normals(300), []

    def render(rays: Rays, directions: torch.Tensor) -> Composited:
        counts.append(len(rays))
        start = rays.origins + rays.near[:, None] * rays.directions  # near_t = 1 starts on the vertex
        assert torch.allclose(start.norm(dim=1), torch.tensor(RADIUS + near_t - 1), atol=1e-5)
        z = stratified(rays.near, rays.far, 64)
        sigma, rgb = field(rays.points(z).flatten(0, 1), directions.repeat_interleave(64, 0))
        return composite(sigma.view_as(z), rgb.view(*z.shape, 3), z, rays.directions.norm(dim=1))

    colours = rendered_colours(render, RADIUS * normals, normals, IDENTITY, 100, near_t)
    assert torch.allclose(colours, 0.5 - 0.5 * normals, atol=1e-4) and counts == [100, 100, 100]


@pytest.mark.parametrize("scale", [3.0, 30.0, 1e4])
def test_a_threshold_between_empty_and_dense_space(scale):
    """A ball of radius 0.5 in thin fog, whatever the density inside."""
    x = np.linspace(-1, 1, 41)
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(x, x, x, indexing="ij")))
    box = Box((-1.0,) * 3, (1.0,) * 3, 41)
    densities = np.where(radius < 0.5, scale, 0.01).astype(np.float32)
    threshold = surface_density(densities, box)
    assert 0.01 < threshold < scale
    vertices = extract_surface(densities, box, threshold).vertices
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.5).max() < 0.06
    with pytest.raises(InputError, match="expected empty and dense space"):
        surface_density(np.full((41, 41, 41), 5.0, np.float32), box)
