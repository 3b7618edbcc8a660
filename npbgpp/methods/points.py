"""Base of the point-based systems: loss terms, per-scene parameters, and the steps of NPBG and NPBG++: rasterize, gather descriptors, decode, compare.

Symbols: n points of a scene, m points that won a pixel in this step, c channels of a descriptor, b views.
"""

import logging
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from tqdm import tqdm

from npbgpp.core.cpu_share import adapt_threads
from npbgpp.core.paths import SearchPaths
from npbgpp.data import Batch, cloud_checksum
from npbgpp.errors import InputError
from npbgpp.geometry import Alignment, Cameras, PixelConvention, PointCloud, ProjectionSettings, align_vertically
from npbgpp.kernels.rasterization import ChunkedCloud, Level, rasterize
from npbgpp.losses import VGGLoss, dice_loss, downscaled_l1, ssim_loss
from npbgpp.methods.base import ManualOptimizationSystem, Render, RunContext, System, SystemSettings
from npbgpp.nets import find_backbone
from npbgpp.points import (
    DescriptorFolders,
    DescriptorTables,
    FeaturePyramid,
    RGBConverter,
    Visible,
    cloud_coverage,
    feature_image,
    feature_table,
)


@dataclass(frozen=True, kw_only=True)
class PointSettings(SystemSettings):
    """Keys of ``conf/system/_points.yaml`` apart from the networks; their defaults and meaning are there."""

    max_scenes_per_train_epoch: int
    descriptor_dim: int
    freeze_refiner: bool
    use_masks: bool
    bg_rgb_color: tuple[float, float, float]
    align_during_rendering: bool
    up: tuple[float, float, float]
    pixel_convention: Literal["authors", "exact"]
    near: float
    style_weight: float
    style_img_path: str
    vgg_weights: str | None
    loss_factors: dict[str, float]
    lr_schedule: Literal["constant", "cosine"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.near < 0:
            raise InputError(f"system.near: expected a depth of at least 0 scene units, got {self.near}")
        if not any(self.up):
            raise InputError(f"system.up: expected a direction, got {list(self.up)}")
        self.require_at_least(descriptor_dim=1, max_scenes_per_train_epoch=1)

    @property
    def projection(self) -> ProjectionSettings:
        """Near plane and pixel convention."""
        return ProjectionSettings(self.near, PixelConvention(self.pixel_convention))


# ---------------------------------------------------------------- loss


_L1 = re.compile(r"l1_d(\d+)_loss")
_NAMED = ("vgg_loss", "ssim_loss", "dimred_loss", "mask_loss", "m_reg_loss", "rgb_reg_loss")
_WITHOUT_VGG = "system/loss_factors=l1_ssim"


@dataclass(frozen=True)
class ObjectiveSettings:
    """Non-zero factors, ``style_loss`` included; the style image; the file of the VGG network if a term needs it."""

    factors: dict[str, float]
    style_image: Path | None
    vgg: Path | None

    @classmethod
    def from_config(
        cls, factors: Mapping[str, float], style_weight: float, style_img_path: str, vgg_weights: str | None, search_paths: SearchPaths
    ) -> "ObjectiveSettings":
        """Checks names and finds files. Raises InputError for an unknown term; a missing VGG network is reported when training starts."""
        for name in factors:
            if name not in _NAMED and not _L1.fullmatch(name):
                raise InputError(
                    f"system.loss_factors.{name}: unknown term; known are {', '.join(_NAMED)} and l1_d<k>_loss with an integer k"
                )
        kept = {name: factor for name, factor in factors.items() if factor != 0}
        style_image = None
        if style_weight > 0:
            kept = {name: factor for name, factor in kept.items() if not _L1.fullmatch(name) and name != "rgb_reg_loss"} | {
                "style_loss": style_weight
            }
            style_image = search_paths.existing(style_img_path, "system.style_img_path")
        if not kept:
            raise InputError("system.loss_factors: every factor is 0, so nothing would be learned; give at least one term a factor")
        vgg = None if vgg_weights is None else search_paths.existing(vgg_weights, "system.vgg_weights")
        return cls(kept, style_image, vgg)


class Objective:
    """Computes the unweighted loss terms. Not a module of the system, so the VGG network is not in checkpoints.

    Raises:
        InputError: a term needs the VGG network and its weights are missing.
    """

    def __init__(self, settings: ObjectiveSettings) -> None:
        self.factors = settings.factors
        self._vgg: VGGLoss | None = None
        self._grams: tuple[Tensor, ...] = ()
        if "vgg_loss" in self.factors or "style_loss" in self.factors:
            try:
                self._vgg = VGGLoss(find_backbone("vgg19_caffe", settings.vgg))
            except InputError as error:
                raise InputError(f"{error}; or train without it: {_WITHOUT_VGG}") from error
        if settings.style_image is not None:
            assert self._vgg is not None
            self._grams = self._vgg.style_grams(_read_image(settings.style_image))

    def image_terms(
        self, rendered: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b 1 h w"] | None
    ) -> dict[str, Float[Tensor, ""]]:
        """Terms that compare images; the style is transferred inside ``mask``."""
        terms: dict[str, Tensor] = {}
        if self._vgg is not None:
            self._vgg.to(rendered.device)
            if "style_loss" in self.factors:
                style = self._vgg.style_terms(rendered, target, tuple(g.to(rendered.device) for g in self._grams), mask)
                terms["style_loss"] = style.style
                if "vgg_loss" in self.factors:
                    terms["vgg_loss"] = style.content
            else:
                terms["vgg_loss"] = self._vgg(rendered, target)
        for name in self.factors:
            if match := _L1.fullmatch(name):
                terms[name] = downscaled_l1(rendered, target, int(match[1]))
        if "ssim_loss" in self.factors:
            terms["ssim_loss"] = ssim_loss(rendered, target)
        return terms

    def mask_terms(
        self, mask: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b 1 h w"], empty_mask: Callable[[], Tensor]
    ) -> dict[str, Float[Tensor, ""]]:
        """Terms on the predicted mask; ``empty_mask`` returns the mask predicted for an empty image."""
        terms = {}
        if "mask_loss" in self.factors:
            terms["mask_loss"] = dice_loss(mask, target)
        if "m_reg_loss" in self.factors:
            terms["m_reg_loss"] = empty_mask().mean()
        return terms


def _read_image(path: Path) -> Float[Tensor, "1 3 h w"]:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise InputError(f"system.style_img_path: {path}: expected a readable image, got {error}") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


# ---------------------------------------------------------------- per-scene parameters

# keys of ``conf/system/_tables.yaml``, none of which influences training
TABLE_DISPLAY_KEYS = ("descriptors_save_dir", "descriptors_pretrained_dir", "overwrite_descriptors", "max_points")


def descriptor_folders(settings: Any, context: RunContext) -> DescriptorFolders:
    """Folders of the descriptor files of a run, by the keys of ``conf/system/_tables.yaml``."""
    pretrained, paths, resumed = settings.descriptors_pretrained_dir, context.search_paths, context.resumed_run
    return DescriptorFolders(
        paths.output(settings.descriptors_save_dir) if settings.descriptors_save_dir else paths.run / "descriptors",
        paths.existing(pretrained, "system.descriptors_pretrained_dir") if pretrained else None,
        None if resumed is None else resumed / "descriptors",
        reuse=context.evaluate_only or resumed is not None,
    )


class PerSceneParameters(System):
    """Lightning hooks of a system with ``tables``; the first base class of such a system."""

    has_scene_files = True
    tables: DescriptorTables

    def can_render(self, scene: str) -> bool:
        return self.tables.can_render(scene)

    def begin_training(self, shares_scenes: bool) -> None:
        self.tables.shared = shares_scenes

    def save_scene_files(self, scene: str, folder: Path) -> None:
        self.tables.save_copy(scene, folder / "descriptors")

    def expect_scene_files(self, mark: Mapping[str, Any]) -> None:
        state = mark.get("descriptors")
        if state is not None:  # old checkpoints refer to no files
            self.tables.expect(state)

    def suggest_scene_files(self, run: Path) -> None:
        self.tables.suggested = run / "descriptors"

    def on_train_start(self) -> None:
        super().on_train_start()
        self.tables.open_restored()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.tables.begin_epoch()

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.tables.save_trained()

    def on_fit_end(self) -> None:
        self.tables.end_training()

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.tables.publish()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["npbgpp"]["descriptors"] = self.tables.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Restores the tables; checkpoints of old versions refer to no descriptors, and the files in their folder are read."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("npbgpp", {}).get("descriptors")
        if state is not None:
            self.tables.load_state_dict(state)


# ---------------------------------------------------------------- systems


log = logging.getLogger(__name__)

_NEAR_CUT_WARNING = 0.05


@dataclass(frozen=True)
class AlignedCameras:
    """Cameras of b views, turned upright for rendering.

    Attributes:
        requested: cameras of the views.
        rendered: their upright versions, or the same cameras.
        alignment: maps rendered images back to the requested cameras; None if these are rendered.
    """

    requested: Cameras
    rendered: Cameras
    alignment: Alignment | None


class PointSystem(ManualOptimizationSystem):
    """Rasterizes descriptors of points at several scales and decodes the pyramid with a U-Net. Subclasses provide the descriptors.

    Args:
        settings: keys of the config.
        context: the run.
        refiner: network from the pyramid to (b, 3 or 4, h, w); a fourth channel is the logit of the object mask.
        rasterizer: levels and background feature.
    """

    def __init__(
        self,
        settings: PointSettings,
        context: RunContext,
        refiner: nn.Module,
        rasterizer: FeaturePyramid,
    ) -> None:
        super().__init__(settings, context, settings.lr_schedule)
        self.projection = settings.projection
        self.refiner, self.rasterizer = refiner, rasterizer
        self.require_channels("system.rasterizer", rasterizer.bg_feature.shape[1])
        self.rgb_converter = RGBConverter(settings.descriptor_dim)
        if settings.freeze_refiner:
            self.refiner.requires_grad_(False)
        self.objective_settings = ObjectiveSettings.from_config(
            settings.loss_factors, settings.style_weight, settings.style_img_path, settings.vgg_weights, context.search_paths
        )
        self.cloud_checksums: dict[str, str] = {}
        self._objective: Objective | None = None
        self._descriptor_axes: dict[str, tuple[Tensor, Tensor]] = {}

    def require_channels(self, key: str, channels: int) -> None:
        """Raises InputError if a network expects another number of channels than ``descriptor_dim``."""
        if channels != self.settings.descriptor_dim:
            raise InputError(
                f"{key}: has {channels} channels, expected system.descriptor_dim={self.settings.descriptor_dim}; make them agree"
            )

    def require_weights(self, missing: Sequence[str]) -> None:
        lacking = {name.partition(".")[0] for name in missing}
        networks = [f"system.{name}" for name in ("feature_extractor", "aggregator", "refiner") if name in lacking]
        if networks:
            raise InputError(
                f"weights_path: the checkpoint lacks weights of {' and '.join(networks)}, which would be random ({', '.join(missing[:3])}, ...); choose the "
                "networks that it was trained with, or begin these anew with weights_strict=false"
            )

    def check_before_training(self, trained: Sequence[str], validated: Sequence[str]) -> None:
        self._objective = Objective(self.objective_settings)

    def start_without_weights(self, evaluate_only: bool) -> None:
        if evaluate_only and any(True for _ in self.refiner.parameters()):
            raise InputError(
                "weights_path: expected the checkpoint of a trained system for eval_only=true, got none; the networks would be random: name it, for example "
                "weights_path=experiments/<run>/checkpoints/last.ckpt"
            )

    def read_cloud(self, name: str) -> Float[Tensor, "n 3"]:
        """Points of a scene. Raises InputError if no training camera sees any; warns if the near plane removes many points before a camera."""
        scene, near = self.scenes[name], self.settings.near
        xyz_world = scene.cloud.read().xyz
        self._check_cloud(name, xyz_world)
        coverage = cloud_coverage(xyz_world, [scene.views[i].camera for i in scene.splits["train"]], self.projection)
        if coverage.seen == 0:
            raise InputError(
                f"point cloud {scene.cloud.path}: none of its {len(xyz_world)} points is seen by any training camera of scene {scene.name} beyond "
                f"system.near={near}; cloud and cameras must share one coordinate frame and scale, or lower system.near"
            )
        if coverage.largest_cut > _NEAR_CUT_WARNING:
            log.warning(
                "scene %s: system.near=%g removes up to %.0f %% of the points before a camera; lower it for scenes of small scale",
                scene.name,
                near,
                100 * coverage.largest_cut,
            )
        return xyz_world

    def _check_cloud(self, scene: str, xyz_world: Float[Tensor, "n 3"]) -> None:
        """Raises InputError if the cloud is not the one that training began with."""
        checksum = cloud_checksum(xyz_world)
        expected = self.cloud_checksums.setdefault(scene, checksum)
        if expected != checksum:
            raise InputError(
                f"point cloud {self.scenes[scene].cloud.path} of scene {scene}: expected the cloud that training began with (checksum {expected}), got another "
                f"one ({checksum}, {len(xyz_world)} points); use the file, datasets.n_point and datasets.noise_sigma of the interrupted run, or begin anew with "
                "weights_path=<checkpoint> in place of resume"
            )

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Adds the checksums of the clouds, so that a resumed run finds the same points."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["npbgpp"]["clouds"] = dict(self.cloud_checksums)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        mark = checkpoint.get("npbgpp")
        clouds = mark.get("clouds") if isinstance(mark, dict) else None
        if isinstance(clouds, dict):  # old checkpoints have none
            self.cloud_checksums |= {str(scene): checksum for scene, checksum in clouds.items() if isinstance(checksum, str)}

    # --------------------------------------------------------------- rendering
    @abstractmethod
    def visible(self, aligned: AlignedCameras, scenes: Sequence[str], levels: Sequence[Level]) -> Visible:
        """Visible points of views at some levels, for evaluation."""

    @abstractmethod
    def visible_in_training(self, aligned: AlignedCameras, batch: Batch) -> Visible:
        """Visible points of the target views of a batch at all levels, with gradients."""

    def align_cameras(self, cameras: Cameras) -> AlignedCameras:
        """Turns cameras upright if ``align_during_rendering`` is set."""
        if not self.settings.align_during_rendering:
            return AlignedCameras(cameras, cameras, None)
        with self.autocast_free():
            alignment = align_vertically(cameras, self.projection.pixel_convention, self.settings.up)
        return AlignedCameras(cameras, alignment.cameras, alignment)

    def rasterize(self, clouds: Sequence[ChunkedCloud], cameras: Cameras, levels: Sequence[Level]) -> list[Int[Tensor, "b _ _"]]:
        """Per level, the index of the nearest point in each cell of each view, -1 for empty cells; one cloud per view."""
        views = [rasterize(cloud, cameras[k], levels, self.projection) for k, cloud in enumerate(clouds)]
        return [torch.stack([fragments.index for fragments in level]) for level in zip(*views, strict=True)]

    @abstractmethod
    def rendered_cloud(self, scene: str) -> ChunkedCloud:
        """The points of a scene that evaluation renders, on the device."""

    def render(self, cameras: Cameras, scene: str, raster: bool = False, depth: bool = False) -> Render:
        """``raster`` shows the colours of descriptors; depths are those of the nearest points."""
        aligned = self.align_cameras(cameras.to(self.device))
        scenes = [scene] * len(cameras)
        with torch.no_grad():
            with self.autocast_free():
                visible = self.visible(aligned, scenes, self.rasterizer.levels)
            render = self.decode(aligned, visible)
            rgb = render.rgb.clamp(0, 1)
            if self.settings.use_masks and render.alpha is not None:
                rgb = torch.where(render.alpha < 0.5, rgb.new_tensor(self.settings.bg_rgb_color)[:, None, None], rgb)
            with self.autocast_free():
                depths = self._depths(aligned.requested, scene) if depth else None
            if not raster:
                return Render(rgb, render.alpha, None, depths)
            with self.autocast_free():
                if aligned.alignment is not None or self.rasterizer.levels[0] != Level(1.0):  # needs another rasterization
                    visible = self.visible(AlignedCameras(aligned.requested, aligned.requested, None), scenes, [Level(1.0)])
                colours = self.rgb_converter(visible.descriptors)
                points = feature_image(visible.rows[0], feature_table(colours, colours.new_ones(1, 3, 1, 1)))[:, :3]
            return Render(rgb, render.alpha, points, depths)

    def layers(self) -> tuple[str, ...]:
        return (*(f"points, level {k + 1}" for k in range(len(self.rasterizer.levels))), "descriptors")

    @torch.no_grad()
    def render_layer(self, cameras: Cameras, scene: str, layer: str) -> Float[Tensor, "b 3 h2 w2"]:
        """The points of a level in the colours of their descriptors on white, or the descriptors themselves: their three main axes as red, green and blue."""
        wanted, cameras = self.layers().index(layer), cameras.to(self.device)
        is_colour = wanted < len(self.rasterizer.levels)
        level = self.rasterizer.levels[wanted] if is_colour else Level(1.0)
        with self.autocast_free():
            visible = self.visible(AlignedCameras(cameras, cameras, None), [scene] * len(cameras), [level])
            colours = self.rgb_converter(visible.descriptors) if is_colour else self._main_axes(scene, visible.descriptors)
            return feature_image(visible.rows[0], feature_table(colours, colours.new_ones(1, 3, 1, 1)), level.supersampling)[:, :3].clamp(
                0, 1
            )

    def _main_axes(self, scene: str, descriptors: Float[Tensor, "m c"]) -> Float[Tensor, "m 3"]:
        """Descriptors along the main axes of those that the first view of a scene showed; two standard deviations are the range of a colour."""
        if scene not in self._descriptor_axes and len(descriptors) > 1:
            mean = descriptors.mean(0)
            spread, directions = torch.linalg.eigh(torch.cov(descriptors.T.double()))
            axes = (directions[:, -3:] / (4 * spread[-3:].clamp(min=1e-12).sqrt())).flip(1)
            self._descriptor_axes[scene] = mean, axes.float()
        if scene not in self._descriptor_axes:
            return descriptors.new_full((len(descriptors), 3), 0.5)
        mean, axes = self._descriptor_axes[scene]
        return (0.5 + (descriptors.float() - mean) @ axes).clamp(0, 1)

    def _depths(self, cameras: Cameras, scene: str) -> Float[Tensor, "b 1 h w"]:
        cloud = self.rendered_cloud(scene)
        views = [rasterize(cloud, cameras[k], [Level(1.0)], self.projection)[0].depth for k in range(len(cameras))]
        return torch.stack([torch.where(view.isinf(), 0.0, view)[None] for view in views])

    def decode(self, aligned: AlignedCameras, visible: Visible) -> Render:
        """Runs the refiner on the visible descriptors; colours are not clamped."""
        image = self.refiner(self.rasterizer(visible.rows, visible.descriptors, visible.front)).float()
        if aligned.alignment is not None:
            image = aligned.alignment.undo(image)
        mask = image[:, 3:4].sigmoid() if image.shape[1] == 4 else None
        return Render(image[:, :3], mask)

    @torch.no_grad()
    def coloured_cloud(self, scene: str) -> PointCloud:
        """Points visible in training views, with the mean colour of their descriptors in these views.

        Raises:
            InputError: no descriptors of the scene, or descriptors of another cloud.
        """
        views = self.scenes[scene]
        xyz_world = views.cloud.read().xyz
        total = torch.zeros_like(xyz_world, device=self.device)
        count = torch.zeros_like(total[:, 0])
        self.prepare(scene)
        with self.autocast_free():
            for k in tqdm(views.splits["train"], desc=f"views of {scene}", disable=None, leave=False):
                adapt_threads()
                camera = views.views[k].camera.to(self.device)
                visible = self.visible(AlignedCameras(camera, camera, None), [scene], [Level(1.0)])
                assert visible.gathered is not None, "trained scenes have tables"
                colours = self.rgb_converter(visible.descriptors)
                for part in visible.gathered.parts:
                    total.index_add_(0, part.points, colours[part.where])
                    count.index_add_(0, part.points, torch.ones_like(part.points, dtype=count.dtype))
        seen = (count > 0).nonzero()[:, 0]
        if len(seen) == 0:
            raise InputError(
                f"scene {scene}: expected points that are visible in training views, got none; check datasets.pc_name, or lower system.near"
            )
        rgb = ((total[seen] / count[seen, None]).clamp(0, 1) * 255).round().to(torch.uint8)
        return PointCloud(xyz_world[seen.cpu()], rgb.cpu())

    # ---------------------------------------------------------------- training
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Renders a batch, compares it with the photos and steps after enough batches."""
        batch = self.augment(batch)
        aligned = self.align_cameras(batch.target.cameras)
        visible = self.visible_in_training(aligned, batch)
        render = self.decode(aligned, visible)
        terms = self.terms(render, batch, visible)
        factors = self.objective_settings.factors
        loss = torch.stack([factors[name] * value for name, value in terms.items()]).sum()
        self.backward_batch(loss)
        self.accumulate(visible)
        if self.wants_pictures:
            self.pictures = self.training_images(batch, visible, render)
        self.finish_batch()
        self.log_batch(batch, terms, loss, render.rgb, batch.target.image, self.points_of(batch))

    @torch.no_grad()
    def training_images(self, batch: Batch, visible: Visible, render: Render) -> tuple[Float[Tensor, "3 _ _"], ...]:
        """Images of the first item of a batch for the logger: its points at every level, the rendering, the photo."""
        colours = self.rgb_converter(visible.descriptors)
        table = feature_table(colours, colours.new_ones(1, 3, 1, 1))
        levels = [
            feature_image(rows[:1], table, level.supersampling)[0, :3]
            for rows, level in zip(visible.rows, self.rasterizer.levels, strict=True)
        ]
        return (*levels, render.rgb[0].detach(), batch.target.image[0])

    def augment(self, batch: Batch) -> Batch:
        """Data augmentation of a batch."""
        return batch

    @abstractmethod
    def points_of(self, batch: Batch) -> int:
        """Number of points of the clouds of a batch, summed over views."""

    def accumulate(self, visible: Visible) -> None:
        """Keeps the gradients of per-scene parameters until the next step."""

    def terms(self, render: Render, batch: Batch, visible: Visible) -> dict[str, Tensor]:
        """Unweighted terms of the loss."""
        assert self._objective is not None
        target, compare, mask = self.compared(batch)
        # pixels that are not compared get the value of the target: no error, no gradient
        terms = self._objective.image_terms(torch.where(compare, render.rgb, target), target, mask)
        if "dimred_loss" in self.objective_settings.factors and len(visible.descriptors):
            descriptors = visible.descriptors.detach()
            terms["dimred_loss"] = (self.rgb_converter.reconstruct(self.rgb_converter(descriptors)) - descriptors).abs().mean()
        if mask is not None and render.alpha is not None:
            terms |= self._objective.mask_terms(render.alpha, mask, self._mask_without_points)
        return terms

    def compared(self, batch: Batch) -> tuple[Float[Tensor, "b 3 h w"], Tensor, Float[Tensor, "b 1 h w"] | None]:
        """(target image, pixels that are compared, object mask or None without ``use_masks``)."""
        target, compare = batch.target.image, batch.target.valid
        if not self.settings.use_masks:
            return target, compare, None
        mask = batch.target.mask
        if mask is None:
            raise InputError(f"system.use_masks: scene {batch.scene[0]} has no masks; add them or set system.use_masks=false")
        inside = mask >= 0.5
        target = torch.where(inside, target, target.new_tensor(self.settings.bg_rgb_color)[:, None, None])
        return target, compare & inside, mask

    def _mask_without_points(self) -> Float[Tensor, "1 1 h w"]:
        training = self.refiner.training
        self.refiner.eval()  # as in the original: this term does not change the statistics of the norms
        mask = self.refiner(self.rasterizer.empty((64, 64)))[:, 3:4].sigmoid()
        self.refiner.train(training)
        return mask
