"""Reading and writing tensors on disk: never trusted, never half written."""

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from npbgpp.errors import InputError


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes through a temporary file in the same folder that replaces ``path`` only when it is complete and on disk.

    Raises:
        InputError: the folder cannot be written or the disk is full. What was at ``path`` before is still there.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except (OSError, RuntimeError) as error:
        # torch.save turns what the disk says into a RuntimeError about file positions
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        kept = "the file that was there before is unchanged" if path.exists() else "no file was left behind"
        raise InputError(f"{path}: cannot be written ({reason}); {kept}: free space or choose another folder with hydra.run.dir") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def save_tensors(path: Path, content: Any) -> None:
    """``torch.save`` that leaves either the old file or the new one, never a part."""
    write_atomically(path, lambda file: torch.save(content, file))


def load_tensors(path: Path, what: str) -> Any:
    """Reads a torch file without running code from it.

    Args:
        path: the file.
        what: how to call it in messages.

    Raises:
        InputError: missing, truncated, not a torch file, or one that holds objects other than tensors and plain values.
    """
    if not path.is_file():
        raise InputError(f"{what} {path}: no such file; correct the path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{what} {path}: expected tensors and plain values, got a file that is damaged or holds other Python objects ({reason}); files that would run "
            "code are not read"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{what} {path}: expected a file written by torch.save, got a damaged or truncated one ({reason}); copy it again"
        ) from error
