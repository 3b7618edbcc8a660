"""Reading and writing tensors on disk: never trusted, never half written."""

import json
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from npbgpp.errors import InputError

_MARK = "npbgpp.json"  # name of a mark inside a torch file, which is a zip archive
_LONGEST_MARK = 1 << 16  # bytes


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes through a temporary file in the same folder that replaces ``path`` only when it is complete and on disk.

    Raises:
        InputError: the folder cannot be written or the disk is full. What was at ``path`` before is still there.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch.save turns what the disk says into a RuntimeError about file positions
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        kept = "the file that was there before is unchanged" if path.exists() else "no file was left behind"
        raise InputError(f"{path}: cannot be written ({reason}); {kept}: free space or choose another folder with hydra.run.dir") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    """Brings the new name of a file to the disk as well: without it, a power cut may bring the old file back."""
    if os.name == "nt":  # folders cannot be opened there
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
    """``torch.save`` that leaves either the old file or the new one, never a part.

    ``mark`` is put beside the tensors into the archive that the file is: ``torch.load`` does not see it, ``read_mark`` does.
    """

    def write(file: IO[bytes]) -> None:
        torch.save(content, file)
        if mark is not None:
            with zipfile.ZipFile(file, "a") as archive:
                root = archive.namelist()[0].split("/")[0]
                archive.writestr(zipfile.ZipInfo(f"{root}/{_MARK}"), json.dumps(mark))  # without a date: the same content is the same file

    write_atomically(path, write)


def read_mark(path: Path) -> dict[str, str]:
    """The mark of a file of ``save_tensors``; empty when it has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info for info in archive.infolist() if info.filename.endswith(f"/{_MARK}") and info.file_size <= _LONGEST_MARK]
            mark = json.loads(archive.read(names[0])) if names else {}
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile):
        return {}
    return {str(key): value for key, value in mark.items() if isinstance(value, str)} if isinstance(mark, dict) else {}


class _StandIn:
    """Takes the place of an object that nobody asked for: accepts whatever the object was made of and keeps none of it."""

    def __init__(self, *parts: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _empty_mapping(*parts: Any) -> dict[Any, Any]:
    """What stands in for a mapping that is filled after it was made."""
    return {}


def load_tensors(path: Path, what: str, bystanders: Sequence[str] = ()) -> Any:
    """Reads a torch file without running code from it.

    Args:
        path: the file.
        what: how to call it in messages.
        bystanders: Python objects that may stand beside the tensors: full names, or names of packages with a dot at the end. Neither they nor their
            packages are used: an empty object comes in their place.

    Raises:
        InputError: missing, truncated, not a torch file, or one that holds objects other than tensors, plain values and bystanders.
    """
    if not path.is_file():
        raise InputError(f"{what} {path}: no such file; correct the path")
    foreign: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        ignored = [name for name in foreign if any(name.startswith(b) if b.endswith(".") else name == b for b in bystanders)]
        stand_ins: list[Any] = [(_empty_mapping if name == "collections.defaultdict" else _StandIn, name) for name in ignored]
        foreign = [name for name in foreign if name not in ignored]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = sorted(foreign) or re.findall(r"GLOBAL ([\w.]+)", str(error))
        reason = ", ".join(named[:3]) if named else str(error).splitlines()[0]
        raise InputError(
            f"{what} {path}: expected tensors and plain values, got a file that is damaged or holds other Python objects ({reason}); files that would run "
            "code are not read: where you trust the file, open it with the program that wrote it and keep its tensors alone with torch.save"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{what} {path}: expected a file written by torch.save, got a damaged or truncated one ({reason}); copy it again"
        ) from error
