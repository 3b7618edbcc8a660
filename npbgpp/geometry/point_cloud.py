"""Point clouds, PLY files, and scenes far from the origin.

A cloud is ``xyz`` (n, 3) in scene units and, when the file has them, colours.
"""

import io
import math
import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped, UInt8
from plyfile import PlyData, PlyElement, PlyHeaderParseError, PlyParseError
from torch import Tensor

from npbgpp.errors import InputError

# rows of a 3x4 matrix that acts on columns (x, y, z, 1)
Row = tuple[float, float, float, float]
Transform = tuple[Row, Row, Row]

_HARMONICS = ("f_dc_0", "f_dc_1", "f_dc_2")
_COLOURS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"), _HARMONICS)
_CONSTANT_HARMONIC = 0.5 / math.sqrt(math.pi)  # spherical harmonic of degree 0
_LARGEST_UNIT = 2.0  # of colours of 0..1
_LONGEST_HEADER = 1 << 16  # bytes


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

    def kept(self, which: Bool[Tensor, " n"]) -> "PointCloud":
        """The points for which ``which`` says so."""
        return PointCloud(self.xyz[which], None if self.rgb_u8 is None else self.rgb_u8[which])


def transformed(xyz: Float[np.ndarray, "n 3"], transform: Transform | None) -> Float[Tensor, "n 3"]:
    """Points in single precision; a transformation is applied in double precision before."""
    if transform is not None:
        matrix = np.array(transform)
        xyz = xyz.astype(np.float64) @ matrix[:, :3].T + matrix[:, 3]
    with np.errstate(over="ignore"):  # coordinates beyond single precision are not finite, which callers refuse
        return torch.from_numpy(np.ascontiguousarray(xyz, dtype=np.float32))


def read_ply(path: Path, transform: Transform | None = None) -> PointCloud:
    """Reads vertices (x, y, z; colours when present) of an ascii or binary PLY file, with comments in any encoding.

    Colours are ``red, green, blue``, ``r, g, b`` or ``diffuse_red, ...``, as integers of 8 or 16 bits, or floating point of 0..1 or 0..255; of Gaussians
    (``f_dc_0`` to ``f_dc_2``, Kerbl et al., 3D Gaussian Splatting, 2023), the colour that is the same from all sides.

    Args:
        path: the file.
        transform: applied to the coordinates; None leaves them.

    Raises:
        InputError: missing file, not a PLY file, truncated, no vertices, coordinates that are not finite, or colours beyond 16 bits.
    """
    advice = "give the name of a PLY cloud inside the scene folder with datasets.pc_name=<file>"
    if not path.is_file():
        raise InputError(f"point cloud {path}: no such file; {advice}")
    try:
        vertex = _parse_ply(path)["vertex"].data
        xyz = np.stack([np.asarray(vertex[axis], dtype=np.float64) for axis in "xyz"], axis=1)
    except (PlyHeaderParseError, PlyParseError, KeyError, ValueError, OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(
            f"point cloud {path}: expected a PLY file with vertex x, y, z, got an unreadable one ({error}); {advice}"
        ) from error
    if len(xyz) == 0:
        raise InputError(f"point cloud {path}: expected at least one point, got none; {advice}")
    points = transformed(xyz, transform)
    bad = int((~points.isfinite()).any(dim=1).sum())
    if bad:
        raise InputError(f"point cloud {path}: {bad} of {len(xyz)} points have coordinates that are not finite; remove them from the file")
    names = {name.lower(): name for name in vertex.dtype.names or ()}
    group = next((group for group in _COLOURS if all(name in names for name in group)), None)
    if group is None:
        return PointCloud(points)
    colours = np.stack([np.asarray(vertex[names[name]]) for name in group], axis=1)
    if group == _HARMONICS:
        colours = np.clip(0.5 + _CONSTANT_HARMONIC * colours, 0, 1)
    return PointCloud(points, torch.from_numpy(in_8_bits(colours, path)))


def _parse_ply(path: Path) -> PlyData:
    """The file without bytes that are no ASCII in its header, and without byte order marks."""
    with path.open("rb") as file:
        head = file.read(_LONGEST_HEADER)
    end = re.search(rb"end_header\r?\n|end_header\r", head)
    if end is None or (head[: end.end()].isascii() and not head[end.end() :].startswith(BOM_UTF8)):
        return PlyData.read(str(path))
    header, data = head[: end.end()].removeprefix(BOM_UTF8), path.read_bytes()[end.end() :]
    if b"format ascii" in header:  # in binary data these bytes may be a number
        data = data.removeprefix(BOM_UTF8)
    return PlyData.read(io.BytesIO(re.sub(rb"[^\x00-\x7f]", b"?", header) + data))


def in_8_bits(colours: Shaped[np.ndarray, "n 3"], path: Path) -> UInt8[np.ndarray, "n 3"]:
    """Colours of 8 or 16 bits, or floating point of 0..1 or 0..255, in 8 bits. Raises InputError, which names ``path``, for integers beyond 16 bits."""
    if colours.dtype.kind == "f":
        colours = np.nan_to_num(colours.astype(np.float64))
        # beyond 1 by rounding or by bright light; a cloud of 0..255 with nothing above 2 is black
        return np.clip(colours * (255 if colours.max() <= _LARGEST_UNIT else 1) + 0.5, 0, 255).astype(np.uint8)
    if colours.dtype.itemsize == 1:
        return colours.view(np.uint8)
    if colours.min() < 0 or colours.max() > 65535:
        raise InputError(f"point cloud {path}: expected colours of 8 or 16 bits, got {colours.min()} to {colours.max()}; correct the file")
    return (np.rint(colours / 257) if colours.max() > 255 else colours).astype(np.uint8)


def write_ply(
    file: Path | IO[bytes],
    cloud: PointCloud,
    offset: tuple[float, float, float] | None = None,
    normals: Float[np.ndarray, "n 3"] | None = None,
) -> None:
    """Writes a binary little-endian PLY file with x, y, z and, when known, nx, ny, nz and red, green, blue.

    Coordinates plus an offset are in double precision.
    """
    fields = [(axis, "<f4" if offset is None else "<f8") for axis in "xyz"]
    if normals is not None:
        fields += [(f"n{axis}", "<f4") for axis in "xyz"]
    if cloud.rgb_u8 is not None:
        fields += [(c, "u1") for c in ("red", "green", "blue")]
    vertex = np.empty(len(cloud), dtype=fields)
    for k, axis in enumerate("xyz"):
        vertex[axis] = cloud.xyz[:, k].cpu().numpy()
        if offset is not None:
            vertex[axis] += offset[k]
    if normals is not None:
        for k, axis in enumerate("xyz"):
            vertex[f"n{axis}"] = normals[:, k]
    if cloud.rgb_u8 is not None:
        for k, colour in enumerate(("red", "green", "blue")):
            vertex[colour] = cloud.rgb_u8[:, k].cpu().numpy()
    if isinstance(file, Path):
        file.parent.mkdir(parents=True, exist_ok=True)
    PlyData([PlyElement.describe(vertex, "vertex")], byte_order="<").write(str(file) if isinstance(file, Path) else file)


# ----------------------------------------------------------------------
# Scenes far from the origin, such as geo-referenced ones: single precision resolves coordinates of millions of metres to half a metre only.
#
# Their coordinates are reduced by an offset in double precision when poses and points are read, and increased by it when files are written.


Offset = tuple[float, float, float]

_FAR = 1e4  # scene units; nearer scenes keep their coordinates
_FAR_RATIO = 100.0  # of the distance from the origin to the extent of the cameras: rounding errors stay below 1/100 pixel


def far_offset(centres: Float[Tensor, "n 3"]) -> Offset | None:
    """The mean position of cameras in whole scene units if they are far from the origin for their extent; None if not.

    None as well for no cameras, and for positions that are not finite.
    """
    positions = centres.double()
    if not len(positions) or not positions.isfinite().all():
        return None
    mean = positions.mean(0)
    extent = (positions - mean).norm(dim=1).max()
    if mean.abs().max() < max(_FAR, _FAR_RATIO * float(extent)):
        return None
    x, y, z = mean.round().tolist()
    return (x, y, z)


def world_to_cam_from(offset: Offset | None, world_to_cam: Float64[Tensor, "*b 4 4"]) -> Float64[Tensor, "*b 4 4"]:
    """World-to-camera matrices (acting on columns) for coordinates that are reduced by an offset."""
    if offset is None:
        return world_to_cam
    moved = world_to_cam.clone()
    moved[..., :3, 3] += (world_to_cam[..., :3, :3] @ world_to_cam.new_tensor(offset)[:, None])[..., 0]
    return moved


def cam_to_world_from(offset: Offset | None, cam_to_world: Float64[Tensor, "*b 4 4"]) -> Float64[Tensor, "*b 4 4"]:
    """Camera-to-world matrices (acting on columns) for coordinates that are reduced by an offset."""
    if offset is None:
        return cam_to_world
    moved = cam_to_world.clone()
    moved[..., :3, 3] -= cam_to_world.new_tensor(offset)
    return moved


def centres_of(world_to_cam: Float64[Tensor, "n 4 4"]) -> Float64[Tensor, "n 3"]:
    """Camera centres of rigid world-to-camera matrices (acting on columns)."""
    return -(world_to_cam[:, :3, :3].transpose(1, 2) @ world_to_cam[:, :3, 3:])[..., 0]


def reduced(transform: Transform | None, offset: Offset | None) -> Transform | None:
    """A transformation of points, followed by the reduction of their coordinates by an offset."""
    if offset is None:
        return transform
    matrix = torch.eye(4, dtype=torch.float64)[:3] if transform is None else torch.tensor(transform, dtype=torch.float64)
    a, b, c = ((*row[:3], row[3] - part) for row, part in zip(matrix.tolist(), offset, strict=True))
    return (a, b, c)
