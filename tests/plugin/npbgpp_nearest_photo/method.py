"""Nearest photo: a view is the nearest training photo, warped by a plane, with learned colours. A baseline that other methods should beat.

The plane is parallel to the image plane of the rendered camera. Two things are learned, for all scenes together: the depth of the plane relative to the
median depth of the point cloud, and an affine colour correction. A training view is rendered from the other photos of its scene.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from npbgpp.data import Batch, Scene, View, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PixelConvention, PointCloud, ProjectionSettings
from npbgpp.methods.base import DataNeeds, Render, RunContext, System, SystemSettings
from npbgpp.points import sample_features, visible_points

_CLOUD_SAMPLE = 20_000  # points that the median depth is taken of
_VISIBILITY_SCALE = 0.25  # size of the depth buffer relative to the photo


@dataclass(frozen=True, kw_only=True)
class NearestPhotoSettings(SystemSettings):
    """Keys of ``conf/system/nearest_photo.yaml``; their defaults and meaning are there."""

    lr: float
    distance_weight: float
    keep_photos: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(distance_weight=0)
        if self.lr <= 0:
            raise InputError(f"system.lr: expected a positive number, got {self.lr}")


@dataclass(frozen=True)
class Sources:
    """k training views of a scene, and an even sample of m points of its cloud."""

    views: tuple[View, ...]
    centers: Float[Tensor, "k 3"]
    directions: Float[Tensor, "k 3"]
    xyz: Float[Tensor, "m 3"]

    @classmethod
    def of(cls, scene: Scene, device: torch.device) -> "Sources":
        """Reads the cloud of a scene. Raises InputError when it cannot be read."""
        views = tuple(scene.views[i] for i in scene.splits["train"])
        xyz = scene.cloud.read().xyz
        centers = torch.cat([view.camera.centers() for view in views])
        directions = torch.cat([view.camera.R[:, :, 2] for view in views])
        return cls(views, centers.to(device), directions.to(device), xyz[:: 1 + len(xyz) // _CLOUD_SAMPLE].to(device))

    def median_depth(self, camera: Cameras) -> Float[Tensor, ""]:
        """Median depth of the points in front of a camera, scene units; of all points when none is in front of it."""
        depth = camera.view(self.xyz)[0, :, 2]
        front = depth[depth > 0]
        return front.median() if len(front) else depth.abs().median()

    def nearest(self, camera: Cameras, distance_weight: float, except_view: str | None = None) -> View:
        """The view with the smallest angle to a camera plus weighted distance from it; never the view of the given name."""
        distance = (self.centers - camera.centers()).norm(dim=1) / self.median_depth(camera)
        cost = 1 - self.directions @ camera.R[0, :, 2] + distance_weight * distance
        excluded = torch.tensor([view.name == except_view for view in self.views], device=cost.device)
        return self.views[int(cost.masked_fill(excluded, torch.inf).argmin())]


class NearestPhoto(System):
    """The nearest training photo, warped and colour corrected."""

    settings_class = NearestPhotoSettings
    display_keys = (*System.display_keys, "keep_photos")
    unit = "pixels"

    def __init__(self, settings: NearestPhotoSettings, context: RunContext) -> None:
        super().__init__(settings, context)
        self.depth_scale = nn.Parameter(torch.ones(()))
        self.colour = nn.Parameter(torch.eye(3, 4))
        self._sources: dict[str, Sources] = {}
        self._photos: dict[tuple[str, str], Tensor] = {}

    @classmethod
    def data_needs(cls, settings: NearestPhotoSettings) -> DataNeeds:
        return DataNeeds(needs_cloud=True)

    def check_before_training(self, trained: Sequence[str], validated: Sequence[str]) -> None:
        for name in trained:
            count = len(self.scenes[name].splits["train"])
            if count < 2:
                raise InputError(f"scene {name}: expected at least 2 training views, since one is rendered from the others, got {count}")

    def start_without_weights(self, evaluate_only: bool) -> None:
        """The initial values copy the photo, which is a baseline too."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.settings.lr)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Mean absolute error of the valid pixels."""
        target = batch.target
        rendered = torch.cat([self._warp(target.cameras[k], batch.scene[k], target.names[k]) for k in range(len(batch))])
        error = (rendered - target.image).abs() * target.valid
        loss = error.sum() / (3 * target.valid.sum()).clamp(min=1)
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        self.log_throughput(target.valid.numel(), len(batch))
        if self.wants_pictures:
            self.pictures = (rendered[0].detach().clamp(0, 1), target.image[0])
        return loss

    @torch.no_grad()
    def render(self, cameras: Cameras, scene: str, raster: bool = False, depth: bool = False) -> Render:
        rgb = torch.cat([self._warp(cameras[k], scene) for k in range(len(cameras))]).clamp(0, 1)
        if not depth:
            return Render(rgb)
        planes = torch.stack([self._plane(cameras[k], scene) for k in range(len(cameras))])
        return Render(rgb, depth=planes[:, None, None, None].expand(-1, 1, *cameras.image_size))

    def extra_scores(self, render: Render, batch: Batch, k: int) -> dict[str, Any]:
        """Distance from the photo that the view is made of, scene units."""
        camera = batch.target.cameras[k]
        view = self._sources_of(batch.scene[k]).nearest(camera, self.settings.distance_weight)
        return {"photo_distance": float((view.camera.centers() - camera.centers().cpu()).norm())}

    @torch.no_grad()
    def coloured_cloud(self, scene: str) -> PointCloud:
        """Points that some training photo sees, with the mean of their corrected colours."""
        xyz = self.scenes[scene].cloud.read().xyz.to(self.device)
        total, count = torch.zeros_like(xyz), xyz.new_zeros(len(xyz), 1)
        for view in self._sources_of(scene).views:
            camera = view.camera.to(self.device)
            visible = visible_points(xyz, camera, _VISIBILITY_SCALE, ProjectionSettings())[0]
            photo = self._corrected(self._photo(scene, view))[0]
            total[visible] += sample_features(photo, xyz[visible], camera, PixelConvention.EXACT)
            count[visible] += 1
        kept = count[:, 0] > 0
        rgb = (total[kept] / count[kept]).clamp(0, 1) * 255 + 0.5
        return PointCloud(xyz[kept].cpu(), rgb.to(torch.uint8).cpu())

    def _warp(self, camera: Cameras, scene: str, except_view: str | None = None) -> Float[Tensor, "1 3 h w"]:
        """The corrected photo as one camera sees it; white where the plane is behind the camera of the photo."""
        with self.autocast_free():
            view = self._sources_of(scene).nearest(camera, self.settings.distance_weight, except_view)
            origins, directions = camera.rays()
            plane_depth = self._plane(camera, scene)
            on_plane = origins + directions * (plane_depth / (directions @ camera.R[0, :, 2]))[..., None]
            uv_px, depth = view.camera.to(self.device).project(on_plane.flatten(1, 2))
            height, width = camera.image_size
            grid = 2 * uv_px / uv_px.new_tensor(view.camera.image_size[::-1]) - 1
            photo = grid_sample(self._photo(scene, view), grid.view(1, height, width, 2), padding_mode="border", align_corners=False)
            return torch.where(depth.view(1, 1, height, width) > 0, self._corrected(photo), 1.0)

    def _corrected(self, photo: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 h w"]:
        return torch.einsum("rc,bchw->brhw", self.colour[:, :3], photo) + self.colour[:, 3, None, None]

    def _plane(self, camera: Cameras, scene: str) -> Float[Tensor, ""]:
        """Depth of the plane, scene units."""
        return self.depth_scale * self._sources_of(scene).median_depth(camera)

    def _sources_of(self, scene: str) -> Sources:
        if scene not in self._sources:
            self._sources[scene] = Sources.of(self.scenes[scene], self.device)
        return self._sources[scene]

    def _photo(self, scene: str, view: View) -> Float[Tensor, "1 3 h w"]:
        key = (scene, view.name)
        photo = self._photos.get(key)
        if photo is None:
            photo = read_photo(view).image[None].to(self.device) / 255
            if self.settings.keep_photos:
                self._photos[key] = photo
        return photo
