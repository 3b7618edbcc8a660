"""Normalisation of a video: coordinates of its field, centred on the mean camera and scaled by the nearest depth, and their NDC.

The nearest depth is estimated as in nsff_pl, from the points of the COLMAP model and the disparity maps, or given by the layout. Disparity maps have an unknown
scale and offset: if a frame has enough points whose disparity is linear in 1 / depth, its nearest depth is where that line reaches the 95th percentile of the
map; otherwise it is the 5th percentile of the depths of the points.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.stats import linregress
from torch import Tensor

from npbgpp.data import ColmapModel, Scene, View, corner_directions, double, mean_pose, read_disparity, read_points
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, reduced
from npbgpp.parsers.monocular import match_frames

_FEWEST = 8  # points that a frame needs for an estimate
_LINEAR = 0.9  # smallest r^2 of the linear fit
_NEAR_DISPARITY, _NEAR_DEPTH = 95, 5  # percentiles


def nearest_depth(frames: tuple[View, ...], points: Path | None) -> float:
    """Nearest depth of any frame, scene units.

    Args:
        frames: of the video.
        points: ``points3D`` of the COLMAP model of the poses; None: the frames have bounds.

    Raises:
        InputError: neither points nor bounds, bounds that are not positive, damaged files, no frame with enough points, or disparity that grows with depth.
    """
    if points is None:
        return _stated(frames)
    model = ColmapModel.read(points.parent)
    sparse = read_points(points, reduced(None, model.offset))
    where = {number: k for k, number in enumerate(sparse.number.tolist())}
    nearest = []
    for view, image in zip(frames, match_frames(model, [view.image for view in frames]), strict=True):
        seen = sorted({where[number] for number in image.point.tolist() if number in where})
        uv_px, depth = double(view).project(sparse.cloud.xyz[seen].double())
        uv, z = uv_px[0].numpy(), depth[0].numpy()
        if (z > 0).sum() >= _FEWEST:
            nearest.append(_of_frame(view, uv[z > 0], z[z > 0]))
    if not nearest:
        raise InputError(
            f"{points}: expected at least {_FEWEST} points in some frame, from which the nearest depth is estimated, got fewer; reconstruct the video "
            "again, or remove the model and provide poses_bounds.npy"
        )
    return min(nearest)


def _stated(frames: tuple[View, ...]) -> float:
    near = [math.nan if view.bounds is None else view.bounds[0] for view in frames]
    bad = next((view for view, depth in zip(frames, near, strict=True) if not 0 < depth < math.inf), None)
    if bad is not None:
        raise InputError(
            f"frame {bad.name} ({bad.image}): expected a positive nearest depth in its row of poses_bounds.npy, or a COLMAP model with points3D, got "
            f"{'none' if bad.bounds is None else bad.bounds[0]}; correct the file or restore points3D"
        )
    return min(near)


def _of_frame(view: View, uv_px: Float64[np.ndarray, "n 2"], depth: Float64[np.ndarray, " n"]) -> float:
    percentile = float(np.percentile(depth, _NEAR_DEPTH))
    if view.motion is None or view.motion.disparity is None:
        return percentile
    disparity = read_disparity(view).double().numpy()
    height, width = disparity.shape
    column, row = (np.clip(np.floor(uv_px[:, k]), 0, side - 1).astype(np.int64) for k, side in ((0, width), (1, height)))
    shown, inverse = disparity[row, column], 1 / depth
    if inverse.min() == inverse.max() or shown.min() == shown.max():
        return percentile
    line = linregress(inverse, shown)
    if line.rvalue**2 <= _LINEAR:
        return percentile
    if line.slope < 0:
        raise InputError(
            f"disparity {view.motion.disparity}: expected larger numbers where the scene is nearer, got smaller ones at the points of the model; invert the "
            "map (depth maps become disparity as 1 / depth)"
        )
    rise = float(np.percentile(disparity, _NEAR_DISPARITY)) - line.intercept
    return float(line.slope / rise) if rise > 0 else percentile


# ---------------------------------------------------------------- coordinates of the field


_NEAR_PLANE = 1.0  # distance of the near plane of NDC from the mean camera
_NEAREST = 1 / 0.75  # nearest depth, field units
_FARTHEST = 1e-6  # keeps points at the far end of NDC, which is infinity, finite
_SHALLOWEST = 1e-8  # smallest divisor of a projection, field units


@dataclass(frozen=True)
class VideoNormalisation:
    """Maps world coordinates to those of the field, ``x_field = scale * (x_world - centre) @ rotation`` on row vectors, and these to NDC.

    Attributes:
        rotation: of row vectors.
        centre: origin of the field, scene units.
        scale: field units per scene unit.
        fx, fy, cx, cy: focal length and principal point of the camera of NDC, pixels from the top-left corner.
        image_size: its (height, width) in pixels.
        frame_cameras: the camera of every time step in Euclidean field coordinates, in double precision.
    """

    rotation: Float64[Tensor, "3 3"]
    centre: Float64[Tensor, " 3"]
    scale: float
    fx: float
    fy: float
    cx: float
    cy: float
    image_size: tuple[int, int]
    frame_cameras: Cameras

    def __len__(self) -> int:
        """Number of time steps."""
        return len(self.frame_cameras)

    def to(self, device: torch.device | str) -> "VideoNormalisation":
        """Copy on another device."""
        return replace(self, rotation=self.rotation.to(device), centre=self.centre.to(device), frame_cameras=self.frame_cameras.to(device))

    def cameras(self, cameras: Cameras) -> Cameras:
        """Cameras in Euclidean field coordinates, computed in double precision and returned in the dtype of their rotation."""
        rotation, centre = self.rotation.to(cameras.R.device), self.centre.to(cameras.R.device)
        R, T = cameras.R.double(), cameras.T.double()
        return replace(cameras, R=(rotation.T @ R).to(cameras.R.dtype), T=(self.scale * (centre @ R + T)).to(cameras.T.dtype))

    def rays(self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Rays of cameras of the field in NDC: t = 0 is the near plane or, behind it, the camera; t = 1 is infinity.

        Directions in NDC have no unit length. Raises InputError for rays that do not look along -z.
        """
        backward = directions[:, 2] >= 0
        if backward.any():
            raise InputError(
                f"normalised device coordinates of a video: expected rays that look along -z of its mean camera, got {int(backward.sum())} of "
                f"{len(directions)} that do not; choose frames between which the camera turns less (datasets.start_end)"
            )
        z = origins[:, 2:]
        start = origins + (-(z.neg().clamp(min=_NEAR_PLANE) + z) / directions[:, 2:]) * directions
        stretch = self._stretch(start)
        offset, slope = start[:, :2] / start[:, 2:], directions[:, :2] / directions[:, 2:]
        z_ndc = 1 + 2 / start[:, 2:]
        return torch.cat([stretch * offset, z_ndc], -1), torch.cat([stretch * (slope - offset), 1 - z_ndc], -1)

    def field_to_ndc(self, xyz_field: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Euclidean points in NDC; not finite for points at z = 0, the depth of the mean camera."""
        z = xyz_field[..., 2:]
        return torch.cat([self._stretch(xyz_field) * xyz_field[..., :2] / z, 1 + 2 / z], -1)

    def ndc_to_field(self, xyz_ndc: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Inverse of ``field_to_ndc`` with a relative error of 5e-7 per unit of distance; points at infinity, z = 1, get a distance of 2e6."""
        z = 2 / (xyz_ndc[..., 2:] - 1 - _FARTHEST)
        return torch.cat([xyz_ndc[..., :2] * z / self._stretch(xyz_ndc), z], -1)

    def project(self, xyz_field: Float[Tensor, "*n 3"], time_step: int) -> tuple[Float[Tensor, "*n 2"], Float[Tensor, " *n"]]:
        """Projects Euclidean points with the camera of a time step: (uv_px, depth); pixel centres at +0.5, depth in field units.

        Points beside or behind the camera have a depth of at most 0 and undefined pixels; values and gradients are finite.
        """
        camera = self.frame_cameras[time_step]
        R, T, focal, principal = (part[0].to(xyz_field) for part in (camera.R, camera.T, camera.focal_length, camera.principal_point))
        xyz_cam = xyz_field @ R + T
        depth = xyz_cam[..., 2]
        return principal - focal * xyz_cam[..., :2] / (depth.abs() + _SHALLOWEST)[..., None], depth

    def _stretch(self, like: Tensor) -> Float[Tensor, " 2"]:
        return like.new_tensor([-self.fx / self.cx, -self.fy / self.cy])


def video_normalisation(scene: Scene) -> VideoNormalisation:
    """Normalisation of a video: centred on the mean camera of all frames, trained or not, and scaled so that the nearest depth is 4/3.

    Raises:
        InputError: not a video, no estimate of the nearest depth, or cameras that turn so far that rays point backwards.
    """
    frames = scene.frames
    if not frames:
        raise InputError(
            f"scene {scene.name}: expected the frames of a video, got a still scene of layout {scene.layout}; choose datasets=monocular and a folder with "
            "images, disps, flow_fw and flow_bw"
        )
    cameras = Cameras.cat([double(view) for view in frames])
    rotation, centre = mean_pose(cameras.to_opengl())
    first = cameras[0]
    (fx, fy), (cx, cy) = first.focal_length[0].tolist(), first.principal_point[0].tolist()
    if min(cx, cy) <= 0:
        raise InputError(f"frame {frames[0].name}: expected a principal point inside the picture, got ({cx:g}, {cy:g}); correct the camera")
    scale = _NEAREST / nearest_depth(frames, scene.carried_points)
    normalisation = VideoNormalisation(rotation, centre, scale, fx, fy, cx, cy, first.image_size, cameras)
    normalisation = replace(normalisation, frame_cameras=normalisation.cameras(cameras))
    for k, view in enumerate(frames):
        if not (corner_directions(normalisation.frame_cameras[k])[:, 2] < 0).all():
            raise InputError(
                f"frame {view.name} ({view.image}): expected a camera that faces the direction of the mean one, but some of its rays point backwards; choose "
                "frames between which the camera turns less (datasets.start_end)"
            )
    return normalisation
