"""Speed of the viewer without a browser: a client that moves its camera 30 times per second, as a browser on another machine does.

    python benchmarks/viewer.py <run> ...

Prints, for each run, milliseconds per picture by resolution, pictures per second that the client receives while it moves, their size, and the seconds until a
picture in full resolution after it rests.
"""

import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from npbgpp.cli.settings import SceneSettings
from npbgpp.cli.view import viewed_run
from npbgpp.geometry import TimedCamera, fit_to_size
from npbgpp.viewer.pictures import Look, ViewedRun
from npbgpp.viewer.poses import Pose, ViewerFrame, frame_of
from npbgpp.viewer.server import ViewerOptions, ViewerServer

_SIDES = (128, 256, 512)
_SIZE = 512
_MOVING_S, _RATE = 6.0, 30.0


def camera_message(pose: Pose, frame: ViewerFrame) -> bytes:
    message: dict[str, Any] = {"type": "ViewerCameraMessage", "wxyz": pose.wxyz, "position": pose.position, "fov": pose.fov}
    message |= {"near": 0.01, "far": 1000.0, "image_height": _SIZE, "image_width": _SIZE, "look_at": frame.pivot(pose)}
    return msgspec.msgpack.encode(message | {"up_direction": frame.up})


def measure(run: ViewedRun) -> None:
    views = [run.scene.views[i].camera for i in run.scene.splits["train"]]
    for side in _SIDES:
        timed = TimedCamera(fit_to_size(views[0], (side, side)))
        seconds = [picture.seconds for picture in (run.draw(timed, Look()) for _ in range(4)) if picture is not None]
        print(f"{run.label}: {side}x{side}: {1000 * min(seconds[1:]):.0f} ms")
    server = ViewerServer([run], frame_of(run.scene), ViewerOptions(views[0], run.scene.splits["train"][0]), port=18600)
    try:
        with connect(f"ws://127.0.0.1:{server.port}", subprotocols=["viser-v1.1.1"], max_size=None) as socket:  # type: ignore[list-item]
            socket.send(camera_message(server.frame.pose(views[0], 1.0), server.frame))
            start = time.monotonic()
            while not any(panel.last for panel in server.panels.values()):
                drain(socket, 0.02)
            print(f"{run.label}: first picture after {time.monotonic() - start:.2f} s")
            (panel,) = server.panels.values()
            while time.monotonic() - start < 2.0:
                drain(socket, 0.05)
            before, start, sizes = panel.rendered, time.monotonic(), []
            while (passed := time.monotonic() - start) < _MOVING_S:
                turned = server.frame.pose(views[int(passed * 5) % len(views)], 1.0)
                x, y, z = turned.position
                moved = Pose(turned.wxyz, (x + 0.1 * math.sin(9 * passed), y, z), turned.fov, 1.0)
                socket.send(camera_message(moved, server.frame))
                drain(socket, 1 / _RATE)
                sizes.append(panel.last[2].picture if panel.last else (0, 0))
            count, end = panel.rendered - before, time.monotonic()
            while panel.last is None or panel.last[2].picture != (_SIZE, _SIZE) or panel.last[0].pose.position != moved.position:
                drain(socket, 0.01)
                if time.monotonic() - end > 60:
                    raise TimeoutError("no picture in full resolution")
            side = statistics.median(size[0] for size in sizes[len(sizes) // 2 :])
            print(
                f"{run.label}: {count / _MOVING_S:.1f} pictures/s of {side:g} pixels while moving, full after {time.monotonic() - end:.2f} s"
            )
    finally:
        server.stop()


def drain(socket: Any, seconds: float) -> None:
    """Reads what comes within some time."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            socket.recv(timeout=left)
        except TimeoutError:
            return
        except ConnectionClosed as error:
            raise SystemExit(f"the viewer closed the connection: {error}") from error


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        measure(viewed_run(SceneSettings(run=Path(folder)), []))
