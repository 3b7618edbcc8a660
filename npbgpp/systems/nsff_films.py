"""Films of moving scenes: which camera looks when, by the names that nsff_pl gave its paths.

* ``spiral``: the way of the video with small turns around it, six frames for each of the video, time going on.
* ``spiral<X>``: around the camera of frame X at its moment, 60 frames: time stands still.
* ``fixview<X>_interp<Y>``: the camera of frame X, all moments with Y new pictures between each two; Y = 0 has the moments alone.
"""

import re
from collections.abc import Sequence

from npbgpp.data.scene import Scene
from npbgpp.errors import InputError
from npbgpp.geometry.camera_paths import fit
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.video_paths import loop_about, spiral_along
from npbgpp.systems.nsff_views import TimedCamera

_FRAMES_PER_MOMENT = 6
_LOOP = 60
_STANDING = re.compile(r"spiral([0-9]+)")
_FIXED = re.compile(r"fixview([0-9]+)_interp([0-9]+)")


def is_video_path(path: str) -> bool:
    """Whether a path is one for moving scenes only: ``spiral`` is not, because still scenes have one, too."""
    return bool(_STANDING.fullmatch(path) or _FIXED.fullmatch(path))


def has_times_between(path: str) -> bool:
    """Whether a path looks between the moments of a video."""
    found = _FIXED.fullmatch(path)
    return found is not None and int(found[2]) > 0


def timed_path(path: str, scene: Scene, count: int | None, image_size: tuple[int, int] | None) -> list[TimedCamera]:
    """The cameras of one of the paths above.

    Args:
        path: its name.
        scene: a video.
        count: frames of ``spiral`` and ``spiral<X>`` in place of their own number.
        image_size: (height, width) of the pictures, which then show at least what they would without it.

    Raises:
        InputError: a frame that the video does not have.
    """
    cameras = Cameras.cat([view.camera for view in scene.frames])
    cameras = cameras if image_size is None else fit(cameras, image_size)
    moments = len(cameras)
    if path == "spiral":
        total = count or _FRAMES_PER_MOMENT * moments
        along = spiral_along(cameras, total)
        return [TimedCamera(along[k], k * moments // total) for k in range(total)]
    standing, fixed = _STANDING.fullmatch(path), _FIXED.fullmatch(path)
    frame = int((standing or fixed or "")[1])
    if frame >= moments:
        raise InputError(f"path={path}: expected a frame from 0 to {moments - 1} of scene {scene.name}, got {frame}")
    if standing:
        around = loop_about(cameras, frame, count or _LOOP)
        return [TimedCamera(around[k], frame) for k in range(len(around))]
    assert fixed is not None
    steps, camera = int(fixed[2]) + 1, cameras[frame]
    between = [TimedCamera(camera, moment, k / steps) for moment in range(moments - 1) for k in range(steps)]
    return [*between, TimedCamera(camera, moments - 1)]


def spread_over_time(cameras: Sequence[Cameras], moments: int) -> list[TimedCamera]:
    """Cameras of any path, while time goes on evenly from the first moment to the last."""
    return [TimedCamera(camera, k * moments // len(cameras)) for k, camera in enumerate(cameras)]
