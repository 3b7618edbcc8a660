"""Exports in the coordinates of the model that a scene was made from: pictures stay, and the way back gives what was there."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from npbgpp.export.coordinates import ExportCoordinates, harmonics_rotation
from npbgpp.export.mesh import Mesh
from npbgpp.geometry import Cameras, GaussianCloud, PointCloud
from npbgpp.kernels.gaussians import SplattingSettings, render_gaussians
from npbgpp.prepare.photo_poses import Similarity

TURN = Rotation.from_euler("xyz", [50, -130, 20], degrees=True).as_matrix()
CHANGE = Similarity(2.5, tuple(map(tuple, TURN.tolist())), (4.0, -3.0, 7.0))
THERE, BACK = ExportCoordinates(CHANGE, None), ExportCoordinates(CHANGE.inverse(), None)


def gaussians(count: int = 60) -> GaussianCloud:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return GaussianCloud(normal(count, 3) * 0.7, normal(count, 3) * 0.4 - 2, normal(count, 4), normal(count), normal(count, 16, 3) * 0.3)


def camera() -> Cameras:
    rotation = torch.from_numpy(Rotation.from_euler("yx", [30, 20], degrees=True).as_matrix())
    focal, principal = torch.tensor([[40.0, 44.0]], dtype=torch.float64), torch.tensor([[17.0, 15.0]], dtype=torch.float64)
    return Cameras(rotation[None], torch.tensor([[0.1, -0.05, 2.5]], dtype=torch.float64), focal, principal, (30, 36))


def test_moved_gaussians_look_the_same_from_the_moved_camera():
    """Centres, sizes, axes, and harmonics of all degrees, by the renderer."""
    pictures = []
    for coordinates, scale in ((ExportCoordinates(None, None), 1.0), (THERE, CHANGE.scale)):
        cloud, (view,) = coordinates.gaussians(gaussians()), coordinates.cameras([camera()])
        values = (cloud.means, cloud.log_scales, cloud.quaternions, cloud.opacity_logits, cloud.sh)
        settings = SplattingSettings(dilation=0.3, antialiased=False, near=0.01 * scale)
        background = torch.zeros(3, dtype=torch.float64)
        pictures.append(render_gaussians(*values, view, sh_degree=3, background=background, settings=settings))
    before, after = pictures
    assert before.image.std() > 0.1
    torch.testing.assert_close(after.image, before.image, rtol=0, atol=1e-9)
    torch.testing.assert_close(after.depth, before.depth * CHANGE.scale, rtol=1e-9, atol=1e-9)


def test_the_way_back_gives_what_was_there():
    cloud = gaussians()
    back = BACK.gaussians(THERE.gaussians(cloud))
    for name in ("means", "log_scales", "opacity_logits", "sh"):
        torch.testing.assert_close(getattr(back, name), getattr(cloud, name), msg=name)
    turned = torch.nn.functional.normalize(cloud.quaternions, dim=1)
    torch.testing.assert_close((back.quaternions * turned).sum(1).abs(), torch.ones(len(cloud), dtype=torch.float64))
    (view,) = BACK.cameras(THERE.cameras([camera()]))
    torch.testing.assert_close((view.R, view.T), (camera().R, camera().T))
    points = BACK.points(THERE.points(PointCloud(cloud.means.float(), None)))
    torch.testing.assert_close(points.xyz, cloud.means.float())


def test_normals_of_a_mesh_stay_perpendicular_to_its_triangles():
    vertices = np.random.default_rng(0).normal(size=(3, 3))
    normal = np.cross(vertices[1] - vertices[0], vertices[2] - vertices[0])
    moved = THERE.mesh(Mesh(vertices, np.tile(normal / np.linalg.norm(normal), (3, 1)), np.array([[0, 1, 2]])))
    across = np.cross(moved.vertices[1] - moved.vertices[0], moved.vertices[2] - moved.vertices[0])
    np.testing.assert_allclose(moved.normals[0], across / np.linalg.norm(across))
    assert np.linalg.norm(across) == pytest.approx(CHANGE.scale**2 * np.linalg.norm(normal))


def test_rotations_of_harmonics():
    """Orthogonal, one after the other as their product, and without effect on the mean colour; a lobe along y turns with it."""
    other = Rotation.from_euler("zx", [70, 10], degrees=True).as_matrix()
    matrix = harmonics_rotation(TURN, 3)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(16), atol=1e-12)
    np.testing.assert_allclose(harmonics_rotation(other @ TURN, 3), harmonics_rotation(other, 3) @ matrix, atol=1e-12)
    np.testing.assert_allclose(matrix[0], np.eye(16)[0], atol=1e-12)
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # y to -x
    np.testing.assert_allclose(harmonics_rotation(quarter, 1) @ [0, 1, 0, 0], [0, 0, 0, -1], atol=1e-12)
    assert harmonics_rotation(TURN, 0) == pytest.approx(1.0)
    np.testing.assert_allclose(THERE.direction((0.0, 0.0, 1.0)), TURN[:, 2])
