"""The visual hull of masks as a point cloud (Laurentini, The Visual Hull Concept for Silhouette-Based Image Understanding, 1994).

A voxel grid is refined from coarse to fine. Voxels are classified by their bounding spheres: those outside of the hull, and those inside of it, are not refined.
Outside of its image a view carves nothing.

Symbols: (u, v), pixels from the top-left corner. The clearance of a pixel is the chessboard distance to the nearest pixel of the other kind (inside or
outside the silhouette), at most 127, and negative outside the silhouette; pixels beyond the image count as inside.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8, Int64, UInt8
from scipy.ndimage import distance_transform_cdt
from torch import Tensor
from torch.nn.functional import normalize

from npbgpp.core.cpu_share import adapt_threads
from npbgpp.data import View, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PointCloud, ProjectionSettings
from npbgpp.points import visible_points
from npbgpp.prepare.depth_fusion import pack_cells, unpack_cells

OUTSIDE, BOUNDARY, INSIDE = 0, 1, 2

_MASK_THRESHOLD = 128
_MAX_CLEARANCE = 127
_CHUNK = 1 << 16  # points at a time: their intermediate results stay in the cache
_COARSE = 64  # voxels along the sides of the first grid
_FINEST = 1 / 8  # of a pixel: the hull is empty if no voxel of this edge is inside
_MIN_VIEWS = 2  # that show a point of the hull
_NEIGHBOUR_KEYS = pack_cells(torch.cat([torch.eye(3), -torch.eye(3)]).long()) - pack_cells(torch.zeros(1, 3).long())
_CORNERS = torch.tensor(list(itertools.product((0, 1), repeat=3)))

Classifier = Callable[[Float[Tensor, "n 3"], float], Int8[Tensor, " n"]]


def visual_hull(views: Sequence[View], count: int = 100_000, dissent: float = 0.05) -> PointCloud:
    """Points on the visual hull of the masks of some views.

    The hull is the set of points shown by at least two photos that lie inside the mask of every photo that shows them. The points are the centres of the
    voxels at its surface, in the mean colour of the photos that see them.

    Args:
        views: at least two, with masks; bright or opaque on the object.
        count: approximate number of points.
        dissent: fraction of the photos of a point that may have it outside their masks: real masks have holes, and a mask that misses half of the object
            would carve half of it.

    Raises:
        InputError: fewer than two views, a view without a mask, an unreadable photo or mask, a number out of range, an empty hull, or masks that are all
            bright everywhere.
    """
    if count < 1:
        raise InputError(f"count: expected a positive number of points, got {count}")
    if not 0 <= dissent < 0.5:
        raise InputError(f"dissent: expected a fraction of the photos from 0 to less than 0.5, got {dissent}")
    if len(views) < _MIN_VIEWS:
        raise InputError(f"visual hull: expected at least {_MIN_VIEWS} views, got {len(views)}; use more views or another method")
    unmasked = [view.name for view in views if view.mask is None and not view.alpha_is_mask]
    if unmasked:
        raise InputError(
            f"visual hull: expected a mask for each of {len(views)} views, got none for {len(unmasked)} ({unmasked[0]}); add masks or use another method"
        )
    silhouettes = [Silhouette.read(view) for view in views]
    if all((silhouette.clearance > 0).all() for silhouette in silhouettes):
        raise InputError(
            f"visual hull: expected masks of an object, got {len(views)} masks that are bright everywhere, which carve nothing; make masks, or use another method "
            "(method=sparse or method=depth)"
        )
    # in random order, consecutive views differ: points outside the object are rejected after fewer of them
    order = torch.randperm(len(views), generator=torch.Generator().manual_seed(0)).tolist()
    classify = partial(classify_balls, silhouettes=[silhouettes[k] for k in order], min_views=_MIN_VIEWS, dissent=dissent)
    grid, pixel = _initial_grid(silhouettes)
    surface = _surface_of_size(grid, classify, count, _FINEST * pixel)
    xyz = surface.centres()
    return PointCloud(xyz, _mean_colours(surface, xyz, views))


def masks_carve(views: Sequence[View]) -> bool:
    """Whether all views have masks and some mask is not bright everywhere; reads masks up to the first of these."""
    if not all(view.mask is not None or view.alpha_is_mask for view in views):
        return False
    masks = (read_photo(view).mask for view in views)
    return any(mask is not None and bool((mask < _MASK_THRESHOLD).any()) for mask in masks)


# ------------------------------------------------------------------ silhouettes
@dataclass(frozen=True)
class Silhouette:
    """The mask of one view.

    Attributes:
        camera: one camera, of the size of the mask.
        clearance: see the module docstring.
        matrix: with ``offset``, maps a world point to (u * depth, v * depth, depth).
        offset: see ``matrix``.
    """

    camera: Cameras
    clearance: Int8[Tensor, "h w"]
    matrix: Float[Tensor, "3 3"]
    offset: Float[Tensor, "3"]

    @classmethod
    def read(cls, view: View) -> "Silhouette":
        """Reads the mask of a view that has one. Raises InputError if its files cannot be read."""
        mask = read_photo(view).mask
        assert mask is not None
        projection = ProjectionSettings().grid(view.camera.image_size).projection(view.camera)
        return cls(view.camera, mask_clearance(mask[0]), projection.matrix[0].float(), projection.offset[0].float())

    def direction(self) -> Float[Tensor, "3"] | None:
        """Unit vector in the world, from the camera through the centroid of the silhouette; None if the mask is empty."""
        pixels = (self.clearance > 0).nonzero()
        if not len(pixels):
            return None
        uv_px = pixels.double().mean(0).flip(0) + 0.5
        xy = (self.camera.principal_point[0] - uv_px) / self.camera.focal_length[0]
        return normalize(torch.cat([xy, xy.new_ones(1)]) @ torch.linalg.inv(self.camera.R[0].double()), dim=0)

    def pixel_size_at(self, point: Float[Tensor, "3"]) -> float:
        """Edge of a pixel at the depth of a point, scene units; 0 for points behind the camera."""
        depth = float(self.camera.view(point[None].to(self.camera.R))[0, 0, 2])
        return max(depth, 0.0) / float(self.camera.focal_length.min())

    def test(self, xyz: Float[Tensor, "n 3"], radius: float) -> "BallTest":
        """Compares the projections of balls, or of points for radius 0, with the mask."""
        height, width = self.clearance.shape
        xyd = torch.addmm(self.offset, xyz, self.matrix)
        depth = xyd[:, 2]
        u, v = xyd[:, 0] / depth, xyd[:, 1] / depth
        column, row = u.floor(), v.floor()
        centre_shown = (depth > radius) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        index = torch.where(centre_shown, row, 0.0).long() * width + torch.where(centre_shown, column, 0.0).long()
        clear = self.clearance.view(-1)[index]
        if radius == 0:
            carved = centre_shown & (clear < 0)
            return BallTest(carved, ~carved, centre_shown, centre_shown)
        # a point of the ball is at most radius * sqrt(1 + tan^2) from the ray through its centre, at a depth of at least depth - radius
        share = torch.where(depth > radius, radius / (depth - radius), torch.inf)
        (fx, fy), (cx, cy) = self.camera.focal_length[0].tolist(), self.camera.principal_point[0].tolist()
        du, dv = share * (u - cx).square().add(fx * fx).sqrt(), share * (v - cy).square().add(fy * fy).sqrt()
        left, right, top, bottom = (u - du).floor(), (u + du).floor(), (v - dv).floor(), (v + dv).floor()
        reach = torch.maximum(torch.maximum(column - left, right - column), torch.maximum(row - top, bottom - row))
        uniform = centre_shown & (clear.abs() > reach)
        outside = (depth <= -radius) | (right < 0) | (left >= width) | (bottom < 0) | (top >= height)
        shown = centre_shown & (left >= 0) & (right < width) & (top >= 0) & (bottom < height)
        return BallTest(uniform & (clear < 0), outside | (uniform & (clear > 0)), shown, ~outside)


@dataclass(frozen=True)
class BallTest:
    """n balls in one view. A ball for which neither ``carved`` nor ``kept`` is certain has neither.

    Attributes:
        carved: all points of the ball are outside the silhouette.
        kept: all points of the ball are inside the silhouette or outside the image.
        shown: all points of the ball are inside the image.
        touched: some points of the ball may be inside the image.
    """

    carved: Bool[Tensor, " n"]
    kept: Bool[Tensor, " n"]
    shown: Bool[Tensor, " n"]
    touched: Bool[Tensor, " n"]


def mask_clearance(mask: UInt8[Tensor, "h w"]) -> Int8[Tensor, "h w"]:
    """Clearance of each pixel, see the module docstring; the silhouette is where the mask is 128 or more."""
    inside = np.pad(mask.numpy() >= _MASK_THRESHOLD, 1, constant_values=True)
    if inside.all():  # the transform needs a pixel of the other kind
        return torch.full_like(mask, _MAX_CLEARANCE, dtype=torch.int8)
    signed = distance_transform_cdt(inside, "chessboard") - distance_transform_cdt(~inside, "chessboard")
    return torch.from_numpy(signed[1:-1, 1:-1].clip(-_MAX_CLEARANCE, _MAX_CLEARANCE).astype(np.int8))


def classify_balls(
    xyz: Float[Tensor, "n 3"], radius: float, silhouettes: Sequence[Silhouette], min_views: int, dissent: float = 0.0
) -> Int8[Tensor, " n"]:
    """Classifies balls as OUTSIDE the visual hull (no point of the ball is in it), INSIDE (all points are) or BOUNDARY (uncertain).

    Args:
        xyz: centres.
        radius: scene units; 0 classifies the centres, which are never BOUNDARY.
        silhouettes: of all views.
        min_views: points shown by fewer views are outside.
        dissent: fraction of the views of a point that may have it outside their silhouettes.
    """
    return torch.cat([_classify_chunk(chunk, radius, silhouettes, min_views, dissent) for chunk in xyz.split(_CHUNK)])


def _classify_chunk(
    xyz: Float[Tensor, "n 3"], radius: float, silhouettes: Sequence[Silhouette], min_views: int, dissent: float
) -> Int8[Tensor, " n"]:
    state = torch.full((len(xyz),), OUTSIDE, dtype=torch.int8)
    index = torch.arange(len(xyz))
    carved, not_kept, shown, touched = torch.zeros(4, len(xyz), dtype=torch.int32)
    limit = int(dissent * len(silhouettes))
    adapt_threads()
    for silhouette in silhouettes:
        test = silhouette.test(xyz, radius)
        carved, not_kept = carved + test.carved, not_kept + ~test.kept
        shown, touched = shown + test.shown, touched + test.touched
        if (carved > limit).any():
            left = (carved <= limit).nonzero()[:, 0]
            xyz, index, carved, not_kept, shown, touched = (t[left] for t in (xyz, index, carved, not_kept, shown, touched))
    state[index] = BOUNDARY
    # each point of a ball is in at most ``touched`` and at least ``shown`` images
    state[index[(touched < min_views) | (carved > (dissent * touched).int())]] = OUTSIDE
    state[index[(not_kept <= (dissent * shown).int()) & (shown >= min_views)]] = INSIDE
    return state


# ------------------------------------------------------------------ voxels
@dataclass(frozen=True)
class _VoxelGrid:
    """Distinct voxels; cell (0, 0, 0) begins at ``corner``."""

    corner: Float[Tensor, "3"]
    side: float
    cell: Int64[Tensor, "n 3"]

    @classmethod
    def fill(cls, low: Float[Tensor, "3"], high: Float[Tensor, "3"], side: float) -> "_VoxelGrid":
        """All voxels of a box, which is enlarged to whole voxels."""
        counts = ((high - low) / side).ceil().clamp(min=1).long()
        corner = (low + high - counts * side) / 2
        return cls(corner, side, torch.cartesian_prod(*(torch.arange(n) for n in counts.tolist())))

    def centres(self) -> Float[Tensor, "n 3"]:
        return (self.corner + (self.cell + 0.5) * self.side).float()

    def subdivide(self) -> "_VoxelGrid":
        """Eight voxels in place of each."""
        return _VoxelGrid(self.corner, self.side / 2, (self.cell[:, None] * 2 + _CORNERS).flatten(0, 1))

    def bounds(self) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
        return self.corner + self.cell.amin(0) * self.side, self.corner + (self.cell.amax(0) + 1) * self.side

    def boundary(self, classify: Classifier) -> "_VoxelGrid":
        """The voxels that may contain a part of the surface."""
        return replace(self, cell=self.cell[classify(self.centres(), math.sqrt(3) / 2 * self.side) == BOUNDARY])

    def surface(self, classify: Classifier) -> "_VoxelGrid":
        """Voxels with the centre inside the hull, and the centre of a neighbour across a face, in the grid or not, outside."""
        solid = self.cell[classify(self.centres(), 0.0) == INSIDE]
        key = pack_cells(solid)
        neighbours = (key[:, None] + _NEIGHBOUR_KEYS).flatten()
        unknown = ~torch.isin(neighbours, key)
        distinct, inverse = neighbours[unknown].unique(return_inverse=True)
        outside = classify(replace(self, cell=unpack_cells(distinct)).centres(), 0.0) == OUTSIDE
        exposed = torch.zeros(len(neighbours), dtype=torch.bool)
        exposed[unknown] = outside[inverse]
        return replace(self, cell=solid[exposed.view(-1, len(_NEIGHBOUR_KEYS)).any(1)])


def _initial_grid(silhouettes: Sequence[Silhouette]) -> tuple[_VoxelGrid, float]:
    """(first grid, edge of a pixel at its centre in scene units).

    The grid fills the cube that most cameras see. Its centre is the point nearest to the rays through the centroids of the silhouettes, which intersect even
    if the optical axes are parallel; its edge is the median long side of the images at this point.
    """
    rays = [(s.camera.centers()[0].double(), s.direction()) for s in silhouettes]
    known = [(centre, direction) for centre, direction in rays if direction is not None]
    if len(known) < _MIN_VIEWS:
        raise _empty_hull(f"{len(rays) - len(known)} of {len(rays)} masks are empty")
    projectors = torch.stack([torch.eye(3, dtype=torch.float64) - torch.outer(d, d) for _, d in known])
    centres = torch.stack([centre for centre, _ in known])
    solved = torch.linalg.lstsq(projectors.flatten(0, 1), (projectors @ centres[..., None]).flatten(0, 1), driver="gelsd")
    centre = solved.solution[:, 0]
    pixels = torch.tensor([s.pixel_size_at(centre) for s in silhouettes])
    facing = pixels > 0
    if facing.sum() < _MIN_VIEWS:
        raise _empty_hull("the cameras do not look at a common point")
    long_sides = pixels * torch.tensor([float(max(s.camera.image_size)) for s in silhouettes])
    edge = float(long_sides[facing].median())
    return _VoxelGrid.fill(centre - edge / 2, centre + edge / 2, edge / _COARSE), float(pixels[facing].median())


def _surface_of_size(grid: _VoxelGrid, classify: Classifier, count: int, finest: float) -> _VoxelGrid:
    """About ``count`` voxels at the surface of the hull. Refinement stops at the edge ``finest``; the final edge may be smaller."""
    surface, previous = grid.surface(classify), 0
    while len(surface.cell) * 5 < count and grid.side > finest:
        grid = grid.boundary(classify).subdivide()
        if not len(grid.cell):
            break
        previous = len(surface.cell)
        surface = grid.surface(classify)
    found = len(surface.cell)
    if not found:
        raise _empty_hull("no point is inside all of them")
    # the number grows with the inverse square of the edge, faster where voxels resolve new details; a second grid ends at the extrapolated edge
    growth = min(max(math.log2(found / previous), 2.0), 3.0) if previous else 2.0
    side = surface.side * (found / count) ** (1 / growth)
    low, high = grid.bounds()
    levels = max(0, math.ceil(math.log2(float((high - low).max()) / (side * _COARSE))))
    grid = _VoxelGrid.fill(low, high, side * 2**levels)
    for _ in range(levels):
        grid = grid.boundary(classify).subdivide()
    return grid.surface(classify)


def _mean_colours(surface: _VoxelGrid, xyz: Float[Tensor, "n 3"], views: Sequence[View]) -> UInt8[Tensor, "n 3"]:
    """Mean colour of the photos that see each point; points that no photo sees take the colour of the smallest enclosing voxel with a seen point."""
    total = torch.zeros(len(xyz), 4)  # colour, number of views
    for view in views:
        camera = view.camera
        depth = camera.view(xyz)[0, :, 2]
        if not (depth > 0).any():
            continue
        # cells of two voxels leave no holes in the surface through which points behind it would be seen
        voxel_px = float(camera.focal_length.max()) * surface.side / float(depth[depth > 0].median())
        scale = max(min(1.0, 0.5 / voxel_px), 1 / min(camera.image_size))
        visible = visible_points(xyz, camera, scale, ProjectionSettings())[0].nonzero()[:, 0]
        uv_px = ProjectionSettings().grid(camera.image_size).normalise(camera, xyz[visible])[0, :, :2]
        u, v = uv_px.long().unbind(1)
        total[visible] += torch.cat([read_photo(view).image[:, v, u].T.float(), torch.ones(len(visible), 1)], 1)
    cell = surface.cell
    while bool((total[:, 3] == 0).any()) and bool((cell != 0).any()):
        cell = cell >> 1
        key, inverse = pack_cells(cell).unique(return_inverse=True)
        coarse = torch.zeros(len(key), 4).index_add_(0, inverse, total)[inverse]
        total = torch.where(total[:, 3:] == 0, coarse, total)
    return (total[:, :3] / total[:, 3:].clamp(min=1) + 0.5).to(torch.uint8)


def _empty_hull(reason: str) -> InputError:
    return InputError(
        f"visual hull: expected masks with a common object, but {reason}; check the masks (bright on the object) and the cameras"
    )
