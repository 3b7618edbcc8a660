"""The coordinates of the field of a video: the world centred on the mean camera and scaled, and normalised device coordinates, NDC, in front of it.

Euclidean field coordinates have the axes of the mean camera of all frames: right, up, backward. NDC are those of NSFF (Li et al., Neural Scene Flow Fields,
CVPR 2021, as nsff_pl has them): the near plane is z = -1, and a ray of a camera that has moved past it begins at the camera.

Symbols: m moments, n points or rays; o origins and d directions of rays, t distance along a ray in lengths of d.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from npbgpp.data.nearest_depth import nearest_depth
from npbgpp.data.ray_frames import corner_directions, double, mean_pose
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras

_NEAR_PLANE = 1.0  # distance of the near plane of NDC from the mean camera
_NEAREST = 1 / 0.75  # depth of what comes nearest to the camera, field units
_FARTHEST = 1e-6  # keeps the far end of NDC, which is infinitely far, a number
_SHALLOWEST = 1e-8  # depth that pixels are divided by at least, field units


@dataclass(frozen=True)
class VideoFrame:
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

    def to(self, device: torch.device | str) -> "VideoFrame":
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


def video_frame(scene: Scene) -> VideoFrame:
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
    frame = VideoFrame(rotation, centre, scale, fx, fy, cx, cy, first.image_size, cameras)
    frame = replace(frame, moments=frame.cameras(cameras))
    for k, view in enumerate(frames):
        if not (corner_directions(frame.moments[k])[:, 2] < 0).all():
            raise InputError(
                f"frame {view.name} ({view.image}): expected a camera that looks the same way as the mean one, but part of the picture looks back; choose "
                "frames between which the camera turns less (datasets.start_end)"
            )
    return frame
