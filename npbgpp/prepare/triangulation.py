"""Triangulates the points of a COLMAP model again from some of its photos, so that the points do not depend on the others.

Each observation is a ray from a camera centre c along the unit direction d. The point nearest to several rays solves
``sum(I - d d^T) x = sum(I - d d^T) c``, for all points at once. Observations with a large reprojection error are removed, the worst of each point first, and
the point is solved again. The poses are still those of the model, which come from all of its photos.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

from npbgpp.data import ColmapModel, Lens, ModelImage, View, has_alpha, image_size, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PointCloud

# two rays at this angle (radians) give 1 - cos(angle) as the smallest eigenvalue of the matrix above; smaller angles leave the depth uncertain
_MIN_ANGLE = np.radians(1.0)


@dataclass(frozen=True)
class _Observations:
    """n observations, at most one per point and photo.

    Attributes:
        point: index of the point, from 0.
        photo: index of the photo among those used.
        uv_px: position in the photo, pixels of the distorted image.
        centre: camera centre; all coordinates are relative to the mean of the centres.
        direction: unit length.
        focal: focal length, pixels.
    """

    point: Int64[Tensor, " n"]
    photo: Int64[Tensor, " n"]
    uv_px: Float64[Tensor, "n 2"]
    centre: Float64[Tensor, "n 3"]
    direction: Float64[Tensor, "n 3"]
    focal: Float64[Tensor, " n"]

    def __getitem__(self, selection: Bool[Tensor, " n"]) -> "_Observations":
        return _Observations(*(column[selection] for column in self._columns()))

    @staticmethod
    def cat(parts: "Sequence[_Observations]") -> "_Observations":
        return _Observations(*map(torch.cat, zip(*(part._columns() for part in parts), strict=True)))

    def _columns(self) -> tuple[Tensor, ...]:
        return self.point, self.photo, self.uv_px, self.centre, self.direction, self.focal


def triangulate_points(
    model: ColmapModel, used: Set[str], min_views: int = 2, max_error_px: float = 2.0, photos: Mapping[str, Path] | None = None
) -> PointCloud:
    """Triangulates the points of a model.

    Args:
        model: poses, lenses and observations.
        used: names of the photos to use, as in the model; other names are ignored.
        min_views: points with fewer inliers are dropped; at least 2.
        max_error_px: largest reprojection error of an inlier, in pixels at the centre of the undistorted photo.
        photos: files of the photos by their name in the model; each point takes the mean colour of its inliers. None gives no colours: those of the model
            come from all of its photos.

    Returns:
        The points in the order of their ids in the model.

    Raises:
        InputError: a number out of range, no used photo in the model, no point left, or a photo that cannot be read.
    """
    if min_views < 2:
        raise InputError(f"min_views: expected 2 or more, since a single photo gives no depth, got {min_views}")
    if not max_error_px > 0:
        raise InputError(f"max_error_px: expected a positive number of pixels, got {max_error_px}")
    images = [image for image in model.images if image.name in used]
    if not images:
        raise InputError(f"{model.folder}: expected some of its {len(model.images)} photos among those to use, got none; use other photos")
    count, observations, origin = _observe(images, model.lenses)
    xyz, inliers = _triangulate(observations, count, min_views, max_error_px)
    kept = inliers.point.unique()
    if not len(kept):
        raise InputError(
            f"{model.folder}: expected points with an error of at most {max_error_px:g} pixels in at least {min_views} of {len(images)} photos, got none; use "
            "more photos, or a larger max_error_px"
        )
    rgb = None if photos is None else _mean_colours(inliers, count, images, model.lenses, photos)
    return PointCloud((xyz[kept] + origin).float(), None if rgb is None else rgb[kept])


def _observe(images: list[ModelImage], lenses: dict[int, Lens]) -> tuple[int, _Observations, Float64[Tensor, " 3"]]:
    """(number of points, observations, origin of their coordinates)."""
    poses = torch.stack([image.world_to_cam for image in images])
    rotation = poses[:, :3, :3]
    centres = -(rotation.transpose(1, 2) @ poses[:, :3, 3:])[..., 0]
    origin = centres.mean(0)
    point_id, photo, uv_px, direction, focal = [], [], [], [], []
    for k, image in enumerate(images):
        lens = lenses[image.camera]
        first = np.unique(image.point, return_index=True)[1]  # of several observations of a point
        first = first[image.point[first] >= 0]
        xy = _undistort(lens, image.uv_px[first])
        valid = np.isfinite(xy).all(1)
        rays = torch.from_numpy(np.column_stack([xy[valid], np.ones(valid.sum())])) @ rotation[k]
        point_id.append(image.point[first][valid])
        photo.append(torch.full((len(rays),), k))
        uv_px.append(torch.from_numpy(image.uv_px[first][valid]))
        direction.append(torch.nn.functional.normalize(rays, dim=1))
        focal.append(torch.full((len(rays),), sum(lens.focal_length) / 2, dtype=torch.float64))
    ids, point = np.unique(np.concatenate(point_id), return_inverse=True)
    of_photo = torch.cat(photo)
    centre = (centres - origin)[of_photo]
    return (
        len(ids),
        _Observations(torch.from_numpy(point), of_photo, torch.cat(uv_px), centre, torch.cat(direction), torch.cat(focal)),
        origin,
    )


def _undistort(lens: Lens, uv_px: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
    """(x, y) of the rays (x, y, 1), axes right, down, forward, through positions in the photo; NaN where undistortion fails."""
    if not lens.distorts:
        return (uv_px - lens.principal_point) / lens.focal_length
    from pycolmap import Camera  # slow to import

    height, width = lens.image_size
    return Camera(model=lens.model, width=width, height=height, params=list(lens.params)).cam_from_img(uv_px)


def _triangulate(
    observations: _Observations, count: int, min_views: int, max_error_px: float
) -> tuple[Float64[Tensor, "p 3"], _Observations]:
    """(points, their inliers); points without inliers are undefined."""
    xyz = torch.zeros(count, 3, dtype=torch.float64)
    inliers: list[_Observations] = []
    while True:
        views = torch.zeros(count, dtype=torch.long).index_add_(0, observations.point, torch.ones_like(observations.point))
        observations = observations[views[observations.point] >= min_views]
        if not len(observations.point):
            break
        distinct, inverse = observations.point.unique(return_inverse=True)
        solved, certain = _nearest_points(observations, inverse, len(distinct))
        error = _reprojection_errors(observations, solved[inverse])
        worst = error.new_zeros(len(distinct)).scatter_reduce_(0, inverse, error, "amax")
        good = worst <= max_error_px
        xyz[distinct[good]] = solved[good]
        inliers.append(observations[(good & certain)[inverse]])
        # all observations with the largest error are removed, so that each round has fewer
        observations = observations[(~good & certain)[inverse] & (error < worst[inverse])]
    return xyz, _Observations.cat([*inliers, observations])


def _nearest_points(
    observations: _Observations, inverse: Int64[Tensor, " n"], count: int
) -> tuple[Float64[Tensor, "p 3"], Bool[Tensor, " p"]]:
    """(point nearest to the rays with the same index, whether the rays intersect at a sufficient angle)."""
    d = observations.direction
    projector = torch.eye(3, dtype=torch.float64) - d[:, :, None] * d[:, None, :]
    matrix = projector.new_zeros(count, 3, 3).index_add_(0, inverse, projector)
    right = projector.new_zeros(count, 3).index_add_(0, inverse, (projector @ observations.centre[:, :, None])[..., 0])
    certain = torch.linalg.eigvalsh(matrix)[:, 0] >= 1 - np.cos(_MIN_ANGLE)
    matrix[~certain] = torch.eye(3, dtype=torch.float64)  # solvable; the result is not used
    return torch.linalg.solve(matrix, right), certain


def _reprojection_errors(observations: _Observations, xyz: Float64[Tensor, "n 3"]) -> Float64[Tensor, " n"]:
    """Focal length times the tangent of the angle between ray and point; infinite behind the camera."""
    offset = xyz - observations.centre
    along = (offset * observations.direction).sum(1)
    across = (offset - along[:, None] * observations.direction).norm(dim=1)
    return torch.where(along > 0, observations.focal * across / along, torch.inf)


def _mean_colours(
    inliers: _Observations, count: int, images: list[ModelImage], lenses: dict[int, Lens], photos: Mapping[str, Path]
) -> UInt8[Tensor, "p 3"]:
    total, views = torch.zeros(count, 3), torch.zeros(count)
    for k in inliers.photo.unique().tolist():
        image, lens = images[k], lenses[images[k].camera]
        path, own = photos[image.name], inliers.photo == k
        camera = Cameras.from_opencv(
            image.world_to_cam[None].float(), torch.tensor([lens.focal_length]), torch.tensor([lens.principal_point]), lens.image_size
        )
        # with alpha the stored colours count: observed points are opaque
        view = View(image.name, path, camera, alpha_is_mask=has_alpha(path), resized=image_size(path) != lens.image_size)
        pixels = read_photo(view).image
        height, width = lens.image_size
        u, v = inliers.uv_px[own].long().unbind(1)
        point = inliers.point[own]
        total.index_add_(0, point, pixels[:, v.clamp(0, height - 1), u.clamp(0, width - 1)].T.float())
        views.index_add_(0, point, torch.ones(len(point)))
    return (total / views.clamp(min=1)[:, None] + 0.5).to(torch.uint8)
