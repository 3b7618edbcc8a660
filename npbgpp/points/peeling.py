"""Depth peeling: what a camera sees of a cloud, then what it sees behind that, and so on, for one camera.

Every point covers a square of pixels whose size falls with its depth. Layer 0 holds the nearest point of every pixel; all points that won a pixel in it are
taken away, and layer 1 holds the nearest ones of the rest. Peeling by points in place of pixels keeps a point from appearing twice, beside and behind itself
(NPCR, neural point cloud rendering by depth peeling; depth peeling itself is Everitt, "Interactive order-independent transparency", 2001).

Keys are those of ``npbgpp.kernels.rasterization``: depth bits above, index below, so that one minimum per layer finds depth and winner, exact ties going to the
lowest index. Points are projected once. What is kept of them is their key and the first pixel of their square, in pieces whose squares have one size; a
layer costs one scattered minimum per covered pixel of the points that are left.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from npbgpp.geometry import Cameras, PixelConvention, PixelGrid
from npbgpp.kernels import EMPTY_KEY, ChunkedCloud, Fragments, ProjectionNumbers, in_threads, thread_count, visible_blocks

MOST_LAYERS = 8
_INDEX_BITS = 0xFFFFFFFF
_CPU_POINTS = 1 << 17  # projected at a time: temporaries stay in the cache
_ACCELERATOR_POINTS = 1 << 22


@dataclass(frozen=True)
class Footprint:
    """How large points are drawn: squares from ``floor(u - r)`` to ``floor(u + r)``, in both directions.

    The radius r, in pixels, is ``max_splat`` at depth ``near`` or less and falls linearly to 0 at ``far``, from where on a point covers its own pixel.
    """

    near: float
    far: float
    max_splat: float

    def radius(self, depth: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Radii in pixels."""
        return (1 - (depth - self.near) / (self.far - self.near)).clamp_(0, 1).mul_(self.max_splat)


@dataclass(frozen=True)
class Layer:
    """What one layer shows.

    Attributes:
        index: row of the point in the cloud that each pixel shows, -1 where it shows none.
        depth: its depth in scene units, inf where there is none.
        beyond: pixels behind a gap: what is left there lies too far behind the layer before, and neither this layer nor a later one shows it.
    """

    index: Int[Tensor, "h w"]
    depth: Float[Tensor, "h w"]
    beyond: Bool[Tensor, "h w"]


def peel(cloud: ChunkedCloud, camera: Cameras, layers: int, footprint: Footprint, gap: float = math.inf) -> list[Layer]:
    """The nearest layers of a cloud as one camera sees them, front to back. Pixels lie as ``PixelConvention.EXACT`` has them.

    Args:
        cloud: the points, on the device that shall do the work; those at depth <= 0 are not seen.
        camera: one camera.
        layers: how many, at least 1; those behind the last point are empty.
        footprint: size of the points.
        gap: difference in depth to the layer before from which on a pixel shows nothing more, scene units.

    Raises:
        ValueError: not exactly one camera, no layer, ``near >= far`` or a negative size.
    """
    if len(camera) != 1 or layers < 1:
        raise ValueError(f"peel: expected one camera and at least one layer, got {len(camera)} and {layers}")
    if not footprint.near < footprint.far or footprint.max_splat < 0:
        raise ValueError(f"peel: expected near < far and max_splat >= 0, got {footprint}")
    device, size = cloud.xyz_world.device, camera.image_size
    pieces = _pieces(cloud, camera.to(device), footprint)
    found: list[Layer] = []
    for k in range(layers):
        keys = _nearest(pieces, size, device)
        seen = Fragments(keys)
        index, depth = seen.index, seen.depth
        beyond = torch.zeros(size, dtype=torch.bool, device=device)
        if found:
            behind = (index >= 0) & (depth - found[-1].depth > gap)
            beyond = found[-1].beyond | behind
            index, depth = index.masked_fill(beyond, -1), depth.masked_fill(beyond, math.inf)
        found.append(Layer(index, depth, beyond))
        if k + 1 < layers:
            gone = torch.zeros(cloud.rows + 1, dtype=torch.bool, device=device)
            gone[torch.where(seen.index < 0, cloud.rows, seen.index).view(-1)] = True  # empty pixels mark the spare entry
            pieces = [piece for piece in in_threads(lambda piece: piece.without(gone), pieces, device) if len(piece.keys)]  # noqa: B023
    return found


@dataclass(frozen=True)
class _Piece:
    """m points whose squares, cut at the border of the image, have one size (rows, columns); ``first`` is the top left cell of each."""

    keys: Int[Tensor, " m"]
    first: Int[Tensor, " m"]
    size: tuple[int, int]

    def without(self, gone: Bool[Tensor, " n1"]) -> "_Piece":
        """The points whose row is not marked."""
        kept = (~gone.index_select(0, self.keys & _INDEX_BITS)).nonzero()[:, 0]
        return _Piece(self.keys.index_select(0, kept), self.first.index_select(0, kept), self.size)


def _pieces(cloud: ChunkedCloud, camera: Cameras, footprint: Footprint) -> list[_Piece]:
    """The points that cover a pixel."""
    device = cloud.xyz_world.device
    grid = PixelGrid(PixelConvention.EXACT, camera.image_size)
    numbers = ProjectionNumbers.of(grid.projection(camera))
    blocks = torch.cat(visible_blocks(cloud, numbers, grid, 0.0, footprint.max_splat))
    if len(blocks) == 0:
        return []
    at_once = max(1, (_CPU_POINTS if device.type == "cpu" else _ACCELERATOR_POINTS) // cloud.index.shape[1])

    def project(part: Int[Tensor, " k"]) -> list[_Piece]:
        world = cloud.xyz_world.index_select(1, part).flatten(1)
        xyd = torch.empty_like(world)
        numbers.apply(world.unbind(), xyd.unbind())
        xy, depth = xyd[:2], xyd[2]
        keys = depth.view(torch.int32).to(torch.int64).bitwise_left_shift_(32).bitwise_or_(cloud.index.index_select(0, part).view(-1))
        return _by_size(xy / depth, depth, keys, footprint, camera.image_size)

    return [piece for pieces in in_threads(project, blocks.split(at_once), device) for piece in pieces]


def _by_size(
    uv_px: Float[Tensor, "2 m"], depth: Float[Tensor, " m"], keys: Int[Tensor, " m"], footprint: Footprint, image_size: tuple[int, int]
) -> list[_Piece]:
    """Groups points by how many rows and columns of the image they cover; drops those that cover none."""
    radius = footprint.radius(depth)
    reaching = depth > 0
    starts, counts = [], []
    for axis, length in ((1, image_size[0]), (0, image_size[1])):
        # a square that leaves the image is cut, wherever it leaves it
        first, last = (uv_px[axis] - radius).floor_(), (uv_px[axis] + radius).floor_()
        reaching &= (last >= 0) & (first <= length - 1)
        first, last = (ends.clamp_(0, length - 1).nan_to_num_() for ends in (first, last))
        starts.append(first.to(torch.int32))
        counts.append((last - first).to(torch.int32).add_(1))
    (rows, columns), span = counts, 2 * math.ceil(footprint.max_splat) + 2  # more than a square can count
    kind = torch.where(reaching, rows * span + columns, 0)
    first_cell = starts[0].to(torch.int64).mul_(image_size[1]).add_(starts[1])
    pieces = []
    for number in torch.bincount(kind).nonzero()[:, 0].tolist():
        if number:
            members = (kind == number).nonzero()[:, 0]
            pieces.append(_Piece(keys.index_select(0, members), first_cell.index_select(0, members), divmod(number, span)))
    return pieces


def _nearest(pieces: list[_Piece], image_size: tuple[int, int], device: torch.device) -> Int[Tensor, "h w"]:
    """The smallest key of every pixel."""
    height, width = image_size
    lanes = max(1, min(thread_count(device), len(pieces)))

    def draw(lane: int) -> Int[Tensor, " hw"]:
        lowest = torch.full((height * width,), EMPTY_KEY, dtype=torch.int64, device=device)
        for piece in pieces[lane::lanes]:
            rows, columns = piece.size
            for shift in (row * width + column for row in range(rows) for column in range(columns)):
                lowest.scatter_reduce_(0, piece.first + shift if shift else piece.first, piece.keys, "amin")
        return lowest

    first, *others = in_threads(draw, range(lanes), device)
    for other in others:
        torch.minimum(first, other, out=first)
    return first.view(height, width)
