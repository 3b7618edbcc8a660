"""Readers of point cloud files that are neither PLY nor COLMAP's: text columns, vertices of .obj, arrays of numpy, PCD of PCL, LAS, and points of Bundler.

Each returns coordinates (n, 3) in double precision, as the file has them, and colours (n, 3) or None. Colours are integers of 8 or 16 bits, or numbers of
0..1 or 0..255; ``npbgpp.geometry.in_8_bits`` converts them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

from npbgpp.core.files import DAMAGED_FILE
from npbgpp.data.bundler_file import BundlerFile
from npbgpp.errors import InputError

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
