"""Cameras around the scene, and rendered images.

A camera is a 4x4 camera-to-world matrix with OpenGL axes (x right, y up, z backward). The principal point is the centre of the image,
focal = 0.5 w / tan(0.5 angle_x) pixels, and pixel (row i, column j) covers [j, j+1) x [i, i+1), rows downwards.
"""

import math

import numpy as np
import torch
from torch import Tensor

from still_life_maker.arrangement import still_life
from still_life_maker.light import LAMP_CENTRE, LAMP_RADIUS, column, radiance
from still_life_maker.solids import unit

ANGLE_X = 0.7  # rad
DISTANCE = 4.0
TARGET = (0.0, 0.0, 0.22)
ELEVATIONS = (12.0, 72.0)  # degrees
RAYS_AT_ONCE = 131072  # fewer have too much call overhead, more do not fit into the cache
DECIMALS = 10  # of the matrices: hides differences in the last bit between platforms


def poses(count: int, seed: int) -> np.ndarray:
    """(count, 4, 4) float64 cameras on a band of a sphere, looking at the target.

    A Fibonacci lattice (Swinbank and Purser, "Fibonacci grids", Q. J. R. Meteorol. Soc. 2006): equal steps in height, which are equal
    areas on a sphere, and the golden angle in azimuth. The seed turns the lattice about the vertical axis.
    """
    low, high = (math.sin(math.radians(e)) for e in ELEVATIONS)
    height = low + (high - low) * (np.arange(count) + 0.5) / count
    azimuth = 2.0 * np.pi * np.random.default_rng(seed).random() + np.pi * (3.0 - math.sqrt(5.0)) * np.arange(count)
    level = np.sqrt(1.0 - height**2)
    back = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), height], -1)
    right = np.stack([-np.sin(azimuth), np.cos(azimuth), np.zeros(count)], -1)
    matrices = np.tile(np.eye(4), (count, 1, 1))
    matrices[:, :3, 0], matrices[:, :3, 1], matrices[:, :3, 2] = right, np.cross(back, right), back
    matrices[:, :3, 3] = np.array(TARGET) + DISTANCE * back
    return np.round(matrices, DECIMALS) + 0.0  # + 0.0 turns -0.0 into 0.0


def spread(cameras: np.ndarray) -> np.ndarray:
    """Orders cameras (k, 4, 4) by farthest-point sampling: the first views of the sequence are spread out."""
    directions = cameras[:, :3, 2]
    order = [len(cameras) // 2]
    cosine = directions @ directions[order[0]]  # to the nearest camera in the order so far
    while len(order) < len(cameras):
        cosine[order[-1]] = np.inf
        order.append(int(cosine.argmin()))
        cosine = np.maximum(cosine, directions @ directions[order[-1]])
    return cameras[order]


def project(points: np.ndarray, pose: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) pixel coordinates (column, row) and (n,) depths of (n, 3) world points in a square image."""
    cam = (points - pose[:3, 3]) @ pose[:3, :3]
    depth = -cam[:, 2]
    focal = 0.5 * size / math.tan(0.5 * ANGLE_X)
    uv = np.stack([cam[:, 0], -cam[:, 1]], -1) * (focal / depth)[:, None] + 0.5 * size
    return uv, depth


def lamp_points(count: int) -> Tensor:
    """(3, count) points on the disc of the lamp (golden-angle spiral), shuffled, so that they are independent of the position in the pixel."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    radius = LAMP_RADIUS * ((order + 0.5) / count).sqrt()
    angle = order * math.pi * (3.0 - math.sqrt(5.0))
    towards = unit(column(LAMP_CENTRE))
    side = unit(torch.linalg.cross(column((0.0, 0.0, 1.0)), towards, dim=0))
    over = torch.linalg.cross(towards, side, dim=0)
    return column(LAMP_CENTRE) + radius * (angle.cos() * side + angle.sin() * over)


def render(pose: np.ndarray, size: int, samples: int) -> np.ndarray:
    """(size, size, 4) uint8 RGBA with straight alpha, samples x samples rays a pixel; RGB is 0 where alpha is 0."""
    solids = still_life()
    matrix = torch.tensor(pose, dtype=torch.float64)
    focal = 0.5 * size / math.tan(0.5 * ANGLE_X)
    per_pixel = samples * samples
    sub = torch.arange(per_pixel)
    sub_x, sub_y = (sub % samples + 0.5) / samples, (sub // samples + 0.5) / samples
    lamps = lamp_points(per_pixel)
    rows: list[Tensor] = []
    for pixels in torch.arange(size * size).split(max(1, RAYS_AT_ONCE // per_pixel)):
        x = ((pixels % size)[:, None] + sub_x).reshape(-1).double() - 0.5 * size
        y = ((pixels // size)[:, None] + sub_y).reshape(-1).double() - 0.5 * size
        d = matrix[:3, :3] @ unit(torch.stack([x, -y, torch.full_like(x, -focal)]))
        o = matrix[:3, 3:].expand_as(d)
        colour, hit = radiance(solids, o, d, lamps.repeat(1, pixels.numel()))
        weight = hit.double().reshape(-1, per_pixel)
        covered = weight.mean(1)
        # samples are averaged in sRGB, so that the image composited on white equals an image rendered on white
        mean = (to_srgb(colour).reshape(3, -1, per_pixel) * weight).mean(2) / covered.clamp_min(1e-9)
        rows.append(torch.cat([mean, covered[None]]))
    image = torch.cat(rows, 1).T.reshape(size, size, 4)
    return (image * 255.0 + 0.5).floor().to(torch.uint8).numpy()


def to_srgb(colour: Tensor) -> Tensor:
    """sRGB values, clamped to [0, 1], of linear colours (IEC 61966-2-1)."""
    c = colour.clamp(0.0, 1.0)
    return torch.where(c <= 0.0031308, 12.92 * c, 1.055 * c.clamp_min(1e-9) ** (1.0 / 2.4) - 0.055)
