"""The common scene as the NPBG++ authors prepare ScanNet's."""

from pathlib import Path

from ..scenes import central_intrinsics, write_scannet


def write(folder: Path, views: int = 8, size: tuple[int, int] = (48, 64)) -> None:
    """Writes it with photos 0, 3, 6, ... and ``full.ply``."""
    write_scannet(folder, views, size, K=central_intrinsics(size))
