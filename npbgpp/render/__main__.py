"""``python -m npbgpp.render run=<run folder> [key=value ...]``: films of a trained run.

Keys are the fields of ``FilmSettings``; keys with a dot, such as ``datasets.data_root``, and ``weights_path``, ``weights_strict``, ``cache_dir`` change the
config of the run. Relative paths in that config refer to the folder that the run was started from, all others to the current one.

A film is a folder: ``00000.png`` and so on, ``film.mp4`` or ``film.gif``, ``cameras.json`` (see ``npbgpp.data.pose_files``) and ``contact_sheet.png``; with
``depth`` also ``depth_00000.png`` and so on, or raw depths, and ``depth.mp4`` or ``depth.gif``, and with ``motion`` the same of motion.
"""

import logging
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from tqdm import tqdm

from npbgpp.callbacks.depth_files import RAW, depth_picture, depth_range, write_depth
from npbgpp.callbacks.pictures import write_image, write_png
from npbgpp.callbacks.tile_sheet import TileRow, tile_sheet
from npbgpp.callbacks.videos import KINDS, Video, video
from npbgpp.config import typed
from npbgpp.data.pose_files import LARGEST_SIDE, read_poses, write_poses
from npbgpp.data.scene import Scene
from npbgpp.errors import InputError, original_message
from npbgpp.finished_run import evaluation_of, quiet_log, run_config, trainer_of, words_of
from npbgpp.geometry.camera_paths import average_pose, fit, interpolate, orbit_of, spiral
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.moved_cameras import shifted, tumbled, turned
from npbgpp.run import Assembly, assemble
from npbgpp.systems.base import Render, System
from npbgpp.systems.npcr import NPCR
from npbgpp.systems.nsff import NSFF, NsffRender
from npbgpp.systems.nsff_films import has_times_between, is_video_path, spread_over_time, timed_path
from npbgpp.systems.nsff_views import PARTS, TimedCamera
from npbgpp.systems.steady import SteadyFilm

log = logging.getLogger("npbgpp.render")

_SPLITS = ("test", "val", "train")
_MADE = ("spiral", "circle", "interpolate")  # paths of as many frames as one likes
_MOVED = {"turn": 500, "straight": 301, "tumble": 120}  # paths that move one camera, and their usual numbers of frames
_FRAMES = 120
_DEPTHS = ("picture", *RAW)
_SMALLEST_SIDE = 16  # the coarsest of five levels has one pixel
_SHEET_TILES, _SHEET_COLUMNS = 12, 4
_NEAREST_TO_FOCUS = 3.5 * 0.75  # NeRF's code looks at depth 3.5 where the nearest depth is 1 / 0.75


@dataclass(frozen=True)
class FilmSettings:
    """Keys of the command.

    Attributes:
        run: folder of the run.
        path: test, val or train (the views of the scene), interpolate (through the test views), circle or spiral (made from the training views), file;
            turn (the first training view once around the world's z axis), straight (along its x axis), tumble (random turns about its origin); of
            moving scenes also spiral<X> and fixview<X>_interp<Y>, see ``npbgpp.systems.nsff_films``.
        poses: with path=file, the file (see ``npbgpp.data.pose_files``); turn, straight and tumble move its first camera in place of a view.
        views: names or indices of the views that a path other than file is made of, in place of those named above.
        reach: of a straight move, its ends relative to the camera, scene units.
        seed: of a tumble.
        scene: which scene; needed when the run has several.
        frames: of a path that is none of views or of a file; 120 unless given, 500 of a turn, whose last is the first, 301 of a straight move; of moving
            scenes as ``npbgpp.systems.nsff_films`` says.
        loop: an interpolation comes back to its first view.
        fps: frames per second of the video.
        size: (height, width) of the pictures, which then show at least what they would without it; None is that of the views.
        out: folder of the film; None is ``<run>/films/<scene>_<path>``.
        overwrite: replace a film in ``out``.
        video: mp4, gif or none.
        images: write every frame as PNG.
        depth: any of picture (in colours, one range for the whole film, with a video of its own where ``video`` is not none), npy, pfm, bytes: depth along
            the viewing axis, scene units, 0 where nothing is.
        history: mix each frame with those before it, so that the film does not flicker; of NPCR.
        part: of a moving scene: full, static, or dynamic, what moves.
        motion: of a moving scene: pictures of the motion until the next moment, colours by direction, with a video of their own.
        checkpoint: name of a file in the checkpoints of the run.
    """

    run: Path
    path: str = "test"
    poses: Path | None = None
    views: tuple[int | str, ...] | None = None
    reach: tuple[float, float] = (-2.0, 1.0)
    seed: int = 0
    scene: str | None = None
    frames: int | None = None
    loop: bool = False
    fps: float = 30.0
    size: tuple[int, int] | None = None
    out: Path | None = None
    overwrite: bool = False
    video: str = "mp4"
    images: bool = True
    depth: tuple[str, ...] = ()
    history: bool = False
    part: str = "full"
    motion: bool = False
    checkpoint: str = "last"

    def __post_init__(self) -> None:
        known = (*_SPLITS, *_MADE, *_MOVED, "file")
        if self.path not in known and not is_video_path(self.path):
            raise InputError(f"path: expected one of {', '.join(known)}, spiral<X> or fixview<X>_interp<Y>, got {self.path}")
        if self.part not in PARTS:
            raise InputError(f"part: expected one of {', '.join(PARTS)}, got {self.part}")
        if self.motion and has_times_between(self.path):
            raise InputError(f"motion: expected a path of moments, since none is known between them, got path={self.path}; choose interp0")
        if self.video not in (*KINDS, "none"):
            raise InputError(f"video: expected {', '.join(KINDS)} or none, got {self.video}")
        if not {*self.depth} <= {*_DEPTHS}:
            raise InputError(f"depth: expected some of {', '.join(_DEPTHS)}, such as depth=[picture,npy], got {list(self.depth)}")
        if (self.poses is None) == (self.path == "file") and self.path not in _MOVED:
            raise InputError(
                f"poses: a file with poses belongs to path=file|{'|'.join(_MOVED)} and to no other path, got poses={self.poses} path={self.path}"
            )
        made = self.path in (*_MADE, *_MOVED) or (is_video_path(self.path) and self.path.startswith("spiral"))
        if self.frames is not None and (not made or self.frames < 1):
            raise InputError(
                f"frames: expected a positive number with path={'|'.join((*_MADE, *_MOVED))}, got frames={self.frames} path={self.path}"
            )
        if self.loop and self.path != "interpolate":
            raise InputError(
                f"loop: expected path=interpolate with it, got path={self.path}; a circle is closed, and the others are as they are"
            )
        if self.views is not None and (self.path == "file" or is_video_path(self.path) or not self.views):
            raise InputError(
                f"views: expected at least one view, and a path that is made of views, got views={list(self.views)} path={self.path}"
            )
        if not 0 < self.fps <= 1000:
            raise InputError(f"fps: expected a positive number of at most 1000, got {self.fps:g}")
        if self.size is not None and not all(1 <= side <= LARGEST_SIDE for side in self.size):
            raise InputError(f"size: expected [height, width] in pixels, at most {LARGEST_SIDE}, got {list(self.size)}")


@dataclass(frozen=True)
class Frame:
    """One picture of a film: its camera, what the contact sheet calls it, and when it looks; None in still scenes."""

    camera: Cameras
    label: str
    timed: TimedCamera | None = None


def render_film(settings: FilmSettings, overrides: Sequence[str]) -> Path:
    """Renders a film; returns its folder.

    Args:
        settings: what to render.
        overrides: ``key=value`` words for the config of the run.

    Raises:
        InputError: anything the user supplied that cannot be used.
    """
    run = settings.run.expanduser().resolve()
    config, bases = run_config(run)
    scene = evaluation_of(config, run, settings.checkpoint, settings.scene, overrides)
    out = (settings.out or run / "films" / f"{scene}_{settings.path}").expanduser().absolute()
    if (out / "cameras.json").exists() and not settings.overwrite:
        raise InputError(f"out={out}: there is a film already; choose another folder, or overwrite=true")
    parts = assemble(config, bases, needs_test_views=False)
    if settings.history and not isinstance(parts.system, NPCR):
        raise InputError(f"history: expected a run of NPCR, got one of {type(parts.system).__name__}; leave it out")
    if isinstance(parts.system, NSFF):
        frames = moving_frames(settings, parts.data.scenes[scene])
    elif is_video_path(settings.path) or settings.part != "full" or settings.motion:
        raise InputError(
            f"path={settings.path} part={settings.part}: only runs of system=nsff know of time, motion and parts; leave these away"
        )
    else:
        frames = film_frames(settings, parts.data.scenes[scene])
    sizes = {frame.camera.image_size for frame in frames}
    if len(sizes) > 1 and settings.video != "none":
        raise InputError(f"size: the views have {len(sizes)} sizes, a video has one; choose it with size=[height,width], or video=none")
    if min(min(size) for size in sizes) < _SMALLEST_SIDE:
        raise InputError(
            f"size: expected pictures of at least {_SMALLEST_SIDE} pixels on each side, got {min(sizes, key=min)}; choose a larger one"
        )
    _remove_film(out)
    shown, seconds = _render(parts, scene, frames, out, settings)
    write_poses(out / "cameras.json", [frame.camera for frame in frames])
    columns = _SHEET_COLUMNS if len(sizes) == 1 else 1
    rows = [list(shown)[k : k + columns] for k in range(0, len(shown), columns)]
    captions = [", ".join(frames[k].label for k in row) for row in rows]
    tiles = [TileRow(caption, tuple(shown[k] for k in row)) for caption, row in zip(captions, rows, strict=True)]
    title = f"{scene}: {settings.path}, {len(frames)} frames"
    write_image(out / "contact_sheet.png", tile_sheet(title, ("",) * min(columns, len(shown)), tiles))
    log.info("%d frames, %.3f s per frame (median); the film: %s", len(frames), float(np.median(seconds)), out)
    return out


def film_frames(settings: FilmSettings, scene: Scene) -> list[Frame]:
    """The frames of a path. Raises InputError for views that are not there, and where a path cannot be made."""
    chosen = _chosen_views(settings, scene)
    cameras = [scene.views[i].camera for i in chosen]
    if settings.path in _MADE:
        size = settings.size or cameras[0].image_size
        together, count = Cameras.cat([fit(camera, size) for camera in cameras]), settings.frames or _FRAMES
        if settings.path == "interpolate":
            path = interpolate(together, count, settings.loop)
        elif settings.path == "circle":
            path = orbit_of(together, count)
        else:
            path = spiral(together, _focus_depth(scene, together), count)
        return [Frame(path[k], str(k)) for k in range(count)]
    if settings.path in _MOVED:
        base = cameras[0] if settings.poses is None else read_poses(settings.poses, cameras[0])[0]
        path = _moved(settings, base if settings.size is None else fit(base, settings.size))
        return [Frame(path[k], str(k)) for k in range(len(path))]
    if settings.poses is not None:
        cameras = list(read_poses(settings.poses, cameras[0]))
        labels = [str(k) for k in range(len(cameras))]
    else:
        labels = [scene.views[i].name for i in chosen]
    if settings.size is not None:
        cameras = [fit(camera, settings.size) for camera in cameras]
    return [Frame(camera, label) for camera, label in zip(cameras, labels, strict=True)]


def _moved(settings: FilmSettings, base: Cameras) -> Cameras:
    """A path that moves one camera."""
    count = settings.frames or _MOVED[settings.path]
    if settings.path == "turn":
        return turned(base, count)
    if settings.path == "straight":
        return shifted(base, (1.0, 0.0, 0.0), *settings.reach, count)
    return tumbled(base, count, settings.seed)


def moving_frames(settings: FilmSettings, scene: Scene) -> list[Frame]:
    """The frames of a path through a moving scene: views at their moments, other cameras while time goes on evenly. Raises InputError as ``film_frames``."""
    if is_video_path(settings.path) or (settings.path == "spiral" and settings.views is None):
        timed = timed_path(settings.path, scene, settings.frames, settings.size)
        return [Frame(t.camera, f"{t.moment}+{t.share:.2f}" if t.share else str(t.moment), t) for t in timed]
    frames = film_frames(settings, scene)
    if settings.path in _SPLITS:
        moments = {view.name: view.moment for view in scene.views if view.moment is not None}
        return [Frame(f.camera, f.label, TimedCamera(f.camera, moments[f.label])) for f in frames]
    timed = spread_over_time([frame.camera for frame in frames], len(scene.frames))
    return [Frame(frame.camera, frame.label, t) for frame, t in zip(frames, timed, strict=True)]


def _chosen_views(settings: FilmSettings, scene: Scene) -> tuple[int, ...]:
    stage = settings.path if settings.path in _SPLITS else "test" if settings.path == "interpolate" else "train"
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
        if settings.path in _SPLITS and others:
            raise InputError(f"views: {', '.join(others[:5])} of scene {scene.name} are no {stage} views; choose others, or another path")
        return chosen
    if not split:
        raise InputError(f"path={settings.path}: scene {scene.name} has no {stage} views; choose another path, or views=[...]")
    return split


def _focus_depth(scene: Scene, cameras: Cameras) -> float:
    """What a spiral looks at: NeRF's depth where the layout states bounds, else the median depth of the points amid the views."""
    nearest = [view.bounds[0] for view in scene.views if view.bounds is not None]
    if nearest:
        return _NEAREST_TO_FOCUS * min(nearest)
    uv_px, depth = average_pose(cameras).project(scene.cloud.read().xyz)
    height, width = cameras.image_size
    inside = (depth[0] > 0) & (uv_px[0] >= 0).all(1) & (uv_px[0] < uv_px.new_tensor([width, height])).all(1)
    if not inside.any():
        raise InputError(f"path=spiral: no point of scene {scene.name} lies before the mean of the views; choose another path")
    return float(depth[0, inside].median())


def _remove_film(out: Path) -> None:
    """Removes what an earlier film left in a folder; other files stay."""
    if (out / "cameras.json").exists():
        numbered = [path for path in out.glob("*.png") if re.fullmatch(r"[0-9]{5,}", path.stem)]
        depths = [path for path in out.glob("*_*") if re.fullmatch(rf"(depth|motion)_[0-9]{{5,}}\.(png|{'|'.join(RAW)})", path.name)]
        videos = [out / f"{name}.{kind}" for name in ("film", "depth", "motion") for kind in KINDS]
        for path in (*numbered, *depths, *videos, out / "contact_sheet.png", out / "cameras.json"):
            path.unlink(missing_ok=True)


@torch.no_grad()
def _render(
    parts: Assembly, scene: str, frames: Sequence[Frame], out: Path, settings: FilmSettings
) -> tuple[dict[int, Float[Tensor, "3 _ _"]], list[float]]:
    """Renders and writes; (pictures for the contact sheet by frame, seconds per frame)."""
    trainer = trainer_of(parts)
    trainer.precision_plugin.convert_module(parts.system)
    system = parts.system.to(trainer.strategy.root_device).eval()
    turned = parts.system_settings.postprocessing_transform == "rotate_90_ccw"
    sheet = {round(k) for k in np.linspace(0, len(frames) - 1, min(_SHEET_TILES, len(frames)))}
    shown, seconds = {}, []
    with ExitStack() as opened, trainer.precision_plugin.test_step_context():
        film = opened.enter_context(video(out / f"film.{settings.video}", settings.fps)) if settings.video != "none" else None
        depths = _Depths(out, settings, opened) if settings.depth else None
        motion = (
            opened.enter_context(video(out / f"motion.{settings.video}", settings.fps)) if settings.motion and film is not None else None
        )
        system.prepare(scene)
        renders = _renders(system, scene, frames, settings)
        for k in tqdm(range(len(frames)), desc=f"{settings.path} of {scene}", disable=None, leave=False):
            start = time.perf_counter()
            render = next(renders)
            picture = render.rgb[0].cpu()  # waits for the device, so the clock is honest
            seconds.append(time.perf_counter() - start)
            picture = torch.rot90(picture, 1, (1, 2)) if turned else picture
            if film is not None:
                film.add(picture)
            if depths is not None:
                assert render.depth is not None
                depths.add(torch.rot90(render.depth[0, 0], 1) if turned else render.depth[0, 0])
            if isinstance(render, NsffRender) and render.motion is not None:
                moves = torch.rot90(render.motion[0], 1, (1, 2)) if turned else render.motion[0]
                write_png(out / f"motion_{k:05}.png", moves)
                if motion is not None:
                    motion.add(moves)
            if settings.images:
                write_png(out / f"{k:05}.png", picture)
            if k in sheet:
                shown[k] = picture
        if depths is not None:
            depths.finish()
    return shown, seconds


def _renders(system: System, scene: str, frames: Sequence[Frame], settings: FilmSettings) -> Iterator[Render]:
    """Every frame in turn."""
    depth = bool(settings.depth)
    if isinstance(system, NSFF):
        timed = [frame.timed for frame in frames if frame.timed is not None]
        yield from system.film(timed, settings.part, depth=depth, motion=settings.motion)
        return
    steady = SteadyFilm(system, scene) if settings.history and isinstance(system, NPCR) else None
    for frame in frames:
        yield steady.render(frame.camera) if steady is not None else system.render(frame.camera, scene, depth=depth)


class _Depths:
    """Depth maps of a film. Colours need the range of all frames, so that raw maps wait on disk for the last one."""

    def __init__(self, out: Path, settings: FilmSettings, opened: ExitStack) -> None:
        self.out, self.settings, self.count = out, settings, 0
        out.mkdir(parents=True, exist_ok=True)
        self.waiting = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix=".depth", dir=out)))
        wants_video = settings.video != "none" and "picture" in settings.depth
        self.film: Video | None = opened.enter_context(video(out / f"depth.{settings.video}", settings.fps)) if wants_video else None

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
            picture = depth_picture(torch.from_numpy(np.array(depth)), nearest, farthest)
            write_png(self.out / f"depth_{k:05}.png", picture)
            if self.film is not None:
                self.film.add(picture)
        log.info("depth pictures: red is %.4g scene units or less, blue %.4g or more, black is nothing", nearest, farthest)


def main() -> None:
    """The command."""
    quiet_log()
    words = sys.argv[1:]
    if not words:
        keys = ", ".join(field.name for field in fields(FilmSettings))
        sys.exit(f"usage: python -m npbgpp.render run=<run folder> [key=value ...]\nkeys: {keys}, and those of the config of the run")
    try:
        given, overrides = words_of(words)
        render_film(typed(FilmSettings, given, "render"), overrides)
    except (InputError, OmegaConfBaseException) as error:
        sys.exit(f"error: {' '.join(original_message(error).split())}")


if __name__ == "__main__":
    main()
