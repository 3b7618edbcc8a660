"""Poses of the frames of a video by COLMAP (Schoenberger and Frahm, CVPR 2016), from what stands still, and frames and masks without distortion."""

import os
import shutil
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from npbgpp.data import ColmapModel, image_size, read_numbers
from npbgpp.errors import InputError

# of nsff_pl: many weak features, since videos are small and part of them is masked
_PEAK, _EDGE, _FEATURES = 0.004, 16.0, 8192
_FOCAL = 0.95  # first guess, as a share of the longer side
_MATCHES = 132768
_STILL = 0.99  # of a mask that was resampled: where only what stands still was looked up


def mask_of(folder: Path, frame: Path) -> Path | None:
    """The mask of a frame by either rule, COLMAP's ``00000.png.png`` or ``00000.png``; None where there is none."""
    return next((path for path in (folder / f"{frame.name}.png", folder / f"{frame.stem}.png") if path.is_file()), None)


def reconstruct(frames: list[Path], masks: Path | None, out: Path, undistorts: bool) -> None:
    """Finds the poses of frames and writes ``sparse``, a model without distortion, into a folder.

    Args:
        frames: at least three, of one size, in one folder.
        masks: folder with masks, dark where something moves; a frame without one is used as a whole.
        out: an empty folder. With ``undistorts`` it gets ``images`` and, where there are masks, ``masks`` too, and in ``sparse/0`` the model with distortion.
        undistorts: estimate one coefficient of radial distortion; otherwise the frames are taken as those of a pinhole camera.

    Raises:
        InputError: masks that leave nothing of a frame, no reconstruction, or frames that it lacks.
    """
    import pycolmap

    pycolmap.logging.minloglevel = int(pycolmap.logging.Level.ERROR)
    pycolmap.set_random_seed(0)
    work = out / "work"
    still = {} if masks is None else _still_parts(frames, masks)
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_RADIAL" if undistorts else "SIMPLE_PINHOLE"
    reader.default_focal_length_factor = _FOCAL
    if still:
        reader.mask_path = str(
            _written(work / "masks", {f"{frame.name}.png": still[frame.name] for frame in frames if frame.name in still})
        )
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.sift.peak_threshold, extraction.sift.edge_threshold, extraction.sift.max_num_features = _PEAK, _EDGE, _FEATURES
    matching = pycolmap.FeatureMatchingOptions()
    matching.max_num_matches = _MATCHES
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.random_seed = 0
    threads = len(os.sched_getaffinity(0))
    extraction.num_threads = matching.num_threads = mapping.num_threads = threads
    work.mkdir(parents=True, exist_ok=True)
    database, folder, names = work / "database.db", frames[0].parent, [frame.name for frame in frames]
    cpu = pycolmap.Device.cpu
    pycolmap.extract_features(database, folder, names, pycolmap.CameraMode.SINGLE, reader, extraction, cpu)
    pycolmap.match_exhaustive(database, matching, device=cpu)
    (work / "models").mkdir()
    found = pycolmap.incremental_mapping(database, folder, work / "models", mapping)
    if not found:
        raise InputError(
            f"stage poses: {folder}: expected frames that COLMAP can reconstruct, got no model; the camera must move, and enough of the picture must stand "
            "still and have texture: choose other frames or narrower masks, or put poses of your own into sparse or poses_bounds.npy"
        )
    largest = max(found, key=lambda number: found[number].num_reg_images())
    model = work / "models" / str(largest)
    registered = {image.name for image in ColmapModel.read(model).images}
    missing = [name for name in names if name not in registered]
    if missing:
        raise InputError(
            f"stage poses: {folder}: expected poses for all {len(names)} frames, got none for {len(missing)} that COLMAP could not register: "
            f"{', '.join(missing[:20])}; remove them, or draw better masks"
        )
    if not undistorts:
        shutil.move(model, out / "sparse")
    else:
        pycolmap.undistort_images(work / "straight", model, folder)
        shutil.move(work / "straight" / "images", out / "images")
        shutil.move(work / "straight" / "sparse", out / "sparse")
        shutil.copytree(model, out / "sparse" / "0")
        if still:
            whole = np.full(image_size(frames[0]), 255, np.uint8)
            folder = _written(work / "whole", {name: still.get(name, whole) for name in names})
            pycolmap.undistort_images(work / "straight masks", model, folder)
            straight = {f"{name}.png": read_numbers(work / "straight masks" / "images" / name) for name in names}
            _written(out / "masks", {name: np.where(mask >= _STILL, 255, 0).astype(np.uint8) for name, mask in straight.items()})
    shutil.rmtree(work)


def _still_parts(frames: list[Path], folder: Path) -> dict[str, UInt8[np.ndarray, "h w"]]:
    """Masks at the size of the frames, 255 where nothing moves, by the names of the frames."""
    found = {}
    for frame in frames:
        path = mask_of(folder, frame)
        if path is None:
            continue
        height, width = image_size(frame)
        picture = Image.fromarray(np.where(read_numbers(path) >= 0.5, 255, 0).astype(np.uint8))
        mask = np.asarray(picture.resize((width, height), Image.Resampling.NEAREST))
        if not mask.any():
            raise InputError(
                f"stage poses: mask {path}: expected some pixels that stand still (255), got none: no pose can be found; draw it again, or remove it if "
                "0 was meant to stand still"
            )
        found[frame.name] = mask
    return found


def _written(folder: Path, pictures: dict[str, UInt8[np.ndarray, "h w"]]) -> Path:
    """Writes pictures as PNG, whatever their names end in."""
    folder.mkdir(parents=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / name, format="PNG")
    return folder
