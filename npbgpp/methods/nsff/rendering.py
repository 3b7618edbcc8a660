"""Whole pictures of a trained NSFF: any camera at any moment or between two, its depth, motion and parts.

Symbols: n = h w pixels of one picture, row by row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.utils import flow_to_image

from npbgpp.geometry import Cameras, TimedCamera
from npbgpp.methods.nsff.compositing import Between, pictures_between
from npbgpp.methods.nsff.model import Look, Nsff, Seen
from npbgpp.methods.nsff.normalisation import VideoNormalisation
from npbgpp.volume import Rays

PARTS = ("full", "static", "dynamic")
_STOPPED = 0.5  # opacity of what moves from which on it has a depth


@dataclass(frozen=True)
class Seeing:
    """How an NSFF is asked for pictures.

    Attributes:
        field: with its weights.
        frame: coordinates of the field, on its device.
        world_viewdirs: tell the field the directions of rays in field coordinates; otherwise those of NDC.
        empty_where_unseen: nothing moves where the camera of the moment did not look.
        chunk: points that the field is asked about at a time.
    """

    field: Nsff
    frame: VideoNormalisation
    world_viewdirs: bool
    empty_where_unseen: bool
    chunk: int

    def rays(self, camera: Cameras) -> tuple[Rays, Float[Tensor, "n 3"]]:
        """(rays through all pixels in NDC, directions that the field is told)."""
        origins, along = (part[0].flatten(0, 1) for part in self.frame.cameras(camera).rays())
        return self.ndc(*self.frame.rays(origins, along), along)

    def ndc(
        self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], view_directions: Float[Tensor, "n 3"]
    ) -> tuple[Rays, Float[Tensor, "n 3"]]:
        """(rays that are in NDC already, directions that the field is told)."""
        rays = Rays(origins, directions, torch.zeros_like(origins[:, 0]), torch.ones_like(origins[:, 0]))
        return rays, view_directions if self.world_viewdirs else directions

    def seen_at(self, moment: int) -> Seen | None:
        """Which points of NDC the camera of a moment saw."""
        if not self.empty_where_unseen:
            return None

        def seen(xyz_ndc: Float[Tensor, "p 3"]) -> Bool[Tensor, " p"]:
            uv_px, depth = self.frame.project(self.frame.ndc_to_field(xyz_ndc), moment)
            height, width = self.frame.image_size
            return (depth > 0) & (uv_px >= 0).all(-1) & (uv_px <= uv_px.new_tensor([width, height])).all(-1)

        return seen

    def look(self, camera: Cameras, moment: int) -> Look:
        """What a camera sees at a moment."""
        rays, told = self.rays(camera)
        return self.field.look(rays, told, moment, self.seen_at(moment), self.chunk)

    def along(self, path: Sequence[TimedCamera]) -> Iterator[Look | Between]:
        """What cameras see, in order. One camera that looks several times in a row between the same moments has these asked only once."""
        first = 0
        while first < len(path):
            start, last = path[first], first + 1
            if start.share == 0:
                yield self.look(start.camera, start.moment)
            else:
                while last < len(path) and path[last].share > 0 and path[last].moment == start.moment and path[last].camera is start.camera:
                    last += 1
                yield from self.between(start.camera, start.moment, [timed.share for timed in path[first:last]])
            first = last

    def between(self, camera: Cameras, moment: int, shares: Sequence[float]) -> list[Between]:
        """What a camera sees on the way from a moment to the next one."""
        rays, told = self.rays(camera)
        field_camera = self.frame.cameras(camera)
        z = self.field.depths(rays, told, moment, self.seen_at(moment), self.chunk)
        planes = (
            tuple(self.field.plane(rays, told, when, z, k, self.seen_at(when), self.chunk) for when in (moment, moment + 1))
            for k in range(z.shape[1])
        )

        def to_pixels(xyz_field: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
            return field_camera.project(xyz_field)[0][0]

        return pictures_between(planes, shares, camera.image_size, self.frame.ndc_to_field, to_pixels)  # type: ignore[arg-type]

    def colours(self, look: Look | Between, part: str) -> Float[Tensor, "n 3"]:
        """The picture of everything (``full``), of the static scene or of what moves (on grey)."""
        return {"full": look.rgb, "static": look.static_rgb, "dynamic": look.dynamic_rgb}[part].clamp(0, 1)

    def depth(self, look: Look | Between, camera: Cameras, part: str) -> Float[Tensor, " n"]:
        """Depth along the viewing axis, scene units; of what moves 0 where less than half of a ray does."""
        rays, _ = self.rays(camera)
        z = look.static_depth if part == "static" else look.depth
        if part == "dynamic":
            z = look.dynamic_depth / look.dynamic_alpha.clamp_min(_STOPPED)
        xyz_field = self.frame.ndc_to_field(rays.origins + z[:, None] * rays.directions)
        depth = self.frame.cameras(camera).project(xyz_field)[1][0] / self.frame.scale
        return torch.where(look.dynamic_alpha >= _STOPPED, depth, 0.0) if part == "dynamic" else depth

    def optical_flow(self, look: Look, moment: int, forward: bool) -> Float[Tensor, "h w 2"]:
        """Pixels that the photo of a moment moves by until its neighbour's, for the camera of that moment: motion of the camera included."""
        height, width = self.frame.image_size
        point, neighbour = (look.forward, moment + 1) if forward else (look.backward, moment - 1)
        uv_px, _ = self.frame.project(self.frame.ndc_to_field(point), neighbour)
        v, u = torch.meshgrid(torch.arange(height, device=uv_px.device), torch.arange(width, device=uv_px.device), indexing="ij")
        return uv_px.view(height, width, 2) - torch.stack([u, v], -1) - 0.5

    def motion(self, look: Look, camera: Cameras) -> Float[Tensor, "h w 2"]:
        """Pixels that what a camera sees moves by until the next moment, while the camera stands still."""
        rays, _ = self.rays(camera)
        field_camera = self.frame.cameras(camera)
        now, then = (
            field_camera.project(self.frame.ndc_to_field(xyz))[0][0]
            for xyz in (rays.origins + look.depth[:, None] * rays.directions, look.forward)
        )
        return (then - now).view(*camera.image_size, 2)


def flow_picture(flow: Float[Tensor, "h w 2"]) -> Float[Tensor, "3 h w"]:
    """Directions as hues of the colour wheel of optical flow (Baker et al. 2011), white stands still, the longest flow has full colour."""
    known = torch.where(torch.isfinite(flow).all(-1, keepdim=True), flow, 0.0)
    if not known.any():
        return known.new_ones(3, *flow.shape[:2])  # flow_to_image divides by the longest
    return flow_to_image(known.permute(2, 0, 1).float()).float() / 255


def grey(values: Float[Tensor, "h w"], low: float = 0.0, high: float = 1.0) -> Float[Tensor, "3 h w"]:
    """Numbers as brightness, ``low`` black and ``high`` white."""
    return ((values - low) / max(high - low, 1e-12)).clamp(0, 1).expand(3, *values.shape)
