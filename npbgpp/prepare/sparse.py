"""A cloud from the observations of a COLMAP model, triangulated anew from some of its photos alone, so that the others leave no trace in it.

Each observation is a ray from a camera's centre c along the unit direction d. The point nearest to some rays solves ``sum(I - d d^T) x = sum(I - d d^T) c``
(linear, all points at once). Where a ray misses its point by too many pixels, the worst one leaves and the point is solved again. The poses themselves stay
those of the model, which all of its photos made.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

from npbgpp.data import ColmapModel, Lens, ModelImage, View, image_size, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PointCloud

# two rays that meet at this angle (radians) leave 1 - cos(angle) as the smallest eigenvalue of the matrix above; less says too little of the depth
_SMALLEST_ANGLE = np.radians(1.0)


@dataclass(frozen=True)
class _Observations:
    """n rays of points, at most one of each point in each photo.

    Attributes:
        point: number of the point, counted from 0.
        photo: number of the photo among those used.
        uv_px: where the photo shows the point, in pixels of the lens.
        centre: of the camera; like all coordinates from the mean of the centres.
        direction: unit length.
        focal: focal length, pixels.
    """

    point: Int64[Tensor, " n"]
    photo: Int64[Tensor, " n"]
    uv_px: Float64[Tensor, "n 2"]
    centre: Float64[Tensor, "n 3"]
    direction: Float64[Tensor, "n 3"]
    focal: Float64[Tensor, " n"]

    def __getitem__(self, held: Bool[Tensor, " n"]) -> "_Observations":
        return _Observations(*(column[held] for column in self._columns()))

    @staticmethod
    def cat(parts: "Sequence[_Observations]") -> "_Observations":
        return _Observations(*map(torch.cat, zip(*(part._columns() for part in parts), strict=True)))

    def _columns(self) -> tuple[Tensor, ...]:
        return self.point, self.photo, self.uv_px, self.centre, self.direction, self.focal


def sparse_points(
    model: ColmapModel, used: Set[str], min_views: int = 2, max_error_px: float = 2.0, photos: Mapping[str, Path] | None = None
) -> PointCloud:
    """Triangulates the points of a model from the photos in ``used``.

    Args:
        model: poses, lenses and observations.
        used: names of photos as the model spells them; names that it does not hold are passed over.
        min_views: points that fewer of these photos agree on are dropped; at least 2.
        max_error_px: how far a photo may show a point from where it projects, in pixels of the middle of the photo without distortion.
        photos: files of the photos by the names in the model; colours are the mean of what the photos that agree show there. None gives no colours:
            those of the model come from all of its photos.

    Returns:
        The points that are left, in the order of their numbers in the model.

    Raises:
        InputError: choices out of range, no photo of the model in ``used``, no point left, or a photo that cannot be read.
    """
    if min_views < 2:
        raise InputError(f"min_views: expected 2 or more, since one photo gives no depth, got {min_views}")
    if not max_error_px > 0:
        raise InputError(f"max_error_px: expected a positive number of pixels, got {max_error_px}")
    images = [image for image in model.images if image.name in used]
    if not images:
        raise InputError(
            f"{model.folder}: expected some of its {len(model.images)} photos among those that may be used, got none; choose others"
        )
    number, rays, origin = _observe(images, model.lenses)
    xyz, rays = _triangulate(rays, len(number), min_views, max_error_px)
    left = rays.point.unique()
    if not len(left):
        raise InputError(
            f"{model.folder}: expected points that at least {min_views} of {len(images)} photos agree on to {max_error_px:g} pixels, got none; use more "
            "photos, or allow a larger max_error_px"
        )
    rgb = None if photos is None else _sampled_colours(rays, len(number), images, model.lenses, photos)
    return PointCloud((xyz[left] + origin).float(), None if rgb is None else rgb[left])


def _observe(images: list[ModelImage], lenses: dict[int, Lens]) -> tuple[Int64[np.ndarray, " p"], _Observations, Float64[Tensor, " 3"]]:
    """(numbers of the points in the model, their observations, where coordinates count from)."""
    poses = torch.stack([image.world_to_cam for image in images])
    rotation = poses[:, :3, :3]
    centres = -(rotation.transpose(1, 2) @ poses[:, :3, 3:])[..., 0]
    origin = centres.mean(0)
    number, photo, uv_px, direction, focal = [], [], [], [], []
    for k, image in enumerate(images):
        lens = lenses[image.camera]
        first = np.unique(image.point, return_index=True)[1]  # a photo that shows a point twice counts once
        first = first[image.point[first] >= 0]
        xy = _without_distortion(lens, image.uv_px[first])
        held = np.isfinite(xy).all(1)
        rays = torch.from_numpy(np.column_stack([xy[held], np.ones(held.sum())])) @ rotation[k]
        number.append(image.point[first][held])
        photo.append(torch.full((len(rays),), k))
        uv_px.append(torch.from_numpy(image.uv_px[first][held]))
        direction.append(torch.nn.functional.normalize(rays, dim=1))
        focal.append(torch.full((len(rays),), sum(lens.focal_length) / 2, dtype=torch.float64))
    known, point = np.unique(np.concatenate(number), return_inverse=True)
    of_photo = torch.cat(photo)
    seen = _Observations(
        torch.from_numpy(point), of_photo, torch.cat(uv_px), (centres - origin)[of_photo], torch.cat(direction), torch.cat(focal)
    )
    return known, seen, origin


def _without_distortion(lens: Lens, uv_px: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
    """(x, y) of the rays (x, y, 1), axes right, down, forward, that a photo shows at some pixels; nan where there is none."""
    if not lens.distorts:
        return (uv_px - lens.principal_point) / lens.focal_length
    from pycolmap import Camera  # takes a third of a second to import, and only photos with distortion need it

    height, width = lens.image_size
    return Camera(model=lens.model, width=width, height=height, params=list(lens.params)).cam_from_img(uv_px)


def _triangulate(rays: _Observations, count: int, min_views: int, max_error_px: float) -> tuple[Float64[Tensor, "p 3"], _Observations]:
    """(points, the observations that agree with them); points without any are not defined."""
    xyz = torch.zeros(count, 3, dtype=torch.float64)
    agreed: list[_Observations] = []
    while True:
        seen = torch.zeros(count, dtype=torch.long).index_add_(0, rays.point, torch.ones_like(rays.point))
        rays = rays[seen[rays.point] >= min_views]
        if not len(rays.point):
            break
        distinct, place = rays.point.unique(return_inverse=True)
        solved, certain = _nearest_points(rays, place, len(distinct))
        error = _errors_px(rays, solved[place])
        worst = error.new_zeros(len(distinct)).scatter_reduce_(0, place, error, "amax")
        good = worst <= max_error_px
        xyz[distinct[good]] = solved[good]
        agreed.append(rays[(good & certain)[place]])
        # of equally bad rays all leave, so that every round makes the rest shorter
        rays = rays[(~good & certain)[place] & (error < worst[place])]
    return xyz, _Observations.cat([*agreed, rays])


def _nearest_points(rays: _Observations, place: Int64[Tensor, " n"], count: int) -> tuple[Float64[Tensor, "p 3"], Bool[Tensor, " p"]]:
    """(the point nearest to the rays of each place, whether they meet at a sufficient angle)."""
    across = torch.eye(3, dtype=torch.float64) - rays.direction[:, :, None] * rays.direction[:, None, :]
    matrix = across.new_zeros(count, 3, 3).index_add_(0, place, across)
    right = across.new_zeros(count, 3).index_add_(0, place, (across @ rays.centre[:, :, None])[..., 0])
    certain = torch.linalg.eigvalsh(matrix)[:, 0] >= 1 - np.cos(_SMALLEST_ANGLE)
    # parallel rays have no nearest point: theirs is not used
    matrix[~certain] = torch.eye(3, dtype=torch.float64)
    return torch.linalg.solve(matrix, right), certain


def _errors_px(rays: _Observations, xyz: Float64[Tensor, "n 3"]) -> Float64[Tensor, " n"]:
    """How far from each ray its point appears: the tangent of the angle between them times the focal length; infinite behind the camera."""
    offset = xyz - rays.centre
    along = (offset * rays.direction).sum(1)
    aside = (offset - along[:, None] * rays.direction).norm(dim=1)
    return torch.where(along > 0, rays.focal * aside / along, torch.inf)


def _sampled_colours(
    rays: _Observations, count: int, images: list[ModelImage], lenses: dict[int, Lens], photos: Mapping[str, Path]
) -> UInt8[Tensor, "p 3"]:
    total, views = torch.zeros(count, 3), torch.zeros(count)
    for k in rays.photo.unique().tolist():
        image, lens = images[k], lenses[images[k].camera]
        path, shown = photos[image.name], rays.photo == k
        camera = Cameras.from_opencv(
            image.world_to_cam[None].float(), torch.tensor([lens.focal_length]), torch.tensor([lens.principal_point]), lens.image_size
        )
        pixels = read_photo(View(image.name, path, camera, resized=image_size(path) != lens.image_size)).image
        height, width = lens.image_size
        u, v = rays.uv_px[shown].long().unbind(1)
        point = rays.point[shown]
        total.index_add_(0, point, pixels[:, v.clamp(0, height - 1), u.clamp(0, width - 1)].T.float())
        views.index_add_(0, point, torch.ones(len(point)))
    return (total / views.clamp(min=1)[:, None] + 0.5).to(torch.uint8)
