"""How a cloud was made: a JSON file beside it, so that photos that tests are made with can be told from those that the cloud has seen."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from npbgpp import __version__
from npbgpp.errors import InputError
from npbgpp.files import write_atomically

_LISTS = ("used_views", "held_out_views")
_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class CloudManifest:
    """How a cloud was made.

    Attributes:
        method: name of what made it.
        settings: its settings by name.
        scene: name of the scene.
        layout: name of its layout on disk.
        used_views: names of the views that were opened, in their order.
        held_out_views: names of the views that were not.
        points: number of points.
        cloud: name of the file of the cloud, without folder.
        sha256: of that file, in hexadecimal digits.
        version: of this package.
        command: the command line that made it.
    """

    method: str
    settings: dict[str, float | int | str | None]
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
        """Writes ``<stem of the cloud>.json`` beside the cloud.

        Raises:
            InputError: the file cannot be written, or there is one of that name that is no manifest, which stays as it is.
        """
        CloudManifest.read(cloud_path)  # refuses to replace what is something else
        content = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(manifest_path(cloud_path), lambda file: file.write(content.encode("utf-8")))

    @classmethod
    def read(cls, cloud_path: Path) -> "CloudManifest | None":
        """The manifest of a cloud, None when there is none. Raises InputError when it is damaged or something else."""
        path = manifest_path(cloud_path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: expected how the cloud was made, got an unreadable file ({error}); restore or remove it") from error
        wrong = _defect(content)
        if wrong is not None:
            raise InputError(f"{path}: expected how the cloud was made, but {wrong}; restore it, or move it away from {cloud_path.name}")
        values = {field.name: content[field.name] for field in fields(cls)}
        return cls(**values | {name: tuple(values[name]) for name in _LISTS})

    def saw(self, views: Iterable[str]) -> tuple[str, ...]:
        """Those of some views that the cloud was made from, in their order."""
        used = set(self.used_views)
        return tuple(view for view in views if view in used)

    def describes(self, cloud_path: Path) -> bool:
        """Whether the file of the cloud still is the one that was made. Raises InputError when it cannot be read."""
        return file_sha256(cloud_path) == self.sha256


def manifest_path(cloud_path: Path) -> Path:
    """Where the manifest of a cloud lies."""
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


def _defect(content: Any) -> str | None:
    """What is wrong with the content of a manifest, None when nothing is."""
    if not isinstance(content, dict):
        return f"it holds {type(content).__name__} in place of an object"
    for field in fields(CloudManifest):
        if field.name not in content:
            return f"it has no {field.name}"
        value = content[field.name]
        if field.name in _LISTS:
            right = isinstance(value, list) and all(isinstance(name, str) for name in value)
        elif field.name == "settings":
            right = isinstance(value, dict) and all(v is None or isinstance(v, float | int | str) for v in value.values())
        elif field.name == "points":
            right = isinstance(value, int) and not isinstance(value, bool)
        else:
            right = isinstance(value, str)
        if not right:
            return f"its {field.name} are {value!r}"[:200]
    return None
