"""Trained scenes in one file: a zip archive with the folder of a run and what of its scene rendering needs. Nothing here imports torch."""

import hashlib
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

from npbgpp.errors import InputError

BUNDLE_SUFFIX = ".zip"
_MARK = ".bundle"  # in the unpacked folder: checksum of the archive
_NAMES = re.compile(r"\.hydra/config\.yaml|checkpoints/last\.ckpt|descriptors/[^/\\]+\.pth|bundled_scenes/[^/\\]+/[^/\\]+\.(json|ply|png)")
BUNDLED_SCENES = "bundled_scenes"
"""Folder of the scenes in an archive; a name that launch folders hardly have, which are searched first."""
_CONFIG = ".hydra/config.yaml"
_LARGEST_RATIO = 300  # of unpacked to packed bytes
_CHUNK = 1 << 20  # bytes


def run_folder(path: Path) -> Path:
    """The folder of a run: ``path`` itself, or for a file of ``npbgpp export weights`` the folder beside it that it is unpacked into.

    Raises:
        InputError: a damaged file, one with other content, or a folder of that name that is of something else.
    """
    if path.suffix != BUNDLE_SUFFIX or not path.is_file():
        return path
    folder, checksum = path.with_suffix(""), _checksum(path)
    if folder.exists():
        mark = folder / _MARK
        if mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == checksum:
            return folder
        raise InputError(f"run={path}: it is unpacked into {folder}, which exists already and is of something else; rename one of them")
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        _unpack(path, temporary)
        (temporary / _MARK).write_text(checksum, encoding="utf-8")
        temporary.rename(folder)
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise InputError(
            f"run={path}: expected a file of npbgpp export weights, got a damaged or other one ({error}); copy it again"
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)
    return folder


def _unpack(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        wrong = [member.filename for member in members if not _NAMES.fullmatch(member.filename) or ".." in member.filename]
        if wrong or _CONFIG not in archive.namelist():
            raise ValueError(f"it holds {wrong[0]}" if wrong else "it has no config of a run")
        if sum(member.file_size for member in members) > _LARGEST_RATIO * path.stat().st_size + (1 << 20):
            raise ValueError("it unpacks into far more bytes than it has")
        for member in members:
            place = folder / member.filename
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, place.open("wb") as target:
                shutil.copyfileobj(source, target)


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
