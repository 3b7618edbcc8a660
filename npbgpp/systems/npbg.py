"""NPBG: every point owns a descriptor that is optimised together with a refiner network (Aliev et al., Neural Point-Based Graphics, ECCV 2020).

This is the variant of the NPBG++ code base: light gated refiner, mask channel, learnable background descriptor, software rasteriser. Symbols: n points of
a scene, m points that won a pixel in this step, c channels of a descriptor, b views.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from npbgpp.data.scene import Batch, Scene
from npbgpp.errors import InputError
from npbgpp.geometry.alignment import align_vertically
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixel_rules import PixelRule
from npbgpp.metrics import ImageMetrics
from npbgpp.models.rasterizer import NearestScatterRasterizer
from npbgpp.models.rgb_converter import RGBConverter
from npbgpp.optim import LazyRMSprop
from npbgpp.paths import Bases
from npbgpp.render.coverage import cloud_coverage
from npbgpp.render.rasterize import Level, rasterize
from npbgpp.render.splat import feature_table, splat
from npbgpp.systems.base import Render, System
from npbgpp.systems.descriptors import DescriptorStore, ResidentScene, unique_rows
from npbgpp.systems.npbg_settings import NPBGSettings
from npbgpp.systems.objective import Objective, ObjectiveSettings
from npbgpp.systems.visible import Visible, gather_visible

log = logging.getLogger(__name__)

_NEAR_CUT_WARNING = 0.05


class NPBG(System):
    """Free descriptors, rasterised at several scales, refined by a U-Net.

    Args:
        settings: flat keys of the config.
        scenes: every scene of the run.
        bases: what relative paths of the config refer to.
        metrics: how views are scored.
        refiner: network from the pyramid to (b, 3 or 4, h, w); a fourth channel is the logit of the object mask.
        rasterizer: levels and background feature.
        read_saved: take descriptors found in ``descriptors_save_dir`` (evaluation, resumed training).
    """

    def __init__(
        self,
        settings: NPBGSettings,
        scenes: Mapping[str, Scene],
        bases: Bases,
        metrics: ImageMetrics,
        refiner: nn.Module,
        rasterizer: NearestScatterRasterizer,
        read_saved: bool = False,
    ) -> None:
        super().__init__(scenes, metrics)
        self.automatic_optimization = False
        self.settings = settings
        self.rule = PixelRule(settings.pixel_convention)
        self.refiner, self.rasterizer = refiner, rasterizer
        self.rgb_converter = RGBConverter(settings.descriptor_dim)
        if settings.freeze_refiner:
            self.refiner.requires_grad_(False)
        pretrained = settings.descriptors_pretrained_dir
        self.store = DescriptorStore(
            settings.descriptor_dim,
            bases.output(settings.descriptors_save_dir) if settings.descriptors_save_dir else bases.run / "descriptors",
            bases.existing(pretrained, "system.descriptors_pretrained_dir") if pretrained else None,
            settings.max_points,
            read_saved,
        )
        self.objective_settings = ObjectiveSettings.from_config(
            settings.loss_factors, settings.style_weight, settings.style_img_path, settings.vgg_weights, bases
        )
        self._objective: Objective | None = None
        self._fitting = False
        self._last_batch_end: float | None = None
        self._residents: dict[str, ResidentScene] = {}
        self._trained_this_epoch: set[str] = set()
        self._descriptor_optimizer = LazyRMSprop(settings.learning_rates.descriptors)
        self._pending: list[tuple[str, Tensor, Tensor]] = []
        self._batches_in_step = 0

    # ------------------------------------------------------------------ scenes
    def check_before_training(self, trained: Sequence[str], validated: Sequence[str]) -> None:
        """Refuses a run that would fail later.

        That is: leftovers in the save folder, resuming without descriptors, validation of scenes that nobody trains, losses without their weights.
        """
        if not self.settings.overwrite_descriptors and not self.store.read_saved:
            self.store.refuse_leftovers(trained)
        if self.store.read_saved and not any(self.store.has(scene) for scene in trained):
            raise InputError(
                f"trainer.resume_from_checkpoint: expected descriptors of {', '.join(trained)} in {self.store.save_dir}, found none; go on in the folder of the "
                "interrupted run (hydra.run.dir), or name its descriptors with system.descriptors_pretrained_dir"
            )
        for scene in validated:
            if scene not in trained and not self.store.has(scene):
                raise InputError(
                    f"datasets.scenes.val: scene {scene} is not trained in this run and has no saved descriptors; NPBG cannot render it: validate on a trained "
                    "scene, name its descriptors with system.descriptors_pretrained_dir, or set trainer.limit_val_batches=0"
                )
        self._objective = Objective(self.objective_settings)
        self._fitting = True

    def can_render(self, scene: str) -> bool:
        """False for scenes of this run whose first training epoch is still to come."""
        if scene in self._residents or self.store.has(scene) or not self._fitting:
            return True
        log.info("validation of scene %s skipped: its first training epoch is still to come", scene)
        return False

    def resident(self, scene: str, training: bool) -> ResidentScene:
        """The scene on the device; opened when first asked for, in place of one that this epoch does not need."""
        if scene not in self._residents:
            limit = self.settings.max_scenes_per_train_epoch
            idle = [name for name in self._residents if name not in self._trained_this_epoch]
            if len(self._residents) >= limit and idle:
                del self._residents[idle[0]]
            xyz_world = self.scenes[scene].cloud.read().xyz
            self._check_cloud(self.scenes[scene], xyz_world)
            self._residents[scene] = self.store.open(scene, xyz_world, self.device, required=not training)
        if training:
            self._trained_this_epoch.add(scene)
        return self._residents[scene]

    def _check_cloud(self, scene: Scene, xyz_world: Float[Tensor, "n 3"]) -> None:
        near = self.settings.near
        coverage = cloud_coverage(xyz_world, [scene.views[i].camera for i in scene.splits["train"]], near, self.rule)
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

    # --------------------------------------------------------------- rendering
    def render(self, cameras: Cameras, scene: str, raster: bool = False) -> Render:
        """See System.render."""
        cameras = cameras.to(self.device)
        with torch.no_grad():
            visible = self.visible(cameras, [scene] * len(cameras), training=False)
            render = self.refine(cameras, visible)
            rgb = render.rgb.clamp(0, 1)
            if self.settings.use_masks and render.mask is not None:
                rgb = torch.where(render.mask < 0.5, rgb.new_tensor(self.settings.bg_rgb_color)[:, None, None], rgb)
            return Render(rgb, render.mask, self._raster_picture(cameras, scene, visible) if raster else None)

    def visible(self, cameras: Cameras, scenes: Sequence[str], training: bool) -> Visible:
        """Rasterises the views and collects the descriptors of the winning points, those of a scene once however many views see them."""
        if self.settings.align_during_rendering:
            cameras = align_vertically(cameras, self.rule, self.settings.up).cameras
        levels = self.rasterizer.levels
        found: list[list[Tensor]] = [[] for _ in levels]
        for k, name in enumerate(scenes):
            cloud = self.resident(name, training).cloud
            for indices, fragments in zip(found, rasterize(cloud, cameras[k], levels, self.settings.near, self.rule), strict=True):
                indices.append(fragments.index)
        maps = [torch.stack(indices) for indices in found]
        return gather_visible(maps, scenes, self._residents, training)

    def refine(self, cameras: Cameras, visible: Visible) -> Render:
        """Runs the network on what the views see; colours are not clamped."""
        image = self.refiner(self.rasterizer(visible.rows, visible.descriptors))
        if self.settings.align_during_rendering:
            image = align_vertically(cameras, self.rule, self.settings.up).undo(image)
        mask = image[:, 3:4].sigmoid() if image.shape[1] == 4 else None
        return Render(image[:, :3], mask)

    def _raster_picture(self, cameras: Cameras, scene: str, visible: Visible) -> Float[Tensor, "b 3 h w"]:
        if self.settings.align_during_rendering or self.rasterizer.levels[0] != Level(1.0):  # drawn otherwise than the picture shows it
            cloud = self.resident(scene, training=False).cloud
            drawn = [rasterize(cloud, cameras[k], [Level(1.0)], self.settings.near, self.rule)[0].index for k in range(len(cameras))]
            visible = gather_visible([torch.stack(drawn)], [scene] * len(cameras), self._residents, learn=False)
        colours = self.rgb_converter(visible.descriptors)
        return splat(visible.rows[0], feature_table(colours, colours.new_ones(1, 3, 1, 1)))[:, :3]

    # ---------------------------------------------------------------- training
    def on_train_epoch_start(self) -> None:
        """The original erases the history of RMSprop before every epoch."""
        self._trained_this_epoch.clear()
        self._last_batch_end = None  # evaluation and saving are not training time
        if self.settings.reset_descriptor_optimizer:
            self._descriptor_optimizer.steps = 0
            for scene in self._residents.values():
                scene.table.forget()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One batch: render, compare, step what was seen."""
        cameras = batch.target.cameras
        with self.autocast_free():
            visible = self.visible(cameras, batch.scene, training=True)
        render = self.refine(cameras, visible)
        terms = self._terms(render, batch, visible)
        factors = self.objective_settings.factors
        loss = torch.stack([factors[name] * value for name, value in terms.items()]).sum()
        self.manual_backward(loss / self.settings.accumulate_grad_batches)
        if visible.descriptors.grad is not None:
            self._pending += [(name, seen, visible.descriptors.grad[where]) for name, seen, where in visible.parts]
        self._batches_in_step += 1
        if self._batches_in_step >= self.settings.accumulate_grad_batches:
            self._step()
        for name, value in terms.items():
            self.log(name, value.detach(), batch_size=len(batch))
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        with torch.no_grad():
            error = torch.nn.functional.mse_loss(render.rgb.detach().clamp(0, 1), batch.target.image)
        self.log("psnr", -10 * torch.log10(error.clamp_min(1e-10)), prog_bar=True, batch_size=len(batch))
        points, now = float(sum(len(self._residents[name].cloud) for name in batch.scene)), time.perf_counter()
        self.log("points", points, logger=False, batch_size=len(batch))
        if self._last_batch_end is not None:
            self.log("points_per_s", points / (now - self._last_batch_end), prog_bar=True, batch_size=len(batch))
        self._last_batch_end = now

    def _terms(self, render: Render, batch: Batch, visible: Visible) -> dict[str, Tensor]:
        assert self._objective is not None
        target, compare = batch.target.image, batch.target.valid
        mask = None
        if self.settings.use_masks:
            mask = batch.target.mask
            if mask is None:
                raise InputError(f"system.use_masks: scene {batch.scene[0]} has no masks; add them or set system.use_masks=false")
            inside = mask >= 0.5
            target = torch.where(inside, target, target.new_tensor(self.settings.bg_rgb_color)[:, None, None])
            compare = compare & inside
        # pixels that do not count are given the target's value, so that no term sees them and no gradient leaves them
        rendered = torch.where(compare, render.rgb, target)
        terms = self._objective.image_terms(rendered, target, mask)
        if "dimred_loss" in self.objective_settings.factors and len(visible.descriptors):
            descriptors = visible.descriptors.detach()
            terms["dimred_loss"] = (self.rgb_converter.reconstruct(self.rgb_converter(descriptors)) - descriptors).abs().mean()
        if mask is not None and render.mask is not None:
            terms |= self._objective.mask_terms(render.mask, mask, self._mask_without_points)
        return terms

    def _mask_without_points(self) -> Float[Tensor, "1 1 h w"]:
        training = self.refiner.training
        self.refiner.eval()  # the original keeps the statistics of norms out of this term
        mask = self.refiner(self.rasterizer.empty((64, 64)))[:, 3:4].sigmoid()
        self.refiner.train(training)
        return mask

    def _step(self) -> None:
        scale = self._learning_rate_scale()
        rates = self.settings.learning_rates
        wrapped = self.optimizers()
        first, *others = wrapped if isinstance(wrapped, list) else [wrapped]
        clip = self.settings.gradient_clip_val
        for optimizer in (first, *others):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
            if clip:
                torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
        first.step()
        for optimizer in others:
            # past Lightning's wrapper: it would count every optimiser as a step of its own, and max_steps would come too early
            optimizer.optimizer.step()
        for optimizer in (first, *others):
            optimizer.zero_grad()
        self._descriptor_optimizer.lr = rates.descriptors * scale
        self._descriptor_optimizer.begin_step()
        for name, seen, gradient in self._merged_pending():
            if clip:
                gradient = gradient * min(1.0, clip / (gradient.norm().item() + 1e-6))
            self._descriptor_optimizer.update(self._residents[name].table, seen, gradient)
        self._pending.clear()
        self._batches_in_step = 0

    def _merged_pending(self) -> list[tuple[str, Int[Tensor, " m"], Float[Tensor, "m c"]]]:
        """Gradients of the batches of one step, those of a point that several batches saw summed."""
        merged = []
        for name in dict.fromkeys(name for name, _, _ in self._pending):
            parts = [(seen, gradient) for other, seen, gradient in self._pending if other == name]
            if len(parts) == 1:
                merged.append((name, *parts[0]))
                continue
            rows, position = unique_rows(torch.cat([seen for seen, _ in parts]), self._residents[name].slot)
            total = parts[0][1].new_zeros(len(rows), self.settings.descriptor_dim)
            merged.append((name, rows, total.index_add_(0, position, torch.cat([gradient for _, gradient in parts]))))
        return merged

    def _learning_rate_scale(self) -> float:
        if self.settings.lr_schedule == "constant":
            return 1.0
        total = self._total_steps()
        done = min(self.trainer.global_step / total, 1.0) if total > 0 else 0.0
        return 0.5 * (1 + torch.cos(torch.tensor(done * torch.pi)).item()) * 0.99 + 0.01

    def _total_steps(self) -> float:
        """Optimiser steps of the run, inf when it has no end. Lightning's estimate counts batches: it does not know of the accumulation done here."""
        limit = math.inf if self.trainer.max_steps < 0 else float(self.trainer.max_steps)
        if self.trainer.max_epochs is None or self.trainer.max_epochs < 0:
            return limit
        per_epoch = math.ceil(self.trainer.num_training_batches / self.settings.accumulate_grad_batches)
        return min(limit, float(per_epoch * self.trainer.max_epochs))

    def on_fit_end(self) -> None:
        """From here on every scene must have descriptors to be rendered."""
        self._fitting = False

    def on_train_epoch_end(self) -> None:
        """Saves the descriptors of every scene of the epoch."""
        if self._pending:
            self._step()
        for name in sorted(self._trained_this_epoch):
            path = self.store.save(name, self._residents[name].table)
            log.info("descriptors of scene %s: %s", name, path)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """RMSprop for the background and the converter, Adam for the refiner; the descriptors have their own, which sees only visible rows."""
        rates = self.settings.learning_rates
        groups = [{"params": self.rgb_converter.parameters(), "lr": rates.rgb_converter, "initial_lr": rates.rgb_converter}]
        if self.rasterizer.bg_feature.requires_grad:
            groups.append({"params": [self.rasterizer.bg_feature], "lr": rates.background, "initial_lr": rates.background})
        optimizers: list[torch.optim.Optimizer] = [torch.optim.RMSprop(groups)]
        if not self.settings.freeze_refiner and any(True for _ in self.refiner.parameters()):
            adam = [{"params": self.refiner.parameters(), "lr": rates.refiner, "initial_lr": rates.refiner}]
            optimizers.append(torch.optim.Adam(adam))
        return optimizers
