"""Voxels of a radiance field for other programs: nerf_pl's ``.vol`` for Unity, or a plain array of densities.

A ``.vol`` file has no header. Each voxel that is not empty is a pair of unsigned 32-bit numbers, little-endian: its place in the volume, counted with y
slowest and z fastest, and its colour, red in the highest byte, then green, blue, and the opacity along the width of a voxel in x; all rounded down to 8 bits.
Which box the volume is of, and that it has g voxels along a side, the reader must know.
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
_AT_ONCE = 2**16
_LEVELS = 255


@torch.no_grad()
def all_round_colours(field: RadianceField, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Mean of the colours that the field shows to the six directions of the axes: a voxel has one colour, whoever looks."""
    axes = torch.cat([torch.eye(3, device=xyz.device), -torch.eye(3, device=xyz.device)])
    return torch.stack([field(xyz, axis.expand_as(xyz))[1] for axis in axes]).mean(0)


def write_volume(
    path: Path,
    densities: Float[np.ndarray, "g g g"],
    box: Box,
    colours: Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n 3"]],
    device: torch.device,
) -> int:
    """Writes a ``.vol`` file, or the densities as ``.npy`` (float32, axes x, y, z); returns how many voxels are not empty.

    Args:
        path: the file, .vol or .npy.
        densities: at the nodes of the box, by their numbers along x, y and z, not negative.
        box: coordinates of the nodes.
        colours: of points, 0..1.
        device: where ``colours`` wants its points.

    Raises:
        InputError: nothing but empty voxels, or a file that cannot be written.
    """
    assert path.suffix in SUFFIXES
    alpha = -np.expm1(-(box.high[0] - box.low[0]) / box.count * densities).transpose(1, 0, 2).ravel()
    places = np.flatnonzero(alpha > 0)
    if len(places) == 0:
        raise InputError(f"{path}: expected something dense in {box}, got an empty field; look elsewhere with x_range, y_range and z_range")
    if path.suffix == ".npy":
        write_atomically(path, lambda file: np.save(file, densities))
        return len(places)

    def write(file: IO[bytes]) -> None:
        for first in range(0, len(places), _AT_ONCE):
            part = places[first : first + _AT_ONCE]
            y, x, z = np.unravel_index(part, (box.count,) * 3)
            found = colours(box.nodes(torch.from_numpy(np.stack([x, y, z], 1)).to(device))).cpu().numpy()
            levels = (_LEVELS * np.concatenate([found, alpha[part, None]], 1)).astype("<u4")
            file.write(np.stack([part.astype("<u4"), (levels << np.array([24, 16, 8, 0], dtype="<u4")).sum(1, dtype="<u4")], 1).tobytes())

    write_atomically(path, write)
    return len(places)
