"""Batches of rays through the pixels of one frame of a video, with what is known of its motion.

Symbols: n rays of a batch.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.data import Dataset

from npbgpp.data.frame_order import FrameOrder
from npbgpp.data.frame_table import BYTES_PER_PIXEL, FrameTable, read_table
from npbgpp.data.motion_maps import required_map
from npbgpp.data.pixel_weights import PixelWeights
from npbgpp.data.scene import Scene
from npbgpp.data.video_frame import VideoFrame
from npbgpp.errors import InputError

_PIXELS_PER_BATCH = 1000  # of all frames: how long an epoch is


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


@dataclass(frozen=True)
class VideoSampling:
    """How rays of a video are drawn.

    Attributes:
        rays_per_batch: pixels of a batch, all of one frame, drawn with replacement.
        batches_per_epoch: None is one for every 1000 pixels of all frames.
        exclusion_window: see ``FrameOrder``.
        hard_sampling: draw pixels by ``PixelWeights``, otherwise evenly.
        moving_share: part of the pixels that is drawn evenly from where the mask of the frame says that something moves.
        seed: of the order of frames and of the pixels.
    """

    rays_per_batch: int = 512
    batches_per_epoch: int | None = None
    exclusion_window: int = 5
    hard_sampling: bool = False
    moving_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("system.rays_per_batch", 1), ("datasets.batches_per_epoch", 1), ("datasets.exclusion_window", 0), ("seed", 0)):
            value = getattr(self, name.split(".")[-1])
            if value is not None and value < least:
                raise InputError(f"{name}: expected {least} or more, got {value}")
        if not 0 <= self.moving_share <= 1:
            raise InputError(f"datasets.moving_share: expected a part of the pixels, 0 to 1, got {self.moving_share:g}")


class VideoDataset(Dataset[VideoBatch]):
    """Rays through the pixels of some frames of a video. Items are whole batches: use it with ``batch_size=None`` and ``BatchEpochs``.

    Item ``k`` is batch ``k % len`` of epoch ``k // len``; its number, the seed and, with hard sampling, the weights alone say what it holds.

    Args:
        scene: of the video.
        indices: which of its frames.
        frame: coordinates of the field.
        sampling: how rays are drawn.
        budget: bytes for frames; those beyond it are read every time.
        margin: pixels at each border of frames that no ray is drawn through.
        cache: folder that frames at the size of use are kept in.

    Attributes:
        weights: of the pixels; None without hard sampling.
        size: bytes of the frames that are kept.

    Raises:
        InputError: no frame, frames without disparity or flow, or a margin that leaves no pixel.
    """

    def __init__(
        self,
        scene: Scene,
        indices: tuple[int, ...],
        frame: VideoFrame,
        sampling: VideoSampling,
        budget: int,
        margin: int = 0,
        cache: Path | None = None,
    ) -> None:
        frames = scene.frames
        self.views = tuple(frames[i] for i in sorted(indices) if i < len(frames))
        if not self.views:
            raise InputError(f"scene {scene.name}: expected at least one frame that trains, got none; shorten datasets.holdout_indices")
        size = self.views[0].camera.image_size
        if not 0 <= 2 * margin < min(size):
            raise InputError(f"datasets.image_margin: expected 0 or more and less than half of {min(size)} pixels, got {margin}")
        self.frame, self.sampling, self.margin, self.cache = frame, sampling, margin, cache
        self._moments = [view.moment for view in self.views if view.moment is not None]
        last = len(frames) - 1
        for view in self.views:
            required_map(view, "disparity")
            if view.moment != last:
                required_map(view, "flow_forward")
            if view.moment != 0:
                required_map(view, "flow_backward")
        pixels = size[0] * size[1]
        batches = sampling.batches_per_epoch or max(1, pixels * len(self.views) // _PIXELS_PER_BATCH)
        self.order = FrameOrder(np.array(self._moments), batches, sampling.exclusion_window, sampling.seed)
        self.weights = PixelWeights(self._moments, size) if sampling.hard_sampling else None
        self.kept = min(len(self.views), budget // (BYTES_PER_PIXEL * pixels))
        self.size = self.kept * BYTES_PER_PIXEL * pixels
        self._tables: dict[int, FrameTable] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.order.batches

    def load(self) -> None:
        """Reads all frames that are kept, so that workers forked later need not. Raises InputError for a file that cannot be read."""
        for k in range(self.kept):
            self._table(k)

    def __getitem__(self, item: int) -> VideoBatch:
        k = self.order.frame(item)
        moment, table = self._moments[k], self._table(k)
        pixel = self._pixels(moment, item, table.static)
        uv_px = self._centres(pixel)
        origins, view_directions = (part[0] for part in self.frame.moments[moment].rays_through(uv_px))
        origins, directions = self.frame.rays(origins, view_directions)
        forward, backward = (
            (uv_px + flow[pixel]).float() if moment + step in self._moments else torch.full((len(pixel), 2), torch.nan)
            for flow, step in ((table.forward, 1), (table.backward, -1))
        )
        return VideoBatch(
            origins.float(),
            directions.float(),
            view_directions.float(),
            table.rgb[pixel].float() / 255,
            torch.full((len(pixel),), moment),
            table.disparity[pixel],
            table.static[pixel],
            forward,
            backward,
            pixel,
        )

    def _table(self, k: int) -> FrameTable:
        if k in self._tables:
            return self._tables[k]
        table = read_table(self.views[k], self.cache)
        if k < self.kept:
            self._tables[k] = table
        return table

    def _pixels(self, moment: int, item: int, static: Bool[Tensor, " p"]) -> Int64[Tensor, " n"]:
        rng = np.random.default_rng((self.sampling.seed, item, 1))
        count = self.sampling.rays_per_batch
        wanted = round(self.sampling.moving_share * count)
        moving = (self._inside() & ~static).nonzero()[:, 0] if wanted else torch.empty(0, dtype=torch.int64)
        wanted = wanted if len(moving) else 0
        return torch.cat([self._anywhere(moment, count - wanted, rng), moving[rng.integers(max(1, len(moving)), size=wanted)]])

    def _anywhere(self, moment: int, count: int, rng: np.random.Generator) -> Int64[Tensor, " n"]:
        if self.weights is not None:
            return torch.from_numpy(self.weights.draw(moment, count, self.margin, rng))
        height, width = self.frame.image_size
        row = rng.integers(self.margin, height - self.margin, count)
        return torch.from_numpy(row * width + rng.integers(self.margin, width - self.margin, count))

    def _inside(self) -> Bool[Tensor, " p"]:
        height, width = self.frame.image_size
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[self.margin : height - self.margin, self.margin : width - self.margin] = True
        return inside.flatten()

    def _centres(self, pixel: Int64[Tensor, " n"]) -> Float[Tensor, "n 2"]:
        width = self.frame.image_size[1]
        return torch.stack([pixel % width, pixel // width], 1).double() + 0.5
