"""Voxels of a radiance field: nerf_pl's ``.vol`` for Unity, or the densities as ``.npy``.

A ``.vol`` file has no header. Each voxel that is not empty is a pair of unsigned 32-bit integers, little-endian: its index in the volume, with y slowest and z
fastest, and its colour, with red in the highest byte, then green, blue, and the opacity along the width of a voxel in x, all rounded down to 8 bits. The box and
the number of voxels along its sides are not stored.
"""

from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.core.files import write_atomically
from npbgpp.errors import InputError
from npbgpp.export.mesh import Box
from npbgpp.volume import RadianceField

SUFFIXES = (".vol", ".npy")
_CHUNK = 2**16  # voxels
_LEVELS = 255


@torch.no_grad()
def mean_colours(field: RadianceField, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Mean colour of points over the six axis directions: a voxel has one colour for all viewing directions."""
    directions = torch.cat([torch.eye(3, device=xyz.device), -torch.eye(3, device=xyz.device)])
    return torch.stack([field(xyz, direction.expand_as(xyz))[1] for direction in directions]).mean(0)


def write_volume(
    path: Path,
    densities: Float[np.ndarray, "g g g"],
    box: Box,
    colours: Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n 3"]],
    device: torch.device,
) -> int:
    """Writes a ``.vol`` file, or the densities as ``.npy`` (float32, axes x, y, z). Returns the number of voxels that are not empty.

    Args:
        path: the file, .vol or .npy.
        densities: at the nodes of the box, indexed by x, y and z, not negative.
        box: coordinates of the nodes.
        colours: of points, 0..1.
        device: of the points that ``colours`` gets.

    Raises:
        InputError: only empty voxels, or a file that cannot be written.
    """
    assert path.suffix in SUFFIXES
    alpha = -np.expm1(-(box.high[0] - box.low[0]) / box.count * densities).transpose(1, 0, 2).ravel()
    occupied = np.flatnonzero(alpha > 0)
    if len(occupied) == 0:
        raise InputError(f"{path}: expected positive densities in {box}, got an empty field; change x_range, y_range and z_range")
    if path.suffix == ".npy":
        write_atomically(path, lambda file: np.save(file, densities))
        return len(occupied)

    def write(file: IO[bytes]) -> None:
        for index in np.split(occupied, range(_CHUNK, len(occupied), _CHUNK)):
            y, x, z = np.unravel_index(index, (box.count,) * 3)
            rgb = colours(box.nodes(torch.from_numpy(np.stack([x, y, z], 1)).to(device))).cpu().numpy()
            levels = (_LEVELS * np.concatenate([rgb, alpha[index, None]], 1)).astype("<u4")
            file.write(np.stack([index.astype("<u4"), (levels << np.array([24, 16, 8, 0], dtype="<u4")).sum(1, dtype="<u4")], 1).tobytes())

    write_atomically(path, write)
    return len(occupied)
