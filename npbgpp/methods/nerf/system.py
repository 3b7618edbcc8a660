"""NeRF (Mildenhall et al., ECCV 2020): one scene as a radiance field, fitted to the colours of single pixels.

Symbols: n rays of a batch; coordinates of the field are those of ``npbgpp.data.ray_frames``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from npbgpp.data import Scene, SceneNormalisation, ray_frame
from npbgpp.data.rays import RayBatch, RayDataset, RaySampling
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras
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


_SYNTHETIC_BOX = (-1.5, -1.5, -1.5, 1.5, 1.5, 1.5)  # what the objects of NeRF-Synthetic lie in
_STOPPED = 0.5  # opacity of a ray that has a depth
_NDC_BOX = (-1.5, -1.5, -1.0, 1.5, 1.5, 1.0)  # photos of the scene's other cameras show a little beyond -1..1


class NeRF(RadianceSystem):
    """A coarse and a fine field of one scene.

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
        self.frame = ray_frame(self.scene, frame_kind(settings.ray_frame, self.scene), settings.ray_bounds)
        self.grid = None
        if settings.occupancy_grid:
            box = settings.grid_box or _box(self.scene, self.frame)
            self.grid = OccupancyGrid(box[:3], box[3:], resolution=settings.grid_resolution)

    def training_batches(self, views: TrainingViews) -> RayDataset:
        """Rays through the pixels of training photos."""
        return RayDataset(views.scene, views.indices, self.frame, self.settings.rays, views.budget, views.image_margin)

    def field_export(self) -> FieldExport:
        if self.frame.ndc is not None:
            raise InputError(
                "system.ray_frame: expected a field in Euclidean coordinates, got one in normalised device coordinates (forward), in which space is bent and "
                "reaches to infinity; train with system.ray_frame=inward or plain"
            )

        def render_rays(rays: Rays, view_directions: Float[Tensor, "n 3"]) -> Composited:
            return self.field.render(rays, view_directions, False, self.grid, self.settings.chunk).final()

        return FieldExport(self.field.final, render_rays, self.grid, self.frame, self.settings.chunk)

    # ------------------------------------------------------------------ weights
    def require_weights(self, missing: Sequence[str]) -> None:
        """See System.require_weights. A grid that is lacking is full, which is right but slow."""
        fields = sorted({name.split(".")[1] for name in missing if name.startswith("field.")})
        if fields:
            raise InputError(
                f"weights_path: the checkpoint lacks weights of {' and '.join(fields)}, which would be random; choose the fields that it was trained with, "
                "or begin anew with weights_strict=false"
            )

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of nerf_pl by the names that they have here."""
        return {f"field.{name}" if name.startswith(("nerf_coarse.", "nerf_fine.")) else name: value for name, value in weights.items()}

    # --------------------------------------------------------------- rendering
    def render(self, cameras: Cameras, scene: str, raster: bool = False, depth: bool = False) -> Render:
        """See System.render. The picture of the bare points is one of nearness: near is bright, empty is black.

        Depths are means along rays; a ray of which less than half is stopped has none.
        """
        colours, nearness, depths = [], [], []
        with torch.no_grad(), self.autocast_free():
            for k in range(len(cameras)):
                height, width = cameras.image_size
                origins, along = (part[0].flatten(0, 1) for part in self.frame.cameras(cameras[k].to(self.device)).rays())
                # photos are composited on white where they have alpha, unless black was chosen
                behind = origins.new_full((3,), 0.0 if self.settings.rays.background == "black" else 1.0)
                rays = self._rays(origins, along)
                seen = self._seen(rays, along, behind, training=False).final()
                assert seen.rgb is not None
                colours.append(seen.rgb.T.view(3, height, width).clamp(0, 1))
                t = seen.normalised_depth()
                if raster:
                    near = 1 - (t - self.frame.near) / (self.frame.far - self.frame.near)
                    nearness.append((near.clamp(0, 1) * seen.opacity.clamp(0, 1)).nan_to_num().view(1, height, width).expand(3, -1, -1))
                if depth:
                    xyz_world = self.frame.world(rays.origins + t[:, None] * rays.directions)
                    stopped = seen.opacity >= _STOPPED
                    depths.append(torch.where(stopped, cameras[k].to(self.device).project(xyz_world)[1][0], 0.0).view(1, height, width))
        return Render(torch.stack(colours), None, torch.stack(nearness) if raster else None, torch.stack(depths) if depth else None)

    def _rays(self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> Rays:
        origins, directions = self.frame.rays(origins, directions)
        near, far = (origins.new_full((len(origins),), end) for end in (self.frame.near, self.frame.far))
        return Rays(origins, directions, near, far)

    def _seen(self, rays: Rays, view_directions: Float[Tensor, "n 3"], background: Float[Tensor, "*each 3"], training: bool) -> NerfRender:
        told = view_directions if self.settings.world_viewdirs else rays.directions
        return self.field.render(rays, told, training, self.grid, self.settings.chunk, background=background)

    # ---------------------------------------------------------------- training
    def training_step(self, batch: RayBatch, batch_idx: int) -> Tensor:
        """Compares the colours of both fields with those of the pixels."""
        if self.grid is not None and self.global_step % self.settings.grid_every == 0:
            self.grid.update(self.field.final.density, self.global_step // self.settings.grid_every)
        rays = Rays(batch.origins, batch.directions, batch.near, batch.far)
        render = self._seen(rays, batch.view_directions, batch.background, training=True)
        # both fields are asked for colours in training
        losses = [mse_loss(seen.rgb, batch.rgb) for seen in (render.coarse, render.fine) if seen is not None and seen.rgb is not None]
        loss = torch.stack(losses).sum()
        self.log_rays(loss, losses[-1], len(batch))
        return loss


def frame_kind(chosen: str, scene: Scene) -> str:
    """``auto`` is NDC for LLFF scenes, which face forward, and the plain world for others."""
    if chosen != "auto":
        return chosen
    return "forward" if scene.layout == "llff" else "plain"


def _box(scene: Scene, frame: SceneNormalisation) -> tuple[float, ...]:
    """A box around all that rays of training photos can show, in coordinates of the field."""
    if frame.ndc is not None:
        return _NDC_BOX
    if scene.layout == "nerf_synthetic":
        return _SYNTHETIC_BOX
    ends = []
    for index in scene.splits["train"]:
        origins, along = frame.cameras(scene.views[index].camera.resize((2, 2))).rays()
        ends += [(origins + t * along).reshape(-1, 3) for t in (frame.near, frame.far)]
    corners = torch.cat(ends)
    return (*corners.amin(0).tolist(), *corners.amax(0).tolist())
