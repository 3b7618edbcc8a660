"""Estimators for frames of a video: masks of moving objects, optical flow, disparity. Weights of networks are never downloaded."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, UInt8, UInt16
from scipy.interpolate import RBFInterpolator
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from npbgpp.core.files import load_tensors
from npbgpp.data import ColmapModel, read_points
from npbgpp.errors import InputError
from npbgpp.geometry import reduced
from npbgpp.parsers.monocular import match_frames

# colours of a frame to a mask that is true on moving objects
Detector = Callable[[UInt8[Tensor, "3 h w"]], Bool[np.ndarray, "h w"]]
# two frames to the flow from the first to the second, pixels to the right and down
FlowEstimator = Callable[[UInt8[Tensor, "3 h w"], UInt8[Tensor, "3 h w"]], Float32[np.ndarray, "h w 2"]]
# colours of a frame, and its index, to its disparity: larger is nearer, of unknown scale and offset
DisparityEstimator = Callable[[UInt8[Tensor, "3 h w"], int], Float[np.ndarray, "h w"]]

MASK_RCNN_WEIGHTS = "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"  # torchvision's file names
RAFT_WEIGHTS = "raft_large_C_T_SKHT_V2-ff5fadd5.pth"
_MASK_MARGIN = 15  # side of the square by which moving objects are dilated, pixels: their outlines are never exact
_MASK_THRESHOLD = 0.5  # probability
_RAFT_MULTIPLE, _RAFT_MIN_SIDE, _RAFT_UPDATES = 8, 128, 20  # sides of its input are multiples of 8, and at least 128
_MIN_POINTS, _MAX_POINTS = 8, 400  # of a frame, for interpolation
_RBF_GRID = 48  # nodes along the longer side
_RBF_SMOOTHING = 0.02  # for coordinates in 0..1
_DEPTH_MULTIPLE = 32  # sides of the input of depth networks are multiples of it
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# ------------------------------------------------------------------ masks
def static_mask(moving: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """255 in static regions, 0 on moving objects and within 7 pixels of them."""
    return cv2.erode(np.where(moving, 0, 255).astype(np.uint8), np.ones((_MASK_MARGIN, _MASK_MARGIN), np.uint8))


def mask_rcnn(classes: Sequence[str], weights: Path | None, score: float, device: torch.device) -> Detector:
    """Mask R-CNN of torchvision (He et al., ICCV 2017; ResNet-50 FPN, COCO).

    Args:
        classes: COCO classes of moving objects.
        weights: its file; None uses the folder of torch.hub.
        score: smallest detection score.
        device: where it runs.

    Raises:
        InputError: unknown classes, a score outside 0..1, missing or wrong weights.
    """
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn

    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    known = [name for name in names if name not in ("__background__", "N/A")]
    if not classes or not set(classes) <= set(known):
        raise InputError(f"dynamic_classes: expected names among {', '.join(known)}, got {list(classes)}")
    if not 0 <= score <= 1:
        raise InputError(f"mask_score: expected a number from 0 to 1, got {score}")
    alternative = (
        "provide masks/<name of the frame>.png with 0 on moving objects and 255 elsewhere, or skip them: stages=[resize,poses,depth,flow]"
    )
    build = partial(maskrcnn_resnet50_fpn, weights=None, weights_backbone=None)
    model = _load_network(build, weights, MASK_RCNN_WEIGHTS, "masks", "mask_weights", alternative).to(device)
    wanted = torch.tensor([names.index(name) for name in classes], device=device)

    def detect(image: UInt8[Tensor, "3 h w"]) -> Bool[np.ndarray, "h w"]:
        with torch.inference_mode():
            (found,) = model([image.to(device).float() / 255])
        chosen = torch.isin(found["labels"], wanted) & (found["scores"] >= score)
        return (found["masks"][chosen, 0] >= _MASK_THRESHOLD).any(0).cpu().numpy()

    return detect


def _load_network(build: Callable[[], nn.Module], weights: Path | None, name: str, stage: str, key: str, alternative: str) -> nn.Module:
    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise InputError(
            f"stage {stage}: expected torchvision's weights {name} at {path}, got no such file, and nothing is downloaded; put the file there, name it with "
            f"{key}=<file>, {alternative}"
        )
    model = build()
    try:
        model.load_state_dict(load_tensors(path, f"weights {name}"))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(f"{key}: expected weights like {name}, got {path} of another network; correct the path") from error
    return model.eval()


# ------------------------------------------------------------------ optical flow
def dis_flow(first: UInt8[Tensor, "3 h w"], second: UInt8[Tensor, "3 h w"]) -> Float32[np.ndarray, "h w 2"]:
    """Dense inverse search on grey images (Kroeger et al., ECCV 2016); needs no weights."""
    grey = [cv2.cvtColor(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2GRAY) for image in (first, second)]
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    method.setFinestScale(0)
    return method.calc(grey[0], grey[1], None)  # type: ignore[call-overload]


def raft_flow(weights: Path | None, device: torch.device) -> FlowEstimator:
    """RAFT, the large network of torchvision (Teed and Deng, ECCV 2020); the flow has the size of the frames.

    Args:
        weights: its file; None uses the folder of torch.hub.
        device: where it runs.

    Raises:
        InputError: missing or wrong weights.
    """
    from torchvision.models.optical_flow import raft_large

    alternative = "use flow=dis, which needs no weights, or provide flow in flow_fw and flow_bw"
    model = _load_network(partial(raft_large, weights=None), weights, RAFT_WEIGHTS, "flow", "flow_weights", alternative).to(device)

    def estimate(first: UInt8[Tensor, "3 h w"], second: UInt8[Tensor, "3 h w"]) -> Float32[np.ndarray, "h w 2"]:
        height, width = first.shape[1:]
        right, bottom = (max(_RAFT_MIN_SIDE, -(-side // _RAFT_MULTIPLE) * _RAFT_MULTIPLE) - side for side in (width, height))
        frames = torch.stack([first, second]).to(device).float() / 127.5 - 1
        frames = pad(frames, (0, right, 0, bottom), mode="replicate")
        with torch.inference_mode():
            flow = model(frames[:1], frames[1:], num_flow_updates=_RAFT_UPDATES)[-1][0, :, :height, :width]
        return flow.permute(1, 2, 0).cpu().numpy()

    return estimate


# ------------------------------------------------------------------ disparity
def quantise(disparity: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Scales the minimum to 0 and the maximum to 65535; a constant map becomes 0."""
    low, high = float(disparity.min()), float(disparity.max())
    return ((disparity - low) * (65535 / max(high - low, 1e-30)) + 0.5).astype(np.uint16)


def sparse_disparity(model: ColmapModel, frames: list[Path]) -> DisparityEstimator:
    """Interpolates 1 / depth of the points that a frame observes; moving objects get the disparity around them.

    Raises:
        InputError: a model without points, frames missing in it, or a frame with fewer than 8 points.
    """
    path = model.points_file()
    if path is None:
        raise InputError(
            f"stage depth: {model.folder}: expected points3D beside the poses, got none; restore it, or provide disparity in disps"
        )
    points = read_points(path, reduced(None, model.offset))
    index_of = {number: k for k, number in enumerate(points.number.tolist())}
    xyz_world = points.cloud.xyz.double().numpy()
    images = match_frames(model, frames)

    def estimate(image: UInt8[Tensor, "3 h w"], k: int) -> Float[np.ndarray, "h w"]:
        height, width = image.shape[1:]
        observed = np.array([place for place, number in enumerate(images[k].point.tolist()) if number in index_of], dtype=np.int64)
        pose = images[k].world_to_cam.numpy()
        depth = xyz_world[[index_of[number] for number in images[k].point[observed].tolist()]] @ pose[2, :3] + pose[2, 3]
        observed, depth = observed[depth > 0], depth[depth > 0]
        if len(observed) < _MIN_POINTS:
            raise InputError(
                f"stage depth: expected at least {_MIN_POINTS} points of the model in frame {frames[k].name}, got {len(observed)}; provide disparity in disps "
                "(16-bit PNG or .npy, larger is nearer), or name a network with depth=<TorchScript file>"
            )
        lens_height, lens_width = model.lenses[images[k].camera].image_size
        return _interpolate_scattered(images[k].uv_px[observed] / (lens_width, lens_height), 1 / depth, (height, width))

    return estimate


def _interpolate_scattered(
    uv: Float64[np.ndarray, "n 2"], values: Float64[np.ndarray, " n"], size: tuple[int, int]
) -> Float[np.ndarray, "h w"]:
    """Smooth surface through values at positions in 0..1, clipped to their 1 % and 99 % quantiles."""
    low, high = np.quantile(values, [0.01, 0.99])
    if len(uv) > _MAX_POINTS:
        chosen = np.random.default_rng(0).choice(len(uv), _MAX_POINTS, replace=False)
        uv, values = uv[chosen], values[chosen]
    surface = RBFInterpolator(uv, np.clip(values, low, high), kernel="linear", smoothing=_RBF_SMOOTHING * len(uv))
    rows, columns = (max(2, round(_RBF_GRID * side / max(size))) for side in size)
    v, u = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    coarse = np.clip(surface(np.stack([u.ravel(), v.ravel()], 1)), low, high).reshape(1, 1, rows, columns)
    return interpolate(torch.from_numpy(coarse), size, mode="bicubic", align_corners=False)[0, 0].clamp(float(low), float(high)).numpy()


def network_disparity(path: Path, is_depth: bool, device: torch.device) -> DisparityEstimator:
    """A TorchScript network for monocular depth, such as exports of MiDaS or DPT.

    It maps colours (1, 3, h, w), normalised as for ImageNet, with sides that are multiples of 32, to (1, h, w) or (1, 1, h, w).

    Args:
        path: its file; loading runs its code, so it must come from a trusted source.
        is_depth: the output is depth rather than disparity.
        device: where it runs.

    Raises:
        InputError: a missing file, another kind of file, or output of another shape or with values that are not finite.
    """
    where = f"stage depth: depth={path}"
    if not path.is_file():
        raise InputError(f"{where}: expected sparse or the TorchScript file of a network, got no such file; correct the path")
    try:
        model = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{where}: expected a file written by torch.jit.save, got another one; export the network with torch.jit"
        ) from error
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_STD))

    def estimate(image: UInt8[Tensor, "3 h w"], k: int) -> Float[np.ndarray, "h w"]:
        height, width = image.shape[1:]
        size = tuple(max(1, round(side / _DEPTH_MULTIPLE)) * _DEPTH_MULTIPLE for side in (height, width))
        colours = (image.to(device).float() / 255 - mean) / std
        with torch.inference_mode():
            output = model(interpolate(colours[None], size, mode="bilinear", antialias=True))
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if not isinstance(shape, tuple) or len(shape) not in (3, 4) or set(shape[:-2]) != {1}:
            raise InputError(f"{where}: expected a tensor (1, h, w) or (1, 1, h, w) from the network, got {shape}; export another one")
        values = output.reshape(1, 1, *shape[-2:]).float()
        values = interpolate(values, (height, width), mode="bilinear", align_corners=False)[0, 0].cpu()
        disparity = 1 / values.clamp(min=1e-6) if is_depth else values
        if not torch.isfinite(disparity).all():
            raise InputError(f"{where}: expected finite values from the network, got others for frame {k}; use another network")
        return disparity.numpy()

    return estimate
