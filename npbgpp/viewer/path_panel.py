"""The tab of camera paths: keyframes, replay, files, and films rendered beside the viewer."""

import logging
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import viser

from npbgpp.data import PoseTrack
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, TimedCamera
from npbgpp.io import open_video
from npbgpp.viewer.keyframes import Keyframe, keyframes_of, load_track, path_file, save_track, saved_paths, timed_cameras, track_of
from npbgpp.viewer.pictures import PICTURE, Look, ViewedRun
from npbgpp.viewer.poses import Pose, ViewerFrame

# ----------------------------------------------------------------------
# Films, frame by frame, and the command that renders the same


log = logging.getLogger("npbgpp.view")

_BREATH_S = 0.002  # between two frames: a lock is not fair, and pictures of the viewer come first


@dataclass(frozen=True)
class Progress:
    """State of a film.

    Attributes:
        done: frames.
        count: frames in all.
        file: the finished film; None before its end.
        error: why it ended; None while nothing failed.
    """

    done: int
    count: int
    file: Path | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will follow."""
        return self.file is not None or self.error is not None


class FilmThread:
    """Renders a film in the background; the viewer renders between its frames.

    Args:
        run: what is rendered.
        frames: of one size.
        look: how.
        file: ends in .mp4 or .gif.
        fps: frames per second.
        report: called in this thread after every frame and at the end.
    """

    def __init__(
        self, run: ViewedRun, frames: Sequence[TimedCamera], look: Look, file: Path, fps: float, report: Callable[[Progress], None]
    ) -> None:
        self._run, self._frames, self._look, self._file, self._fps, self._report = run, frames, look, file, fps, report
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._render, name="film", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ends the film after its current frame; nothing is left of it."""
        self._cancelled.set()

    def join(self, timeout: float | None = None) -> None:
        """Waits for the end."""
        self._thread.join(timeout)

    def _render(self) -> None:
        count, done = len(self._frames), 0
        try:
            with open_video(self._file, self._fps) as film:
                for timed in self._frames:
                    if self._cancelled.is_set():
                        raise InputError("cancelled")
                    picture = self._run.draw(timed, self._look)
                    assert picture is not None
                    film.append(picture.rgb)
                    done += 1
                    self._report(Progress(done, count))
                    time.sleep(_BREATH_S)
        except Exception as error:  # is shown in the panel: the viewer goes on
            log.warning("film %s: %s", self._file, error)
            self._report(Progress(done, count, error=str(error)))
            return
        log.info("film of %d frames: %s", count, self._file)
        self._report(Progress(done, count, file=self._file))


def render_command(run: ViewedRun, poses: Path, out: Path, fps: float, look: Look, overrides: Sequence[str]) -> str:
    """The command line that renders the same film; depth films are its ``depth.mp4``."""
    words = ["npbgpp", "render", str(run.folder), "path=file", f"poses={poses}", f"scene={run.scene.name}", f"out={out}", f"fps={fps:g}"]
    words += [f"part={look.part}"] if look.part != "full" else []
    words += ["history=true"] if look.history else []
    words += ["depth=[picture]"] if look.mode != PICTURE else []
    return shlex.join([*words, *overrides])


# ----------------------------------------------------------------------
# Tab


_LARGEST_UPLOAD = 1 << 26  # bytes of a path file


class PanelOfRuns(Protocol):
    """What the tab needs of the panel; see ``npbgpp.viewer.panel.Panel``."""

    client: viser.ClientHandle
    runs: Sequence[ViewedRun]
    frame: ViewerFrame
    nodes: set[str]
    frustums: dict[str, tuple[Any, Any]]
    overrides: tuple[str, ...]

    @property
    def time(self) -> float: ...

    @property
    def look(self) -> Look: ...

    def set_time(self, value: float) -> None: ...

    def go(self, pose: Pose) -> None: ...

    def go_to(self, camera: Cameras) -> None: ...

    def pose_of(self, camera: Cameras) -> Pose: ...

    def current_camera(self) -> Cameras: ...

    def refresh(self, moving: bool = False) -> None: ...

    def forget_frustums(self, prefix: str) -> None: ...

    def say(self, title: str, text: str) -> None: ...

    def guarded(self, action: Callable[[], object]) -> Callable[[Any], None]: ...

    def start_clock(self, switch: Any, tick: Callable[[float], None]) -> None: ...


class PathPanel:
    """Keyframes and the path through them, or a path from a file.

    Args:
        panel: the panel that it is part of; its tab is open.
        track: to replay at the start.
    """

    def __init__(self, panel: PanelOfRuns, track: PoseTrack | None) -> None:
        self.panel, self.keys = panel, [] if track is None else keyframes_of(track)[0]
        self._replayed = track if track is not None and not self.keys else None
        self._film: FilmThread | None = None
        gui: Any = panel.client.gui  # viser's values have other types for reading and writing, which mypy does not know
        guarded = panel.guarded
        moving = panel.runs[0].time_steps > 1
        gui.add_button("add keyframe").on_click(guarded(self._add))
        self._chosen = gui.add_dropdown("keyframe", ("none",))
        edit = gui.add_button_group("edit", ("go", "set", "remove", "earlier", "later"))
        edit.on_click(guarded(lambda: self._edit(edit.value)))
        self._fov = gui.add_number("field of view", 60.0, min=1.0, max=170.0, step=0.5, hint="degrees, of the chosen keyframe")
        self._fov.on_update(self._change_fov)
        self._time = gui.add_number("time step", 0.0, min=0.0, step=0.1, visible=moving)
        self._time.on_update(self._change_time)
        self._between = gui.add_number("frames between", 30, min=1, max=10_000, step=1)
        self._loop = gui.add_checkbox("loop", False)
        self._fps = gui.add_number("frames/s", 30, min=1, max=240, step=1)
        self._scrub = gui.add_slider("frame", 0, 1, 1, 0)
        self._playing = gui.add_checkbox("play", False)
        with gui.add_folder("File"):
            self._name = gui.add_text("name", "path")
            gui.add_button("save").on_click(guarded(self._save))
            self._saved = gui.add_dropdown("saved", tuple(saved_paths(panel.runs[0].folder)) or ("none",))
            gui.add_button("load").on_click(guarded(lambda: self._load(path_file(panel.runs[0].folder, self._saved.value))))
            self._upload = gui.add_upload_button("load a file ...", mime_type=".json,.txt,.inf")
            self._upload.on_upload(guarded(self._load_upload))
        with gui.add_folder("Film"):
            self._start = gui.add_button("render")
            self._start.on_click(guarded(self.render))
            self._cancel = gui.add_button("cancel", visible=False)
            self._cancel.on_click(lambda _: self._film.cancel() if self._film is not None else None)
            self._progress = gui.add_progress_bar(0.0, visible=False)
            self._state = gui.add_markdown("")
        self._between.on_update(lambda _: self._changed())
        self._loop.on_update(lambda _: self._changed())
        self._chosen.on_update(lambda _: self._show_chosen())
        self._scrub.on_update(self._scrubbed)
        self._playing.on_update(lambda _: panel.start_clock(self._playing, self._advance))
        self._place = 0.0
        if track is not None and self.keys:
            self._take(track)
        self._changed()

    # -------------------------------------------------------------- keyframes
    def track(self) -> PoseTrack:
        """The path. Raises InputError for fewer than two keyframes."""
        if self._replayed is not None:
            return self._replayed
        return track_of(self.keys, int(self._between.value), self._loop.value, self.panel.runs[0].time_steps > 1)

    def _index(self) -> int:
        if self._chosen.value == "none":
            raise InputError("keyframe: expected one, there is none; add some")
        return int(self._chosen.value) - 1

    def _add(self) -> None:
        self._replayed = None
        place = len(self.keys) if self._chosen.value == "none" else self._index() + 1
        self.keys.insert(place, Keyframe(self.panel.current_camera(), self.panel.time))
        self._changed(place)

    def _edit(self, action: str) -> None:
        k = self._index()
        if action == "go":
            self.panel.set_time(self.keys[k].time)
            self.panel.go_to(self.keys[k].camera)
            return
        if action == "set":
            self.keys[k] = Keyframe(self.panel.current_camera(), self.panel.time)
        elif action == "remove":
            del self.keys[k]
            k = min(k, len(self.keys) - 1)
        else:
            other = min(max(k + (1 if action == "later" else -1), 0), len(self.keys) - 1)
            self.keys[k], self.keys[other] = self.keys[other], self.keys[k]
            k = other
        self._changed(k)

    def _change_fov(self, event: Any) -> None:
        if event.client is not None and self.keys:
            k = self._index()
            self.keys[k] = self.keys[k].with_fov(float(np.tan(np.deg2rad(self._fov.value) / 2)))
            self._changed(k)

    def _change_time(self, event: Any) -> None:
        if event.client is not None and self.keys:
            k = self._index()
            self.keys[k] = Keyframe(self.keys[k].camera, float(self._time.value))
            self._changed(k)

    def _show_chosen(self) -> None:
        if self.keys and self._chosen.value != "none":
            key = self.keys[self._index()]
            tangent = key.camera.image_size[0] / 2 / key.camera.focal_length[0, 1].item()
            self._fov.value, self._time.value = round(float(np.rad2deg(2 * np.arctan(tangent))), 1), key.time

    def _changed(self, chosen: int | None = None) -> None:
        """Shows the keyframes and the path in the scene."""
        self._chosen.options = tuple(str(k + 1) for k in range(len(self.keys))) or ("none",)
        if chosen is not None and self.keys:
            self._chosen.value = str(chosen + 1)
        self._show_chosen()
        scene, frame = self.panel.client.scene, self.panel.frame
        self.panel.forget_frustums("/path")
        self.panel.nodes.discard("path")
        if self._replayed is None and len(self.keys) < 2:
            self._scrub.max = 1
            return
        track = self.track()
        self._scrub.max = max(len(track.cameras) - 1, 1)
        points = np.array([frame.pose(camera, 1.0).position for camera in track.cameras])
        if len(points) > 1:
            scene.add_line_segments(
                "/path/line", np.stack([points[:-1], points[1:]], 1), (240, 120, 20), thickness=2.0, thickness_units="screen"
            )
        for k, key in enumerate(self.keys):
            pose = frame.pose(key.camera, key.camera.image_size[1] / key.camera.image_size[0])
            handle = scene.add_camera_frustum(
                f"/path/{k}", pose.fov, pose.aspect, scale=0.1, color=(240, 120, 20), wxyz=pose.wxyz, position=pose.position
            )
            self.panel.frustums[f"/path/{k}"] = (pose.position, handle)
        self.panel.nodes.add("path")
        self.panel.refresh()

    # ----------------------------------------------------------------- replay
    def _scrubbed(self, event: Any) -> None:
        if event.client is not None:
            self._place = float(self._scrub.value)
            self._show_frame()

    def _advance(self, seconds: float) -> None:
        try:
            count = len(self.track().cameras)
        except InputError as error:
            self._playing.value = False
            self.panel.say("Nothing to play", str(error))
            return
        self._place = (self._place + seconds * float(self._fps.value)) % count
        self._scrub.value = int(self._place)
        self._show_frame()

    def _show_frame(self) -> None:
        if self._replayed is None and len(self.keys) < 2:
            return
        track = self.track()
        k = min(int(self._place), len(track.cameras) - 1)
        if track.times is not None:
            self.panel.set_time(track.times[k])
        self.panel.go(self.panel.pose_of(track.cameras[k]))
        self.panel.refresh(moving=True)

    # ------------------------------------------------------------------ files
    def _save(self) -> Path:
        run = self.panel.runs[0]
        file = path_file(run.folder, self._name.value)
        save_track(file, self.track(), run.scene)
        self._saved.options = tuple(saved_paths(run.folder))
        self._saved.value = file.stem
        self.panel.client.send_file_download(file.name, file.read_bytes())
        self._state.content = f"saved: `{file}`"
        return file

    def _load(self, file: Path) -> None:
        self._take(load_track(file, self.panel.runs[0].scene))
        self._changed(0)

    def _take(self, track: PoseTrack) -> None:
        self.keys, between, loop = keyframes_of(track)
        self._replayed = None if len(self.keys) > 1 else track
        self._place = 0.0
        if len(self.keys) > 1:
            self._between.value, self._loop.value = between, loop
        else:
            self.keys = []

    def _load_upload(self) -> None:
        upload = self._upload.value
        if len(upload.content) > _LARGEST_UPLOAD:
            raise InputError(f"{upload.name}: expected a path file of at most {_LARGEST_UPLOAD >> 20} MiB")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"upload{Path(upload.name).suffix[:8]}"
            file.write_bytes(upload.content)
            self._load(file)

    # ------------------------------------------------------------------- film
    def render(self) -> None:
        """Renders the path to ``<run>/films/<name>/film.mp4`` in the background. Raises InputError while another film is rendered."""
        if self._film is not None:
            raise InputError("render: expected one film at a time; cancel the other one, or wait for it")
        poses, run = self._save(), self.panel.runs[0]
        out, look, fps = run.folder / "films" / poses.stem, self.panel.look, float(self._fps.value)
        frames = timed_cameras(self.track(), run.time_steps)
        self._progress.visible = self._cancel.visible = True
        command = render_command(run, poses, out, fps, look, self.panel.overrides)
        self._state.content = f"```\n{command}\n```\nrenders the same from a terminal."
        self._film = FilmThread(run, frames, look, out / "film.mp4", fps, self._report)

    def _report(self, progress: Progress) -> None:
        self._progress.value = 100 * progress.done / progress.count
        if progress.ended:
            self._film = None
            self._progress.visible = self._cancel.visible = False
            outcome = f"film: `{progress.file}`" if progress.file is not None else f"no film: {progress.error}"
            self._state.content = f"{self._state.content}\n\n{outcome}"
