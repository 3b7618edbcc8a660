"""Depth peeling of a point cloud: the nearest points of every pixel, then the nearest of the remaining ones, and so on.

Every point covers a square of pixels whose size decreases with its depth. Layer 0 holds the nearest point of every pixel; the points that won a pixel are
removed, and layer 1 holds the nearest of the others. Removing whole points rather than pixels keeps a point from appearing behind itself (NPCR; depth peeling
is due to Everitt, "Interactive order-independent transparency", 2001).

Keys are those of ``npbgpp.kernels.rasterization``. Points are projected once and grouped by the size of their squares; a layer costs one scattered minimum
per pixel covered by the remaining points.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from npbgpp.geometry import Cameras, ProjectionSettings
from npbgpp.kernels import EMPTY_KEY, ChunkedCloud, ElementwiseProjection, Fragments, map_in_threads, thread_count, visible_chunks

MAX_LAYERS = 8
_INDEX_BITS = 0xFFFFFFFF
_CPU_POINTS = 1 << 17  # projected at a time, so that temporaries fit into the cache
_ACCELERATOR_POINTS = 1 << 22


@dataclass(frozen=True)
class Footprint:
    """Size of points in the image: squares from ``floor(u - r)`` to ``floor(u + r)``, likewise in v.

    The radius r, in pixels, is ``max_splat`` up to depth ``near`` and decreases linearly to 0 at depth ``far``; beyond, a point covers one pixel.
    """

    near: float
    far: float
    max_splat: float

    def radius(self, depth: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Radii in pixels."""
        return (1 - (depth - self.near) / (self.far - self.near)).clamp_(0, 1).mul_(self.max_splat)


@dataclass(frozen=True)
class Layer:
    """One peeled layer.

    Attributes:
        index: row of the visible point in the cloud, -1 for empty pixels.
        depth: its depth in scene units, inf for empty pixels.
        closed: pixels whose next point lies too far behind the previous layer; they stay empty in this and all later layers.
    """

    index: Int[Tensor, "h w"]
    depth: Float[Tensor, "h w"]
    closed: Bool[Tensor, "h w"]


def peel(cloud: ChunkedCloud, camera: Cameras, layers: int, footprint: Footprint, gap: float = math.inf) -> list[Layer]:
    """The nearest layers of a cloud for one camera, front to back, in ``PixelConvention.EXACT``.

    Args:
        cloud: the points, on the device to render on; points at depth <= 0 are culled.
        camera: one camera.
        layers: number of layers, at least 1; layers behind the last point are empty.
        footprint: size of the points.
        gap: depth difference to the previous layer above which a pixel is closed, scene units.

    Raises:
        ValueError: not exactly one camera, no layer, ``near >= far`` or a negative size.
    """
    if len(camera) != 1 or layers < 1:
        raise ValueError(f"peel: expected one camera and at least one layer, got {len(camera)} and {layers}")
    if not footprint.near < footprint.far or footprint.max_splat < 0:
        raise ValueError(f"peel: expected near < far and max_splat >= 0, got {footprint}")
    device, size = cloud.xyz_world.device, camera.image_size
    groups = _project(cloud, camera.to(device), footprint)
    found: list[Layer] = []
    for k in range(layers):
        fragments = Fragments(_nearest(groups, size, device))
        index, depth = fragments.index, fragments.depth
        closed = torch.zeros(size, dtype=torch.bool, device=device)
        if found:
            closed = found[-1].closed | ((index >= 0) & (depth - found[-1].depth > gap))
            index, depth = index.masked_fill(closed, -1), depth.masked_fill(closed, math.inf)
        found.append(Layer(index, depth, closed))
        if k + 1 < layers:
            removed = torch.zeros(cloud.rows + 1, dtype=torch.bool, device=device)
            removed[torch.where(fragments.index < 0, cloud.rows, fragments.index).view(-1)] = True  # empty pixels set the spare entry
            groups = [g for g in map_in_threads(lambda group: group.without(removed), groups, device) if len(g.keys)]  # noqa: B023
    return found


@dataclass(frozen=True)
class _Group:
    """m points whose squares, clipped to the image, have one size (rows, columns); ``first`` is the top-left pixel of each."""

    keys: Int[Tensor, " m"]
    first: Int[Tensor, " m"]
    size: tuple[int, int]

    def without(self, removed: Bool[Tensor, " n1"]) -> "_Group":
        """The points whose row is not marked."""
        kept = (~removed.index_select(0, self.keys & _INDEX_BITS)).nonzero()[:, 0]
        return _Group(self.keys.index_select(0, kept), self.first.index_select(0, kept), self.size)


def _project(cloud: ChunkedCloud, camera: Cameras, footprint: Footprint) -> list[_Group]:
    """The points that cover at least one pixel."""
    device = cloud.xyz_world.device
    grid = ProjectionSettings().grid(camera.image_size)
    projection = ElementwiseProjection.of(grid.projection(camera))
    chunks = torch.cat(visible_chunks(cloud, projection, grid, 0.0, footprint.max_splat))
    if len(chunks) == 0:
        return []
    batch_size = max(1, (_CPU_POINTS if device.type == "cpu" else _ACCELERATOR_POINTS) // cloud.index.shape[1])

    def project(batch: Int[Tensor, " k"]) -> list[_Group]:
        world = cloud.xyz_world.index_select(1, batch).flatten(1)
        xyd = torch.empty_like(world)
        projection.apply(world.unbind(), xyd.unbind())
        xy, depth = xyd[:2], xyd[2]
        keys = depth.view(torch.int32).to(torch.int64).bitwise_left_shift_(32).bitwise_or_(cloud.index.index_select(0, batch).view(-1))
        return _by_size(xy / depth, depth, keys, footprint, camera.image_size)

    return [group for groups in map_in_threads(project, chunks.split(batch_size), device) for group in groups]


def _by_size(
    uv_px: Float[Tensor, "2 m"], depth: Float[Tensor, " m"], keys: Int[Tensor, " m"], footprint: Footprint, image_size: tuple[int, int]
) -> list[_Group]:
    """Groups points by the number of rows and columns of the image they cover; drops those that cover none."""
    radius = footprint.radius(depth)
    covering = depth > 0
    starts, counts = [], []
    for axis, length in ((1, image_size[0]), (0, image_size[1])):
        first, last = (uv_px[axis] - radius).floor_(), (uv_px[axis] + radius).floor_()
        covering &= (last >= 0) & (first <= length - 1)
        first, last = (ends.clamp_(0, length - 1).nan_to_num_() for ends in (first, last))
        starts.append(first.to(torch.int32))
        counts.append((last - first).to(torch.int32).add_(1))
    (rows, columns), base = counts, 2 * math.ceil(footprint.max_splat) + 2  # greater than any count
    code = torch.where(covering, rows * base + columns, 0)
    first_pixel = starts[0].to(torch.int64).mul_(image_size[1]).add_(starts[1])
    groups = []
    for number in torch.bincount(code).nonzero()[:, 0].tolist():
        if number:
            members = (code == number).nonzero()[:, 0]
            groups.append(_Group(keys.index_select(0, members), first_pixel.index_select(0, members), divmod(number, base)))
    return groups


def _nearest(groups: list[_Group], image_size: tuple[int, int], device: torch.device) -> Int[Tensor, "h w"]:
    """The smallest key of every pixel."""
    height, width = image_size
    workers = max(1, min(thread_count(device), len(groups)))

    def scatter(worker: int) -> Int[Tensor, " hw"]:
        lowest = torch.full((height * width,), EMPTY_KEY, dtype=torch.int64, device=device)
        for group in groups[worker::workers]:
            rows, columns = group.size
            for shift in (row * width + column for row in range(rows) for column in range(columns)):
                lowest.scatter_reduce_(0, group.first + shift if shift else group.first, group.keys, "amin")
        return lowest

    first, *others = map_in_threads(scatter, range(workers), device)
    for other in others:
        torch.minimum(first, other, out=first)
    return first.view(height, width)
