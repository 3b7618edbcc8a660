"""Paths of cameras to make films with: through given views, around an object, or a spiral before a scene.

Paths are computed in double precision and given in single precision, as all cameras are. Symbols: n given cameras, f frames of a path. A focus is the point
that a scene is looked at.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.interpolate import CubicHermiteSpline
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor
from torch.nn.functional import normalize

from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras

_ON_A_KEY = 1e-9  # of the way from one view to the next
_SMALLEST_SPREAD = 1e-3  # mean squared sine of the angles between optical axes that still meet somewhere: 2 degrees
_SMALLEST_MEAN = 0.1  # length of a mean direction that still is one
_LEVEL = 10.0  # horizontal axes lie in a plane when they reach so many times farther in it (squared) than out of it
_SMALLEST_SINE = 1e-6  # of the angle between looking ahead and up
_TURNS = 2  # of a spiral
_SPREAD_QUANTILE = 0.9


def fit(cameras: Cameras, image_size: tuple[int, int]) -> Cameras:
    """Cameras on images of another size that show at least what the given ones do, undistorted: a size of another shape shows more on two sides."""
    height, width = image_size
    scale = min(height / cameras.image_size[0], width / cameras.image_size[1])
    old_middle = cameras.principal_point.new_tensor(cameras.image_size[::-1]) / 2
    middle = cameras.principal_point.new_tensor([width, height]) / 2
    principal_point = (cameras.principal_point - old_middle) * scale + middle
    return Cameras(cameras.R, cameras.T, cameras.focal_length * scale, principal_point, image_size)


def interpolate(cameras: Cameras, count: int, loop: bool = False) -> Cameras:
    """Cameras on the way through given ones: Catmull-Rom positions, shortest turns, linear intrinsics; every part takes equally many frames.

    Frames that fall on a given view are that view, bit by bit. So are the first and, without ``loop``, the last one.

    Args:
        cameras: n views, in order.
        count: f, at least 1.
        loop: come back to the first view, which is not repeated at the end.

    Raises:
        InputError: fewer than two views.
    """
    keys = len(cameras)
    if keys < 2:
        raise InputError(f"a path through views: expected at least two views, got {keys}; choose more, or another path")
    times = np.arange(count) * (keys / count) if loop else np.linspace(0, keys - 1, count)
    order = np.arange(-1, keys + 2) % keys if loop else np.arange(keys)  # a loop knows its neighbours on both sides
    stations = np.arange(len(order)) - float(loop)
    positions = _centers(cameras).numpy()[order]
    spline = CubicHermiteSpline(stations, positions, np.gradient(positions, axis=0))
    turns = Slerp(stations, Rotation.from_matrix(cameras.R.double().numpy()[order]))
    path = _placed(torch.from_numpy(turns(times).as_matrix()), torch.from_numpy(spline(times)), cameras)
    start = torch.from_numpy(np.floor(times)).long().clamp(max=keys - 1)
    share = (torch.from_numpy(times) - start)[:, None]

    def between(numbers: Float[Tensor, "n 2"]) -> Float[Tensor, "f 2"]:
        return torch.lerp(numbers[start].double(), numbers[(start + 1) % keys].double(), share).to(numbers.dtype)

    path = Cameras(path.R, path.T, between(cameras.focal_length), between(cameras.principal_point), cameras.image_size)
    nearest = np.rint(times)
    for frame in np.flatnonzero(np.abs(times - nearest) < _ON_A_KEY):
        key = int(nearest[frame]) % keys
        for mine, given in (
            (path.R, cameras.R),
            (path.T, cameras.T),
            (path.focal_length, cameras.focal_length),
            (path.principal_point, cameras.principal_point),
        ):
            mine[frame] = given[key]
    return path


def circle(
    centre: Float[Tensor, "3"],
    up: Float[Tensor, "3"],
    radius: float,
    height: float,
    count: int,
    look_at: Float[Tensor, "3"],
    like: Cameras,
) -> Cameras:
    """Cameras on a circle, once around, counterclockwise as seen from above.

    Args:
        centre: point below the middle of the circle, world coordinates.
        up: direction that shows upwards in the images, of any length; the axis of the circle.
        radius: of the circle, scene units.
        height: of the circle above ``centre`` along ``up``, scene units.
        count: f, at least 1.
        look_at: what all cameras look at: it lies at their principal points.
        like: one camera with the intrinsics and the image size.
    """
    axis = normalize(up.double(), dim=0)
    aside = torch.eye(3, dtype=torch.float64)[int(axis.abs().argmin())]
    first = normalize(torch.linalg.cross(axis, aside), dim=0)
    second = torch.linalg.cross(axis, first)
    angle = torch.arange(count, dtype=torch.float64)[:, None] * (2 * math.pi / count)
    eyes = centre.double() + height * axis + radius * (angle.cos() * first + angle.sin() * second)
    return _looking(eyes, look_at.double(), axis, like)


def orbit_of(cameras: Cameras, count: int) -> Cameras:
    """A circle around what cameras look at, at their median distance and elevation, with the intrinsics of the first one.

    Args:
        cameras: n views of one object.
        count: f, at least 1.

    Raises:
        InputError: optical axes that are about parallel or lead away from each other, or cameras without a common up.
    """
    focus = _focus(cameras)
    up = _common_up(cameras)
    offset = _centers(cameras) - focus
    distances = offset.norm(dim=1)
    distance = float(distances.quantile(0.5))
    elevation = float(torch.asin((offset @ up / distances).clamp(-1, 1)).quantile(0.5))
    return circle(focus, up, distance * math.cos(elevation), distance * math.sin(elevation), count, focus, cameras[0])


def average_pose(cameras: Cameras) -> Cameras:
    """One camera amid others: mean position, mean viewing direction, upright as their mean vertical axis; mean intrinsics.

    Source: local light field fusion (Mildenhall et al. 2019), as NeRF takes it up.

    Raises:
        InputError: views in all directions, which have no mean.
    """
    forward = _mean_direction(cameras.R[:, :, 2].double())
    up = _mean_direction(cameras.R[:, :, 1].double())
    if forward is None or up is None:
        raise InputError("the views look in all directions, which have no mean; choose a circle, or poses of your own")
    like = Cameras(
        cameras.R[:1],
        cameras.T[:1],
        cameras.focal_length.mean(0, keepdim=True),
        cameras.principal_point.mean(0, keepdim=True),
        cameras.image_size,
    )
    eye = _centers(cameras).mean(0, keepdim=True)
    return _looking(eye, eye[0] + forward, up, like)


def spiral(cameras: Cameras, focus: float, count: int) -> Cameras:
    """NeRF's path before a scene: two turns about the mean pose, all of them looking at one point before it.

    At t in [0, 4 pi) the camera is at (cos t, -sin t, -sin(t / 2)) times the 90th percentiles of how far the views lie aside, above and behind, in axes
    right, up, backward of the mean pose. Source: code of NeRF (Mildenhall et al. 2020).

    Args:
        cameras: n views that look in about one direction.
        focus: depth of the point before the mean pose, scene units.
        count: f, at least 1.

    Raises:
        InputError: see ``average_pose``.
    """
    middle = average_pose(cameras)
    R, centre = middle.R[0].double(), _centers(middle)
    radii = ((_centers(cameras) - centre) @ R).abs().quantile(_SPREAD_QUANTILE, dim=0)
    t = torch.arange(count, dtype=torch.float64) * (2 * math.pi * _TURNS / count)
    xyz_cam = torch.stack([-t.cos(), -t.sin(), (t / 2).sin()], 1) * radii  # our axes: left, up, forward
    return _looking(centre + xyz_cam @ R.T, centre[0] + focus * R[:, 2], R[:, 1], middle)


def _focus(cameras: Cameras) -> Float64[Tensor, "3"]:
    """The point nearest to all optical axes."""
    directions, centers = cameras.R[:, :, 2].double(), _centers(cameras)
    aside = torch.eye(3, dtype=torch.float64) - directions[:, :, None] * directions[:, None, :]
    mean = aside.mean(0)
    if torch.linalg.eigvalsh(mean)[0] < _SMALLEST_SPREAD:
        raise InputError("a circle: the views all look in one direction, not at one object; choose a spiral, or poses of your own")
    focus = torch.linalg.solve(mean, (aside @ centers[:, :, None]).mean(0)[:, 0])
    before = ((focus - centers) * directions).sum(1) > 0
    if before.double().mean() <= 0.5:
        raise InputError(
            "a circle: the views look away from each other, not at one object; choose a path through views, or poses of your own"
        )
    return focus


def _common_up(cameras: Cameras) -> Float64[Tensor, "3"]:
    """Where photographers hold their cameras level, up is across all horizontal axes, wherever the views lie; else it is the mean of the vertical axes."""
    left, mean = cameras.R[:, :, 0].double(), _mean_direction(cameras.R[:, :, 1].double())
    if mean is None:
        raise InputError("a circle: the views have no common upward direction; choose another path, or give poses of your own")
    spread, directions = torch.linalg.eigh(left.T @ left / len(left))
    if spread[1] < _LEVEL * spread[0] or spread[1] < _SMALLEST_SPREAD:
        return mean
    return directions[:, 0] * torch.sign(directions[:, 0] @ mean)


def _centers(cameras: Cameras) -> Float64[Tensor, "n 3"]:
    return Cameras(cameras.R.double(), cameras.T.double(), cameras.focal_length, cameras.principal_point, cameras.image_size).centers()


def _mean_direction(directions: Float64[Tensor, "n 3"]) -> Float64[Tensor, "3"] | None:
    mean = directions.mean(0)
    return None if mean.norm() < _SMALLEST_MEAN else normalize(mean, dim=0)


def _looking(eyes: Float64[Tensor, "f 3"], target: Float64[Tensor, "3"], up: Float64[Tensor, "3"], like: Cameras) -> Cameras:
    """Upright cameras at ``eyes`` that look at ``target``, with the intrinsics of one camera. Raises InputError when one looks along ``up``."""
    forward = normalize(target - eyes, dim=1)
    left = torch.linalg.cross(up.expand_as(forward), forward)
    if left.norm(dim=1).min() < _SMALLEST_SINE:
        raise InputError("a camera of the path would look along the upward direction; choose another path, or give poses of your own")
    left = normalize(left, dim=1)
    return _placed(torch.stack([left, torch.linalg.cross(forward, left), forward], 2), eyes, like)


def _placed(R: Float64[Tensor, "f 3 3"], eyes: Float64[Tensor, "f 3"], like: Cameras) -> Cameras:
    """Cameras of rotation ``R`` at ``eyes``, with the intrinsics of the first of ``like``."""
    T = -(eyes[:, None] @ R)[:, 0]
    count = len(eyes)
    return Cameras(R.float(), T.float(), like.focal_length[:1].repeat(count, 1), like.principal_point[:1].repeat(count, 1), like.image_size)


# ----------------------------------------------------------------------
# Paths that move one camera: about the world's z axis, straight on, or by random turns of the world (as NPCR makes them).


def turned(camera: Cameras, count: int) -> Cameras:
    """One camera once around the z axis of the world, counterclockwise as seen from above; the last frame is the first one again.

    Args:
        camera: one camera.
        count: frames, at least 2.

    Raises:
        InputError: fewer than two frames.
    """
    if count < 2:
        raise InputError(f"frames: a turn ends where it begins, so that it has at least 2, got {count}")
    angles = np.arange(count) * (2 * math.pi / (count - 1))
    path = _carried_around(camera, torch.from_numpy(Rotation.from_euler("z", angles[:, None]).as_matrix()))
    path.R[-1], path.T[-1] = path.R[0], path.T[0]
    return path


def shifted(camera: Cameras, along_world: tuple[float, float, float], start: float, stop: float, count: int) -> Cameras:
    """One camera moved without a turn, from ``start`` to ``stop`` times a direction of the world, in equal steps; scene units.

    Raises:
        InputError: fewer than two frames.
    """
    if count < 2:
        raise InputError(f"frames: a straight move has at least 2, got {count}")
    R = camera.R.double().expand(count, 3, 3)
    shift = torch.linspace(start, stop, count, dtype=torch.float64)[:, None] * torch.tensor(along_world, dtype=torch.float64)
    return _like(camera, R, camera.T.double() - (shift[:, None] @ R)[:, 0])


def tumbled(camera: Cameras, count: int, seed: int) -> Cameras:
    """One camera carried around the origin by rotations drawn evenly among all; the seed draws others.

    Raises:
        InputError: no frame.
    """
    if count < 1:
        raise InputError(f"frames: expected at least 1, got {count}")
    return _carried_around(camera, torch.from_numpy(Rotation.random(count, random_state=seed).as_matrix()))


def _carried_around(camera: Cameras, turns: Float64[Tensor, "f 3 3"]) -> Cameras:
    """The camera after turns of the world, which act on columns: a camera at c comes to ``turn @ c`` and looks along with it."""
    return _like(camera, turns @ camera.R.double(), camera.T.double().repeat(len(turns), 1))


def _like(camera: Cameras, R: Float64[Tensor, "f 3 3"], T: Float64[Tensor, "f 3"]) -> Cameras:
    count = len(R)
    focal, principal = camera.focal_length.repeat(count, 1), camera.principal_point.repeat(count, 1)
    return Cameras(R.float().contiguous(), T.float(), focal, principal, camera.image_size)


# ----------------------------------------------------------------------
# Paths of cameras through a video: along with its camera, or about one of its frames. As nsff_pl has them, with lengths in place of steps along x.


_SPIRAL_TURNS = 4  # of the spiral
_RADIUS_QUANTILE = 0.1  # of the way between two frames
_REACH = 0.2  # of the way from the first frame to the last


def spiral_along(cameras: Cameras, count: int) -> Cameras:
    """The way of the camera with four turns around it, which lie across the mean viewing direction; small ones: a tenth of the steps are shorter.

    Args:
        cameras: of n frames, in order, at least two.
        count: f, at least 1.
    """
    path = interpolate(cameras, count)
    radius = _centres(cameras).diff(dim=0).norm(dim=1).quantile(_RADIUS_QUANTILE)
    mean = average_pose(cameras).R[0].double()
    t = torch.arange(count, dtype=torch.float64) * (2 * math.pi * _SPIRAL_TURNS / count)
    # axes of cameras are left, up, forward
    offset = -radius * (t.cos()[:, None] * mean[:, 0] + t.sin()[:, None] * mean[:, 1])
    return _moved(path, _centres(path) + offset)


def loop_about(cameras: Cameras, index: int, count: int) -> Cameras:
    """Once around the camera of a frame, aside, up and down, forward and back, by up to a fifth of the way from the first frame to the last.

    Args:
        cameras: of n frames, in order.
        index: the frame.
        count: f, at least 1.
    """
    centres = _centres(cameras)
    reach = _REACH * (centres[-1] - centres[0]).norm()
    t = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    xyz_cam = reach * torch.stack([t.sin(), -t.cos() / 2, t.cos()], 1)
    still = cameras[[index] * count]
    return _moved(still, centres[index] + xyz_cam @ still.R[0].double().T)


def _centres(cameras: Cameras) -> Float64[Tensor, "n 3"]:
    return replace(cameras, R=cameras.R.double(), T=cameras.T.double()).centers()


def _moved(cameras: Cameras, centres: Float64[Tensor, "n 3"]) -> Cameras:
    """The same cameras elsewhere."""
    return replace(cameras, T=-(centres[:, None] @ cameras.R.double())[:, 0].to(cameras.T.dtype))
