"""LLFF scenes (Mildenhall et al., Local Light Field Fusion, 2019): photos in ``images``, their cameras in ``poses_bounds.npy``.

Row k of ``poses_bounds.npy`` (N, 17) belongs to the k-th photo in lexicographic order: view10 precedes view9. It holds a 3x5 matrix [R | t | (H, W, f)] in
row-major order, and the nearest and farthest depth. [R | t] is camera-to-world acting on columns, axes down, right, backward; H, W and f are height, width
and focal length of the photo in pixels. Photos that were downscaled since keep their size. The principal point is the image centre; there is no distortion.

Splits: test views 0, 8, 16, ... as in NeRF, validation views 4, 12, 20, ...
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from npbgpp.core.files import read_npy
from npbgpp.data import (
    CloudFile,
    ColmapModel,
    Layout,
    Scene,
    View,
    check_rigid,
    find_models,
    fitted,
    image_size,
    images_folder,
    list_images,
    rule_splits,
)
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, Offset, far_offset
from npbgpp.parsers.masks import with_alpha

_LARGEST_SIDE = 1 << 16  # pixels
_LARGEST_NUMBER = 1e30  # products of larger ones overflow in single precision
_DEFAULT_NEAR = 1.0  # scene units: default of system.near


def parse_llff(root: Path, images_root: Path, name: str, cloud: CloudFile, downscale: float = 1.0, white_bg: bool = True) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with ``poses_bounds.npy`` and optionally a COLMAP model (``sparse/0``) with sparse points.
        images_root: folder with ``images`` (or ``images_8`` for a downscale of 8), usually the same.
        name: name of the scene.
        cloud: its point cloud.
        downscale: factor between the stated and the used size; photos are not enlarged.
        white_bg: white where photos are transparent; otherwise keep the stored colours.

    Raises:
        InputError: missing or damaged files, different numbers of photos and rows, an invalid camera, photos of another aspect ratio than stated.
    """
    photos = _photos(images_folder(images_root, downscale))
    path = root / "poses_bounds.npy"
    rows, offset = without_offset(read_rows(path, len(photos)))
    views, alpha_notes = with_alpha(
        [fitted(row_view(photo, row, f"{path}: row {k}"), downscale) for k, (photo, row) in enumerate(zip(photos, rows, strict=True))],
        white_bg,
    )
    model = _largest_model(root)
    return Scene(
        name,
        views,
        rule_splits(len(views), "every:8", "every:8+4"),
        cloud,
        carried_points=None if model is None else model.cloud_file(),
        notes=(*_bound_notes(rows), *_lens_notes(model), *alpha_notes),
    ).reduced_by(offset)


def _photos(folder: Path) -> list[Path]:
    found = list_images(folder)
    seen: dict[str, Path] = {}
    for path in found:
        if path.name.encode("utf-8", "replace").decode() != path.name:
            raise InputError(f"{folder}: {ascii(path.name)}: expected a name in UTF-8, got other bytes; rename the file")
        twin = seen.setdefault(path.stem, path)
        if twin is not path:
            raise InputError(f"image {path}: expected photos of different names, got {twin.name} too; rename or remove one of them")
    return found


def read_rows(path: Path, count: int) -> Float64[Tensor, "n 17"]:
    """The rows of ``poses_bounds.npy``. Raises InputError for a missing or damaged file, or another number of rows than ``count``."""
    table = read_npy(path)
    if table.dtype.kind != "f" or table.ndim != 2 or table.shape[1] != 17:
        raise InputError(
            f"{path}: expected a row of 17 numbers per photo, shape (N, 17), got {table.dtype} of shape {table.shape}; correct the file"
        )
    if len(table) != count:
        raise InputError(
            f"{path}: expected one row for each of the {count} photos, got {len(table)}; restore what is missing, or remove photos without a row"
        )
    return torch.from_numpy(table.astype(np.float64))


def without_offset(rows: Float64[Tensor, "n 17"]) -> tuple[Float64[Tensor, "n 17"], Offset | None]:
    """Rows whose positions are reduced by an offset, and the offset, see ``npbgpp.geometry.point_cloud``."""
    position = [3, 8, 13]
    offset = far_offset(rows[:, position])
    if offset is not None:
        rows = rows.clone()
        rows[:, position] -= rows.new_tensor(offset)
    return rows, offset


def row_view(photo: Path, row: Float64[Tensor, " 17"], where: str) -> View:
    """The view of a photo at its stated size. Raises InputError for an invalid camera, or another aspect ratio than stated."""
    if not (row.abs() < _LARGEST_NUMBER).all():
        raise InputError(f"{where}: expected finite numbers below {_LARGEST_NUMBER:g}, got {row.tolist()}; correct the file")
    matrix = row[:15].reshape(3, 5)
    down, right, back, centre, (height, width, focal) = matrix.unbind(1)
    if not all(1 <= side <= _LARGEST_SIDE and side == int(side) for side in (height, width)) or focal.float() <= 0:
        raise InputError(
            f"{where}: expected a height and a width in whole pixels and a positive focal length, got {matrix[:, 4].tolist()}; correct the file"
        )
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = torch.stack([right, -down, back, centre], 1)  # axes right, up, backward
    check_rigid(pose, where)
    size = (int(height), int(width))
    _check_shape(photo, size, where)
    focal_length = focal.repeat(1, 2)
    camera = Cameras.from_opengl(pose[None], focal_length, focal_length.new_tensor([[size[1] / 2, size[0] / 2]]), size)
    camera = replace(camera, R=camera.R.float(), T=camera.T.float())
    return View(photo.stem, photo, camera, bounds=(row[15].item(), row[16].item()))


def _check_shape(photo: Path, stated: tuple[int, int], where: str) -> None:
    """Downscaled photos have the stated aspect ratio, up to 1 % or rounding to integers; cropped ones do not."""
    height, width = image_size(photo)
    if abs(width - height * stated[1] / stated[0]) > max(0.01 * width, 1):
        raise InputError(
            f"image {photo}: expected the aspect ratio of {stated[1]}x{stated[0]} pixels, as {where} states, got {width}x{height}; downscale the "
            "original photo without cropping or rotating it"
        )


def _largest_model(root: Path) -> ColmapModel | None:
    models = find_models(root)
    return ColmapModel.read(models[0][0]) if models else None


def _bound_notes(rows: Float64[Tensor, "n 17"]) -> tuple[str, ...]:
    nearest = rows[:, 15].min().item()
    if nearest >= _DEFAULT_NEAR:
        return ()
    if nearest <= 0:
        return (f"poses_bounds.npy states {nearest:.4g} as the nearest depth; choose system.near below the depth of the scene",)
    return (
        f"the nearest depth is {nearest:.4g} scene units, and points nearer than system.near are clipped; choose a smaller one, such as "
        f"system.near={nearest / 2:.2g}",
    )


def _lens_notes(model: ColmapModel | None) -> tuple[str, ...]:
    distorting = [lens for lens in model.lenses.values() if lens.distorts] if model is not None else []
    if not distorting:
        return ()
    parameters = ", ".join(f"{p:.6g}" for p in distorting[0].params)
    return (
        f"the distortion of the photos in the COLMAP model of the scene ({distorting[0].model} {parameters}) is ignored; "
        "datasets=colmap_one_scene removes it",
    )


LAYOUT = Layout(parse_llff, (("poses_bounds.npy",),), precedence=20)
