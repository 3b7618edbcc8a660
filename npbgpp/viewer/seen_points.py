"""How many training photos see each point of the cloud of a scene, as a picture."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbgpp.data import Scene
from npbgpp.geometry import Cameras, PixelConvention, ProjectionSettings
from npbgpp.io import depth_colormap
from npbgpp.kernels import ChunkedCloud, Level, rasterize

_OCCLUSION_SCALE = 0.25  # of the depth buffers: clouds are not dense, and what is behind must not show through
_BEHIND = 0.02  # points at most this share of the depth behind the nearest one of their cell are seen
_LEVELS = tuple(Level(scale) for scale in (1.0, 0.5, 0.25))  # a cell without a point takes that of the next coarser level
_PROJECTION = ProjectionSettings(0.0, PixelConvention.EXACT)


class SeenPoints:
    """The cloud of a scene with the number of training photos that see each point.

    Args:
        scene: with a cloud. Its photos are not read.
    """

    def __init__(self, scene: Scene) -> None:
        xyz_world = scene.cloud.read().xyz
        self._cloud = ChunkedCloud.build(xyz_world)
        self.counts = torch.zeros(len(xyz_world), dtype=torch.int64)
        for k in scene.splits["train"]:
            camera = scene.views[k].camera
            self.counts += _seen(self._cloud, xyz_world, camera)

    def picture(self, camera: Cameras) -> Float[Tensor, "3 h w"]:
        """Red where the most photos see the nearest point, blue where one does, grey where none does, black without a point."""
        height, width = camera.image_size
        index = torch.full((height, width), -1, dtype=torch.int64)
        levels = [level for level in _LEVELS if int(level.scale * min(height, width)) >= 1]
        for fragments in rasterize(self._cloud, camera, levels, _PROJECTION):
            found = fragments.index.long()
            rows = torch.arange(height) * found.shape[0] // height
            columns = torch.arange(width) * found.shape[1] // width
            index = torch.where(index >= 0, index, found[rows][:, columns])
        counts = torch.where(index >= 0, self.counts[index.clamp(min=0)], -1)
        most = max(int(self.counts.max()), 1)
        colours = depth_colormap(torch.where(counts > 0, most + 1 - counts, 0).float(), 1.0, float(max(most, 2)))
        return torch.where(counts == 0, 0.5, colours)


def _seen(cloud: ChunkedCloud, xyz_world: Float[Tensor, "n 3"], camera: Cameras) -> Bool[Tensor, " n"]:
    """Which points a camera sees."""
    (fragments,) = rasterize(cloud, camera, [Level(max(_OCCLUSION_SCALE, 1 / min(camera.image_size)))], _PROJECTION)
    rows, columns = fragments.index.shape
    uv_px, depth = (part[0] for part in camera.project(xyz_world))
    height, width = camera.image_size
    row, column = (uv_px[:, 1] * rows / height).floor(), (uv_px[:, 0] * columns / width).floor()
    inside = (depth > 0) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    nearest = fragments.index[torch.where(inside, row, 0).long(), torch.where(inside, column, 0).long()].long()
    return inside & (nearest >= 0) & (depth <= (1 + _BEHIND) * depth[nearest.clamp(min=0)])
