"""Where relative paths of a config point to. They never depend on the working directory of the process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npbgpp.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]


def project_folder() -> Path:
    """The folder with ``conf`` and ``example``: the root of a checkout, or the package itself where it was installed from a wheel."""
    return _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent


def conf_folder() -> Path:
    """The folder of the yaml files that runs are composed from. Raises InputError when the installation lacks it."""
    folder = project_folder() / "conf"
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: expected config.yaml and its groups, which come with npbgpp; reinstall the package")
    return folder


@dataclass(frozen=True)
class SearchPaths:
    """Folders that relative paths refer to.

    Attributes:
        launch: where the command was typed.
        run: ``hydra.run.dir``; the original's configs name data relative to it (``../../data``).
        project: see ``project_folder``, for what ships with the code. A path that climbs two folders is taken as relative to a run folder there.
    """

    launch: Path
    run: Path
    project: Path

    def existing(self, path: str | Path, key: str) -> Path:
        """The first of launch, run and project folder below which ``path`` exists. Raises InputError that lists the places looked at."""
        path = Path(path).expanduser()
        below_project = self.project.joinpath(*path.parts[2:]) if path.parts[:2] == ("..", "..") else self.project / path
        tried = [path] if path.is_absolute() else _unique([self.launch / path, self.run / path, below_project])
        for candidate in tried:
            if candidate.exists():
                return candidate.resolve()
        places = ", ".join(str(p.resolve()) for p in tried)
        raise InputError(
            f"{key}={path}: expected a file or folder that exists, looked at {places}; correct the path or give an absolute one"
        )

    def output(self, path: str | Path) -> Path:
        """Where something named by the user is written: relative to the launch folder, as ``hydra.run.dir`` itself is."""
        path = Path(path).expanduser()
        return path if path.is_absolute() else (self.launch / path).resolve()


def _unique(paths: Sequence[Path]) -> list[Path]:
    return list(dict.fromkeys(p.resolve() for p in paths))
