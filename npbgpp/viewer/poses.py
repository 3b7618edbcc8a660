"""Cameras of the browser and ours, sizes of pictures within the browser's window, and where a viewer starts.

viser's cameras have OpenCV's axes (right, down, forward), a vertical field of view over the whole window, and the principal point in its middle. Its keys move
by two units per second and its depths end at 167 units, so scenes are scaled: a viewer's units are scene units times ``ViewerFrame.scale``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from npbgpp.data import Scene
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras

_RADIUS = 4.0  # viewer units from the middle of a scene to its cameras
_QUANTILE = 0.9  # of the cloud: the rest may be stray points
_MULTIPLE = 16  # sides of a fixed viewport: the coarsest of five levels has whole pixels
_LEVEL = 0.02  # sine of the roll below which a view counts as level
_TOP_DISTANCE = 20.0  # of the original viewer: scene units before the origin


@dataclass(frozen=True)
class Pose:
    """A camera of the browser.

    Attributes:
        wxyz: unit quaternion, camera to world, axes right, down, forward.
        position: viewer units.
        fov: vertical field of view, radians.
        aspect: width of the window by its height.
    """

    wxyz: tuple[float, float, float, float]
    position: tuple[float, float, float]
    fov: float
    aspect: float

    def rotation(self) -> NDArray[np.float64]:
        """The matrix (3, 3) of ``wxyz``, acting on columns."""
        matrix: NDArray[np.float64] = Rotation.from_quat(np.roll(self.wxyz, -1)).as_matrix()
        return matrix


@dataclass(frozen=True)
class ViewerFrame:
    """The coordinates of the viewer.

    Attributes:
        scale: viewer units per scene unit.
        up: unit vector in the scene.
        middle: what the scene is about, scene units.
    """

    scale: float
    up: tuple[float, float, float]
    middle: tuple[float, float, float]

    def camera(self, pose: Pose, size: tuple[int, int]) -> Cameras:
        """One camera for a picture of ``size`` (height, width), whose vertical field of view is that of the pose."""
        world_to_cam = torch.eye(4, dtype=torch.float64)
        rotation = torch.from_numpy(pose.rotation())
        world_to_cam[:3, :3] = rotation.T
        world_to_cam[:3, 3] = -rotation.T @ (torch.tensor(pose.position, dtype=torch.float64) / self.scale)
        focal = size[0] / 2 / math.tan(pose.fov / 2)
        found = Cameras.from_opencv(world_to_cam[None], torch.tensor([[focal, focal]]), torch.tensor([[size[1] / 2, size[0] / 2]]), size)
        return replace(found, R=found.R.float(), T=found.T.float())

    def pose(self, camera: Cameras, aspect: float) -> Pose:
        """The pose that shows at least what one camera shows, in a window of another aspect. An offset principal point and unequal focal lengths are lost."""
        pose = torch.linalg.inv(replace(camera, R=camera.R.double(), T=camera.T.double()).to_opencv())[0].numpy()
        height, width = camera.image_size
        tangent = height / 2 / float(camera.focal_length[0, 1]) * max(1.0, width / height / aspect)
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
        px, py, pz = (pose[:3, 3] * self.scale).tolist()
        return Pose((w, x, y, z), (px, py, pz), 2 * math.atan(tangent), aspect)

    def to_viewer(self, xyz: Float[Tensor, "n 3"]) -> NDArray[np.float32]:
        """Scene points in viewer units."""
        scaled: NDArray[np.float32] = (xyz.detach().cpu() * self.scale).numpy().astype(np.float32)
        return scaled

    def up_of(self, pose: Pose) -> tuple[float, float, float]:
        """The up direction with which the browser turns a pose: that of the scene for level views, else that of the view."""
        rotation = pose.rotation()
        up = np.asarray(self.up)
        level = abs(float(rotation[:, 0] @ up)) < _LEVEL and float(-rotation[:, 1] @ up) > _LEVEL
        x, y, z = (up if level else -rotation[:, 1]).tolist()
        return (x, y, z)

    def pivot(self, pose: Pose) -> tuple[float, float, float]:
        """The point before a pose to turn around, viewer units: as far away as the middle of the scene."""
        forward, position = pose.rotation()[:, 2], np.asarray(pose.position)
        distance = max(float(forward @ (np.asarray(self.middle) * self.scale - position)), 0.1 * _RADIUS)
        x, y, z = (position + distance * forward).tolist()
        return (x, y, z)


def frame_of(scene: Scene, speed: float = 1.0) -> ViewerFrame:
    """The frame of a scene with its cloud; ``speed`` as in ``viewer_frame``."""
    cameras = [view.camera for view in scene.views]
    return viewer_frame(cameras, scene.cloud.read().xyz if scene.cloud.path.is_file() else None, speed)


def viewer_frame(cameras: Sequence[Cameras], xyz: Float[Tensor, "n 3"] | None, speed: float = 1.0) -> ViewerFrame:
    """The frame of a scene.

    Args:
        cameras: its views, at least one.
        xyz: its points; None for scenes without.
        speed: of the keys, relative to the size of the scene.
    """
    poses = torch.cat([torch.linalg.inv(replace(c, R=c.R.double(), T=c.T.double()).to_opencv()) for c in cameras])
    centres, forward, upward = poses[:, :3, 3], poses[:, :3, 2], -poses[:, :3, 1]
    if xyz is not None and len(xyz):
        middle = xyz.double().median(0).values
        extent = float((xyz.double() - middle).norm(dim=1).quantile(_QUANTILE)) if len(xyz) < 1_000_000 else _far_share(xyz, middle)
    else:
        middle = centres.mean(0) + forward.mean(0)
        extent = 0.0
    radius = max(float((centres - middle).norm(dim=1).median()), extent, 1e-6)
    mean = upward.mean(0)
    mean = mean if mean.norm() > 1e-3 else upward[0]
    axes = torch.eye(3, dtype=torch.float64)
    mean = mean / mean.norm()
    along = (axes @ mean).abs().argmax()
    if (axes @ mean)[along].abs() > 0.8:  # cameras look down or up on the whole: the axis of the scene was meant
        mean = axes[along] * torch.sign((axes @ mean)[along])
    up_x, up_y, up_z = mean.tolist()
    x, y, z = middle.tolist()
    return ViewerFrame(_RADIUS / (radius * speed), (up_x, up_y, up_z), (x, y, z))


def _far_share(xyz: Float[Tensor, "n 3"], middle: Float[Tensor, "3"]) -> float:
    some = xyz[:: len(xyz) // 100_000].double()
    return float((some - middle).norm(dim=1).quantile(_QUANTILE))


def top_of_cloud(xyz: Float[Tensor, "n 3"], like: Cameras, percentile: float = 90.0) -> Cameras:
    """One camera before the cloud as in the original's ``--origin-view``: on the z axis at a distance of 20, looking along -z with y up.

    The origin is moved to the median of the cloud in x and y and to ``percentile`` of it in z.
    """
    x, y = xyz.median(0).values[:2].tolist()
    z = float(np.percentile(xyz[:, 2].numpy(), percentile))
    pose = torch.eye(4)[None]
    pose[0, :3, 3] = torch.tensor([x, y, z + _TOP_DISTANCE])
    return Cameras.from_opengl(pose, like.focal_length.float(), like.principal_point.float(), like.image_size)


def parse_viewport(text: str) -> tuple[int, int]:
    """(height, width) of ``w,h``, rounded down to multiples of 16 as in the original. Raises InputError for anything else."""
    parts = text.strip("[]() ").replace("x", ",").split(",")
    try:
        width, height = (int(part) for part in parts)
    except ValueError:
        raise InputError(f"viewport: expected w,h in pixels, such as 1280,720, got {text}") from None
    if not (_MULTIPLE <= width <= 1 << 14 and _MULTIPLE <= height <= 1 << 14):
        raise InputError(f"viewport: expected sides from {_MULTIPLE} to {1 << 14} pixels, got {text}")
    return height // _MULTIPLE * _MULTIPLE, width // _MULTIPLE * _MULTIPLE


@dataclass(frozen=True)
class Window:
    """Where a picture lies in the browser's window.

    Attributes:
        size: (height, width) of the whole, pixels of the picture's own resolution.
        top, left: of the picture in it.
        picture: (height, width) of the picture.
    """

    size: tuple[int, int]
    top: int
    left: int
    picture: tuple[int, int]

    @classmethod
    def fit(cls, window: tuple[int, int], viewport: tuple[int, int] | None) -> "Window":
        """The largest place for a viewport in a window (height, width), the whole window without one."""
        if viewport is None:
            return cls(window, 0, 0, window)
        height, width = viewport
        outer_height = max(height, round(width * window[0] / window[1]))
        outer_width = max(width, round(height * window[1] / window[0]))
        return cls((outer_height, outer_width), (outer_height - height) // 2, (outer_width - width) // 2, viewport)

    def scaled(self, factor: float) -> "Window":
        """The same place in a picture whose sides are ``factor`` times as long, at least 16 pixels."""
        if factor == 1.0:
            return self
        height, width = (max(_MULTIPLE, round(side * factor)) for side in self.picture)
        top, left = round(self.top * factor), round(self.left * factor)
        return Window((height + 2 * top, width + 2 * left), top, left, (height, width))

    def pose(self, pose: Pose) -> Pose:
        """The pose of the picture, given that of the window: bars above and below narrow its field of view."""
        share = self.picture[0] / self.size[0]
        return replace(pose, fov=2 * math.atan(math.tan(pose.fov / 2) * share), aspect=self.picture[1] / self.picture[0])

    def window_pose(self, pose: Pose) -> Pose:
        """The inverse of ``pose``."""
        share = self.size[0] / self.picture[0]
        return replace(pose, fov=2 * math.atan(math.tan(pose.fov / 2) * share), aspect=self.size[1] / self.size[0])

    def place(self, picture: Float[Tensor, "c h w"], fill: float = 0.0) -> Float[Tensor, "c h2 w2"]:
        """A picture with bars around it."""
        if self.size == self.picture:
            return picture
        bottom, right = self.size[0] - self.top - self.picture[0], self.size[1] - self.left - self.picture[1]
        return torch.nn.functional.pad(picture, (self.left, right, self.top, bottom), value=fill)
