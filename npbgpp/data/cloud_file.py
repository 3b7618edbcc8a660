"""Where the point cloud of a scene lies, what its file may be, and what is done to it: sub-sampling, noise."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.data.colmap_model import read_points
from npbgpp.data.text_cloud import read_text_cloud
from npbgpp.errors import InputError
from npbgpp.geometry.pointcloud import PointCloud, read_ply

_SUBSAMPLE_SEED = 123  # the authors' generator seed: the same n_point gives the same points as their code
_TEXT_SUFFIXES = (".xzy", ".xyz", ".txt", ".obj")


def read_cloud(path: Path) -> PointCloud:
    """Reads a cloud by the name of its file: COLMAP's ``points3D.bin`` or ``points3D.txt``, columns of text (.xzy, .xyz, .txt, .obj), else PLY.

    Raises:
        InputError: missing, unreadable, empty, or with coordinates that are not finite.
    """
    if path.name in ("points3D.bin", "points3D.txt"):
        return read_points(path).cloud
    return read_text_cloud(path) if path.suffix.lower() in _TEXT_SUFFIXES else read_ply(path)


def cloud_checksum(xyz_world: Float[Tensor, "n 3"]) -> str:
    """Digest of the coordinates of points in their order, 32 hexadecimal digits; numbers of points belong to these points alone.

    It is of the points that are used, after sub-sampling and noise, whatever file they come from. Costs 0.5 s for ten million points.
    """
    numbers = xyz_world.detach().cpu().contiguous().numpy().astype("<f4", copy=False)
    return hashlib.blake2b(numbers.data, digest_size=16).hexdigest()


@dataclass(frozen=True)
class CloudFile:
    """Where a cloud lies and what is done to it when it is read.

    Attributes:
        path: a file that ``read_cloud`` reads.
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
        cloud = read_cloud(self.path)
        if self.n_point is not None and self.n_point < len(cloud):
            generator = torch.Generator().manual_seed(_SUBSAMPLE_SEED)
            keep = torch.randperm(len(cloud), generator=generator)[: self.n_point]
            cloud = PointCloud(cloud.xyz[keep], None if cloud.rgb is None else cloud.rgb[keep])
        if self.noise_sigma:
            generator = torch.Generator().manual_seed(_SUBSAMPLE_SEED)
            cloud = PointCloud(cloud.xyz + self.noise_sigma * torch.randn(cloud.xyz.shape, generator=generator), cloud.rgb)
        return cloud
