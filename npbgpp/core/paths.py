"""Folders of the installation, and relative paths of a config; neither depends on the working directory of the process."""

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from npbgpp.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]


def project_folder() -> Path:
    """The folder with ``conf`` and ``example``: the root of a checkout, or the package itself when installed from a wheel."""
    return _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent


def conf_folder() -> Path:
    """The folder of the yaml files that runs are composed from. Raises InputError when the installation lacks it."""
    folder = project_folder() / "conf"
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: expected config.yaml and its groups, which come with npbgpp; reinstall the package")
    return folder


def require_writable(folder: Path, key: str) -> None:
    """Creates a folder if it does not exist. Raises InputError that names ``key`` where no file can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))  # on a full disk, an empty file can still be created
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        advice = "free space or choose another one" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "choose another one"
        raise InputError(f"{key}={folder}: expected a writable folder, got {error.strerror or error}; {advice}") from error


@dataclass(frozen=True)
class SearchPaths:
    """Folders to which relative paths of a config refer.

    Attributes:
        launch: folder in which the command was started.
        run: ``hydra.run.dir``; the configs of the original code give data relative to it (``../../data``).
        project: see ``project_folder``; for data that ship with the code. Paths that climb two folders are relative to a run in it.
    """

    launch: Path
    run: Path
    project: Path

    def existing(self, path: str | Path, key: str) -> Path:
        """The first existing ``path`` below the launch, run and project folder, in this order. Raises InputError that lists the candidates."""
        path = Path(path).expanduser()
        shipped = self.project / "experiments" / "run" if path.parts[:2] == ("..", "..") else self.project
        # an absolute path replaces the folder that it is joined to
        candidates = dict.fromkeys((folder / path).resolve() for folder in (self.launch, self.run, shipped))
        for candidate in candidates:
            if candidate.exists():
                return candidate
        places = ", ".join(map(str, candidates))
        raise InputError(
            f"{key}={path}: expected a file or folder that exists, got none at {places}; correct the path or give an absolute one"
        )

    def output(self, path: str | Path) -> Path:
        """Resolves a path to write to: relative to the launch folder, as ``hydra.run.dir`` is."""
        path = Path(path).expanduser()
        return path if path.is_absolute() else (self.launch / path).resolve()
