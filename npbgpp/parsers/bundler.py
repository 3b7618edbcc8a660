"""Scenes of Bundler and of programs that export its format: ``bundle.out`` beside the photos, see ``npbgpp.data.pose_files``.

Photos are listed in ``list.txt`` (one per line, the name first), in the order of the cameras; without a list, cameras belong to the photos in natural order.
"""

from pathlib import Path

import numpy as np
import torch

from npbgpp.data import IMAGE_SUFFIXES, BundlerFile, CloudFile, Layout, Lens, Scene, is_bundler, natural
from npbgpp.errors import InputError
from npbgpp.parsers.posed_photos import PosedPhoto, photo_folder, posed_scene

_PLACES = ("bundle.out", "*.out", "bundle/*.out", "bundler/*.out")
_CHECKED = "check"  # folder of the pictures of npbgpp prepare check
_LISTS = ("list.txt", "bundle.list.txt", "list_images.txt", "imagelist.txt", "*list*.txt")


def parse_bundler(root: Path, images_root: Path, name: str, cloud: CloudFile, white_bg: bool = True) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with ``bundle.out``, in ``bundle`` or not, and usually ``list.txt``.
        images_root: folder with the photos, in ``images`` or not; usually the same.
        name: name of the scene.
        cloud: its point cloud.
        white_bg: white where photos are transparent; otherwise keep the stored colours.

    Raises:
        InputError: missing or damaged files, an invalid camera, another number of names than cameras, fewer than two photos.
    """
    path = _file(root)
    if path is None:
        raise InputError(f"{root / 'bundle.out'}: no such file, nor another one of Bundler; restore it, or correct datasets.scene_name")
    file, folder = BundlerFile.read(path), photo_folder(images_root)
    names, source = _names(root, path, folder)
    if len(names) != len(file.lenses):
        raise InputError(f"{path}: expected as many cameras as photos in {source}, {len(names)}, got {len(file.lenses)}; add list.txt")
    photos, unposed = [], []
    for photo, intrinsics, rotation, translation in zip(names, file.lenses, file.rotations, file.translations, strict=True):
        if not intrinsics[0]:
            unposed.append(photo)
            continue
        world_to_cam = np.eye(4)
        world_to_cam[:3, :3], world_to_cam[:3, 3] = rotation, translation
        cam_to_world = np.eye(4)
        cam_to_world[:3, :3], cam_to_world[:3, 3] = rotation.T, -rotation.T @ translation
        focal, k1, k2 = intrinsics.tolist()

        def lens(size: tuple[int, int], parameters: tuple[float, float, float] = (focal, k1, k2)) -> Lens:
            f, *coefficients = parameters
            return Lens("RADIAL", (f, size[1] / 2, size[0] / 2, *coefficients), size)

        photos.append(PosedPhoto(photo, torch.from_numpy(cam_to_world), lens))
    notes = [f"{len(unposed)} of {len(names)} cameras are not registered and are left out"] if unposed else []
    return posed_scene(name, path, folder, photos, cloud, white_bg, path if len(file.xyz) else None, notes)


def _file(root: Path) -> Path | None:
    return next((path for place in _PLACES for path in sorted(root.glob(place)) if is_bundler(path)), None)


def _names(root: Path, path: Path, folder: Path) -> tuple[list[str], Path]:
    """Names of the photos in the order of the cameras, and where they are from."""
    places = dict.fromkeys((path.parent, root))
    found = next((file for pattern in _LISTS for place in places for file in sorted(place.glob(pattern)) if file.is_file()), None)
    if found is None:
        files = [file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")]
        files = [file for file in files if file.relative_to(folder).parts[0] != _CHECKED]
        return sorted((file.relative_to(folder).as_posix() for file in files), key=natural), folder
    try:
        lines = [line.strip() for line in found.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{found}: expected the names of photos, one per line, got an unreadable file ({error}); restore it") from error
    # after the name: 0 and the focal length of EXIF, where it is known
    return [line.split(" 0 ")[0].strip() for line in lines if line], found


LAYOUT = Layout(parse_bundler, (_PLACES,), precedence=7, accepts=lambda folder: _file(folder) is not None)
