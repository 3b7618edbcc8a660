"""A COLMAP reconstruction as an LLFF scene: ``poses_bounds.npy``, for programs that read nothing else (``img2poses.py`` of LLFF does the same).

Bounds of a photo are the distances of the nearest and the farthest point that it shows, without the outermost thousandth at either end (Mildenhall et al.,
Local Light Field Fusion, 2019, and its program). What the format cannot say of a camera is said in words.
"""

import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Float64
from PIL import Image

from npbgpp.core.files import write_atomically
from npbgpp.data import CloudFile, ColmapModel, View, find_models, picture_folder, read_photo, read_points
from npbgpp.errors import InputError
from npbgpp.io import write_png
from npbgpp.parsers.colmap import parse_colmap, some
from npbgpp.parsers.llff import SUFFIXES

log = logging.getLogger("npbgpp.prepare")

_OUTERMOST = 0.1  # percent of the points at either end
_VISIBLE_PX = 0.5  # what a camera may differ from what the format can say without a word


@dataclass(frozen=True)
class LlffSettings:
    """Keys of ``llff``.

    Attributes:
        scene: folder with ``images`` and a COLMAP model.
        out: folder of a scene to write, with undistorted PNG copies of the registered photos; None puts ``poses_bounds.npy`` beside the photos as they are.
        downscale: copies are reduced by this factor.
        overwrite: replace files of an earlier call.
    """

    scene: Path
    out: Path | None = None
    downscale: float = 1.0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.downscale < float("inf"):
            raise InputError(f"downscale: expected 1 or more, got {self.downscale:g}")
        if self.out is None and self.downscale != 1:
            raise InputError("downscale: the photos stay as they are unless copies are made; name a folder for these with out=<folder>")


def prepare_llff(settings: LlffSettings) -> Path:
    """Writes the file of poses, and with ``out`` the photos; returns the path of the former.

    Raises:
        InputError: a scene that cannot be read, photos that show no point of the model, photos that the format cannot describe as they are, or files that
            are there already.
    """
    folder = settings.scene.expanduser().resolve()
    scene = parse_colmap(folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), settings.downscale, white_bg=False)
    for note in scene.notes:
        log.info("%s: %s", folder, note)
    if settings.out is None:
        target, views = folder, sorted(scene.views, key=lambda view: view.image)
        _require_as_they_are(folder, views)
    else:
        target, views = settings.out.expanduser().absolute(), sorted(scene.views, key=lambda view: f"{view.name}.png")
    path = target / "poses_bounds.npy"
    if path.exists() and not settings.overwrite:
        raise InputError(f"{path} is there already; choose another folder with out=<folder>, or overwrite=true")
    rows = np.stack([_row(view, bounds) for view, bounds in zip(views, _bounds(folder, views), strict=True)])
    if settings.out is not None:
        _copy(target / "images", views, settings.overwrite)
    write_atomically(path, lambda file: np.save(file, rows))
    _say_what_is_lost(views)
    log.info("%d photos, what they show is %.4g to %.4g from them: %s", len(views), rows[:, 15].min(), rows[:, 16].max(), path)
    return path


def _require_as_they_are(folder: Path, views: list[View]) -> None:
    """Raises InputError unless the pictures in ``images`` are the views, without distortion."""
    copies = "write copies of those that can be used, without distortion, with out=<folder>"
    pictures = {path for path in (folder / "images").iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")}
    others = pictures ^ {view.image for view in views}
    if others:
        raise InputError(
            f"{folder / 'images'}: expected a pose for each photo there and no photo elsewhere, since poses_bounds.npy counts the photos; these differ: "
            f"{some([str(path.relative_to(folder / 'images')) for path in sorted(others)])}; {copies}"
        )
    distorted = [view for view in views if view.lens is not None]
    if distorted:
        assert distorted[0].lens is not None
        raise InputError(
            f"{distorted[0].image}: its lens distorts ({distorted[0].lens.model}), which poses_bounds.npy cannot say; {copies}"
        )


def _bounds(folder: Path, views: list[View]) -> list[tuple[float, float]]:
    """Nearest and farthest depth of the points that each photo shows."""
    model = ColmapModel.read(find_models(folder)[0][0])
    file = model.points_file()
    if file is None:
        raise InputError(
            f"{model.folder}: expected points3D.bin or points3D.txt, which say how far away things are, got neither; copy it again"
        )
    points = read_points(file)
    order = np.argsort(points.number)
    sorted_numbers = points.number[order]
    photos = picture_folder(folder, 1.0)
    shown_by = {PurePosixPath(image.name).with_suffix(""): image.point for image in model.images}
    bounds = []
    for view in views:
        shown = shown_by[PurePosixPath(view.image.relative_to(photos).as_posix()).with_suffix("")]
        known = shown[np.isin(shown, sorted_numbers)]
        xyz_world = points.cloud.xyz[torch.from_numpy(order[np.searchsorted(sorted_numbers, known)])]
        depth = view.camera.view(xyz_world)[0, :, 2].double().numpy()
        depth = depth[depth > 0]
        if not len(depth):
            raise InputError(f"{model.folder}: photo {view.image.name} shows none of its points, so that its bounds are unknown; remove it")
        near, far = np.percentile(depth, (_OUTERMOST, 100 - _OUTERMOST))
        bounds.append((float(near), float(far)))
    return bounds


def _row(view: View, bounds: tuple[float, float]) -> Float64[np.ndarray, "17"]:
    """[R | t | (H, W, f)] row by row, axes down, right, backward, and the bounds."""
    right, up, back, centre = view.camera.to_opengl()[0, :3].double().numpy().T
    size = (*view.camera.image_size, view.camera.focal_length.double().mean().item())
    return np.append(np.stack([-up, right, back, centre, np.array(size)], 1).ravel(), bounds)


def _copy(folder: Path, views: list[View], overwrite: bool) -> None:
    names = {f"{view.name}.png" for view in views}
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there - names or (there and not overwrite):
        kept = sorted(there - names) or sorted(there)
        raise InputError(f"{folder}: expected an empty folder for the photos, got {some(kept)}; choose another with out=<folder>")
    for view in views:
        write_png(folder / f"{view.name}.png", Image.fromarray(read_photo(view).image.permute(1, 2, 0).contiguous().numpy()))


def _say_what_is_lost(views: list[View]) -> None:
    """The format has one focal length and the principal point in the middle."""
    worst = 0.0
    for view in views:
        height, width = view.camera.image_size
        (fx, fy), (u, v) = view.camera.focal_length[0].tolist(), view.camera.principal_point[0].tolist()
        mean = (fx + fy) / 2
        worst = max(worst, abs(u - width / 2) + abs(fx - mean) / mean * width / 2, abs(v - height / 2) + abs(fy - mean) / mean * height / 2)
    if worst > _VISIBLE_PX:
        log.warning(
            "poses_bounds.npy has one focal length, and the principal point in the middle: that moves pixels by up to %.1f; datasets=colmap_one_scene reads "
            "the model as it is",
            worst,
        )
