"""H3DS heads (Ramon et al., H3D-Net: Few-Shot High-Fidelity 3D Head Reconstruction, 2021): see ``idr.py`` for the files.

Photos are ``image/img_0000.jpg`` and so on, masks ``mask/mask_0000.jpg`` (version 0.1 of the data) or ``.png`` (version 0.2). In version 0.1 the matrices
refer to a world that ``normalization_transform.json`` maps millimetres to; its scale is taken out, so that the world is in millimetres. Version 0.2 has no
such file and needs none.

The views of a scene are the 32 that the data set's authors published for it, in their order; other scenes have all their photos. The lists of their
package h3ds are in ``config.toml``, beside the scenes or in the scene's folder: ``scenes.<scene>.default_views_configs.32`` (version 0.2) or
``views.<scene>.32`` (0.1). Without that file, and for scenes that it does not list, those below hold. Views are named by four digits.

By position among the views, validation has 7, 14, 21, 28 and 5, 10, ..., 30 are held out, as far as a scene has them; every view may train,
``Scene.with_splits`` takes these out.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from npbgpp.data.cloud_file import CloudFile
from npbgpp.data.parsers.idr import IdrFolder
from npbgpp.data.scene import Scene, Stage
from npbgpp.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_VALIDATION = range(7, 29, 7)
_HELD_OUT = range(5, 31, 5)


def parse_h3ds(
    root: Path,
    images_root: Path,
    name: str,
    cloud: CloudFile,
    white_bg: bool = True,
    intrinsics: Literal["authors", "exact"] = "authors",
    views: tuple[int, ...] | None = None,
    published_views: Mapping[str, tuple[int, ...]] | None = None,
) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with ``cameras.npz``.
        images_root: folder with ``image`` and ``mask``, usually the same.
        name: name of the scene; says which views were published for it.
        cloud: its point cloud.
        white_bg: white outside the masks; otherwise the colours are taken as they are.
        intrinsics: authors: the mean over the views for all; exact: those of each view.
        views: numbers of the photos to use instead of the published ones.
        published_views: numbers of the photos that were published for scenes, by name; a ``config.toml`` of the data set says more.

    Raises:
        InputError: missing or damaged files, a view without photo, mask or matrix, pictures of different sizes.
    """
    folder = IdrFolder.read(root, images_root)
    numbers, notes = _published(root, name, folder, (published_views or {}).get(name, ())) if views is None else (views, ())
    if not numbers or len(set(numbers)) != len(numbers):
        raise InputError(f"datasets.views: expected numbers of photos of scene {name}, each once, or null, got {list(numbers)}")
    found = folder.views(numbers, 4, white_bg, intrinsics, _unit(root / "normalization_transform.json"))
    splits: dict[Stage, range] = {"train": range(len(found)), "val": _VALIDATION, "test": _HELD_OUT}
    present = {stage: tuple(i for i in chosen if i < len(found)) for stage, chosen in splits.items()}
    return Scene(name, found, present, cloud, notes=(*folder.notes, *notes))


def _published(root: Path, name: str, folder: IdrFolder, known: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Numbers of the views to use, and what the user should know of them."""
    published, notes = _lists_of_data_set(root, name, known)
    if not published:
        return tuple(folder.images), notes
    present = tuple(number for number in published if number in folder.images)
    if len(present) < len(published):
        # scores on what is left are scores on another split
        notes = (*notes, f"{len(published) - len(present)} of its {len(published)} published views have no photo and are left out")
    if not present:
        raise InputError(
            f"scene {name}: none of its published views {published} has a photo; restore them or choose photos with datasets.views"
        )
    return present, notes


def _lists_of_data_set(root: Path, name: str, known: tuple[int, ...]) -> tuple[list[int], tuple[str, ...]]:
    """The published views of a scene, none when nothing lists it, and what the user should know of the list."""
    published = list(known)
    path = next((path for path in (root / "config.toml", root.parent / "config.toml") if path.is_file()), None)
    if path is None:
        return published, ()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected the configuration of the data set, got an unreadable file ({error}); restore it") from error
    listed = _entry(content, "scenes", name, "default_views_configs", "32")
    if listed is None:
        listed = _entry(content, "views", name, "32")
    if listed is None:
        return published, ()
    if not isinstance(listed, list) or not listed or not all(type(number) is int and number >= 0 for number in listed):
        raise InputError(f"{path}: expected numbers of photos as the 32 views of scene {name}, got {listed!r}; restore the file")
    once = list(dict.fromkeys(listed))
    return once, (f"{path.name} lists views twice, they are used once",) if len(once) < len(listed) else ()


def _entry(content: Any, *keys: str) -> Any:
    """What lies below these keys of nested tables, None where one is missing."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _unit(path: Path) -> float:
    """Length of a millimetre in the world of the matrices, 1 without the file.

    Of the map in the file (a similarity from millimetres) only the scale is used: the length of the first column of its inverse is millimetres per unit.
    """
    if not path.exists():
        return 1.0
    matrix = np.eye(4)
    try:
        for entry in json.loads(path.read_text(encoding="utf-8"))["transform"]:
            matrix[int(entry["row"]), int(entry["column"])] = float(entry["element"])
        millimetres = float(np.linalg.norm(np.linalg.inv(matrix)[:, 0]))
    except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError, np.linalg.LinAlgError) as error:
        raise InputError(
            f"{path}: expected the 4x4 similarity as a list 'transform' of row, column and element, got {error}; restore it"
        ) from error
    if not 1e-9 < millimetres < 1e9:
        raise InputError(f"{path}: expected an invertible similarity of finite numbers, got {matrix.tolist()}; restore the file")
    return 1 / millimetres
