"""NeRF (Mildenhall et al., ECCV 2020): a radiance field of one scene.

Symbols: n rays of a batch, s samples of each, p samples of all rays together, v views. Coordinates of the field are those of ``npbgpp.data.normalisation``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import Dataset

from npbgpp.data import Photo, PhotoCache, Scene, SceneNormalisation, View, scene_normalisation
from npbgpp.data.sampling import Shard
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras
from npbgpp.io import depth_range
from npbgpp.methods.base import FieldExport, Render, RunContext, TrainingViews
from npbgpp.methods.radiance import RadianceSettings, RadianceSystem
from npbgpp.volume import Composited, OccupancyGrid, RadianceField, Rays, composite, composite_packed, sample_pdf, stratified

# ----------------------------------------------------------------------
# Model: hierarchical volume rendering with a coarse and a fine radiance field (section 5.2)


_MARCHED_CHUNKS = 16  # points looked up in the grid per point of a chunk: most are empty
_WAVE = 16  # samples of a ray per query, between early-termination tests
_OPAQUE = 9.2  # optical depth of early termination: transmittance 1e-4


@dataclass(frozen=True)
class NerfSampling:
    """How rays are sampled.

    Attributes:
        samples: depths per ray for the coarse field.
        importance: importance samples for the fine field; 0: no fine field.
        perturb: in training, fraction of its stratum that a depth is drawn from; 0: evenly spaced depths.
        noise_std: in training, standard deviation of noise added to densities.
        disparity: depths evenly spaced in 1 / depth.
        marched: in evaluation, depths per ray that an occupancy grid selects from.

    Raises:
        InputError: a number out of range.
    """

    samples: int = 64
    importance: int = 128
    perturb: float = 1.0
    noise_std: float = 1.0
    disparity: bool = False
    marched: int = 512

    def __post_init__(self) -> None:
        # importance sampling uses the midpoints of the samples and all weights but the first and the last
        for name, number, least, most in (
            ("samples", self.samples, 3 if self.importance else 1, torch.inf),
            ("importance", self.importance, 0, torch.inf),
            ("perturb", self.perturb, 0, 1),
            ("noise_std", self.noise_std, 0, torch.inf),
            ("marched", self.marched, 1, torch.inf),
        ):
            if not least <= number <= most:
                raise InputError(f"{name} of rays: expected {f'{least} or more' if most > 1 else f'{least} to {most}'}, got {number:g}")


@dataclass(frozen=True)
class NerfRender:
    """n rays rendered by both fields.

    Attributes:
        coarse: by the coarse field, without colours if only its densities were needed; None if it was skipped.
        fine: by the fine field; None without one.
    """

    coarse: Composited | None
    fine: Composited | None

    def final(self) -> Composited:
        """The fine rendering, or the coarse one if there is no other."""
        final = self.coarse if self.fine is None else self.fine
        assert final is not None, "a render holds at least one field"
        return final


class Nerf(nn.Module):
    """A coarse and, with importance sampling, a fine radiance field.

    Args:
        sampling: how rays are sampled.
        depth, width, skips, xyz_frequencies, dir_frequencies: of both fields, see RadianceField.
    """

    def __init__(
        self,
        sampling: NerfSampling,
        *,
        depth: int = 8,
        width: int = 256,
        skips: Sequence[int] = (4,),
        xyz_frequencies: int = 10,
        dir_frequencies: int = 4,
    ) -> None:
        super().__init__()

        def field() -> RadianceField:
            return RadianceField(depth=depth, width=width, skips=skips, xyz_frequencies=xyz_frequencies, dir_frequencies=dir_frequencies)

        self.sampling = sampling
        self.nerf_coarse = field()
        self.nerf_fine = field() if sampling.importance else None

    @property
    def final(self) -> RadianceField:
        """The field that renders pixels: the fine one if there is one."""
        return self.nerf_coarse if self.nerf_fine is None else self.nerf_fine

    def render(
        self,
        rays: Rays,
        view_directions: Float[Tensor, "n 3"],
        training: bool,
        grid: OccupancyGrid | None = None,
        chunk: int = 32768,
        *,
        background: Float[Tensor, "*each 3"] | None = None,
        coarse_colours: bool = False,
        generator: torch.Generator | None = None,
    ) -> NerfRender:
        """Renders rays.

        Args:
            rays: in coordinates of the fields.
            view_directions: viewing directions for the fields; nerf_pl uses ``rays.directions``, which are not normalised.
            training: random depths and noise, colours of both fields, all rays at once. Otherwise rendering is deterministic and independent of ``chunk``;
                call it under ``torch.no_grad`` if no gradient is needed.
            grid: the density is 0 in empty cells, without a query. In evaluation, the grid replaces the coarse field, and rays are terminated early.
            chunk: points per query of a field; in evaluation halved while the device is out of memory.
            background: one colour or one per ray; None: black.
            coarse_colours: in evaluation without a grid, render colours of the coarse field, too.
            generator: random number generator.
        """
        if training:
            return self._coarse_to_fine(rays, view_directions, True, grid, chunk, True, background, generator)
        while True:
            try:
                return self._render_chunks(rays, view_directions, grid, chunk, coarse_colours, background)
            except torch.OutOfMemoryError:
                if chunk <= 1:
                    raise
            chunk //= 2

    # ------------------------------------------------------------------ evaluation, in chunks of rays
    def _render_chunks(
        self,
        rays: Rays,
        view_directions: Float[Tensor, "n 3"],
        grid: OccupancyGrid | None,
        chunk: int,
        coarse_colours: bool,
        background: Float[Tensor, "*each 3"] | None,
    ) -> NerfRender:
        settings = self.sampling
        along = settings.samples + settings.importance if grid is None else settings.marched
        size = max(1, (chunk if grid is None else _MARCHED_CHUNKS * chunk) // along)
        chunks = []
        for first in range(0, max(1, len(rays)), size):
            part, directions = rays[first : first + size], view_directions[first : first + size]
            behind = background[first : first + size] if background is not None and background.ndim == 2 else background
            if grid is None:
                chunks.append(
                    self._coarse_to_fine(part, directions, False, None, chunk, coarse_colours or self.nerf_fine is None, behind, None)
                )
            else:
                chunks.append(self._marched(part, directions, grid, chunk, behind))
        return NerfRender(_joined([b.coarse for b in chunks]), _joined([b.fine for b in chunks]))

    def _marched(
        self,
        rays: Rays,
        view_directions: Float[Tensor, "n 3"],
        grid: OccupancyGrid,
        chunk: int,
        background: Float[Tensor, "*each 3"] | None,
    ) -> NerfRender:
        samples = grid.march(rays, stratified(rays.near, rays.far, self.sampling.marched, 0.0, self.sampling.disparity))
        norms, xyz, wave = rays.directions.norm(dim=-1), samples.points(rays), samples.ranks() // _WAVE
        sigma, rgb = torch.full_like(samples.z, -torch.inf), torch.zeros_like(xyz)
        absorbed = torch.zeros_like(norms)
        for k in range(int(wave.max()) + 1 if len(samples) else 0):
            queried = ((wave == k) & (absorbed < _OPAQUE)[samples.ray]).nonzero()[:, 0]
            ray = samples.ray[queried]
            found, colours = self._query(self.final, xyz[queried], view_directions[ray], chunk, True)
            assert colours is not None
            sigma, rgb = sigma.index_put((queried,), found.to(sigma)), rgb.index_put((queried,), colours.to(rgb))
            absorbed = absorbed.index_add(0, ray, sigma[queried].detach().relu() * samples.delta[queried] * norms[ray])
        seen = composite_packed(sigma, rgb, samples, norms, background)
        return NerfRender(seen, None) if self.nerf_fine is None else NerfRender(None, seen)

    # ------------------------------------------------------------------ one chunk of rays
    def _coarse_to_fine(
        self,
        rays: Rays,
        view_directions: Float[Tensor, "n 3"],
        training: bool,
        grid: OccupancyGrid | None,
        chunk: int,
        coarse_colours: bool,
        background: Float[Tensor, "*each 3"] | None,
        generator: torch.Generator | None,
    ) -> NerfRender:
        settings = self.sampling
        perturb, noise_std = (settings.perturb, settings.noise_std) if training else (0.0, 0.0)
        norms = rays.directions.norm(dim=-1)

        def evaluate(field: RadianceField, z: Float[Tensor, "n s"], colours: bool) -> Composited:
            xyz = rays.points(z)
            along = view_directions[:, None].expand_as(xyz)
            if grid is None:
                flat_sigma, flat_rgb = self._query(field, xyz.flatten(0, 1), along.flatten(0, 1), chunk, colours)
                sigma, rgb = flat_sigma.view_as(z), None if flat_rgb is None else flat_rgb.view_as(xyz)
            else:
                kept = grid.occupied(xyz)
                flat_sigma, flat_rgb = self._query(field, xyz[kept], along[kept], chunk, colours)
                sigma = flat_sigma.new_full(z.shape, -torch.inf).index_put((kept,), flat_sigma)
                rgb = None if flat_rgb is None else flat_rgb.new_zeros(xyz.shape).index_put((kept,), flat_rgb)
            return composite(sigma, rgb, z, norms, background, noise_std, generator)

        z = stratified(rays.near, rays.far, settings.samples, perturb, settings.disparity, generator)
        coarse = evaluate(self.nerf_coarse, z, coarse_colours)
        if self.nerf_fine is None:
            return NerfRender(coarse, None)
        drawn = sample_pdf(0.5 * (z[:, 1:] + z[:, :-1]), coarse.weights[:, 1:-1], settings.importance, perturb, generator)
        return NerfRender(coarse, evaluate(self.nerf_fine, torch.cat([z, drawn], -1).sort(-1).values, True))

    def _query(
        self, field: RadianceField, xyz: Float[Tensor, "p 3"], along: Float[Tensor, "p 3"], chunk: int, colours: bool
    ) -> tuple[Float[Tensor, " p"], Float[Tensor, "p 3"] | None]:
        if not colours:
            return torch.cat([field.density(points) for points in xyz.split(chunk)]), None
        queried = [field(points, directions) for points, directions in zip(xyz.split(chunk), along.split(chunk), strict=True)]
        return torch.cat([sigma for sigma, _ in queried]), torch.cat([rgb for _, rgb in queried])


def _joined(chunks: Sequence[Composited | None]) -> Composited | None:
    seen = [part for part in chunks if part is not None]
    if not seen:
        return None
    colours = [part.rgb for part in seen if part.rgb is not None]
    return Composited(
        torch.cat(colours) if colours else None,
        torch.cat([part.depth for part in seen]),
        torch.cat([part.opacity for part in seen]),
        torch.cat([part.weights for part in seen]),
    )


# ----------------------------------------------------------------------
# Training data: batches of rays through the pixels of photos, drawn in random order.
#
# Photos stay in 8 bits; rays are computed for the drawn pixels only. Batches are numbered consecutively through all epochs.


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


# ----------------------------------------------------------------------
# System


@dataclass(frozen=True, kw_only=True)
class NerfSettings(RadianceSettings):
    """Keys of ``conf/system/nerf.yaml`` apart from the fields; their defaults and meaning are there."""

    ray_frame: Literal["auto", "plain", "forward", "inward"]
    ray_bounds: tuple[float, float] | None
    rays: RaySampling
    occupancy_grid: bool
    grid_resolution: int
    grid_every: int
    grid_box: tuple[float, float, float, float, float, float] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(grid_resolution=2, grid_every=1)


_SYNTHETIC_BOX = (-1.5, -1.5, -1.5, 1.5, 1.5, 1.5)  # bounds of the objects of NeRF-Synthetic
_DARKEST = 0.9  # of the brightness, subtracted at the farthest surfaces
_STOPPED = 0.5  # opacity of a ray that has a depth
_NDC_BOX = (-1.5, -1.5, -1.0, 1.5, 1.5, 1.0)  # other cameras than the mean one see a little beyond -1..1


class NeRF(RadianceSystem):
    """Coarse and fine radiance field of one scene.

    Args:
        settings: keys of the config.
        context: the run, of one scene.
        field: both radiance fields and how rays are sampled.
    """

    settings: NerfSettings
    settings_class = NerfSettings
    field: Nerf

    def __init__(self, settings: NerfSettings, context: RunContext, field: Nerf) -> None:
        super().__init__(settings, context)
        self.field = field
        self.normalisation = scene_normalisation(self.scene, normalisation_kind(settings.ray_frame, self.scene), settings.ray_bounds)
        self.grid = None
        if settings.occupancy_grid:
            box = settings.grid_box or _box(self.scene, self.normalisation)
            self.grid = OccupancyGrid(box[:3], box[3:], resolution=settings.grid_resolution)

    def training_batches(self, views: TrainingViews) -> RayDataset:
        return RayDataset(views.scene, views.indices, self.normalisation, self.settings.rays, views.budget, views.image_margin)

    def field_export(self) -> FieldExport:
        if self.normalisation.ndc is not None:
            raise InputError(
                "system.ray_frame: expected a field in Euclidean coordinates, got one in normalised device coordinates (forward), which are not Euclidean "
                "and reach to infinity; train with system.ray_frame=inward or plain"
            )

        def render_rays(rays: Rays, view_directions: Float[Tensor, "n 3"]) -> Composited:
            return self.field.render(rays, view_directions, False, self.grid, self.settings.chunk).final()

        return FieldExport(self.field.final, render_rays, self.grid, self.normalisation, self.settings.chunk)

    # ------------------------------------------------------------------ weights
    def require_weights(self, missing: Sequence[str]) -> None:
        """Only weights of the fields are required: without its weights the occupancy grid is full, which is slow but correct."""
        fields = sorted({name.split(".")[1] for name in missing if name.startswith("field.")})
        if fields:
            raise InputError(
                f"weights_path: the checkpoint lacks weights of {' and '.join(fields)}, which would be random; choose the fields that it was trained with, "
                "or begin anew with weights_strict=false"
            )

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Renames weights of nerf_pl."""
        return {f"field.{name}" if name.startswith(("nerf_coarse.", "nerf_fine.")) else name: value for name, value in weights.items()}

    # --------------------------------------------------------------- rendering
    def render(self, cameras: Cameras, scene: str, raster: bool = False, depth: bool = False) -> Render:
        """``raster`` shows nearness, near bright, far dark, empty black; depths are expected depths, 0 for rays with an opacity below a half."""
        colours, nearness, depths = [], [], []
        with torch.no_grad(), self.autocast_free():
            for k in range(len(cameras)):
                height, width = cameras.image_size
                origins, along = (part[0].flatten(0, 1) for part in self.normalisation.cameras(cameras[k].to(self.device)).rays())
                # as the photos are composited
                behind = origins.new_full((3,), 0.0 if self.settings.rays.background == "black" else 1.0)
                rays = self._rays(origins, along)
                seen = self._render_rays(rays, along, behind, training=False).final()
                assert seen.rgb is not None
                colours.append(seen.rgb.T.view(3, height, width).clamp(0, 1))
                t = seen.normalised_depth()
                if raster:
                    # between percentiles of what is seen: the bounds of rays may be far from it
                    low, high = depth_range(torch.where(seen.opacity >= _STOPPED, t, 0.0))
                    near = 1 - _DARKEST * ((t - low) / max(high - low, 1e-6)).clamp(0, 1)
                    nearness.append((near * seen.opacity.clamp(0, 1)).nan_to_num().view(1, height, width).expand(3, -1, -1))
                if depth:
                    xyz_world = self.normalisation.world(rays.origins + t[:, None] * rays.directions)
                    stopped = seen.opacity >= _STOPPED
                    depths.append(torch.where(stopped, cameras[k].to(self.device).project(xyz_world)[1][0], 0.0).view(1, height, width))
        return Render(torch.stack(colours), None, torch.stack(nearness) if raster else None, torch.stack(depths) if depth else None)

    def _rays(self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> Rays:
        origins, directions = self.normalisation.rays(origins, directions)
        near, far = (origins.new_full((len(origins),), end) for end in (self.normalisation.near, self.normalisation.far))
        return Rays(origins, directions, near, far)

    def _render_rays(
        self, rays: Rays, view_directions: Float[Tensor, "n 3"], background: Float[Tensor, "*each 3"], training: bool
    ) -> NerfRender:
        viewdirs = view_directions if self.settings.world_viewdirs else rays.directions
        return self.field.render(rays, viewdirs, training, self.grid, self.settings.chunk, background=background)

    # ---------------------------------------------------------------- training
    def training_step(self, batch: RayBatch, batch_idx: int) -> Tensor:
        """Renders rays with both fields and computes the loss."""
        if self.grid is not None and self.global_step % self.settings.grid_every == 0:
            self.grid.update(self.field.final.density, self.global_step // self.settings.grid_every)
        rays = Rays(batch.origins, batch.directions, batch.near, batch.far)
        render = self._render_rays(rays, batch.view_directions, batch.background, training=True)
        losses = [mse_loss(seen.rgb, batch.rgb) for seen in (render.coarse, render.fine) if seen is not None and seen.rgb is not None]
        loss = torch.stack(losses).sum()
        self.log_rays(loss, losses[-1], len(batch))
        return loss


def normalisation_kind(chosen: str, scene: Scene) -> str:
    """Resolves ``auto``: NDC for LLFF scenes, which are forward-facing, world coordinates for others."""
    if chosen != "auto":
        return chosen
    return "forward" if scene.layout == "llff" else "plain"


def _box(scene: Scene, normalisation: SceneNormalisation) -> tuple[float, ...]:
    """Bounding box of the rays of training photos, in coordinates of the field."""
    if normalisation.ndc is not None:
        return _NDC_BOX
    if scene.layout == "nerf_synthetic":
        return _SYNTHETIC_BOX
    ends = []
    for index in scene.splits["train"]:
        origins, along = normalisation.cameras(scene.views[index].camera.resize((2, 2))).rays()
        ends += [(origins + t * along).reshape(-1, 3) for t in (normalisation.near, normalisation.far)]
    corners = torch.cat(ends)
    return (*corners.amin(0).tolist(), *corners.amax(0).tolist())
