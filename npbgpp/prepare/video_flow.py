"""Optical flow between neighbouring frames of a video: DIS of OpenCV (Kroeger et al., ECCV 2016), or RAFT of torchvision (Teed and Deng, ECCV 2020)."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn.functional import pad

from npbgpp.errors import InputError
from npbgpp.files import load_tensors

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
