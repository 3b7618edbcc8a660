"""The server of the viewer: viser, restricted to pages of its own address, and a panel for every browser."""

import functools
import io
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import viser
import viser.infra._infra as viser_infra
from websockets.datastructures import Headers
from websockets.http11 import Response

from npbgpp.data import PoseTrack
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras
from npbgpp.viewer.access import free_port, is_local, refusal
from npbgpp.viewer.panel import Panel
from npbgpp.viewer.pictures import ViewedRun
from npbgpp.viewer.poses import ViewerFrame

# ----------------------------------------------------------------------
# viser's server, which answers pages of its own address only and publishes nothing


_FORBIDDEN = 403


def open_server(host: str, port: int, label: str) -> viser.ViserServer:
    """A server on a free port. ``label`` is the title of its page."""
    logging.getLogger("websockets").setLevel(logging.WARNING)
    with _guarded(is_local(host)), redirect_stdout(io.StringIO()):  # viser prints links of its own
        return _PrivateServer(host=host, port=port, label=label, verbose=False)


class _PrivateServer(viser.ViserServer):
    """viser's server, which browsers cannot ask to publish itself through a tunnel."""

    def request_share_url(self, verbose: bool = True) -> None:
        """Does nothing."""


@contextmanager
def _guarded(local: bool) -> Iterator[None]:
    """Servers that viser starts within refuse requests of other origins: viser has no setting for it, so its call of ``websockets`` is wrapped."""
    module = viser_infra.websockets.asyncio.server
    serve = module.serve

    @functools.wraps(serve)
    def guarded(*arguments: Any, process_request: Any = None, **options: Any) -> Any:
        def checked(connection: Any, request: Any) -> Any:
            reason = refusal(request.headers, local)
            if reason is not None:
                return Response(_FORBIDDEN, "Forbidden", Headers(), f"{reason}\n".encode())
            return process_request(connection, request)

        return serve(*arguments, process_request=checked, **options)

    module.serve = guarded  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        module.serve = serve  # type: ignore[misc]


# ----------------------------------------------------------------------
# The viewer


log = logging.getLogger("npbgpp.view")

_SAME_PLACE = 1e-3  # of the distance between cameras


@dataclass(frozen=True)
class ViewerOptions:
    """How a viewer starts.

    Attributes:
        viewport: (height, width) of the pictures; None: that of the window.
        start: one camera to begin at.
        start_view: index of the view that ``start`` is; None for other cameras.
        mode: what is shown first.
        track: a path to replay.
        overrides: words for the config of the runs, for the commands that the panel shows.
    """

    start: Cameras
    start_view: int | None = None
    viewport: tuple[int, int] | None = None
    mode: str = "picture"
    track: PoseTrack | None = None
    overrides: tuple[str, ...] = ()


class ViewerServer:
    """Serves a scene until it is stopped.

    Args:
        runs: of one scene; the first is shown first.
        frame: coordinates of the viewer.
        options: how it starts.
        host: address to bind to.
        port: the first one to try.
        controls: adds to the panel of a browser, for runs that train.

    Raises:
        InputError: an address that cannot be used.
    """

    def __init__(
        self,
        runs: Sequence[ViewedRun],
        frame: ViewerFrame,
        options: ViewerOptions,
        host: str = "127.0.0.1",
        port: int = 8080,
        controls: Callable[[Any], None] | None = None,
    ) -> None:
        self.runs, self.frame, self.options, self.host = tuple(runs), frame, options, host
        self.panels: dict[int, Panel] = {}
        self._controls = controls
        self._lock = threading.Lock()
        found = free_port(host, port)
        if found != port:
            log.warning("port %d is taken; the viewer uses %d", port, found)
        self._server = open_server(host, found, f"npbgpp: {runs[0].scene.name}")
        self.port = self._server.get_port()
        self._server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._server.gui.main_panel.dock_right()
        self._server.scene.set_up_direction(frame.up)
        pose = frame.pose(options.start, 4 / 3)
        camera = self._server.initial_camera
        camera.position, camera.look_at, camera.up, camera.fov = pose.position, frame.pivot(pose), frame.up_of(pose), pose.fov
        self._server.on_client_connect(self._join)
        self._server.on_client_disconnect(self._leave)

    @property
    def link(self) -> str:
        """Address of the page."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "localhost") else self.host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/?fixedDpr=1"

    def stop(self) -> None:
        """Ends the server and the threads of its panels."""
        with self._lock:
            panels, self.panels = list(self.panels.values()), {}
        for panel in panels:
            panel.close()
        self._server.stop()

    def refresh(self) -> None:
        """Renders again what every browser shows: the weights have changed."""
        with self._lock:
            panels = list(self.panels.values())
        for panel in panels:
            panel.refresh()

    def _join(self, client: viser.ClientHandle) -> None:
        panel = Panel(
            client, self.runs, self.frame, self.options.start, self.options.start_view, self.options.viewport, self.options.overrides
        )
        if self._controls is not None:
            self._controls(client)
        with self._lock:
            self.panels[client.client_id] = panel
        panel.build(self.options.mode, self.options.track)
        if client.client_id not in self._server.get_clients():  # it left meanwhile
            self._leave(client)

    def _leave(self, client: viser.ClientHandle) -> None:
        with self._lock:
            panel = self.panels.pop(client.client_id, None)
        if panel is not None:
            panel.close()


def check_one_scene(runs: Sequence[ViewedRun]) -> None:
    """Raises InputError for runs of different scenes, which no camera can compare."""
    first = runs[0]
    centres = {view.name: view.camera.centers()[0] for view in first.scene.views}
    spread = max(float((centre - next(iter(centres.values()))).norm()) for centre in centres.values()) or 1.0
    for run in runs[1:]:
        shared = [view for view in run.scene.views if view.name in centres]
        apart = max((float((view.camera.centers()[0] - centres[view.name]).norm()) for view in shared), default=float("inf"))
        if apart > _SAME_PLACE * spread:
            raise InputError(
                f"runs: expected runs of one scene, got {first.label} of {first.scene.name} and {run.label} of {run.scene.name}, whose cameras differ; view them "
                "one at a time"
            )
