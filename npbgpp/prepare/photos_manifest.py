"""The manifest of ``npbgpp prepare photos``: what became of each photo, and the change of coordinates, in ``photos.json`` of the scene."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from npbgpp import __version__
from npbgpp.core.config import typed
from npbgpp.core.files import write_atomically
from npbgpp.errors import InputError
from npbgpp.prepare.photo_poses import Similarity

_MANIFEST = "photos.json"


@dataclass(frozen=True)
class ScenePhoto:
    """A photo in the manifest.

    Attributes:
        name: its file below ``images``; None for a file that gave none.
        source: what it was made from.
        registered: whether it has a pose.
        points: number of points that it sees.
        reason: why it has no pose; empty if it has one.
        sharpness: variance of its Laplacian; None for a file that gave no photo.
    """

    name: str | None
    source: str
    registered: bool
    points: int
    reason: str
    sharpness: float | None


@dataclass(frozen=True)
class PhotosManifest:
    """How a scene was made from photos, ``photos.json`` in its folder.

    Attributes:
        source: the photos.
        photos: all of them, also those that were left out.
        points: number of points of the model.
        error_px: mean reprojection error.
        attempts: ways of mapping that were tried: (name, registered photos, seconds).
        from_colmap: change of coordinates from those of the estimated, or of the given, model to those of the scene. Its inverse takes exports back.
        settings: keys of the command.
        seconds: of the stages of the call that finished the scene.
        warnings: what is wrong, and what to do.
        command: the command line.
        version: of this package.
    """

    source: str
    photos: tuple[ScenePhoto, ...]
    points: int
    error_px: float
    attempts: tuple[tuple[str, int, float], ...]
    from_colmap: Similarity
    settings: dict[str, bool | float | int | str | None]
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    command: str
    version: str = __version__

    @property
    def registered(self) -> tuple[ScenePhoto, ...]:
        """Photos with a pose."""
        return tuple(photo for photo in self.photos if photo.registered)

    def write(self, scene: Path) -> None:
        """Writes it into the folder of the scene. Raises InputError if that is not possible."""
        content = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        write_atomically(scene / _MANIFEST, lambda file: file.write(content.encode("utf-8")))

    @classmethod
    def read(cls, scene: Path) -> "PhotosManifest | None":
        """The manifest of a scene, None if there is none. Raises InputError for a damaged or other file."""
        path = scene / _MANIFEST
        try:
            return typed(cls, json.loads(path.read_text(encoding="utf-8")), "manifest")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, InputError) as error:
            raise InputError(
                f"{path}: expected the manifest of prepare photos, got a damaged or other file ({error}); move it away"
            ) from error
