"""Meshes from depth maps of a ball, whose surface is known."""

import math

import numpy as np
import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.export.fusion import fuse_depth_maps, surface_box
from npbgpp.export.mesh import Box, extract_surface
from npbgpp.geometry import Cameras
from npbgpp.methods.base import Render

CENTRE, RADIUS = torch.tensor([0.3, -0.2, 0.1]), 0.5
CPU = torch.device("cpu")


def cameras(count: int = 12, size: int = 96) -> list[Cameras]:
    """Around the ball, from above and below."""
    found = []
    for k in range(count):
        azimuth, height = 2 * math.pi * k / count, (-0.6, 0.0, 0.6)[k % 3]
        back = torch.tensor([math.cos(azimuth), math.sin(azimuth), height])
        back = back / back.norm()
        right = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]), back)
        right = right / right.norm()
        pose = torch.eye(4)
        pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, torch.linalg.cross(back, right), back, CENTRE + 2.5 * back
        focal, centre = torch.tensor([[1.8 * size, 1.8 * size]]), torch.tensor([[size / 2, size / 2]])
        found.append(Cameras.from_opengl(pose[None], focal, centre, (size, size)))
    return found


def ball(camera: Cameras) -> Render:
    """Exact depths along the viewing axis; red in front of CENTRE[0], green behind it."""
    origins, directions = (part[0] for part in camera.rays())
    directions = directions / directions.norm(dim=-1, keepdim=True)
    to_centre = CENTRE - origins
    along = (to_centre * directions).sum(-1)
    half = RADIUS**2 - (to_centre.square().sum(-1) - along**2)
    distance = torch.where(half > 0, along - half.clamp(min=0).sqrt(), 0.0)
    hit = origins + distance[..., None] * directions
    depth = torch.where(half > 0, distance * (directions @ camera.R[0, :, 2]), 0.0)
    front = (hit[..., 0] > CENTRE[0]).float()
    rgb = torch.stack([front, 1 - front, torch.zeros_like(front)])
    return Render(rgb[None], None, None, depth[None, None])


def test_a_ball_becomes_a_ball():
    box = surface_box(ball, cameras(), 48)
    low, high = torch.tensor(box.low), torch.tensor(box.high)
    assert (low < CENTRE - RADIUS).all() and (high > CENTRE + RADIUS).all() and (high - low < 3 * RADIUS).all()
    fused = fuse_depth_maps(ball, cameras(), box, CPU)
    mesh = extract_surface(-fused.distance, box, 0.0, fused.known).largest_component()
    outward = mesh.vertices - CENTRE.numpy()
    radius = np.linalg.norm(outward, axis=1)
    assert abs(np.median(radius) - RADIUS) < 0.2 * max(box.steps()) and np.quantile(np.abs(radius - RADIUS), 0.99) < max(box.steps())
    a, b, c = (mesh.vertices[mesh.faces[:, k]] - CENTRE.numpy() for k in range(3))
    volume = (np.cross(a, b) * c).sum() / 6  # positive: counter-clockwise seen from outside
    assert volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.06)
    assert (mesh.normals * outward).sum(1).min() > 0
    colours = fused.colours_at(mesh.vertices, box)
    front = outward[:, 0] > 0.1
    assert colours.dtype == np.uint8 and (colours[front, 0] > 150).mean() > 0.95 and (colours[outward[:, 0] < -0.1, 1] > 150).mean() > 0.95


def test_what_no_camera_sees_is_not_closed():
    """The far side of the ball is unknown: there is no surface there."""
    box = Box((-0.5, -1.0, -0.7), (1.1, 0.6, 0.9), 40)
    one = [cameras()[0]]
    fused = fuse_depth_maps(ball, one, box, CPU)
    assert not fused.known.all()
    mesh = extract_surface(-fused.distance, box, 0.0, fused.known)
    towards = one[0].centers()[0] - CENTRE
    side = (mesh.vertices - CENTRE.numpy()) @ (towards / towards.norm()).numpy()
    assert side.min() > -0.1 * RADIUS


def test_pixels_without_depth_show_free_space():
    def empty(camera: Cameras) -> Render:
        height, width = camera.image_size
        return Render(torch.ones(1, 3, height, width), None, None, torch.full((1, 1, height, width), torch.inf))

    box = Box((0.0, -0.5, -0.2), (0.6, 0.1, 0.4), 10)
    fused = fuse_depth_maps(empty, cameras(4), box, CPU)
    assert fused.known.all() and (fused.distance == 1).all() and (fused.colours == 0.5).all()
    with pytest.raises(InputError, match="surface"):
        surface_box(empty, cameras(4), 10)
