"""Pictures of what every stage made of a video: a few frames, each beside its result."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from npbgpp.data import DECODER_ERRORS, CloudFile, Scene, common_size, find_models, numbered_images, read_flow, read_numbers, write_flow
from npbgpp.errors import InputError
from npbgpp.io import SheetRow, contact_sheet, write_png
from npbgpp.parsers.monocular import parse_monocular, undistorted_model
from npbgpp.prepare.check_sheet import draw_points, thumbnail
from npbgpp.prepare.video_maps import dis, mask_rcnn, network_disparity, raft, sparse_disparity, static_mask, stretched
from npbgpp.prepare.video_poses import mask_of, reconstruct

_SHOWN = 4
_RED = (1.0, 0.1, 0.1)
_NEAR = 1e-6  # all points in front of the cameras are drawn


def shown(count: int) -> list[int]:
    """Which of so many frames are drawn: spread from the first to the last."""
    return sorted({round(k * (count - 1) / (_SHOWN - 1)) for k in range(_SHOWN)})


def colours(path: Path) -> Float[Tensor, "3 h w"]:
    """A picture, 0..1."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255


def masked(frame: Float[Tensor, "3 h w"], mask: Path) -> Float[Tensor, "3 h w"]:
    """The frame, red where it is masked."""
    dark = torch.from_numpy(read_numbers(mask)) < 0.5
    return torch.where(dark, 0.4 * frame + 0.6 * torch.tensor(_RED)[:, None, None], frame)


def grey(path: Path) -> Float[Tensor, "3 h w"]:
    """A map of numbers, from its smallest, black, to its largest, white."""
    values = torch.from_numpy(read_numbers(path))
    values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)
    return values.expand(3, -1, -1)


def directions(path: Path) -> Float[Tensor, "3 h w"]:
    """Flow by the usual wheel of colours: none is white."""
    from torchvision.utils import flow_to_image  # slow to import

    return flow_to_image(torch.from_numpy(read_flow(path)).permute(2, 0, 1)).float() / 255


def points(scene: Scene, k: int) -> Float[Tensor, "3 h w"]:
    """Points of the model over a frame, red near, blue far; the frame alone where the poses came without points."""
    camera, photo = thumbnail(scene.views[k])
    return photo if scene.carried_points is None else draw_points(photo, camera, scene.cloud.read().xyz, _NEAR)


def write_preview(
    path: Path, title: str, column: str, frames: Sequence[Path], result: Callable[[int], Float[Tensor, "3 h w"] | None] | None
) -> None:
    """Draws some frames, the results of a stage at their side; without any the frames alone."""
    rows = [
        SheetRow(frames[k].name, (colours(frames[k]),) if result is None else (colours(frames[k]), result(k))) for k in shown(len(frames))
    ]
    write_png(path, contact_sheet(title, ("frame",) if result is None else ("frame", column), rows))


# ----------------------------------------------------------------------
# ``python -m npbgpp.prepare monocular root=<folder>``: everything that the layout ``monocular`` has, from the frames of a video.


log = logging.getLogger("npbgpp.prepare")

_FEWEST = 3  # frames


@dataclass(frozen=True)
class VideoSettings:
    """Keys of ``monocular``.

    Attributes:
        root: folder of the video.
        stages: which stages run, in their own order.
        frames: folder below root with the frames, by the number at the end of their names.
        max_width, max_height: frames are made no larger, pixels.
        dynamic_classes: what moves, by the names of COCO.
        mask_score: instances that the detector is less sure of stand still.
        mask_weights: weights of Mask R-CNN; null looks into torch's hub folder.
        depth: sparse (a smooth surface through COLMAP's points, weak) or the TorchScript file of a network, which runs when it is loaded.
        depth_network: what it returns: disparity (larger is nearer) or depth.
        flow: dis (OpenCV) or raft (torchvision).
        flow_weights: weights of RAFT; null looks into torch's hub folder.
        device: for networks: cpu, cuda, or auto.
    """

    root: Path
    stages: tuple[str, ...] = ("resize", "masks", "poses", "depth", "flow")
    frames: str = "frames"
    max_width: int = 1280
    max_height: int = 720
    dynamic_classes: tuple[str, ...] = ("person",)
    mask_score: float = 0.05
    mask_weights: Path | None = None
    depth: str = "sparse"
    depth_network: str = "disparity"
    flow: str = "dis"
    flow_weights: Path | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            raise InputError(f"stages: expected some of {', '.join(STAGES)}, got {list(self.stages)}")
        if min(self.max_width, self.max_height) < 1:
            raise InputError(f"max_width, max_height: expected positive numbers of pixels, got {self.max_width} and {self.max_height}")
        for key, choices in (("flow", ("dis", "raft")), ("depth_network", ("disparity", "depth")), ("device", ("auto", "cpu", "cuda"))):
            if getattr(self, key) not in choices:
                raise InputError(f"{key}: expected one of {', '.join(choices)}, got {getattr(self, key)}")

    def network_device(self) -> torch.device:
        """Where networks run."""
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device)


def prepare_video(settings: VideoSettings) -> None:
    """Runs the stages. Raises InputError for whatever is missing or wrong; what earlier stages made stays."""
    root = settings.root.expanduser()
    if not root.is_dir():
        raise InputError(f"root={settings.root}: expected the folder of a video, there is none at {root.absolute()}; correct the path")
    for stage, run in STAGES.items():
        if stage in settings.stages:
            log.info("%s: %s", stage, run(settings, root))
    if (root / "images").is_dir() and _has_poses(root):
        scene = _scene(root)
        for note in scene.notes:
            log.info("%s", note)
        log.info(
            "%d frames are ready: datasets=monocular datasets.data_root=%s datasets.scene_name=%s",
            len(scene.frames),
            root.parent,
            root.name,
        )


# ------------------------------------------------------------------------- stages
def _resize(settings: VideoSettings, root: Path) -> str:
    out = root / "images_resized"
    for there in (out, root / "images"):
        if there.is_dir():
            return f"{there.name} is there, nothing to do"
    if not (root / settings.frames).is_dir():
        raise InputError(
            f"stage resize: expected the frames of the video in {root / settings.frames}, got no such folder; name it with frames=<folder>"
        )
    files = list(numbered_images(root / settings.frames).values())
    if len(files) < _FEWEST:
        raise InputError(f"stage resize: {root / settings.frames}: expected at least {_FEWEST} frames, got {len(files)}")
    height, width = common_size(files)
    factor = max(width / settings.max_width, height / settings.max_height, 1.0)
    size = (max(1, int(width / factor)), max(1, int(height / factor)))
    with _whole(out) as part:
        for k, file in enumerate(files):
            pixels = _pixels(file)
            Image.fromarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if factor > 1 else pixels).save(part / f"{k:05d}.png")
    made = _frames(out)
    write_preview(root / "preview" / "resize.png", f"{root.name}: resize", "", made, None)
    return f"{len(made)} frames of {size[0]}x{size[1]} pixels from {width}x{height}: {out}"


def _masks(settings: VideoSettings, root: Path) -> str:
    straight = (root / "images").is_dir()
    folder = _frame_folder(root, "masks")
    out = root / ("masks" if straight else "masks_resized")
    if out.is_dir():
        return f"{out.name} is there, nothing to do"
    files = _frames(folder)
    if not straight and (root / "masks").is_dir():
        # drawn for frames that are distorted; those of the undistorted ones will take this name
        missing = [file.name for file in files if mask_of(root / "masks", file) is None]
        if missing:
            raise InputError(
                f"stage masks: {root / 'masks'}: expected <name of the frame>.png for every frame, got none for {', '.join(missing[:5])}"
            )
        (root / "masks").rename(out)
        return f"masks of your own belong to the frames before undistortion: masks is now {out.name}"
    if (root / "motion_masks").is_dir():
        return "motion_masks is there, nothing to do"
    detect = mask_rcnn(settings.dynamic_classes, settings.mask_weights, settings.mask_score, settings.network_device())
    covered = 0.0
    with _whole(out) as part:
        for file in files:
            mask = static_mask(detect(_image(file)))
            covered += float((mask == 0).mean()) / len(files)
            Image.fromarray(mask).save(part / f"{file.name}.png")
    write_preview(
        root / "preview" / "masks.png",
        f"{root.name}: masks",
        "red: may move",
        files,
        lambda k: masked(_image(files[k]).float() / 255, out / f"{files[k].name}.png"),
    )
    return f"{100 * covered:.1f} % of the pixels may move ({', '.join(settings.dynamic_classes)}): {out}"


def _poses(settings: VideoSettings, root: Path) -> str:
    straight, posed = (root / "images").is_dir(), _has_poses(root)
    if straight and posed:
        return f"{'sparse' if find_models(root) else 'poses_bounds.npy'} and images are there, nothing to do"
    if posed:
        raise InputError(
            f"stage poses: {root} has poses but no folder images; put the undistorted frames that they belong to there, or move the poses away to have them "
            "found anew"
        )
    folder = _frame_folder(root, "poses")
    files = _frames(folder)
    if len(files) < _FEWEST:
        raise InputError(f"stage poses: {folder}: expected at least {_FEWEST} frames, got {len(files)}")
    common_size(files)
    masks = root / ("masks" if straight else "masks_resized")
    with _whole(root / "poses") as part:
        reconstruct(files, masks if masks.is_dir() else None, part, undistorts=not straight)
        _publish(part, root)
    scene = _scene(root)
    frames = [view.image for view in scene.frames]
    write_preview(root / "preview" / "poses.png", f"{root.name}: poses", "points: red near, blue far", frames, lambda k: points(scene, k))
    without = "" if masks.is_dir() else ", without masks"
    return f"{len(frames)} frames registered{without}: {root / 'sparse'}" + (
        "" if straight else f"; frames without distortion: {root / 'images'}"
    )


def _depth(settings: VideoSettings, root: Path) -> str:
    out = root / "disps"
    if out.is_dir():
        return f"{out.name} is there, nothing to do"
    files = _frames(_undistorted(root, "depth"))
    if settings.depth == "sparse":
        model = undistorted_model(root)
        if model is None:
            raise InputError(
                "stage depth: depth=sparse needs the points of a COLMAP model in sparse, there is none; run the stage poses, name a network with "
                "depth=<TorchScript file>, or put disparity of your own into disps (16-bit PNG or .npy, larger is nearer)"
            )
        estimate, how = sparse_disparity(model, files), "weak, from COLMAP's points alone; a network for monocular depth does better"
    else:
        estimate = network_disparity(Path(settings.depth), settings.depth_network == "depth", settings.network_device())
        how = f"by {settings.depth}"
    with _whole(out) as part:
        for k, file in enumerate(files):
            Image.fromarray(stretched(estimate(_image(file), k))).save(part / f"{file.stem}.png")
    write_preview(
        root / "preview" / "depth.png", f"{root.name}: disparity", "bright is near", files, lambda k: grey(out / f"{files[k].stem}.png")
    )
    return f"disparity of {len(files)} frames ({how}): {out}"


def _flow(settings: VideoSettings, root: Path) -> str:
    made = []
    folder = _undistorted(root, "flow")
    missing = [name for name in ("flow_fw", "flow_bw") if not (root / name).is_dir()]
    if not missing:
        return "flow_fw and flow_bw are there, nothing to do"
    estimate = dis if settings.flow == "dis" else raft(settings.flow_weights, settings.network_device())
    files = _frames(folder)
    images = [_image(file) for file in files]
    for name in missing:
        step = 1 if name == "flow_fw" else -1
        with _whole(root / name) as part:
            for k in range(len(files)):
                if 0 <= k + step < len(files):
                    write_flow(part / f"{files[k].stem}.flo", estimate(images[k], images[k + step]))
        made.append(name)
    if "flow_fw" in made:
        flows = [root / "flow_fw" / f"{file.stem}.flo" for file in files]
        write_preview(
            root / "preview" / "flow.png", f"{root.name}: flow to the next frame", "white stands still", files,
            lambda k: directions(flows[k]) if flows[k].is_file() else None,
        )  # fmt: skip
    return f"{' and '.join(made)} of {len(files)} frames by {settings.flow}: {root}"


STAGES: dict[str, Callable[[VideoSettings, Path], str]] = {
    "resize": _resize,
    "masks": _masks,
    "poses": _poses,
    "depth": _depth,
    "flow": _flow,
}


# ------------------------------------------------------------------------- folders
@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder that takes its name only when all is in it; what an earlier run left unfinished is removed."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        if any(part.iterdir()):  # else its parts have places of their own
            part.rename(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error}); free space, or correct the permissions of the folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _publish(part: Path, root: Path) -> None:
    """Moves all results of a stage to their places, or none of them."""
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
    """Frames before undistortion, unless there are only those after it."""
    for folder in (root / "images", root / "images_resized"):
        if folder.is_dir():
            return folder
    raise InputError(
        f"stage {stage}: expected frames in {root / 'images_resized'} or {root / 'images'}, got neither; run the stage resize first"
    )


def _undistorted(root: Path, stage: str) -> Path:
    folder = root / "images"
    if not folder.is_dir():
        raise InputError(
            f"stage {stage}: expected frames without distortion in {folder}, got no such folder; run the stage poses first, or put them there"
        )
    return folder


def _frames(folder: Path) -> list[Path]:
    return list(numbered_images(folder).values())


def _scene(root: Path) -> Scene:
    scene = parse_monocular(root, root, root.name, CloudFile(root / "none.ply"))
    points_file = scene.carried_points
    return scene if points_file is None else replace(scene, cloud=CloudFile(points_file))


def _pixels(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Colours, turned upright as the camera says."""
    try:
        with Image.open(path) as picture:
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except DECODER_ERRORS as error:
        raise InputError(f"image {path}: expected a readable image, got {error}; replace the file") from error


def _image(path: Path) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(_pixels(path)).permute(2, 0, 1)
