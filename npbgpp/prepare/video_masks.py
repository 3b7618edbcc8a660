"""What moves in a video: instances of chosen classes, found by Mask R-CNN (He et al., ICCV 2017).

Masks are 255 where nothing moves and 0 where something may; the dark parts are made wider, because outlines are never exact.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.files import load_tensors

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
