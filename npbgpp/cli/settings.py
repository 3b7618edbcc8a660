"""Arguments of the commands on trained runs. Nothing here imports torch, so that mistakes and help are answered at once."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from npbgpp.cli.command import nearest
from npbgpp.core.bundle import run_folder
from npbgpp.core.config import key
from npbgpp.errors import InputError

SPLITS = ("test", "val", "train")
SAMPLED_PATHS = ("spiral", "circle", "interpolate")  # of any number of frames
ONE_CAMERA_PATHS = {"turn": 500, "straight": 301, "tumble": 120}  # moves of one camera, and their usual numbers of frames
_LARGEST_FRAME_RATE = 1000


@dataclass(frozen=True)
class VideoPath:
    """A path through moving scenes, named as in nsff_pl.

    Attributes:
        frame: frame of the video whose camera is used.
        between: ``fixview<frame>_interp<between>``: the camera stands still at all time steps, with so many frames between two of them.
            None: ``spiral<frame>``, a path around the camera at its time step.
    """

    frame: int
    between: int | None

    @classmethod
    def parse(cls, path: str) -> "VideoPath | None":
        """The path with a name; None for a path through still scenes, to which ``spiral`` belongs."""
        match = re.fullmatch(r"spiral([0-9]+)|fixview([0-9]+)_interp([0-9]+)", path)
        if match is None:
            return None
        return cls(int(match[1]), None) if match[1] is not None else cls(int(match[2]), int(match[3]))


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """A camera path through a scene."""

    path: str = key(
        "test",
        help="camera path:\n"
        "test, val, train: the views of the scene;\n"
        "interpolate: through the test views; circle, spiral: from the training views;\n"
        "file: poses of a file;\n"
        "turn: the first training view once around the z axis of the world; straight: along its x axis; tumble: random rotations about the origin;\n"
        "in moving scenes spiral<frame>: around the camera of a frame, at its time step;\n"
        "fixview<frame>_interp<n>: the camera of a frame at all time steps, with n frames between two of them",
    )
    poses: Path | None = key(
        None,
        help="file of poses for path=file (cameras.json, transforms.json, CamPose.inf); turn, straight and tumble move its first camera",
        exists="a file of poses",
    )
    views: tuple[int | str, ...] | None = key(
        None, help="names or indices of the views that the path is made from, in place of those of path"
    )
    reach: tuple[float, float] = key((-2.0, 1.0), help="ends of path=straight relative to the camera, scene units")
    seed: int = key(0, help="of path=tumble")
    frames: int | None = key(
        None,
        help="number of frames of a path that is not made of views or a file; null: 120, turn 500, straight 301, in moving scenes 6 per time step",
    )
    loop: bool = key(False, help="path=interpolate returns to its first view")
    size: tuple[int, int] | None = key(
        None, help="[height, width] of the images, whose field of view is at least that of the views; null: size of the views"
    )

    def __post_init__(self) -> None:
        known = (*SPLITS, *SAMPLED_PATHS, *ONE_CAMERA_PATHS, "file")
        video = VideoPath.parse(self.path)
        if self.path not in known and video is None:
            close = nearest(self.path, known)
            meant = f"; did you mean {close}?" if close is not None else ""
            raise InputError(f"path: expected one of {', '.join(known)}, spiral<X> or fixview<X>_interp<Y>, got {self.path}{meant}")
        if (self.poses is None) == (self.path == "file") and self.path not in ONE_CAMERA_PATHS:
            raise InputError(
                f"poses: expected a file with path=file|{'|'.join(ONE_CAMERA_PATHS)} and none with other paths, got poses={self.poses} path={self.path}"
            )
        has_count = self.path in (*SAMPLED_PATHS, *ONE_CAMERA_PATHS) or (video is not None and video.between is None)
        if self.frames is not None and not has_count:
            raise InputError(
                f"frames={self.frames}: path={self.path} has its own frames; add path=circle, or another one of any number of frames "
                f"({', '.join((*SAMPLED_PATHS, *ONE_CAMERA_PATHS))})"
            )
        if self.frames is not None and self.frames < 1:
            raise InputError(f"frames: expected a positive number, got {self.frames}")
        if self.loop and self.path != "interpolate":
            raise InputError(f"loop: expected path=interpolate with it, got path={self.path}; leave it out")
        if self.views is not None and (self.path == "file" or video is not None or not self.views):
            raise InputError(
                f"views: expected at least one view, and a path that is made of views, got views={list(self.views)} path={self.path}"
            )


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """A trained run."""

    run: Path = key(
        help="folder of the run, or a .zip file of npbgpp export weights, which is unpacked into a folder beside it",
        exists="the folder of a run",
    )
    checkpoint: str = key("last", help="name of a file in the checkpoints of the run")
    trust_config: bool = key(
        False,
        help="let the config of the run name any code and compute values; true only for folders of people whose programs you would run",
    )

    def folder(self) -> Path:
        """Absolute path of the run. Raises InputError for a file that is none of an export."""
        return run_folder(self.run.expanduser().resolve())


@dataclass(frozen=True, kw_only=True)
class SceneSettings(RunSettings):
    """A scene of a trained run."""

    scene: str | None = key(None, help="name of the scene; needed when the run has several")


@dataclass(frozen=True, kw_only=True)
class RenderSettings(PathSettings, SceneSettings):
    """Arguments of ``npbgpp render``."""

    out: Path | None = key(None, help="folder of the images and videos; null: <run>/films/<scene>_<path>")
    overwrite: bool = key(False, help="replace the files of an earlier call in out")
    fps: float = key(30.0, help="frames per second of the videos")
    video: Literal["mp4", "gif", "none"] = key("mp4", help="format of the videos")
    images: bool = key(True, help="write every frame as PNG file")
    depth: tuple[Literal["picture", "npy", "pfm", "bytes"], ...] = key(
        (),
        help="formats of depth maps along the viewing axis, scene units, 0 where nothing is; picture: in colours, with a video. A list such as [picture,npy]",
    )
    history: bool = key(False, help="filter over time against flicker (methods that support it, such as NPCR)")
    part: str = key("full", help="part of a moving scene: full, static or dynamic (methods that support it, such as NSFF)")
    motion: bool = key(False, help="images and a video of the motion to the next time step, in colours by direction (moving scenes)")

    def __post_init__(self) -> None:
        super().__post_init__()
        video = VideoPath.parse(self.path)
        if self.motion and video is not None and video.between:
            raise InputError(
                f"motion: expected a path of time steps, since it is unknown between them, got path={self.path}; choose interp0"
            )
        if not 0 < self.fps <= _LARGEST_FRAME_RATE:
            raise InputError(f"fps: expected a positive number of at most {_LARGEST_FRAME_RATE}, got {self.fps:g}")


@dataclass(frozen=True, kw_only=True)
class RefineSettings(PathSettings, SceneSettings):
    """Arguments of ``npbgpp refine``."""

    path: str = key("interpolate", help="camera path as for npbgpp render")
    passes: int = key(10, help="passes over the path, each with one optimisation step")
    lr: float = key(5e-5, help="learning rate. Large values blur the images, which also lowers flicker; see change in refine.json")
    out: Path | None = key(None, help="folder of the refined run; null: <run>/refined/<scene>_<path>")
    overwrite: bool = key(False, help="replace a refined run in out")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.passes < 1:
            raise InputError(f"passes: expected at least 1, got {self.passes}")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr: expected a positive number, got {self.lr:g}")


@dataclass(frozen=True, kw_only=True)
class WeightsExport(SceneSettings):
    """Arguments of ``npbgpp export weights``, and of every export of a file."""

    out: Path | None = key(None, help="file to write; null: one in <run>/export")
    overwrite: bool = key(False, help="replace an existing file")

    def file(self, name: str, suffixes: tuple[str, ...]) -> Path:
        """Absolute path of the file to write. Raises InputError for another suffix, or an existing file."""
        path = (self.out or self.folder() / "export" / name).expanduser().absolute()
        if path.suffix not in suffixes:
            raise InputError(f"out={path}: expected a name that ends in {' or '.join(suffixes)}")
        if path.exists() and not self.overwrite:
            raise InputError(f"out={path}: expected no file there; choose another one, or overwrite=true")
        return path


@dataclass(frozen=True, kw_only=True)
class CloudExport(WeightsExport):
    """Arguments of ``npbgpp export cloud``."""


@dataclass(frozen=True, kw_only=True)
class InCoordinates:
    """Coordinates of the file that is written."""

    coordinates: Literal["scene", "original"] = key(
        "scene",
        help="coordinates of the file; original: those of the COLMAP model that npbgpp prepare photos estimated or was given (poses=), before it made the scene "
        "upright. Other keys stay in those of the scene",
    )


@dataclass(frozen=True, kw_only=True)
class CroppedExport(CloudExport, InCoordinates):
    """The part of a scene that is written; its box is in the coordinates of the scene's files."""

    x_range: tuple[float, float] | None = key(
        None, help="ends of the box along x that is written; null: everything. The viewer shows a box"
    )
    y_range: tuple[float, float] | None = key(None, help="ends of the box along y; null: everything")
    z_range: tuple[float, float] | None = key(None, help="ends of the box along z; null: everything")

    def __post_init__(self) -> None:
        for name in ("x_range", "y_range", "z_range"):
            ends = getattr(self, name)
            if ends is not None and not ends[0] < ends[1]:
                raise InputError(f"{name}: expected [low,high] in ascending order, got [{ends[0]:g},{ends[1]:g}]")

    def ranges(self) -> tuple[tuple[float, float] | None, ...]:
        """Ends along x, y and z."""
        return self.x_range, self.y_range, self.z_range


@dataclass(frozen=True, kw_only=True)
class SplatExport(CroppedExport):
    """Arguments of ``npbgpp export splats``."""


@dataclass(frozen=True, kw_only=True)
class PageExport(CloudExport):
    """Arguments of ``npbgpp export page``."""

    points: int = key(200_000, help="at most so many points or gaussians, of these the largest and most opaque")
    photos: bool = key(True, help="photos in the cameras, small")
    film: Path | None = key(None, help="film to put into the page, .mp4; null: film.mp4 of the run, where there is one", exists="a film")

    def __post_init__(self) -> None:
        if self.points < 1:
            raise InputError(f"points: expected a positive number, got {self.points}")
        if self.film is not None and self.film.suffix != ".mp4":
            raise InputError(f"film: expected a file that ends in .mp4, got {self.film}")


@dataclass(frozen=True, kw_only=True)
class BoxExport(CloudExport):
    """Where a radiance field is evaluated, in its coordinates: those of the world unless it was trained with ``system.ray_frame=inward``. For meshes from depth
    maps, where these are fused, in the coordinates of the scene.
    """

    x_range: tuple[float, float] | None = key(
        None,
        help="ends of the box along x; null: those of the occupancy grid, -1 to 1 without one; of meshes from depth maps, of what the photos show",
    )
    y_range: tuple[float, float] | None = key(None, help="ends of the box along y; null: as x_range")
    z_range: tuple[float, float] | None = key(None, help="ends of the box along z; null: as x_range")
    n_grid: int = key(256, help="nodes along each side of the box")


@dataclass(frozen=True, kw_only=True)
class MeshExport(BoxExport, InCoordinates):
    """Arguments of ``npbgpp export mesh``."""

    sigma_threshold: float | None = key(
        None, help="radiance fields: density of the surface; null: between the densities of empty and of dense space"
    )
    occ_threshold: float = key(0.2, help="opacity in front of a vertex that hides it from a photo")
    samples: int = key(64, help="depths at which that opacity is evaluated")
    use_vertex_normal: bool = key(False, help="colours of the field seen along the normals, in place of those of the photos")
    near_t: float = key(1.0, help="use_vertex_normal: rays start (near_t - 1) times the near bound of the field outside of a vertex")

    def __post_init__(self) -> None:
        if not 0 <= self.near_t < math.inf:
            raise InputError(f"near_t: expected a finite number, 0 or more, got {self.near_t:g}")


@dataclass(frozen=True, kw_only=True)
class VolumeExport(BoxExport):
    """Arguments of ``npbgpp export volume``."""

    n_grid: int = key(512, help="nodes along each side of the box")


@dataclass(frozen=True, kw_only=True)
class CameraExport(PathSettings, SceneSettings, InCoordinates):
    """Arguments of ``npbgpp export cameras``."""

    path: str = key("turn", help="camera path as for npbgpp render")
    out: Path | None = key(None, help="folder of CamPose.inf and Intrinsic.inf; null: <run>/export")
    overwrite: bool = key(False, help="replace existing files")


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """Arguments of ``npbgpp view``."""

    runs: tuple[Path, ...] = key(help="folders of runs of one scene, the first one on the left", exists="the folder of a run")
    checkpoint: str = key("last", help="name of a file in the checkpoints of the runs")
    scene: str | None = key(None, help="name of the scene; needed when a run has several")
    trust_config: bool = key(
        False,
        help="let the configs of the runs name any code and compute values; true only for folders of people whose programs you would run",
    )
    host: str = key("127.0.0.1", help="address to bind to; 0.0.0.0 lets everyone in who reaches this machine")
    port: int = key(8080, help="port, or the next free one")
    viewport: str | None = key(
        None, help="w,h of the pictures in pixels, rounded down to multiples of 16, such as 1280,720; null: as large as the window"
    )
    view: str | None = key(None, help="name or index of the view to start at; null: the first training view")
    origin_view: bool = key(False, help="start above the cloud, looking down along the z axis, as --origin-view of NPBG")
    mode: str = key("picture", help="what is shown first: picture, depth, normals, opacity, or a layer of the method such as descriptors")
    speed: float = key(1.0, help="of the keys, relative to the size of the scene")
    replay: Path | None = key(None, help="file of poses to play, as for npbgpp render path=file", exists="a file of poses")
    screenshot: Path | None = key(None, help="write the first picture into this PNG file and end, without a browser")

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("runs: expected the folder of at least one run, got none")
        if not 0 < self.port < 1 << 16:
            raise InputError(f"port: expected a number from 1 to {(1 << 16) - 1}, got {self.port}")
        if not 0.01 <= self.speed <= 100:
            raise InputError(f"speed: expected a number from 0.01 to 100, got {self.speed:g}")
        if self.view is not None and self.origin_view:
            raise InputError("view: expected one place to start at, got view and origin_view; leave one of them out")
        if self.screenshot is not None and self.screenshot.suffix != ".png":
            raise InputError(f"screenshot: expected a file name that ends in .png, got {self.screenshot}")
        if self.screenshot is not None and (self.replay is not None or len(self.runs) > 1):
            raise InputError("screenshot: expected one run and no replay with it; render a path with npbgpp render path=file")
