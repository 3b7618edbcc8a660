"""``npbgpp prepare monocular``: makes masks, poses, undistorted frames, disparity and optical flow of the frames of a video.

Each stage writes a folder of the ``monocular`` layout, and is skipped if the folder exists.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from npbgpp.core.cpu_share import CpuShare, adapt_threads
from npbgpp.data import (
    DECODER_ERRORS,
    CloudFile,
    ColmapModel,
    Scene,
    common_size,
    find_models,
    image_size,
    numbered_images,
    read_flow,
    read_mask,
    read_numbers,
    write_flow,
)
from npbgpp.errors import InputError
from npbgpp.io import SheetRow, contact_sheet, write_png
from npbgpp.parsers.monocular import parse_monocular, undistorted_model
from npbgpp.prepare.check import draw_points, thumbnail
from npbgpp.prepare.settings import VideoSettings
from npbgpp.prepare.video_maps import dis_flow, mask_rcnn, network_disparity, quantise, raft_flow, sparse_disparity, static_mask

# ----------------------------------------------------------------------
# Stages


log = logging.getLogger("npbgpp.prepare")

_MIN_FRAMES = 3


def _network_device(settings: VideoSettings) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device)


def prepare_video(settings: VideoSettings) -> None:
    """Runs the stages. Raises InputError for missing or wrong input; results of earlier stages are kept."""
    root = settings.root.expanduser()
    if not root.is_dir():
        raise InputError(f"root={settings.root}: expected the folder of a video, {root.absolute()} does not exist; correct the path")
    with CpuShare():
        for stage, run in STAGES.items():
            if stage in settings.stages:
                log.info("%s: %s", stage, run(settings, root))
    if (root / "images").is_dir() and _has_poses(root):
        scene = _read_scene(root)
        for note in scene.notes:
            log.info("%s", note)
        log.info(
            "%d frames are ready: datasets=monocular datasets.data_root=%s datasets.scene_name=%s",
            len(scene.frames),
            root.parent,
            root.name,
        )


# ------------------------------------------------------------------ stages
def _resize(settings: VideoSettings, root: Path) -> str:
    out = root / "images_resized"
    for existing in (out, root / "images"):
        if existing.is_dir():
            return f"skipped, {existing.name} exists"
    if not (root / settings.frames).is_dir():
        raise InputError(f"stage resize: expected frames in {root / settings.frames}, got no such folder; name it with frames=<folder>")
    files = list(numbered_images(root / settings.frames).values())
    if len(files) < _MIN_FRAMES:
        raise InputError(f"stage resize: {root / settings.frames}: expected at least {_MIN_FRAMES} frames, got {len(files)}")
    height, width = common_size(files)
    factor = max(width / settings.max_width, height / settings.max_height, 1.0)
    size = (max(1, int(width / factor)), max(1, int(height / factor)))
    with _atomic_folder(out) as part:
        for k, file in enumerate(files):
            pixels = _read_upright(file)
            resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if factor > 1 else pixels
            Image.fromarray(resized).save(part / f"{k:05d}.png")
    frames = _frames(out)
    write_preview(root / "preview" / "resize.png", f"{root.name}: resized frames", "", frames, None)
    return f"{len(frames)} frames of {size[0]}x{size[1]} pixels from {width}x{height}: {out}"


def _masks(settings: VideoSettings, root: Path) -> str:
    undistorted = (root / "images").is_dir()
    folder = _frame_folder(root, "masks")
    out = root / ("masks" if undistorted else "masks_resized")
    if out.is_dir():
        return f"skipped, {out.name} exists"
    files = _frames(folder)
    if not undistorted and (root / "masks").is_dir():
        # provided for the distorted frames; the stage poses writes the masks of the undistorted ones to this name
        missing = [file.name for file in files if find_mask(root / "masks", file) is None]
        if missing:
            raise InputError(
                f"stage masks: {root / 'masks'}: expected <name of the frame>.png for each frame, got none for {', '.join(missing[:5])}"
            )
        (root / "masks").rename(out)
        return f"masks renamed to {out.name}: they belong to the distorted frames"
    if (root / "motion_masks").is_dir():
        return "skipped, motion_masks exists"
    detect = mask_rcnn(settings.dynamic_classes, settings.mask_weights, settings.mask_score, _network_device(settings))
    moving = 0.0
    with _atomic_folder(out) as part:
        for file in files:
            adapt_threads()
            mask = static_mask(detect(_read_tensor(file)))
            moving += float((mask == 0).mean()) / len(files)
            Image.fromarray(mask).save(part / f"{file.name}.png")
    preview = root / "preview" / "masks.png"
    write_preview(preview, f"{root.name}: masks", "red: moving", files, lambda k: mask_preview(files[k], out / f"{files[k].name}.png"))
    return f"{100 * moving:.1f} % of the pixels are masked ({', '.join(settings.dynamic_classes)}): {out}"


def _poses(settings: VideoSettings, root: Path) -> str:
    undistorted, posed = (root / "images").is_dir(), _has_poses(root)
    if undistorted and posed:
        return f"skipped, {'sparse' if find_models(root) else 'poses_bounds.npy'} and images exist"
    if posed:
        raise InputError(
            f"stage poses: {root}: expected the undistorted frames of its poses in images, got no such folder; add it, or remove the poses to estimate them again"
        )
    folder = _frame_folder(root, "poses")
    files = _frames(folder)
    if len(files) < _MIN_FRAMES:
        raise InputError(f"stage poses: {folder}: expected at least {_MIN_FRAMES} frames, got {len(files)}")
    common_size(files)
    masks = root / ("masks" if undistorted else "masks_resized")
    with _atomic_folder(root / "poses") as part:
        reconstruct(files, masks if masks.is_dir() else None, part, undistort=not undistorted)
        _publish(part, root)
    scene = _read_scene(root)
    frames = [view.image for view in scene.frames]
    preview = root / "preview" / "poses.png"
    write_preview(preview, f"{root.name}: poses", "points: red near, blue far", frames, lambda k: points_preview(scene, k))
    masked = "" if masks.is_dir() else ", without masks"
    images = "" if undistorted else f"; undistorted frames: {root / 'images'}"
    return f"{len(frames)} frames registered{masked}: {root / 'sparse'}{images}"


def _depth(settings: VideoSettings, root: Path) -> str:
    out = root / "disps"
    if out.is_dir():
        return f"skipped, {out.name} exists"
    files = _frames(_undistorted_folder(root, "depth"))
    if settings.depth == "sparse":
        model = undistorted_model(root)
        if model is None:
            raise InputError(
                "stage depth: depth=sparse: expected a COLMAP model in sparse, got none; run the stage poses, name a network with depth=<TorchScript file>, or "
                "provide disparity maps in disps (16-bit PNG or .npy, larger is nearer)"
            )
        estimate, method = sparse_disparity(model, files), "interpolated from COLMAP's points; a monocular depth network is more accurate"
    else:
        estimate = network_disparity(Path(settings.depth), settings.depth_network == "depth", _network_device(settings))
        method = f"by {settings.depth}"
    with _atomic_folder(out) as part:
        for k, file in enumerate(files):
            adapt_threads()
            Image.fromarray(quantise(estimate(_read_tensor(file), k))).save(part / f"{file.stem}.png")
    preview = root / "preview" / "depth.png"
    write_preview(preview, f"{root.name}: disparity", "bright: near", files, lambda k: map_preview(out / f"{files[k].stem}.png"))
    return f"disparity of {len(files)} frames ({method}): {out}"


def _flow(settings: VideoSettings, root: Path) -> str:
    folder = _undistorted_folder(root, "flow")
    missing = [name for name in ("flow_fw", "flow_bw") if not (root / name).is_dir()]
    if not missing:
        return "skipped, flow_fw and flow_bw exist"
    estimate = dis_flow if settings.flow == "dis" else raft_flow(settings.flow_weights, _network_device(settings))
    files = _frames(folder)
    images = [_read_tensor(file) for file in files]
    for name in missing:
        step = 1 if name == "flow_fw" else -1
        with _atomic_folder(root / name) as part:
            for k, file in enumerate(files):
                adapt_threads()
                if 0 <= k + step < len(files):
                    write_flow(part / f"{file.stem}.flo", estimate(images[k], images[k + step]))
    if "flow_fw" in missing:
        flows = [root / "flow_fw" / f"{file.stem}.flo" for file in files]
        preview, title = root / "preview" / "flow.png", f"{root.name}: flow to the next frame"
        write_preview(preview, title, "white: no motion", files, lambda k: flow_preview(flows[k]) if flows[k].is_file() else None)
    return f"{' and '.join(missing)} of {len(files)} frames by {settings.flow}: {root}"


STAGES: dict[str, Callable[[VideoSettings, Path], str]] = {
    "resize": _resize,
    "masks": _masks,
    "poses": _poses,
    "depth": _depth,
    "flow": _flow,
}


# ------------------------------------------------------------------ folders
@contextmanager
def _atomic_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to ``out`` at the end of the block, unless it is empty. Leftovers of earlier runs are removed."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        if any(part.iterdir()):
            part.rename(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error}); free space, or correct the permissions of the folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _publish(part: Path, root: Path) -> None:
    """Moves all folders of ``part`` to ``root``, or none."""
    moved: list[Path] = []
    try:
        for source in sorted(part.iterdir()):
            source.rename(root / source.name)
            moved.append(source)
    except OSError:
        for source in moved:
            (root / source.name).rename(source)
        raise


def _has_poses(root: Path) -> bool:
    return bool(find_models(root)) or (root / "poses_bounds.npy").is_file()


def _frame_folder(root: Path, stage: str) -> Path:
    """Undistorted frames, otherwise resized frames."""
    for folder in (root / "images", root / "images_resized"):
        if folder.is_dir():
            return folder
    raise InputError(
        f"stage {stage}: expected frames in {root / 'images_resized'} or {root / 'images'}, got neither; run the stage resize first"
    )


def _undistorted_folder(root: Path, stage: str) -> Path:
    folder = root / "images"
    if not folder.is_dir():
        raise InputError(
            f"stage {stage}: expected undistorted frames in {folder}, got no such folder; run the stage poses first, or provide them"
        )
    return folder


def _frames(folder: Path) -> list[Path]:
    return list(numbered_images(folder).values())


def _read_scene(root: Path) -> Scene:
    scene = parse_monocular(root, root, root.name, CloudFile(root / "none.ply"))
    points_file = scene.carried_points
    return scene if points_file is None else replace(scene, cloud=scene.cloud.of_points(points_file, scene.carried_transform))


def _read_upright(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Colours, rotated as the EXIF orientation says."""
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except DECODER_ERRORS as error:
        raise InputError(f"image {path}: expected a readable image, got {error}; replace the file") from error


def _read_tensor(path: Path) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(_read_upright(path)).permute(2, 0, 1)


# ----------------------------------------------------------------------
# Camera poses of the frames with COLMAP (Schoenberger and Frahm, CVPR 2016), from their static regions


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


# ----------------------------------------------------------------------
# Previews of the stages: contact sheets with a few frames, each beside its result


_FRAMES = 4
_RED = (1.0, 0.1, 0.1)
_NEAR = 1e-6  # draws all points in front of the camera


def write_preview(
    path: Path, title: str, column: str, frames: Sequence[Path], result: Callable[[int], Float[Tensor, "3 h w"] | None] | None
) -> None:
    """Writes a contact sheet of evenly spread frames, beside the result of each if ``result`` is given."""
    chosen = sorted({round(k * (len(frames) - 1) / (_FRAMES - 1)) for k in range(_FRAMES)})
    images = [(_read_image(frames[k]),) if result is None else (_read_image(frames[k]), result(k)) for k in chosen]
    rows = [SheetRow(frames[k].name, row) for k, row in zip(chosen, images, strict=True)]
    write_png(path, contact_sheet(title, ("frame",) if result is None else ("frame", column), rows))


def mask_preview(frame: Path, mask: Path) -> Float[Tensor, "3 h w"]:
    """The frame, tinted red where the mask is dark."""
    image, moving = _read_image(frame), torch.from_numpy(read_mask(mask)) < 128
    return torch.where(moving, 0.4 * image + 0.6 * torch.tensor(_RED)[:, None, None], image)


def map_preview(path: Path) -> Float[Tensor, "3 h w"]:
    """Grey values from the minimum (black) to the maximum (white) of a map."""
    values = torch.from_numpy(read_numbers(path))
    values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)
    return values.expand(3, -1, -1)


def flow_preview(path: Path) -> Float[Tensor, "3 h w"]:
    """Optical flow in the colour wheel of the Middlebury benchmark; no motion is white."""
    from torchvision.utils import flow_to_image  # slow to import

    return flow_to_image(torch.from_numpy(read_flow(path)).permute(2, 0, 1)).float() / 255


def points_preview(scene: Scene, k: int) -> Float[Tensor, "3 h w"]:
    """The points of the reconstruction over a frame; the frame alone if the poses came without points."""
    camera, photo = thumbnail(scene.views[k])
    return photo if scene.carried_points is None else draw_points(photo, camera, scene.cloud.read().xyz, _NEAR)


def _read_image(path: Path) -> Float[Tensor, "3 h w"]:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1).float() / 255
