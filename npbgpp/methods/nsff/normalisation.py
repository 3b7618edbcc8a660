"""How near the scene of a video comes to its camera, from the points of its COLMAP model and its disparity (nsff_pl), or as its layout states it.

A disparity map has an unknown scale and offset. Where a frame has enough points whose disparity is linear in 1 / depth, the nearest depth is the one at which
that line meets the 95th percentile of the map; elsewhere it is the 5th percentile of the depths of the points.
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
from npbgpp.geometry import Cameras
from npbgpp.parsers.monocular import match_frames

_FEWEST = 8  # points of a frame that say something
_LINEAR = 0.9  # share of the variance of disparity that 1 / depth explains
_NEAR_DISPARITY, _NEAR_DEPTH = 95, 5  # percentiles


def nearest_depth(frames: tuple[View, ...], points: Path | None) -> float:
    """The depth of what comes nearest to the camera in any frame, scene units.

    Args:
        frames: of the video.
        points: ``points3D`` of the model that the poses are from; None where the frames state their bounds.

    Raises:
        InputError: neither points nor bounds, bounds that are not positive, damaged files, no frame with points enough, or disparity that is larger where the
            scene is farther away.
    """
    if points is None:
        return _stated(frames)
    model, sparse = ColmapModel.read(points.parent), read_points(points)
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
            f"{points}: expected at least {_FEWEST} points in some frame, which say how near the scene is, got fewer; reconstruct the video again, or take "
            "the model away and let poses_bounds.npy state it"
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


# ----------------------------------------------------------------------
# The coordinates of the field of a video: the world centred on the mean camera and scaled, and normalised device coordinates, NDC, in front of it.


_NEAR_PLANE = 1.0  # distance of the near plane of NDC from the mean camera
_NEAREST = 1 / 0.75  # depth of what comes nearest to the camera, field units
_FARTHEST = 1e-6  # keeps the far end of NDC, which is infinitely far, a number
_SHALLOWEST = 1e-8  # depth that pixels are divided by at least, field units


@dataclass(frozen=True)
class VideoNormalisation:
    """Maps a video to the coordinates of its field: ``x_field = scale * (x_world - centre) @ rotation`` on row vectors, and these to NDC.

    Attributes:
        rotation: of row vectors.
        centre: what becomes the origin, scene units.
        scale: field units per scene unit.
        fx, fy, cx, cy: focal length and principal point of the camera of NDC, pixels from the top-left corner.
        image_size: its (height, width) in pixels.
        moments: the camera of every moment in Euclidean field coordinates, in double precision.
    """

    rotation: Float64[Tensor, "3 3"]
    centre: Float64[Tensor, " 3"]
    scale: float
    fx: float
    fy: float
    cx: float
    cy: float
    image_size: tuple[int, int]
    moments: Cameras

    def __len__(self) -> int:
        """Number of moments."""
        return len(self.moments)

    def to(self, device: torch.device | str) -> "VideoNormalisation":
        """The same frame on another device."""
        return replace(self, rotation=self.rotation.to(device), centre=self.centre.to(device), moments=self.moments.to(device))

    def cameras(self, cameras: Cameras) -> Cameras:
        """The same cameras in Euclidean field coordinates, computed in double precision and returned in that of their rotation."""
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
        """Euclidean points in NDC; those of points at z = 0, the depth of the mean camera, are not finite."""
        z = xyz_field[..., 2:]
        return torch.cat([self._stretch(xyz_field) * xyz_field[..., :2] / z, 1 + 2 / z], -1)

    def ndc_to_field(self, xyz_ndc: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """The inverse of ``field_to_ndc``, up to half a part in a million per unit of distance; points at z = 1, infinitely far, come two million away."""
        z = 2 / (xyz_ndc[..., 2:] - 1 - _FARTHEST)
        return torch.cat([xyz_ndc[..., :2] * z / self._stretch(xyz_ndc), z], -1)

    def project(self, xyz_field: Float[Tensor, "*n 3"], moment: int) -> tuple[Float[Tensor, "*n 2"], Float[Tensor, " *n"]]:
        """(uv_px, depth) of Euclidean points as the camera of a moment sees them; centres of pixels at +0.5, depth in field units.

        Depth is not positive for points beside or behind the camera, and their pixels mean nothing, but values and gradients stay finite.
        """
        camera = self.moments[moment]
        R, T, focal, principal = (part[0].to(xyz_field) for part in (camera.R, camera.T, camera.focal_length, camera.principal_point))
        xyz_cam = xyz_field @ R + T
        depth = xyz_cam[..., 2]
        return principal - focal * xyz_cam[..., :2] / (depth.abs() + _SHALLOWEST)[..., None], depth

    def _stretch(self, like: Tensor) -> Float[Tensor, " 2"]:
        return like.new_tensor([-self.fx / self.cx, -self.fy / self.cy])


def video_frame(scene: Scene) -> VideoNormalisation:
    """The frame of a video: centred on the mean camera of all its frames in use, trained or not, and scaled so that the nearest depth is 4/3.

    Raises:
        InputError: a scene that is no video, no way to find the nearest depth, or frames between which the camera turns so far that rays look back.
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
    frame = VideoNormalisation(rotation, centre, scale, fx, fy, cx, cy, first.image_size, cameras)
    frame = replace(frame, moments=frame.cameras(cameras))
    for k, view in enumerate(frames):
        if not (corner_directions(frame.moments[k])[:, 2] < 0).all():
            raise InputError(
                f"frame {view.name} ({view.image}): expected a camera that looks the same way as the mean one, but part of the picture looks back; choose "
                "frames between which the camera turns less (datasets.start_end)"
            )
    return frame
