"""The viewer in a real browser: headless Chromium, with WebGL in software."""

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image

import npbgpp
from npbgpp.cli.settings import SceneSettings
from npbgpp.geometry import fit_to_size

from ..conftest import TINY_GAUSSIANS, TINY_OVERRIDES
from ..helpers.programs import TRAIN_NET, Program
from ..run_folders import remember

pytest.importorskip("viser", reason="the extra viewer is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)

from npbgpp.viewer.poses import frame_of  # noqa: E402
from npbgpp.viewer.server import ViewerOptions, ViewerServer  # noqa: E402

pytestmark = pytest.mark.slow
_FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
_SHOTS = os.environ.get("NPBGPP_VIEWER_SHOTS")  # a folder: keeps the screenshots


def until(condition: Callable[[], object], seconds: float = 30.0, page=None) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the viewer did not get there"
        page.wait_for_timeout(50) if page is not None else time.sleep(0.05)


@pytest.fixture(scope="module")
def run(run_gaussians, tiny_root, tmp_path_factory) -> Path:
    launch = tmp_path_factory.mktemp("viewer")
    folder = run_gaussians(launch, "trainer.max_steps=3")
    remember(folder, launch, *TINY_GAUSSIANS, f"datasets.data_root={tiny_root}")
    return folder


@pytest.fixture(scope="module")
def second(run_in, tiny_root, tmp_path_factory) -> Path:
    launch = tmp_path_factory.mktemp("viewer2")
    folder = run_in(launch, "trainer.max_steps=2")
    remember(folder, launch, *TINY_OVERRIDES, f"datasets.data_root={tiny_root}")
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield browser.new_context()  # one for all pages, which share its cache
        browser.close()


def loaded(*folders: Path):
    from npbgpp.cli.view import viewed_run

    return [viewed_run(SceneSettings(run=folder), [], folder.parent.name) for folder in folders]


@contextmanager
def serving(*folders: Path, **options) -> Iterator[ViewerServer]:
    runs = loaded(*folders)
    view = runs[0].scene.splits["train"][0]
    server = ViewerServer(runs, frame_of(runs[0].scene), ViewerOptions(runs[0].scene.views[view].camera, view, **options), port=18080)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(run) -> Iterator[ViewerServer]:
    with serving(run) as server:
        yield server


def new_page(browser, width: int, height: int):
    page = browser.new_page()
    page.set_viewport_size({"width": width, "height": height})
    return page


def opened(browser, server):
    """A page, and the panel of the server that belongs to it."""
    known = set(server.panels)
    page = new_page(browser, 860, 480)
    page.goto(server.link)
    until(lambda: set(server.panels) - known, page=page)
    (number,) = set(server.panels) - known
    panel = server.panels[number]
    until(lambda: resting(panel), page=page)
    toast = page.get_by_text("Software WebGL rendering detected")
    if toast.count():
        page.locator("button.mantine-Notification-closeButton").first.click()
    return page, panel


def resting(panel) -> bool:
    """Whether a picture in full resolution of the present camera is shown."""
    return panel.last is not None and panel.last[2] == panel._window(panel.last[0].window) and panel.last[0].pose == panel._pose()


def shot(page, name: str) -> np.ndarray:
    page.wait_for_timeout(600)
    content = page.screenshot()
    if _SHOTS:
        Path(_SHOTS, f"{name}.png").write_bytes(content)
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(np.float32) / 255


def canvas(panel, picture: np.ndarray) -> np.ndarray:
    camera = panel.client.camera
    return picture[: camera.image_height, : camera.image_width]


def test_first_picture_is_that_of_the_python_interface(browser, server, run):
    start = time.monotonic()
    page, panel = opened(browser, server)
    print(f"first picture after {time.monotonic() - start:.1f} s")
    seen = canvas(panel, shot(page, "first"))
    trained = npbgpp.load_run(run)
    camera = trained.scene.views[trained.scene.splits["train"][0]].camera
    expected = trained.render(fit_to_size(camera, seen.shape[:2])).rgb[0].permute(1, 2, 0).numpy()
    assert np.abs(seen - expected).mean() < 0.01
    assert np.abs(expected - expected.mean((0, 1))).mean() > 0.02, "there is something to see"
    page.close()
    until(lambda: not server.panels)


def test_drag_and_keys_move_the_camera(browser, server):
    page, panel = opened(browser, server)
    before = panel._pose()
    page.mouse.move(200, 240)
    page.mouse.down()
    for k in range(15):
        page.mouse.move(200 + 8 * k, 240)
        page.wait_for_timeout(40)
    page.mouse.up()
    until(lambda: panel._pose() != before and resting(panel), page=page)
    turned = panel._pose()
    apart = [
        float(np.linalg.norm(np.subtract(pose.position, panel.frame.to_viewer(torch.tensor([panel.frame.middle]))[0])))
        for pose in (before, turned)
    ]
    assert apart[0] == pytest.approx(apart[1], rel=0.02), "dragging turns around the scene"
    assert np.linalg.norm(np.subtract(before.position, turned.position)) > 0.1
    page.keyboard.down("w")
    page.wait_for_timeout(400)
    page.keyboard.up("w")
    until(lambda: resting(panel), page=page)
    ahead = np.subtract(panel._pose().position, turned.position) @ turned.rotation()[:, 2]
    assert 0.2 < ahead < 6
    shot(page, "moved")
    page.close()


def test_turning_in_place_keeps_the_position(browser, server):
    page, panel = opened(browser, server)
    panel._fly.value = True
    panel._set_pivot()
    page.wait_for_timeout(300)
    before = panel._pose()
    page.mouse.move(200, 240)
    page.mouse.down()
    page.mouse.move(260, 240, steps=5)
    page.mouse.up()
    until(lambda: panel._pose().wxyz != before.wxyz and resting(panel), page=page)
    assert np.linalg.norm(np.subtract(before.position, panel._pose().position)) < 0.11, "twice the distance of the pivot"
    assert (panel._pose().rotation()[:, 2] @ before.rotation()[:, 2]) < 0.999
    page.close()


def test_a_point_that_is_clicked_becomes_the_pivot(browser, server):
    page, panel = opened(browser, server)
    height, width = panel.last[1].depth.shape
    row, column = (int(k) for k in (panel.last[1].depth > 0).nonzero()[len((panel.last[1].depth > 0).nonzero()) // 3])
    before = panel.client.camera.look_at.copy()
    page.keyboard.down("Shift")
    page.mouse.click(column * panel.client.camera.image_width / width, row * panel.client.camera.image_height / height)
    page.keyboard.up("Shift")
    until(lambda: np.abs(panel.client.camera.look_at - before).max() > 1e-3, page=page)
    distance = np.linalg.norm(panel.client.camera.look_at / panel.frame.scale)
    assert distance < 1.6, "on the ball of radius 1, as far as a few steps of training go"
    page.close()


def test_modes_change_the_picture(browser, server):
    page, panel = opened(browser, server)
    first = canvas(panel, shot(page, "picture"))
    for mode in ("depth", "normals", "opacity"):
        count = panel.rendered
        panel._mode.value = mode
        until(lambda count=count: panel.rendered > count, page=page)
        assert np.abs(canvas(panel, shot(page, mode)) - first).mean() > 0.02
    page.close()


def test_a_click_on_a_camera_goes_there(browser, server):
    page, panel = opened(browser, server)
    panel._frustums.value = True
    panel._show_frustums()
    panel._cloud.value = True
    panel._show_cloud()
    shot(page, "frustums")
    views, split = server.runs[0].scene.views, server.runs[0].scene.splits["train"]
    here = panel.camera_of(panel.last[0], panel.last[2])
    height, width = here.image_size
    for index in split:  # one that is in the picture, off the middle, so that no other is before it
        (uv,), (depth,) = here.project(views[index].camera.centers())
        (u, v), z = uv[0].tolist(), depth.item()
        if z > 0.5 and 20 < u < width - 20 and 20 < v < height - 20:
            break
    else:
        pytest.fail("no camera is in the picture")
    page.mouse.click(u, v)
    until(lambda: resting(panel) and panel.last[0].view is not None and panel.last[0].view != split[0], page=page)
    arrived = panel.last[0].view
    assert (views[arrived].camera.centers() - views[index].camera.centers()).norm() < 1.5, "that camera or one beside it"
    panel._frustums.value = panel._cloud.value = False
    panel._show_frustums()
    panel._show_cloud()
    panel._photo.value = "error map"
    panel.refresh()
    until(lambda: "dB" in panel._status.content, page=page)
    shot(page, "error")
    page.close()


def test_keyframes_become_a_file_and_a_film(browser, server, run, tmp_path):
    page, panel = opened(browser, server)
    for view in (0, 3, 6):
        panel.go_to_view(view)
        until(lambda: resting(panel), page=page)
        panel.paths._add()
    panel.paths._between.value = 3
    panel._largest.value = 96
    panel.paths.render()
    film = panel.paths._film
    shot(page, "path")
    film.join(60)
    from imageio_ffmpeg import count_frames_and_secs

    assert count_frames_and_secs(str(run / "films" / "path" / "film.mp4"))[0] == 7
    from npbgpp.cli.render import render_video
    from npbgpp.cli.settings import RenderSettings

    done = render_video(RenderSettings(run=run, path="file", poses=run / "paths" / "path.json", out=tmp_path / "film"), [])
    assert len(list(done.glob("0*.png"))) == 7
    keys = panel.paths.keys
    panel.paths._load(run / "paths" / "path.json")
    assert len(panel.paths.keys) == 3
    for one, other in zip(keys, panel.paths.keys, strict=True):
        torch.testing.assert_close(one.camera.R, other.camera.R, atol=1e-6, rtol=0)
    page.close()


def test_two_runs_side_by_side(browser, run, second):
    with serving(run, second) as server:
        page, panel = opened(browser, server)
        assert "left" in panel._status.content
        shot(page, "side_by_side")
        for layout in ("swipe", "difference"):
            count = panel.rendered
            panel._layout.value = layout
            until(lambda count=count: panel.rendered > count, page=page)
            shot(page, layout)
        page.close()


def test_clients_come_and_go(browser, server):
    pages = []
    for _ in range(10):
        page = new_page(browser, 200, 150)
        page.goto(server.link)
        pages.append(page)
    until(lambda: len(server.panels) == 10, 120, page=pages[-1])
    panels = list(server.panels.values())
    until(lambda: all(panel.last is not None for panel in panels), 120, page=pages[-1])
    for page in pages:
        page.close()
    until(lambda: not server.panels)
    for panel in panels:
        panel._thread.join(10)
        assert not panel._thread._thread.is_alive()
    page, panel = opened(browser, server)
    assert panel.last is not None
    page.close()


def test_the_trackball_turns_over_the_pole(browser, server):
    page, panel = opened(browser, server)
    panel._roll.value = True
    upright = []
    panel.client.camera.on_update(lambda _: upright.append(float(-panel._pose().rotation()[:, 1] @ np.asarray(panel.frame.up))))
    for _ in range(3):
        page.mouse.move(250, 240)
        page.mouse.down()
        for k in range(20):
            page.mouse.move(250, 240 + 10 * k)
            page.wait_for_timeout(30)
        page.mouse.up()
        page.wait_for_timeout(300)
        shot(page, "trackball")
        if min(upright) < -0.1:
            break
    assert min(upright) < -0.1, "beyond the pole the picture is upside down"
    page.close()


def test_a_training_is_paused_and_goes_on(browser, tiny_root, tmp_path):
    words = [*TINY_GAUSSIANS, f"datasets.data_root={tiny_root}", f"hydra.run.dir={tmp_path / 'run'}", "test_after_fit=false"]
    words += ["callbacks=viewer", "callbacks.fit.viewer.paused=true", "callbacks.fit.viewer.port=18400", "datasets.train_num_samples=200"]
    process = Program(TRAIN_NET, words, tmp_path, together=True)
    try:
        said = "the training in the browser: "
        while said not in process.stdout and process.poll() is None:
            time.sleep(0.1)
        link = process.stdout.partition(said)[2].split()[0]
        page = new_page(browser, 860, 480)
        page.goto(link)
        button = page.get_by_role("button", name="resume")
        button.wait_for(timeout=60_000)
        page.get_by_text("pixels").wait_for(timeout=60_000)
        shot(page, "training")
        assert process.poll() is None
        button.click()
        assert process.wait(120) == 0, process.stdout
        assert "pictures for browsers took" in process.stdout
        page.close()
    finally:
        process.kill()


def test_a_page_opens_from_disk(browser, run, tmp_path):
    from npbgpp.cli.export import page as export_page
    from npbgpp.cli.settings import PageExport

    out = tmp_path / "page.html"
    export_page(PageExport(run=run, out=out), [])
    page, requests = new_page(browser, 800, 900), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(out.as_uri())
    page.frame_locator("iframe").locator("canvas[data-engine]").wait_for(timeout=60_000)
    page.wait_for_timeout(3000)
    seen = shot(page, "page")
    assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in requests), "asks no server"
    below = seen[500:, 40:760]
    assert np.abs(below - below.mean((0, 1))).mean() > 0.01, "the scene is drawn"
    page.close()


def test_other_origins_are_refused(server):
    address = server.link.partition("?")[0]
    assert urlopen(address).status == 200
    for headers in ({"Origin": "http://elsewhere.example"}, {"Host": f"elsewhere.example:{server.port}"}):
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(address, headers=headers))
        assert refused.value.code == 403
    with pytest.raises(HTTPError) as missing:
        urlopen(f"{address}../../../../etc/passwd")
    assert missing.value.code == 404
    connections, exceptions = (pytest.importorskip(f"websockets.{name}") for name in ("sync.client", "exceptions"))
    with pytest.raises(exceptions.InvalidStatus):
        connections.connect(address.replace("http", "ws"), origin="http://elsewhere.example", subprotocols=["viser-v1.1.1"])


def test_a_taken_port_is_passed_over(server, caplog):
    runs = server.runs
    other = ViewerServer(runs, server.frame, server.options, port=server.port)
    try:
        assert other.port > server.port
        assert f"port {server.port} is taken" in caplog.text
    finally:
        other.stop()
