"""LLFF scenes (Mildenhall et al., Local Light Field Fusion, 2019): photos in ``images`` and their cameras in ``poses_bounds.npy``.

Row k of ``poses_bounds.npy`` (N, 17) belongs to the k-th photo, by the characters of the names: view10 comes before view9. It holds a 3x5 matrix
[R | t | (H, W, f)], row by row, then the distances of the nearest and the farthest point. [R | t] is camera-to-world acting on columns, axes down, right,
backward; H, W and f are the height, the width and the focal length of the photo in pixels. Photos that were reduced since then keep their own size, the
focal length follows. The principal point is the centre of the photo. Lenses without distortion are all that the file can express.

Every 8th view from 0 is a test view, as NeRF has it, and every 8th from 4 validates; every view may train, ``Scene.with_splits`` takes these out.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from npbgpp.core.safe_pickle import DAMAGED_FILE
from npbgpp.data import CloudFile, ColmapModel, Layout, Scene, View, find_models, fitted, image_size, picture_folder, rule_splits
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, rigid_defect

SUFFIXES = (".png", ".jpg", ".jpeg")
_LARGEST_SIDE = 1 << 16  # pixels
_LARGEST_NUMBER = 1e30  # products of larger ones are not finite in single precision
_USUAL_NEAR = 1.0  # scene units: what systems have before system.near is set


def parse_llff(root: Path, images_root: Path, name: str, cloud: CloudFile, downscale: float = 1.0) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with ``poses_bounds.npy`` and possibly a COLMAP model (``sparse/0``), whose points are carried along.
        images_root: folder with ``images`` (or ``images_8`` for a downscale of 8), usually the same.
        name: name of the scene.
        cloud: its point cloud.
        downscale: photos are used at one part in so many of the stated height and width, but never beyond their own size.

    Raises:
        InputError: missing or damaged files, other numbers of photos and rows, rows that are no camera's, photos of another shape than stated.
    """
    photos = _photos(picture_folder(images_root, downscale))
    path = root / "poses_bounds.npy"
    rows = read_rows(path, len(photos))
    views = tuple(
        fitted(row_view(photo, row, f"{path}: row {k}"), downscale) for k, (photo, row) in enumerate(zip(photos, rows, strict=True))
    )
    model = _largest_model(root)
    return Scene(
        name,
        views,
        rule_splits(len(views), "every:8", "every:8+4"),
        cloud,
        carried_points=None if model is None else model.points_file(),
        notes=(*_bound_notes(rows), *_lens_notes(model)),
    )


def _photos(folder: Path) -> list[Path]:
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    except OSError as error:
        raise InputError(
            f"{folder}: expected the folder of the photos, got none ({error.strerror}); restore it, or take images_<n> beside it with "
            "datasets.downscale=<n>"
        ) from error
    if not found:
        raise InputError(f"{folder}: expected pictures ({', '.join(SUFFIXES)}), got none; restore them")
    seen: dict[str, Path] = {}
    for path in found:
        if path.name.encode("utf-8", "replace").decode() != path.name:
            raise InputError(f"{folder}: {ascii(path.name)}: expected a name in UTF-8, got other bytes; rename the photo")
        twin = seen.setdefault(path.stem, path)
        if twin is not path:
            raise InputError(f"image {path}: expected a name of its own for each photo, got {twin.name} too; rename or remove one of them")
    return found


def read_rows(path: Path, count: int) -> Float64[Tensor, "n 17"]:
    """The rows of ``poses_bounds.npy``. Raises InputError when it is missing or damaged, or has no row for each of ``count`` photos."""
    try:
        table = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the scene needs the cameras of its photos: restore it") from None
    except DAMAGED_FILE as error:
        raise InputError(f"{path}: expected numbers written by np.save, got a damaged or other file ({error}); copy it again") from error
    if not isinstance(table, np.ndarray) or table.dtype.kind != "f" or table.ndim != 2 or table.shape[1] != 17:
        found = f"{table.dtype} of shape {table.shape}" if isinstance(table, np.ndarray) else "several arrays"
        raise InputError(f"{path}: expected a row of 17 numbers per photo, shape (N, 17), got {found}; correct the file")
    if len(table) != count:
        raise InputError(
            f"{path}: expected one row for each of the {count} photos, got {len(table)}; restore what is missing, or remove photos without row"
        )
    return torch.from_numpy(table.astype(np.float64))


def row_view(photo: Path, row: Float64[Tensor, " 17"], where: str) -> View:
    """The view of a photo at the size that its row states. Raises InputError for a row that is no camera's, and for photos of another shape."""
    if not (row.abs() < _LARGEST_NUMBER).all():
        raise InputError(f"{where}: expected finite numbers of usual size, got {row.tolist()}; correct the file")
    matrix = row[:15].reshape(3, 5)
    down, right, back, centre, (height, width, focal) = matrix.unbind(1)
    if not all(1 <= side <= _LARGEST_SIDE and side == int(side) for side in (height, width)) or focal.float() <= 0:
        raise InputError(
            f"{where}: expected a height and a width in whole pixels and a positive focal length, got {matrix[:, 4].tolist()}; correct the file"
        )
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = torch.stack([right, -down, back, centre], 1)  # axes right, up, backward
    defect = rigid_defect(pose)
    if defect is not None:
        raise InputError(f"{where}: expected a rigid camera-to-world pose, but {defect}; correct the file")
    size = (int(height), int(width))
    _check_shape(photo, size, where)
    focal_length = focal.repeat(1, 2)
    camera = Cameras.from_opengl(pose[None], focal_length, focal_length.new_tensor([[size[1] / 2, size[0] / 2]]), size)
    camera = replace(camera, R=camera.R.float(), T=camera.T.float())
    return View(photo.stem, photo, camera, bounds=(row[15].item(), row[16].item()))


def _check_shape(photo: Path, stated: tuple[int, int], where: str) -> None:
    """A photo may be reduced, not cut: width to height is as stated, up to one part in a hundred or the rounding to whole pixels."""
    height, width = image_size(photo)
    if abs(width - height * stated[1] / stated[0]) > max(0.01 * width, 1):
        raise InputError(
            f"image {photo}: expected the shape of {stated[1]}x{stated[0]} pixels, as {where} states, got {width}x{height}; reduce the original "
            "photo without cutting or turning it"
        )


def _largest_model(root: Path) -> ColmapModel | None:
    models = find_models(root)
    return ColmapModel.read(models[0][0]) if models else None


def _bound_notes(rows: Float64[Tensor, "n 17"]) -> tuple[str, ...]:
    nearest = rows[:, 15].min().item()
    if nearest >= _USUAL_NEAR:
        return ()
    if nearest <= 0:
        return (
            f"poses_bounds.npy states {nearest:.4g} as the distance of the nearest point; choose system.near below what the cameras see",
        )
    return (
        f"the nearest point is {nearest:.4g} scene units from its camera, and points nearer than system.near are not drawn; choose it below, such as "
        f"system.near={nearest / 2:.2g}",
    )


def _lens_notes(model: ColmapModel | None) -> tuple[str, ...]:
    distorting = [lens for lens in model.lenses.values() if lens.distorts] if model is not None else []
    if not distorting:
        return ()
    parameters = ", ".join(f"{p:.6g}" for p in distorting[0].params)
    return (
        f"the photos are used as they are, although the lens of the COLMAP model beside them distorts ({distorting[0].model} {parameters}); "
        "datasets=colmap_one_scene takes the distortion out",
    )


LAYOUT = Layout(parse_llff, (("poses_bounds.npy",),), precedence=20)
