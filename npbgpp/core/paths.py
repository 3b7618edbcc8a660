"""Where relative paths of a config point to. They never depend on the working directory of the process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npbgpp.errors import InputError


@dataclass(frozen=True)
class SearchPaths:
    """Folders that relative paths refer to.

    Attributes:
        launch: where the command was typed.
        run: ``hydra.run.dir``; the original's configs name data relative to it (``../../data``).
        project: the folder of train_net.py, for what ships with the code.
    """

    launch: Path
    run: Path
    project: Path

    def existing(self, path: str | Path, key: str) -> Path:
        """The first of launch, run and project folder below which ``path`` exists. Raises InputError that lists the places looked at."""
        path = Path(path).expanduser()
        tried = [path] if path.is_absolute() else _unique([base / path for base in (self.launch, self.run, self.project)])
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
