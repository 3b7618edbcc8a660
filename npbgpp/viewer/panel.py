"""What one browser sees: the picture behind viser's 3D nodes, and the panel beside it."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import viser
from jaxtyping import Float
from torch import Tensor

from npbgpp.data import PoseTrack
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, TimedCamera, at_time, fit_to_size
from npbgpp.io import to_pil, write_png
from npbgpp.viewer.keyframes import save_track
from npbgpp.viewer.pacing import Job, RenderThread, ResolutionControl, SpeedMeter
from npbgpp.viewer.path_panel import PathPanel
from npbgpp.viewer.pictures import (
    BACKGROUNDS,
    PICTURE,
    Look,
    Picture,
    ViewedRun,
    error_colours,
    fitted_photo,
    nearest_view,
    photo_of,
    swiped,
    thumbnail,
)
from npbgpp.viewer.poses import Pose, ViewerFrame, Window, top_of_cloud
from npbgpp.viewer.scene_nodes import box_edges, cloud_arguments, frustums, scene_box

log = logging.getLogger("npbgpp.view")

LARGEST_CLOUD = 200_000  # points that are sent to a browser
_NOTHING = 160.0  # viewer units, for pixels without depth: within what viser's depths can say
_LAYOUTS = ("one", "side by side", "swipe", "difference")
_PHOTO_MODES = ("rendering", "photo", "error map", "flip")
_FLIP_S = 1.0
_QUALITY = {False: 50, True: 92}  # of the JPEG, by whether the picture is in full resolution
_SAME = 1e-4
_NEAR_FRUSTUM = 0.25  # viewer units
_STATUS_S = 0.2  # between two updates of the figures


@dataclass(frozen=True)
class Request:
    """A picture that a browser wants.

    Attributes:
        pose: of the window.
        window: (height, width) in pixels.
        look: how it is drawn.
        layout: one of ``_LAYOUTS``; others than the first show runs ``one`` and ``other``.
        one, other: indices of runs.
        share: place of the line of a swipe.
        time: in time steps.
        view: index of the view whose camera this is, None for others.
        photo: one of ``_PHOTO_MODES``.
    """

    pose: Pose
    window: tuple[int, int]
    look: Look
    layout: str
    one: int
    other: int
    share: float
    time: float
    view: int | None
    photo: str


class Panel:
    """The panel of one browser; ``build`` must follow.

    Args:
        client: the browser.
        runs: of one scene.
        frame: coordinates of the viewer.
        start: camera to begin at.
        start_view: its index, if it is a view.
        viewport: (height, width) of the pictures; None: that of the window.
        overrides: words for the config of the runs.
    """

    def __init__(
        self,
        client: viser.ClientHandle,
        runs: Sequence[ViewedRun],
        frame: ViewerFrame,
        start: Cameras,
        start_view: int | None,
        viewport: tuple[int, int] | None,
        overrides: Sequence[str],
    ) -> None:
        self.client, self.runs, self.frame, self.viewport, self.overrides = client, runs, frame, viewport, tuple(overrides)
        self.control, self._meter = ResolutionControl(), SpeedMeter()
        self._start, self._at = start, (start_view, start)  # the view that the camera stands at, and its camera
        self.last: tuple[Request, Picture, Window] | None = None  # what is shown
        self.rendered = 0
        self._told_at = 0.0
        self._closed, self._built = threading.Event(), False
        self.nodes: set[str] = set()
        self.frustums: dict[str, tuple[Any, Any]] = {}  # positions and handles of the cameras in the scene
        self._flipped = False
        self._override: Callable[[], TimedCamera | None] = lambda: None
        self._thread: RenderThread[Request] = RenderThread(self._render, self._failed, f"viewer {client.client_id}")

    # ------------------------------------------------------------------ panel
    def build(self, mode: str, track: PoseTrack | None) -> None:
        """Makes the panel and begins to render."""
        gui: Any = self.client.gui  # viser's values have other types for reading and writing, which mypy does not know
        run = self.runs[0]
        moving = max(candidate.time_steps for candidate in self.runs) > 1
        self._status = gui.add_markdown("")
        tabs = gui.add_tab_group()
        with tabs.add_tab("View"):
            modes = tuple(dict.fromkeys(name for candidate in self.runs for name in candidate.modes))
            self._mode = gui.add_dropdown("mode", modes, initial_value=mode if mode in modes else PICTURE)
            self._background = gui.add_dropdown("background", tuple(BACKGROUNDS), visible=any(r.has_opacity for r in self.runs))
            parts = run.system.scene_parts
            self._part = gui.add_dropdown("part", parts, visible=len(parts) > 1)
            self._history = gui.add_checkbox("history", False, visible=run.system.supports_history, hint="filter over time against flicker")
            self._time = gui.add_slider("time", 0.0, float(max(run.time_steps - 1, 1)), 0.1, 0.0, visible=moving)
            self._play = gui.add_checkbox("play", False, visible=moving)
            with gui.add_folder("Resolution"):
                self._fps = gui.add_slider("moving, frames/s", 1, 60, 1, self.control.target_fps)
                self._largest = gui.add_slider("full, longer side", 64, 2048, 16, 1024, hint="pixels, at most those of the window")
            with gui.add_folder("Camera"):
                self._add_camera_buttons()
            with gui.add_folder("In the scene"):
                self._cloud = gui.add_checkbox("point cloud", False)
                self._frustums = gui.add_checkbox("cameras", False, hint="a click goes there")
            with gui.add_folder("Crop box", expand_by_default=False):
                self._add_crop_controls()
        with tabs.add_tab("Photos"):
            self._add_photo_controls()
        self._layout: Any = None
        if len(self.runs) > 1:
            with tabs.add_tab("Compare"):
                labels = tuple(f"{k + 1}: {candidate.label}" for k, candidate in enumerate(self.runs))
                self._layout = gui.add_dropdown("layout", _LAYOUTS, initial_value="side by side")
                self._one = gui.add_dropdown("left, or one", labels)
                self._other = gui.add_dropdown("right", labels, initial_value=labels[1])
                self._share = gui.add_slider("swipe", 0.0, 1.0, 0.01, 0.5)
                for handle in (self._layout, self._one, self._other, self._share):
                    handle.on_update(lambda _: self.refresh())
        with tabs.add_tab("Path"):
            self.paths = PathPanel(self, track)
        for handle in (self._mode, self._background, self._part, self._history, self._time, self._largest):
            handle.on_update(lambda _: self.refresh())
        self._fps.on_update(lambda _: setattr(self.control, "target_fps", float(self._fps.value)))
        self._play.on_update(lambda _: self.start_clock(self._play, self._advance_time))
        self._cloud.on_update(lambda _: self._show_cloud())
        self._frustums.on_update(lambda _: self._show_frustums())
        self.client.scene.on_click(modifier="shift")(self._turn_around)
        self.client.camera.on_update(self._moved)
        self._built = True
        self.go_to(self._start, self._at[0])

    def _add_camera_buttons(self) -> None:
        gui: Any = self.client.gui
        self._fov = gui.add_slider("field of view", 5, 150, 0.5, 60)
        self._fov.on_update(self._change_fov)
        for label, action in (
            ("start", lambda: self.go_to(self._start)),
            ("top of the cloud", self._go_to_top),
            ("up = this view's up", lambda: self._set_up(-self._pose().rotation()[:, 1])),
            ("up of the scene", lambda: self._set_up(np.asarray(self.frame.up))),
        ):
            gui.add_button(label).on_click(self.guarded(action))
        self._roll = gui.add_checkbox("trackball", False, hint="turns over the poles, with free roll")
        self._fly = gui.add_checkbox("turn in place", False, hint="dragging looks around, as when flying")
        self._fly.on_update(lambda _: self._set_pivot())
        gui.add_markdown("WASD, QE and arrows fly; shift and click on a point turns around it.")
        gui.add_button("screenshot", hint="PNG in full resolution, and its pose").on_click(self.guarded(self._screenshot))

    def _add_crop_controls(self) -> None:
        gui: Any = self.client.gui
        self._crop = gui.add_checkbox("show", False)
        low, high = scene_box(self.runs[0].scene)
        self._low = gui.add_vector3("low", low, step=0.01)
        self._high = gui.add_vector3("high", high, step=0.01)
        self._crop_words = gui.add_markdown("")
        for handle in (self._crop, self._low, self._high):
            handle.on_update(lambda _: self._show_crop())

    def _show_crop(self) -> None:
        """The box in the scene, and the command that exports what it holds."""
        self.client.scene.remove_by_name("/crop")
        self.nodes.discard("crop")
        if self._crop.value:
            ends = np.array([self._low.value, self._high.value])
            offset = np.asarray(self.runs[0].scene.offset or (0.0, 0.0, 0.0))
            edges = box_edges(ends - offset) * self.frame.scale
            self.client.scene.add_line_segments("/crop", edges, (240, 60, 160), thickness=2.0, thickness_units="screen")
            self.nodes.add("crop")
            words = " ".join(f"{axis}_range=[{low:g},{high:g}]" for axis, low, high in zip("xyz", *ends.tolist(), strict=True))
            self._crop_words.content = f"```\nnpbgpp export splats {self.runs[0].folder} {words}\n```\nor `export cloud`, `export mesh`"
        self.refresh()

    def _add_photo_controls(self) -> None:
        gui: Any = self.client.gui
        scene = self.runs[0].scene
        self._names = {f"{split}: {scene.views[i].name}": i for split, views in scene.splits.items() for i in views}
        self._view = gui.add_dropdown("view", tuple(self._names))
        step = gui.add_button_group("go", ("previous", "this", "next"))

        def move() -> None:
            names = list(self._names)
            place = names.index(self._view.value) + {"previous": -1, "this": 0, "next": 1}[step.value]
            self._view.value = names[place % len(names)]
            self.go_to_view(self._names[self._view.value])

        step.on_click(self.guarded(move))
        self._photo = gui.add_dropdown("at views", _PHOTO_MODES, hint="where the camera stands at a view")
        self._photo.on_update(lambda _: self._start_flip())
        self._nearest = gui.add_checkbox("nearest training photo", False)
        self._nearest.on_update(lambda _: self.refresh())
        self._nearest_image: Any = None
        self._nearest_name = gui.add_markdown("")

    # -------------------------------------------------------------- rendering
    def _pose(self) -> Pose:
        camera = self.client.camera
        w, x, y, z = camera.wxyz.tolist()
        px, py, pz = camera.position.tolist()
        return Pose((w, x, y, z), (px, py, pz), camera.fov, camera.aspect)

    def _request(self) -> Request:
        pose, camera = self._pose(), self.client.camera
        one = other = 0
        if self._layout is not None:
            one, other = (int(handle.value.partition(":")[0]) - 1 for handle in (self._one, self._other))
        layout = "one" if self._layout is None else self._layout.value
        look = Look(self._mode.value, self._part.value, self._history.value, self._background.value)
        size = (camera.image_height, camera.image_width)
        view = self._at[0] if self._stands_at_view(pose, size) else None
        return Request(
            pose, size, look, layout, one, other, self._share.value if layout == "swipe" else 0.5, self._time.value, view, self._photo.value
        )

    def _window(self, size: tuple[int, int]) -> Window:
        """Place of the picture in full resolution."""
        share = min(1.0, self._largest.value / max(size))
        window = (max(16, round(size[0] * share)), max(16, round(size[1] * share)))
        return Window.fit(window, self.viewport)

    def _stands_at_view(self, pose: Pose, size: tuple[int, int]) -> bool:
        window = self._window(size)
        there = window.window_pose(self.frame.pose(self._at[1], window.picture[1] / window.picture[0]))
        turned = float(np.abs(there.rotation() - pose.rotation()).max())
        apart = float(np.abs(np.subtract(there.position, pose.position)).max())
        return turned < 10 * _SAME and apart < 10 * _SAME and abs(there.fov - pose.fov) < 10 * _SAME

    async def _moved(self, _: Any) -> None:
        if self._roll.value and not self._fly.value:
            self.client.camera.up_direction = -self._pose().rotation()[:, 1]
        self.refresh(moving=True)

    def refresh(self, moving: bool = False) -> None:
        """Asks for a new picture."""
        if self._built and not self._closed.is_set():
            self.hide_near_frustums()
            self._thread.ask(self._request(), moving)

    def close(self) -> None:
        """Ends the threads of the panel."""
        self._closed.set()
        self._thread.stop()

    def _failed(self, error: Exception) -> None:
        if self._closed.is_set():
            return
        if not isinstance(error, InputError):
            log.error("a picture failed: %s", error, exc_info=error)
        self.say("This view cannot be rendered", str(error))

    def say(self, title: str, text: str) -> None:
        """A message in the browser."""
        self.client.add_notification(title, text, auto_close_seconds=8.0)

    def guarded(self, action: Callable[[], object]) -> Callable[[Any], None]:
        """A callback that shows user errors in the browser."""

        def run(_: Any) -> None:
            try:
                action()
            except InputError as error:
                self.say("That did not work", str(error))

        return run

    def _render(self, job: Job[Request], stop: Callable[[], bool]) -> bool | None:
        start, request = time.perf_counter(), job.view
        window = self._window(request.window)
        full_pixels = window.picture[0] * window.picture[1]
        share = 1.0 if job.full else self.control.moving_share(full_pixels)
        full = job.full or share > 0.9
        placed = window if full else window.scaled(share)
        picture, remark = self._draw(request, placed, stop)
        if picture is None:
            return None
        self._show(picture, placed, full)
        seconds = time.perf_counter() - start
        self.control.measured(placed.picture[0] * placed.picture[1], seconds)
        self.last = request, picture, placed
        self.rendered += 1
        speed, now = self._meter.shown(seconds, time.monotonic()), time.monotonic()
        if full or now - self._told_at > _STATUS_S:
            self._told_at = now
            height, width = placed.picture
            self._status.content = f"**{width} x {height}** pixels, **{speed.milliseconds:.0f}** ms, **{speed.fps:.1f}** frames/s{remark}"
        if full:
            self._show_nearest(request, placed)
        return full

    def _draw(self, request: Request, window: Window, stop: Callable[[], bool]) -> tuple[Picture | None, str]:
        """(the picture, a remark for the panel); None if ``stop`` said so."""
        if request.layout == "one":
            return self._draw_one(self.runs[request.one], request, window, stop)
        if request.layout == "side by side":
            height, width = window.picture
            half = replace(window, size=(height, width // 2), top=0, left=0, picture=(height, width // 2))
            remarks, sides = [], []
            for index in (request.one, request.other):
                picture, remark = self._draw_one(self.runs[index], replace(request, view=None), half, stop)
                if picture is None:
                    return None, ""
                sides.append(picture)
                remarks.append(f"{self.runs[index].label}{remark}")
            rgb = torch.cat([side.rgb for side in sides], 2)
            rgb = torch.nn.functional.pad(rgb, (0, width - rgb.shape[2], 0, 0))
            return Picture(rgb, None, sum(side.seconds for side in sides)), f"<br>left {remarks[0]}, right {remarks[1]}"
        left, _ = self._draw_one(self.runs[request.one], request, window, stop)
        right, _ = (None, "") if left is None else self._draw_one(self.runs[request.other], request, window, stop)
        if left is None or right is None:
            return None, ""
        seconds = left.seconds + right.seconds
        if request.layout == "swipe":
            return Picture(swiped(left.rgb, right.rgb, request.share), left.depth, seconds), ""
        colours, psnr = error_colours(left.rgb, right.rgb)
        return Picture(colours, left.depth, seconds), f"<br>difference: {psnr:.2f} dB"

    def camera_of(self, request: Request, window: Window) -> Cameras:
        """The camera of a picture."""
        if request.view is not None:
            return fit_to_size(self.runs[0].scene.views[request.view].camera, window.picture)
        return self.frame.camera(window.pose(request.pose), window.picture)

    def _draw_one(self, run: ViewedRun, request: Request, window: Window, stop: Callable[[], bool]) -> tuple[Picture | None, str]:
        camera = self.camera_of(request, window)
        look = request.look if request.look.mode in run.modes else replace(request.look, mode=PICTURE)
        look = replace(look, part=look.part if look.part in run.system.scene_parts else "full")
        timed = at_time(camera, request.time, run.time_steps) if run.time_steps > 1 else TimedCamera(camera)
        picture = run.draw(timed, look, stop)
        if picture is None or request.photo == "rendering":
            return picture, ""
        if request.view is None:
            return picture, "<br>go to a view to compare with its photo"
        photo = fitted_photo(photo_of(run.scene.views[request.view]), window.picture)
        colours, psnr = error_colours(picture.rgb, photo)
        remark = f"<br>{run.scene.views[request.view].name}: {psnr:.2f} dB"
        if request.photo == "error map":
            return replace(picture, rgb=colours), remark
        return replace(picture, rgb=photo) if request.photo == "photo" or self._flipped else picture, remark

    def _show(self, picture: Picture, window: Window, full: bool) -> None:
        rgb = window.place(picture.rgb)
        pixels = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        depth = None
        if self.nodes and picture.depth is not None:
            scaled = picture.depth.nan_to_num(posinf=0.0) * self.frame.scale
            near = torch.where(scaled > 0, scaled, _NOTHING)[None]
            depth = window.place(near, _NOTHING)[0].clamp(max=_NOTHING).numpy()
        self.client.scene.set_background_image(pixels, format="jpeg", jpeg_quality=_QUALITY[full], depth=depth)
        self.client.flush()

    # ------------------------------------------------------------- navigation
    def go(self, pose: Pose) -> None:
        """Moves the camera of the browser."""
        with self.client.atomic():
            camera = self.client.camera
            camera.up_direction = self.frame.up_of(pose)
            camera.position = pose.position
            camera.look_at = self.frame.pivot(pose)
            camera.fov = pose.fov
        self._fov.value = round(float(np.rad2deg(pose.fov)), 1)
        self._set_pivot()

    def pose_of(self, camera: Cameras) -> Pose:
        """The pose of the window that shows what a camera shows."""
        handle = self.client.camera
        window = self._window((handle.image_height, handle.image_width))
        return window.window_pose(self.frame.pose(camera, window.picture[1] / window.picture[0]))

    def go_to(self, camera: Cameras, view: int | None = None) -> None:
        """Moves the camera of the browser to one camera; ``view``: its index, if it is a view."""
        self._at = (view, camera)
        self.go(self.pose_of(camera))
        self.refresh()

    def go_to_view(self, index: int) -> None:
        """Moves the camera to a view."""
        self.go_to(self.runs[0].scene.views[index].camera, index)

    def _go_to_top(self) -> None:
        self.go_to(top_of_cloud(self.cloud(), self._start), None)

    def cloud(self) -> Float[Tensor, "n 3"]:
        """The points of the scene. Raises InputError for a scene without."""
        scene = self.runs[0].scene
        if not scene.cloud.path.is_file():
            raise InputError(f"scene {scene.name}: expected a point cloud at {scene.cloud.path}, there is none")
        return scene.cloud.read().xyz

    def _set_up(self, up: Any) -> None:
        x, y, z = np.asarray(up, dtype=np.float64).tolist()
        self.frame = replace(self.frame, up=(x, y, z))
        self.client.camera.up_direction = (x, y, z)

    def _set_pivot(self) -> None:
        pose = self._pose()
        position, forward = np.asarray(pose.position), pose.rotation()[:, 2]
        self.client.camera.look_at = position + 0.05 * forward if self._fly.value else np.asarray(self.frame.pivot(pose))

    def _change_fov(self, event: Any) -> None:
        if event.client is not None:  # not set by this program
            self.client.camera.fov = float(np.deg2rad(self._fov.value))
            self.refresh(moving=True)

    def _turn_around(self, event: Any) -> None:
        """Turns around the point of the surface that was clicked."""
        if self.last is None:
            return
        request, picture, window = self.last
        x, y = event.screen_pos
        row, column = int(y * window.size[0]) - window.top, int(x * window.size[1]) - window.left
        if picture.depth is None or not (0 <= row < window.picture[0] and 0 <= column < window.picture[1]):
            return
        depth = float(picture.depth[row, column])
        if depth <= 0:
            self.say("Nothing there", "This pixel shows no surface to turn around.")
            return
        origins, directions = self.camera_of(request, window).rays_through(torch.tensor([[[column + 0.5, row + 0.5]]]))
        forward = torch.from_numpy(request.pose.rotation()[:, 2]).float()
        point = origins[0, 0] + directions[0, 0] * (depth / float(directions[0, 0] @ forward))
        self._fly.value = False
        self.client.camera.look_at = (point * self.frame.scale).double().numpy()

    # ------------------------------------------------------- nodes and photos
    def _show_cloud(self) -> None:
        if not self._cloud.value:
            self.client.scene.remove_by_name("/cloud")
            self.nodes.discard("cloud")
            self.refresh()
            return
        arguments = cloud_arguments(self.runs[0], self.frame, LARGEST_CLOUD)
        if arguments is None:
            self._cloud.value = False
            self.say("No cloud", f"There is no file {self.runs[0].scene.cloud.path}.")
            return
        self.client.scene.add_point_cloud("/cloud", **arguments)
        self.nodes.add("cloud")
        self.refresh()

    def _show_frustums(self) -> None:
        if not self._frustums.value:
            self.forget_frustums("/cameras")
            self.nodes.discard("cameras")
            self.refresh()
            return
        self.nodes.add("cameras")
        handles = []
        for node in frustums(self.runs[0], self.frame):
            handle = self.client.scene.add_camera_frustum(f"/cameras/{node.index}", **node.arguments)
            handle.on_click(partial(self._clicked, node.index))
            self.frustums[f"/cameras/{node.index}"] = (node.arguments["position"], handle)
            handles.append((node.index, handle))
        threading.Thread(target=self._load_thumbnails, args=(handles,), name="thumbnails", daemon=True).start()
        self.refresh()

    def _clicked(self, index: int, _: Any) -> None:
        self.go_to_view(index)

    def forget_frustums(self, prefix: str) -> None:
        """Removes the frustums below a node, and the node."""
        self.client.scene.remove_by_name(prefix)
        self.frustums = {name: found for name, found in self.frustums.items() if not name.startswith(f"{prefix}/")}

    def hide_near_frustums(self) -> None:
        """Hides frustums that the camera stands in: they would frame the picture, or cover it."""
        position = np.asarray(self._pose().position)
        for there, handle in list(self.frustums.values()):
            visible = bool(np.linalg.norm(position - there) > _NEAR_FRUSTUM)
            if handle.visible != visible:
                handle.visible = visible

    def _load_thumbnails(self, handles: Sequence[tuple[int, Any]]) -> None:
        for index, handle in handles:
            if self._closed.is_set() or not self._frustums.value:
                return
            try:
                handle.image = thumbnail(self.runs[0].scene.views[index])
            except InputError as error:
                self.say("A photo is missing", str(error))
                return
            except RuntimeError:  # the cameras were hidden meanwhile
                return

    def _show_nearest(self, request: Request, window: Window) -> None:
        """The nearest training photo in the panel, if it is wanted."""
        if not self._nearest.value:
            return
        run = self.runs[0]
        index = nearest_view(run.scene, self.camera_of(request, window), run.scene.splits["train"])
        name = run.scene.views[index].name
        if self._nearest_name.content == name:
            return
        pixels = np.asarray(to_pil(photo_of(run.scene.views[index])))
        self._nearest_name.content = name
        if self._nearest_image is None:
            self._nearest_image = self.client.gui.add_image(pixels, format="jpeg")
        else:
            self._nearest_image.image = pixels

    # ----------------------------------------------------------------- clocks
    def start_clock(self, switch: Any, tick: Callable[[float], None]) -> None:
        """Calls ``tick`` with the passed seconds, about 20 times per second, while a checkbox is set."""
        if not switch.value:
            return

        def run() -> None:
            last = time.monotonic()
            while switch.value and not self._closed.wait(0.05):
                now = time.monotonic()
                tick(now - last)
                last = now

        threading.Thread(target=run, name="clock", daemon=True).start()

    def _advance_time(self, seconds: float) -> None:
        steps = self.runs[0].time_steps
        self.set_time((self._time.value + 5.0 * seconds) % max(steps - 1, 1))
        self.refresh(moving=True)

    def set_time(self, value: float) -> None:
        """Sets the time, in time steps."""
        self._time.value = round(value, 2)

    @property
    def time(self) -> float:
        """The time that is shown, in time steps."""
        return float(self._time.value)

    @property
    def look(self) -> Look:
        """How the panel says that runs are drawn."""
        return self._request().look

    def _start_flip(self) -> None:
        self.refresh()
        if self._photo.value != "flip":
            return

        def run() -> None:
            while self._photo.value == "flip" and not self._closed.wait(_FLIP_S):
                self._flipped = not self._flipped
                self.refresh()
            self._flipped = False

        threading.Thread(target=run, name="flip", daemon=True).start()

    # ------------------------------------------------------------------- files
    def current_camera(self) -> Cameras:
        """The camera of the picture in full resolution."""
        request = self._request()
        return self.camera_of(request, self._window(request.window))

    def _screenshot(self) -> None:
        """Writes ``screenshots/<number>.png`` and ``.json`` below the run, and sends both to the browser."""
        request = replace(self._request(), layout="one", photo="rendering")
        window = self._window(request.window)
        picture, _ = self._draw_one(self.runs[request.one], request, window, lambda: False)
        assert picture is not None
        run = self.runs[request.one]
        folder = run.folder / "screenshots"
        number = next(k for k in range(10**6) if not (folder / f"{k:04}.png").exists())
        write_png(folder / f"{number:04}.png", picture.rgb)
        track = PoseTrack((self.camera_of(request, window),), (request.time,) if run.time_steps > 1 else None)
        save_track(folder / f"{number:04}.json", track, run.scene)
        for suffix in ("png", "json"):
            self.client.send_file_download(f"{run.scene.name}_{number:04}.{suffix}", (folder / f"{number:04}.{suffix}").read_bytes())
        self.say("Screenshot", f"{folder / f'{number:04}.png'}, with its pose beside it")
