"""What moves in a video: instances of chosen classes, found by Mask R-CNN (He et al., ICCV 2017).

Masks are 255 where nothing moves and 0 where something may; the dark parts are made wider, because outlines are never exact.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, UInt8, UInt16
from scipy.interpolate import RBFInterpolator
from torch import Tensor
from torch.nn.functional import interpolate, pad

from npbgpp.core.files import load_tensors
from npbgpp.data import ColmapModel, read_points
from npbgpp.errors import InputError
from npbgpp.parsers.monocular import match_frames

# finds what moves: colours to a mask that is true where it is
Detector = Callable[[UInt8[Tensor, "3 h w"]], Bool[np.ndarray, "h w"]]
WEIGHTS = "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"  # as torchvision calls its file
_WIDER = 15  # pixels: side of the square that masks are eroded by
_INSIDE = 0.5  # probability from which a pixel belongs to an instance


def static_mask(moving: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """255 where nothing moves, 0 within 7 pixels of what does."""
    return cv2.erode(np.where(moving, 0, 255).astype(np.uint8), np.ones((_WIDER, _WIDER), np.uint8))


def mask_rcnn(classes: Sequence[str], weights: Path | None, score: float, device: torch.device) -> Detector:
    """torchvision's Mask R-CNN (ResNet-50, feature pyramid, COCO).

    Args:
        classes: names of what moves, as COCO has them.
        weights: its file; None looks into torch's hub folder.
        score: instances that are less sure are passed over.
        device: where it runs.

    Raises:
        InputError: unknown classes, a score outside 0..1, or no weights: none are downloaded.
    """
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn

    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    unknown = [name for name in classes if name not in names or name in ("__background__", "N/A")]
    if unknown or not classes:
        usable = ", ".join(name for name in names if name not in ("__background__", "N/A"))
        raise InputError(f"dynamic_classes: expected names among {usable}, got {list(classes)}")
    if not 0 <= score <= 1:
        raise InputError(f"mask_score: expected a number from 0 to 1, got {score}")
    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not path.is_file():
        raise InputError(
            f"stage masks: expected the weights of Mask R-CNN at {path}, got none, and nothing is downloaded unasked. Either put the file that torchvision "
            f"names {WEIGHTS} there or name it with mask_weights=<file>; or draw masks of your own, masks/<name of the frame>.png with 0 where something "
            "moves and 255 elsewhere; or go on without: stages=[resize,poses,depth,flow]"
        )
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval().to(device)
    try:
        model.load_state_dict(load_tensors(path, "weights of Mask R-CNN"))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(
            f"mask_weights: expected {WEIGHTS} or a file like it, got {path}, which is for another network; correct the path"
        ) from error
    wanted = torch.tensor([names.index(name) for name in classes], device=device)

    def detect(image: UInt8[Tensor, "3 h w"]) -> Bool[np.ndarray, "h w"]:
        with torch.inference_mode():
            (found,) = model([image.to(device).float() / 255])
        chosen = torch.isin(found["labels"], wanted) & (found["scores"] >= score)
        return (found["masks"][chosen, 0] >= _INSIDE).any(0).cpu().numpy()

    return detect


# ----------------------------------------------------------------------
# Optical flow between neighbouring frames of a video: DIS of OpenCV (Kroeger et al., ECCV 2016), or RAFT of torchvision (Teed and Deng, ECCV 2020).


# pixels from the first picture to the second, u to the right and v downwards
FlowMethod = Callable[[UInt8[Tensor, "3 h w"], UInt8[Tensor, "3 h w"]], Float32[np.ndarray, "h w 2"]]
RAFT_WEIGHTS = "raft_large_C_T_SKHT_V2-ff5fadd5.pth"  # as torchvision calls its file
_MULTIPLE = 8  # sides of what RAFT is given are multiples of it
_LEAST_SIDE = 128  # and as long at least
_UPDATES = 20  # of RAFT's estimate


def dis(first: UInt8[Tensor, "3 h w"], second: UInt8[Tensor, "3 h w"]) -> Float32[np.ndarray, "h w 2"]:
    """Dense inverse search on grey values, without any learned weights."""
    grey = [cv2.cvtColor(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2GRAY) for image in (first, second)]
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    method.setFinestScale(0)
    return method.calc(grey[0], grey[1], None)  # type: ignore[call-overload]


def raft(weights: Path | None, device: torch.device) -> FlowMethod:
    """RAFT, the large network. Its flow has the size of the frames: what they are padded by is cut off again.

    Args:
        weights: its file; None looks into torch's hub folder.
        device: where it runs.

    Raises:
        InputError: no weights, none are downloaded; or those of another network.
    """
    from torchvision.models.optical_flow import raft_large

    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / RAFT_WEIGHTS
    if not path.is_file():
        raise InputError(
            f"stage flow: expected the weights of RAFT at {path}, got none, and nothing is downloaded unasked. Either put the file that torchvision names "
            f"{RAFT_WEIGHTS} there or name it with flow_weights=<file>; or take flow=dis, which needs none; or put flow of your own into flow_fw and flow_bw"
        )
    model = raft_large(weights=None).eval().to(device)
    try:
        model.load_state_dict(load_tensors(path, "weights of RAFT"))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(
            f"flow_weights: expected {RAFT_WEIGHTS} or a file like it, got {path}, which is for another network; correct the path"
        ) from error

    def estimate(first: UInt8[Tensor, "3 h w"], second: UInt8[Tensor, "3 h w"]) -> Float32[np.ndarray, "h w 2"]:
        height, width = first.shape[1:]
        missing = [max(_LEAST_SIDE, -(-side // _MULTIPLE) * _MULTIPLE) - side for side in (width, height)]
        both = torch.stack([first, second]).to(device).float() / 127.5 - 1
        both = pad(both, (0, missing[0], 0, missing[1]), mode="replicate")
        with torch.inference_mode():
            flow = model(both[:1], both[1:], num_flow_updates=_UPDATES)[-1][0, :, :height, :width]
        return flow.permute(1, 2, 0).cpu().numpy()

    return estimate


# ----------------------------------------------------------------------
# Disparity of the frames of a video: a weak one from the points of its COLMAP model, or that of a network for monocular depth.


# colours of a frame, and its number, to its disparity: larger is nearer, of any scale and offset
DisparityMethod = Callable[[UInt8[Tensor, "3 h w"], int], Float[np.ndarray, "h w"]]
_FEWEST, _MOST = 8, 400  # points of a frame
_GRID = 48  # places along the longer side that the surface is computed at
_SMOOTHING = 0.02  # of the surface, with coordinates from 0 to 1
_DEPTH_MULTIPLE = 32  # sides of what networks are given are multiples of it
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the colours of ImageNet
_DEEPEST = 65535


def stretched(disparity: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """16 bits from the smallest value to the largest; a map that is the same everywhere becomes 0."""
    low, high = float(disparity.min()), float(disparity.max())
    return ((disparity - low) * (_DEEPEST / max(high - low, 1e-30)) + 0.5).astype(np.uint16)


def sparse_disparity(model: ColmapModel, frames: list[Path]) -> DisparityMethod:
    """A smooth surface through 1 / depth of the points that a frame sees; what moves gets what is around it.

    Raises:
        InputError: no points, frames that the model does not hold, or a frame with fewer than 8 points.
    """
    path = model.points_file()
    if path is None:
        raise InputError(
            f"stage depth: {model.folder}: expected points3D beside the poses, got none; restore it, or put disparity of your own into disps"
        )
    points = read_points(path)
    where = {number: k for k, number in enumerate(points.number.tolist())}
    xyz_world = points.cloud.xyz.double().numpy()
    images = match_frames(model, frames)

    def estimate(image: UInt8[Tensor, "3 h w"], k: int) -> Float[np.ndarray, "h w"]:
        height, width = image.shape[1:]
        seen = np.array([place for place, number in enumerate(images[k].point.tolist()) if number in where], dtype=np.int64)
        pose = images[k].world_to_cam.numpy()
        depth = xyz_world[[where[number] for number in images[k].point[seen].tolist()]] @ pose[2, :3] + pose[2, 3]
        seen, depth = seen[depth > 0], depth[depth > 0]
        if len(seen) < _FEWEST:
            raise InputError(
                f"stage depth: expected at least {_FEWEST} points of the model in frame {frames[k].name}, got {len(seen)}; put disparity of your own into "
                "disps (16-bit PNG or .npy, larger is nearer), or name a network with depth=<TorchScript file>"
            )
        stated = model.lenses[images[k].camera].image_size
        uv = images[k].uv_px[seen] / (stated[1], stated[0])
        return _surface(uv, 1 / depth, (height, width))

    return estimate


def _surface(uv: Float64[np.ndarray, "n 2"], values: Float64[np.ndarray, " n"], size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Values at places (from 0 to 1 in each direction) spread over a picture; nowhere beyond the values that most of them have."""
    low, high = np.quantile(values, [0.01, 0.99])
    if len(uv) > _MOST:
        chosen = np.random.default_rng(0).choice(len(uv), _MOST, replace=False)
        uv, values = uv[chosen], values[chosen]
    fit = RBFInterpolator(uv, np.clip(values, low, high), kernel="linear", smoothing=_SMOOTHING * len(uv))
    rows, columns = (max(2, round(_GRID * side / max(size))) for side in size)
    v, u = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    coarse = np.clip(fit(np.stack([u.ravel(), v.ravel()], 1)), low, high).reshape(1, 1, rows, columns)
    return interpolate(torch.from_numpy(coarse), size, mode="bicubic", align_corners=False)[0, 0].clamp(float(low), float(high)).numpy()


def network_disparity(path: Path, is_depth: bool, device: torch.device) -> DisparityMethod:
    """A TorchScript network for monocular depth, such as MiDaS or DPT exports.

    It is given colours (1, 3, h, w), normalised as for ImageNet, at sides that are multiples of 32, and returns (1, h, w) or (1, 1, h, w).

    Args:
        path: its file; TorchScript runs when it is loaded, so that it must come from where you trust it.
        is_depth: it returns depths; otherwise disparity, larger is nearer.
        device: where it runs.

    Raises:
        InputError: a missing file or one that is no TorchScript; output of another shape or that is not finite.
    """
    if not path.is_file():
        raise InputError(
            f"stage depth: depth={path}: expected sparse or the TorchScript file of a network, got no such file; correct the path"
        )
    try:
        model = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"stage depth: depth={path}: expected a file written by torch.jit.save, got another one; export the network with torch.jit"
        ) from error
    mean, deviation = (torch.tensor(numbers, device=device)[:, None, None] for numbers in (_MEAN, _DEVIATION))

    def estimate(image: UInt8[Tensor, "3 h w"], k: int) -> Float[np.ndarray, "h w"]:
        height, width = image.shape[1:]
        size = tuple(max(1, round(side / _DEPTH_MULTIPLE)) * _DEPTH_MULTIPLE for side in (height, width))
        colours = (image.to(device).float() / 255 - mean) / deviation
        with torch.inference_mode():
            found = model(interpolate(colours[None], size, mode="bilinear", antialias=True))
        if (
            not isinstance(found, Tensor)
            or found.dim() not in (3, 4)
            or found.shape[0] != 1
            or found[0].numel() != found.shape[-1] * found.shape[-2]
        ):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"stage depth: depth={path}: expected a tensor (1, h, w) or (1, 1, h, w) from the network, got {shape}; export another one"
            )
        values = found.reshape(1, 1, *found.shape[-2:]).float()
        values = interpolate(values, (height, width), mode="bilinear", align_corners=False)[0, 0].cpu()
        disparity = 1 / values.clamp(min=1e-6) if is_depth else values
        if not torch.isfinite(disparity).all():
            raise InputError(
                f"stage depth: depth={path}: expected finite numbers from the network, got others for frame {k}; use another network"
            )
        return disparity.numpy()

    return estimate
