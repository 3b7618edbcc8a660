"""Point cloud files of every format that is read, and the manifest beside a cloud."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from npbgpp import __version__
from npbgpp.core.config import typed
from npbgpp.core.files import DAMAGED_FILE, write_atomically
from npbgpp.data.colmap_model import read_points
from npbgpp.data.pose_files import BundlerFile
from npbgpp.errors import InputError
from npbgpp.geometry import PointCloud, Transform, in_8_bits, read_ply, transformed

# ----------------------------------------------------------------------
# Readers of files that are neither PLY nor COLMAP's: text columns, vertices of .obj, arrays of numpy, PCD of PCL, LAS, and points of Bundler.
#
# Each returns coordinates (n, 3) in double precision, as the file has them, and colours (n, 3) or None. Colours are integers of 8 or 16 bits, or numbers of
# 0..1 or 0..255; ``npbgpp.geometry.in_8_bits`` converts them.


_COMMENTS = ("#", "//")
_TRIPLES = ((3, 6), (6, 9))  # columns of text files that may be colours
_PCD_KINDS = {"F": "f", "I": "i", "U": "u"}
_PCD_HEADER = 1 << 14  # bytes
_MOST_POINTS = 1 << 31
_AXES = ("x", "y", "z")
_COLOUR_NAMES = (("red", "green", "blue"), ("r", "g", "b"))
# names of arrays in .npz files, in the order of preference
_XYZ_NAMES = ("xyz", "points", "positions", "position", "vertices", "coords", "pts", "pos")
_RGB_NAMES = ("rgb", "colors", "colours", "color", "colour", "rgb_u8")


@dataclass(frozen=True)
class RawPoints:
    """Points as a file stores them."""

    xyz: Float64[np.ndarray, "n 3"]
    colours: Shaped[np.ndarray, "n 3"] | None = None


def read_columns(path: Path) -> RawPoints:
    """Reads x, y, z from the first three columns of text, separated by white space or commas; lines that start with # or // are comments.

    Columns 4 to 6 or 7 to 9 of .xyz and .txt are colours if all lines have whole numbers of 0 to 255 in them, or numbers of 0 to 1 that are not normals. Other
    columns, and those of ``.xzy``, are ignored and may hold text.

    Raises:
        InputError: a missing file, columns that are no numbers, or fewer than three columns.
    """
    lines = _text_lines(path)
    if path.suffix.lower() != ".xzy":
        lines = [line.replace(",", " ").replace(";", " ") for line in lines] if lines and re.search("[,;]", lines[0]) else lines
        for first, end in _TRIPLES:
            if lines and len(_words(lines[0])) < end:
                break
            try:
                table = np.loadtxt(lines, usecols=(0, 1, 2, *range(first, end)), ndmin=2) if lines else np.zeros((0, 6))
            except ValueError:
                continue
            if _are_colours(table[:, 3:]):
                return RawPoints(table[:, :3], table[:, 3:])
    return RawPoints(_table(path, lines, 3))


def read_pts(path: Path) -> RawPoints:
    """Reads Leica's .pts: lines of x, y, z; x, y, z, intensity; x, y, z, red, green, blue; or all seven, after a line with their number.

    Raises:
        InputError: as ``read_columns``.
    """
    lines = _text_lines(path)
    if lines and len(_words(lines[0])) == 1:
        lines = lines[1:]
    count = len(_words(lines[0])) if lines else 3
    table = _table(path, lines, min(count, 7) if count != 5 else 3)
    return RawPoints(table[:, :3], table[:, -3:] if table.shape[1] > 5 else None)


def read_obj(path: Path) -> RawPoints:
    """Reads the vertices of an .obj, with colours in columns 4 to 6 where the first vertex has them. Raises InputError as ``read_columns`` does."""
    lines = [line[2:] for line in _text_lines(path) if line.startswith(("v ", "v\t"))]
    coloured = len(lines) > 0 and len(_words(lines[0])) >= 6
    table = _table(path, lines, 6 if coloured else 3)
    return RawPoints(table[:, :3], table[:, 3:] if coloured else None)


def _text_lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return [line for line in map(str.strip, file) if line and not line.startswith(_COMMENTS)]
    except (OSError, ValueError) as error:
        raise _not_numbers(path, error) from error


def _words(line: str) -> list[str]:
    return line.partition("#")[0].split()


def _table(path: Path, lines: list[str], columns: int) -> Float64[np.ndarray, "n m"]:
    try:
        return np.loadtxt(lines, usecols=range(columns), ndmin=2) if lines else np.zeros((0, columns))
    except ValueError as error:
        raise _not_numbers(path, error) from error


def _not_numbers(path: Path, error: Exception) -> InputError:
    return InputError(
        f"point cloud {path}: expected lines of at least three numbers, as many as in the first line, got something else ({error}); restore the file"
    )


def _are_colours(table: Float64[np.ndarray, "n 3"]) -> bool:
    """Whether columns are colours, not normals, which have negative components or unit length, or other measurements, which have fractions."""
    if not len(table) or not np.isfinite(table).all() or table.min() < 0 or table.max() > 255:
        return False
    if table.max() > 1:
        return bool((table == np.floor(table)).all())
    return not np.allclose(np.linalg.norm(table, axis=1), 1, atol=1e-3)


def read_arrays(path: Path) -> RawPoints:
    """Reads an .npy file (n, 3) or (n, 6) with colours, or with fields x, y, z and red, green, blue; or an .npz file with arrays such as ``xyz`` and ``rgb``.

    Raises:
        InputError: a damaged file, pickled objects, or arrays of other shapes and types.
    """
    wanted = f"an array of points (n, 3) or (n, 6), in an .npz file named {', '.join(_XYZ_NAMES[:3])}, ... beside {', '.join(_RGB_NAMES[:2])}, ..."
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            xyz, colours = _split_columns(content)
        else:
            with content:
                names = {name.lower(): name for name in content.files}
                found = next((names[name] for name in _XYZ_NAMES if name in names), content.files[0] if len(content.files) == 1 else None)
                if found is None:
                    raise ValueError(f"arrays {', '.join(content.files[:6]) or 'none'}")
                xyz, colours = _split_columns(content[found])
                colour = next((names[name] for name in _RGB_NAMES if name in names), None)
                colours = colours if colour is None else _numeric(content[colour], (3, 4))[:, :3]
        if colours is not None and len(colours) != len(xyz):
            raise ValueError(f"{len(xyz)} points and {len(colours)} colours")
    except DAMAGED_FILE as error:
        raise InputError(f"point cloud {path}: expected {wanted}, got something else ({error}); save it again with np.save") from error
    return RawPoints(xyz.astype(np.float64), colours)


def _split_columns(array: Any) -> tuple[Shaped[np.ndarray, "n 3"], Shaped[np.ndarray, "n 3"] | None]:
    fields = {name.lower(): name for name in array.dtype.names or ()}
    if fields:
        colours = _named(fields, lambda name: _numeric(array[name][:, None], (1,)))
        return np.concatenate([_numeric(array[fields[axis]][:, None], (1,)) for axis in _AXES], 1), colours
    table = _numeric(array, (3, 4, 6, 7))
    return table[:, :3], table[:, -3:] if table.shape[1] > 5 else None


def _numeric(array: Any, columns: tuple[int, ...]) -> Shaped[np.ndarray, "n m"]:
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] not in columns:
        raise ValueError(f"{array.dtype} of shape {array.shape}")
    return np.asarray(array)


def _named(names: dict[str, str], read: Callable[[str], np.ndarray]) -> Shaped[np.ndarray, "n 3"] | None:
    """The columns of the first names of colours that are all there."""
    group = next((group for group in _COLOUR_NAMES if all(name in names for name in group)), None)
    return None if group is None else np.concatenate([read(names[name]) for name in group], 1)


# ------------------------------------------------------------------ PCD
@dataclass(frozen=True)
class _PcdHeader:
    """Fields by name with their place in a record, the number of points, and how the data are stored."""

    dtype: np.dtype
    points: int
    data: str
    end: int


def read_pcd(path: Path) -> RawPoints:
    """Reads a .pcd file of PCL, version 0.5 or later: ascii, binary or binary_compressed. Points that are not finite, which mark gaps, are left out.

    Colours are the fields ``rgb`` or ``rgba`` (three bytes in one number, which may be called a floating point one), or ``r``, ``g``, ``b``.

    Raises:
        InputError: a damaged or truncated file, or one without x, y, z.
    """
    try:
        content = path.read_bytes()
        header = _pcd_header(content[:_PCD_HEADER])
        table = _pcd_table(header, content[header.end :])
        names = {name.lower(): name for name in header.dtype.names or ()}
        xyz = np.stack([table[names[axis]].astype(np.float64).reshape(len(table), -1)[:, 0] for axis in _AXES], 1)
        packed = next((names[name] for name in ("rgb", "rgba") if name in names), None)
        colours = _unpacked(table[packed]) if packed is not None else _named(names, lambda name: table[name].reshape(len(table), -1)[:, :1])
    except DAMAGED_FILE as error:
        raise InputError(
            f"point cloud {path}: expected a PCD file with x, y, z, got a damaged or other one ({error}); export it again"
        ) from error
    kept = np.isfinite(xyz).all(1)
    return RawPoints(xyz[kept], None if colours is None else colours[kept])


def _pcd_header(head: bytes) -> _PcdHeader:
    entries: dict[str, list[str]] = {}
    place = 0
    while "DATA" not in entries:
        end = head.find(b"\n", place)
        if end < 0:
            raise ValueError("a header without DATA")
        words = head[place:end].decode("latin-1").partition("#")[0].split()
        place = end + 1
        if words:
            entries[words[0].upper()] = words[1:]
    fields, count = entries.get("FIELDS", entries.get("COLUMNS", [])), len(entries.get("FIELDS", entries.get("COLUMNS", [])))
    sizes, kinds = entries.get("SIZE", ["4"] * count), entries.get("TYPE", ["F"] * count)
    counts = entries.get("COUNT", ["1"] * count)
    if not fields or not len(fields) == len(sizes) == len(kinds) == len(counts):
        raise ValueError("FIELDS, SIZE, TYPE and COUNT of different lengths")
    points = int(entries["POINTS"][0]) if entries.get("POINTS") else int(entries["WIDTH"][0]) * int(entries.get("HEIGHT", ["1"])[0])
    if not 0 <= points < _MOST_POINTS:
        raise ValueError(f"{points} points")
    # the same name may occur several times, as "_" for padding
    names = [name if fields.count(name) == 1 and name != "_" else f"_{k}" for k, name in enumerate(fields)]
    formats = []
    for kind, size, number in zip(kinds, sizes, counts, strict=True):
        if not 0 < int(number) < 1 << 16:
            raise ValueError(f"COUNT {number}")
        element = np.dtype(f"<{_PCD_KINDS[kind.upper()]}{int(size)}")
        formats.append((element, (int(number),)) if int(number) > 1 else (element,))
    return _PcdHeader(
        np.dtype([(name, *form) for name, form in zip(names, formats, strict=True)]), points, entries["DATA"][0].lower(), place
    )


def _pcd_table(header: _PcdHeader, data: bytes) -> np.ndarray:
    size = header.points * header.dtype.itemsize
    if header.data == "binary":
        if len(data) < size:
            raise ValueError(f"{len(data)} bytes of {size}")
        return np.frombuffer(data, header.dtype, header.points)
    if header.data == "binary_compressed":
        packed, unpacked = (int.from_bytes(data[k : k + 4], "little") for k in (0, 4))
        if unpacked != size or len(data) < 8 + packed:
            raise ValueError(f"{len(data) - 8} bytes of {packed}, {unpacked} of {size} when unpacked")
        return _by_fields(header, decompress_lzf(data[8 : 8 + packed], unpacked))
    if header.data != "ascii":
        raise ValueError(f"DATA {header.data}")
    lines = [line for line in data.decode("latin-1").splitlines() if line.strip()][: header.points]
    if len(lines) < header.points:
        raise ValueError(f"{len(lines)} lines of {header.points} points")
    table = np.empty(header.points, header.dtype)
    values = np.loadtxt(lines, ndmin=2) if lines else np.zeros((0, 0))
    column = 0
    for name in header.dtype.names or ():
        element, width = header.dtype[name].base, math.prod(header.dtype[name].shape)
        chosen = values[:, column : column + width]
        # three bytes of colours in ascii are one integer, or the floating point number of these bytes
        if name.lower() in ("rgb", "rgba") and element.kind == "f" and (chosen >= 1).any():
            chosen = chosen.astype("<u4").view("<f4")
        table[name] = chosen.reshape(table[name].shape).astype(element)
        column += width
    return table


def _by_fields(header: _PcdHeader, data: bytes) -> np.ndarray:
    """A table from all values of the first field, all of the second, and so on."""
    table, place = np.empty(header.points, header.dtype), 0
    for name in header.dtype.names or ():
        part = header.dtype[name]
        values = np.frombuffer(data, part.base, header.points * math.prod(part.shape), place)
        table[name] = values.reshape(table[name].shape)
        place += values.nbytes
    return table


def _unpacked(packed: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, "n 3"]:
    """Red, green and blue in the lower three bytes of numbers of four bytes."""
    if packed.dtype.itemsize != 4 or packed.ndim != 1:
        raise ValueError(f"colours of type {packed.dtype}")
    bits = np.ascontiguousarray(packed).view("<u4")
    return np.stack([bits >> 16 & 255, bits >> 8 & 255, bits & 255], 1).astype(np.uint8)


def decompress_lzf(data: bytes, size: int) -> bytes:
    """Unpacks bytes of LibLZF (Lehmann): runs of up to 32 literals, and references of up to 264 bytes to one of the last 8192.

    Raises:
        ValueError: damaged data, or data of another size.
    """
    out = bytearray()
    place = 0
    while place < len(data):
        control = data[place]
        place += 1
        if control < 32:
            out += data[place : place + control + 1]
            place += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += data[place]
            place += 1
        start = len(out) - ((control & 31) << 8) - data[place] - 1
        place += 1
        length += 2
        if start < 0 or len(out) + length > size:
            raise ValueError("damaged compressed data")
        distance = len(out) - start
        out += (out[start:] * (length // distance + 1))[:length] if distance < length else out[start : start + length]
    if len(out) != size:
        raise ValueError(f"{len(out)} bytes of {size} when unpacked")
    return bytes(out)


# ------------------------------------------------------------------ LAS, Bundler
def read_las(path: Path) -> RawPoints:
    """Reads a .las or .laz file with laspy, an optional dependency; colours of 8 or 16 bits where the point format has them.

    Raises:
        InputError: laspy is not installed, or a damaged file.
    """
    try:
        import laspy
    except ImportError as error:
        raise InputError(
            f"point cloud {path}: {path.suffix} is read with laspy, which is not installed: pip install 'npbgpp[las]', or convert the cloud to .ply"
        ) from error
    try:
        file = laspy.read(path)
        xyz = np.asarray(file.xyz, dtype=np.float64)
        dimensions = set(file.point_format.dimension_names)
        coloured = {"red", "green", "blue"} <= dimensions
        colours = np.stack([np.asarray(file[name]) for name in ("red", "green", "blue")], 1) if coloured else None
    except (*DAMAGED_FILE, laspy.LaspyException) as error:
        raise InputError(f"point cloud {path}: expected a LAS file, got a damaged or other one ({error}); export it again") from error
    return RawPoints(xyz, colours if colours is not None and colours.any() else None)


def read_bundler_points(path: Path) -> RawPoints:
    """The points of a Bundler file. Raises InputError as ``BundlerFile.read`` does."""
    file = BundlerFile.read(path)
    return RawPoints(file.xyz, file.rgb)


READERS: dict[str, Callable[[Path], RawPoints]] = {
    ".xzy": read_columns,
    ".xyz": read_columns,
    ".txt": read_columns,
    ".pts": read_pts,
    ".obj": read_obj,
    ".npy": read_arrays,
    ".npz": read_arrays,
    ".pcd": read_pcd,
    ".las": read_las,
    ".laz": read_las,
    ".out": read_bundler_points,
}
"""Readers by the suffix of a file, in lower case."""


# ----------------------------------------------------------------------
# The cloud of a scene


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
