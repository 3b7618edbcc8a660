"""Point clouds and PLY files.

A cloud is ``xyz`` (n, 3) in scene units and, when the file has them, colours.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from plyfile import PlyData, PlyElement, PlyHeaderParseError, PlyParseError
from torch import Tensor

from npbgpp.errors import InputError


@dataclass(frozen=True)
class PointCloud:
    """n points.

    Attributes:
        xyz: scene units.
        rgb_u8: colours as files store them, 0 to 255; None without colours.
    """

    xyz: Float[Tensor, "n 3"]
    rgb_u8: UInt8[Tensor, "n 3"] | None = None

    @property
    def rgb(self) -> Float[Tensor, "n 3"] | None:
        """Colours in [0, 1]; None without colours."""
        return None if self.rgb_u8 is None else self.rgb_u8.float() / 255

    def __len__(self) -> int:
        return self.xyz.shape[0]


def read_ply(path: Path) -> PointCloud:
    """Reads vertices (x, y, z; red, green, blue when present) of an ascii or binary PLY file.

    Raises:
        InputError: missing file, not a PLY file, truncated, no vertices, or coordinates that are not finite.
    """
    advice = "give the name of a PLY cloud inside the scene folder with datasets.pc_name=<file>"
    if not path.is_file():
        raise InputError(f"point cloud {path}: no such file; {advice}")
    try:
        vertex = PlyData.read(str(path))["vertex"].data
        xyz = np.stack([np.asarray(vertex[axis], dtype=np.float32) for axis in "xyz"], axis=1)
    except (PlyHeaderParseError, PlyParseError, KeyError, ValueError, OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(
            f"point cloud {path}: expected a PLY file with vertex x, y, z, got an unreadable one ({error}); {advice}"
        ) from error
    if len(xyz) == 0:
        raise InputError(f"point cloud {path}: expected at least one point, got none; {advice}")
    bad = int((~np.isfinite(xyz)).any(axis=1).sum())
    if bad:
        raise InputError(f"point cloud {path}: {bad} of {len(xyz)} points have coordinates that are not finite; remove them from the file")
    names = vertex.dtype.names or ()
    rgb = None
    if all(c in names for c in ("red", "green", "blue")):
        colours = np.stack([np.asarray(vertex[c]) for c in ("red", "green", "blue")], axis=1)
        if colours.dtype.kind == "f":  # some tools store 0..1
            colours = np.clip(colours * 255.0 + 0.5, 0, 255)
        rgb = torch.from_numpy(colours.astype(np.uint8))
    return PointCloud(torch.from_numpy(xyz), rgb)


def write_ply(file: Path | IO[bytes], cloud: PointCloud) -> None:
    """Writes a binary little-endian PLY file with x, y, z and, when known, red, green, blue."""
    fields = [(axis, "<f4") for axis in "xyz"]
    if cloud.rgb_u8 is not None:
        fields += [(c, "u1") for c in ("red", "green", "blue")]
    vertex = np.empty(len(cloud), dtype=fields)
    for k, axis in enumerate("xyz"):
        vertex[axis] = cloud.xyz[:, k].cpu().numpy()
    if cloud.rgb_u8 is not None:
        for k, colour in enumerate(("red", "green", "blue")):
            vertex[colour] = cloud.rgb_u8[:, k].cpu().numpy()
    if isinstance(file, Path):
        file.parent.mkdir(parents=True, exist_ok=True)
    PlyData([PlyElement.describe(vertex, "vertex")], byte_order="<").write(str(file) if isinstance(file, Path) else file)
