"""The folder of a run as one process owns it: its lock, and what an earlier run left in it. Nothing here imports torch."""

import json
import os
import platform
import shutil
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None  # type: ignore[assignment]

from npbgpp.errors import InputError

_LOCK = ".lock"
# what a training writes; films, exports and refined runs of other commands stay
_WRITTEN = ("checkpoints", "descriptors", "rendered", "train_images", "tb_logs", "csv_logs", "metrics.json", "report.png")
_AT_START = (
    _LOCK,
    "train_net.log",
    *(f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")),
)  # what a run writes before it reads anything
_held: list[int] = []  # file handles of locks, which last as long as the process


def is_first_process() -> bool:
    """Whether this is the first process of a run, by what torchrun, SLURM and Lightning tell processes before they know each other."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def lock_run_folder(folder: Path, key: str) -> None:
    """Takes the lock of a folder until this process ends, however it ends: the system releases locks of dead processes.

    Args:
        folder: it exists.
        key: config key that names it, for messages.

    Raises:
        InputError: another process that lives holds it, on this machine or, where the file system has locks for several, on another one.
    """
    if fcntl is None:
        return
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, whose locks live on in data loader processes
    except (BlockingIOError, PermissionError):
        owner = os.pread(handle, 1000, 0).decode(errors="replace")
        os.close(handle)
        raise InputError(
            f"{key}={folder}: another run is writing there ({_described(owner)}); wait for its end, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({"host": platform.node(), "process": os.getpid(), "since": now}).encode(), 0)
    _held.append(handle)


def _described(owner: str) -> str:
    try:
        found = json.loads(owner)
        return f"process {found['process']} on {found['host']}, since {found['since']}"
    except (ValueError, LookupError, TypeError):
        return "its lock does not say which"


def checkpoints_in(folder: Path) -> list[str]:
    """Names of the checkpoints that a training left in a folder."""
    return sorted(path.name for path in (folder / "checkpoints").glob("*.ckpt"))


def require_no_run(folder: Path, key: str) -> None:
    """Raises InputError if a folder holds a training, which another one would overwrite in part."""
    found = checkpoints_in(folder)
    if found:
        raise InputError(
            f"{key}={folder}: holds a training already, with {len(found)} checkpoints ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''}), which this one "
            "would overwrite; go on with it by resume=auto, choose another folder, or remove its checkpoints, descriptors, pictures and scores with overwrite=true"
        )


def require_no_training(folder: Path, key: str) -> None:
    """Raises InputError if a folder holds a training, whose config, logs and scores an evaluation would overwrite."""
    if checkpoints_in(folder):
        raise InputError(
            f"{key}={folder}: holds a training, whose config, logs and scores this evaluation would overwrite; choose another folder, such as {key}={folder}_test"
        )


def remove_run(folder: Path, key: str, used: Iterable[Path]) -> None:
    """Removes what a training left in a folder.

    Args:
        folder: of the run.
        key: config key that names it, for messages.
        used: files and folders that the new run reads.

    Raises:
        InputError: one of them would be removed.
    """
    for path in used:  # of the folder of a run, its last checkpoint
        if path.resolve() == folder.resolve() or any(
            (folder / name).resolve() in (path.resolve(), *path.resolve().parents) for name in _WRITTEN
        ):
            raise InputError(f"overwrite=true: {path} lies in {key}={folder}, whose run would be removed; choose another folder")
    for name in _WRITTEN:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def missing_folders(folder: Path) -> list[Path]:
    """A folder and those that it lies in, as far as they do not exist; the innermost first."""
    return [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]


def remove_unused(created: Sequence[Path]) -> None:
    """Removes the folder of a run that did nothing: one with the files of its start alone.

    Args:
        created: it and those that it lies in which this process made, the innermost first; nothing else is removed.
    """
    if not created or not created[0].is_dir():
        return
    files = [path for path in created[0].rglob("*") if not path.is_dir()]
    if any(path.relative_to(created[0]).as_posix() not in _AT_START for path in files):
        return
    for path in files:
        path.unlink()
    for folder in (created[0] / ".hydra", *created):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def remove_parts(folder: Path) -> None:
    """Removes unfinished files of a process that was killed while it wrote. The folder must be locked."""
    unfinished = [*folder.glob(".*.part*")]
    for name in ("checkpoints", "descriptors", "rendered", "train_images"):
        unfinished += (folder / name).rglob(".*.part*")
    for path in unfinished:
        if path.is_file():
            path.unlink(missing_ok=True)
