"""Point clouds: reading PLY files, sub-sampling, noise.

A cloud is ``xyz`` (n, 3) in scene units and, when the file has them, ``rgb`` (n, 3) in 0..255.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from plyfile import PlyData, PlyElement, PlyHeaderParseError, PlyParseError
from torch import Tensor

from npbgpp.errors import InputError

_SUBSAMPLE_SEED = 123  # the authors' generator seed: the same n_point gives the same points as their code


@dataclass(frozen=True)
class PointCloud:
    """n points; ``rgb`` is None when the file has no colours."""

    xyz: Float[Tensor, "n 3"]
    rgb: UInt8[Tensor, "n 3"] | None = None

    def __len__(self) -> int:
        return self.xyz.shape[0]


@dataclass(frozen=True)
class CloudFile:
    """Where a cloud lies and what is done to it when it is read.

    Attributes:
        path: a PLY file.
        n_point: keep at most this many points, drawn without replacement with a fixed seed; None keeps all.
        noise_sigma: standard deviation of normal noise added once at loading, scene units; None adds none.
    """

    path: Path
    n_point: int | None = None
    noise_sigma: float | None = None

    def __post_init__(self) -> None:
        if self.n_point is not None and self.n_point < 1:
            raise InputError(f"datasets.n_point: expected a positive number or null, got {self.n_point}")
        if self.noise_sigma is not None and not 0 <= self.noise_sigma < math.inf:
            raise InputError(f"datasets.noise_sigma: expected 0 or more or null, got {self.noise_sigma}")

    def read(self) -> PointCloud:
        """Reads the cloud. Raises InputError for a missing, unreadable, empty or non-finite cloud."""
        cloud = read_ply(self.path)
        if self.n_point is not None and self.n_point < len(cloud):
            generator = torch.Generator().manual_seed(_SUBSAMPLE_SEED)
            keep = torch.randperm(len(cloud), generator=generator)[: self.n_point]
            cloud = PointCloud(cloud.xyz[keep], None if cloud.rgb is None else cloud.rgb[keep])
        if self.noise_sigma:
            generator = torch.Generator().manual_seed(_SUBSAMPLE_SEED)
            cloud = PointCloud(cloud.xyz + self.noise_sigma * torch.randn(cloud.xyz.shape, generator=generator), cloud.rgb)
        return cloud


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


def write_ply(path: Path, cloud: PointCloud) -> None:
    """Writes a binary little-endian PLY file with x, y, z and, when known, red, green, blue."""
    fields = [(axis, "<f4") for axis in "xyz"]
    if cloud.rgb is not None:
        fields += [(c, "u1") for c in ("red", "green", "blue")]
    vertex = np.empty(len(cloud), dtype=fields)
    for k, axis in enumerate("xyz"):
        vertex[axis] = cloud.xyz[:, k].cpu().numpy()
    if cloud.rgb is not None:
        for k, colour in enumerate(("red", "green", "blue")):
            vertex[colour] = cloud.rgb[:, k].cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    PlyData([PlyElement.describe(vertex, "vertex")], byte_order="<").write(str(path))
