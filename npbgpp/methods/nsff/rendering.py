"""Renders views of a trained NSFF at a time step or between two: colours, depth, motion, static and dynamic part.

Symbols: n = h w pixels of one picture, row by row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.utils import flow_to_image

from npbgpp.geometry import Cameras, TimedCamera
from npbgpp.methods.nsff.compositing import InterpolatedOutputs, interpolate_outputs
from npbgpp.methods.nsff.model import Nsff, RayOutputs, VisibilityTest
from npbgpp.methods.nsff.normalisation import VideoNormalisation
from npbgpp.volume import Rays

PARTS = ("full", "static", "dynamic")
_STOPPED = 0.5  # smallest dynamic opacity with a depth


@dataclass(frozen=True)
class FieldRenderer:
    """Renders whole views.

    Attributes:
        field: the trained field.
        normalisation: coordinates of the field, on its device.
        world_viewdirs: viewing directions in Euclidean field coordinates; otherwise in NDC.
        empty_where_unseen: the dynamic density is zero outside of the frustum of the camera of the time step.
        chunk: points per query of the field.
    """

    field: Nsff
    normalisation: VideoNormalisation
    world_viewdirs: bool
    empty_where_unseen: bool
    chunk: int

    def rays(self, camera: Cameras) -> tuple[Rays, Float[Tensor, "n 3"]]:
        """(rays through all pixels in NDC, viewing directions for the field)."""
        origins, along = (part[0].flatten(0, 1) for part in self.normalisation.cameras(camera).rays())
        return self.ndc(*self.normalisation.rays(origins, along), along)

    def ndc(
        self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], view_directions: Float[Tensor, "n 3"]
    ) -> tuple[Rays, Float[Tensor, "n 3"]]:
        """(rays from origins and directions in NDC, viewing directions for the field)."""
        rays = Rays(origins, directions, torch.zeros_like(origins[:, 0]), torch.ones_like(origins[:, 0]))
        return rays, view_directions if self.world_viewdirs else directions

    def visibility_test(self, time_step: int) -> VisibilityTest | None:
        """Test whether NDC points are in the image of the camera of a time step; None without ``empty_where_unseen``."""
        if not self.empty_where_unseen:
            return None

        def seen(xyz_ndc: Float[Tensor, "p 3"]) -> Bool[Tensor, " p"]:
            uv_px, depth = self.normalisation.project(self.normalisation.ndc_to_field(xyz_ndc), time_step)
            height, width = self.normalisation.image_size
            return (depth > 0) & (uv_px >= 0).all(-1) & (uv_px <= uv_px.new_tensor([width, height])).all(-1)

        return seen

    def render(self, camera: Cameras, time_step: int) -> RayOutputs:
        """Renders a view at a time step."""
        rays, viewdirs = self.rays(camera)
        return self.field.render(rays, viewdirs, time_step, self.visibility_test(time_step), self.chunk)

    def along(self, path: Sequence[TimedCamera]) -> Iterator[RayOutputs | InterpolatedOutputs]:
        """Renders a path in order. Consecutive frames of one camera between the same time steps share the queries of the field."""
        first = 0
        while first < len(path):
            start, last = path[first], first + 1
            if start.share == 0:
                yield self.render(start.camera, start.time_step)
            else:
                while (
                    last < len(path)
                    and path[last].share > 0
                    and path[last].time_step == start.time_step
                    and path[last].camera is start.camera
                ):
                    last += 1
                yield from self.between(start.camera, start.time_step, [timed.share for timed in path[first:last]])
            first = last

    def between(self, camera: Cameras, time_step: int, shares: Sequence[float]) -> list[InterpolatedOutputs]:
        """Interpolates views of a camera between a time step and the next one."""
        rays, viewdirs = self.rays(camera)
        field_camera = self.normalisation.cameras(camera)
        z = self.field.depths(rays, viewdirs, time_step, self.visibility_test(time_step), self.chunk)
        planes = (
            tuple(
                self.field.plane(rays, viewdirs, when, z, k, self.visibility_test(when), self.chunk) for when in (time_step, time_step + 1)
            )
            for k in range(z.shape[1])
        )

        def to_pixels(xyz_field: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
            return field_camera.project(xyz_field)[0][0]

        return interpolate_outputs(planes, shares, camera.image_size, self.normalisation.ndc_to_field, to_pixels)  # type: ignore[arg-type]

    def colours(self, outputs: RayOutputs | InterpolatedOutputs, part: str) -> Float[Tensor, "n 3"]:
        """Colours of the scene (``full``), of the static part or of the dynamic part on grey."""
        return {"full": outputs.rgb, "static": outputs.static_rgb, "dynamic": outputs.dynamic_rgb}[part].clamp(0, 1)

    def depth(self, outputs: RayOutputs | InterpolatedOutputs, camera: Cameras, part: str) -> Float[Tensor, " n"]:
        """Depth along the viewing axis, scene units; of the dynamic part 0 where its opacity is below a half."""
        rays, _ = self.rays(camera)
        z = outputs.static_depth if part == "static" else outputs.depth
        if part == "dynamic":
            z = outputs.dynamic_depth / outputs.dynamic_alpha.clamp_min(_STOPPED)
        xyz_field = self.normalisation.ndc_to_field(rays.origins + z[:, None] * rays.directions)
        depth = self.normalisation.cameras(camera).project(xyz_field)[1][0] / self.normalisation.scale
        return torch.where(outputs.dynamic_alpha >= _STOPPED, depth, 0.0) if part == "dynamic" else depth

    def optical_flow(self, outputs: RayOutputs, time_step: int, forward: bool) -> Float[Tensor, "h w 2"]:
        """Optical flow from the photo of a time step to a neighbouring one, pixels: scene flow and motion of the camera."""
        height, width = self.normalisation.image_size
        point, neighbour = (outputs.forward, time_step + 1) if forward else (outputs.backward, time_step - 1)
        uv_px, _ = self.normalisation.project(self.normalisation.ndc_to_field(point), neighbour)
        v, u = torch.meshgrid(torch.arange(height, device=uv_px.device), torch.arange(width, device=uv_px.device), indexing="ij")
        return uv_px.view(height, width, 2) - torch.stack([u, v], -1) - 0.5

    def motion(self, outputs: RayOutputs, camera: Cameras) -> Float[Tensor, "h w 2"]:
        """Optical flow to the next time step for a static camera, pixels."""
        rays, _ = self.rays(camera)
        field_camera = self.normalisation.cameras(camera)
        now, then = (
            field_camera.project(self.normalisation.ndc_to_field(xyz))[0][0]
            for xyz in (rays.origins + outputs.depth[:, None] * rays.directions, outputs.forward)
        )
        return (then - now).view(*camera.image_size, 2)


def flow_image(flow: Float[Tensor, "h w 2"]) -> Float[Tensor, "3 h w"]:
    """Colour wheel of optical flow (Baker et al., 2011), normalised to the longest flow; white is no motion."""
    known = torch.where(torch.isfinite(flow).all(-1, keepdim=True), flow, 0.0)
    if not known.any():
        return known.new_ones(3, *flow.shape[:2])  # flow_to_image divides by the longest
    return flow_to_image(known.permute(2, 0, 1).float()).float() / 255


def grey_image(values: Float[Tensor, "h w"], low: float = 0.0, high: float = 1.0) -> Float[Tensor, "3 h w"]:
    """Maps values to grey, ``low`` black and ``high`` white."""
    return ((values - low) / max(high - low, 1e-12)).clamp(0, 1).expand(3, *values.shape)
