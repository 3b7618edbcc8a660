"""3D gaussians as a system: one scene as a fixed number of gaussians that are rendered by splatting.

Kerbl et al., 3D Gaussian Splatting for Real-Time Radiance Field Rendering, SIGGRAPH 2023; in place of its densification the relocation of Kheradmand et al.,
3D Gaussian Splatting as Markov Chain Monte Carlo, NeurIPS 2024.

Symbols: n gaussians, b views.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbgpp.core.distributed import process_count
from npbgpp.data import Batch, View, read_depth
from npbgpp.errors import InputError
from npbgpp.geometry import LARGEST_SH_DEGREE, SH_DC, Cameras, GaussianCloud, PointCloud, read_gaussian_ply
from npbgpp.kernels.gaussians import GaussianImage, SplattingSettings
from npbgpp.kernels.photometric import photometric_loss
from npbgpp.methods.base import DataNeeds, ManualOptimizationSystem, Render, RunContext, SystemSettings
from npbgpp.methods.gaussians.appearance import BACKGROUNDS, Background, Exposure, choose_background
from npbgpp.methods.gaussians.initial import Start, check_memory, choose_count, initial_gaussians, scene_extent
from npbgpp.methods.gaussians.model import GAUSSIAN_FIELDS, GaussianAdam, GaussianModel
from npbgpp.methods.gaussians.relocation import add_noise, copies_like, draw_relocation, morton_order
from npbgpp.metrics import colour_corrected_psnr

log = logging.getLogger(__name__)

_SURFACE = 0.5  # opacity of pixels that have a depth
_POINT_OPACITY = 0.1  # of gaussians that are exported as points
_SNAPSHOT_EVERY = 100  # steps between copies of the state, to which a failed step returns
_DEPTH_SAMPLES = 4096  # pixels of a depth map per step
_LOG_EVERY = 10  # batches
_NEAR = 0.02  # near plane relative to the scene extent
_GAUSSIANS = "gaussians"


@dataclass(frozen=True)
class LearningRates:
    """Initial rates of Adam; see ``conf/system/gaussians.yaml``."""

    means: float
    scales: float
    rotations: float
    opacities: float
    colours: float
    background: float
    exposure: float
    cameras: float
    refiner: float

    def __post_init__(self) -> None:
        for name, rate in self.__dict__.items():
            if not 0 <= rate < float("inf"):
                raise InputError(f"system.learning_rates.{name}: expected a rate of at least 0, got {rate}")


@dataclass(frozen=True)
class RelocationSettings:
    """See ``conf/system/gaussians.yaml``."""

    every: int
    begin: int
    end: float
    opacity: float
    noise: float

    def __post_init__(self) -> None:
        if self.every < 0 or self.begin < 0 or self.noise < 0:
            raise InputError(
                f"system.relocation: expected every, begin and noise of at least 0, got {self.every}, {self.begin} and {self.noise}"
            )
        for name in ("end", "opacity"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"system.relocation.{name}: expected a number from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class GaussianSettings(SystemSettings):
    """Keys of ``conf/system/gaussians.yaml``; their defaults and meaning are there."""

    gaussians: int | Literal["auto"]
    start: Literal["auto", "cloud", "random"]
    initial_opacity: float
    far_share: float
    sh_degree: int
    sh_every: int
    background: Literal["auto", "white", "black", "learned", "environment"]
    environment_degree: int
    random_background: bool
    exposure: bool
    refine_cameras: bool
    use_masks: bool
    mask_weight: float
    ssim_weight: float
    depth_weight: float
    opacity_weight: float
    scale_weight: float
    learning_rates: LearningRates
    harmonics_rate: float
    random_rates: float
    means_decay: float
    rates_decay: float
    schedule_steps: int | None
    relocation: RelocationSettings
    sort_every: int
    dilation: float
    antialiased: bool
    near: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gaussians != "auto" and self.gaussians < 1:
            raise InputError(f"system.gaussians: expected a positive number or auto, got {self.gaussians}")
        if not 0 < self.initial_opacity < 1:
            raise InputError(f"system.initial_opacity: expected a number between 0 and 1, got {self.initial_opacity}")
        if not 0 <= self.far_share < 1:
            raise InputError(f"system.far_share: expected a share from 0 to less than 1, got {self.far_share}")
        if not 0 <= self.sh_degree <= LARGEST_SH_DEGREE:
            raise InputError(f"system.sh_degree: expected 0 to {LARGEST_SH_DEGREE}, got {self.sh_degree}")
        if not 1 <= self.environment_degree <= LARGEST_SH_DEGREE:
            raise InputError(f"system.environment_degree: expected 1 to {LARGEST_SH_DEGREE}, got {self.environment_degree}")
        if not 0 <= self.ssim_weight <= 1:
            raise InputError(f"system.ssim_weight: expected a share from 0 to 1, got {self.ssim_weight}")
        for name in ("means_decay", "rates_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"system.{name}: expected a factor above 0, at most 1, got {getattr(self, name)}")
        if not self.dilation > 0:
            raise InputError(f"system.dilation: expected a positive variance in squared pixels, got {self.dilation}")
        if self.near is not None and not self.near > 0:
            raise InputError(f"system.near: expected a positive depth in scene units or null, got {self.near}")
        self.require_at_least(sh_every=0, sort_every=0)
        self.require_at_least(mask_weight=0, depth_weight=0, opacity_weight=0, scale_weight=0)
        if not self.random_rates > 0:
            raise InputError(f"system.random_rates: expected a positive factor, got {self.random_rates}")
        if not self.harmonics_rate > 0:
            raise InputError(
                f"system.harmonics_rate: expected a positive factor, got {self.harmonics_rate}; system.sh_degree=0 has no such coefficients"
            )
        if self.schedule_steps is not None:
            self.require_at_least(schedule_steps=1)


class Gaussians(ManualOptimizationSystem):
    """Gaussians of one scene.

    Args:
        settings: keys of the config.
        context: the run, of one scene.
        refiner: decodes a pyramid of blended descriptors and opacity to colours; the number of descriptors is that of its input channels but one. None:
            gaussians have colours.
    """

    settings: GaussianSettings
    settings_class = GaussianSettings
    meshes_from_depth = True
    foreign_weights = (".ply",)
    extent: Tensor
    failures: Tensor

    def __init__(self, settings: GaussianSettings, context: RunContext, refiner: nn.Module | None = None) -> None:
        super().__init__(settings, context, "constant")
        if len(self.scenes) != 1:
            raise InputError(
                f"system=gaussians: gaussians are one scene, got {len(self.scenes)} ({', '.join(list(self.scenes)[:5])}); choose one with datasets.scene_name"
            )
        (self.scene,) = self.scenes.values()
        self._views = [self.scene.views[index] for index in self.scene.splits["train"]] or list(self.scene.views)
        self._resumes, self._start_seed = context.resumed_run is not None, context.seed
        kind = choose_background(settings.background, self._views, self.scene.name, settings.use_masks)
        names = [view.name for view in self._views]
        self.refiner = refiner
        if settings.random_background:
            self._check_random_background(kind)
        self._channels = (3,) if refiner is None else _pyramid_channels(refiner)
        self.gaussians = GaussianModel(settings.sh_degree, 3 if refiner is None else self._channels[0] - 1)
        self.background = Background(kind, settings.environment_degree)
        self.exposure = Exposure(names) if settings.exposure else None
        self.motions = nn.Parameter(torch.zeros(len(names), 6)) if settings.refine_cameras else None
        self.register_buffer("extent", torch.zeros(()))
        self.register_buffer("failures", torch.zeros((), dtype=torch.int64))
        self._motion_index = {name: k for k, name in enumerate(names)}
        self._depths: dict[str, Float[Tensor, "n 3"]] = {}
        self._has_depth = {view.name: view for view in self._views if view.depth is not None}
        self._starts_at_random = False
        self._touched: Bool[Tensor, " n"] | None = None
        self._snapshot: list[Tensor] = []

    @classmethod
    def data_needs(cls, settings: GaussianSettings) -> DataNeeds:
        return DataNeeds(needs_cloud=False)

    def _check_random_background(self, kind: str) -> None:
        """Raises InputError where training photos cannot be composited on another colour."""
        bare = next((view for view in self._views if view.background is None or not (view.alpha_is_mask or view.mask is not None)), None)
        reason = None
        if bare is not None or kind not in BACKGROUNDS:
            reason = f"photos without, such as {(bare or self._views[0]).image.name}"
        elif self.settings.use_masks:
            reason = "system.use_masks, which compares inside the masks only"
        elif self.refiner is not None:
            reason = "system/refiner, which learns the background itself"
        if reason is not None:
            raise InputError(
                f"system.random_background: expected photos with alpha or masks that are composited on white, and colours to composite, got {reason}; set "
                "system.random_background=false"
            )

    # ------------------------------------------------------------------ start
    def check_before_training(self, trained: Sequence[str], validated: Sequence[str]) -> None:
        """Places the gaussians of a new training."""
        if len(self._views) == 1:
            log.warning("scene %s: gaussians of a single photo look right from its camera only", self.scene.name)
        if len(self.gaussians) == 0 and not self._resumes:
            self._begin()

    def _begin(self) -> None:
        s, cloud = self.settings, self._start_cloud()
        self._starts_at_random = cloud is None
        wanted = None if s.gaussians == "auto" else s.gaussians
        count, reason = choose_count(wanted, self._views, None if cloud is None else len(cloud))
        gibibytes = check_memory(count, s.sh_degree, self.gaussians.channels, self.device)
        name = self.scene.cloud.path.name
        lacking = "" if s.start == "random" else f", since there is no cloud {name}"
        where = f"at random{lacking}" if cloud is None else f"from {len(cloud)} points of {name}"
        log.info("scene %s: %d gaussians (%s), %s; about %.2f GiB", self.scene.name, count, reason, where, gibibytes)
        far = 0.0 if cloud is None else s.far_share
        start = Start(count, s.initial_opacity, far, s.sh_degree)
        new = initial_gaussians(self.scene, self._views, cloud, start, self._start_seed)
        self.take(new if self.refiner is None else with_descriptors(new, self.gaussians.channels, self._start_seed))
        if s.sh_every == 0:
            self.gaussians.active_degree.fill_(s.sh_degree)

    def _start_cloud(self) -> PointCloud | None:
        """The cloud that gaussians start from; None for a random start."""
        start, path = self.settings.start, self.scene.cloud.path
        if start == "random" or (start == "auto" and not path.is_file()):
            return None
        return self.scene.cloud.read()

    def take(self, cloud: GaussianCloud) -> None:
        """Takes over gaussians, and the scale of the scene from them and the training cameras."""
        self.gaussians.replace(cloud)
        cameras = [view.camera for view in self._views]
        depths = torch.cat([camera.project(cloud.means)[1][0] for camera in cameras[:: 1 + len(cameras) // 16]])
        front = depths[depths > 0]
        typical = front.median().item() if len(front) else 0.0
        extent = scene_extent(cameras, typical)
        self.extent.fill_(extent if extent > 0 else 1.0)

    # ------------------------------------------------------------------ weights
    def start_without_weights(self, evaluate_only: bool) -> None:
        if evaluate_only:
            raise InputError(
                "weights_path: expected a checkpoint, or the point_cloud.ply of 3D Gaussian Splatting, for eval_only=true, got none; name it, for example "
                "weights_path=experiments/<run>/checkpoints/last.ckpt"
            )

    def read_foreign_weights(self, path: Path) -> dict[str, Tensor] | None:
        """Gaussians of a PLY file of 3D Gaussian Splatting, in coordinates of the scene."""
        if path.suffix.lower() not in self.foreign_weights:
            return None
        if self.refiner is not None:
            raise InputError(f"gaussians {path}: they have colours, and system.refiner decodes descriptors; leave out system/refiner")
        cloud = read_gaussian_ply(path)
        if cloud.sh_degree != self.settings.sh_degree:
            raise InputError(
                f"gaussians {path}: expected spherical harmonics of degree {self.settings.sh_degree} (system.sh_degree), got {cloud.sh_degree}; set "
                f"system.sh_degree={cloud.sh_degree}"
            )
        self.take(cloud)
        self.gaussians.active_degree.fill_(cloud.sh_degree)
        return {name: value for name, value in self.state_dict().items() if name.startswith((f"{_GAUSSIANS}.", "extent", "failures"))}

    def require_weights(self, missing: Sequence[str]) -> None:
        """Only the gaussians are required: without exposure, motions and background training begins with none."""
        super().require_weights([name for name in missing if name.startswith((f"{_GAUSSIANS}.", "refiner."))])

    def adapt_to_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes over the number of gaussians; exposures and motions of other training photos are left out."""
        means = weights.get(f"{_GAUSSIANS}.means")
        if means is not None and len(means) != len(self.gaussians):
            check_memory(len(means), self.settings.sh_degree, self.gaussians.channels, self.device)
            self.gaussians.resize(len(means))
        own = self.state_dict()
        for name in ("exposure.change", "motions"):
            if name in weights and name in own and weights[name].shape != own[name].shape:
                log.warning(
                    "weights_path: %s is of %d photos, not of the %d of this run; it begins anew", name, len(weights[name]), len(own[name])
                )
                del weights[name]

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Makes room for the gaussians of a checkpoint that training resumes from."""
        super().on_load_checkpoint(checkpoint)
        self.adapt_to_weights(checkpoint["state_dict"])

    # --------------------------------------------------------------- rendering
    @property
    def _splatting(self) -> SplattingSettings:
        s = self.settings
        return SplattingSettings(s.dilation, s.antialiased, s.near or _NEAR * self.extent.item())

    def can_render(self, scene: str) -> bool:
        return len(self.gaussians) > 0

    def render(self, cameras: Cameras, scene: str, raster: bool = False, depth: bool = False) -> Render:
        """``raster`` shows nearness, near bright, empty black; depths are expected depths, 0 for pixels of an opacity below a half."""
        found, colours, depths = [], [], []
        with torch.no_grad(), self.autocast_free():
            for k in range(len(cameras)):
                image = self._splat(cameras[k].to(self.device))
                found.append(image)
                colours.append(self._decode(image).clamp(0, 1))
                depths.append(torch.where(image.alpha >= _SURFACE, image.depth / image.alpha.clamp(min=_SURFACE), 0.0))
            near = torch.stack([_nearness(part) for part in depths]) if raster else None
        return Render(torch.stack(colours), torch.stack([part.alpha for part in found]), near, torch.stack(depths) if depth else None)

    def _splat(
        self, camera: Cameras, means: Float[Tensor, "n 3"] | None = None, colour: Float[Tensor, " 3"] | None = None
    ) -> GaussianImage:
        """The gaussians before the background, or before ``colour``; descriptors before nothing."""
        colours = self.refiner is None
        behind = None if not colours else self.background(camera) if colour is None else colour
        return self.gaussians.render(camera, int(self.gaussians.active_degree), behind, self._splatting, means, colours)

    def _decode(self, found: GaussianImage) -> Float[Tensor, "3 h w"]:
        """Colours of a rendering, not clamped."""
        if self.refiner is None:
            return found.image
        levels = [torch.cat([found.image, found.alpha])[None]]
        for _ in self._channels[1:]:
            levels.append(torch.nn.functional.avg_pool2d(levels[-1], 2))
        return self.refiner(levels)[0, :3]

    def extra_scores(self, render: Render, batch: Batch, k: int) -> dict[str, Any]:
        """With ``exposure`` also the PSNR after a fit of the colours: test photos have no learned exposure."""
        return {} if self.exposure is None else {"cc_psnr": colour_corrected_psnr(self.metrics, render.rgb[0], batch.target.image[k])}

    # ----------------------------------------------------------------- export
    def coloured_cloud(self, scene: str) -> PointCloud:
        """Centres of gaussians of an opacity of at least 0.1, with their mean colours."""
        if self.refiner is not None:
            raise InputError(
                "export cloud: the gaussians of this run have descriptors, which the refiner decodes; export a run without system/refiner"
            )
        return self.gaussians.cloud().points(_POINT_OPACITY)

    def gaussian_cloud(self, scene: str) -> GaussianCloud:
        return self.gaussians.cloud()

    # ---------------------------------------------------------------- training
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Renders the views of a batch, compares them with the photos, and steps after enough batches."""
        s, target = self.settings, batch.target
        count = len(batch)
        losses: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        first: Tensor | None = None
        with self.autocast_free():
            for k in range(count):
                image, view_terms = self._compare(batch, k)
                losses.append(torch.stack(list(view_terms.values())).sum())
                for name, value in view_terms.items():
                    terms[name] = terms.get(name, 0.0) + value.detach() / count
                first = image if first is None else first
            loss = torch.stack(losses).mean()
            if s.opacity_weight:
                loss = loss + s.opacity_weight * self.gaussians.opacity_logits.sigmoid().mean()
            if s.scale_weight:
                loss = loss + s.scale_weight / self.extent * self.gaussians.log_scales.exp().mean()
        assert first is not None
        self.backward_batch(loss)
        if self.wants_pictures:
            self.pictures = (first.detach().clamp(0, 1), target.image[0])
        self.finish_batch()
        if batch_idx % _LOG_EVERY == 0:  # logging every batch would take a quarter of the time of small ones
            self.log_batch(batch, terms, loss, first.detach()[None], target.image[:1], len(self.gaussians) * count, _LOG_EVERY)

    def _compare(self, batch: Batch, k: int) -> tuple[Float[Tensor, "3 h w"], dict[str, Float[Tensor, ""]]]:
        """The rendering of view k, with the exposure of its photo, and the weighted terms of its loss."""
        s, target = self.settings, batch.target
        camera, name, photo = target.cameras[k], target.names[k], target.image[k]
        colour = None
        if s.random_background:
            assert target.mask is not None
            colour = torch.rand(3).to(photo)  # the generator is seeded for every batch
            photo = photo + (1 - target.mask[k]) * (colour - self.background.fixed)[:, None, None]
        found = self._splat(camera, self._moved_means(camera, name), colour)
        self._touched = found.visible if self._touched is None else self._touched | found.visible
        image = self._decode(found)
        if self.exposure is not None:
            image = self.exposure(image, name)
        compared = target.valid[k]
        terms = {}
        if s.use_masks:
            if target.mask is None:
                raise InputError(f"system.use_masks: scene {batch.scene[k]} has no masks; add them or set system.use_masks=false")
            inside = target.mask[k] >= 0.5
            compared = compared & inside
            if s.mask_weight:
                terms["mask_loss"] = s.mask_weight * (found.alpha * (target.valid[k] & ~inside)).mean()
        weights = None if bool(compared.all()) else compared.float()
        terms["photometric_loss"] = photometric_loss(image, photo, weights, s.ssim_weight).loss
        if s.depth_weight and name in self._has_depth:
            terms["depth_loss"] = s.depth_weight * self._depth_error(found, camera, name)
        return image, terms

    def _moved_means(self, camera: Cameras, name: str) -> Float[Tensor, "n 3"] | None:
        """Means as the camera sees them after its learned motion: x + w x x + t in camera coordinates, to first order."""
        if self.motions is None:
            return None
        turn, shift = self.motions[self._motion_index[name]].split(3)
        means = self.gaussians.means
        seen = means @ camera.R[0] + camera.T[0]
        change = torch.linalg.cross(turn.expand_as(seen), seen) + shift * self.extent
        return means + change @ camera.R[0].T

    def _depth_error(self, found: GaussianImage, camera: Cameras, name: str) -> Float[Tensor, ""]:
        """Mean relative error of expected depths at pixels of the depth map of a view."""
        xyz = self._measured(self._has_depth[name])
        if len(xyz) == 0:
            return found.depth.sum() * 0
        chosen = xyz[torch.randint(len(xyz), (min(_DEPTH_SAMPLES, len(xyz)),)).to(xyz.device)]
        uv_px, depth = camera.project(chosen)
        height, width = camera.image_size
        u, v = uv_px[0].floor().unbind(1)
        inside = (depth[0] > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        u, v, z = u[inside].long(), v[inside].long(), depth[0][inside]
        if len(z) == 0:
            return found.depth.sum() * 0
        # an empty pixel has depth 0, an error of 1
        rendered = found.depth[0, v, u] / found.alpha.detach()[0, v, u].clamp(min=0.1)
        return ((rendered - z).abs() / z).clamp(max=1).mean()

    def _measured(self, view: View) -> Float[Tensor, "n 3"]:
        """Points of the depth map of a view, in world coordinates; read once."""
        if view.name not in self._depths:
            assert view.depth is not None
            z, camera = read_depth(view.depth), view.depth.camera
            v, u = (z > 0).nonzero(as_tuple=True)
            z = z[v, u].double()
            uv_px = torch.stack([u, v], 1) + 0.5
            xy = (camera.principal_point - uv_px) / camera.focal_length * z[:, None]
            xyz = (torch.cat([xy, z[:, None]], 1) - camera.T.double()) @ torch.linalg.inv(camera.R[0].double())
            self._depths[view.name] = xyz.float().to(self.device)
        return self._depths[view.name]

    # ------------------------------------------------------------ optimisation
    def configure_optimizers(self) -> GaussianAdam:
        """Adam with a group per parameter; see ``_set_rates``."""
        rates, model = self.settings.learning_rates, self.gaussians
        faster = self.settings.random_rates if self._starts_at_random else 1.0  # a resumed run takes its rates from the checkpoint
        initial = {
            "means": faster * rates.means * self.extent.item(),
            "log_scales": rates.scales,
            "quaternions": rates.rotations,
            "opacity_logits": faster * rates.opacities,
            "sh": rates.colours * self.settings.harmonics_rate,
        }
        groups: list[dict[str, Any]] = [
            {"params": [getattr(model, name)], "name": name, "initial_lr": initial[name], "rows": True} for name in GAUSSIAN_FIELDS
        ]
        groups[-1]["first"] = 1 / self.settings.harmonics_rate
        others = [("background", parameter, rates.background) for parameter in self.background.parameters()]
        others += [("exposure", parameter, rates.exposure) for parameter in ([] if self.exposure is None else self.exposure.parameters())]
        others += [("cameras", self.motions, rates.cameras)] if self.motions is not None else []
        others += [("refiner", parameter, rates.refiner) for parameter in ([] if self.refiner is None else self.refiner.parameters())]
        groups += [{"params": [parameter], "name": name, "initial_lr": rate, "rows": False} for name, parameter, rate in others]
        return GaussianAdam(groups)

    def schedule_share(self) -> float:
        """Share of the schedule that is done, 0 to 1; 0 for runs without an end."""
        total = self.settings.schedule_steps or self._total_steps()
        return min(self.trainer.global_step / total, 1.0) if total > 0 else 0.0

    def on_train_start(self) -> None:
        super().on_train_start()
        self._keep_state(self._adam())

    def _adam(self) -> GaussianAdam:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, GaussianAdam)
        return optimizer

    def step(self) -> None:
        """Steps the gaussians that the views of the batches since the last step show, then moves gaussians."""
        s, model, adam = self.settings, self.gaussians, self._adam()
        share, number = self.schedule_share(), self.trainer.global_step
        touched = self._touched
        assert touched is not None
        if process_count() > 1:  # gradients are means over processes
            shown = touched.to(torch.uint8)
            dist.all_reduce(shown, op=dist.ReduceOp.MAX)
            touched = shown.bool()
        self._touched, self._batches_in_step = None, 0
        for group in adam.param_groups:
            decay = s.means_decay if group["name"] == "means" else s.rates_decay if group["rows"] else 1.0
            group["lr"] = group["initial_lr"] * decay**share
        if self._failed(adam):
            self._return_to_snapshot(adam, number)
            adam.zero_grad()
            self._count_step(torch.zeros_like(touched))
            return
        if self._clip:
            torch.nn.utils.clip_grad_norm_([p for group in adam.param_groups for p in group["params"]], self._clip)
        self._count_step(touched)
        adam.zero_grad()
        with torch.no_grad():
            model.seen |= touched
            self._move(adam, number + 1, share)
            if self.exposure is not None:
                self.exposure.centre()
            if self.motions is not None:
                self.motions.sub_(self.motions.mean(0))
        if s.sh_every:
            degree = min(max((number + 1) // s.sh_every, int(model.active_degree)), s.sh_degree)
            model.active_degree.fill_(degree)
        if (number + 1) % _SNAPSHOT_EVERY == 0:
            self._keep_state(adam)

    def _count_step(self, rows: Bool[Tensor, " n"]) -> None:
        """A step of Adam through Lightning, which counts it."""
        wrapped = self.optimizers()
        assert not isinstance(wrapped, list)
        wrapped.step(rows=rows)

    def _move(self, adam: GaussianAdam, number: int, share: float) -> None:
        """Relocation, noise and sorting after step ``number``; the same in all processes."""
        s, model = self.settings, self.gaussians
        relocation = s.relocation
        generator = torch.Generator(self.device).manual_seed(
            int(np.random.SeedSequence((self._seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        )
        if relocation.every and number % relocation.every == 0 and number >= relocation.begin and share <= relocation.end:
            self._relocate(adam, generator)
        if relocation.noise:
            (rate,) = (group["lr"] for group in adam.param_groups if group["name"] == "means")
            add_noise(model.means, model.log_scales, model.quaternions, model.opacity(), relocation.noise * rate, generator)
        if s.sort_every and number % s.sort_every == 0:
            order = morton_order(model.means)
            for tensor in (*adam.gaussian_tensors(), model.seen):
                tensor.copy_(tensor[order])

    def _relocate(self, adam: GaussianAdam, generator: torch.Generator) -> None:
        model = self.gaussians
        opacity = model.opacity()
        drawn = draw_relocation(opacity, model.seen, self.settings.relocation.opacity, generator)
        model.seen.zero_()
        if drawn is None:
            return
        new_opacity, factor = copies_like(opacity[drawn.copied], drawn.copies)
        new_opacity = new_opacity.clamp(min=self.settings.relocation.opacity, max=1 - 1e-6)
        model.opacity_logits[drawn.copied] = torch.logit(new_opacity)
        model.log_scales[drawn.copied] += factor.log()[:, None]
        for name in GAUSSIAN_FIELDS:
            values = getattr(model, name)
            values[drawn.dead] = values[drawn.source]
        adam.clear_moments(torch.cat([drawn.dead, drawn.copied]))

    # ------------------------------------------------------------ failed steps
    def _state(self, adam: GaussianAdam) -> list[Tensor]:
        """Everything that a step changes."""
        others = [group["params"][0].data for group in adam.param_groups if not group["rows"]]
        moments = [
            adam.state[group["params"][0]][name] for group in adam.param_groups if not group["rows"] for name in ("exp_avg", "exp_avg_sq")
        ]
        return [*adam.gaussian_tensors(), self.gaussians.seen, *others, *moments]

    def _keep_state(self, adam: GaussianAdam) -> None:
        state = self._state(adam)
        if all(bool(tensor.isfinite().all()) for tensor in state):
            self._snapshot = [tensor.clone() for tensor in state]

    def _failed(self, adam: GaussianAdam) -> bool:
        """Whether a gradient is not finite."""
        gradients = [group["params"][0].grad for group in adam.param_groups]
        sums = [gradient.sum() for gradient in gradients if gradient is not None]
        return bool(sums) and not bool(torch.stack(sums).sum().isfinite())

    def _return_to_snapshot(self, adam: GaussianAdam, number: int) -> None:
        """Goes back to the last good state. Raises InputError when that has been done before."""
        self.failures += 1
        if int(self.failures) > 1 or not self._snapshot:
            raise InputError(
                f"system=gaussians: gradients of step {number + 1} are not finite for the second time; look for damaged photos or poses "
                "(npbgpp prepare check), or lower system.learning_rates"
            )
        log.warning(
            "step %d: gradients are not finite; training goes on from the state of at most %d steps before", number + 1, _SNAPSHOT_EVERY
        )
        for tensor, kept in zip(self._state(adam), self._snapshot, strict=True):
            tensor.copy_(kept)


def _pyramid_channels(refiner: nn.Module) -> tuple[int, ...]:
    """Channels of each level that a refiner takes: descriptors and the opacity. Raises InputError for a network without pyramid, or without room for colours."""
    channels = getattr(refiner, "in_channels", None)
    used = tuple(count for count in channels if count > 0) if isinstance(channels, tuple) else ()
    if not used or used[0] < 4 or set(used) != {used[0]}:
        raise InputError(
            "system.refiner: expected a U-Net whose levels take equally many channels, at least 3 descriptors and the opacity, got "
            f"{type(refiner).__name__} with {channels}; choose system/refiner=unet, or none"
        )
    return used


def with_descriptors(cloud: GaussianCloud, channels: int, seed: int) -> GaussianCloud:
    """Gaussians whose colours are descriptors: the first three are colours from -1 to 1, the others small random numbers."""
    values = 0.1 * torch.randn(len(cloud), channels, generator=torch.Generator().manual_seed(seed))
    values[:, :3] = 2 * cloud.colours() - 1
    sh = torch.zeros(len(cloud), cloud.sh.shape[1], channels)
    sh[:, 0] = values / SH_DC
    return replace(cloud, sh=sh)


def _nearness(depth: Float[Tensor, "1 h w"]) -> Float[Tensor, "3 h w"]:
    """Near bright, far dark, nothing black."""
    there = depth > 0
    if not there.any():
        return torch.zeros_like(depth).expand(3, -1, -1)
    low, high = depth[there].aminmax()
    shade = 1 - 0.8 * (depth - low) / (high - low).clamp(min=1e-12)
    return torch.where(there, shade, 0.0).expand(3, -1, -1)
