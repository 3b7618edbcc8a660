"""Point clouds as columns of text: NPCR's ``.xzy``, ``.xyz``, ``.txt``, and the vertices of an ``.obj``."""

from pathlib import Path

import numpy as np
import torch

from npbgpp.errors import InputError
from npbgpp.geometry.pointcloud import PointCloud

_COMMENTS = ("#", "//")


def read_text_cloud(path: Path) -> PointCloud:
    """Reads x, y, z from the first three columns (after the letter v in an .obj), whatever the file calls them.

    Colours are read from the next three columns of an .obj whose first vertex has them (0..1 or 0..255), and from no other file: in those the columns may
    be anything, words too. Columns are separated by white space. Lines that start with # or // are comments.

    Raises:
        InputError: missing file, other text than numbers, fewer than three columns, no points, or coordinates that are not finite.
    """
    is_obj = path.suffix.lower() == ".obj"
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = [line for line in map(str.strip, file) if line and not line.startswith(_COMMENTS)]
        if is_obj:
            lines = [line[2:] for line in lines if line.startswith(("v ", "v\t"))]
        coloured = is_obj and len(lines) > 0 and len(lines[0].partition("#")[0].split()) >= 6
        table = np.loadtxt(lines, usecols=range(6 if coloured else 3), ndmin=2) if lines else np.zeros((0, 3))
    except FileNotFoundError:
        raise InputError(f"point cloud {path}: no such file; name a cloud with datasets.pc_name=<file>") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"point cloud {path}: expected lines of three numbers or more, as many as the first one, got something else ({error}); restore the file"
        ) from error
    if len(table) == 0:
        raise InputError(f"point cloud {path}: expected at least one point of three numbers, got none; restore the file")
    xyz = torch.from_numpy(table[:, :3]).float()
    bad = int((~xyz.isfinite()).any(1).sum())
    if bad:
        raise InputError(f"point cloud {path}: {bad} of {len(xyz)} points have coordinates that are not finite; remove them from the file")
    if not coloured:
        return PointCloud(xyz)
    colours = table[:, 3:]
    if not np.isfinite(colours).all():
        raise InputError(f"point cloud {path}: expected colours of 0 to 1 or 0 to 255, got some that are not finite; correct the file")
    rgb = np.clip(colours * (255 if colours.max() <= 1 else 1) + 0.5, 0, 255)
    return PointCloud(xyz, torch.from_numpy(rgb.astype(np.uint8)))
