"""The common scene in the layout of DTU."""

from pathlib import Path

from ..scenes import central_intrinsics, write_dtu


def write(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64)) -> None:
    """Writes it with ``mvs_pc.ply``."""
    write_dtu(folder, views, size, central_intrinsics(size))
