"""Reference rasterizer: loops over points, which share no code with the package.

It takes projected points, since projection is tested separately.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rasterize_reference(
    xyd: Float[Tensor, "n 3"], image_size: tuple[int, int], scale: float, supersampling: int, near: float, authors: bool
) -> tuple[Int[Tensor, "h w"], Float[Tensor, "h w"]]:
    """Index (-1 empty) and depth (inf empty) of the nearest point of every cell; the lowest index wins ties.

    ``xyd`` holds the normalised coordinates and depth of the pixel convention: ``authors``, or else exact.
    """
    full_height, full_width = image_size
    height, width = int(scale * full_height) * supersampling, int(scale * full_width) * supersampling
    index = torch.full((height, width), -1, dtype=torch.int64)
    depth = torch.full((height, width), math.inf)
    short = min(full_height, full_width)
    for i in range(len(xyd)):
        x, y, z = xyd[i]
        if not z > near:
            continue
        if authors:
            if abs(x) > full_width / short or abs(y) > full_height / short:
                continue
            factor = (min(height, width) - 1) / 2
            column = int((width - 1) / 2 - x * factor - 1e-6 + 0.5)
            row = int((height - 1) / 2 - y * factor - 1e-6 + 0.5)
        else:
            if not (0 <= x < full_width and 0 <= y < full_height):
                continue
            column, row = math.floor(x * scale * supersampling), math.floor(y * scale * supersampling)
        if not (0 <= row < height and 0 <= column < width):
            continue
        if z < depth[row, column]:
            index[row, column] = i
            depth[row, column] = z
    return index, depth
