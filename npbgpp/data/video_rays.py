"""Batches of rays through the pixels of one frame of a video, with what is known of its motion.

Symbols: n rays of a batch.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class VideoBatch:
    """n rays through pixels of one frame and what they are to see, in NDC of the field of the video (``npbgpp.data.video_frame``).

    Attributes:
        origins: where t is 0.
        directions: up to t = 1, infinity; of no unit length.
        view_directions: of unit length, Euclidean field coordinates.
        rgb: colours in [0, 1].
        moment: of the frame, the same for all rays.
        disparity: larger is nearer; scale and offset are those of the frame.
        static: whether nothing moves there; true where the frame has no mask.
        uv_forward_px: where the next frame shows what the ray hits, pixels with centres at +0.5; not a number in the last frame, and where
            the next frame is held out: there is no flow to compare with.
        uv_backward_px: the same in the frame before; not a number in the first frame, and where the frame before is held out.
        pixel: its number in its frame, row by row.
    """

    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    view_directions: Float[Tensor, "n 3"]
    rgb: Float[Tensor, "n 3"]
    moment: Int64[Tensor, " n"]
    disparity: Float[Tensor, " n"]
    static: Bool[Tensor, " n"]
    uv_forward_px: Float[Tensor, "n 2"]
    uv_backward_px: Float[Tensor, "n 2"]
    pixel: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.rgb)

    def to(self, device: torch.device | str) -> "VideoBatch":
        """The same rays on another device; called by Lightning."""
        return replace(self, **{name: value.to(device) for name, value in self.__dict__.items()})

    def pin_memory(self) -> "VideoBatch":
        """The same rays in page-locked memory; called by DataLoader."""
        return replace(self, **{name: value.pin_memory() for name, value in self.__dict__.items()})
