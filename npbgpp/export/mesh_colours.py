"""Colours of the vertices of a mesh: from the photos that see them, or from the field.

Photos are fused as nerf_pl does it: the mean of what they show of a vertex, weighted by nearness and, far more, by whether nothing lies in front of it. It
differs where that code was wrong: the way to a vertex is as long as its distance, not as its depth, and ends before the surface that the vertex is on; a
photo that does not contain a vertex, or looks at its back, does not see it. Coordinates are those of a field without NDC. Symbols: v vertices, n rays.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from npbgpp.data.images import read_photo
from npbgpp.data.ray_frames import RayFrame
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.export.densities import Densities
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixel_rules import PixelRule
from npbgpp.models.nerf import Nerf
from npbgpp.render.ray_sampling import Rays, stratified
from npbgpp.render.volume import composite
from npbgpp.systems.input_views import sample_features

_NEARNESS = 0.1  # weight of a photo at distance 1 that does not see the vertex; one that does has 1 more
_CHUNKS_AT_ONCE = 16  # see Densities
_UNSEEN = 0.5  # grey


@dataclass(frozen=True)
class Occlusion:
    """How it is found out whether something lies in front of a vertex.

    Attributes:
        densities: of the field.
        frame: bounds of rays.
        samples: depths between camera and vertex at which the field is asked.
        threshold: opacity that hides a vertex.
        margin: the way ends so far before the vertex, that the surface itself is not in it.

    Raises:
        InputError: a number out of range.
    """

    densities: Densities
    frame: RayFrame
    samples: int
    threshold: float
    margin: float

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples: expected 1 or more, got {self.samples}")
        if not 0 < self.threshold <= 1:
            raise InputError(f"occ_threshold: expected an opacity, more than 0 and at most 1, got {self.threshold:g}")

    def visible(self, eye: Float[Tensor, "1 3"], vertices: Float[Tensor, "v 3"]) -> Bool[Tensor, " v"]:
        """Whether a camera at ``eye`` sees vertices that it looks at from their front."""
        found = []
        for part in vertices.split(max(1, _CHUNKS_AT_ONCE * self.densities.chunk // self.samples)):
            offset = part - eye
            distance = offset.norm(dim=1)
            far = distance - self.margin
            near = torch.full_like(far, self.frame.near)
            between = far > near  # else there is no way that a ray of the field would go
            rays = Rays(eye.expand_as(part)[between], (offset / distance[:, None])[between], near[between], far[between])
            opacity = torch.zeros_like(far)
            opacity[between] = self._opacity(rays)
            found.append(opacity < self.threshold)  # an unknown one, NaN, hides
        return torch.cat(found) if found else vertices.new_zeros(0, dtype=torch.bool)

    def _opacity(self, rays: Rays) -> Float[Tensor, " n"]:
        z = stratified(rays.near, rays.far, self.samples + 1)
        sigma = self.densities.at(rays.points(z).flatten(0, 1)).view_as(z)
        sigma[:, -1] = -torch.inf  # the last sample reaches to infinity, through the surface
        return composite(sigma, None, z, torch.ones_like(rays.near)).opacity


@torch.no_grad()
def fused_colours(
    scene: Scene, vertices: Float[Tensor, "v 3"], normals: Float[Tensor, "v 3"], occlusion: Occlusion
) -> tuple[Float[Tensor, "v 3"], Bool[Tensor, " v"]]:
    """Colours, 0..1, from the training photos of a scene, and which vertices are in one at all; others are grey.

    Raises:
        InputError: a photo that cannot be read.
    """
    total, weight = torch.zeros_like(vertices), vertices.new_zeros(len(vertices))
    for k in tqdm(scene.splits["train"], desc=f"photos of {scene.name}", disable=None, leave=False):
        view = scene.views[k]
        camera = occlusion.frame.cameras(view.camera.to(vertices.device))
        inside = _inside(camera, vertices).nonzero()[:, 0]
        eye, seen = camera.centers(), vertices[inside]
        front = ((eye - seen) * normals[inside]).sum(1) > 0
        visible = torch.zeros_like(front)
        visible[front] = occlusion.visible(eye, seen[front])
        photo = read_photo(view).image.to(vertices.device).float() / 255
        counts = _NEARNESS / (seen - eye).norm(dim=1) + visible
        total[inside] += counts[:, None] * sample_features(photo, seen, camera, PixelRule.EXACT)
        weight[inside] += counts
    known = weight > 0
    return torch.where(known[:, None], total / torch.where(known, weight, 1.0)[:, None], _UNSEEN), known


def _inside(camera: Cameras, vertices: Float[Tensor, "v 3"]) -> Bool[Tensor, " v"]:
    uv_px, depth = camera.project(vertices)
    height, width = camera.image_size
    return (depth[0] > 0) & (uv_px[0] >= 0).all(1) & (uv_px[0] <= uv_px.new_tensor([width, height])).all(1)


@torch.no_grad()
def colours_along_normals(
    field: Nerf, vertices: Float[Tensor, "v 3"], normals: Float[Tensor, "v 3"], densities: Densities, frame: RayFrame, near_t: float
) -> Float[Tensor, "v 3"]:
    """Colours, 0..1, that the field shows to rays that come against the normals.

    Args:
        field: its colours, without background.
        vertices: where to look.
        normals: outwards.
        densities: occupancy grid and portions of the field.
        frame: bounds of rays.
        near_t: samples begin ``(near_t - 1) * near`` outside of a vertex: 1 is on it.
    """
    colours = []
    for part, outwards in zip(vertices.split(densities.chunk), normals.split(densities.chunk), strict=True):
        near, far = (part.new_full((len(part),), bound) for bound in (frame.near, frame.far))
        rays = Rays(part + frame.near * near_t * outwards, -outwards, near, far)
        seen = field.render(rays, -outwards, False, densities.grid, densities.chunk).final()
        assert seen.rgb is not None
        known = seen.opacity > 0
        colours.append(torch.where(known[:, None], seen.rgb / torch.where(known, seen.opacity, 1.0)[:, None], _UNSEEN))
    return torch.cat(colours).clamp(0, 1)
