"""NeRF (Mildenhall et al., ECCV 2020): a radiance field of one scene.

Symbols: n rays of a batch. Coordinates of the field are those of ``npbgpp.data.normalisation``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from npbgpp.data import Scene, SceneNormalisation, scene_normalisation
from npbgpp.data.rays import RayBatch, RayDataset, RaySampling
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras
from npbgpp.io import depth_range
from npbgpp.methods.base import FieldExport, Render, RunContext, TrainingViews
from npbgpp.methods.nerf.model import Nerf, NerfRender
from npbgpp.methods.radiance import RadianceSettings, RadianceSystem
from npbgpp.volume import Composited, OccupancyGrid, Rays


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
