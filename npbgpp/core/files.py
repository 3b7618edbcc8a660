"""File input and output: atomic writes, and readers that never execute code from a file."""

import json
import os
import pickle
import re
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from npbgpp.errors import InputError

_MARK = "npbgpp.json"  # name of the metadata inside a torch file, which is a zip archive
_LONGEST_MARK = 1 << 16  # bytes
_LARGEST_PICKLE = 1 << 20  # bytes; calibrations take less than a thousand
_NUMBERS = {"b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"}
_NUMPY_NAMES = {"multiarray": ("_reconstruct", "scalar"), "numpy": ("dtype", "ndarray")}
_MAPPINGS = (".defaultdict", ".AttributeDict")  # ignored types that are mappings
# raised by numpy.load, its header parser, and the pickle and zip readers for damaged files
DAMAGED_FILE = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a temporary file in the same folder, syncs it to disk, and renames it to ``path``.

    Raises:
        InputError: the folder is not writable or the disk is full. An existing file at ``path`` is left unchanged.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "w+b") as file:
            write(file)
        os.chmod(temporary, 0o666 & ~_umask())
        put_in_place(Path(temporary), path)
        temporary = None
    except (OSError, RuntimeError) as error:
        # torch.save masks the error of the disk with a RuntimeError about file positions
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        kept = "the file that was there before is unchanged" if path.exists() else "no file was left behind"
        raise InputError(f"{path}: cannot be written ({reason}); {kept}: free space, or choose a folder that can be written to") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def put_in_place(written: Path, path: Path) -> None:
    """Syncs a file to disk and renames it within its folder. Raises OSError, with the file at ``path`` unchanged."""
    handle = os.open(written, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(written, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Syncs a rename to disk: without it, a power failure may restore the old file."""
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def save_tensors(path: Path, content: Any, mark: Mapping[str, str] | None = None) -> None:
    """Atomic ``torch.save``.

    Args:
        path: the file.
        content: tensors and plain values.
        mark: metadata, stored as an extra member of the zip archive: ignored by ``torch.load``, returned by ``read_mark``.

    Raises:
        InputError: see ``write_atomically``.
    """

    def write(file: IO[bytes]) -> None:
        torch.save(content, file)
        if mark is not None:
            with zipfile.ZipFile(file, "a") as archive:
                root = archive.namelist()[0].split("/")[0]
                archive.writestr(zipfile.ZipInfo(f"{root}/{_MARK}"), json.dumps(mark))  # no date, so that equal content gives equal files

    write_atomically(path, write)


def read_mark(path: Path) -> dict[str, str]:
    """Metadata of a file written by ``save_tensors``; empty if there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info for info in archive.infolist() if info.filename.endswith(f"/{_MARK}") and info.file_size <= _LONGEST_MARK]
            mark = json.loads(archive.read(names[0])) if names else {}
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile):
        return {}
    return {str(key): value for key, value in mark.items() if isinstance(value, str)} if isinstance(mark, dict) else {}


class _Ignored:
    """Replaces an object of an ignored type: accepts any constructor arguments and state, and keeps neither."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _IgnoredMapping:
    """Replaces a type of mappings, whose items are set later: its objects are dictionaries."""

    def __new__(cls, *arguments: Any) -> Any:
        return {}


def load_tensors(path: Path, what: str, ignored: Sequence[str] = ()) -> Any:
    """Reads a torch file with ``weights_only=True``: no code in it is executed.

    Args:
        path: the file.
        what: name of the kind of file, for messages.
        ignored: types of Python objects that may accompany the tensors: full names, or package names with a trailing dot. They are neither imported nor
            constructed; empty objects replace them.

    Raises:
        InputError: a missing, truncated or other file, or one with objects other than tensors, plain values and ignored types.
    """
    if not path.is_file():
        raise InputError(f"{what} {path}: no such file; correct the path")
    foreign: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        replaced = [name for name in foreign if any(name.startswith(i) if i.endswith(".") else name == i for i in ignored)]
        replacements: list[Any] = [(_IgnoredMapping if name.endswith(_MAPPINGS) else _Ignored, name) for name in replaced]
        foreign = [name for name in foreign if name not in replaced]
        with torch.serialization.safe_globals(replacements):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = sorted(foreign) or re.findall(r"GLOBAL ([\w.]+)", str(error))
        reason = ", ".join(named[:3]) if named else _reason(error)
        raise InputError(
            f"{what} {path}: expected tensors and plain values, got a file that is damaged or holds other Python objects ({reason}); files that would run "
            "code are not read: if you trust the file, open it with the program that wrote it and keep its tensors alone with torch.save"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{what} {path}: expected a file written by torch.save, got a damaged or truncated one ({_reason(error)}); copy it again"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error; of torch's, what its reader met, without the advice to switch the safety off."""
    text = str(error)
    if "weights_only" in text:
        found = re.search(r"WeightsUnpickler error: (.+)", text)
        return found[1] if found is not None else "it cannot be read as tensors and plain values"
    return text.splitlines()[0] if text else type(error).__name__


def _check_archive(path: Path) -> None:
    """Compares all members of a torch file with their checksums, which torch does not: flipped bits of tensors are noticed."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def read_number(path: Path, key: str) -> int:
    """A whole number in the mapping of a torch file, without reading its tensors. Raises InputError for damaged files and other content."""
    try:
        with torch.serialization.safe_globals([]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if isinstance(content, dict) and isinstance(content.get(key), int):
            return int(content[key])
        reason = "there is none"
    except DAMAGED_FILE as error:
        reason = _reason(error)
    raise InputError(f"{path}: expected a torch file with a number {key}, got another or a damaged one ({reason}); copy it again")


def read_npy(path: Path) -> np.ndarray:
    """The array in an .npy file; pickled objects are refused. Raises InputError for a missing, damaged or other file."""
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.ndarray):
            raise ValueError("several arrays")
        return content
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; restore it") from None
    except DAMAGED_FILE as error:
        raise InputError(f"{path}: expected one array written by np.save, got a damaged or other file ({error}); copy it again") from error


class _Record:
    """Arguments and state of an object in a pickle. ``__setstate__`` also keeps a pickle from setting attributes of the class."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: tuple[Any, ...] = (None,) * 5

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _RecordUnpickler(pickle.Unpickler):
    """Creates records in place of numpy's arrays, scalars and dtypes; refuses all other names. Nothing named by the file is imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        package = "multiarray" if module in ("numpy.core.multiarray", "numpy._core.multiarray") else module
        if name not in _NUMPY_NAMES.get(package, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return type(name, (_Record,), {})


def _numbers(dtype: Any, data: Any, shape: tuple[int, ...]) -> np.ndarray:
    code = dtype.arguments[0]
    if code not in _NUMBERS:
        raise pickle.UnpicklingError(f"elements of type {code}")
    order = {"<": "<", ">": ">"}.get(dtype.state[1], "")
    return np.frombuffer(data, order + code, prod(shape)).astype(code).reshape(shape)


def _plain(value: Any) -> Any:
    """The number or array that a record stands for; other values unchanged."""
    if not isinstance(value, _Record):
        return value
    if len(value.arguments) == 2:  # scalar(dtype, data)
        return _numbers(*value.arguments, ())[()].item()
    _, shape, dtype, is_fortran, data = value.state
    return _numbers(dtype, data, shape[::-1]).T if is_fortran else _numbers(dtype, data, shape)


def read_pickled_dict(path: Path) -> dict[str, Any]:
    """The dictionary in an .npy file, read without executing code: numpy pickles it as an object array of shape ().

    Returns:
        Numbers, arrays of numbers, strings, None, and lists, tuples and dictionaries of plain values, by key.

    Raises:
        InputError: a missing, damaged or other file, or one that names anything but numpy's arrays, scalars and dtypes.
    """
    wanted = "expected the dictionary that np.save wrote"
    try:
        with open(path, "rb") as file:
            if path.stat().st_size > _LARGEST_PICKLE:
                raise ValueError(f"{path.stat().st_size} bytes are too many")
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if shape != () or not dtype.hasobject:
                raise ValueError(f"an array of shape {shape} and type {dtype}")
            (content,) = _RecordUnpickler(file).load().state[4]
            if not isinstance(content, dict):
                raise ValueError(f"a {type(content).__name__}")
            return {str(key): _plain(value) for key, value in content.items()}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {wanted}: restore it") from None
    except DAMAGED_FILE as error:
        raise InputError(
            f"{path}: {wanted}, with numbers and arrays of numbers, got something else ({error}); pickled objects are refused"
        ) from error
