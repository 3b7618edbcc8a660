"""Random order of the pixels of many photos without a table of it.

Symbols: v views, n pixels of a batch. Batches are numbered through all epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt64
from torch import Tensor
from torch.utils.data import Dataset

from npbgpp.data import Photo, PhotoCache, Scene, SceneNormalisation, View
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras

_ROUNDS = 6  # of the cipher


class PixelOrder:
    """Which pixels of one rectangle per view every batch draws: each pixel once per epoch.

    Each group of pixels is permuted and cut into batches, of which the last may be smaller; batches of several groups are permuted in their turn. Nothing of
    the size of a photo is kept.

    Args:
        corners: (row, column) of the first pixel of each rectangle.
        sizes: their (height, width).
        count: pixels of a batch.
        mixed: all pixels are one group; otherwise those of each view are.
        seed: of the order, at least 0.
    """

    def __init__(self, corners: Int64[np.ndarray, "v 2"], sizes: Int64[np.ndarray, "v 2"], count: int, mixed: bool, seed: int) -> None:
        self.corners, self.sizes, self.count, self.seed = corners, sizes, count, seed
        self._ends = np.cumsum(sizes.prod(1))
        self._groups = self._ends[-1:] if mixed else self._ends
        self._batches = np.cumsum(-(-np.diff(self._groups, prepend=0) // count))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return int(self._batches[-1])

    def drawn(self, item: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """(view, row, column) of the pixels of batch ``item % len`` of epoch ``item // len``; views ascend."""
        epoch, slot = divmod(item, len(self))
        (place,) = permuted(np.array([slot]), len(self), (self.seed, epoch)).tolist()
        group = int(np.searchsorted(self._batches, place, side="right"))
        first, batch = (int(self._groups[group - 1]), int(self._batches[group - 1])) if group else (0, 0)
        size = int(self._groups[group]) - first
        begin = (place - batch) * self.count
        positions = np.arange(begin, min(begin + self.count, size))
        pixels = np.sort(first + permuted(positions, size, (self.seed, epoch, group)))
        view = np.searchsorted(self._ends, pixels, side="right")
        row, column = np.divmod(pixels - (self._ends - self.sizes.prod(1))[view], self.sizes[view, 1])
        return view, row + self.corners[view, 0], column + self.corners[view, 1]


def permuted(positions: Int64[np.ndarray, " n"], count: int, key: Sequence[int]) -> Int64[np.ndarray, " n"]:
    """Where a pseudo-random permutation of ``range(count)`` sends some of its numbers, without the others being computed.

    A balanced Feistel network permutes a power of four of numbers; what leaves the range is permuted again until it is back (Black and Rogaway, Ciphers
    with arbitrary finite domains, 2002).

    Args:
        positions: in 0..count - 1.
        count: at least 1, less than 2^62.
        key: numbers of at least 0 that choose the permutation.
    """
    half = max(-(-(count - 1).bit_length() // 2), 1)
    bits, low = np.uint64(half), np.uint64((1 << half) - 1)
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    numbers = positions.astype(np.uint64)
    walking = np.arange(len(numbers))
    while len(walking):
        left, right = numbers[walking] >> bits, numbers[walking] & low
        for round_key in keys:
            left, right = right, left ^ (_mixed(right + round_key) & low)
        numbers[walking] = left << bits | right
        walking = walking[numbers[walking] >= count]
    return numbers.astype(np.int64)


def _mixed(numbers: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Every bit of a 64-bit number changes about half of all bits: the last steps of SplitMix64 (Steele et al. 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


# ----------------------------------------------------------------------
# Batches of rays through the pixels of training photos. Photos stay in 8 bits, and rays are computed for the drawn pixels only.


_COLOURS = {"white": 1.0, "black": 0.0}
_LEVELS = 255


@dataclass(frozen=True)
class RayBatch:
    """n rays and what they are to see, in coordinates of the field.

    Attributes:
        origins: where t is 0.
        directions: of unit length, or those of NDC, which are not.
        view_directions: of unit length, Euclidean also where ``directions`` are in NDC.
        near: t at which samples begin.
        far: t at which they end.
        rgb: colours in [0, 1], composited on the background.
        background: the colours behind the rays.
        alpha: opacity of the object; None where a view of the dataset has none.
        view: index of the view in its scene.
    """

    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    view_directions: Float[Tensor, "n 3"]
    near: Float[Tensor, " n"]
    far: Float[Tensor, " n"]
    rgb: Float[Tensor, "n 3"]
    background: Float[Tensor, "n 3"]
    alpha: Float[Tensor, " n"] | None
    view: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.rgb)

    def to(self, device: torch.device | str) -> "RayBatch":
        """The same rays on another device; called by Lightning."""
        return replace(self, **{name: value.to(device) for name, value in self.__dict__.items() if value is not None})

    def pin_memory(self) -> "RayBatch":
        """The same rays in page-locked memory; called by DataLoader."""
        return replace(self, **{name: value.pin_memory() for name, value in self.__dict__.items() if value is not None})


@dataclass(frozen=True)
class RaySampling:
    """How pixels are drawn.

    Attributes:
        rays_per_batch: pixels of a batch; the last one of an epoch, or of a view, may have fewer.
        sampling: ``all`` mixes the pixels of all views, ``image`` takes those of a batch from one view.
        precrop: part of the height and of the width around the centre of photos that the first batches are drawn from.
        precrop_batches: how many batches these are.
        background: ``white``, ``black`` or ``random``, a colour of its own for every ray.
        seed: of the order and of random backgrounds.
    """

    rays_per_batch: int = 1024
    sampling: str = "all"
    precrop: float = 0.5
    precrop_batches: int = 0
    background: str = "white"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rays_per_batch", 1), ("precrop_batches", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"system.rays.{name}: expected {least} or more, got {getattr(self, name)}")
        if self.sampling not in ("all", "image"):
            raise InputError(f"system.rays.sampling: expected all or image, got {self.sampling}")
        if not 0 < self.precrop <= 1:
            raise InputError(f"system.rays.precrop: expected a part of the photos, more than 0 and at most 1, got {self.precrop}")
        if self.background not in (*_COLOURS, "random"):
            raise InputError(f"system.rays.background: expected white, black or random, got {self.background}")


class RayDataset(Dataset[RayBatch]):
    """Rays through all pixels of some views of a scene. Items are whole batches: use it with ``batch_size=None`` and ``BatchEpochs``.

    Item ``k`` is batch ``k % len`` of epoch ``k // len``; there is no last one. Photos are kept in memory that forked workers share, without their
    background, which is composited here: photos with alpha or a mask on the background of ``sampling``, others are as photographed.

    Args:
        scene: where the views come from.
        indices: which views.
        frame: coordinates of the field.
        sampling: how pixels are drawn.
        budget: bytes for decoded photos.
        margin: pixels at each border of photos that no ray is drawn through.

    Attributes:
        size: bytes of the photos that are kept.

    Raises:
        InputError: no view, a random background for photos without alpha or mask, or more photos than the budget keeps where every batch needs all of them.
    """

    def __init__(
        self, scene: Scene, indices: tuple[int, ...], frame: SceneNormalisation, sampling: RaySampling, budget: int, margin: int = 0
    ) -> None:
        if not indices:
            raise InputError(
                f"scene {scene.name}: expected at least one view to draw rays from, got none; shorten datasets.val_indices or datasets.holdout_indices"
            )
        views = [scene.views[i] for i in indices]
        opaque = [view.name for view in views if not _has_alpha(view)]
        if sampling.background == "random" and opaque:
            raise InputError(
                f"system.rays.background: random needs photos with alpha or masks, view {opaque[0]} of scene {scene.name} has neither; choose white or "
                "black"
            )
        self.frame, self.sampling, self.indices = frame, sampling, np.array(indices)
        self.photos = PhotoCache([_uncomposited(view, sampling.background) for view in views], budget)
        if sampling.sampling == "all" and self.photos.kept < len(views):
            raise InputError(
                f"datasets.cache_memory_gb: expected memory for the {len(views)} training photos of scene {scene.name}, got enough for {self.photos.kept}; "
                "keep them (datasets.cache_images=true), raise it or datasets.downscale, or take the rays of a batch from one photo with system.rays.sampling=image"
            )
        cameras = [replace(view.camera, R=view.camera.R.double(), T=view.camera.T.double(), image_size=(1, 1)) for view in views]
        self._cameras = frame.cameras(Cameras.cat(cameras))
        self.size = self.photos.size
        self._has_alpha = not opaque
        sizes = np.array([view.camera.image_size for view in views])
        order = (sampling.rays_per_batch, sampling.sampling == "all", sampling.seed)
        if not 0 <= 2 * margin < sizes.min():
            raise InputError(f"datasets.image_margin: expected 0 or more and less than half of {sizes.min()} pixels, got {margin}")
        self._whole = PixelOrder(np.full_like(sizes, margin), sizes - 2 * margin, *order)
        crop = np.maximum(np.rint(sizes * sampling.precrop).astype(np.int64), 1)
        self._crop = PixelOrder((sizes - crop) // 2, crop, *order)

    def __len__(self) -> int:
        """Batches of an epoch over whole photos."""
        return len(self._whole)

    def load(self) -> None:
        """Decodes all photos that are kept, so that workers forked later need not. Raises InputError for a photo that cannot be read."""
        for k in range(self.photos.kept):
            self.photos.read(k)

    def __getitem__(self, item: int) -> RayBatch:
        pixels = self._crop if item < self.sampling.precrop_batches else self._whole
        view, row, column = pixels.drawn(item)
        colour, alpha = self._colours(view, row, column)
        if self.sampling.background == "random":
            generator = np.random.default_rng((self.sampling.seed, item))
            background = torch.from_numpy(generator.random((len(view), 3), dtype=np.float32))
        else:
            background = torch.full_like(colour, _COLOURS[self.sampling.background])
        # a camera of one pixel for each ray
        cameras = self._cameras[view.tolist()]
        corner = torch.from_numpy(np.stack([column, row], 1))
        cameras = replace(cameras, principal_point=cameras.principal_point - corner)
        origins, view_directions = (part[:, 0, 0] for part in cameras.rays())
        origins, directions = self.frame.rays(origins, view_directions)
        return RayBatch(
            origins.float(),
            directions.float(),
            view_directions.float(),
            torch.full((len(view),), self.frame.near),
            torch.full((len(view),), self.frame.far),
            colour * alpha[:, None] + background * (1 - alpha[:, None]),
            background,
            alpha if self._has_alpha else None,
            torch.from_numpy(self.indices[view]),
        )

    def _colours(
        self, view: Int64[np.ndarray, " n"], row: Int64[np.ndarray, " n"], column: Int64[np.ndarray, " n"]
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, " n"]]:
        """Colours before compositing and opacities of pixels; ``view`` ascends."""
        colours, alphas = [], []
        shown, begins = np.unique(view, return_index=True)
        for k, part in zip(shown.tolist(), np.split(np.arange(len(view)), begins[1:]), strict=True):
            photo = self.photos.read(k)
            at = (torch.from_numpy(row[part]), torch.from_numpy(column[part]))
            colours.append(photo.image[:, at[0], at[1]].T)
            alphas.append(_opacity(photo, self.photos.views[k], at))
        return torch.cat(colours).float() / _LEVELS, torch.cat(alphas)


def _has_alpha(view: View) -> bool:
    return view.alpha_is_mask or view.mask is not None


def _uncomposited(view: View, background: str) -> View:
    """The view with its colours as stored; transparency that is no mask is composited when the photo is read."""
    return replace(view, background=None if _has_alpha(view) else (_COLOURS[background],) * 3)


def _opacity(photo: Photo, view: View, at: tuple[Tensor, Tensor]) -> Float[Tensor, " n"]:
    """1 without mask; masks beside photos are 0 or 1, as ``read_photo`` composites them."""
    if photo.mask is None:
        return torch.ones(len(at[0]))
    values = photo.mask[0, at[0], at[1]]
    return (values >= 128).float() if view.mask is not None else values.float() / _LEVELS
