"""``npbgpp prepare llff``: writes the cameras of a COLMAP model as ``poses_bounds.npy``, as ``img2poses.py`` of LLFF does.

The bounds of a photo are the 0.1 % and 99.9 % percentiles of the depths of its points (Mildenhall et al., Local Light Field Fusion, 2019, and its code). The
format stores one focal length and no principal point; a warning reports the resulting shift of pixels.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from PIL import Image

from npbgpp.core.files import write_atomically
from npbgpp.data import IMAGE_SUFFIXES, CloudFile, ColmapModel, View, find_models, read_photo, read_points
from npbgpp.errors import InputError, listing
from npbgpp.geometry import Offset, reduced
from npbgpp.io import write_png
from npbgpp.parsers.colmap import parse_colmap, photos_of_model
from npbgpp.prepare.settings import LlffSettings

log = logging.getLogger("npbgpp.prepare")

_PERCENTILES = (0.1, 99.9)
_MAX_SHIFT_PX = 0.5  # of pixels through lost intrinsics, without a warning


def prepare_llff(settings: LlffSettings) -> Path:
    """Writes ``poses_bounds.npy``, and with ``out`` the photos; returns the path of the former.

    Raises:
        InputError: a scene that cannot be read, photos without a point of the model, original photos that the format cannot describe, or existing files.
    """
    folder = settings.scene.expanduser().resolve()
    scene = parse_colmap(folder, folder, folder.name, CloudFile(folder / "mvs_pc.ply"), settings.downscale, white_bg=False)
    for note in scene.notes:
        log.info("%s: %s", folder, note)
    if settings.out is None:
        target, views = folder, sorted(scene.views, key=lambda view: view.image)
        _require_registered_pinhole_photos(folder, views)
    else:
        target, views = settings.out.expanduser().absolute(), sorted(scene.views, key=lambda view: f"{view.name}.png")
    path = target / "poses_bounds.npy"
    if path.exists() and not settings.overwrite:
        raise InputError(f"{path} exists; choose another folder with out=<folder>, or overwrite=true")
    rows = np.stack(
        [
            _pose_row(view, bounds, scene.offset)
            for view, bounds in zip(views, _depth_bounds(folder, views, settings.downscale), strict=True)
        ]
    )
    if settings.out is not None:
        _write_photos(target / "images", views, settings.overwrite)
    write_atomically(path, lambda file: np.save(file, rows))
    _warn_of_lost_intrinsics(views)
    log.info("%d photos, depths %.4g to %.4g: %s", len(views), rows[:, 15].min(), rows[:, 16].max(), path)
    return path


def _require_registered_pinhole_photos(folder: Path, views: list[View]) -> None:
    """Raises InputError unless the images in ``images`` are exactly the views, without distortion."""
    advice = "write undistorted copies of the registered photos with out=<folder>"
    images = {path for path in (folder / "images").iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")}
    unmatched = images ^ {view.image for view in views}
    if unmatched:
        raise InputError(
            f"{folder / 'images'}: expected a pose for each photo there and no photo elsewhere, since poses_bounds.npy numbers the photos; these differ: "
            f"{listing([str(path.relative_to(folder / 'images')) for path in sorted(unmatched)])}; {advice}"
        )
    for view in views:
        if view.lens is not None:
            raise InputError(
                f"{view.image}: expected a pinhole camera, since poses_bounds.npy has no distortion, got {view.lens.model}; {advice}"
            )


def _depth_bounds(folder: Path, views: list[View], downscale: float) -> list[tuple[float, float]]:
    """Bounds of the depths of the points that each photo observes."""
    model = ColmapModel.read(find_models(folder)[0][0])
    file = model.points_file()
    if file is None:
        raise InputError(f"{model.folder}: expected points3D.bin or points3D.txt for the depth bounds, got neither; copy it again")
    points = read_points(file, reduced(None, model.offset))
    order = np.argsort(points.number)
    sorted_ids = points.number[order]
    observed = photos_of_model(folder, downscale, model)
    bounds = []
    for view in views:
        ids = observed[view.image].point
        known = ids[np.isin(ids, sorted_ids)]
        xyz_world = points.cloud.xyz[torch.from_numpy(order[np.searchsorted(sorted_ids, known)])]
        depth = view.camera.view(xyz_world)[0, :, 2].double().numpy()
        depth = depth[depth > 0]
        if not len(depth):
            raise InputError(f"{model.folder}: expected points in photo {view.image.name} for its depth bounds, got none; remove the photo")
        near, far = np.percentile(depth, _PERCENTILES)
        bounds.append((float(near), float(far)))
    return bounds


def _pose_row(view: View, bounds: tuple[float, float], offset: Offset | None) -> Float64[np.ndarray, "17"]:
    """[R | t | (H, W, f)] row by row, axes down, right, backward, then the bounds."""
    right, up, back, centre = view.camera.to_opengl()[0, :3].double().numpy().T
    centre = centre if offset is None else centre + offset
    size = (*view.camera.image_size, view.camera.focal_length.double().mean().item())
    return np.append(np.stack([-up, right, back, centre, np.array(size)], 1).ravel(), bounds)


def _write_photos(folder: Path, views: list[View], overwrite: bool) -> None:
    names = {f"{view.name}.png" for view in views}
    existing = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if existing - names or (existing and not overwrite):
        others = sorted(existing - names) or sorted(existing)
        raise InputError(f"{folder}: expected an empty folder for the photos, got {listing(others)}; choose another with out=<folder>")
    for view in views:
        photo = read_photo(view)
        channels = [photo.image, photo.mask] if view.alpha_is_mask and photo.mask is not None else [photo.image]
        write_png(folder / f"{view.name}.png", Image.fromarray(torch.cat(channels).permute(1, 2, 0).contiguous().numpy()))


def _warn_of_lost_intrinsics(views: list[View]) -> None:
    worst = 0.0
    for view in views:
        height, width = view.camera.image_size
        (fx, fy), (u, v) = view.camera.focal_length[0].tolist(), view.camera.principal_point[0].tolist()
        mean = (fx + fy) / 2
        worst = max(worst, abs(u - width / 2) + abs(fx - mean) / mean * width / 2, abs(v - height / 2) + abs(fy - mean) / mean * height / 2)
    if worst > _MAX_SHIFT_PX:
        log.warning(
            "poses_bounds.npy stores one focal length and a central principal point: pixels shift by up to %.1f; datasets=colmap_one_scene reads the model "
            "itself",
            worst,
        )
