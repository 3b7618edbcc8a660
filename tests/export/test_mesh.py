"""Surfaces of densities that are known: where they lie, which way they face, which piece is kept, and their files."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData

from npbgpp.data.normalisation import SceneNormalisation
from npbgpp.errors import InputError
from npbgpp.export.mesh import Box, Mesh, is_cut, surface, write_mesh
from npbgpp.volume.occupancy import OccupancyGrid

from .fields import THRESHOLD, ball, densities, either

CENTRE, RADII = (0.1, -0.2, 0.3), (0.5, 0.3, 0.2)
BOX = Box((-0.7, -0.6, 0.0), (0.8, 0.3, 0.65), 32)


def mesh_of(field, box: Box = BOX) -> Mesh:
    return surface(densities(field).inside(box), box, THRESHOLD)


def volume_of(mesh: Mesh) -> float:
    """By the divergence theorem: positive where triangles are counter-clockwise from outside."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


def tetrahedra(count: int) -> Mesh:
    """Separate tetrahedra."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float64)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    vertices = np.concatenate([corners + 5 * k for k in range(count)])
    return Mesh(vertices, np.zeros_like(vertices), np.concatenate([faces + 4 * k for k in range(count)]))


def test_an_ellipsoid_is_where_it_was_put():
    mesh = mesh_of(ball(CENTRE, RADII))
    middle = (mesh.vertices.max(0) + mesh.vertices.min(0)) / 2
    extent = (mesh.vertices.max(0) - mesh.vertices.min(0)) / 2
    steps = np.array(BOX.steps())
    # a sixth of a cell: dividing by the number of nodes, or a shift by half a cell, would be three times as far off
    assert (np.abs(middle - CENTRE) < steps / 6).all() and (np.abs(extent - RADII) < steps / 6).all()
    distance = np.abs(np.linalg.norm((mesh.vertices - CENTRE) / RADII, axis=1) - 1) * max(RADII)
    assert distance.max() < max(BOX.steps())
    assert volume_of(mesh) == pytest.approx(4 / 3 * math.pi * np.prod(RADII), rel=0.03)


def test_normals_point_outwards():
    mesh = mesh_of(ball(CENTRE, RADII))
    outwards = (mesh.vertices - CENTRE) / np.array(RADII) ** 2
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5) and ((mesh.normals * outwards).sum(1) > 0.9).all()


def test_only_the_largest_piece_is_kept():
    mesh = mesh_of(either(ball(CENTRE, (0.3,) * 3), ball((0.7, 0.2, 0.05), (0.1,) * 3)))
    assert len(np.unique(mesh.pieces())) == 2
    largest = mesh.largest_piece()
    assert len(np.unique(largest.pieces())) == 1 and 0 < len(largest.faces) < len(mesh.faces)
    assert np.abs(np.linalg.norm(largest.vertices - CENTRE, axis=1) - 0.3).max() < max(BOX.steps())
    assert sorted(np.unique(largest.faces)) == list(range(len(largest.vertices)))  # no vertex without a triangle
    assert volume_of(largest) == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=0.05)


def test_the_largest_piece_has_the_most_triangles():
    mesh = tetrahedra(3)
    one_face_less = Mesh(mesh.vertices, mesh.normals, np.delete(mesh.faces, [0, 10], axis=0))
    largest = one_face_less.largest_piece()
    assert len(largest.faces) == 4 and np.array_equal(largest.vertices, mesh.vertices[4:8])


def test_empty_space_is_not_asked_about():
    field, asked = ball(CENTRE, RADII), []
    grid = OccupancyGrid((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), resolution=32)
    grid.update(field, 0)

    def counting(xyz):
        asked.append(len(xyz))
        return field(xyz)

    skipped = surface(densities(counting, grid, chunk=100).inside(BOX), BOX, THRESHOLD)
    whole = mesh_of(field)
    assert sum(asked) < 0.6 * BOX.count**3 and max(asked) <= 100
    assert np.array_equal(skipped.vertices, whole.vertices) and np.array_equal(skipped.faces, whole.faces)


def test_back_to_the_world():
    angle = torch.tensor(0.7, dtype=torch.float64)
    rotation = torch.eye(3, dtype=torch.float64)
    rotation[:2, :2] = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    frame = SceneNormalisation(rotation, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 0.25, 1.0, 2.0)
    mesh = mesh_of(ball(CENTRE, RADII))
    world = mesh.in_world(frame)
    assert np.allclose(frame.points(torch.from_numpy(world.vertices)).numpy(), mesh.vertices)
    step = frame.points(torch.from_numpy(world.vertices + world.normals)).numpy() - mesh.vertices
    assert np.allclose(step, 0.25 * mesh.normals)
    assert volume_of(world) == pytest.approx(64 * volume_of(mesh))


@pytest.mark.parametrize(("threshold", "words"), [(500.0, "lower it"), (0.0, "raise it"), (float("nan"), "got nan")])
def test_no_surface_says_what_was_found(threshold, words):
    values = densities(ball(CENTRE, RADII)).inside(BOX)
    with pytest.raises(InputError, match=f"sigma_threshold.*{words}") as caught:
        surface(values, BOX, threshold)
    assert f"0 to {values.max():.4g}" in str(caught.value)


def test_a_field_that_diverged_is_refused():
    with pytest.raises(InputError, match=r"expected finite numbers in x -0.7 to 0.8.*others at \d+ of 32768 nodes"):
        densities(lambda xyz: torch.where(xyz[:, 0] > 0.5, torch.nan, 1.0)).inside(BOX)


def test_a_cut_is_noticed():
    assert not is_cut(densities(ball(CENTRE, RADII)).inside(BOX), THRESHOLD)
    for axis in range(3):
        for side in (-1, 1):
            centre = [*CENTRE]
            centre[axis] += side * 0.4
            assert is_cut(densities(ball(tuple(centre), RADII)).inside(BOX), THRESHOLD)


def test_ply(tmp_path: Path):
    mesh = tetrahedra(2)
    colours = np.arange(24, dtype=np.uint8).reshape(8, 3) * 10
    write_mesh(tmp_path / "deep" / "mesh.ply", mesh, colours)
    file = PlyData.read(tmp_path / "deep" / "mesh.ply")
    vertex = file["vertex"]
    assert [p.name for p in vertex.properties] == ["x", "y", "z", "red", "green", "blue"] and vertex["red"].dtype == np.uint8
    assert np.array_equal(np.stack([vertex[c] for c in "xyz"], 1), mesh.vertices)
    assert np.array_equal(np.stack([vertex[c] for c in ("red", "green", "blue")], 1), colours)
    assert np.array_equal(np.stack(file["face"]["vertex_indices"]), mesh.faces)


def test_obj(tmp_path: Path):
    mesh = tetrahedra(2)
    colours = np.full((8, 3), (255, 0, 51), dtype=np.uint8)
    write_mesh(tmp_path / "mesh.obj", mesh, colours)
    lines = (tmp_path / "mesh.obj").read_text().splitlines()
    vertices = np.array([line.split()[1:] for line in lines if line.startswith("v ")], dtype=float)
    faces = np.array([line.split()[1:] for line in lines if line.startswith("f ")], dtype=int)
    assert len(lines) == 16 and np.allclose(vertices[:, :3], mesh.vertices) and np.allclose(vertices[:, 3:], (1, 0, 0.2))
    assert np.array_equal(faces, mesh.faces + 1)


@pytest.mark.parametrize(
    ("low", "high", "count", "words"),
    [
        ((0.0, 0.0, 0.0), (1.0, 0.0, 1.0), 8, "y_range"),
        ((0.0, 0.0, math.nan), (1.0, 1.0, 1.0), 8, "z_range"),
        ((-math.inf, 0.0, 0.0), (1.0, 1.0, 1.0), 8, "x_range"),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1, "n_grid"),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1626, "n_grid"),
    ],
)
def test_boxes_that_are_none(low, high, count, words):
    with pytest.raises(InputError, match=words):
        Box(low, high, count)
