"""Point clouds as columns of text: NPCR's ``.xzy``, ``.xyz``, ``.txt``, and the vertices of an ``.obj``."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp import __version__
from npbgpp.core.files import write_atomically
from npbgpp.data.colmap_model import read_points
from npbgpp.errors import InputError
from npbgpp.geometry import PointCloud, read_ply

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


# ----------------------------------------------------------------------
# Where the point cloud of a scene lies, what its file may be, and what is done to it: sub-sampling, noise.


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
            cloud = PointCloud(cloud.xyz[keep], None if cloud.rgb_u8 is None else cloud.rgb_u8[keep])
        if self.noise_sigma:
            generator = torch.Generator().manual_seed(_SUBSAMPLE_SEED)
            cloud = PointCloud(cloud.xyz + self.noise_sigma * torch.randn(cloud.xyz.shape, generator=generator), cloud.rgb_u8)
        return cloud


# ----------------------------------------------------------------------
# How a cloud was made: a JSON file beside it, so that photos that tests are made with can be told from those that the cloud has seen.


_LISTS = ("used_views", "held_out_views")
_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class CloudManifest:
    """How a cloud was made.

    Attributes:
        method: name of what made it.
        settings: its settings by name.
        scene: name of the scene.
        layout: name of its layout on disk.
        used_views: names of the views that were opened, in their order.
        held_out_views: names of the views that were not.
        points: number of points.
        cloud: name of the file of the cloud, without folder.
        sha256: of that file, in hexadecimal digits.
        version: of this package.
        command: the command line that made it.
    """

    method: str
    settings: dict[str, float | int | str | None]
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
        """Writes ``<stem of the cloud>.json`` beside the cloud.

        Raises:
            InputError: the file cannot be written, or there is one of that name that is no manifest, which stays as it is.
        """
        CloudManifest.read(cloud_path)  # refuses to replace what is something else
        content = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(manifest_path(cloud_path), lambda file: file.write(content.encode("utf-8")))

    @classmethod
    def read(cls, cloud_path: Path) -> "CloudManifest | None":
        """The manifest of a cloud, None when there is none. Raises InputError when it is damaged or something else."""
        path = manifest_path(cloud_path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: expected how the cloud was made, got an unreadable file ({error}); restore or remove it") from error
        wrong = _defect(content)
        if wrong is not None:
            raise InputError(f"{path}: expected how the cloud was made, but {wrong}; restore it, or move it away from {cloud_path.name}")
        values = {field.name: content[field.name] for field in fields(cls)}
        return cls(**values | {name: tuple(values[name]) for name in _LISTS})

    def saw(self, views: Iterable[str]) -> tuple[str, ...]:
        """Those of some views that the cloud was made from, in their order."""
        used = set(self.used_views)
        return tuple(view for view in views if view in used)

    def describes(self, cloud_path: Path) -> bool:
        """Whether the file of the cloud still is the one that was made. Raises InputError when it cannot be read."""
        return file_sha256(cloud_path) == self.sha256


def manifest_path(cloud_path: Path) -> Path:
    """Where the manifest of a cloud lies."""
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


def _defect(content: Any) -> str | None:
    """What is wrong with the content of a manifest, None when nothing is."""
    if not isinstance(content, dict):
        return f"it holds {type(content).__name__} in place of an object"
    for field in fields(CloudManifest):
        if field.name not in content:
            return f"it has no {field.name}"
        value = content[field.name]
        if field.name in _LISTS:
            right = isinstance(value, list) and all(isinstance(name, str) for name in value)
        elif field.name == "settings":
            right = isinstance(value, dict) and all(v is None or isinstance(v, float | int | str) for v in value.values())
        elif field.name == "points":
            right = isinstance(value, int) and not isinstance(value, bool)
        else:
            right = isinstance(value, str)
        if not right:
            return f"its {field.name} are {value!r}"[:200]
    return None
