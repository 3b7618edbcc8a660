"""NPCR: neural point cloud rendering by depth peeling, for hair and other thin or semi-transparent objects.

Points are peeled into layers; one network predicts colour and opacity of each layer, which are composited front to back. Descriptors are per-scene parameters;
empty pixels have a learned default descriptor. Symbols: b views, l layers, m points that won a pixel in this step, c channels of a descriptor.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbgpp.data import Batch, Scene
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, ProjectionSettings, TimedCamera
from npbgpp.kernels.rasterization import ChunkedCloud
from npbgpp.losses import RGBAPerceptualLoss, ssim_loss
from npbgpp.methods.base import (
    DataNeeds,
    ManualOptimizationSystem,
    Precision,
    Render,
    RunContext,
    SystemSettings,
    VideoOptions,
    VideoStability,
)
from npbgpp.methods.npcr.network import RGBAUNet
from npbgpp.methods.npcr.temporal import TemporalFilter, finetune, render_path
from npbgpp.methods.points import TABLE_DISPLAY_KEYS, PerSceneParameters, descriptor_folders
from npbgpp.metrics import composite_over, matte_scores
from npbgpp.nets import find_backbone
from npbgpp.points import (
    MAX_LAYERS,
    DescriptorTables,
    Footprint,
    Gathered,
    Layer,
    ScenePoints,
    SparseAdam,
    cloud_coverage,
    feature_image,
    feature_table,
    peel,
)
from npbgpp.volume import composite_layers

# ----------------------------------------------------------------------
# Settings (``conf/system/npcr.yaml``), mattes, and the loss on premultiplied colours


@dataclass(frozen=True)
class RGBALosses:
    """Factors of the terms of the loss; a factor of 0 switches a term off."""

    rgba_mse: float
    rgba_l1: float
    ssim: float
    perceptual: float


@dataclass(frozen=True)
class NPCRRates:
    """Initial learning rates of Adam."""

    network: float
    descriptors: float


@dataclass(frozen=True, kw_only=True)
class NPCRSettings(SystemSettings):
    """Keys of ``conf/system/npcr.yaml`` apart from the network; their defaults and meaning are there."""

    descriptor_dim: int
    use_rgb: bool
    layers: int | dict[str, int]
    near: float | None
    far: float | None
    max_splat: float
    depth_threshold: float
    background: tuple[float, float, float]
    photo_background: tuple[float, float, float] | None
    loss_region: Literal["all", "seen"]
    losses: RGBALosses
    learning_rates: NPCRRates
    weight_decay: float
    warmup_epochs: int
    norms_learn_for: float
    lr_schedule: Literal["constant", "cosine"]
    colour_threshold: float
    refine_weights: tuple[float, float, float, float]
    history_weights: tuple[float, float, float, float, float, float, float]
    max_points: int | None
    descriptors_pretrained_dir: str | None
    descriptors_save_dir: str | None
    overwrite_descriptors: bool
    max_scenes_per_train_epoch: int
    vgg_weights: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(descriptor_dim=1, max_scenes_per_train_epoch=1)
        self._check_layers()
        if self.near is not None and self.far is not None and not self.near < self.far:
            raise InputError(
                f"system.near, system.far: expected near < far, got {self.near:g} and {self.far:g}; points shrink from near to far"
            )
        for key in ("max_splat", "weight_decay", "warmup_epochs", "colour_threshold", "depth_threshold"):
            if not getattr(self, key) >= 0:
                raise InputError(f"system.{key}: expected 0 or more, got {getattr(self, key)}")
        if not 0 <= self.norms_learn_for <= 1:
            raise InputError(f"system.norms_learn_for: expected a fraction of the run, 0 to 1, got {self.norms_learn_for:g}")
        target, blend = self.refine_weights[:2], self.refine_weights[2:]
        for name, weights in (
            ("refine_weights: the first two", target),
            ("refine_weights: the last two", blend),
            ("history_weights", self.history_weights),
        ):
            if min(weights) < 0 or abs(sum(weights) - 1) > 1e-4:
                raise InputError(f"system.{name}: expected weights of 0 or more that add up to 1, got {list(weights)}")
        factors = [getattr(self.losses, field.name) for field in fields(self.losses)]
        if min(factors) < 0 or not any(factors):
            raise InputError(f"system.losses: expected factors of 0 or more, at least one of them positive, got {self.losses}")

    def _check_layers(self) -> None:
        """A schedule maps the first epoch of each number of layers to it, beginning with epoch 0."""
        schedule = self.layers if isinstance(self.layers, dict) else {"0": self.layers}
        if "0" not in schedule or not all(epoch.isdecimal() for epoch in schedule):
            raise InputError(
                f"system.layers: expected a number, or numbers by the epoch they begin with, the first of them 0 (such as {{0: 1, 20: 4}}), got {self.layers}"
            )
        for count in schedule.values():
            if not 1 <= count <= MAX_LAYERS:
                raise InputError(f"system.layers: expected 1 to {MAX_LAYERS} layers, got {count}")

    def layers_at(self, epoch: int) -> int:
        """Number of layers in a training epoch."""
        if isinstance(self.layers, int):
            return self.layers
        return self.layers[str(max(begin for begin in map(int, self.layers) if begin <= epoch))]

    @property
    def most_layers(self) -> int:
        """The largest number of layers of the schedule."""
        return self.layers if isinstance(self.layers, int) else max(self.layers.values())


# ---------------------------------------------------------------- mattes and loss


def require_mattes(scene: Scene) -> None:
    """Raises InputError if a photo has neither a matte nor an alpha channel."""
    without = [view.name for view in scene.views if view.mask is None and not view.alpha_is_mask]
    if without:
        raise InputError(
            f"system=npcr: scene {scene.name} has no mattes: {len(without)} of its {len(scene.views)} photos ({', '.join(without[:3])}) have none, and NPCR "
            "learns opacity from them; add mattes or masks as its layout has them, or choose another system, such as system=npbg"
        )


def is_straight_alpha(scene: Scene) -> bool:
    """Whether the photos have an alpha channel and unmixed colours, rather than colours mixed with their background."""
    return all(view.mask is None for view in scene.views)


def premultiply(
    photo: Float[Tensor, "3 h w"], matte: Float[Tensor, "1 h w"], behind: tuple[float, float, float] | None
) -> Float[Tensor, "4 h w"]:
    """Premultiplied colours and alpha.

    Args:
        photo: straight colours, or colours mixed with ``behind``.
        matte: alpha.
        behind: background of the photo. None: straight colours; if the photo is a mixture after all, its background remains with weight
            matte (1 - matte).
    """
    if behind is None:
        return torch.cat([photo * matte, matte])
    colour = photo - (1 - matte) * photo.new_tensor(behind)[:, None, None]
    return torch.cat([torch.minimum(colour.clamp_min(0), matte), matte])


class RGBALoss:
    """Computes the loss terms. Not a module of the system, so the VGG network is not in checkpoints.

    Args:
        factors: of the terms.
        vgg: file of the VGG network; None looks in the torch hub cache when the perceptual term needs it.

    Raises:
        InputError: the perceptual term has a factor and the weights of its network are missing.
    """

    def __init__(self, factors: RGBALosses, vgg: Path | None) -> None:
        self.factors = factors
        self.perceptual: RGBAPerceptualLoss | None = None
        if factors.perceptual:
            try:
                self.perceptual = RGBAPerceptualLoss(find_backbone("vgg19", vgg))
            except InputError as error:
                raise InputError(f"{error}; or train without it: system.losses={{perceptual: 0, ssim: 0.1}}") from error

    def terms(
        self, rendered: Float[Tensor, "b 4 h w"], target: Float[Tensor, "b 4 h w"], region: Bool[Tensor, "b 1 h w"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Terms by the name of their factor; pixels outside of ``region`` have no error and no gradient."""
        ours = torch.where(region, rendered, target)
        terms = {}
        if self.factors.rgba_mse:
            terms["rgba_mse"] = torch.nn.functional.mse_loss(ours, target)
        if self.factors.rgba_l1:
            terms["rgba_l1"] = torch.nn.functional.l1_loss(ours, target)
        if self.factors.ssim:
            terms["ssim"] = ssim_loss(ours[:, :3], target[:, :3])
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual.to(ours.device)(ours, target)
        return terms

    def total(self, terms: dict[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """Weighted sum of the terms."""
        return torch.stack([getattr(self.factors, name) * value for name, value in terms.items()]).sum()


# ----------------------------------------------------------------------
# System


log = logging.getLogger(__name__)

_DEPTH_SAMPLE = 20_000  # points that near and far are estimated from
_DEPTH_TAILS = 0.01  # quantile of depths for near, and 1 - quantile for far
_LAYER_CHECK_VIEWS = 3  # training views in which the number of layers is checked


@dataclass(frozen=True)
class LayeredRender:
    """b views in layers.

    Attributes:
        rgba: premultiplied colours and alpha of the composite, not clamped.
        layers: straight colour and alpha of each layer.
        depth: of the front layer, inf for empty pixels.
        gathered: descriptors of the visible points.
    """

    rgba: Float[Tensor, "b 4 h w"]
    layers: Float[Tensor, "b l 4 h w"]
    depth: Float[Tensor, "b h w"]
    gathered: Gathered


class NPCR(PerSceneParameters, ManualOptimizationSystem):
    """Descriptors rendered in depth layers.

    Args:
        settings: keys of the config.
        context: the run; all photos of its scenes must have mattes.
        network: from features and directions to colour and opacity.
    """

    settings: NPCRSettings
    settings_class = NPCRSettings
    display_keys = (
        *ManualOptimizationSystem.display_keys,
        *TABLE_DISPLAY_KEYS,
        *("vgg_weights", "background", "colour_threshold", "history_weights", "refine_weights"),
    )
    supports_history = True
    shown_layers: Tensor

    @classmethod
    def data_needs(cls, settings: NPCRSettings) -> DataNeeds:
        return DataNeeds(straight_alpha=True, scenes_per_epoch=settings.max_scenes_per_train_epoch)

    def __init__(self, settings: NPCRSettings, context: RunContext, network: RGBAUNet) -> None:
        super().__init__(settings, context, settings.lr_schedule)
        for scene in self.scenes.values():
            require_mattes(scene)
        channels = settings.descriptor_dim + 3 * settings.use_rgb + 3
        if network.in_channels != channels:
            raise InputError(
                f"system.network.in_channels: expected {channels}, which are system.descriptor_dim={settings.descriptor_dim}, "
                f"{'three of the colours of points, ' if settings.use_rgb else ''}and three of directions, got {network.in_channels}; make them agree"
            )
        self.network = network
        self.default_feature = nn.Parameter(torch.rand(1, settings.descriptor_dim, 1, 1))
        # evaluations render as many layers as the weights were trained with
        self.register_buffer("shown_layers", torch.tensor(settings.layers_at(0)))
        self.tables = DescriptorTables(
            settings.descriptor_dim,
            descriptor_folders(settings, context),
            SparseAdam(settings.learning_rates.descriptors, settings.weight_decay),
            self._read_points,
            max_resident=settings.max_scenes_per_train_epoch,
            max_points=settings.max_points,
        )
        self._footprints: dict[str, Footprint] = {}
        self._colours: dict[str, Tensor] = {}
        self._vgg = None if settings.vgg_weights is None else context.search_paths.existing(settings.vgg_weights, "system.vgg_weights")
        self._objective: RGBALoss | None = None
        self._has_layers: set[str] = set()  # scenes that have as many layers as the config asks for

    # ------------------------------------------------------------------- start
    def require_weights(self, missing: Sequence[str]) -> None:
        if any(name.startswith(("network.", "default_feature")) for name in missing):
            raise InputError(
                f"weights_path: the checkpoint lacks weights of system.network, which would be random ({', '.join(missing[:3])}, ...); choose the network that "
                "it was trained with, or begin anew with weights_strict=false"
            )

    def check_before_training(self, trained: Sequence[str], validated: Sequence[str]) -> None:
        self.tables.begin_training(trained, validated, self.settings.overwrite_descriptors)
        self.objective()

    def objective(self) -> RGBALoss:
        """The loss. Raises InputError if the network of its perceptual term is missing."""
        if self._objective is None:
            self._objective = RGBALoss(self.settings.losses, self._vgg)
        return self._objective

    def start_without_weights(self, evaluate_only: bool) -> None:
        if evaluate_only:
            raise InputError(
                "weights_path: expected the checkpoint of a trained system for eval_only=true, got none; the network would be random: name it, for example "
                "weights_path=experiments/<run>/checkpoints/last.ckpt"
            )

    def _read_points(self, name: str) -> ScenePoints:
        scene = self.scenes[name]
        cloud = scene.cloud.read()
        cameras = [scene.views[i].camera for i in scene.splits["train"]]
        if cloud_coverage(cloud.xyz, cameras, ProjectionSettings()).seen == 0:
            raise InputError(
                f"point cloud {scene.cloud.path}: none of its {len(cloud)} points is seen by any training camera of scene {name}; cloud and cameras must "
                "share one coordinate frame"
            )
        if self.settings.use_rgb:
            if cloud.rgb_u8 is None:
                raise InputError(
                    f"system.use_rgb: point cloud {scene.cloud.path} has no colours; name one that has, or set system.use_rgb=false"
                )
            self._colours[name] = cloud.rgb_u8.float().div(255).to(self.device)
        self._footprints[name] = self._footprint(cloud.xyz, cameras)
        return ScenePoints(cloud.xyz.to(self.device))

    def _footprint(self, xyz_world: Float[Tensor, "n 3"], cameras: Sequence[Cameras]) -> Footprint:
        """Splat sizes; near and far from the config, or estimated from the depths of the cloud in the training cameras."""
        s = self.settings
        near, far = s.near, s.far
        if near is None or far is None:
            sample = xyz_world[:: max(1, len(xyz_world) // _DEPTH_SAMPLE)]
            depth = torch.cat([camera.view(sample)[0, :, 2] for camera in cameras])
            depth = depth[depth > 0].sort().values
            tail = int(_DEPTH_TAILS * len(depth))
            near = float(depth[tail]) if near is None else near
            far = float(depth[-1 - tail]) if far is None else far
            if s.near is None and s.far is None and not near < far:
                far = near + 1.0  # all points at one depth: one size
            if not near < far:
                raise InputError(
                    f"system.near, system.far: expected near < far, got {near:g} and {far:g}, of which null is taken from the cloud"
                )
        return Footprint(near, far, s.max_splat)

    def _require_layers(self, name: str) -> None:
        """Raises InputError if training views see fewer layers than the config asks for."""
        if name in self._has_layers:
            return
        cloud, scene = self.tables.resident(name, training=True).cloud, self.scenes[name]
        cameras = [scene.views[i].camera for i in scene.splits["train"]]
        wanted, reached = self.settings.most_layers, 0
        for camera in cameras[:: max(1, len(cameras) // _LAYER_CHECK_VIEWS)]:
            layers = peel(cloud, camera.to(self.device), wanted, self._footprints[name])
            reached = max(reached, sum(bool((layer.index >= 0).any()) for layer in layers))
        if reached < wanted:
            raise InputError(
                f"system.layers: the {len(cloud)} points of scene {name} make {reached} layers in its training views, got {wanted}; lower "
                "system.layers, or make a denser cloud"
            )
        self._has_layers.add(name)

    # --------------------------------------------------------------- rendering
    def layer_count(self) -> int:
        """Number of layers to render: from the config, or with a schedule as the weights were trained."""
        layers = self.settings.layers
        return layers if isinstance(layers, int) else int(self.shown_layers)

    def render_layers(self, cameras: Cameras, scenes: Sequence[str], learn: bool = False) -> LayeredRender:
        """Renders views in layers. ``learn``: training, with gradients for the descriptors of visible points."""
        with self.autocast_free():
            peeled = [
                self._peel(name, self.tables.resident(name, learn).cloud, cameras[k], self.layer_count()) for k, name in enumerate(scenes)
            ]
            maps = [torch.stack([layer.index for layer in layer_of_views]) for layer_of_views in zip(*peeled, strict=True)]
            gathered = self.tables.gather(maps, scenes, learn)
            images = self._features(gathered, cameras)
        closed = torch.stack([torch.stack([layer.closed for layer in layers]) for layers in peeled])
        drawn = self.network(images.flatten(0, 1)).float().unflatten(0, images.shape[:2])
        layers = torch.cat([drawn[:, :, :3], drawn[:, :, 3:].masked_fill(closed[:, :, None], 0.0)], 2)
        return LayeredRender(
            composite_layers(layers), layers, torch.stack([layers_of_view[0].depth for layers_of_view in peeled]), gathered
        )

    def _peel(self, name: str, cloud: ChunkedCloud, camera: Cameras, count: int) -> list[Layer]:
        return peel(cloud, camera, count, self._footprints[name], self.settings.depth_threshold)

    def _features(self, gathered: Gathered, cameras: Cameras) -> Float[Tensor, "b l c h w"]:
        """Descriptors, with ``use_rgb`` colours of points, and viewing directions; directions are 0 in empty pixels."""
        values: Tensor = gathered.values
        default: Tensor = self.default_feature
        if self.settings.use_rgb:
            colours = torch.cat([self._colours[part.scene].index_select(0, part.points) for part in gathered.parts])
            values, default = torch.cat([values, colours], 1), torch.cat([default, default.new_zeros(1, 3, 1, 1)], 1)
        table = feature_table(values, default)
        _, directions = cameras.rays()
        directions = directions.permute(0, 3, 1, 2)
        layers = []
        for rows in gathered.rows:
            image = feature_image(rows, table)
            layers.append(torch.cat([image[:, :-1], directions * image[:, -1:]], 1))
        return torch.stack(layers, 1)

    def render(self, cameras: Cameras, scene: str, raster: bool = False, depth: bool = False) -> Render:
        """``raster`` shows the depth of the points, near bright, empty black; depths are those of the front layer."""
        with torch.no_grad():
            drawn = self.render_layers(cameras.to(self.device), [scene] * len(cameras))
            render = self.over_background(drawn.rgba, drawn.depth)
            points = self._nearness(drawn.depth, self._footprints[scene]) if raster else None
            return replace(render, raster=points, depth=render.depth if depth else None)

    def over_background(self, rgba: Float[Tensor, "b 4 h w"], depth: Float[Tensor, "b h w"]) -> Render:
        """Composites premultiplied colours over the background; ``depth`` is inf for empty pixels."""
        rgba = rgba.clamp(0, 1)
        picture = composite_over(rgba, self.settings.background).clamp(0, 1)
        return Render(picture, rgba[:, 3:], depth=depth.masked_fill(depth.isinf(), 0.0)[:, None], rgba=rgba)

    @staticmethod
    def _nearness(depth: Float[Tensor, "b h w"], footprint: Footprint) -> Float[Tensor, "b 3 h w"]:
        share = 1 - 0.9 * (depth - footprint.near) / (footprint.far - footprint.near)
        return torch.where(depth.isinf(), 0.0, share.clamp(0.1, 1))[:, None].expand(-1, 3, -1, -1)

    # -------------------------------------------------------------- evaluation
    def target_rgba(self, batch: Batch) -> Float[Tensor, "b 4 h w"]:
        """Targets of a batch: premultiplied colours and mattes."""
        mattes = batch.target.mask
        assert mattes is not None, "scenes without mattes are refused at construction"
        return torch.stack(
            [
                premultiply(photo, matte, None if is_straight_alpha(self.scenes[name]) else self.settings.photo_background)
                for photo, matte, name in zip(batch.target.image, mattes, batch.scene, strict=True)
            ]
        )

    def evaluation_target(self, batch: Batch, k: int) -> Float[Tensor, "3 h w"]:
        """The photo, composited over the background of the system."""
        return composite_over(self.target_rgba(batch)[k], self.settings.background)

    def conditions(self) -> dict[str, str]:
        return {
            "background": f"{self.settings.background} behind photos, by their mattes, and behind renderings; mattes: SAD in thousands of pixels"
        }

    def extra_scores(self, render: Render, batch: Batch, k: int) -> dict[str, Any]:
        assert render.rgba is not None
        return {"matte": asdict(matte_scores(self.metrics, render.rgba[0], self.target_rgba(batch)[k]))}

    # ------------------------------------------------------------------- video
    def render_video(self, scene: str, path: Sequence[TimedCamera], options: VideoOptions) -> Iterator[Render]:
        if not options.history:
            yield from super().render_video(scene, path, options)
            return
        video = TemporalFilter(self, scene)
        for timed in path:
            yield video.render(timed.camera)

    def stabilise(self, scene: str, cameras: Sequence[Cameras], passes: int, lr: float, precision: Precision) -> VideoStability:
        with precision.test_step_context(), torch.no_grad():
            before = render_path(self, scene, cameras)
        losses = finetune(self, scene, cameras, passes, lr, precision.train_step_context)
        with precision.test_step_context(), torch.no_grad():
            after = render_path(self, scene, cameras)
        return VideoStability(losses, before.flicker(), after.flicker(), before.change_to(after))

    # ---------------------------------------------------------------- training
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Freezes the statistics of the norms after ``norms_learn_for``: batches are single views, so statistics of batches differ from the running ones."""
        super().on_train_batch_start(batch, batch_idx)
        learning = self.trainer.global_step < self.settings.norms_learn_for * self._total_steps()
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(learning)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Renders a batch, compares it with the targets and steps after enough batches."""
        for scene in batch.scene:
            self._require_layers(scene)
        drawn = self.render_layers(batch.target.cameras, batch.scene, learn=True)
        target = self.target_rgba(batch)
        objective = self.objective()
        terms = objective.terms(drawn.rgba, target, self._region(batch, drawn))
        loss = objective.total(terms)
        self.backward_batch(loss)
        self.tables.accumulate(drawn.gathered)
        behind = self.settings.background
        rendered, wanted = composite_over(drawn.rgba.detach(), behind), composite_over(target, behind)
        if self.wants_pictures:
            fronts = [layer.detach().clamp(0, 1) for layer in drawn.layers[0]]
            self.pictures = (*(composite_over(torch.cat([f[:3] * f[3:], f[3:]]), behind) for f in fronts), rendered[0], wanted[0])
        self.finish_batch()
        points = sum(len(self.tables.residents[name].cloud) for name in batch.scene)
        self.log_batch(batch, terms, loss, rendered, wanted, points)

    def _region(self, batch: Batch, drawn: LayeredRender) -> Bool[Tensor, "b 1 h w"]:
        """Pixels that are compared: all valid ones, or those with points or matte."""
        if self.settings.loss_region == "all":
            return batch.target.valid
        assert batch.target.mask is not None
        return batch.target.valid & (drawn.depth.isfinite()[:, None] | (batch.target.mask > 0))

    def step(self) -> None:
        """Steps the network and the descriptors of visible points."""
        scale = self.learning_rate_scale()
        super().step()
        self.tables.step(self.settings.learning_rates.descriptors * scale, self.settings.gradient_clip_val)

    def learning_rate_scale(self) -> float:
        """Warm-up from a third over ``warmup_epochs``, times the schedule."""
        warmup = self.settings.warmup_epochs
        share = 1.0 if warmup == 0 else min(1.0, self.current_epoch / warmup)
        return super().learning_rate_scale() * (1 + 2 * share) / 3

    def on_train_epoch_start(self) -> None:
        """Sets the number of layers of this epoch."""
        super().on_train_epoch_start()
        count = self.settings.layers_at(self.current_epoch)
        if count != int(self.shown_layers):
            log.info("from epoch %d on %d layers are rendered", self.current_epoch, count)
        self.shown_layers.fill_(count)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the network, its biases at twice the rate and without decay; ``tables`` has the sparse optimizer of the descriptors."""
        rates, decay = self.settings.learning_rates, self.settings.weight_decay
        named = list(self.network.named_parameters())
        groups = [
            {"params": [p for name, p in named if not name.endswith("bias")], "lr": rates.network, "weight_decay": decay},
            {"params": [p for name, p in named if name.endswith("bias")], "lr": 2 * rates.network, "weight_decay": 0.0},
            {"params": [self.default_feature], "lr": rates.descriptors, "weight_decay": decay},
        ]
        return [torch.optim.Adam([group | {"initial_lr": group["lr"]} for group in groups])]
