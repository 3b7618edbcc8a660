"""Point clouds as columns of text: NPCR's ``.xzy``, ``.xyz``, ``.txt``, and the vertices of an ``.obj``."""

from pathlib import Path

import numpy as np
import torch

from npbgpp.errors import InputError
from npbgpp.geometry.pointcloud import PointCloud


def read_text_cloud(path: Path) -> PointCloud:
    """Reads x, y, z from the first three columns (after the letter v in an .obj), whatever the file calls them.

    Colours are read from the next three columns of an .obj whose vertices have them (0..1 or 0..255), and from no other file: in those the columns may be
    anything. Lines that start with # are comments.

    Raises:
        InputError: missing file, other text than numbers, fewer than three columns, no points, or coordinates that are not finite.
    """
    is_obj = path.suffix.lower() == ".obj"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        if is_obj:
            lines = [line[2:] for line in lines if line.startswith("v ")]
        table = np.loadtxt([line for line in lines if line.strip()], ndmin=2) if any(map(str.strip, lines)) else np.zeros((0, 3))
    except FileNotFoundError:
        raise InputError(f"point cloud {path}: no such file; name a cloud with datasets.pc_name=<file>") from None
    except (OSError, ValueError) as error:
        raise InputError(f"point cloud {path}: expected columns of numbers, got other text ({error}); restore the file") from error
    if len(table) == 0 or table.shape[1] < 3:
        raise InputError(f"point cloud {path}: expected at least one point of three numbers, got {table.shape[0]}x{table.shape[1]} numbers")
    xyz = torch.from_numpy(table[:, :3].astype(np.float32))
    bad = int((~xyz.isfinite()).any(1).sum())
    if bad:
        raise InputError(f"point cloud {path}: {bad} of {len(xyz)} points have coordinates that are not finite; remove them from the file")
    rgb = None
    if is_obj and table.shape[1] >= 6:
        colours = table[:, 3:6] * (255 if table[:, 3:6].max() <= 1 else 1)
        rgb = torch.from_numpy(np.clip(np.nan_to_num(colours) + 0.5, 0, 255).astype(np.uint8))
    return PointCloud(xyz, rgb)
