"""Camera poses of the frames of a video with COLMAP (Schoenberger and Frahm, CVPR 2016), from their static regions."""

import os
import shutil
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from npbgpp.data import ColmapModel, image_size, read_mask, read_numbers
from npbgpp.errors import InputError

# of nsff_pl: many weak features, since videos are small and partly masked
_PEAK_THRESHOLD, _EDGE_THRESHOLD, _MAX_FEATURES = 0.004, 16.0, 8192
_FOCAL = 0.95  # initial focal length, of the longer side
_MAX_MATCHES = 132768
_STATIC = 0.99  # of an undistorted mask: only static pixels contributed


def find_mask(folder: Path, frame: Path) -> Path | None:
    """The mask of a frame: ``00000.png.png``, as COLMAP names it, or ``00000.png``; None if there is neither."""
    return next((path for path in (folder / f"{frame.name}.png", folder / f"{frame.stem}.png") if path.is_file()), None)


def reconstruct(frames: list[Path], masks: Path | None, out: Path, undistort: bool) -> None:
    """Estimates the poses of frames and writes an undistorted model to ``sparse`` below ``out``.

    Args:
        frames: at least three, of one size, in one folder.
        masks: folder with masks, dark on moving objects; frames without a mask are used as a whole.
        out: an empty folder. With ``undistort``, also gets ``images``, ``masks`` if there are any, and the distorted model in ``sparse/0``.
        undistort: estimate one coefficient of radial distortion; otherwise frames are assumed to be pinhole images.

    Raises:
        InputError: an empty mask, no reconstruction, or frames that are not registered.
    """
    import pycolmap

    pycolmap.logging.minloglevel = int(pycolmap.logging.Level.ERROR)
    pycolmap.set_random_seed(0)
    work = out / "work"
    static = {} if masks is None else _static_masks(frames, masks)
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_RADIAL" if undistort else "SIMPLE_PINHOLE"
    reader.default_focal_length_factor = _FOCAL
    if static:
        reader.mask_path = str(_write_masks(work / "masks", {f"{name}.png": mask for name, mask in static.items()}))
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.sift.peak_threshold, extraction.sift.edge_threshold = _PEAK_THRESHOLD, _EDGE_THRESHOLD
    extraction.sift.max_num_features = _MAX_FEATURES
    matching = pycolmap.FeatureMatchingOptions()
    matching.max_num_matches = _MAX_MATCHES
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.random_seed = 0
    extraction.num_threads = matching.num_threads = mapping.num_threads = len(os.sched_getaffinity(0))
    work.mkdir(parents=True, exist_ok=True)
    database, folder, names = work / "database.db", frames[0].parent, [frame.name for frame in frames]
    pycolmap.extract_features(database, folder, names, pycolmap.CameraMode.SINGLE, reader, extraction, pycolmap.Device.cpu)
    pycolmap.match_exhaustive(database, matching, device=pycolmap.Device.cpu)
    (work / "models").mkdir()
    found = pycolmap.incremental_mapping(database, folder, work / "models", mapping)
    if not found:
        raise InputError(
            f"stage poses: {folder}: expected frames that COLMAP can reconstruct, got no model; the camera must move, and static regions need enough area and "
            "texture: choose other frames or smaller masks, or provide poses in sparse or poses_bounds.npy"
        )
    model = work / "models" / str(max(found, key=lambda number: found[number].num_reg_images()))
    registered = {image.name for image in ColmapModel.read(model).images}
    missing = [name for name in names if name not in registered]
    if missing:
        raise InputError(
            f"stage poses: {folder}: expected poses for all {len(names)} frames, got none for {len(missing)} that COLMAP could not register: "
            f"{', '.join(missing[:20])}; remove them, or provide better masks"
        )
    if not undistort:
        shutil.move(model, out / "sparse")
    else:
        pycolmap.undistort_images(work / "undistorted", model, folder)
        shutil.move(work / "undistorted" / "images", out / "images")
        shutil.move(work / "undistorted" / "sparse", out / "sparse")
        shutil.copytree(model, out / "sparse" / "0")
        if static:
            everywhere = np.full(image_size(frames[0]), 255, np.uint8)
            distorted = _write_masks(work / "distorted masks", {name: static.get(name, everywhere) for name in names})
            pycolmap.undistort_images(work / "undistorted masks", model, distorted)
            undistorted = {f"{name}.png": read_numbers(work / "undistorted masks" / "images" / name) for name in names}
            _write_masks(out / "masks", {name: np.where(mask >= _STATIC, 255, 0).astype(np.uint8) for name, mask in undistorted.items()})
    shutil.rmtree(work)


def _static_masks(frames: list[Path], folder: Path) -> dict[str, UInt8[np.ndarray, "h w"]]:
    """Masks at the size of the frames, 255 in static regions, by the names of the frames."""
    masks = {}
    for frame in frames:
        path = find_mask(folder, frame)
        if path is None:
            continue
        height, width = image_size(frame)
        image = Image.fromarray(np.where(read_mask(path) >= 128, 255, 0).astype(np.uint8))
        mask = np.asarray(image.resize((width, height), Image.Resampling.NEAREST))
        if not mask.any():
            raise InputError(
                f"stage poses: mask {path}: expected some static pixels (255), got none; correct the mask, or remove it if it is inverted"
            )
        masks[frame.name] = mask
    return masks


def _write_masks(folder: Path, masks: dict[str, UInt8[np.ndarray, "h w"]]) -> Path:
    """Writes masks as PNG, whatever the suffix of their names."""
    folder.mkdir(parents=True)
    for name, pixels in masks.items():
        Image.fromarray(pixels).save(folder / name, format="PNG")
    return folder
