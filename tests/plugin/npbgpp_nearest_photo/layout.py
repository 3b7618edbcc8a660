"""Scenes with the ``cameras.json`` that 3D Gaussian Splatting writes beside a model (Kerbl et al., 3D Gaussian Splatting, 2023).

The file is a list with an object per photo: ``img_name``, ``width`` and ``height``, ``fx`` and ``fy`` in pixels, ``position`` of the camera and
``rotation``, camera-to-world acting on columns with axes right, down, forward. The principal point is the centre of the photo. A photo whose size differs
from that in the file is resampled.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from npbgpp.core.config import typed
from npbgpp.data import CloudFile, Layout, Scene, View, fitted, rule_splits
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, rigid_defect

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class _Entry:
    """One camera of the file. Further keys are ignored."""

    img_name: str
    width: int
    height: int
    fx: float
    fy: float
    position: Vector
    rotation: tuple[Vector, Vector, Vector]


def parse_cameras_json(root: Path, images_root: Path, name: str, cloud: CloudFile, image_folder: str = "images") -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with ``cameras.json``.
        images_root: folder with ``image_folder``, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        image_folder: folder of the photos.

    Raises:
        InputError: a missing or unreadable file, a camera that is not usable, a missing photo, two cameras of one photo.
    """
    path = root / "cameras.json"
    views = [_view(entry, images_root / image_folder, f"{path}: [{k}]") for k, entry in enumerate(_read_json(path))]
    names = [view.name for view in views]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(f"{path}: expected one camera per photo, got several of {', '.join(twice[:5])}; remove the others")
    return Scene(name, tuple(views), rule_splits(len(views), "every:8", "every:8+4"), cloud)


def _read_json(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected a JSON file with cameras, got none ({error}); correct datasets.data_root or datasets.scene_name"
        ) from error
    if not isinstance(content, list) or len(content) < 2:
        raise InputError(f"{path}: expected a list of at least 2 cameras, got {type(content).__name__}; restore the file")
    return content


def _view(entry: Any, folder: Path, where: str) -> View:
    names = [field.name for field in fields(_Entry)]
    missing = [key for key in names if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise InputError(f"{where}: expected the keys {', '.join(names)}, got none called {', '.join(missing)}; correct the file")
    known = typed(_Entry, {key: entry[key] for key in names}, where)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = torch.tensor(known.rotation), torch.tensor(known.position)
    defect = rigid_defect(pose.float())
    if defect is not None or min(known.width, known.height, known.fx, known.fy) <= 0:
        raise InputError(
            f"{where}: expected a rigid pose, a size and focal lengths, but {defect or 'one of them is not positive'}; correct the file"
        )
    image = _find_image(folder, known.img_name)
    camera = Cameras.from_opencv(
        torch.linalg.inv(pose).float()[None],
        torch.tensor([[known.fx, known.fy]]),
        torch.tensor([[known.width / 2, known.height / 2]]),
        (known.height, known.width),
    )
    return fitted(View(image.stem, image, camera), 1.0)


def _find_image(folder: Path, name: str) -> Path:
    """The photo of a name, which older versions of 3D Gaussian Splatting write without its suffix."""
    found = [folder / name] if (folder / name).is_file() else sorted(folder.glob(f"{name}.*"))
    if len(found) != 1:
        raise InputError(f"{folder / name}: expected one photo of this name, got {len(found)}; restore it or correct datasets.image_folder")
    return found[0]


LAYOUT = Layout(parse_cameras_json, marks=(("cameras.json",), ("images",)))
