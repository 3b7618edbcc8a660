"""Scenes of nerfstudio and instant-ngp: one ``transforms.json`` beside its photos, also as exported by Polycam, Record3D and KIRI in this form.

See ``npbgpp.parsers.transforms_file`` for the cameras. Further keys of nerfstudio (Tancik et al., Nerfstudio, SIGGRAPH 2023): ``mask_path`` and
``depth_file_path`` (16 bits, thousandths of a scene unit) of a frame, ``ply_file_path`` (points in the world of the poses), ``train_filenames``,
``val_filenames`` and ``test_filenames``. ``applied_transform`` takes COLMAP's world to that of the poses; it is applied to the points of
``colmap/sparse/0`` where there is no ``ply_file_path``. Views are in natural order of their names.

Splits: the lists of file names, else test views 0, 8, 16, ..., validation views 4, 12, 20, ...
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from npbgpp.data import (
    WHITE,
    CloudFile,
    ColmapModel,
    DepthMap,
    Layout,
    Scene,
    Stage,
    View,
    check_mask_size,
    find_models,
    fitted,
    image_size,
    natural,
    rule_splits,
)
from npbgpp.errors import InputError, listing
from npbgpp.geometry import Transform, cam_to_world_from, far_offset
from npbgpp.parsers.masks import with_alpha
from npbgpp.parsers.transforms_file import TransformsFile, check_names, frame_camera, located, view_name

_FILE = "transforms.json"
_DEPTH_UNIT = 1e-3  # scene units
_FEWEST = 2  # photos


def parse_nerfstudio(root: Path, images_root: Path, name: str, cloud: CloudFile, downscale: float = 1.0, white_bg: bool = True) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with ``transforms.json``.
        images_root: folder that names of photos, masks and depth images are relative to, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        downscale: factor between the size of the cameras and of the views; folders such as ``images_2`` are used if they exist.
        white_bg: white outside the masks and where photos are transparent; otherwise keep the stored colours.

    Raises:
        InputError: a missing or damaged file, an invalid pose or lens, fewer than two photos, a photo or mask of another aspect ratio, duplicate views.
    """
    file = TransformsFile.read(root / _FILE, "restore it, or correct datasets.data_root or datasets.scene_name")
    views: list[View] = []
    names: list[str] = []
    absent: list[str] = []
    unmasked: list[str] = []
    undepthed: list[str] = []
    offset = far_offset(file.centres())
    frames = sorted((natural(file.image(k, images_root).as_posix()), k) for k in range(len(file.frames)))
    for _, k in frames:
        stated = file.frames[k]["file_path"]
        image = _reduced(file.image(k, images_root), images_root, downscale)
        if not image.is_file():
            absent.append(stated)
            continue
        size = image_size(image)
        lens = file.lens(k, image, size)
        camera = frame_camera(cam_to_world_from(offset, file.pose(k)), lens)
        mask = _beside(file, k, "mask_path", images_root, downscale)
        depth = _beside(file, k, "depth_file_path", images_root, 1.0)
        if mask is None:
            unmasked.append(stated)
        else:
            check_mask_size(mask, image)
        if depth is not None and lens.distorts:
            undepthed.append(stated)
            depth = None
        view = View(
            view_name(stated),
            image,
            camera,
            mask=mask,
            lens=lens if lens.distorts else None,
            depth=None if depth is None else DepthMap(depth, replace(camera.resize(image_size(depth))), _DEPTH_UNIT),
        )
        views.append(view if image.parent != file.image(k, images_root).parent else fitted(view, downscale))
        names.append(stated)
    if len(views) < _FEWEST:
        raise InputError(
            f"{file.path}: expected at least {_FEWEST} frames with a photo, got {len(views)} of {len(file.frames)}, missing are {listing(absent)}; restore the "
            "photos, or correct datasets.images_subroot"
        )
    check_names(root, views)
    notes = _notes(absent, unmasked, undepthed, len(file.frames), len(views))
    if unmasked:
        views = [replace(view, mask=None) for view in views]
    elif white_bg:
        views = [replace(view, background=WHITE) for view in views]
    found, alpha_notes = with_alpha(views, white_bg)
    points, transform = _points(file, root)
    return Scene(
        name,
        found,
        _splits(file, names),
        cloud,
        carried_points=points,
        carried_transform=transform,
        notes=(*notes, *alpha_notes),
    ).reduced_by(offset)


def _reduced(path: Path, root: Path, downscale: float) -> Path:
    """``images_2/x.png`` for ``images/x.png`` and a downscale of 2 if that file exists."""
    if downscale == 1 or not path.is_relative_to(root) or len(path.relative_to(root).parts) < 2:
        return path
    first, *rest = path.relative_to(root).parts
    reduced = root.joinpath(f"{first}_{downscale:g}", *rest)
    return reduced if reduced.is_file() else path


def _beside(file: TransformsFile, k: int, key: str, root: Path, downscale: float) -> Path | None:
    """An image of a frame other than its photo, None without. Raises InputError for a value that is no path, or a missing file."""
    value = file.frames[k].get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InputError(f"{file.where(k)}: {key}: expected the path of an image, got {value!r}; correct the file")
    path = _reduced(located(root, value), root, downscale)
    if not path.is_file():
        raise InputError(
            f"{file.where(k)}: {key}: expected an image, got {value}: no such file below {root}; restore it, or remove the key"
        )
    return path


def _notes(absent: list[str], unmasked: list[str], undepthed: list[str], frames: int, views: int) -> tuple[str, ...]:
    notes = []
    if absent:
        notes.append(f"{len(absent)} of {frames} frames have no photo and are left out: {listing(absent)}")
    if unmasked and len(unmasked) < views:
        notes.append(f"{len(unmasked)} of {views} frames have no mask_path: no mask is used")
    if undepthed:
        notes.append(f"the depth images of {len(undepthed)} frames are ignored, as the lens of their photos is distorted")
    return tuple(notes)


def _splits(file: TransformsFile, names: Sequence[str]) -> dict[Stage, tuple[int, ...]]:
    """Those of the file names in the file, if it lists any."""
    stages: tuple[Stage, ...] = ("train", "val", "test")
    listed = {stage: file.content.get(f"{stage}_filenames") for stage in stages}
    if not listed["train"]:
        return rule_splits(len(names), "every:8", "every:8+4")
    plain = {_plain(name): k for k, name in enumerate(names)}
    splits: dict[Stage, tuple[int, ...]] = {}
    for stage, chosen in listed.items():
        if not isinstance(chosen or [], list):
            raise InputError(
                f"{file.path}: {stage}_filenames: expected a list of file paths, got {type(chosen).__name__}; correct the file"
            )
        splits[stage] = tuple(sorted({plain[_plain(str(entry))] for entry in chosen or [] if _plain(str(entry)) in plain}))
    if not splits["train"]:
        raise InputError(
            f"{file.path}: train_filenames: expected file paths of its frames, got {listing(listed['train'])}; correct the file"
        )
    return splits


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _points(file: TransformsFile, root: Path) -> tuple[Path | None, Transform | None]:
    """The file of the points, and what takes them to the world of the poses."""
    named = file.content.get("ply_file_path")
    if named is not None:
        if not isinstance(named, str) or not named:
            raise InputError(f"{file.path}: ply_file_path: expected the path of a point cloud, got {named!r}; correct the file")
        path = root / named.replace("\\", "/")
        if path.is_file():
            return path, None
    applied = file.content.get("applied_transform")
    models = find_models(root)
    if applied is None or not models:
        return None, None
    return ColmapModel.read(models[0][0]).cloud_file(), _applied(applied, f"{file.path}: applied_transform")


def _applied(rows: Any, where: str) -> Transform:
    try:
        matrix = np.asarray(rows, dtype=np.float64)[:3]
    except (TypeError, ValueError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape != (3, 4) or not np.isfinite(matrix).all() or not abs(float(torch.linalg.det(torch.from_numpy(matrix[:, :3])))) > 0:
        raise InputError(
            f"{where}: expected 3 rows of 4 finite numbers, a transformation that can be inverted, got {rows!r}; correct the file"
        )
    a, b, c = (tuple(row) for row in matrix.tolist())
    return (a, b, c)


LAYOUT = Layout(parse_nerfstudio, ((_FILE,),), precedence=85)
