"""NPBG: point descriptors optimised per scene together with a refiner network (Aliev et al., Neural Point-Based Graphics, ECCV 2020).

With an aggregator, the per-point parameters are the coefficients from which NPBG++ computes descriptors for a viewing direction: finetuning of one scene
(Rakhimov et al., NPBG++, CVPR 2022, section 3.5). This is NPBG as in the NPBG++ code base: a light gated refiner, a mask channel, a learnable background
descriptor and a software rasterizer. Symbols: n points of a scene, m points that won a pixel in this step, q parameters per point, b views.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from npbgpp.data import Batch
from npbgpp.errors import InputError
from npbgpp.kernels.rasterization import ChunkedCloud, Level
from npbgpp.methods.base import DataNeeds, RunContext
from npbgpp.methods.points import (
    TABLE_DISPLAY_KEYS,
    AlignedCameras,
    PerSceneParameters,
    PointSettings,
    PointSystem,
    descriptor_folders,
)
from npbgpp.nets import Aggregator
from npbgpp.points import (
    MAX_LAYERS,
    DescriptorTables,
    FeaturePyramid,
    ScenePoints,
    SparseRMSprop,
    Visible,
    describe,
    front_points,
)


@dataclass(frozen=True)
class LearningRates:
    """Initial learning rates: RMSprop for the first three, Adam for the refiner."""

    descriptors: float
    background: float
    rgb_converter: float
    refiner: float


@dataclass(frozen=True, kw_only=True)
class NPBGSettings(PointSettings):
    """Keys of ``conf/system/npbg.yaml`` apart from the networks; their defaults and meaning are there."""

    max_points: int | None
    descriptors_pretrained_dir: str | None
    descriptors_save_dir: str | None
    overwrite_descriptors: bool
    reset_descriptor_optimizer: bool
    drop_single_view_points: bool = True
    front_points: int = 1
    front_spread: float = 0.01
    learning_rates: LearningRates

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.front_points <= MAX_LAYERS:
            raise InputError(f"system.front_points: expected a number of points from 1 to {MAX_LAYERS}, got {self.front_points}")
        if not 0 < self.front_spread < math.inf:
            raise InputError(f"system.front_spread: expected a positive number, got {self.front_spread:g}")
        if self.front_points > 1 and self.pixel_convention != "exact":
            raise InputError(
                f"system.front_points={self.front_points}: expected system.pixel_convention=exact, got {self.pixel_convention}; add system.pixel_convention=exact"
            )


class NPBG(PerSceneParameters, PointSystem):
    """Descriptors, or coefficients of descriptors, as per-scene parameters.

    Args:
        settings: keys of the config.
        context: see PointSystem.
        refiner: see PointSystem.
        rasterizer: see PointSystem.
        aggregator: its coefficients are optimised in place of descriptors; it is not trained itself.
    """

    settings: NPBGSettings
    settings_class = NPBGSettings
    display_keys = (*PointSystem.display_keys, *TABLE_DISPLAY_KEYS)
    accepts_checkpoints_of = ("NPBGPlusPlus",)
    unused_weights = ("feature_extractor", "aggregator")

    def __init__(
        self,
        settings: NPBGSettings,
        context: RunContext,
        refiner: nn.Module,
        rasterizer: FeaturePyramid,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(settings, context, refiner, rasterizer)
        self.aggregator = None if aggregator is None else aggregator.requires_grad_(False)
        if aggregator is not None:
            self.require_channels("system.aggregator", aggregator.descriptor_dim)
        if "rgb_reg_loss" in self.objective_settings.factors:
            raise InputError("system.loss_factors.rgb_reg_loss: NPBG reads no photos and has no such term; set it to 0")
        # the mean feature comes first; points seen by one view have no other coefficients, and the original drops them
        first_of_basis = settings.descriptor_dim if settings.drop_single_view_points else 0
        self.tables = DescriptorTables(
            settings.descriptor_dim if aggregator is None else aggregator.coefficients,
            descriptor_folders(settings, context),
            SparseRMSprop(settings.learning_rates.descriptors),
            self._read_points,
            max_resident=settings.max_scenes_per_train_epoch,
            max_points=settings.max_points,
            keep_history=not settings.reset_descriptor_optimizer,  # the original resets RMSprop before every epoch
            drawn_from=None if aggregator is None else first_of_basis,
        )

    @classmethod
    def data_needs(cls, settings: NPBGSettings) -> DataNeeds:
        return DataNeeds(scenes_per_epoch=settings.max_scenes_per_train_epoch)

    # ------------------------------------------------------------------ scenes
    def check_before_training(self, trained: Sequence[str], validated: Sequence[str]) -> None:
        self.tables.begin_training(trained, validated, self.settings.overwrite_descriptors)
        super().check_before_training(trained, validated)

    def start_without_weights(self, evaluate_only: bool) -> None:
        """Also refuses coefficients without the basis functions that they were solved for."""
        super().start_without_weights(evaluate_only)
        if self.aggregator is not None:
            raise InputError(
                "weights_path: coefficients need the aggregator and the refiner they were made with, got no checkpoint; name that of the NPBG++ run, for "
                "example weights_path=checkpoints/npbgpp_h3ds.ckpt"
            )

    def _read_points(self, scene: str) -> ScenePoints:
        xyz_world = self.read_cloud(scene)
        return ScenePoints(xyz_world.to(self.device), self.cloud_checksums[scene])

    # --------------------------------------------------------------- rendering
    def rendered_cloud(self, scene: str) -> ChunkedCloud:
        return self.tables.resident(scene, training=False).cloud

    def visible(self, aligned: AlignedCameras, scenes: Sequence[str], levels: Sequence[Level]) -> Visible:
        return self._visible(aligned, scenes, levels, training=False)

    def visible_in_training(self, aligned: AlignedCameras, batch: Batch) -> Visible:
        with self.autocast_free():
            return self._visible(aligned, batch.scene, self.rasterizer.levels, training=True)

    def _visible(self, aligned: AlignedCameras, scenes: Sequence[str], levels: Sequence[Level], training: bool) -> Visible:
        clouds = [self.tables.resident(name, training).cloud for name in scenes]
        count = self.settings.front_points
        front = []
        if count == 1:
            maps = self.rasterize(clouds, aligned.rendered, levels)
        else:
            front = front_points(clouds, aligned.rendered, levels, count, self.settings.front_spread, self.settings.near)
            maps = [rows for level in front for rows in level.rows]
        gathered = self.tables.gather(maps, scenes, learn=training)
        if self.aggregator is None:
            visible = Visible(gathered.values, gathered.rows, gathered)
        else:
            visible = describe(gathered, self.tables.residents, self.aggregator, aligned.requested)
        if not front:
            return visible
        found = tuple(replace(level, rows=torch.stack(visible.rows[k * count : (k + 1) * count])) for k, level in enumerate(front))
        return replace(visible, rows=visible.rows[::count], front=found)

    # ---------------------------------------------------------------- training
    def points_of(self, batch: Batch) -> int:
        return sum(len(self.tables.residents[name].cloud) for name in batch.scene)

    def accumulate(self, visible: Visible) -> None:
        assert visible.gathered is not None
        self.tables.accumulate(visible.gathered)

    def step(self) -> None:
        """Steps the networks and the descriptors of visible points."""
        scale = self.learning_rate_scale()
        super().step()
        self.tables.step(self.settings.learning_rates.descriptors * scale, self.settings.gradient_clip_val)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """RMSprop for the background and the converter, Adam for the refiner; ``tables`` has the sparse optimizer of the descriptors."""
        rates = self.settings.learning_rates
        groups = [{"params": self.rgb_converter.parameters(), "lr": rates.rgb_converter, "initial_lr": rates.rgb_converter}]
        if self.rasterizer.bg_feature.requires_grad:
            groups.append({"params": [self.rasterizer.bg_feature], "lr": rates.background, "initial_lr": rates.background})
        optimizers: list[torch.optim.Optimizer] = [torch.optim.RMSprop(groups)]
        if not self.settings.freeze_refiner and any(True for _ in self.refiner.parameters()):
            adam = [{"params": self.refiner.parameters(), "lr": rates.refiner, "initial_lr": rates.refiner}]
            optimizers.append(torch.optim.Adam(adam))
        return optimizers
