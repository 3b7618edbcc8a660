"""Cameras around the head, and images with premultiplied alpha.

A camera is a 4x4 camera-to-world matrix with axes right, down, forward. Pixel (row i, column j) covers [j, j+1) x [i, i+1), rows downwards. A strand is drawn
as a chain of discs on a finer grid; strands in the same cell are composited front to back, each once.
"""

import math

import numpy as np

from hair_maker.strands import HEAD_RADIUS, WIDTH, Strands, head_colour

DISTANCE = 3.0
FOCAL = 1.28  # of the image size
ELEVATIONS = (-12.0, 38.0)  # degrees
CELLS = 4  # per pixel along each side
DECIMALS = 10  # of the matrices: hides differences in the last bit between platforms


def poses(count: int, seed: int) -> np.ndarray:
    """(count, 4, 4) cameras on a band of a sphere, looking at the origin; consecutive cameras are far from each other."""
    low, high = (math.sin(math.radians(e)) for e in ELEVATIONS)
    share = (np.arange(count) * 0.754877666 + 0.5) % 1.0  # any part of the sequence is evenly spread
    height = low + (high - low) * share
    azimuth = 2.0 * np.pi * np.random.default_rng(seed).random() + np.pi * (3.0 - math.sqrt(5.0)) * np.arange(count)
    level = np.sqrt(1.0 - height**2)
    forward = -np.stack([level * np.cos(azimuth), level * np.sin(azimuth), height], -1)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    matrices = np.tile(np.eye(4), (count, 1, 1))
    matrices[:, :3, 0], matrices[:, :3, 1], matrices[:, :3, 2] = right, np.cross(forward, right), forward
    matrices[:, :3, 3] = -DISTANCE * forward
    return np.round(matrices, DECIMALS) + 0.0  # + 0.0 turns -0.0 into 0.0


def intrinsics(size: int) -> np.ndarray:
    """K in pixels from the top-left corner."""
    return np.array([[FOCAL * size, 0.0, size / 2], [0.0, FOCAL * size, size / 2], [0.0, 0.0, 1.0]])


def render(hair: Strands, pose: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 4) image of hair and head in [0, 1], premultiplied alpha."""
    side = CELLS * size
    K = intrinsics(side)
    head_depth, head = _head(pose, K, side)
    cell, depth, strand, colour = _fragments(hair, pose, K, side)
    visible = depth < head_depth[cell]
    cell, depth, strand, colour = cell[visible], depth[visible], strand[visible], colour[visible]
    order = np.lexsort((depth, cell))
    cell, strand, colour = cell[order], strand[order], colour[order]
    log_transmittance = np.log1p(-hair.opacity[strand])
    accumulated = np.concatenate([[0.0], np.cumsum(log_transmittance)])
    starts = np.searchsorted(cell, cell, side="left")
    weight = np.exp(accumulated[:-1] - accumulated[starts]) * hair.opacity[strand]
    image = np.stack([np.bincount(cell, weight * colour[:, k], side * side) for k in range(3)], -1)
    transmittance = np.exp(np.bincount(cell, log_transmittance, side * side))  # of all strands
    solid = np.isfinite(head_depth)
    image[solid] += transmittance[solid, None] * head[solid]
    opacity = 1.0 - np.where(solid, 0.0, transmittance)
    rgba = np.concatenate([image, opacity[:, None]], 1)
    return rgba.reshape(size, CELLS, size, CELLS, 4).mean((1, 3))


def _head(pose: np.ndarray, K: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """((side * side,) depths of the head, inf outside of it, (side * side, 3) colours)."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    rays = np.stack([columns, rows, np.ones_like(rows)], -1).reshape(-1, 3) @ np.linalg.inv(K).T @ pose[:3, :3].T
    eye = pose[:3, 3]
    a, b, c = (rays**2).sum(1), rays @ eye, eye @ eye - HEAD_RADIUS**2
    root = b**2 - a * c
    hit = root > 0
    depth = np.full(side * side, np.inf)
    depth[hit] = (-b[hit] - np.sqrt(root[hit])) / a[hit]
    colour = np.zeros((side * side, 3))
    colour[hit] = head_colour(eye + depth[hit, None] * rays[hit])
    return depth, colour


def _fragments(hair: Strands, pose: np.ndarray, K: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(cell, depth, strand, colour) of each pair of a strand and a cell that it covers; of several discs the nearest."""
    steps = 4 * side // 3  # less than half a cell apart
    xyz, colour = hair.at((np.arange(steps) + 0.5) / steps)
    xyz_cam = (xyz.reshape(-1, 3) - pose[:3, 3]) @ pose[:3, :3]
    depth = xyz_cam[:, 2]
    uv = xyz_cam[:, :2] / depth[:, None] * K[0, 0] + K[:2, 2]
    radius = 0.5 * WIDTH * K[0, 0] / depth
    strand = np.repeat(np.arange(len(hair.shell)), steps)
    colour = colour.reshape(-1, 3)
    reach = math.ceil(radius.max())
    parts = []
    for row in range(-reach, reach + 1):
        for column in range(-reach, reach + 1):
            position = np.floor(uv) + [column, row]
            covered = (np.linalg.norm(position + 0.5 - uv, axis=1) <= radius) & (position >= 0).all(1) & (position < side).all(1)
            index = np.flatnonzero(covered)
            parts.append(np.stack([position[index, 1].astype(np.int64) * side + position[index, 0].astype(np.int64), index]))
    cell, sample = np.concatenate(parts, 1)
    key = cell * len(hair.shell) + strand[sample]
    order = np.lexsort((depth[sample], key))
    _, first = np.unique(key[order], return_index=True)
    sample, cell = sample[order][first], cell[order][first]
    return cell, depth[sample], strand[sample], colour[sample]
