"""The common scene in the layout of H3DS, version 0.1."""

import math
from pathlib import Path

from ..scenes import central_intrinsics, write_h3ds


def write(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64)) -> None:
    """Writes it with ``mvs_pc.ply``; the matrices refer to a world of another size."""
    write_h3ds(folder, range(views), size, "0.1", central_intrinsics(size), 2 * math.pi / views)
