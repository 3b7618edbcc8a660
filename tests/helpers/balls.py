"""Views of the coloured balls with masks and depth maps, and the distance of points from the balls."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from npbgpp.data.scene import DepthMap, View
from npbgpp.geometry.cameras import Cameras

from .scenes import COLOURS, POINTS, RADIUS, central_intrinsics, draw, look_at_origin, save_mask, save_picture

DEPTH_UNIT = 0.0005


def project(k: int, views: int, size: tuple[int, int], xyz_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uv_px (from the corner of the image) and depth of points in view k, from the matrices that the views are drawn with."""
    w2c = look_at_origin(2 * math.pi * k / views)
    xyz_cam = xyz_world @ w2c[:3, :3].T + w2c[:3, 3]
    uvw = xyz_cam @ central_intrinsics(size).T
    return uvw[:, :2] / uvw[:, 2:] + 0.5, xyz_cam[:, 2]


def camera(k: int, views: int, size: tuple[int, int]) -> Cameras:
    K = torch.from_numpy(central_intrinsics(size)).float()
    w2c = torch.from_numpy(look_at_origin(2 * math.pi * k / views)).float()
    return Cameras.from_opencv(w2c[None], K.diagonal()[None, :2], K[None, :2, 2] + 0.5, size)


def write_views(folder: Path, views: int = 16, size: tuple[int, int] = (96, 128)) -> tuple[View, ...]:
    """Photos with masks; view k has ``camera(k, views, size)``."""
    made = []
    for k in range(views):
        picture, mask = draw(central_intrinsics(size), look_at_origin(2 * math.pi * k / views), size)
        save_picture(folder / "image" / f"{k}.png", picture)
        save_mask(folder / "mask" / f"{k}.png", mask)
        made.append(View(str(k), folder / "image" / f"{k}.png", camera(k, views, size), mask=folder / "mask" / f"{k}.png"))
    return tuple(made)


def cast_depth(camera: Cameras) -> np.ndarray:
    """(h, w) depths along the optical axis, 0 beside the balls."""
    origins, rays = (t[0].double().numpy() for t in camera.rays())
    forward = camera.R[0, :, 2].double().numpy()
    offset = POINTS - origins[..., None, :]
    along = (rays[..., None, :] * offset).sum(-1)
    half_chord = RADIUS**2 - (offset**2).sum(-1) + along**2
    length = np.where(half_chord > 0, along - np.sqrt(np.maximum(half_chord, 0)), np.inf).min(-1)
    return np.where(np.isfinite(length), length, 0.0) * (rays @ forward)


def write_depth(path: Path, camera: Cameras) -> DepthMap:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((cast_depth(camera) / DEPTH_UNIT + 0.5).astype(np.uint16)).save(path)
    return DepthMap(path, camera, DEPTH_UNIT)


def surface_distance(xyz: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(distance from the surface of the nearest ball, positive outside; index of that ball) of each point."""
    distance, ball = torch.cdist(xyz.double(), torch.from_numpy(POINTS)).min(1)
    return distance - RADIUS, ball


def wrong_colour_fraction(rgb: torch.Tensor, ball: torch.Tensor) -> float:
    """Fraction of the points without the colour of their ball."""
    expected = torch.from_numpy(COLOURS.astype(np.int32))[ball]
    return ((rgb.int() - expected).abs().amax(1) > 40).double().mean().item()


def largest_gap(xyz: torch.Tensor) -> float:
    """Largest distance from a point on the surfaces of the balls to the nearest point of a cloud."""
    normals = torch.nn.functional.normalize(torch.randn(len(POINTS), 200, 3, generator=torch.Generator().manual_seed(1)), dim=2)
    surface = torch.from_numpy(POINTS).float()[:, None] + RADIUS * normals
    return torch.cdist(surface.flatten(0, 1), xyz).amin(1).max().item()
