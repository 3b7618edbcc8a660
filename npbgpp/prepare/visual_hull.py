"""Silhouettes: what masks say of balls in the scene.

Symbols: (u, v) pixels from the corner of the image; a pixel is set where the mask is bright. The clearance of a pixel is the largest of some radii, in
pixels, for which the square around it holds pixels of its own kind alone; what lies outside the image counts as set, because it carves nothing. It is stored
in 8 bits as radius + 1, negative at pixels that are not set: one look-up then answers for all that a ball covers.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int8, Int64, UInt8
from torch import Tensor
from torch.nn.functional import normalize, pad

from npbgpp.data import View, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PixelConvention, PixelGrid, PointCloud
from npbgpp.points import visible_points
from npbgpp.prepare.depth_fusion import pack, unpack

EMPTY, UNDECIDED, INSIDE = 0, 1, 2

_SET = 128  # the darkest value of a pixel that is set
_STEPS = (1, 1, 1, 2, 3, 4, 8, 12, 18, 30, 46)  # between one radius and the next, at most twice the radius plus 1
_CHUNK = 1 << 16  # points at a time: what is computed of them stays in the cache


@dataclass(frozen=True)
class Silhouette:
    """The mask of one view.

    Attributes:
        camera: one camera, of the size of the mask.
        clearance: see the module docstring.
        matrix: leads, with ``offset``, from a world point to (u * depth, v * depth, depth).
        offset: see ``matrix``.
    """

    camera: Cameras
    clearance: Int8[Tensor, "h w"]
    matrix: Float[Tensor, "3 3"]
    offset: Float[Tensor, "3"]

    @classmethod
    def read(cls, view: View) -> "Silhouette":
        """Reads a view that has a mask. Raises InputError when its files cannot be read."""
        mask = read_photo(view).mask
        assert mask is not None
        projection = PixelGrid(PixelConvention.EXACT, view.camera.image_size).projection(view.camera)
        return cls(view.camera, clearance(mask[0]), projection.matrix[0].float(), projection.offset[0].float())

    def towards_middle(self) -> Float[Tensor, "3"] | None:
        """Unit direction in the world, from the camera through the mean of the pixels that are set; None when none is."""
        pixels = (self.clearance > 0).nonzero()
        if not len(pixels):
            return None
        uv_px = pixels.double().mean(0).flip(0) + 0.5
        xy = (self.camera.principal_point[0] - uv_px) / self.camera.focal_length[0]
        return normalize(torch.cat([xy, xy.new_ones(1)]) @ torch.linalg.inv(self.camera.R[0].double()), dim=0)

    def pixel_at(self, point: Float[Tensor, "3"]) -> float:
        """Edge of a pixel at the depth of a point, scene units; 0 for points that are not in front of the camera."""
        depth = float(self.camera.view(point[None].to(self.camera.R))[0, 0, 2])
        return max(depth, 0.0) / float(self.camera.focal_length.min())

    def says(self, xyz: Float[Tensor, "n 3"], radius: float) -> "_Statement":
        """What the mask says of balls around some points; of the points themselves for radius 0."""
        height, width = self.clearance.shape
        xyd = torch.addmm(self.offset, xyz, self.matrix)
        depth = xyd[:, 2]
        u, v = xyd[:, 0] / depth, xyd[:, 1] / depth
        column, row = u.floor(), v.floor()
        centred = (depth > radius) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        place = torch.where(centred, row, 0.0).long() * width + torch.where(centred, column, 0.0).long()
        clear = self.clearance.view(-1)[place]
        if radius == 0:
            empty = centred & (clear < 0)
            return _Statement(empty, ~empty, centred, centred)
        # a point of the ball is at most radius * sqrt(1 + tan^2) aside from the ray through its centre, at depth - radius or farther
        share = torch.where(depth > radius, radius / (depth - radius), torch.inf)
        (fx, fy), (cx, cy) = self.camera.focal_length[0].tolist(), self.camera.principal_point[0].tolist()
        across, down = share * (u - cx).square().add(fx * fx).sqrt(), share * (v - cy).square().add(fy * fy).sqrt()
        left, right, top, bottom = (u - across).floor(), (u + across).floor(), (v - down).floor(), (v + down).floor()
        needed = torch.maximum(torch.maximum(column - left, right - column), torch.maximum(row - top, bottom - row))
        uniform = centred & (clear.abs() > needed)
        outside = (depth <= -radius) | (right < 0) | (left >= width) | (bottom < 0) | (top >= height)
        shown = centred & (left >= 0) & (right < width) & (top >= 0) & (bottom < height)
        return _Statement(uniform & (clear < 0), outside | (uniform & (clear > 0)), shown, ~outside)


@dataclass(frozen=True)
class _Statement:
    """What one silhouette says of n balls.

    Attributes:
        empty: no point of the ball is set.
        allowed: every point of the ball is set or outside the image.
        shown: every point is in the image.
        touched: some point may be in the image.
    """

    empty: Bool[Tensor, " n"]
    allowed: Bool[Tensor, " n"]
    shown: Bool[Tensor, " n"]
    touched: Bool[Tensor, " n"]


def clearance(mask: UInt8[Tensor, "h w"]) -> Int8[Tensor, "h w"]:
    """See the module docstring; set pixels are those of 128 and more."""
    is_set = mask >= _SET
    near_set, near_empty = is_set, ~is_set
    found = torch.where(is_set, 1, -1).to(torch.int8)
    for step, radius in zip(_STEPS, itertools.accumulate(_STEPS), strict=True):
        near_set, near_empty = _spread(near_set, step, True), _spread(near_empty, step, False)
        found[~near_set] = -(radius + 1)
        found[~near_empty] = radius + 1
    return found


def _spread(near: Bool[Tensor, "h w"], step: int, beyond: bool) -> Bool[Tensor, "h w"]:
    """Whether any of the nine pixels at a step to the sides is near; those outside the image are when ``beyond`` is."""
    tall = pad(near, (0, 0, step, step), value=beyond)
    tall = tall[: -2 * step] | near | tall[2 * step :]
    wide = pad(tall, (step, step, 0, 0), value=beyond)
    return wide[:, : -2 * step] | tall | wide[:, 2 * step :]


def judge(
    xyz: Float[Tensor, "n 3"], radius: float, silhouettes: Sequence[Silhouette], min_views: int, dissent: float = 0.0
) -> Int8[Tensor, " n"]:
    """Whether balls belong to the visual hull.

    Args:
        xyz: their middles.
        radius: scene units; 0 judges the middles, which are then never undecided.
        silhouettes: of all views.
        min_views: what fewer images show is empty.
        dissent: share of the images that show a point whose masks may be dark there although it is in the hull.

    Returns:
        EMPTY: no point of the ball is in the hull; INSIDE: all are; UNDECIDED: neither is sure.
    """
    parts = [_judge_few(chunk, radius, silhouettes, min_views, dissent) for chunk in xyz.split(_CHUNK)]
    return torch.cat(parts)


def _judge_few(
    xyz: Float[Tensor, "n 3"], radius: float, silhouettes: Sequence[Silhouette], min_views: int, dissent: float
) -> Int8[Tensor, " n"]:
    state = torch.full((len(xyz),), EMPTY, dtype=torch.int8)
    left = torch.arange(len(xyz))
    against, doubted, shown, touched = torch.zeros(4, len(xyz), dtype=torch.int32)
    most = int(dissent * len(silhouettes))
    for silhouette in silhouettes:
        said = silhouette.says(xyz, radius)
        against, doubted = against + said.empty, doubted + ~said.allowed
        shown, touched = shown + said.shown, touched + said.touched
        if (against > most).any():
            held = (against <= most).nonzero()[:, 0]
            xyz, left, against, doubted, shown, touched = (t[held] for t in (xyz, left, against, doubted, shown, touched))
    state[left] = UNDECIDED
    # every point of a ball is seen by as many images as touch it, at most, and by those that show all of it, at least
    state[left[(touched < min_views) | (against > (dissent * touched).int())]] = EMPTY
    state[left[(doubted <= (dissent * shown).int()) & (shown >= min_views)]] = INSIDE
    return state


# ----------------------------------------------------------------------
# The visual hull of masks as a cloud: the surface of all that every silhouette leaves (Laurentini, The Visual Hull Concept, 1994).


_COARSE = 64  # voxels along the longest side of the first grid
_FINEST = 1 / 8  # of a pixel: masks that leave nothing down to voxels of this edge are taken to leave nothing
_MIN_VIEWS = 2  # that see a point of the hull
# from the key of a voxel to those of its six neighbours
_ACROSS_FACES = pack(torch.cat([torch.eye(3), -torch.eye(3)]).long()) - pack(torch.zeros(1, 3).long())
_CORNERS = torch.tensor(list(itertools.product((0, 1), repeat=3)))


@dataclass(frozen=True)
class _Grid:
    """Voxels, each once; the one of cell (0, 0, 0) begins at ``corner``."""

    corner: Float[Tensor, "3"]
    side: float
    cell: Int64[Tensor, "n 3"]

    @classmethod
    def filled(cls, low: Float[Tensor, "3"], high: Float[Tensor, "3"], side: float) -> "_Grid":
        """All voxels of a box, which grows to whole voxels."""
        counts = ((high - low) / side).ceil().clamp(min=1).long()
        corner = (low + high - counts * side) / 2
        return cls(corner, side, torch.cartesian_prod(*(torch.arange(n) for n in counts.tolist())))

    def middles(self) -> Float[Tensor, "n 3"]:
        return (self.corner + (self.cell + 0.5) * self.side).float()

    def halved(self) -> "_Grid":
        """Eight voxels in place of each."""
        return _Grid(self.corner, self.side / 2, (self.cell[:, None] * 2 + _CORNERS).flatten(0, 1))

    def box(self) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
        """(lowest, highest) corner of the box around all voxels."""
        return self.corner + self.cell.amin(0) * self.side, self.corner + (self.cell.amax(0) + 1) * self.side


def visual_hull(views: Sequence[View], count: int = 100_000, dissent: float = 0.05) -> PointCloud:
    """Points on the visual hull of the masks of some views.

    The hull is what lies in every mask whose photo shows it, and is shown by at least two photos; what is outside a photo is not carved by it. Its points are
    the middles of the voxels at its surface, coloured by the mean of the photos that see them.

    Args:
        views: with masks, at least two; object bright or opaque.
        count: about how many points to make.
        dissent: share of the photos showing a point that may have it outside their masks: real masks have holes, and one that misses half of the object
            would carve half of it.

    Raises:
        InputError: fewer than two views, a view without mask, an unreadable photo or mask, a count below 1, or masks that leave nothing.
    """
    if count < 1:
        raise InputError(f"count: expected a positive number of points, got {count}")
    if not 0 <= dissent < 0.5:
        raise InputError(f"dissent: expected a share of the photos from 0 to less than 0.5, got {dissent}")
    if len(views) < _MIN_VIEWS:
        raise InputError(
            f"visual hull: expected at least {_MIN_VIEWS} views, got {len(views)}; use more views, or make the cloud in another way"
        )
    bare = [view.name for view in views if view.mask is None and not view.alpha_is_mask]
    if bare:
        raise InputError(
            f"visual hull: expected views with masks, got {len(bare)} of {len(views)} without, {bare[0]} among them; add masks, or make the cloud in "
            "another way"
        )
    silhouettes = [Silhouette.read(view) for view in views]
    # views from all sides one after the other: what is outside the object is carved after fewer of them
    order = torch.randperm(len(views), generator=torch.Generator().manual_seed(0)).tolist()
    silhouettes = [silhouettes[k] for k in order]
    start, pixel = _start(silhouettes)
    surface = _surface_with(start, _Judges(tuple(silhouettes), dissent), count, _FINEST * pixel)
    xyz = surface.middles()
    return PointCloud(xyz, _colours(surface, xyz, views))


def _start(silhouettes: Sequence[Silhouette]) -> tuple[_Grid, float]:
    """(the first grid, edge of a pixel in its middle in scene units).

    It fills the cube that the cameras see in common; beyond it few photos are left to carve. Its middle is the point nearest to the rays through the middles
    of the silhouettes, which meet also where the axes of the cameras are parallel; its edge is the median long side of what the photos show there.
    """
    rays = [(s.camera.centers()[0].double(), s.towards_middle()) for s in silhouettes]
    pairs = [(centre, direction) for centre, direction in rays if direction is not None]
    if len(pairs) < _MIN_VIEWS:
        raise _nothing_left(f"{len(rays) - len(pairs)} of {len(rays)} masks are black everywhere")
    across = torch.stack([torch.eye(3, dtype=torch.float64) - torch.outer(d, d) for _, d in pairs])
    centres = torch.stack([centre for centre, _ in pairs])
    solved = torch.linalg.lstsq(across.flatten(0, 1), (across @ centres[..., None]).flatten(0, 1), driver="gelsd")
    middle = solved.solution[:, 0]
    pixels = torch.tensor([s.pixel_at(middle) for s in silhouettes])
    facing = pixels > 0
    if facing.sum() < _MIN_VIEWS:
        raise _nothing_left("the cameras do not look at one place")
    long_sides = pixels * torch.tensor([float(max(s.camera.image_size)) for s in silhouettes])
    edge = float(long_sides[facing].median())
    return _Grid.filled(middle - edge / 2, middle + edge / 2, edge / _COARSE), float(pixels[facing].median())


@dataclass(frozen=True)
class _Judges:
    """The masks, and how many of them may err."""

    silhouettes: tuple[Silhouette, ...]
    dissent: float

    def __call__(self, xyz: Float[Tensor, "n 3"], radius: float) -> Int8[Tensor, " n"]:
        return judge(xyz, radius, self.silhouettes, _MIN_VIEWS, self.dissent)


def _surface_with(grid: _Grid, judges: _Judges, count: int, finest: float) -> _Grid:
    """About ``count`` voxels at the surface of the hull. The search for their edge ends at ``finest``; the edge that follows may be smaller."""
    surface, coarser = _surface(grid, judges), 0
    while len(surface.cell) * 5 < count and grid.side > finest:
        grid = _undecided(grid, judges).halved()
        if not len(grid.cell):
            break
        coarser = len(surface.cell)
        surface = _surface(grid, judges)
    found = len(surface.cell)
    if not found:
        raise _nothing_left("no point of the scene is in all of them")
    # the number grows as the inverse square of the edge, and faster where voxels meet details; a second grid ends at the edge that gives what is wanted
    growth = min(max(math.log2(found / coarser), 2.0), 3.0) if coarser else 2.0
    side = surface.side * (found / count) ** (1 / growth)
    low, high = grid.box()
    halvings = max(0, math.ceil(math.log2(float((high - low).max()) / (side * _COARSE))))
    grid = _Grid.filled(low, high, side * 2**halvings)
    for _ in range(halvings):
        grid = _undecided(grid, judges).halved()
    return _surface(grid, judges)


def _undecided(grid: _Grid, judges: _Judges) -> _Grid:
    """The voxels that may lie at the surface."""
    radius = math.sqrt(3) / 2 * grid.side
    return replace(grid, cell=grid.cell[judges(grid.middles(), radius) == UNDECIDED])


def _surface(grid: _Grid, judges: _Judges) -> _Grid:
    """The voxels whose middles are in the hull while that of a neighbour across a face, in the grid or not, is not."""
    solid = grid.cell[judges(grid.middles(), 0.0) == INSIDE]
    own = pack(solid)
    around = (own[:, None] + _ACROSS_FACES).flatten()
    beyond = ~torch.isin(around, own)
    key, place = around[beyond].unique(return_inverse=True)
    is_empty = judges(replace(grid, cell=unpack(key)).middles(), 0.0) == EMPTY
    bare = torch.zeros(len(around), dtype=torch.bool)
    bare[beyond] = is_empty[place]
    return replace(grid, cell=solid[bare.view(-1, len(_ACROSS_FACES)).any(1)])


def _colours(surface: _Grid, xyz: Float[Tensor, "n 3"], views: Sequence[View]) -> UInt8[Tensor, "n 3"]:
    """The mean of the photos that see each point; where none does, that of the points in the smallest voxel around it that holds a seen one."""
    total = torch.zeros(len(xyz), 4)  # colour, number of views
    for view in views:
        camera = view.camera
        depth = camera.view(xyz)[0, :, 2]
        if not (depth > 0).any():
            continue
        # cells two voxels wide are closed by the surface, so that what is behind does not show through
        voxel_px = float(camera.focal_length.max()) * surface.side / float(depth[depth > 0].median())
        scale = max(min(1.0, 0.5 / voxel_px), 1 / min(camera.image_size))
        seen = visible_points(xyz, camera, scale, 0.0, PixelConvention.EXACT)[0].nonzero()[:, 0]
        uv_px = PixelGrid(PixelConvention.EXACT, camera.image_size).normalise(camera, xyz[seen])[0, :, :2]
        u, v = uv_px.long().unbind(1)
        total[seen] += torch.cat([read_photo(view).image[:, v, u].T.float(), torch.ones(len(seen), 1)], 1)
    cell, wide = surface.cell, total
    while bool((total[:, 3] == 0).any()) and bool((cell != 0).any()):
        cell = cell >> 1
        key, place = pack(cell).unique(return_inverse=True)
        wide = torch.zeros(len(key), 4).index_add_(0, place, total)[place]
        total = torch.where(total[:, 3:] == 0, wide, total)
    return (total[:, :3] / total[:, 3:].clamp(min=1) + 0.5).to(torch.uint8)


def _nothing_left(why: str) -> InputError:
    return InputError(
        f"visual hull: expected masks that leave something in common, but {why}; look at the masks (bright on the object) and the cameras"
    )
