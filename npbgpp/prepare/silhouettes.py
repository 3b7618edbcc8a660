"""Silhouettes: what masks say of balls in the scene.

Symbols: (u, v) pixels from the corner of the image; a pixel is set where the mask is bright. The clearance of a pixel is the largest of some radii, in
pixels, for which the square around it holds pixels of its own kind alone; what lies outside the image counts as set, because it carves nothing. It is stored
in 8 bits as radius + 1, negative at pixels that are not set: one look-up then answers for all that a ball covers.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int8, UInt8
from torch import Tensor
from torch.nn.functional import normalize, pad

from npbgpp.data.images import read_photo
from npbgpp.data.scene import View
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixel_rules import PixelGrid, PixelRule

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
        projection = PixelGrid(PixelRule.EXACT, view.camera.image_size).projection(view.camera)
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
