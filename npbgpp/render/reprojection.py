"""Pictures of other cameras, as the camera of a frame would see them: pixels are looked up where the points that they show were in the other picture.

For one camera at a time. Depths are along the viewing axis, scene units, inf where nothing is.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbgpp.geometry.cameras import Cameras

_SAME_PLACE = 0.02  # largest difference in depth, as a share of it, of what shows one place


@dataclass(frozen=True)
class Carried:
    """A picture as another camera would see it.

    Attributes:
        picture: nearest pixels; anything where ``known`` is false.
        known: pixels whose points the other picture shows: where it shows something nearer, they are hidden there.
    """

    picture: Float[Tensor, "c h w"]
    known: Bool[Tensor, "h w"]

    def alike(self, current: Float[Tensor, "c h w"], threshold: float) -> Bool[Tensor, "h w"]:
        """Known pixels whose colour, the first three channels, differs from the current one by at most ``threshold``.

        The measure is the sum of the squared differences of the three channels on a scale of 0 to 255.
        """
        difference = (255 * (self.picture[:3] - current[:3])).square().sum(0)
        return self.known & (difference <= threshold)


@torch.no_grad()
def world_points(depth: Float[Tensor, "h w"], camera: Cameras) -> Float[Tensor, "h w 3"]:
    """What the centre of every pixel shows, world coordinates: each pixel of a large point has a place of its own. Not finite where nothing is."""
    height, width = camera.image_size
    v, u = torch.meshgrid(torch.arange(height, device=depth.device) + 0.5, torch.arange(width, device=depth.device) + 0.5, indexing="ij")
    focal, principal = camera.focal_length[0].to(depth), camera.principal_point[0].to(depth)
    xy = (principal - torch.stack([u, v], -1)) / focal
    xyz_cam = torch.cat([xy, torch.ones_like(xy[..., :1])], -1) * depth[..., None]
    return (xyz_cam - camera.T[0]) @ torch.linalg.inv(camera.R[0])


@torch.no_grad()
def carry(
    picture: Float[Tensor, "c h2 w2"],
    picture_depth: Float[Tensor, "h2 w2"],
    its_camera: Cameras,
    depth: Float[Tensor, "h w"],
    camera: Cameras,
) -> Carried:
    """Carries a picture over to the camera of a frame.

    Args:
        picture: taken by another camera.
        picture_depth: its depths.
        its_camera: one camera.
        depth: of the frame.
        camera: of the frame.
    """
    shown = depth.isfinite()
    with torch.autocast(depth.device.type, enabled=False):  # mixed precision would move points by pixels
        xyz_world = world_points(depth.masked_fill(~shown, 1.0), camera)
        uv_px, there = its_camera.project(xyz_world.view(-1, 3))
    height, width = its_camera.image_size
    known = shown.view(-1) & (there[0] > 0) & (uv_px[0] >= 0).all(1) & (uv_px[0] < uv_px.new_tensor([width, height])).all(1)
    column, row = torch.where(known[:, None], uv_px[0], 0.0).floor().long().unbind(1)
    cell = row * width + column
    # points do not fill surfaces: where one is missing, the other picture shows what lies farther, which is another place as well
    known &= (picture_depth.reshape(-1).index_select(0, cell) - there[0]).abs() <= _SAME_PLACE * there[0]
    carried = picture.flatten(1).index_select(1, cell)
    return Carried(carried.view(-1, *depth.shape), known.view(depth.shape))


def unsteadiness(pictures: list[Float[Tensor, "c h w"]], depths: list[Float[Tensor, "h w"]], cameras: list[Cameras]) -> float:
    """How much a film flickers: mean absolute difference between frames and those before them carried over, on a scale of 0 to 255.

    The mean goes over all channels and all known pixels of all frames but the first.

    Raises:
        ValueError: no frame shows anything that the one before it shows.
    """
    total, count = 0.0, 0
    for k in range(1, len(pictures)):
        before = carry(pictures[k - 1], depths[k - 1], cameras[k - 1], depths[k], cameras[k])
        difference = (pictures[k] - before.picture).abs()[:, before.known]
        total, count = total + float(difference.double().sum()), count + difference.numel()
    if count == 0:
        raise ValueError("unsteadiness: no two consecutive frames show the same points")
    return 255 * total / count
