"""Plain baselines of the benchmarks: NPBG implemented literally, with every operation on all points.

They share no code with the package: five levels with two scatter passes each (depth, then index as float32), features of all points scattered, one dense
parameter with dense RMSprop.
"""

import torch
from torch import Tensor

SCALES = (1.0, 0.5, 0.25, 0.125, 0.0625)


def project(xyz: Tensor, R: Tensor, T: Tensor, fcl: Tensor, prp: Tensor, near: float, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(x, y, depth) in the authors' normalised coordinates, and a mask of the points in the image."""
    cam = xyz @ R + T
    depth = cam[:, 2]
    xy = (fcl * cam[:, :2] + prp * depth[:, None]) / (depth[:, None] + 1e-7)
    short = min(size)
    valid = (depth > near) & (xy[:, 0].abs() <= size[1] / short) & (xy[:, 1].abs() <= size[0] / short)
    return torch.cat([xy, depth[:, None]], 1), valid


def rasterize(xyd: Tensor, valid: Tensor, features: Tensor, background: Tensor, size: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
    """Feature images with a mask channel, and point indices (-1 empty), at five scales. Differentiable in features and background."""
    images, indices = [], []
    count = len(xyd)
    with_mask = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    for scale in SCALES:
        height, width = int(scale * size[0]), int(scale * size[1])
        half = (min(height, width) - 1) / 2
        u, v = -(half * xyd[:, 0] - (width - 1) / 2), -(half * xyd[:, 1] - (height - 1) / 2)
        column, row = (u - 1e-6 + 0.5).to(torch.int64), (v - 1e-6 + 0.5).to(torch.int64)
        inside = valid & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        cell = torch.where(inside, row * width + column, height * width)
        depth = torch.where(inside, xyd[:, 2], torch.inf)
        nearest = torch.full((height * width + 1,), torch.inf).scatter_reduce(0, cell, depth, "amin")
        wins = inside & (depth == nearest[cell])
        number = torch.where(wins, torch.arange(count, dtype=torch.float32), torch.inf)
        lowest = torch.full((height * width + 1,), torch.inf).scatter_reduce(0, cell, number, "amin")
        wins = wins & (number == lowest[cell])
        target = torch.where(wins, cell, height * width)
        canvas = torch.zeros(height * width + 1, with_mask.shape[1]).index_copy(0, target, with_mask)[:-1]
        empty = torch.cat([background, torch.zeros_like(background[:1])])
        canvas = torch.where(canvas[:, -1:] > 0, canvas, empty)
        images.append(canvas.view(height, width, -1).permute(2, 0, 1)[None])
        indices.append(torch.where(lowest[:-1].isinf(), -1, lowest[:-1]).to(torch.int64).view(height, width))
    return images, indices


def peel(
    xyz: Tensor,
    R: Tensor,
    T: Tensor,
    focal: Tensor,
    principal: Tensor,
    size: tuple[int, int],
    layers: int,
    near: float,
    far: float,
    max_splat: float,
) -> list[Tensor]:
    """Point index of every pixel (-1 empty) per layer; every layer projects all points and scatters the remaining ones in two passes."""
    height, width = size
    count, reach = len(xyz), 2 * int(max_splat) + 1
    left = torch.ones(count, dtype=torch.bool)
    found = []
    for _ in range(layers):
        cam = xyz @ R + T
        z = cam[:, 2]
        uv = principal - focal * cam[:, :2] / z[:, None]
        radius = max_splat * (1 - (z - near) / (far - near)).clamp(0, 1)
        first, last = (uv - radius[:, None]).floor(), (uv + radius[:, None]).floor()
        cells = []
        for row in range(reach):
            for column in range(reach):
                x, y = first[:, 0] + column, first[:, 1] + row
                inside = left & (z > 0) & (x <= last[:, 0]) & (y <= last[:, 1]) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
                cells.append(torch.where(inside, (y * width + x).clamp(0, height * width).long(), height * width))
        nearest = torch.full((height * width + 1,), torch.inf)
        for cell in cells:
            nearest.scatter_reduce_(0, cell, z, "amin")
        index = torch.full((height * width + 1,), count)
        for cell in cells:
            index.scatter_reduce_(0, cell, torch.where(z == nearest[cell], torch.arange(count), count), "amin")
        index = index[:-1]
        left[index[index < count]] = False
        found.append(torch.where(index == count, -1, index).view(height, width))
    return found
