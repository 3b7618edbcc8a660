"""``npbgpp render``: images and a video of a trained run along a camera path.

Relative paths in the config of the run refer to the folder that the run was started from, all others to the current one. The result is a folder:
``00000.png`` and so on, ``film.mp4`` or ``film.gif``, ``cameras.json`` (see ``npbgpp.data.pose_files``) and ``contact_sheet.png``; with ``depth`` also
``depth_00000.png`` and so on, or raw depths, and ``depth.mp4`` or ``depth.gif``, and with ``motion`` the same of motion.
"""

import logging
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from npbgpp.cli.settings import RenderSettings, VideoPath
from npbgpp.cli.trajectory import Frame, moving_frames, trajectory_frames
from npbgpp.core.cpu_share import adapt_threads
from npbgpp.data import write_poses
from npbgpp.engine.run import Run, build_run, evaluation_of, run_config, trainer_of
from npbgpp.errors import InputError
from npbgpp.io import (
    DEPTH_FORMATS,
    VIDEO_FORMATS,
    SheetRow,
    VideoWriter,
    contact_sheet,
    depth_colormap,
    depth_range,
    open_video,
    write_depth,
    write_png,
)
from npbgpp.methods.base import System, VideoOptions

log = logging.getLogger("npbgpp.render")

_SMALLEST_SIDE = 16  # the coarsest of five levels has one pixel
_SHEET_TILES, _SHEET_COLUMNS = 12, 4


def render_video(settings: RenderSettings, overrides: Sequence[str]) -> Path:
    """Renders a film; returns its folder.

    Args:
        settings: what to render.
        overrides: ``key=value`` words for the config of the run.

    Raises:
        InputError: anything the user supplied that cannot be used.
    """
    run = settings.folder()
    config, search_paths = run_config(run, settings.trust_config)
    scene = evaluation_of(config, run, settings.checkpoint, settings.scene, overrides)
    out = (settings.out or run / "films" / f"{scene}_{settings.path}").expanduser().absolute()
    if (out / "cameras.json").exists() and not settings.overwrite:
        raise InputError(f"out={out}: there is a film already; choose another folder, or overwrite=true")
    parts = build_run(config, search_paths, needs_test_views=False)
    _check_method(settings, parts.system)
    make_frames = moving_frames if parts.system.renders_time else trajectory_frames
    frames = make_frames(settings, parts.data.scenes[scene])
    sizes = {frame.camera.image_size for frame in frames}
    if len(sizes) > 1 and settings.video != "none":
        raise InputError(f"size: the views have {len(sizes)} sizes, a video has one; choose it with size=[height,width], or video=none")
    if min(min(size) for size in sizes) < _SMALLEST_SIDE:
        raise InputError(
            f"size: expected pictures of at least {_SMALLEST_SIDE} pixels on each side, got {min(sizes, key=min)}; choose a larger one"
        )
    _remove_film(out)
    shown, seconds = _render(parts, scene, frames, out, settings)
    write_poses(out / "cameras.json", [frame.camera for frame in frames], parts.data.scenes[scene].offset)
    columns = _SHEET_COLUMNS if len(sizes) == 1 else 1
    rows = [list(shown)[k : k + columns] for k in range(0, len(shown), columns)]
    captions = [", ".join(frames[k].label for k in row) for row in rows]
    tiles = [SheetRow(caption, tuple(shown[k] for k in row)) for caption, row in zip(captions, rows, strict=True)]
    title = f"{scene}: {settings.path}, {len(frames)} frames"
    write_png(out / "contact_sheet.png", contact_sheet(title, ("",) * min(columns, len(shown)), tiles))
    made = f"the film: {out / f'film.{settings.video}'}" if settings.video != "none" else f"the pictures: {out}"
    log.info("%d frames, %.3g s per frame (median); %s", len(frames), float(np.median(seconds)), made)
    return out


def _check_method(settings: RenderSettings, system: System) -> None:
    """Raises InputError for options that the method of a run does not have."""
    method = type(system).__name__
    if settings.history and not system.supports_history:
        raise InputError(f"history: expected a run of a method that filters over time (system=npcr), got one of {method}; leave it out")
    if not system.renders_time and (VideoPath.parse(settings.path) is not None or settings.motion):
        raise InputError(
            f"path={settings.path} motion={settings.motion}: expected a run of a method for moving scenes (system=nsff), got one of {method}; choose "
            "another path, or leave motion out"
        )
    if settings.part not in system.scene_parts:
        raise InputError(f"part: expected one of {', '.join(system.scene_parts)}, which {method} renders, got {settings.part}")


def _remove_film(out: Path) -> None:
    """Removes what an earlier film left in a folder; other files stay."""
    if (out / "cameras.json").exists():
        numbered = [path for path in out.glob("*.png") if re.fullmatch(r"[0-9]{5,}", path.stem)]
        depths = [
            path for path in out.glob("*_*") if re.fullmatch(rf"(depth|motion)_[0-9]{{5,}}\.(png|{'|'.join(DEPTH_FORMATS)})", path.name)
        ]
        videos = [out / f"{name}.{kind}" for name in ("film", "depth", "motion") for kind in VIDEO_FORMATS]
        for path in (*numbered, *depths, *videos, out / "contact_sheet.png", out / "cameras.json"):
            path.unlink(missing_ok=True)


@torch.no_grad()
def _render(
    parts: Run, scene: str, frames: Sequence[Frame], out: Path, settings: RenderSettings
) -> tuple[dict[int, Float[Tensor, "3 _ _"]], list[float]]:
    """Renders and writes; (pictures for the contact sheet by frame, seconds per frame)."""
    trainer = trainer_of(parts)
    trainer.precision_plugin.convert_module(parts.system)
    system = parts.system.to(trainer.strategy.root_device).eval()
    turned = parts.system_settings.postprocessing_transform == "rotate_90_ccw"
    sheet = {round(k) for k in np.linspace(0, len(frames) - 1, min(_SHEET_TILES, len(frames)))}
    shown, seconds = {}, []
    with ExitStack() as opened, trainer.precision_plugin.test_step_context():
        film = opened.enter_context(open_video(out / f"film.{settings.video}", settings.fps)) if settings.video != "none" else None
        depths = _Depths(out, settings, opened) if settings.depth else None
        motion = (
            opened.enter_context(open_video(out / f"motion.{settings.video}", settings.fps))
            if settings.motion and film is not None
            else None
        )
        system.prepare(scene)
        options = VideoOptions(bool(settings.depth), settings.history, settings.part, settings.motion)
        renders = system.render_video(scene, [frame.timed for frame in frames], options)
        for k in tqdm(range(len(frames)), desc=f"{settings.path} of {scene}", disable=None, leave=False):
            adapt_threads()
            start = time.perf_counter()
            render = next(renders)
            picture = render.rgb[0].cpu()  # waits for the device, so the clock is honest
            seconds.append(time.perf_counter() - start)
            picture = torch.rot90(picture, 1, (1, 2)) if turned else picture
            if film is not None:
                film.append(picture)
            if depths is not None:
                if render.depth is None:
                    raise InputError(
                        f"depth=[{','.join(settings.depth)}]: {parts.system_settings.system_class} renders no depth; start again without depth"
                    )
                depths.add(torch.rot90(render.depth[0, 0], 1) if turned else render.depth[0, 0])
            if render.motion is not None:
                moves = torch.rot90(render.motion[0], 1, (1, 2)) if turned else render.motion[0]
                write_png(out / f"motion_{k:05}.png", moves)
                if motion is not None:
                    motion.append(moves)
            if settings.images:
                write_png(out / f"{k:05}.png", picture)
            if k in sheet:
                shown[k] = picture
        if depths is not None:
            depths.finish()
    return shown, seconds


class _Depths:
    """Depth maps of a film. Colours need the range of all frames, so that raw maps wait on disk for the last one."""

    def __init__(self, out: Path, settings: RenderSettings, opened: ExitStack) -> None:
        self.out, self.settings, self.count = out, settings, 0
        out.mkdir(parents=True, exist_ok=True)
        self.waiting = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix=".depth", dir=out)))
        wants_video = settings.video != "none" and "picture" in settings.depth
        self.film: VideoWriter | None = (
            opened.enter_context(open_video(out / f"depth.{settings.video}", settings.fps)) if wants_video else None
        )

    def add(self, depth: Float[Tensor, "h w"]) -> None:
        for kind in self.settings.depth:
            folder = self.waiting if kind == "picture" else self.out
            write_depth(folder / f"depth_{self.count:05}.{'npy' if kind == 'picture' else kind}", depth)
        self.count += 1

    def finish(self) -> None:
        if "picture" not in self.settings.depth:
            return
        maps = [np.load(path, mmap_mode="r") for path in sorted(self.waiting.glob("*.npy"))]
        every = max(1, sum(depth.size for depth in maps) // 1_000_000)  # of so many pixels, one tells the range
        nearest, farthest = depth_range(torch.cat([torch.from_numpy(depth.reshape(-1)[::every].copy()) for depth in maps]))
        for k, depth in enumerate(maps):
            picture = depth_colormap(torch.from_numpy(np.array(depth)), nearest, farthest)
            write_png(self.out / f"depth_{k:05}.png", picture)
            if self.film is not None:
                self.film.append(picture)
        log.info("depth pictures: red is %.4g scene units or less, blue %.4g or more, black is nothing", nearest, farthest)
