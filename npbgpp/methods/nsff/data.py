"""Hard sampling: which pixels of the frames of a video are drawn more often than others.

Symbols: f frames of h rows and w columns, n pixels that are drawn.
"""

import functools
import hashlib
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from npbgpp.core.distributed import gather
from npbgpp.core.files import load_tensors, save_tensors
from npbgpp.data import Scene, VideoSampling, View, read_disparity, read_photo, read_static, read_uv, required_map
from npbgpp.errors import InputError
from npbgpp.losses import ssim_map
from npbgpp.methods.nsff.normalisation import VideoNormalisation

_LEAST = 1e-3  # a pixel that is right now may be wrong later


class PixelWeights:
    """One weight for each pixel of each frame, at first all alike. Worker processes that are forked share them with the process that updates them.

    Args:
        moments: of the frames.
        image_size: (height, width).
    """

    def __init__(self, moments: Sequence[int], image_size: tuple[int, int]) -> None:
        self.moments, self.image_size = tuple(moments), image_size
        self._map()
        self._weights.fill_(1)

    def _map(self) -> None:
        shape = (len(self.moments), *self.image_size)
        # anonymous and shared: not bound by the size of /dev/shm
        memory = mmap.mmap(-1, 4 * int(np.prod(shape)))
        self._weights = torch.frombuffer(memory, dtype=torch.float32).view(shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_weights": self._weights.clone()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()
        self._weights.copy_(state["_weights"])

    def update(self, moment: int, dissimilarity: Float[Tensor, "h w"]) -> None:
        """Sets the weights of a frame: 1 - SSIM of what was rendered and the photo, of every pixel, or anything else that grows with the error.

        The pixels of a frame keep a chance of a thousandth of the largest one at least.
        """
        assert torch.isfinite(dissimilarity).all() and dissimilarity.shape == self.image_size
        weights = dissimilarity.detach().float().cpu().clamp(min=0)
        largest = weights.max()
        self._weights[self.moments.index(moment)] = weights.clamp(min=_LEAST * largest) if largest > 0 else 1.0

    def of(self, moment: int) -> Float[Tensor, "h w"]:
        """The weights of a frame; not to be written to."""
        return self._weights[self.moments.index(moment)]

    def draw(self, moment: int, count: int, margin: int, rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
        """Pixels of a frame, with replacement, by their weights; numbers count row by row. None of them is closer to a border than ``margin``."""
        inner = np.zeros(self.image_size)
        inside = slice(margin, -margin or None), slice(margin, -margin or None)
        inner[inside] = self.of(moment).numpy()[inside]
        sums = np.cumsum(inner)
        return np.searchsorted(sums, rng.random(count) * sums[-1], side="right")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"moments": list(self.moments), "weights": self._weights.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes weights of a checkpoint. Raises InputError when they are those of other frames or of another size."""
        weights = state["weights"]
        if list(state["moments"]) != list(self.moments) or tuple(weights.shape[1:]) != self.image_size:
            height, width = self.image_size
            raise InputError(
                f"checkpoint: expected weights of hard sampling for {len(self.moments)} frames of {width}x{height} pixels, got {len(state['moments'])} of "
                f"{weights.shape[2]}x{weights.shape[1]}; resume with the same datasets.start_end, holdout_indices and size"
            )
        self._weights.copy_(weights)


# ----------------------------------------------------------------------
# Which frame of a video the rays of a batch come from.


_ROUNDS = 500  # of balancing


class FrameOrder:
    """The frame of every batch. Batches are numbered through all epochs, and the number alone says which frame it is of.

    Every epoch begins anew: its first frame may be close to the last one of the epoch before.

    Args:
        moments: of the frames, ascending.
        batches: of an epoch.
        window: two batches in a row are of frames that are farther apart than that; it shrinks until every frame has two that can follow it.
        seed: of the order, at least 0.

    Attributes:
        window: what was left of it; -1 where there is one frame only, which follows itself.
    """

    def __init__(self, moments: Int64[np.ndarray, " f"], batches: int, window: int, seed: int) -> None:
        apart = np.abs(moments[:, None] - moments)
        count = len(moments)
        while ((apart > window).sum(1) < min(2, count - 1)).any() or (window >= 0 and count == 1):
            window -= 1
        self.batches, self.window, self.seed = batches, window, seed
        self._steps = np.cumsum(_balanced(apart > window), axis=1)
        self._epoch = functools.lru_cache(maxsize=2)(self._order)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._epoch = functools.lru_cache(maxsize=2)(self._order)

    def frame(self, item: int) -> int:
        """Position of the frame of batch ``item % batches`` of epoch ``item // batches``."""
        epoch, slot = divmod(item, self.batches)
        return int(self._epoch(epoch)[slot])

    def _order(self, epoch: int) -> Int64[np.ndarray, " n"]:
        draws = np.random.default_rng((self.seed, epoch)).random(self.batches)
        frames = np.empty(self.batches, np.int64)
        frames[0] = int(draws[0] * len(self._steps))
        for k in range(1, self.batches):
            steps = self._steps[frames[k - 1]]
            frames[k] = np.searchsorted(steps, draws[k] * steps[-1], side="right")
        return frames


def _balanced(allowed: np.ndarray) -> Float64[np.ndarray, "f f"]:
    """Chances of the steps from each frame to each: 0 where they are not allowed, rows and columns sum to 1 (Sinkhorn and Knopp, 1967)."""
    chances = allowed.astype(np.float64)
    for _ in range(_ROUNDS):
        chances /= chances.sum(0)
        chances /= chances.sum(1, keepdims=True)
    return chances


# ----------------------------------------------------------------------
# All that is known of the pixels of one frame of a video, at the size of use; kept in a folder where that is wanted.


_FORMAT = 1
BYTES_PER_PIXEL = 24


@dataclass(frozen=True)
class FrameTable:
    """One frame.

    Attributes:
        rgb: colours.
        disparity: see ``read_disparity``.
        static: see ``read_static``.
        forward, backward: flow to the next frame and to the one before, pixels; not a number where there is none.
    """

    rgb: UInt8[Tensor, "p 3"]
    disparity: Float32[Tensor, " p"]
    static: Bool[Tensor, " p"]
    forward: Float32[Tensor, "p 2"]
    backward: Float32[Tensor, "p 2"]


def read_table(view: View, folder: Path | None = None) -> FrameTable:
    """Reads a frame and its motion maps.

    Args:
        view: the frame.
        folder: where the table is kept; one that is there and was made of the same files is read in place of them.

    Raises:
        InputError: a file that is missing or damaged, or of another shape than the frame.
    """
    path = None if folder is None else folder / f"{view.name}-{_digest(view)}.pt"
    if path is not None and path.is_file():
        try:
            return FrameTable(**load_tensors(path, "cached frame"))
        except TypeError as error:
            raise InputError(
                f"cached frame {path}: expected the tables of a frame, got other tensors ({error}); remove the file"
            ) from error
    photo, motion = read_photo(view), view.motion
    assert motion is not None
    nothing = torch.full((*view.camera.image_size, 2), torch.nan)
    table = FrameTable(
        photo.image.flatten(1).T.contiguous(),
        read_disparity(view).flatten(),
        read_static(view).flatten(),
        (nothing if motion.flow_forward is None else read_uv(view, True)).flatten(0, 1),
        (nothing if motion.flow_backward is None else read_uv(view, False)).flatten(0, 1),
    )
    if path is not None:
        save_tensors(path, dict(table.__dict__))
    return table


def _digest(view: View) -> str:
    """Changes with the files that a table is made of, and with its size."""
    assert view.motion is not None
    files = [view.image, *(part for part in astuple(view.motion) if isinstance(part, Path))]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((_FORMAT, view.camera.image_size, view.motion.inverted, stats)).encode()).hexdigest()[:16]


# ----------------------------------------------------------------------
# Batches of rays through the pixels of one frame of a video, with what is known of its motion.


_PIXELS_PER_BATCH = 1000  # of all frames: how long an epoch is


@dataclass(frozen=True)
class VideoBatch:
    """n rays through pixels of one frame and what they are to see, in NDC of the field of the video (``npbgpp.methods.nsff.normalisation``).

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
        cache: folder that keeps frames at the size of use.
        rays_per_batch: pixels of a batch, all of one frame, drawn with replacement.
        seed: of the order of frames and of the pixels.

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
        frame: VideoNormalisation,
        sampling: VideoSampling,
        budget: int,
        margin: int = 0,
        cache: Path | None = None,
        rays_per_batch: int = 512,
        seed: int = 0,
    ) -> None:
        frames = scene.frames
        self.views = tuple(frames[i] for i in sorted(indices) if i < len(frames))
        if not self.views:
            raise InputError(f"scene {scene.name}: expected at least one frame that trains, got none; shorten datasets.holdout_indices")
        size = self.views[0].camera.image_size
        if not 0 <= 2 * margin < min(size):
            raise InputError(f"datasets.image_margin: expected 0 or more and less than half of {min(size)} pixels, got {margin}")
        self.frame, self.sampling, self.margin, self.cache = frame, sampling, margin, cache
        self.rays_per_batch, self.seed = rays_per_batch, seed
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
        self.order = FrameOrder(np.array(self._moments), batches, sampling.exclusion_window, seed)
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
        rng = np.random.default_rng((self.seed, item, 1))
        count = self.rays_per_batch
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


# ----------------------------------------------------------------------
# Where training drew pixels unlike the photos, so that the next epoch draws more of them (``hard_sampling`` of nsff_pl).


@dataclass(frozen=True)
class _Drawn:
    """Pixels of a batch, in 8 bits: as they were rendered, and as they are."""

    moment: int
    pixel: Int64[Tensor, " n"]
    rendered: UInt8[Tensor, "n 3"]
    photo: UInt8[Tensor, "n 3"]


class HardPixels:
    """Remembers the last colours of pixels, on the CPU and out of checkpoints: only the weights made from them are kept.

    Args:
        weights: of the pixels of all frames, which are changed.
    """

    def __init__(self, weights: PixelWeights) -> None:
        self.weights = weights
        self._epoch: list[_Drawn] = []
        self._rendered: dict[int, Tensor] = {}
        self._photo: dict[int, Tensor] = {}
        self._known: dict[int, Tensor] = {}

    def record(self, moment: int, pixel: Int64[Tensor, " n"], rgb: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"]) -> None:
        """Takes colours of pixels of a frame, and those of the photo."""
        self._epoch.append(_Drawn(moment, pixel.cpu(), _bytes(rgb), _bytes(target)))

    def reweigh(self) -> None:
        """Ends an epoch, of all processes together: weights become (1 - SSIM) / 2 around each pixel.

        Pixels that were never drawn keep theirs, and count as alike in the windows of others.
        """
        height, width = self.weights.image_size
        changed = set()
        for drawn in (batch for part in gather(self._epoch) for batch in part):
            changed.add(drawn.moment)
            for store, values in ((self._rendered, drawn.rendered), (self._photo, drawn.photo)):
                store.setdefault(drawn.moment, torch.zeros(height * width, 3, dtype=torch.uint8))[drawn.pixel] = values
            self._known.setdefault(drawn.moment, torch.zeros(height * width, dtype=torch.bool))[drawn.pixel] = True
        self._epoch = []
        for moment in sorted(changed):
            pair = (store[moment].view(height, width, 3).permute(2, 0, 1)[None].float() / 255 for store in (self._rendered, self._photo))
            unlike = (0.5 * (1 - ssim_map(*pair)[0].mean(0))).clamp(0, 1)
            known = self._known[moment].view(height, width)
            self.weights.update(moment, torch.where(known, unlike, self.weights.of(moment)))


def _bytes(rgb: Float[Tensor, "n 3"]) -> UInt8[Tensor, "n 3"]:
    return (rgb.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
