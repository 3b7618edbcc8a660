"""NeRF-Synthetic ("Blender") scenes: ``transforms_{train,val,test}.json`` beside RGBA renderings (Mildenhall et al., NeRF, 2020).

Each json file holds ``camera_angle_x`` (horizontal field of view, radians) and ``frames`` with ``file_path`` (without suffix ``.png`` is appended) and
``transform_matrix``, camera-to-world acting on columns, axes right, up, backward. The principal point is the image centre. Views are ordered train,
validation, test.

Splits: all train frames, every tenth validation frame from the first, all test frames.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from npbgpp.data import WHITE, CloudFile, Layout, Scene, Stage, View, check_rigid, image_size
from npbgpp.errors import InputError, listing
from npbgpp.geometry import Cameras

_FILES: tuple[Stage, ...] = ("train", "val", "test")
_VALIDATION_STEP = 10
_SMALLEST_ANGLE = 1e-6  # radians; smaller ones give focal lengths beyond single precision


def parse_nerf_synthetic(
    root: Path, images_root: Path, name: str, cloud: CloudFile, white_bg: bool = True, compositing: Literal["authors", "exact"] = "authors"
) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with the json files.
        images_root: folder that image names are relative to, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        white_bg: composite on white; otherwise keep the stored colours.
        compositing: "authors" truncates composited colours to 8 bits, "exact" rounds them.

    Raises:
        InputError: a missing or unreadable json file, an invalid pose, a missing image, images of different sizes, duplicate views.
    """
    views: list[View] = []
    splits: dict[Stage, tuple[int, ...]] = {}
    size: tuple[int, int] | None = None
    for stage in _FILES:
        path = root / f"transforms_{stage}.json"
        angle, frames = _read_json(path)
        first = len(views)
        for k, frame in enumerate(frames):
            where = f"{path}: frames[{k}]"
            image = _image_path(images_root, frame, where)
            found = image_size(image)
            if size is None:
                size = found
            if found != size:
                raise InputError(
                    f"image {image}: expected {size[1]}x{size[0]} pixels as the first image of the scene, got {found[1]}x{found[0]}; resize the image"
                )
            views.append(
                View(
                    _view_name(frame["file_path"]),
                    image,
                    _camera(frame, angle, size, where),
                    alpha_is_mask=True,
                    background=WHITE if white_bg else None,
                    truncates=compositing == "authors",
                )
            )
        indices = range(first, len(views))
        splits[stage] = tuple(indices[::_VALIDATION_STEP] if stage == "val" else indices)
    if not splits["train"]:
        raise InputError(f"{root / 'transforms_train.json'}: expected at least one training frame, got none; add frames")
    names = [view.name for view in views]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(f"{root}: expected a different file_path in each frame, got several of {listing(twice)}; correct the files")
    return Scene(name, tuple(views), splits, cloud)


def _read_json(path: Path) -> tuple[float, list[Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; a NeRF-Synthetic scene has transforms_train.json, transforms_val.json and transforms_test.json: restore it, or correct "
            "datasets.data_root or datasets.scene_name"
        ) from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: expected a JSON file, got an unreadable one ({error}); restore it") from error
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise InputError(f"{path}: expected an object with a list 'frames', got {type(content).__name__}; restore the file")
    angle = content.get("camera_angle_x")
    if isinstance(angle, bool) or not isinstance(angle, int | float) or not _SMALLEST_ANGLE < angle < math.pi:
        raise InputError(f"{path}: camera_angle_x: expected an angle in radians between 0 and pi, got {angle!r}; correct the file")
    return float(angle), content["frames"]


def _image_path(root: Path, frame: Any, where: str) -> Path:
    relative = frame.get("file_path") if isinstance(frame, dict) else None
    if not isinstance(relative, str) or not Path(relative).name:
        raise InputError(f"{where}: file_path: expected the path of an image relative to {root}, got {relative!r}")
    path = root / relative
    return path if path.suffix else path.with_name(path.name + ".png")


def _view_name(file_path: str) -> str:
    """Path components joined by '-': ./train/r_0 is train-r_0."""
    parts = Path(file_path).with_suffix("").parts
    return "-".join(part for part in parts if part not in (".", "..", "/"))


def _camera(frame: dict[str, Any], angle: float, size: tuple[int, int], where: str) -> Cameras:
    try:
        matrix = torch.tensor(frame.get("transform_matrix"), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        matrix = torch.zeros(0)
    if matrix.shape != (4, 4):
        raise InputError(f"{where}: transform_matrix: expected 4 rows of 4 numbers, got {frame.get('transform_matrix')!r}")
    check_rigid(matrix, f"{where}: transform_matrix")
    height, width = size
    focal = 0.5 * width / math.tan(0.5 * angle)
    focal_length, centre = torch.tensor([[[focal, focal]], [[width / 2, height / 2]]], dtype=torch.float64)
    camera = Cameras.from_opengl(matrix[None], focal_length, centre, size)
    return replace(camera, R=camera.R.float(), T=camera.T.float())


LAYOUT = Layout(parse_nerf_synthetic, (("transforms_train.json",),), precedence=90)
