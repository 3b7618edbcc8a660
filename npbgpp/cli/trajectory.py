"""Frames of the camera paths of ``npbgpp.cli.settings.PathSettings`` through a scene."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from npbgpp.cli.settings import ONE_CAMERA_PATHS, SAMPLED_PATHS, SPLITS, PathSettings, VideoPath
from npbgpp.data import LARGEST_SIDE, Scene, read_poses, read_track
from npbgpp.errors import InputError
from npbgpp.geometry import (
    Cameras,
    TimedCamera,
    at_time,
    average_pose,
    fit_to_size,
    interpolate_path,
    linear_path,
    loop_path,
    orbit_path,
    random_rotation_path,
    spiral_along_path,
    spiral_path,
    turntable_path,
)

_FRAMES = 120
_NEAREST_TO_FOCUS = 3.5 * 0.75  # NeRF's code looks at depth 3.5 where the nearest depth is 1 / 0.75


@dataclass(frozen=True)
class Frame:
    """One frame of a trajectory: its camera and time, and its caption on the contact sheet."""

    timed: TimedCamera
    label: str

    @property
    def camera(self) -> Cameras:
        """The camera."""
        return self.timed.camera


def trajectory_frames(settings: PathSettings, scene: Scene) -> list[Frame]:
    """The frames of a path. Raises InputError for views that are not there, and where a path cannot be made."""
    _check_size(settings.size)
    if VideoPath.parse(settings.path) is not None:
        raise InputError(
            f"path={settings.path}: expected a path through a scene at rest, since this one is made of time steps; choose a run of a method for moving scenes"
        )
    chosen = _chosen_views(settings, scene)
    cameras = [scene.views[i].camera for i in chosen]
    if settings.path in SAMPLED_PATHS:
        size = settings.size or cameras[0].image_size
        together, count = Cameras.cat([fit_to_size(camera, size) for camera in cameras]), settings.frames or _FRAMES
        if settings.path == "interpolate":
            path = interpolate_path(together, count, settings.loop)
        elif settings.path == "circle":
            path = orbit_path(together, count)
        else:
            path = spiral_path(together, _focus_depth(scene, together), count)
        return [Frame(TimedCamera(path[k]), str(k)) for k in range(count)]
    if settings.path in ONE_CAMERA_PATHS:
        base = cameras[0] if settings.poses is None else read_poses(settings.poses, cameras[0], scene.offset)[0]
        path = _moved(settings, base if settings.size is None else fit_to_size(base, settings.size))
        return [Frame(TimedCamera(path[k]), str(k)) for k in range(len(path))]
    if settings.poses is not None:
        cameras = list(read_poses(settings.poses, cameras[0], scene.offset))
        labels = [str(k) for k in range(len(cameras))]
    else:
        labels = [scene.views[i].name for i in chosen]
    if settings.size is not None:
        cameras = [fit_to_size(camera, settings.size) for camera in cameras]
    return [Frame(TimedCamera(camera), label) for camera, label in zip(cameras, labels, strict=True)]


def _check_size(size: tuple[int, int] | None) -> None:
    if size is not None and not all(1 <= side <= LARGEST_SIDE for side in size):
        raise InputError(f"size: expected [height, width] in pixels, at most {LARGEST_SIDE}, got {list(size)}")


def _moved(settings: PathSettings, base: Cameras) -> Cameras:
    """A path that moves one camera."""
    count = settings.frames or ONE_CAMERA_PATHS[settings.path]
    if settings.path == "turn":
        return turntable_path(base, count)
    if settings.path == "straight":
        return linear_path(base, (1.0, 0.0, 0.0), *settings.reach, count)
    return random_rotation_path(base, count, settings.seed)


def moving_frames(settings: PathSettings, scene: Scene) -> list[Frame]:
    """The frames of a path through a moving scene: views at their time steps, cameras of a file at its times, others at evenly spaced times.

    Raises:
        InputError: as ``trajectory_frames``.
    """
    _check_size(settings.size)
    if VideoPath.parse(settings.path) is not None or (settings.path == "spiral" and settings.views is None):
        timed = timed_path(settings.path, scene, settings.frames, settings.size)
        return [Frame(t, f"{t.time_step}+{t.share:.2f}" if t.share else str(t.time_step)) for t in timed]
    frames = trajectory_frames(settings, scene)
    if settings.poses is not None and settings.path == "file":
        times = read_track(settings.poses, scene.views[0].camera, scene.offset).times
        if times is not None:
            return [Frame(at_time(frame.camera, time, len(scene.frames)), frame.label) for frame, time in zip(frames, times, strict=True)]
    if settings.path in SPLITS:
        time_steps = {view.name: view.time_step for view in scene.views if view.time_step is not None}
        return [Frame(TimedCamera(f.camera, time_steps[f.label]), f.label) for f in frames]
    timed = spread_over_time([frame.camera for frame in frames], len(scene.frames))
    return [Frame(t, frame.label) for frame, t in zip(frames, timed, strict=True)]


def _chosen_views(settings: PathSettings, scene: Scene) -> tuple[int, ...]:
    stage = settings.path if settings.path in SPLITS else "test" if settings.path == "interpolate" else "train"
    split = scene.splits[stage]  # type: ignore[index]
    if settings.views is not None:
        names = {view.name: k for k, view in enumerate(scene.views)}
        index = {str(k): k for k in range(len(scene.views))} | names
        unknown = [str(view) for view in settings.views if str(view) not in index]
        if unknown:
            some = ", ".join(list(names)[:5])
            raise InputError(f"views: scene {scene.name} has no {', '.join(unknown[:5])}; its {len(names)} views are {some} and so on")
        chosen = tuple(index[str(view)] for view in settings.views)
        others = [scene.views[i].name for i in chosen if i not in split]
        if settings.path in SPLITS and others:
            raise InputError(f"views: {', '.join(others[:5])} of scene {scene.name} are no {stage} views; choose others, or another path")
        return chosen
    if not split:
        raise InputError(f"path={settings.path}: scene {scene.name} has no {stage} views; choose another path, or views=[...]")
    return split


def _focus_depth(scene: Scene, cameras: Cameras) -> float:
    """What a spiral looks at: the median depth of the points amid the views; without points NeRF's multiple of the nearest depth, the median of those that
    the layout states, as a single stray point decides the smallest one."""
    nearest = [view.bounds[0] for view in scene.views if view.bounds is not None and view.bounds[0] > 0]
    if nearest and not scene.cloud.path.is_file():
        return _NEAREST_TO_FOCUS * float(np.median(nearest))
    uv_px, depth = average_pose(cameras).project(scene.cloud.read().xyz)
    height, width = cameras.image_size
    inside = (depth[0] > 0) & (uv_px[0] >= 0).all(1) & (uv_px[0] < uv_px.new_tensor([width, height])).all(1)
    if not inside.any():
        raise InputError(f"path=spiral: no point of scene {scene.name} lies before the mean of the views; choose another path")
    return float(depth[0, inside].median())


# Trajectories of videos, by the names that nsff_pl gives them:
# * ``spiral``: the path of the camera with small turns around it, six frames for each time step.
# * ``spiral<X>``: around the camera of frame X at its time step, 60 frames.
# * ``fixview<X>_interp<Y>``: the camera of frame X at all time steps, with Y frames in between.

_FRAMES_PER_MOMENT = 6
_LOOP = 60


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
    cameras = cameras if image_size is None else fit_to_size(cameras, image_size)
    time_steps = len(cameras)
    if path == "spiral":
        total = count or _FRAMES_PER_MOMENT * time_steps
        along = spiral_along_path(cameras, total)
        return [TimedCamera(along[k], k * time_steps // total) for k in range(total)]
    video = VideoPath.parse(path)
    assert video is not None
    frame = video.frame
    if frame >= time_steps:
        raise InputError(f"path={path}: expected a frame from 0 to {time_steps - 1} of scene {scene.name}, got {frame}")
    if video.between is None:
        around = loop_path(cameras, frame, count or _LOOP)
        return [TimedCamera(around[k], frame) for k in range(len(around))]
    steps, camera = video.between + 1, cameras[frame]
    between = [TimedCamera(camera, time_step, k / steps) for time_step in range(time_steps - 1) for k in range(steps)]
    return [*between, TimedCamera(camera, time_steps - 1)]


def spread_over_time(cameras: Sequence[Cameras], time_steps: int) -> list[TimedCamera]:
    """Cameras of any path, while time goes on evenly from the first time step to the last."""
    return [TimedCamera(camera, k * time_steps // len(cameras)) for k, camera in enumerate(cameras)]
