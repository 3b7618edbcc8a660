"""Scenes of the original NPBG (Aliev et al., Neural Point-Based Graphics, 2020): a scene file, its cameras, and photos named by the labels of these.

The original takes the principal point of Metashape's cameras to be the centre, because Metashape's undistorted photos have it there. So do we, except for photos
outside ``images_undistorted`` that no paths file names: they are as they were shot, and theirs is where the calibration says.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from npbgpp.data.cloud_file import CloudFile
from npbgpp.data.images import image_size
from npbgpp.data.parsers.npbg_cameras import SceneFile, Shot, read_shots
from npbgpp.data.parsers.npbg_paths import DatasetPaths, read_yaml
from npbgpp.data.scene import Scene, View
from npbgpp.data.splits import rule_splits
from npbgpp.errors import InputError

_UNDISTORTED = "images_undistorted"
_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".JPG", ".PNG", ".JPEG")
_WHITE = (1.0, 1.0, 1.0)


def scene_folder(paths_file: Path, name: str) -> Path:
    """The folder of the scene file that a paths file names. Raises InputError as ``DatasetPaths.read`` does, naming the known data sets."""
    return DatasetPaths.read(paths_file, name).scene.parent


def parse_npbg(root: Path, images_root: Path, name: str, cloud: CloudFile, paths_file: Path | None = None, white_bg: bool = True) -> Scene:
    """Reads the metadata of one scene.

    Cameras without pose and views without photo are left out. Photos of another size than the viewport are resampled to it.

    Args:
        root: folder of the scene, with ``scene.yaml`` or one other yaml that says ``viewport_size``; not used with a paths file.
        images_root: folder with ``images_undistorted`` or ``images``, usually the same; not used with a paths file.
        name: name of the scene; with a paths file that of the data set.
        cloud: its point cloud.
        paths_file: says where scene file, photos and masks lie.
        white_bg: white outside the masks, and where photos have an alpha channel; otherwise the stored colours are taken as they are.

    Raises:
        InputError: missing or damaged files, matrices that are no camera's, sizes that contradict each other, a label that comes twice, no photo at all.
    """
    paths = None if paths_file is None else DatasetPaths.read(paths_file, name)
    file = SceneFile.read(_scene_yaml(root) if paths is None else paths.scene)
    found = read_shots(file)
    folders = (images_root / _UNDISTORTED, images_root / "images", file.path.parent)
    views: list[View] = []
    absent: list[str] = []
    for shot in found.shots:
        photo = _beside(folders, shot.label) if paths is None else paths.photos.path(shot.label)
        if photo is None or not os.path.isfile(photo):
            absent.append(shot.label)
        else:
            mask = None if paths is None or paths.masks is None else paths.masks.path(shot.label)
            views.append(_view(shot, photo, mask, paths is None and _UNDISTORTED not in photo.parts, white_bg))
    if not views:
        where = ", ".join(map(str, folders)) if paths is None else str(paths.photos.folder)
        raise InputError(
            f"scene {name}: expected photos of the cameras {_some(absent)}, got none in {where}; restore them or correct their names"
        )
    names = [view.name for view in views]
    twice = sorted({n for n in names if names.count(n) > 1 or not n})
    if twice:
        raise InputError(f"{file.path}: expected a label of its own for every camera, got {_some(twice)} for several; rename the photos")
    notes = list(found.notes)
    if found.unposed:
        notes.append(f"{len(found.unposed)} cameras have no pose and are left out: {_some(found.unposed)}")
    if absent:
        notes.append(f"{len(absent)} cameras have no photo and are left out: {_some(absent)}")
    if found.distortion and any(_UNDISTORTED not in view.image.parts for view in views):
        notes.append(f"the photos must be undistorted, the distortion of their lens ({found.distortion}) is not applied")
    points = file.file("pointcloud")
    if points is not None and not os.path.isfile(points):
        notes.append(f"the point cloud {points} that {file.path.name} names is missing")
        points = None
    count = len(views)
    return Scene(
        name,
        tuple(views),
        rule_splits(count, "every:8", "every:8+4"),
        cloud,
        carried_points=points,
        notes=tuple(notes),
    )


def _scene_yaml(root: Path) -> Path:
    usual = root / "scene.yaml"
    if usual.is_file():
        return usual
    found = [path for path in sorted(root.glob("*.yaml")) if "viewport_size" in read_yaml(path)]
    if len(found) != 1:
        got = _some([path.name for path in found]) or "none"
        raise InputError(f"{usual}: no such file; expected it or one other yaml with viewport_size, got {got}: rename the one of the scene")
    return found[0]


def _beside(folders: Sequence[Path], label: str) -> Path | None:
    """The first photo of this label. Labels may name folders below these, and none above."""
    if label.startswith("/") or ".." in Path(label).parts:
        return None
    candidates = (folder / f"{label}{suffix}" for folder in folders for suffix in _SUFFIXES)
    return next((path for path in candidates if os.path.isfile(path)), None)


def _view(shot: Shot, photo: Path, mask: Path | None, as_photographed: bool, white_bg: bool) -> View:
    size = image_size(photo)
    if mask is not None and image_size(mask) != size:
        height, width = image_size(mask)
        raise InputError(f"mask {mask}: expected {size[1]}x{size[0]} pixels as its photo has, got {width}x{height}; resize the mask")
    # names of views name files, so that folders in a label become part of the name
    name = "-".join(part for part in Path(shot.label).parts if part not in ("/", ".."))
    camera = shot.as_photographed() if as_photographed else shot.camera
    return View(name, photo, camera, background=_WHITE if white_bg else None, mask=mask, resized=size != camera.image_size)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")
