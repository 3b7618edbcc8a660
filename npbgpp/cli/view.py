"""``npbgpp view``: loads runs and serves them until Ctrl-C."""

import importlib.util
import logging
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from npbgpp.cli.settings import SceneSettings, ViewSettings
from npbgpp.data import Scene
from npbgpp.engine.run import build_run, evaluation_of, run_config, trainer_of
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras
from npbgpp.io import write_png
from npbgpp.viewer.access import is_local
from npbgpp.viewer.keyframes import load_track
from npbgpp.viewer.pictures import ViewedRun, first_picture
from npbgpp.viewer.poses import frame_of, parse_viewport, top_of_cloud

log = logging.getLogger("npbgpp.view")

_NEEDED = ("viser", "websockets", "msgspec", "trimesh", "zstandard")


def view(settings: ViewSettings, overrides: Sequence[str]) -> None:
    """Serves runs, or writes a screenshot.

    Args:
        settings: what to show.
        overrides: ``key=value`` words for the config of the runs.

    Raises:
        InputError: anything the user supplied that cannot be used.
    """
    if settings.screenshot is None:
        require_viser("npbgpp view")
    viewport = None if settings.viewport is None else parse_viewport(settings.viewport)
    labels = _labels(settings.runs)
    chosen = [
        SceneSettings(run=run, checkpoint=settings.checkpoint, scene=settings.scene, trust_config=settings.trust_config)
        for run in settings.runs
    ]
    runs = [viewed_run(one, overrides, label) for one, label in zip(chosen, labels, strict=True)]
    start, start_view = _start(settings, runs[0].scene)
    if settings.mode not in {mode for run in runs for mode in run.modes}:
        raise InputError(f"mode: expected one of {', '.join(runs[0].modes)}, got {settings.mode}")
    if settings.screenshot is not None:
        write_png(settings.screenshot.expanduser().absolute(), first_picture(runs[0], start, viewport, settings.mode))
        log.info("screenshot: %s", settings.screenshot)
        return
    track = None if settings.replay is None else load_track(settings.replay.expanduser(), runs[0].scene)
    # viser is an extra
    from npbgpp.viewer.server import ViewerOptions, ViewerServer, check_one_scene

    check_one_scene(runs)
    if not is_local(settings.host):
        log.warning(
            "host=%s: everyone who reaches this machine may look at the scene, and write paths and films into the run", settings.host
        )
    options = ViewerOptions(start, start_view, viewport, settings.mode, track, tuple(overrides))
    server = ViewerServer(runs, frame_of(runs[0].scene, settings.speed), options, settings.host, settings.port)
    log.info("open %s (Ctrl-C ends)", server.link)
    if is_local(settings.host):
        log.info(
            "from another machine: ssh -L %d:127.0.0.1:%d <user>@%s, then the same link", server.port, server.port, socket.gethostname()
        )
    try:
        threading.Event().wait()
    finally:
        server.stop()


def require_viser(what: str) -> None:
    """Raises InputError without the extra ``viewer``."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{what}: expected the extra viewer, got no {', '.join(missing)}; install it: pip install 'npbgpp[viewer]'")


def _labels(folders: Sequence[Path]) -> list[str]:
    """Names of folders; those of their parents before them where they are equal."""
    paths = [folder.expanduser().resolve() for folder in folders]
    names = [path.name for path in paths]
    return [name if names.count(name) == 1 else f"{path.parent.name}/{name}" for path, name in zip(paths, names, strict=True)]


def viewed_run(settings: SceneSettings, overrides: Sequence[str], label: str | None = None) -> ViewedRun:
    """Loads a run and makes it ready to be drawn.

    Args:
        settings: the run.
        overrides: words for its config.
        label: its name in the panel; None: that of its folder.

    Raises:
        InputError: as ``npbgpp.load_run``, and for a run without weights.
    """
    run = settings.folder()
    label = label or run.name
    config, search_paths = run_config(run, settings.trust_config)
    scene = evaluation_of(config, run, settings.checkpoint, settings.scene, list(overrides))
    if config.get("weights_path") is None and not list((run / "checkpoints").glob("*.ckpt")):
        raise InputError(
            f"run={settings.run}: expected a checkpoint in {run / 'checkpoints'}, got none; wait for the first one if the run still trains, or name "
            "weights: weights_path=<checkpoint>"
        )
    if not (run / "metrics.json").is_file():
        log.warning(
            "%s: not evaluated yet, so it may still be training; the viewer shows checkpoint %s as it is now", label, settings.checkpoint
        )
    parts = build_run(config, search_paths, needs_test_views=False)
    trainer = trainer_of(parts)
    trainer.precision_plugin.convert_module(parts.system)
    system = parts.system.to(trainer.strategy.root_device).eval()
    viewed = ViewedRun(label, run, system, scene, trainer.precision_plugin)
    viewed.prepare()
    log.info("%s: %s, scene %s, %d views", label, type(system).__name__, scene, len(viewed.scene.views))
    return viewed


def _start(settings: ViewSettings, scene: Scene) -> tuple[Cameras, int | None]:
    """(camera to start at, its index if it is a view)."""
    views = scene.splits["train"] or tuple(range(len(scene.views)))
    if settings.origin_view:
        if not scene.cloud.path.is_file():
            raise InputError(f"origin_view: expected a scene with a point cloud, there is none at {scene.cloud.path}; leave it out")
        return top_of_cloud(scene.cloud.read().xyz, scene.views[views[0]].camera), None
    index = views[0]
    if settings.view is not None:
        known = {str(k): k for k in range(len(scene.views))} | {one.name: k for k, one in enumerate(scene.views)}
        if settings.view not in known:
            raise InputError(
                f"view: expected a name or an index of the {len(scene.views)} views of scene {scene.name}, such as {scene.views[0].name}, got {settings.view}"
            )
        index = known[settings.view]
    return scene.views[index].camera, index
