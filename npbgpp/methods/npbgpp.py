"""NPBG++: descriptors predicted from photos in one pass, no optimisation per scene (Rakhimov et al., NPBG++, CVPR 2022).

A feature extractor reads every input photo, points sample features in the photos where they are visible, and an aggregator turns these into coefficients,
which are evaluated for the target view, rasterized and decoded as in NPBG. Symbols: n points of a scene, p points visible in a target, m points that won a
pixel of it, k input views, v points visible in one of them, b targets, c channels of a feature, q coefficients of a point.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.transforms.functional import adjust_hue
from tqdm import tqdm

from npbgpp.core.cpu_share import adapt_threads
from npbgpp.core.files import save_tensors
from npbgpp.data import Batch, Photo, Scene, View, Views, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PixelConvention, align_vertically, crop_to_points
from npbgpp.kernels.rasterization import ChunkedCloud, Level, rasterize
from npbgpp.methods.base import DataNeeds, Render, RunContext
from npbgpp.methods.points import AlignedCameras, PointSettings, PointSystem
from npbgpp.nets import Aggregator, FeatureExtractor, IdentityExtractor, PointDirections
from npbgpp.points import (
    CLOUD_KEY,
    FeaturePyramid,
    ResidentScene,
    SparseParameter,
    Visible,
    describe,
    gather_visible,
    point_directions,
    sample_features,
    visible_points,
)

# ----------------------------------------------------------------------
# Input views: upright alignment (sections 3.2 and 3.4) and colour jitter


@dataclass(frozen=True)
class InputViews:
    """Photos as the feature extractor reads them.

    Attributes:
        images: photos, or their upright versions padded to a square; or crops of these.
        cameras: of these images.
        centers: camera centres of the photos, world coordinates.
        axes: optical axes of the photos, world coordinates.
    """

    images: Float[Tensor, "k 3 h w"]
    cameras: Cameras
    centers: Float[Tensor, "k 3"]
    axes: Float[Tensor, "k 3"]

    def viewing_directions(self, view: int, xyz_world: Float[Tensor, "v 3"]) -> PointDirections:
        """Viewing directions of points from one view."""
        return PointDirections(xyz_world - self.centers[view], self.axes[view, None])


@torch.no_grad()
def upright(
    images: Float[Tensor, "k 3 h w"], cameras: Cameras, convention: PixelConvention, up: tuple[float, float, float], align: bool
) -> InputViews:
    """Turns photos upright. With AUTHORS, centres are computed as in the code of the authors: exact only for centred square pixels."""
    if not align:
        return InputViews(images, cameras, cameras.centers(), cameras.R[:, :, 2])
    alignment = align_vertically(cameras, convention, up)
    turned = alignment.cameras
    if convention is PixelConvention.EXACT:
        return InputViews(alignment.apply(images), turned, cameras.centers(), cameras.R[:, :, 2])
    return InputViews(alignment.apply(images), turned, -(turned.R @ turned.T[:, :, None])[:, :, 0], turned.R[:, :, 2])


Operation = Literal["brightness", "saturation", "hue"]

_OPERATIONS: tuple[Operation, ...] = ("brightness", "saturation", "hue")
_LOWEST, _HIGHEST = (-0.1, 0.5, -0.5), (0.1, 1.5, 0.5)  # of each operation
_SMALLEST_CHROMA = 1e-12  # avoids a division by zero for grey pixels, which keep their colour


@dataclass(frozen=True)
class ColorJitter:
    """Random change of colours, drawn once for a target and its input views.

    Attributes:
        brightness: added to every channel, which then stays within 0..1.
        saturation: factor of S, which then stays within 0..1.
        hue: turn of H as a share of the full circle, -0.5..0.5.
        order: operations in the order of their application.
    """

    brightness: float
    saturation: float
    hue: float
    order: tuple[Operation, ...] = _OPERATIONS

    @classmethod
    def draw(cls, generator: torch.Generator | None = None) -> "ColorJitter":
        """Draws uniformly from the authors' ranges, and the order too. None takes torch's global generator."""
        low, high = torch.tensor(_LOWEST), torch.tensor(_HIGHEST)
        brightness, saturation, hue = (low + (high - low) * torch.rand(3, generator=generator)).tolist()
        order = torch.randperm(3, generator=generator).tolist()
        return cls(brightness, saturation, hue, tuple(_OPERATIONS[k] for k in order))

    def apply(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The images with changed colours, within 0..1."""
        for operation in self.order:
            if operation == "brightness":
                images = (images + self.brightness).clamp(0.0, 1.0)
            elif operation == "saturation":
                images = _saturate(images, self.saturation)
            else:
                images = adjust_hue(images, self.hue)
        return images


def _saturate(images: Float[Tensor, "b 3 h w"], factor: float) -> Float[Tensor, "b 3 h w"]:
    """Multiplies S = chroma / V: at equal H and V the distances of the channels from V grow by one common factor, at most to S = 1."""
    value = images.amax(1, keepdim=True)
    chroma = (value - images.amin(1, keepdim=True)).clamp(min=_SMALLEST_CHROMA)
    growth = (value / chroma).clamp(max=factor)
    return (value - (value - images) * growth).clamp(min=0.0)


# ----------------------------------------------------------------------
# Sums over views for the points of one scene.
#
# Only points that are visible in some view have a row, in the order in which they are first seen; a view updates only the rows of its visible points. On the
# CPU, the memory of unused rows is reserved but not committed.


_POINTS = 1 << 18  # observed at a time, which bounds the memory of intermediate results


class SceneSums:
    """State of one aggregation.

    Args:
        points: n, points of the scene.
        aggregator: defines the sums.
        device: of the sums; the features may be on another one.
    """

    def __init__(self, points: int, aggregator: Aggregator, device: torch.device | str) -> None:
        self._aggregator = aggregator
        self._row = torch.full((points,), -1, dtype=torch.int32, device=device)
        self._table = torch.empty(points, aggregator.sums, device=device)
        self._seen = 0

    def __len__(self) -> int:
        """Points seen so far."""
        return self._seen

    def bytes_used(self) -> int:
        """Memory of the state."""
        return self._table[: self._seen].nbytes + self._row.nbytes

    @torch.no_grad()
    def add_view(
        self, points: Int[Tensor, " v"], look: Callable[[Int[Tensor, " w"]], tuple[Float[Tensor, "w c"], PointDirections]]
    ) -> None:
        """Adds the observations of one view; ``points`` must be unique. ``look`` returns features and directions of a chunk of them."""
        for part in points.split(_POINTS):
            self.add(part, *look(part))

    @torch.no_grad()
    def add(self, points: Int[Tensor, " v"], features: Float[Tensor, "v c"], directions: PointDirections) -> None:
        """Adds one observation of each of ``points``, which must be unique."""
        points = points.to(self._table.device)
        rows = self._row.index_select(0, points)
        first = (rows < 0).nonzero()[:, 0]
        if len(first):
            start, stop = self._seen, self._seen + len(first)
            fresh = points.index_select(0, first).long()
            new = torch.arange(start, stop, dtype=torch.int32, device=rows.device)
            rows.index_copy_(0, first, new)
            self._row.index_copy_(0, fresh, new)
            self._table[start:stop] = 0.0
            self._seen = stop
        self._aggregator.add(self._table, rows, features, features.new_ones(len(features)), directions)

    def solve_into(self, coefficients: Float[Tensor, "n q"]) -> Bool[Tensor, " n"]:
        """Writes the coefficients of all points, zeros for points that no view sees, on the device of the sums; ``coefficients`` need not be initialised.

        Returns:
            The points that some view sees.
        """
        self._aggregator.solve_rows(self._table[: self._seen], self._row, coefficients)
        return self._row >= 0


# ----------------------------------------------------------------------
# System


@dataclass(frozen=True)
class LearningRates:
    """Initial learning rates of Adam."""

    feature_extractor: float
    aggregator: float
    background: float
    rgb_converter: float
    refiner: float


@dataclass(frozen=True, kw_only=True)
class NPBGPlusPlusSettings(PointSettings):
    """Keys of ``conf/system/_npbgpp.yaml`` apart from the networks; their defaults and meaning are there."""

    align_view_images: bool
    color_aug_p: float
    visibility_scale: float | None
    state_device: str | None
    points_per_pass: int | None
    freeze_feature_extractor: bool
    freeze_aggregator: bool
    learning_rates: LearningRates

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.color_aug_p <= 1:
            raise InputError(f"system.color_aug_p: expected a probability between 0 and 1, got {self.color_aug_p}")
        if self.visibility_scale is not None and not self.visibility_scale > 0:
            raise InputError(f"system.visibility_scale: expected a positive share of the image size or null, got {self.visibility_scale}")
        if self.points_per_pass is not None and self.points_per_pass < 1:
            raise InputError(f"system.points_per_pass: expected a positive number of points or null, got {self.points_per_pass}")


log = logging.getLogger(__name__)

_LOG_INTERVAL_S = 20.0


def _decoded_ahead(views: Sequence[View]) -> Iterator[Future[Photo]]:
    """Photos in order; a thread decodes the next one while the caller works on one."""
    with ThreadPoolExecutor(1, "photos") as pool:
        following = [pool.submit(read_photo, view) for view in views[:1]]
        for k in range(len(views)):
            current = following.pop()
            following += [pool.submit(read_photo, view) for view in views[k + 1 : k + 2]]
            yield current


class NPBGPlusPlus(PointSystem):
    """Descriptors predicted from photos.

    Args:
        settings: keys of the config.
        context: see PointSystem.
        refiner: see PointSystem.
        rasterizer: see PointSystem.
        feature_extractor: network from photos (b, 3, h, w) to features (b, c, h, w).
        aggregator: combines features of several views into descriptors.
    """

    settings: NPBGPlusPlusSettings
    settings_class = NPBGPlusPlusSettings
    display_keys = (*PointSystem.display_keys, "state_device", "points_per_pass")

    @classmethod
    def data_needs(cls, settings: NPBGPlusPlusSettings) -> DataNeeds:
        return DataNeeds(input_views=settings.projection, scenes_per_epoch=settings.max_scenes_per_train_epoch)

    def __init__(
        self,
        settings: NPBGPlusPlusSettings,
        context: RunContext,
        refiner: nn.Module,
        rasterizer: FeaturePyramid,
        feature_extractor: FeatureExtractor | IdentityExtractor,
        aggregator: Aggregator,
    ) -> None:
        super().__init__(settings, context, refiner, rasterizer)
        self.require_channels("system.feature_extractor", feature_extractor.out_channels)
        self.require_channels("system.aggregator", aggregator.descriptor_dim)
        self.feature_extractor, self.aggregator = feature_extractor, aggregator
        if settings.freeze_feature_extractor:
            feature_extractor.requires_grad_(False)
        if settings.freeze_aggregator:
            aggregator.requires_grad_(False)
        self._check_settings()
        self.descriptors_dir = context.search_paths.run / "descriptors"
        self._clouds: dict[str, tuple[ChunkedCloud, Tensor]] = {}
        self._aggregated: dict[str, ResidentScene] = {}

    def _check_settings(self) -> None:
        """Raises InputError for a depth buffer without cells or a missing device."""
        scale, device = self.settings.visibility_scale, self.settings.state_device
        for scene in self.scenes.values():
            height, width = min((view.camera.image_size for view in scene.views), key=min)
            if scale is not None and int(scale * min(height, width)) < 1:
                raise InputError(
                    f"system.visibility_scale: expected a depth buffer of at least one cell, got {scale} for photos of scene {scene.name} of {height}x{width} "
                    "pixels; raise it"
                )
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"system.state_device: expected a device of this machine, such as cpu, or null, got {device}") from error

    def start_without_weights(self, evaluate_only: bool) -> None:
        """Loads the pretrained encoder if the config asks for it."""
        super().start_without_weights(evaluate_only)
        if isinstance(self.feature_extractor, FeatureExtractor):
            self.feature_extractor.load_pretrained_encoder()

    # ------------------------------------------------------------- aggregation
    def prepare(self, scene: str) -> None:
        """Aggregates a scene, in full precision, and releases the scene before it."""
        if scene not in self._aggregated:
            self._aggregated.clear()
            with self.autocast_free():
                self._aggregated[scene] = self._aggregate(self.scenes[scene])

    @torch.no_grad()
    def _aggregate(self, scene: Scene) -> ResidentScene:
        start = time.perf_counter()
        xyz_world = self.read_cloud(scene.name).to(self.device)
        cloud = ChunkedCloud.build(xyz_world)
        inputs, count = scene.splits["train"], len(xyz_world)
        home = torch.device(self.settings.state_device or self.device)
        coefficients = torch.empty(count, self.aggregator.coefficients, device=home)
        seen = torch.zeros(count, dtype=torch.bool, device=home)
        chunk = self.settings.points_per_pass or max(count, 1)
        passes = [(first, min(first + chunk, count)) for first in range(0, count, chunk)]
        progress = tqdm(total=len(passes) * len(inputs), desc=f"photos of {scene.name}", disable=None, leave=False)
        last_log = time.monotonic()
        for first, last in passes:
            sums = SceneSums(last - first, self.aggregator, home)
            for k, photo in zip(inputs, _decoded_ahead([scene.views[k] for k in inputs]), strict=True):
                adapt_threads()
                self._add_view(sums, scene.views[k].camera, photo, cloud, xyz_world, first, last)
                progress.update()
                if progress.disable and time.monotonic() - last_log > _LOG_INTERVAL_S:
                    last_log = time.monotonic()
                    log.info("scene %s: %d of %d photos read", scene.name, inputs.index(k) + 1, len(inputs))
            seen[first:last] = sums.solve_into(coefficients[first:last])
        progress.close()
        if not seen.any():
            raise InputError(
                f"scene {scene.name}: none of its {count} points is visible in any of its {len(inputs)} input photos; cloud and cameras must share one frame "
                "and scale: check datasets.pc_name, or lower system.near"
            )
        log.info(
            "scene %s: %d photos, %d of %d points visible, %.1f s", scene.name, len(inputs), seen.sum(), count, time.perf_counter() - start
        )
        slot = torch.empty(count, dtype=torch.int32, device=self.device)
        drawn = ChunkedCloud.build(xyz_world, rows=seen.nonzero()[:, 0].to(self.device))
        return ResidentScene(drawn, SparseParameter(coefficients), slot, xyz_world)

    def _add_view(
        self,
        sums: SceneSums,
        camera: Cameras,
        photo: Future[Photo],
        cloud: ChunkedCloud,
        xyz_world: Float[Tensor, "n 3"],
        first: int,
        last: int,
    ) -> None:
        """Adds the observations of one photo to the sums of points first to last."""
        camera = camera.to(self.device)
        scale = self.settings.visibility_scale
        if scale is None:
            points = visible_points(xyz_world, camera, None, self.projection)[0].nonzero()[:, 0]
        else:
            index = rasterize(cloud, camera, [Level(scale)], self.projection)[0].index
            points = index[index >= 0].sort().values
        points = points[(points >= first) & (points < last)]
        if len(points) == 0:
            return
        bytes_ = photo.result().image
        if self.device.type == "cuda":
            bytes_ = bytes_.pin_memory().to(self.device, non_blocking=True)
        image = bytes_.to(self.device).float()[None] / 255
        turned = upright(image, camera, self.projection.pixel_convention, self.settings.up, self.settings.align_view_images)
        points = points[self.projection.in_frustum(turned.cameras, xyz_world[points])[0]]
        if len(points):
            features = self.feature_extractor(turned.images)[0]
            sums.add_view(points - first, lambda part: self._look(features, turned, 0, xyz_world[part + first]))

    def _look(
        self, features: Float[Tensor, "c h w"], photos: InputViews, view: int, xyz_world: Float[Tensor, "v 3"]
    ) -> tuple[Float[Tensor, "v c"], PointDirections]:
        """Features and viewing directions of points in one view."""
        sampled = sample_features(features, xyz_world, photos.cameras[view], self.projection.pixel_convention)
        return sampled, photos.viewing_directions(view, xyz_world)

    def on_test_end(self) -> None:
        """Releases aggregated scenes."""
        self._aggregated.clear()

    def on_validation_end(self) -> None:
        """Releases aggregated scenes: training changes the networks."""
        self._aggregated.clear()

    def save_descriptors(self, scene: str) -> None:
        """Writes the coefficients of an aggregated scene (n, q): the mean feature, then the coefficients of the basis."""
        path = self.descriptors_dir / f"{scene}.pth"
        save_tensors(path, self._aggregated[scene].table.values.cpu().contiguous(), {CLOUD_KEY: self.cloud_checksums[scene]})
        log.info("descriptors of scene %s: %s", scene, path)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list:  # type: ignore[override]
        """Evaluates a batch and saves the coefficients of every scene once."""
        results = super().test_step(batch, batch_idx, dataloader_idx)
        if batch_idx == 0:
            self.save_descriptors(batch.scene[0])
        return results

    # --------------------------------------------------------------- rendering
    def rendered_cloud(self, scene: str) -> ChunkedCloud:
        self.prepare(scene)
        return self._aggregated[scene].cloud

    def visible(self, aligned: AlignedCameras, scenes: Sequence[str], levels: Sequence[Level]) -> Visible:
        for scene in dict.fromkeys(scenes):
            self.prepare(scene)
        clouds = [self._aggregated[scene].cloud for scene in scenes]
        maps = self.rasterize(clouds, aligned.rendered, levels)
        gathered = gather_visible(maps, scenes, self._aggregated, learn=False, by_view=True)
        return describe(gathered, self._aggregated, self.aggregator, aligned.requested)

    # ---------------------------------------------------------------- training
    def cloud(self, scene: str) -> tuple[ChunkedCloud, Float[Tensor, "n 3"]]:
        """(cloud, points) of a training scene on the device; the oldest scenes are evicted."""
        if scene not in self._clouds:
            while len(self._clouds) >= self.settings.max_scenes_per_train_epoch:
                del self._clouds[next(iter(self._clouds))]
            xyz_world = self.read_cloud(scene).to(self.device)
            self._clouds[scene] = (ChunkedCloud.build(xyz_world), xyz_world)
        return self._clouds[scene]

    def points_of(self, batch: Batch) -> int:
        return sum(len(self.cloud(scene)[0]) for scene in batch.scene)

    def augment(self, batch: Batch) -> Batch:
        """Applies the same colour jitter to a target and its input views."""
        images, inputs = [], []
        for k, views in enumerate(batch.inputs):
            image = batch.target.image[k, None]
            if torch.rand(()).item() < self.settings.color_aug_p:
                jitter = ColorJitter.draw()
                with self.autocast_free():
                    image, views = jitter.apply(image), replace(views, image=jitter.apply(views.image))
            images.append(image)
            inputs.append(views)
        return replace(batch, target=replace(batch.target, image=torch.cat(images)), inputs=tuple(inputs))

    def visible_in_training(self, aligned: AlignedCameras, batch: Batch) -> Visible:
        descriptors, maps, start = [], [], 0
        for k, scene in enumerate(batch.scene):
            found, rows = self._gather_target(aligned, k, scene, batch.inputs[k])
            maps.append([torch.where(level >= 0, level + start, -1) for level in rows])
            descriptors.append(found)
            start += len(found)
        return Visible(torch.cat(descriptors), tuple(torch.cat(levels) for levels in zip(*maps, strict=True)))

    def _gather_target(
        self, aligned: AlignedCameras, k: int, scene: str, inputs: Views
    ) -> tuple[Float[Tensor, "m c"], list[Int[Tensor, "1 _ _"]]]:
        """(descriptors of the points visible in target k, per level the row of the descriptors of each cell, -1 for empty cells)."""
        target = aligned.requested[k]
        with self.autocast_free():
            cloud, xyz_scene = self.cloud(scene)
            index = rasterize(cloud, target, [Level(1.0)], self.projection)[0].index
            xyz_world = xyz_scene[index[index >= 0].sort().values]
            shown = visible_points(xyz_world, inputs.cameras, self.settings.visibility_scale, self.projection)
            photos = upright(
                inputs.image, inputs.cameras, self.projection.pixel_convention, self.settings.up, self.settings.align_view_images
            )
            # twice the size of the target, as in the original, at most that of the photo
            size = (min(2 * target.image_size[0], photos.images.shape[2]), min(2 * target.image_size[1], photos.images.shape[3]))
            region = crop_to_points(photos.images, photos.cameras, xyz_world, shown, size, self.projection.pixel_convention)
            photos = replace(photos, images=region.images, cameras=region.cameras)
            shown &= self.projection.in_frustum(photos.cameras, xyz_world)
            known = shown.any(0).nonzero()[:, 0]
            maps = self.rasterize([ChunkedCloud.build(xyz_world, rows=known)], aligned.rendered[k], self.rasterizer.levels)
            cells = torch.cat([level.flatten() for level in maps])
            winners, rows = cells.unique(return_inverse=True)  # -1 of empty cells comes first
            empty = int(bool(len(winners)) and winners[0] < 0)
            levels = [r.view_as(m) - empty for r, m in zip(rows.split([m.numel() for m in maps]), maps, strict=True)]
            winners = winners[empty:]
        features = self.feature_extractor(photos.images).float()
        with self.autocast_free():
            return self._describe_target(features, photos, shown[:, winners], xyz_world[winners], target), levels

    def _describe_target(
        self,
        features: Float[Tensor, "k c h w"],
        photos: InputViews,
        shown: Bool[Tensor, "k m"],
        xyz_world: Float[Tensor, "m 3"],
        target: Cameras,
    ) -> Float[Tensor, "m c"]:
        """Descriptors of points for the target view from their observations in the input views."""
        points, observed = [], []
        for view in range(len(features)):
            mine = shown[view].nonzero()[:, 0]
            points.append(mine)
            sampled, directions = self._look(features[view], photos, view, xyz_world[mine])
            observed.append(self.aggregator.observe(sampled, sampled.new_ones(len(sampled)), directions))
        sums = features.new_zeros(len(xyz_world), self.aggregator.sums).index_add(0, torch.cat(points), torch.cat(observed))
        return self.aggregator.evaluate(self.aggregator.solve(sums), point_directions(xyz_world, target))

    def terms(self, render: Render, batch: Batch, visible: Visible) -> dict[str, Tensor]:
        """Adds ``rgb_reg_loss``: the refiner reconstructs photos from their features with missing pixels; no gradient reaches the feature extractor."""
        terms = super().terms(render, batch, visible)
        if "rgb_reg_loss" in self.objective_settings.factors:
            target, compare, mask = self.compared(batch)
            with torch.no_grad():
                features = self.feature_extractor(batch.target.image).float()
            pyramid = self.rasterizer.from_image(features, None if mask is None else mask >= 0.5, corrupt=True)
            image = self.refiner(pyramid)[:, :3]
            terms["rgb_reg_loss"] = (torch.where(compare, image, target) - target).abs().mean()
        return terms

    @torch.no_grad()
    def training_images(self, batch: Batch, visible: Visible, render: Render) -> tuple[Float[Tensor, "3 _ _"], ...]:
        """Adds the input photos and the colours of their features."""
        inputs, s = batch.inputs[0], self.settings
        with self.autocast_free():
            photos = upright(inputs.image, inputs.cameras, self.projection.pixel_convention, s.up, s.align_view_images).images
        features = self.rgb_converter(self.feature_extractor(photos).float().movedim(1, -1)).movedim(-1, 1)
        return (*photos, *features, *super().training_images(batch, visible, render))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam for all parameters that are not frozen."""
        rates = self.settings.learning_rates
        parts = {
            "rgb_converter": self.rgb_converter,
            "feature_extractor": self.feature_extractor,
            "aggregator": self.aggregator,
            "background": self.rasterizer,
            "refiner": self.refiner,
        }
        groups = []
        for name, module in parts.items():
            weights = [p for p in module.parameters() if p.requires_grad]
            if weights:
                groups.append({"params": weights, "lr": getattr(rates, name), "initial_lr": getattr(rates, name)})
        return [torch.optim.Adam(groups)]
