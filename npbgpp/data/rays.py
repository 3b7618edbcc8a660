"""Batches of rays through the pixels of training photos, drawn in random order. Photos stay in 8 bits; rays are computed for the drawn pixels only.

Symbols: v views, n pixels of a batch. Batches are numbered consecutively through all epochs.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import Dataset

from npbgpp.data import Photo, PhotoCache, Scene, SceneNormalisation, View
from npbgpp.data.sampling import Shard
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras

_COLOURS = {"white": 1.0, "black": 0.0}
_LEVELS = 255


@dataclass(frozen=True)
class RayBatch:
    """n rays with the colours of their pixels, in field coordinates.

    Attributes:
        origins: at t = 0.
        directions: unit vectors, or NDC directions of any length.
        view_directions: unit vectors, Euclidean also where ``directions`` are in NDC.
        near: t of the first sample.
        far: t of the last sample.
        rgb: colours in [0, 1], composited on the background.
        background: colours of the background.
        alpha: opacity of the object; None if a view of the dataset has neither alpha nor mask.
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
        behind = torch.device(device).type == "cuda"  # page-locked memory is copied without waiting
        return replace(self, **{name: value.to(device, non_blocking=behind) for name, value in self.__dict__.items() if value is not None})

    def pin_memory(self) -> "RayBatch":
        """The same rays in page-locked memory; called by DataLoader."""
        return replace(self, **{name: value.pin_memory() for name, value in self.__dict__.items() if value is not None})


@dataclass(frozen=True)
class RaySampling:
    """How pixels are drawn.

    Attributes:
        rays_per_batch: largest number of pixels of a batch, over all processes; the pixels of an epoch, or of a view, are divided evenly.
        sampling: ``all`` mixes the pixels of all views, ``image`` draws each batch from one view.
        precrop: central share of the height and of the width that the first batches are drawn from.
        precrop_batches: number of these batches.
        background: ``white``, ``black`` or ``random`` (one colour per ray).
        seed: of the order and of random backgrounds.

    Raises:
        InputError: a value out of range or an unknown choice.
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
            raise InputError(f"system.rays.precrop: expected a share of the photos, more than 0 and at most 1, got {self.precrop}")
        if self.background not in (*_COLOURS, "random"):
            raise InputError(f"system.rays.background: expected white, black or random, got {self.background}")


class PixelOrder:
    """Assigns the pixels of one rectangle per view to batches: each pixel once per epoch, as a function of the seed and the number of the batch.

    A group of pixels with ``b`` batches is cut into strata of ``b`` consecutive pixels. Batch ``k`` takes one pixel of each stratum, number ``k + shift``
    modulo ``b``, with a random shift per stratum and epoch. Batches come in random order. Memory: 4 bytes per batch of an epoch.

    Args:
        corners: (row, column) of the first pixel of each rectangle.
        sizes: their (height, width).
        count: largest number of pixels of a batch.
        mixed: the pixels of all views form one group; otherwise the pixels of each view do.
        seed: of the order, at least 0.
    """

    def __init__(self, corners: Int64[np.ndarray, "v 2"], sizes: Int64[np.ndarray, "v 2"], count: int, mixed: bool, seed: int) -> None:
        self.corners, self.sizes, self.seed = corners, sizes, seed
        self._ends = np.cumsum(sizes.prod(1))
        self._groups = np.concatenate([[0], self._ends[-1:] if mixed else self._ends])
        self._batches = np.concatenate([[0], np.cumsum(-(-np.diff(self._groups) // count))])
        self._permutation = (-1, np.zeros(0, np.int32))  # epoch, order of its batches

    def __len__(self) -> int:
        """Batches of an epoch."""
        return int(self._batches[-1])

    def pixels(self, item: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """(view, row, column) of the pixels of batch ``item % len`` of epoch ``item // len``; views ascend."""
        epoch, slot = divmod(item, len(self))
        if self._permutation[0] != epoch:
            self._permutation = epoch, np.random.default_rng((self.seed, epoch)).permutation(np.arange(len(self), dtype=np.int32))
        batch = int(self._permutation[1][slot])
        group = int(np.searchsorted(self._batches, batch, side="right")) - 1
        (first, end), (first_batch, end_batch) = self._groups[group : group + 2], self._batches[group : group + 2]
        strata = np.arange(first, end, end_batch - first_batch)
        shifts = np.random.default_rng((self.seed, epoch, 1 + group)).integers(end_batch - first_batch, size=len(strata))
        pixels = strata + (batch - first_batch + shifts) % (end_batch - first_batch)
        pixels = pixels[pixels < end]  # the last stratum may be shorter
        view = np.searchsorted(self._ends, pixels, side="right")
        row, column = np.divmod(pixels - (self._ends - self.sizes.prod(1))[view], self.sizes[view, 1])
        return view, row + self.corners[view, 0], column + self.corners[view, 1]


class RayDataset(Dataset[RayBatch]):
    """Batches of rays through all pixels of some views of a scene, for ``batch_size=None`` and ``BatchEpochs``.

    Item ``k`` is batch ``k % len`` of epoch ``k // len``, without end. Photos are kept in memory shared by forked workers, before compositing: photos with
    alpha or a mask are composited on the background of ``sampling`` here, others are as photographed.

    Args:
        scene: the scene.
        indices: its training views.
        normalisation: coordinates of the field.
        sampling: how pixels are drawn.
        budget: bytes for decoded photos.
        margin: pixels along each border of the photos without rays.

    Attributes:
        size: bytes of the photos in memory.
        shard: the process whose part of each batch is returned.

    Raises:
        InputError: no view, a margin that leaves no pixel, a random background for photos without alpha or mask, or more photos than the budget holds
            where every batch needs all of them.
    """

    def __init__(
        self, scene: Scene, indices: tuple[int, ...], normalisation: SceneNormalisation, sampling: RaySampling, budget: int, margin: int = 0
    ) -> None:
        if not indices:
            raise InputError(
                f"scene {scene.name}: expected at least one view to draw rays from, got none; shorten datasets.val_indices or datasets.test_indices"
            )
        views = [scene.views[i] for i in indices]
        opaque = [view.name for view in views if not _has_alpha(view)]
        if sampling.background == "random" and opaque:
            raise InputError(
                f"system.rays.background: random needs photos with alpha or masks, view {opaque[0]} of scene {scene.name} has neither; choose white or "
                "black"
            )
        self.normalisation, self.sampling, self.indices = normalisation, sampling, np.array(indices)
        self.shard = Shard()
        self.photos = PhotoCache([_uncomposited(view, sampling.background) for view in views], budget)
        if sampling.sampling == "all" and self.photos.kept < len(views):
            raise InputError(
                f"datasets.cache_memory_gb: expected memory for the {len(views)} training photos of scene {scene.name}, got enough for {self.photos.kept}; "
                "raise it, set datasets.cache_images=true, raise datasets.downscale, or draw each batch from one photo with system.rays.sampling=image"
            )
        cameras = [replace(view.camera, R=view.camera.R.double(), T=view.camera.T.double(), image_size=(1, 1)) for view in views]
        self._cameras = normalisation.cameras(Cameras.cat(cameras))
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
        """Decodes the photos that fit in memory before workers are forked. Raises InputError for a photo that cannot be read."""
        for k in range(self.photos.kept):
            self.photos.read(k)

    def __getitem__(self, item: int) -> RayBatch:
        order = self._crop if item < self.sampling.precrop_batches else self._whole
        pixels = order.pixels(item)
        part = self.shard.part(len(pixels[0]))
        view, row, column = (values[part] for values in pixels)
        colour, alpha = self._colours(view, row, column)
        if self.sampling.background == "random":
            generator = np.random.default_rng((self.sampling.seed, item))
            background = torch.from_numpy(generator.random((len(pixels[0]), 3), dtype=np.float32)[part])
        else:
            background = torch.full_like(colour, _COLOURS[self.sampling.background])
        # one camera of a single pixel per ray
        cameras = self._cameras[view.tolist()]
        corner = torch.from_numpy(np.stack([column, row], 1))
        cameras = replace(cameras, principal_point=cameras.principal_point - corner)
        origins, view_directions = (part[:, 0, 0] for part in cameras.rays())
        origins, directions = self.normalisation.rays(origins, view_directions)
        return RayBatch(
            origins.float(),
            directions.float(),
            view_directions.float(),
            torch.full((len(view),), self.normalisation.near),
            torch.full((len(view),), self.normalisation.far),
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
    """The view with its stored colours; transparency that is no mask is composited when the photo is read."""
    return replace(view, background=None if _has_alpha(view) else (_COLOURS[background],) * 3)


def _opacity(photo: Photo, view: View, at: tuple[Tensor, Tensor]) -> Float[Tensor, " n"]:
    """1 without mask; mask files are thresholded as in ``read_photo``."""
    if photo.mask is None:
        return torch.ones(len(at[0]))
    values = photo.mask[0, at[0], at[1]]
    return (values >= 128).float() if view.mask is not None else values.float() / _LEVELS
