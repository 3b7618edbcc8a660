"""Camera paths made in the viewer: keyframes, the frames between them, and their files, which ``npbgpp render path=file`` takes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from npbgpp.data import PoseTrack, Scene, read_track, write_track
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, TimedCamera, at_time, fit_to_size, interpolate_path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Keyframe:
    """One camera of a path, and its time in time steps of a moving scene (0 in others)."""

    camera: Cameras
    time: float = 0.0

    def with_fov(self, tangent: float) -> "Keyframe":
        """The keyframe with another field of view: the tangent of half the vertical one."""
        height = self.camera.image_size[0]
        factor = height / 2 / tangent / self.camera.focal_length[0, 1].item()
        return replace(self, camera=self.camera.zoom(factor))


def track_of(keyframes: Sequence[Keyframe], between: int, loop: bool, timed: bool) -> PoseTrack:
    """Frames from keyframe to keyframe.

    Args:
        keyframes: at least two, of any image sizes; the frames have that of the first.
        between: frames from one keyframe to the next, at least 1.
        loop: return to the first keyframe, which is not repeated at the end.
        timed: the scene moves.

    Raises:
        InputError: fewer than two keyframes.
    """
    if len(keyframes) < 2:
        raise InputError(f"keyframes: expected at least two for a path, got {len(keyframes)}; add some")
    size = keyframes[0].camera.image_size
    cameras = Cameras.cat([fit_to_size(key.camera, size) for key in keyframes])
    segments = len(keyframes) if loop else len(keyframes) - 1
    count = segments * between + (0 if loop else 1)
    path = interpolate_path(cameras, count, loop)
    times = [key.time for key in keyframes] + [keyframes[0].time]
    along = np.interp(np.arange(count) / between, np.arange(len(times)), times)
    marked = tuple(k * between for k in range(len(keyframes)))
    return PoseTrack(tuple(path[k] for k in range(count)), tuple(along.tolist()) if timed else None, marked)


def keyframes_of(track: PoseTrack) -> tuple[list[Keyframe], int, bool]:
    """(keyframes, frames between two of them, whether it is a loop) of a track with marked keyframes."""
    times = track.times or (0.0,) * len(track.cameras)
    keys = [Keyframe(track.cameras[k], times[k]) for k in track.keyframes]
    between = max(1, track.keyframes[1] - track.keyframes[0]) if len(keys) > 1 else 1
    return keys, between, bool(keys) and track.keyframes[-1] < len(track.cameras) - 1


def timed_cameras(track: PoseTrack, time_steps: int) -> list[TimedCamera]:
    """The frames of a track; without times those of a moving scene go evenly from its first time step to its last."""
    if track.times is not None:
        return [at_time(camera, time, time_steps) for camera, time in zip(track.cameras, track.times, strict=True)]
    return [TimedCamera(camera, k * time_steps // len(track.cameras)) for k, camera in enumerate(track.cameras)]


def path_file(run: Path, name: str) -> Path:
    """The file of a path below a run. Raises InputError for a name that is no plain file name."""
    if _NAME.fullmatch(name) is None:
        raise InputError(f"name: expected letters, digits, - and _, at most 64, got {name!r}")
    return run / "paths" / f"{name}.json"


def saved_paths(run: Path) -> list[str]:
    """Names of the paths that were saved below a run."""
    return sorted(path.stem for path in (run / "paths").glob("*.json") if _NAME.fullmatch(path.stem))


def save_track(path: Path, track: PoseTrack, scene: Scene) -> None:
    """Writes a path in the coordinates of the scene's files. Raises InputError when the file cannot be written."""
    write_track(path, track, scene.offset)


def load_track(path: Path, scene: Scene) -> PoseTrack:
    """Reads a path: JSON, stacked matrices as in NPBG, or CamPose.inf. Raises InputError for a damaged file."""
    return read_track(path, scene.views[0].camera, scene.offset)
