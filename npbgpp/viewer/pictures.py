"""What the viewer shows of a run: colours, depth, normals, opacity, photos per point, layers of the method, and comparisons of two pictures or with a photo."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from npbgpp.core.cpu_share import adapt_threads
from npbgpp.data import Scene, View, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PixelConvention, ProjectionSettings, TimedCamera, fit_to_size
from npbgpp.io import depth_colormap, depth_range, to_pil
from npbgpp.kernels.rasterization import ChunkedCloud, Level, rasterize
from npbgpp.methods.base import Precision, Render, System, VideoOptions

# ----------------------------------------------------------------------
# Photos per point


_OCCLUSION_SCALE = 0.25  # of the depth buffers: clouds are not dense, and what is behind must not show through
_BEHIND = 0.02  # points at most this share of the depth behind the nearest one of their cell are seen
_LEVELS = tuple(Level(scale) for scale in (1.0, 0.5, 0.25))  # a cell without a point takes that of the next coarser level
_PROJECTION = ProjectionSettings(0.0, PixelConvention.EXACT)


class SeenPoints:
    """The cloud of a scene with the number of training photos that see each point.

    Args:
        scene: with a cloud. Its photos are not read.
    """

    def __init__(self, scene: Scene) -> None:
        xyz_world = scene.cloud.read().xyz
        self._cloud = ChunkedCloud.build(xyz_world)
        self.counts = torch.zeros(len(xyz_world), dtype=torch.int64)
        for k in scene.splits["train"]:
            camera = scene.views[k].camera
            self.counts += _seen(self._cloud, xyz_world, camera)

    def picture(self, camera: Cameras) -> Float[Tensor, "3 h w"]:
        """Red where the most photos see the nearest point, blue where one does, grey where none does, black without a point."""
        height, width = camera.image_size
        index = torch.full((height, width), -1, dtype=torch.int64)
        levels = [level for level in _LEVELS if int(level.scale * min(height, width)) >= 1]
        for fragments in rasterize(self._cloud, camera, levels, _PROJECTION):
            found = fragments.index.long()
            rows = torch.arange(height) * found.shape[0] // height
            columns = torch.arange(width) * found.shape[1] // width
            index = torch.where(index >= 0, index, found[rows][:, columns])
        counts = torch.where(index >= 0, self.counts[index.clamp(min=0)], -1)
        most = max(int(self.counts.max()), 1)
        colours = depth_colormap(torch.where(counts > 0, most + 1 - counts, 0).float(), 1.0, float(max(most, 2)))
        return torch.where(counts == 0, 0.5, colours)


def _seen(cloud: ChunkedCloud, xyz_world: Float[Tensor, "n 3"], camera: Cameras) -> Bool[Tensor, " n"]:
    """Which points a camera sees."""
    (fragments,) = rasterize(cloud, camera, [Level(max(_OCCLUSION_SCALE, 1 / min(camera.image_size)))], _PROJECTION)
    rows, columns = fragments.index.shape
    uv_px, depth = (part[0] for part in camera.project(xyz_world))
    height, width = camera.image_size
    row, column = (uv_px[:, 1] * rows / height).floor(), (uv_px[:, 0] * columns / width).floor()
    inside = (depth > 0) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    nearest = fragments.index[torch.where(inside, row, 0).long(), torch.where(inside, column, 0).long()].long()
    return inside & (nearest >= 0) & (depth <= (1 + _BEHIND) * depth[nearest.clamp(min=0)])


# ----------------------------------------------------------------------
# Pictures


PICTURE, DEPTH, NORMALS, OPACITY, SEEN = "picture", "depth", "normals", "opacity", "photos per point"
BACKGROUNDS = {"as trained": None, "white": 1.0, "black": 0.0, "checkerboard": None}
_ERROR_RANGE = 0.25  # mean absolute difference of the channels that has the last colour of the error map
_BAND_PIXELS = 4096  # rendered between two questions whether to stop
_THUMBNAIL = 64  # pixels of the longer side of a thumbnail
_TILE = 8  # pixels of a field of the checkerboard
_PROBE = (32, 32)
_T = TypeVar("_T")
_ONE_AT_A_TIME = threading.RLock()


class Caller(Protocol):
    """Calls a function, where and when it may use the system."""

    def __call__(self, work: Callable[[], _T]) -> _T: ...


def _call_alone(work: Callable[[], _T]) -> _T:
    """Of all runs, since kernels must not run in two threads at once."""
    with _ONE_AT_A_TIME:
        adapt_threads()
        return work()


@dataclass(frozen=True)
class Look:
    """How a run is shown.

    Attributes:
        mode: one of ``ViewedRun.modes``.
        part: of a moving scene, one of ``System.scene_parts``.
        history: filter over time (methods with ``supports_history``).
        background: one of ``BACKGROUNDS``; others than the first show the picture times its opacity before it.
    """

    mode: str = PICTURE
    part: str = "full"
    history: bool = False
    background: str = "as trained"


@dataclass(frozen=True)
class Picture:
    """A drawn view on the CPU: colours in [0, 1], and depths in scene units, 0 where nothing is, None for methods without."""

    rgb: Float[Tensor, "3 h w"]
    depth: Float[Tensor, "h w"] | None
    seconds: float


class ViewedRun:
    """A trained method on one scene, as the viewer draws it.

    Args:
        label: names it in the panel.
        folder: of the run; the viewer writes below it.
        system: with its weights, on its device, in evaluation mode.
        scene: name of the scene.
        precision: of the run.

    Attributes:
        call: renders; in the calling thread by default, while no other run renders.
    """

    def __init__(self, label: str, folder: Path, system: System, scene: str, precision: Precision) -> None:
        self.label, self.folder = label, folder
        self.system = system
        self.scene: Scene = system.scenes[scene]
        self.precision = precision
        self.call: Caller = _call_alone
        self._history: _History | None = None
        self._seen: SeenPoints | None = None
        self._modes: tuple[str, ...] = (PICTURE,)

    @property
    def modes(self) -> tuple[str, ...]:
        """What can be drawn; complete after ``prepare``."""
        return self._modes

    @property
    def has_opacity(self) -> bool:
        """Whether the method predicts opacity."""
        return OPACITY in self._modes

    @property
    def time_steps(self) -> int:
        """Time steps of a moving scene; 1 for others."""
        return len(self.scene.frames) if self.system.renders_time else 1

    def prepare(self) -> None:
        """Reads what the method needs, compiles its kernels, and finds out what it renders. Raises InputError as the method does."""
        camera = self.scene.views[0].camera
        self._rendered(lambda: self.system.prepare(self.scene.name))
        probe = self._rendered(lambda: self._render(TimedCamera(camera.resize(_PROBE)), Look()))
        modes = [PICTURE]
        modes += [DEPTH, NORMALS] if probe.depth is not None else []
        modes += [OPACITY] if probe.alpha is not None else []
        modes += [SEEN] if self.scene.cloud.path.is_file() else []
        self._modes = (*modes, *self.system.layers())

    def _rendered(self, work: Callable[[], _T]) -> _T:
        """The result of ``work``, without gradients and in the precision of the run."""

        def in_context() -> _T:
            with torch.no_grad(), self.precision.test_step_context():
                return work()

        return self.call(in_context)

    def draw(self, timed: TimedCamera, look: Look, stop: Callable[[], bool] = lambda: False) -> Picture | None:
        """Draws a view; None if ``stop`` said so, which is asked between parts of the picture where the method renders pixels alone."""
        start = time.perf_counter()
        if look.mode == SEEN:
            return Picture(self._rendered(lambda: self._seen_picture(timed)), None, time.perf_counter() - start)
        layer = look.mode if look.mode in self.system.layers() else None
        if layer is not None:
            image = self._rendered(lambda: self.system.render_layer(timed.camera, self.scene.name, layer).float().cpu())
            rgb = torch.nn.functional.interpolate(image, timed.camera.image_size, mode="nearest")[0]
            return Picture(rgb, None, time.perf_counter() - start)
        render = self._in_bands(timed, look, stop) if self.system.renders_pixels_alone else self._whole(timed, look)
        if render is None:
            return None
        return Picture(shown(render, look, timed.camera), None if render.depth is None else render.depth[0, 0], time.perf_counter() - start)

    def _seen_picture(self, timed: TimedCamera) -> Float[Tensor, "3 h w"]:
        self._seen = self._seen or SeenPoints(self.scene)
        return self._seen.picture(timed.camera)

    def _whole(self, timed: TimedCamera, look: Look) -> Render:
        return self._rendered(lambda: _on_cpu(self._render(timed, look)))

    def _in_bands(self, timed: TimedCamera, look: Look, stop: Callable[[], bool]) -> Render | None:
        height, width = timed.camera.image_size
        rows = max(1, _BAND_PIXELS // width)
        bands = []
        for top in range(0, height, rows):
            if stop():
                return None
            band = replace(timed, camera=timed.camera.crop(top, 0, (min(rows, height - top), width)))
            bands.append(self._whole(band, look))

        def joined(name: str) -> Tensor | None:
            return None if getattr(bands[0], name) is None else torch.cat([getattr(band, name) for band in bands], 2)

        rgb = joined("rgb")
        assert rgb is not None
        return replace(Render(rgb), alpha=joined("alpha"), depth=joined("depth"))

    def _render(self, timed: TimedCamera, look: Look) -> Render:
        if self.system.renders_time:
            options = VideoOptions(depth=True, part=look.part)
            return next(iter(self.system.render_video(self.scene.name, [timed], options)))
        history, self._history = self._history, None  # a filter that fails is not used again
        if look.history and self.system.supports_history:
            if history is None or history.size != timed.camera.image_size:
                history = _History(self.system, self.scene.name, timed)
            render = history.render(timed)
            self._history = history
            return render
        return self.system.render(timed.camera, self.scene.name, depth=True)


class _Feed(Sequence[TimedCamera]):
    """A path whose next camera is known only when it is rendered."""

    def __init__(self, camera: TimedCamera) -> None:
        self.camera = camera

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: object) -> TimedCamera:  # type: ignore[override]
        return self.camera

    def __iter__(self) -> Iterator[TimedCamera]:
        while True:
            yield self[0]


class _History:
    """A filter over the pictures of one size."""

    def __init__(self, system: System, scene: str, first: TimedCamera) -> None:
        self.size, self._feed = first.camera.image_size, _Feed(first)
        self._frames = system.render_video(scene, self._feed, VideoOptions(depth=True, history=True))

    def render(self, timed: TimedCamera) -> Render:
        self._feed.camera = timed
        return next(self._frames)


def _on_cpu(render: Render) -> Render:
    parts = {name: getattr(render, name) for name in ("rgb", "alpha", "depth", "rgba")}
    moved = {name: part.float().cpu() for name, part in parts.items() if part is not None}
    return replace(Render(moved.pop("rgb")), **moved)


def first_picture(run: ViewedRun, camera: Cameras, size: tuple[int, int] | None, mode: str) -> Float[Tensor, "3 h w"]:
    """What the viewer shows of one camera, in a size (height, width) or its own. Raises InputError as ``shown`` does."""
    fitted = camera if size is None else fit_to_size(camera, size)
    picture = run.draw(TimedCamera(fitted), Look(mode))
    assert picture is not None
    return picture.rgb


def shown(render: Render, look: Look, camera: Cameras) -> Float[Tensor, "3 h w"]:
    """The colours of a mode, given a rendering on the CPU. Raises InputError for what the method does not render."""
    if look.mode in (DEPTH, NORMALS):
        if render.depth is None:
            raise InputError(f"mode={look.mode}: expected a method that renders depth")
        depth = render.depth[0, 0].nan_to_num(posinf=0.0)
        return depth_colormap(depth, *depth_range(depth)) if look.mode == DEPTH else normal_colours(depth, camera)
    if look.mode == OPACITY:
        if render.alpha is None:
            raise InputError("mode=opacity: expected a method that predicts opacity")
        return render.alpha[0].clamp(0, 1).expand(3, -1, -1)
    rgb = render.rgb[0].clamp(0, 1)
    if look.background == "as trained" or (render.alpha is None and render.rgba is None):
        return rgb
    colours, alpha = (render.rgba[0, :3], render.rgba[0, 3:]) if render.rgba is not None else (rgb * render.alpha[0], render.alpha[0])  # type: ignore[index]
    return (colours + (1 - alpha) * background(look.background, rgb)).clamp(0, 1)


def background(name: str, like: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """One of ``BACKGROUNDS`` but the first."""
    level = BACKGROUNDS[name]
    if level is not None:
        return torch.full_like(like, level)
    rows, columns = torch.arange(like.shape[1])[:, None] // _TILE, torch.arange(like.shape[2]) // _TILE
    return torch.where((rows + columns) % 2 == 0, 0.6, 0.8).expand_as(like)


def normal_colours(depth: Float[Tensor, "h w"], camera: Cameras) -> Float[Tensor, "3 h w"]:
    """Normals of the surface that a depth map shows: right, up and towards the camera as red, green and blue; black where nothing is."""
    height, width = depth.shape
    (cx, cy), (fx, fy) = camera.principal_point[0].tolist(), camera.focal_length[0].tolist()
    x = (torch.arange(width) + 0.5 - cx) / fx * depth
    y = (cy - torch.arange(height)[:, None] - 0.5) / fy * depth
    xyz = torch.stack([x, y, -depth])
    padded = torch.nn.functional.pad(xyz[None], (1, 1, 1, 1), mode="replicate")[0]
    along_row, along_column = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, :-2, 1:-1] - padded[:, 2:, 1:-1]
    normal = torch.nn.functional.normalize(torch.linalg.cross(along_row, along_column, dim=0), dim=0)
    there = torch.nn.functional.pad((depth > 0)[None, None].float(), (1, 1, 1, 1), mode="replicate")[0, 0]
    known = (there[1:-1, 1:-1] * there[1:-1, 2:] * there[1:-1, :-2] * there[2:, 1:-1] * there[:-2, 1:-1]) > 0
    return torch.where(known, 0.5 + 0.5 * normal, 0.0)


def error_colours(one: Float[Tensor, "3 h w"], other: Float[Tensor, "3 h w"]) -> tuple[Float[Tensor, "3 h w"], float]:
    """(mean absolute difference of the channels, black for none, by way of red to yellow and white from a quarter on; PSNR in dB)."""
    error = (one - other).abs().mean(0) / _ERROR_RANGE
    mse = float(torch.nn.functional.mse_loss(one, other))
    return torch.stack([(3 * error - k).clamp(0, 1) for k in range(3)]), -10 * math.log10(max(mse, 1e-10))


def swiped(left: Float[Tensor, "3 h w"], right: Float[Tensor, "3 h w"], share: float) -> Float[Tensor, "3 h w"]:
    """The left ``share`` of one picture and the rest of another, with a line between them."""
    column = round(share * left.shape[2])
    image = torch.cat([left[:, :, :column], right[:, :, column:]], 2)
    if 0 < column < left.shape[2]:
        image[:, :, column] = 1.0
    return image


def photo_of(view: View) -> Float[Tensor, "3 h w"]:
    """The photo of a view, as it trains. Raises InputError for a missing or damaged file."""
    return read_photo(view).image.float() / 255


def thumbnail(view: View) -> np.ndarray:
    """The photo of a view, small, (h, w, 3) in 8 bits. Raises InputError for a missing or damaged file."""
    image = to_pil(photo_of(view))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BILINEAR)
    return np.asarray(image)


def fitted_photo(photo: Float[Tensor, "3 h w"], size: tuple[int, int]) -> Float[Tensor, "3 h2 w2"]:
    """A photo as ``fit_to_size`` shows it: as large as it fits, black around it."""
    scale = min(size[0] / photo.shape[1], size[1] / photo.shape[2])
    height, width = min(size[0], round(photo.shape[1] * scale)), min(size[1], round(photo.shape[2] * scale))
    small = torch.nn.functional.interpolate(photo[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return torch.nn.functional.pad(small, (left, size[1] - width - left, top, size[0] - height - top))


def nearest_view(scene: Scene, camera: Cameras, among: Sequence[int]) -> int:
    """The view of a scene that sees most alike: small distance and angle of the viewing directions."""
    eye, forward = camera.centers()[0], camera.R[0, :, 2]
    views = Cameras.cat([replace(scene.views[i].camera, image_size=(1, 1)) for i in among])
    centres = views.centers()
    spread = (centres - centres.mean(0)).norm(dim=1).mean().clamp(min=1e-6)
    cost = (centres - eye).norm(dim=1) / spread + (1 - views.R[:, :, 2] @ forward)
    return among[int(cost.argmin())]
