"""Training data of NSFF: batches of rays from the frames of a video, their order, cached motion maps, hard sampling.

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
from npbgpp.data.sampling import Shard
from npbgpp.errors import InputError
from npbgpp.losses import ssim_map
from npbgpp.methods.nsff.normalisation import VideoNormalisation

_LEAST = 1e-3  # smallest relative weight: pixels without error may get one later


class PixelWeights:
    """Sampling weights of all pixels of all frames, initially equal, in memory shared with forked worker processes.

    Args:
        time_steps: of the frames.
        image_size: (height, width).
    """

    def __init__(self, time_steps: Sequence[int], image_size: tuple[int, int]) -> None:
        self.time_steps, self.image_size = tuple(time_steps), image_size
        self._map()
        self._weights.fill_(1)

    def _map(self) -> None:
        shape = (len(self.time_steps), *self.image_size)
        # anonymous and shared: not bound by the size of /dev/shm
        memory = mmap.mmap(-1, 4 * int(np.prod(shape)))
        self._weights = torch.frombuffer(memory, dtype=torch.float32).view(shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_weights": self._weights.clone()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()
        self._weights.copy_(state["_weights"])

    def update(self, time_step: int, dissimilarity: Float[Tensor, "h w"]) -> None:
        """Sets the weights of a frame to an error per pixel, such as 1 - SSIM, but at least a thousandth of the largest one."""
        assert torch.isfinite(dissimilarity).all() and dissimilarity.shape == self.image_size
        weights = dissimilarity.detach().float().cpu().clamp(min=0)
        largest = weights.max()
        self._weights[self.time_steps.index(time_step)] = weights.clamp(min=_LEAST * largest) if largest > 0 else 1.0

    def of(self, time_step: int) -> Float[Tensor, "h w"]:
        """The weights of a frame, read-only."""
        return self._weights[self.time_steps.index(time_step)]

    def draw(self, time_step: int, count: int, margin: int, rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
        """Draws flat pixel indices of a frame by weight, with replacement, at least ``margin`` pixels from the borders."""
        inner = np.zeros(self.image_size)
        inside = slice(margin, -margin or None), slice(margin, -margin or None)
        inner[inside] = self.of(time_step).numpy()[inside]
        sums = np.cumsum(inner)
        return np.searchsorted(sums, rng.random(count) * sums[-1], side="right")

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints."""
        return {"moments": list(self.time_steps), "weights": self._weights.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores ``state_dict``. Raises InputError for weights of other frames or another size."""
        weights = state["weights"]
        if list(state["moments"]) != list(self.time_steps) or tuple(weights.shape[1:]) != self.image_size:
            height, width = self.image_size
            raise InputError(
                f"checkpoint: expected weights of hard sampling for {len(self.time_steps)} frames of {width}x{height} pixels, got {len(state['moments'])} of "
                f"{weights.shape[2]}x{weights.shape[1]}; resume with the same datasets.start_end, test_indices and size"
            )
        self._weights.copy_(weights)


# ---------------------------------------------------------------- order of frames


_ROUNDS = 500  # Sinkhorn iterations


class FrameOrder:
    """The frame of every batch, a function of the seed and the batch number across epochs: a random walk that visits all frames equally often.

    Args:
        time_steps: of the frames, ascending.
        batches: of an epoch.
        window: minimum frame gap between consecutive batches of an epoch, exclusive; reduced until every frame has two successors.
        seed: of the order, at least 0.

    Attributes:
        window: the reduced window; -1 with a single frame.
    """

    def __init__(self, time_steps: Int64[np.ndarray, " f"], batches: int, window: int, seed: int) -> None:
        apart = np.abs(time_steps[:, None] - time_steps)
        count = len(time_steps)
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
        """Index of the frame of batch ``item % batches`` of epoch ``item // batches``."""
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
    """Doubly stochastic transition matrix of frames with zeros where a transition is not allowed (Sinkhorn and Knopp, 1967)."""
    chances = allowed.astype(np.float64)
    for _ in range(_ROUNDS):
        chances /= chances.sum(0)
        chances /= chances.sum(1, keepdims=True)
    return chances


# ---------------------------------------------------------------- frames


_FORMAT = 1
BYTES_PER_PIXEL = 24


@dataclass(frozen=True)
class FrameTable:
    """Colours and motion maps of a frame at training size; p pixels.

    Attributes:
        rgb: colours.
        disparity: see ``read_disparity``.
        static: see ``read_static``.
        forward, backward: flow to the next and the previous frame, pixels; nan without flow.
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
        folder: cache of tables; entries of the same files are read from it.

    Raises:
        InputError: a missing or damaged file, or one of another size than the frame.
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
    """Cache key: depends on the files of a table and its size."""
    assert view.motion is not None
    files = [view.image, *(part for part in astuple(view.motion) if isinstance(part, Path))]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((_FORMAT, view.camera.image_size, view.motion.inverted, stats)).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- batches


_PIXELS_PER_BATCH = 1000  # pixels of the video per batch of an epoch


@dataclass(frozen=True)
class VideoBatch:
    """n rays through pixels of one frame and their targets; rays are in NDC of ``npbgpp.methods.nsff.normalisation``.

    Attributes:
        origins: t = 0.
        directions: reach infinity at t = 1; not of unit length.
        view_directions: of unit length, Euclidean field coordinates.
        rgb: colours in [0, 1].
        time_step: of the frame, the same for all rays.
        disparity: larger is nearer; scale and offset differ between frames.
        static: pixels without motion; all pixels if the frame has no mask.
        uv_forward_px: corresponding pixel in the next frame by optical flow, centres at +0.5; nan if there is no next frame or it is held out.
        uv_backward_px: the same in the previous frame.
        pixel: flat index in the frame.
    """

    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    view_directions: Float[Tensor, "n 3"]
    rgb: Float[Tensor, "n 3"]
    time_step: Int64[Tensor, " n"]
    disparity: Float[Tensor, " n"]
    static: Bool[Tensor, " n"]
    uv_forward_px: Float[Tensor, "n 2"]
    uv_backward_px: Float[Tensor, "n 2"]
    pixel: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.rgb)

    def to(self, device: torch.device | str) -> "VideoBatch":
        """Copy on another device; called by Lightning."""
        behind = torch.device(device).type == "cuda"  # page-locked memory is copied without waiting
        return replace(self, **{name: value.to(device, non_blocking=behind) for name, value in self.__dict__.items()})

    def pin_memory(self) -> "VideoBatch":
        """Copy in page-locked memory; called by DataLoader."""
        return replace(self, **{name: value.pin_memory() for name, value in self.__dict__.items()})


class VideoDataset(Dataset[VideoBatch]):
    """Rays through the pixels of frames of a video. Items are whole batches: use it with ``batch_size=None`` and ``BatchEpochs``.

    Item ``k`` is batch ``k % len`` of epoch ``k // len``. It depends on its number, the seed and, with hard sampling, the weights alone.

    Args:
        scene: the video.
        indices: of its training frames.
        normalisation: coordinates of the field.
        sampling: how rays are drawn.
        budget: bytes of frames kept in memory; further frames are read on every access.
        margin: border of frames without rays, pixels.
        cache: folder with frames at training size.
        rays_per_batch: rays of a batch over all processes, all of one frame, drawn with replacement.
        seed: of the order of frames and of the pixels.

    Attributes:
        weights: of the pixels; None without hard sampling.
        size: bytes of the frames kept in memory.
        shard: the process whose part of each batch is returned.

    Raises:
        InputError: no frame, frames without disparity or flow, or a margin that leaves no pixel.
    """

    def __init__(
        self,
        scene: Scene,
        indices: tuple[int, ...],
        normalisation: VideoNormalisation,
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
            raise InputError(f"scene {scene.name}: expected at least one frame that trains, got none; shorten datasets.test_indices")
        size = self.views[0].camera.image_size
        if not 0 <= 2 * margin < min(size):
            raise InputError(f"datasets.image_margin: expected 0 or more and less than half of {min(size)} pixels, got {margin}")
        self.normalisation, self.sampling, self.margin, self.cache = normalisation, sampling, margin, cache
        self.rays_per_batch, self.seed, self.shard = rays_per_batch, seed, Shard()
        self._time_steps = [view.time_step for view in self.views if view.time_step is not None]
        last = len(frames) - 1
        for view in self.views:
            required_map(view, "disparity")
            if view.time_step != last:
                required_map(view, "flow_forward")
            if view.time_step != 0:
                required_map(view, "flow_backward")
        pixels = size[0] * size[1]
        batches = sampling.batches_per_epoch or max(1, pixels * len(self.views) // _PIXELS_PER_BATCH)
        self.order = FrameOrder(np.array(self._time_steps), batches, sampling.exclusion_window, seed)
        self.weights = PixelWeights(self._time_steps, size) if sampling.hard_sampling else None
        self.kept = min(len(self.views), budget // (BYTES_PER_PIXEL * pixels))
        self.size = self.kept * BYTES_PER_PIXEL * pixels
        self._tables: dict[int, FrameTable] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.order.batches

    def load(self) -> None:
        """Reads the frames kept in memory, before workers are forked. Raises InputError for a file that cannot be read."""
        for k in range(self.kept):
            self._table(k)

    def __getitem__(self, item: int) -> VideoBatch:
        k = self.order.frame(item)
        time_step, table = self._time_steps[k], self._table(k)
        drawn = self._pixels(time_step, item, table.static)
        pixel = drawn[torch.from_numpy(self.shard.part(len(drawn)))]
        uv_px = self._centres(pixel)
        origins, view_directions = (part[0] for part in self.normalisation.frame_cameras[time_step].rays_through(uv_px))
        origins, directions = self.normalisation.rays(origins, view_directions)
        forward, backward = (
            (uv_px + flow[pixel]).float() if time_step + step in self._time_steps else torch.full((len(pixel), 2), torch.nan)
            for flow, step in ((table.forward, 1), (table.backward, -1))
        )
        return VideoBatch(
            origins.float(),
            directions.float(),
            view_directions.float(),
            table.rgb[pixel].float() / 255,
            torch.full((len(pixel),), time_step),
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

    def _pixels(self, time_step: int, item: int, static: Bool[Tensor, " p"]) -> Int64[Tensor, " n"]:
        rng = np.random.default_rng((self.seed, item, 1))
        count = self.rays_per_batch
        wanted = round(self.sampling.moving_share * count)
        moving = (self._inside() & ~static).nonzero()[:, 0] if wanted else torch.empty(0, dtype=torch.int64)
        wanted = wanted if len(moving) else 0
        return torch.cat([self._anywhere(time_step, count - wanted, rng), moving[rng.integers(max(1, len(moving)), size=wanted)]])

    def _anywhere(self, time_step: int, count: int, rng: np.random.Generator) -> Int64[Tensor, " n"]:
        if self.weights is not None:
            return torch.from_numpy(self.weights.draw(time_step, count, self.margin, rng))
        height, width = self.normalisation.image_size
        row = rng.integers(self.margin, height - self.margin, count)
        return torch.from_numpy(row * width + rng.integers(self.margin, width - self.margin, count))

    def _inside(self) -> Bool[Tensor, " p"]:
        height, width = self.normalisation.image_size
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[self.margin : height - self.margin, self.margin : width - self.margin] = True
        return inside.flatten()

    def _centres(self, pixel: Int64[Tensor, " n"]) -> Float[Tensor, "n 2"]:
        width = self.normalisation.image_size[1]
        return torch.stack([pixel % width, pixel // width], 1).double() + 0.5


# ---------------------------------------------------------------- hard sampling (nsff_pl)


@dataclass(frozen=True)
class _Drawn:
    """Pixels of a batch, rendered and true colours in 8 bits."""

    time_step: int
    pixel: Int64[Tensor, " n"]
    rendered: UInt8[Tensor, "n 3"]
    photo: UInt8[Tensor, "n 3"]


class HardSampling:
    """Updates sampling weights by the error of the last rendered colours of pixels. Colours are kept on the CPU and not in checkpoints.

    Args:
        weights: updated in place.
    """

    def __init__(self, weights: PixelWeights) -> None:
        self.weights = weights
        self._epoch: list[_Drawn] = []
        self._rendered: dict[int, Tensor] = {}
        self._photo: dict[int, Tensor] = {}
        self._known: dict[int, Tensor] = {}

    def record(self, time_step: int, pixel: Int64[Tensor, " n"], rgb: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"]) -> None:
        """Stores rendered and true colours of pixels of a frame."""
        self._epoch.append(_Drawn(time_step, pixel.cpu(), _bytes(rgb), _bytes(target)))

    def reweigh(self) -> None:
        """Sets the weights to (1 - SSIM) / 2 of each pixel at the end of an epoch; a collective call.

        Pixels that were never drawn keep their weights and have no error in the windows of others.
        """
        height, width = self.weights.image_size
        changed = set()
        for drawn in (batch for part in gather(self._epoch) for batch in part):
            changed.add(drawn.time_step)
            for store, values in ((self._rendered, drawn.rendered), (self._photo, drawn.photo)):
                store.setdefault(drawn.time_step, torch.zeros(height * width, 3, dtype=torch.uint8))[drawn.pixel] = values
            self._known.setdefault(drawn.time_step, torch.zeros(height * width, dtype=torch.bool))[drawn.pixel] = True
        self._epoch = []
        for time_step in sorted(changed):
            pair = (store[time_step].view(height, width, 3).permute(2, 0, 1)[None].float() / 255 for store in (self._rendered, self._photo))
            unlike = (0.5 * (1 - ssim_map(*pair)[0].mean(0))).clamp(0, 1)
            known = self._known[time_step].view(height, width)
            self.weights.update(time_step, torch.where(known, unlike, self.weights.of(time_step)))


def _bytes(rgb: Float[Tensor, "n 3"]) -> UInt8[Tensor, "n 3"]:
    return (rgb.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
