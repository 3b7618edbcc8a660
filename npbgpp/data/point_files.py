"""Point cloud files of every format that is read, and the manifest beside a cloud."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp import __version__
from npbgpp.core.config import typed
from npbgpp.core.files import write_atomically
from npbgpp.data.cloud_formats import READERS
from npbgpp.data.colmap_model import read_points
from npbgpp.errors import InputError
from npbgpp.geometry import PointCloud, Transform, in_8_bits, read_ply, transformed

CLOUD_SUFFIXES = (".ply", *READERS)
"""Suffixes of files that ``read_cloud`` reads."""

_SUBSAMPLE_SEED = 123  # generator seed of the NPBG++ authors: the same n_point gives the same points as their code
_CHUNK = 1 << 20  # bytes


def read_cloud(path: Path, transform: Transform | None = None) -> PointCloud:
    """Reads a cloud. The file name tells the format: ``points3D.bin`` or ``points3D.txt`` (COLMAP), or the suffix.

    Args:
        path: a file of ``CLOUD_SUFFIXES``, or a PLY file of any name.
        transform: applied to the coordinates in double precision; None leaves them.

    Raises:
        InputError: a missing, unreadable or empty file, another format, or coordinates or colours that are not finite.
    """
    if path.name in ("points3D.bin", "points3D.txt"):
        return read_points(path, transform).cloud
    suffix = path.suffix.lower()
    if suffix not in READERS:
        if suffix != ".ply" and path.is_file() and not _is_ply(path):
            raise InputError(
                f"point cloud {path}: expected one of {', '.join(CLOUD_SUFFIXES)}, got {suffix or 'a file without suffix'}; convert it to .ply, for example with "
                "CloudCompare"
            )
        return read_ply(path, transform)
    if not path.exists() and not path.is_symlink():
        raise InputError(f"point cloud {path}: no such file; name a cloud with datasets.pc_name=<file>")
    found = READERS[suffix](path)
    if len(found.xyz) == 0:
        raise InputError(f"point cloud {path}: expected at least one point of three numbers, got none; restore the file")
    xyz = transformed(found.xyz, transform)
    bad = int((~xyz.isfinite()).any(1).sum())
    if bad:
        raise InputError(f"point cloud {path}: {bad} of {len(xyz)} points have coordinates that are not finite; remove them from the file")
    if found.colours is None:
        return PointCloud(xyz)
    if not np.isfinite(found.colours).all():
        raise InputError(f"point cloud {path}: expected colours of 0 to 1 or 0 to 255, got some that are not finite; correct the file")
    return PointCloud(xyz, torch.from_numpy(in_8_bits(found.colours, path)))


def _is_ply(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(6).removeprefix(b"\xef\xbb\xbf").startswith(b"ply")
    except OSError:
        return False


def cloud_checksum(xyz_world: Float[Tensor, "n 3"]) -> str:
    """Checksum of point coordinates in their order, 32 hexadecimal digits: guards point indices against another cloud.

    Computed from the points in use, after subsampling and noise, whatever their file format. Takes 0.5 s for ten million points.
    """
    numbers = xyz_world.detach().cpu().contiguous().numpy().astype("<f4", copy=False)
    return hashlib.blake2b(numbers.data, digest_size=16).hexdigest()


@dataclass(frozen=True)
class CloudFile:
    """A cloud on disk and the changes made when it is read.

    Attributes:
        path: a file for ``read_cloud``.
        n_point: largest number of points: a random subset without replacement, drawn with a fixed seed; None keeps all.
        noise_sigma: standard deviation of Gaussian noise added to the coordinates, scene units; None adds none.
        transform: from the coordinates of the file to those of the scene; None: they are the same.

    Raises:
        InputError: ``n_point`` below 1, or a noise that is negative or not finite.
    """

    path: Path
    n_point: int | None = None
    noise_sigma: float | None = None
    transform: Transform | None = None

    def __post_init__(self) -> None:
        if self.n_point is not None and self.n_point < 1:
            raise InputError(f"datasets.n_point: expected a positive number or null, got {self.n_point}")
        if self.noise_sigma is not None and not 0 <= self.noise_sigma < math.inf:
            raise InputError(f"datasets.noise_sigma: expected 0 or more or null, got {self.noise_sigma}")

    def of_points(self, path: Path, transform: Transform | None) -> "CloudFile":
        """The same changes of another file."""
        return replace(self, path=path, transform=transform)

    def read(self) -> PointCloud:
        """Reads the cloud. Raises InputError as ``read_cloud`` does."""
        cloud = read_cloud(self.path, self.transform)
        if self.n_point is not None and self.n_point < len(cloud):
            generator = torch.Generator().manual_seed(_SUBSAMPLE_SEED)
            keep = torch.randperm(len(cloud), generator=generator)[: self.n_point]
            cloud = PointCloud(cloud.xyz[keep], None if cloud.rgb_u8 is None else cloud.rgb_u8[keep])
        if self.noise_sigma:
            generator = torch.Generator().manual_seed(_SUBSAMPLE_SEED)
            cloud = PointCloud(cloud.xyz + self.noise_sigma * torch.randn(cloud.xyz.shape, generator=generator), cloud.rgb_u8)
        return cloud


@dataclass(frozen=True)
class CloudManifest:
    """How a cloud was made, a JSON file beside it: tells test views that the cloud was made from, whose scores are not those of unseen views.

    Attributes:
        method: name of the method.
        settings: its settings by name.
        scene: name of the scene.
        layout: name of its layout on disk.
        used_views: names of the views that were read, in order.
        held_out_views: names of the others.
        points: number of points.
        cloud: file name of the cloud, without folder.
        sha256: checksum of that file, hexadecimal.
        command: the command line.
        version: of this package.
    """

    method: str
    settings: dict[str, bool | float | int | str | None]
    scene: str
    layout: str
    used_views: tuple[str, ...]
    held_out_views: tuple[str, ...]
    points: int
    cloud: str
    sha256: str
    command: str
    version: str = __version__

    def write(self, cloud_path: Path) -> None:
        """Writes ``manifest_path``. Raises InputError if that is not possible, or would overwrite a file that is no manifest."""
        CloudManifest.read(cloud_path)
        content = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(manifest_path(cloud_path), lambda file: file.write(content.encode("utf-8")))

    @classmethod
    def read(cls, cloud_path: Path) -> "CloudManifest | None":
        """The manifest of a cloud, None if there is none. Raises InputError for a damaged or other file."""
        path = manifest_path(cloud_path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return typed(cls, {field.name: content.get(field.name) for field in fields(cls)}, "manifest")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, AttributeError, InputError) as error:
            raise InputError(
                f"{path}: expected the manifest of a cloud, got a damaged or other file ({error}); restore it, or move it away from {cloud_path.name}"
            ) from error

    def saw(self, views: Iterable[str]) -> tuple[str, ...]:
        """The views among ``views`` that the cloud was made from, in their order."""
        return tuple(view for view in views if view in self.used_views)


def manifest_path(cloud_path: Path) -> Path:
    """The manifest of a cloud: its path with the suffix .json."""
    return cloud_path.with_suffix(".json")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits. Raises InputError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path}: expected the file of a cloud, got {error.strerror or error}; correct the path") from error
    return digest.hexdigest()
