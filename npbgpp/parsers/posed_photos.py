"""Scenes of programs that write one file of cameras beside the photos: photos are found by name, undistorted when read, and split by rule.

Splits: test views 0, 8, 16, ..., validation views 4, 12, 20, ...
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from jaxtyping import Float64
from torch import Tensor

from npbgpp.data import IMAGE_SUFFIXES, CloudFile, Lens, Scene, View, check_rigid, image_size, natural, rule_splits
from npbgpp.errors import InputError, listing
from npbgpp.geometry import cam_to_world_from, far_offset
from npbgpp.parsers.masks import find_masks, with_alpha, with_mask, without_suffix
from npbgpp.parsers.transforms_file import frame_camera, view_name

_FEWEST = 2  # photos
_FOLDERS = ("images", "photos", "imgs", "input")  # of photos; the folder of the scene where there is none of them


@dataclass(frozen=True)
class PosedPhoto:
    """A photo with its camera.

    Attributes:
        name: of the file, with folders and suffix as far as they are stated.
        cam_to_world: acts on columns, axes right, up, backward.
        lens: the camera model for a photo of this (height, width); raises InputError where there is none.
    """

    name: str
    cam_to_world: Float64[Tensor, "4 4"]
    lens: Callable[[tuple[int, int]], Lens]


def photo_folder(images_root: Path) -> Path:
    """The folder that photos are looked for in, with the folders below it."""
    return next((images_root / name for name in _FOLDERS if (images_root / name).is_dir()), images_root)


def posed_scene(
    name: str,
    file: Path,
    folder: Path,
    photos: Sequence[PosedPhoto],
    cloud: CloudFile,
    white_bg: bool,
    points: Path | None = None,
    notes: Sequence[str] = (),
) -> Scene:
    """The scene of some photos.

    Args:
        name: of the scene.
        file: of the cameras, for messages.
        folder: that has the photos, in folders or not.
        photos: photos with a pose.
        cloud: point cloud of the scene.
        white_bg: white outside the masks, if there are masks, and where photos are transparent; otherwise keep the stored colours.
        points: points of the file.
        notes: remarks.

    Masks lie in ``masks`` beside the folder of the photos, or in it where the photos lie in the folder of the scene.

    Raises:
        InputError: fewer than two photos with a file, several of one name, an invalid pose or lens, a mask of another aspect ratio.
    """
    for photo in photos:
        check_rigid(photo.cam_to_world, f"{file}: {photo.name}")
    files = files_by_last_parts([photo.name for photo in photos], folder, set())
    absent = [photo.name for photo in photos if photo.name not in files]
    if len(photos) - len(absent) < _FEWEST:
        raise InputError(
            f"{file}: expected at least {_FEWEST} cameras with a photo below {folder}, got {len(photos) - len(absent)}, missing are {listing(absent)}; restore the "
            "photos, or correct datasets.images_subroot"
        )
    offset = far_offset(torch.stack([photo.cam_to_world[:3, 3] for photo in photos]))
    views = []
    for photo in sorted((photo for photo in photos if photo.name in files), key=lambda photo: natural(photo.name)):
        path = files[photo.name]
        try:
            lens = photo.lens(image_size(path))
        except InputError as error:
            raise InputError(f"{file}: {photo.name}: {error}") from error
        camera = frame_camera(cam_to_world_from(offset, photo.cam_to_world), lens)
        shown = view_name(path.relative_to(folder).as_posix())
        views.append(View(shown, path, camera, lens=lens if lens.distorts else None))
    twice = sorted(view for view, count in Counter(view.name for view in views).items() if count > 1)
    if twice:
        raise InputError(f"{file}: expected photos whose names differ without suffix, got several of {listing(twice)}; rename the photos")
    relative = [view.image.relative_to(folder).as_posix() for view in views]
    beside = folder if folder == file.parent else folder.parent
    masks, mask_notes = find_masks(beside / "masks", [(name, name) for name in relative], white_bg)
    if masks:
        views = [with_mask(view, mask, white_bg) for view, mask in zip(views, masks, strict=True)]
    left_out = [f"{len(absent)} of {len(photos)} cameras have no photo and are left out: {listing(absent)}"] if absent else []
    found, alpha_notes = with_alpha(views, white_bg)
    splits = rule_splits(len(found), "every:8", "every:8+4")
    return Scene(name, found, splits, cloud, carried_points=points, notes=(*notes, *left_out, *mask_notes, *alpha_notes)).reduced_by(offset)


def files_by_last_parts(names: Sequence[str], folder: Path, taken: set[Path]) -> dict[str, Path]:
    """Files below a folder whose path ends as a name does: images/a.jpg or /data/images/a.jpg is a.jpg; a.jpg is left/a.jpg if no other is.

    Backslashes separate folders, and a suffix of an image may differ or be missing. Of files that fit equally well the one in fewest folders is taken, if there
    is only one. Files in ``taken`` are not used; ambiguous names have none.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path not in taken:
            files.setdefault(without_suffix(path.name), []).append(path)
    found: dict[str, Path] = {}
    for name in names:
        parts = PurePosixPath(without_suffix(name.replace("\\", "/"))).parts
        candidates = files.get(parts[-1], []) if parts else []
        tails = [PurePosixPath(without_suffix(path.relative_to(folder).as_posix())).parts for path in candidates]
        shared = [next((n for n in range(len(parts), 0, -1) if parts[-n:] == tail[-n:]), 0) for tail in tails]
        best = [path for path, n in zip(candidates, shared, strict=True) if n == max(shared)]
        best = [path for path in best if len(path.parts) == min(len(other.parts) for other in best)]
        if len(best) == 1:
            found[name] = best[0]
    claims = Counter(found.values())
    return {name: path for name, path in found.items() if claims[path] == 1}
