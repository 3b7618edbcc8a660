"""Camera trajectories: interpolated views, circles, spirals, and motions of a single camera.

Paths are computed in double precision and returned in single precision, as all cameras are. Symbols: n given cameras, f frames of a path.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.interpolate import CubicHermiteSpline
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor
from torch.nn.functional import normalize

from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras

_ON_VIEW = 1e-9  # a frame this close to a view, in steps between views, is that view
_SMALLEST_SPREAD = 1e-3  # mean squared sine of the angles between optical axes that still intersect: 2 degrees
_SMALLEST_MEAN = 0.1  # shortest mean of unit directions that still defines a direction
_LEVEL_RATIO = 10.0  # horizontal axes lie in a plane if their variance within it is so many times that across it
_SMALLEST_SINE = 1e-6  # of the angle between viewing direction and up
_WIDEST_GAP = 120.0  # degrees
_SPIRAL_TURNS = 2
_SPIRAL_QUANTILE = 0.9
_VIDEO_SPIRAL_TURNS = 4
_VIDEO_SPIRAL_QUANTILE = 0.1  # of the distances between consecutive frames
_LOOP_RADIUS = 0.2  # of the distance between the first and the last frame


def fit_to_size(cameras: Cameras, image_size: tuple[int, int]) -> Cameras:
    """Cameras for another image size that show at least the original image, undistorted; another aspect ratio shows more on two sides."""
    height, width = image_size
    scale = min(height / cameras.image_size[0], width / cameras.image_size[1])
    old_middle = cameras.principal_point.new_tensor(cameras.image_size[::-1]) / 2
    middle = cameras.principal_point.new_tensor([width, height]) / 2
    principal_point = (cameras.principal_point - old_middle) * scale + middle
    return Cameras(cameras.R, cameras.T, cameras.focal_length * scale, principal_point, image_size)


def average_pose(cameras: Cameras) -> Cameras:
    """One camera at the mean position with the mean viewing direction, mean up vector and mean intrinsics.

    Source: local light field fusion (Mildenhall et al. 2019), as used by NeRF.

    Raises:
        InputError: viewing directions or up vectors that cancel out.
    """
    forward = _mean_direction(cameras.R[:, :, 2].double())
    up = _mean_direction(cameras.R[:, :, 1].double())
    if forward is None or up is None:
        raise InputError("the views look in all directions and have no mean pose; choose a circle, or give poses in a file")
    intrinsics = Cameras(
        cameras.R[:1],
        cameras.T[:1],
        cameras.focal_length.mean(0, keepdim=True),
        cameras.principal_point.mean(0, keepdim=True),
        cameras.image_size,
    )
    eye = _centers(cameras).mean(0, keepdim=True)
    return _look_at(eye, eye[0] + forward, up, intrinsics)


# ----------------------------------------------------------------------
# Paths made from several views


def common_up(cameras: Cameras) -> Float64[Tensor, "3"]:
    """Up direction of n views, of length 1: the normal of their horizontal axes where these lie in a plane (level cameras), else the mean of their vertical axes.

    Raises:
        InputError: vertical axes that cancel out.
    """
    left, mean = cameras.R[:, :, 0].double(), _mean_direction(cameras.R[:, :, 1].double())
    if mean is None:
        raise InputError("a circle: the views have no common upward direction; choose another path, or give poses in a file")
    spread, directions = torch.linalg.eigh(left.T @ left / len(left))
    if spread[1] < _LEVEL_RATIO * spread[0] or spread[1] < _SMALLEST_SPREAD:
        return mean
    return directions[:, 0] * torch.sign(directions[:, 0] @ mean)


def interpolate_path(cameras: Cameras, count: int, loop: bool = False) -> Cameras:
    """Path through views: Catmull-Rom positions, spherical linear rotations, linear intrinsics; equally many frames per segment.

    Frames that fall on a view equal that view bitwise; these include the first frame and, without ``loop``, the last.

    Args:
        cameras: n views, in order.
        count: f, at least 1.
        loop: return to the first view, which is not repeated at the end.

    Raises:
        InputError: fewer than two views.
    """
    keys = len(cameras)
    if keys < 2:
        raise InputError(f"a path through views: expected at least two views, got {keys}; choose more, or another path")
    times = np.arange(count) * (keys / count) if loop else np.linspace(0, keys - 1, count)
    order = np.arange(-1, keys + 2) % keys if loop else np.arange(keys)  # a loop has neighbours on both sides
    key_times = np.arange(len(order)) - float(loop)
    positions = _centers(cameras).numpy()[order]
    spline = CubicHermiteSpline(key_times, positions, np.gradient(positions, axis=0))
    rotations = Slerp(key_times, Rotation.from_matrix(cameras.R.double().numpy()[order]))
    path = _at(torch.from_numpy(rotations(times).as_matrix()), torch.from_numpy(spline(times)), cameras)
    start = torch.from_numpy(np.floor(times)).long().clamp(max=keys - 1)
    fraction = (torch.from_numpy(times) - start)[:, None]

    def lerp(numbers: Float[Tensor, "n 2"]) -> Float[Tensor, "f 2"]:
        return torch.lerp(numbers[start].double(), numbers[(start + 1) % keys].double(), fraction).to(numbers.dtype)

    path = Cameras(path.R, path.T, lerp(cameras.focal_length), lerp(cameras.principal_point), cameras.image_size)
    nearest = np.rint(times)
    for frame in np.flatnonzero(np.abs(times - nearest) < _ON_VIEW):
        key = int(nearest[frame]) % keys
        for interpolated, given in (
            (path.R, cameras.R),
            (path.T, cameras.T),
            (path.focal_length, cameras.focal_length),
            (path.principal_point, cameras.principal_point),
        ):
            interpolated[frame] = given[key]
    return path


def circle_path(
    centre: Float[Tensor, "3"],
    up: Float[Tensor, "3"],
    radius: float,
    height: float,
    count: int,
    look_at: Float[Tensor, "3"],
    intrinsics: Cameras,
) -> Cameras:
    """Cameras on a full circle, counterclockwise seen from above.

    Args:
        centre: point on the axis of the circle, world coordinates.
        up: up direction and axis of the circle, of any length.
        radius: of the circle, scene units.
        height: of the circle above ``centre`` along ``up``, scene units.
        count: f, at least 1.
        look_at: point that projects to the principal point of every frame.
        intrinsics: one camera with the intrinsics and the image size.
    """
    axis = normalize(up.double(), dim=0)
    not_parallel = torch.eye(3, dtype=torch.float64)[int(axis.abs().argmin())]
    first = normalize(torch.linalg.cross(axis, not_parallel), dim=0)
    second = torch.linalg.cross(axis, first)
    angle = torch.arange(count, dtype=torch.float64)[:, None] * (2 * math.pi / count)
    eyes = centre.double() + height * axis + radius * (angle.cos() * first + angle.sin() * second)
    return _look_at(eyes, look_at.double(), axis, intrinsics)


def orbit_path(cameras: Cameras, count: int) -> Cameras:
    """Circle around the point nearest to all optical axes, at the median distance and elevation of the views, with the intrinsics of the first.

    Args:
        cameras: n views of one object.
        count: f, at least 1.

    Raises:
        InputError: optical axes that are nearly parallel or diverge, or cameras without a common up direction.
    """
    focus = _focus(cameras)
    up = common_up(cameras)
    offset = _centers(cameras) - focus
    distances = offset.norm(dim=1)
    distance = float(distances.quantile(0.5))
    elevation = float(torch.asin((offset @ up / distances).clamp(-1, 1)).quantile(0.5))
    return circle_path(focus, up, distance * math.cos(elevation), distance * math.sin(elevation), count, focus, cameras[0])


def surrounds(views: Sequence[Cameras]) -> bool:
    """Whether views look at one object from around it, so that a circle shows what they show: no gap between neighbours is wider than 120 degrees.

    Args:
        views: one camera each, at least one, of any image sizes.
    """
    cameras = Cameras.cat([fit_to_size(view, views[0].image_size) for view in views])
    try:
        focus, up = _focus(cameras), common_up(cameras)
    except InputError:
        return False
    across = normalize(torch.linalg.cross(up, _centers(cameras)[0] - focus), dim=0)
    along = torch.linalg.cross(across, up)
    offset = _centers(cameras) - focus
    azimuth = torch.rad2deg(torch.atan2(offset @ across, offset @ along)).sort().values
    return bool(torch.cat([azimuth.diff(), azimuth[:1] + 360 - azimuth[-1:]]).max() < _WIDEST_GAP)


def spiral_path(cameras: Cameras, focus: float, count: int) -> Cameras:
    """NeRF's path for forward-facing scenes: two turns about the mean pose, looking at one point in front of it.

    At t in [0, 4 pi) the camera is at (cos t, -sin t, -sin(t / 2)) times the 90th percentiles of the absolute offsets of the views, in the axes right, up,
    backward of the mean pose. Source: code of NeRF (Mildenhall et al. 2020).

    Args:
        cameras: n views with similar viewing directions.
        focus: depth of the point in front of the mean pose, scene units.
        count: f, at least 1.

    Raises:
        InputError: see ``average_pose``.
    """
    mean = average_pose(cameras)
    R, centre = mean.R[0].double(), _centers(mean)
    radii = ((_centers(cameras) - centre) @ R).abs().quantile(_SPIRAL_QUANTILE, dim=0)
    t = torch.arange(count, dtype=torch.float64) * (2 * math.pi * _SPIRAL_TURNS / count)
    xyz_cam = torch.stack([-t.cos(), -t.sin(), (t / 2).sin()], 1) * radii  # camera axes: left, up, forward
    return _look_at(centre + xyz_cam @ R.T, centre[0] + focus * R[:, 2], R[:, 1], mean)


# ----------------------------------------------------------------------
# Motions of one camera, as in NPCR


def turntable_path(camera: Cameras, count: int) -> Cameras:
    """One camera rotated once around the z axis of the world, counterclockwise seen from above; the last frame repeats the first.

    Args:
        camera: one camera.
        count: frames, at least 2.

    Raises:
        InputError: fewer than two frames.
    """
    if count < 2:
        raise InputError(f"frames: expected at least 2 for a full turn, got {count}")
    angles = np.arange(count) * (2 * math.pi / (count - 1))
    path = _rotate_world(camera, torch.from_numpy(Rotation.from_euler("z", angles[:, None]).as_matrix()))
    path.R[-1], path.T[-1] = path.R[0], path.T[0]
    return path


def linear_path(camera: Cameras, along_world: tuple[float, float, float], start: float, stop: float, count: int) -> Cameras:
    """One camera translated in equal steps from ``start`` to ``stop`` times a world direction; scene units.

    Raises:
        InputError: fewer than two frames.
    """
    if count < 2:
        raise InputError(f"frames: expected at least 2 for a straight path, got {count}")
    R = camera.R.double().expand(count, 3, 3)
    shift = torch.linspace(start, stop, count, dtype=torch.float64)[:, None] * torch.tensor(along_world, dtype=torch.float64)
    return _with_intrinsics(R, camera.T.double() - (shift[:, None] @ R)[:, 0], camera)


def random_rotation_path(camera: Cameras, count: int, seed: int) -> Cameras:
    """One camera rotated about the world origin by uniformly random rotations.

    Raises:
        InputError: no frames.
    """
    if count < 1:
        raise InputError(f"frames: expected at least 1, got {count}")
    return _rotate_world(camera, torch.from_numpy(Rotation.random(count, random_state=seed).as_matrix()))


# ----------------------------------------------------------------------
# Paths through a video, as in nsff_pl, but with distances in place of steps along x


def spiral_along_path(cameras: Cameras, count: int) -> Cameras:
    """The camera path of a video with four turns around it, in the image plane of the mean pose.

    The radius is the 10th percentile of the distances between consecutive frames.

    Args:
        cameras: n frames, in order, at least two.
        count: f, at least 1.
    """
    path = interpolate_path(cameras, count)
    radius = _centers(cameras).diff(dim=0).norm(dim=1).quantile(_VIDEO_SPIRAL_QUANTILE)
    mean = average_pose(cameras).R[0].double()
    t = torch.arange(count, dtype=torch.float64) * (2 * math.pi * _VIDEO_SPIRAL_TURNS / count)
    offset = -radius * (t.cos()[:, None] * mean[:, 0] + t.sin()[:, None] * mean[:, 1])  # camera axes: left, up, forward
    return _move_to(path, _centers(path) + offset)


def loop_path(cameras: Cameras, index: int, count: int) -> Cameras:
    """A closed loop around the camera of a video frame: sideways and in depth by a fifth of the distance between first and last frame, vertically by half that.

    Args:
        cameras: n frames, in order.
        index: the frame.
        count: f, at least 1.
    """
    centers = _centers(cameras)
    radius = _LOOP_RADIUS * (centers[-1] - centers[0]).norm()
    t = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    xyz_cam = radius * torch.stack([t.sin(), -t.cos() / 2, t.cos()], 1)
    repeated = cameras[[index] * count]
    return _move_to(repeated, centers[index] + xyz_cam @ repeated.R[0].double().T)


# ----------------------------------------------------------------------


def _focus(cameras: Cameras) -> Float64[Tensor, "3"]:
    """The point nearest to all optical axes."""
    directions, centers = cameras.R[:, :, 2].double(), _centers(cameras)
    projectors = torch.eye(3, dtype=torch.float64) - directions[:, :, None] * directions[:, None, :]
    mean = projectors.mean(0)
    if torch.linalg.eigvalsh(mean)[0] < _SMALLEST_SPREAD:
        raise InputError("a circle: the views all look in one direction, not at one object; choose a spiral, or give poses in a file")
    focus = torch.linalg.solve(mean, (projectors @ centers[:, :, None]).mean(0)[:, 0])
    in_front = ((focus - centers) * directions).sum(1) > 0
    if in_front.double().mean() <= 0.5:
        raise InputError(
            "a circle: the views look away from each other, not at one object; choose a path through views, or give poses in a file"
        )
    return focus


def _mean_direction(directions: Float64[Tensor, "n 3"]) -> Float64[Tensor, "3"] | None:
    mean = directions.mean(0)
    return None if mean.norm() < _SMALLEST_MEAN else normalize(mean, dim=0)


def _centers(cameras: Cameras) -> Float64[Tensor, "n 3"]:
    return replace(cameras, R=cameras.R.double(), T=cameras.T.double()).centers()


def _look_at(eyes: Float64[Tensor, "f 3"], target: Float64[Tensor, "3"], up: Float64[Tensor, "3"], intrinsics: Cameras) -> Cameras:
    """Cameras at ``eyes`` that look at ``target``, with the intrinsics of one camera. Raises InputError when one looks along ``up``."""
    forward = normalize(target - eyes, dim=1)
    left = torch.linalg.cross(up.expand_as(forward), forward)
    if left.norm(dim=1).min() < _SMALLEST_SINE:
        raise InputError("a camera of the path would look along the upward direction; choose another path, or give poses in a file")
    left = normalize(left, dim=1)
    return _at(torch.stack([left, torch.linalg.cross(forward, left), forward], 2), eyes, intrinsics)


def _at(R: Float64[Tensor, "f 3 3"], eyes: Float64[Tensor, "f 3"], intrinsics: Cameras) -> Cameras:
    """Cameras with rotations ``R`` and centres ``eyes``, with the intrinsics of the first of ``intrinsics``."""
    return _with_intrinsics(R, -(eyes[:, None] @ R)[:, 0], intrinsics)


def _with_intrinsics(R: Float64[Tensor, "f 3 3"], T: Float64[Tensor, "f 3"], intrinsics: Cameras) -> Cameras:
    focal, principal = (numbers[:1].repeat(len(R), 1) for numbers in (intrinsics.focal_length, intrinsics.principal_point))
    return Cameras(R.float().contiguous(), T.float(), focal, principal, intrinsics.image_size)


def _rotate_world(camera: Cameras, rotations: Float64[Tensor, "f 3 3"]) -> Cameras:
    """One camera moved by rotations of the world, which act on columns: its centre c becomes ``rotation @ c``."""
    return _with_intrinsics(rotations @ camera.R.double(), camera.T.double().repeat(len(rotations), 1), camera)


def _move_to(cameras: Cameras, centers: Float64[Tensor, "n 3"]) -> Cameras:
    """The same cameras with other centres."""
    return replace(cameras, T=-(centers[:, None] @ cameras.R.double())[:, 0].to(cameras.T.dtype))


@dataclass(frozen=True)
class TimedCamera:
    """A camera at a time of a video: ``share`` of the way from time step ``time_step`` to the next one; 0 at the last time step. Both are 0 in still scenes."""

    camera: Cameras
    time_step: int = 0
    share: float = 0.0


def at_time(camera: Cameras, time: float, time_steps: int) -> TimedCamera:
    """A camera at a time in time steps, such as 2.5 between two of them; times after the last time step are that one."""
    step = min(int(time), time_steps - 1)
    return TimedCamera(camera, step, 0.0 if step == time_steps - 1 else time - step)
