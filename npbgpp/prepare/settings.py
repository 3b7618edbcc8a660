"""Arguments of ``npbgpp prepare``. Torch is imported when a scene is read, not before, so that mistakes and help are answered at once."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import OmegaConf

from npbgpp.core.config import key
from npbgpp.core.paths import conf_folder
from npbgpp.core.plugins import LAYOUTS, plugins
from npbgpp.errors import InputError

if TYPE_CHECKING:
    from npbgpp.data import Scene

_H3DS = "datasets/_h3ds.yaml"  # the published views of each H3DS scene
_VIEWS = "indices, every:8, every:8+4, a share such as 0.1, or a file with a name or index per line; null: those of the layout"


def _layouts() -> tuple[str, ...]:
    return ("auto", *sorted(plugins(LAYOUTS)))


@dataclass(frozen=True)
class SceneSettings:
    """The scene of a command; the keys mean the same as in the ``datasets`` group."""

    scene: str = key(help="folder of the scene; with paths_file its name there")
    layout: str = key("auto", help="layout of the folder; auto recognises it by the files", choices=_layouts)
    pc_name: str = key("mvs_pc.ply", help="file of the point cloud in the folder")
    downscale: float = key(1.0, help="factor by which photos are reduced")
    white_bg: bool = key(True, help="composite photos on white outside of their masks")
    val_indices: tuple[int, ...] | float | str | None = key(None, help=f"validation views: {_VIEWS}")
    test_indices: tuple[int, ...] | float | str | None = key(None, help=f"test views: {_VIEWS}")
    paths_file: Path | None = key(None, help="yaml of NPBG with the scenes and their files")

    def folder(self) -> Path:
        """Absolute path of the scene. Raises InputError if the folder does not exist."""
        from npbgpp.parsers import locate_scene

        folder = locate_scene(self.layout, self.scene, self._options()) or Path(self.scene).expanduser()
        if not folder.is_dir():
            raise InputError(f"scene={self.scene}: expected the folder of a scene, {folder.absolute()} does not exist; correct the path")
        return folder.resolve()

    def read(self) -> "Scene":
        """Parses the scene, with the splits of a training. Raises InputError for a scene that cannot be read."""
        from npbgpp.data import CloudFile
        from npbgpp.parsers import read_scene, recognise

        folder, options = self.folder(), self._options()
        name = self.scene if self.paths_file is not None else folder.name
        if self.layout == "h3ds" or (self.layout == "auto" and recognise(folder)[:1] == ("h3ds",)):
            fragment = OmegaConf.to_container(OmegaConf.load(conf_folder() / _H3DS))
            assert isinstance(fragment, dict)
            options["published_views"] = fragment["published_views"]
        scene = read_scene(self.layout, folder, folder, name, CloudFile(folder / self.pc_name), options)
        return scene.with_splits(self.val_indices, self.test_indices)

    def scene_words(self) -> list[str]:
        """The words of a command line that name the scene."""
        layout = [] if self.layout == "auto" else [f"layout={self.layout}"]
        return [self.scene, *layout, *([] if self.paths_file is None else [f"paths_file={self.paths_file}"])]

    def _options(self) -> dict[str, Any]:
        paths_file = None if self.paths_file is None else str(self.paths_file)
        return {"white_bg": self.white_bg, "downscale": self.downscale, "paths_file": paths_file}


@dataclass(frozen=True)
class CheckSettings(SceneSettings):
    """Arguments of ``npbgpp prepare check``."""

    near: float = key(1.0, help="near plane of the training (system.near), scene units")
    pictures: int = key(4, help="number of photos on the contact sheet")
    out: Path | None = key(None, help="folder of the contact sheet; null: check/ in the folder of the scene")

    def __post_init__(self) -> None:
        if self.pictures < 1:
            raise InputError(f"pictures: expected at least 1, got {self.pictures}")


@dataclass(frozen=True)
class CloudSettings(SceneSettings):
    """Arguments of ``npbgpp prepare cloud``."""

    method: Literal["auto", "decimate", "depth", "hull", "sparse", "mvs"] = key(
        "auto",
        help="depth: fuses depth maps; hull: visual hull of the masks; sparse: points of a COLMAP model, triangulated from the training views alone; "
        "mvs: multi-view stereo of the training views, as npbgpp prepare dense; "
        "decimate: downsamples source; auto: the first of decimate, depth, hull and sparse that the scene has data for",
    )
    source: str | None = key(None, help="cloud to decimate, below the folder of the scene")
    count: int | None = key(None, help="number of points: approximate for the visual hull, an upper bound for other methods")
    voxel: float | None = key(
        None, help="edge of the voxels in which points are averaged, scene units; null: chosen by depth fusion, none otherwise"
    )
    dissent: float = key(0.05, help="visual hull: share of the photos of a point that may have it outside their masks")
    overwrite: bool = key(False, help="replace an existing cloud")

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise InputError(f"count: expected a positive number of points, got {self.count}")


@dataclass(frozen=True)
class DenseSettings(SceneSettings):
    """Arguments of ``npbgpp prepare dense``."""

    size: int = key(640, help="longest side of the photos that depth maps are estimated from, pixels; time and points grow with its square")
    min_views: int = key(4, help="views that must agree on a point; fewer give more points and more errors")
    count: int | None = key(None, help="upper bound for the number of points, drawn at random; null keeps all")
    seed: int = key(0, help="of the random search")
    keep_depth: bool = key(
        False, help="keep depth and normal maps in depth/stereo, as COLMAP writes them, and the views of each point in <pc_name>.vis"
    )
    overwrite: bool = key(False, help="replace an existing cloud")

    def __post_init__(self) -> None:
        for name, value, least in (
            ("size", self.size, 64),
            ("min_views", self.min_views, 2),
            ("count", self.count, 1),
            ("seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"{name}: expected {least} or more, got {value}")


@dataclass(frozen=True)
class LlffSettings:
    """Arguments of ``npbgpp prepare llff``."""

    scene: Path = key(help="folder with images and a COLMAP model", exists="the folder of a scene")
    out: Path | None = key(
        None,
        help="folder of a new scene with undistorted PNG copies of the registered photos; null: poses_bounds.npy beside the original photos",
    )
    downscale: float = key(1.0, help="factor by which the copies are reduced")
    overwrite: bool = key(False, help="replace files of an earlier call")

    def __post_init__(self) -> None:
        if not 1 <= self.downscale < math.inf:
            raise InputError(f"downscale: expected 1 or more, got {self.downscale:g}")
        if self.out is None and self.downscale != 1:
            raise InputError(f"downscale: expected 1 for the original photos, got {self.downscale:g}; write copies with out=<folder>")


@dataclass(frozen=True)
class VideoSettings:
    """Arguments of ``npbgpp prepare monocular``."""

    root: Path = key(help="folder of the video", exists="the folder of a video")
    stages: tuple[Literal["resize", "masks", "poses", "depth", "flow"], ...] = key(
        ("resize", "masks", "poses", "depth", "flow"), help="stages to run; their order is fixed"
    )
    frames: str = key("frames", help="folder of the frames below root, ordered by the number at the end of their names")
    max_width: int = key(1280, help="largest width of the resized frames, pixels")
    max_height: int = key(720, help="largest height of the resized frames, pixels")
    dynamic_classes: tuple[str, ...] = key(("person",), help="COCO classes of moving objects")
    mask_score: float = key(0.05, help="smallest detection score of moving objects")
    mask_weights: Path | None = key(None, help="file with weights of Mask R-CNN; null: that in the torch hub cache")
    depth: str = key(
        "sparse", help="sparse (interpolates the points of the COLMAP model, weak) or the TorchScript file of a network, whose code is run"
    )
    depth_network: Literal["disparity", "depth"] = key("disparity", help="output of that network")
    flow: Literal["dis", "raft"] = key("dis", help="optical flow: dis of OpenCV, raft of torchvision")
    flow_weights: Path | None = key(None, help="file with weights of RAFT; null: that in the torch hub cache")
    device: Literal["auto", "cpu", "cuda"] = key("auto", help="device of the networks; auto: a GPU if there is one")

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError("stages: expected at least one stage, got none; leave the key out to run all")
        if min(self.max_width, self.max_height) < 1:
            raise InputError(f"max_width, max_height: expected positive numbers of pixels, got {self.max_width} and {self.max_height}")


@dataclass(frozen=True)
class PhotoSettings:
    """Arguments of ``npbgpp prepare photos``."""

    photos: Path = key(
        help="folder of photos (JPEG, PNG, TIFF, WebP, BMP, HEIC) and its sub-folders, or a video file",
        exists="a folder of photos or a video",
    )
    scene: Path = key(help="folder of the scene to write")
    masks: Path | None = key(
        None,
        help="folder with a mask <name of the photo>.png for photos, bright where the scene is: moving things are dark",
        exists="a folder of masks",
    )
    poses: Path | None = key(
        None,
        help="folder of a COLMAP model of these photos, as VGGT and others write: its poses are adjusted, not estimated",
        exists="the folder of a COLMAP model",
    )
    max_image_size: int = key(1600, help="longest side of the photos of the scene, pixels; larger ones are reduced")
    panoramas: bool | None = key(
        None, help="split 360-degree photos into views; null: those of width = 2 * height whose sides continue each other"
    )
    frames: int = key(100, help="largest number of frames that are taken from a video")
    camera_model: Literal["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV"] = key(
        "SIMPLE_RADIAL", help="lens model of COLMAP, one camera per device, zoom and size"
    )
    features: int | None = key(None, help="largest number of features per photo; null: 2048 to 8192, such that matching takes minutes")
    matching: Literal["auto", "exhaustive", "sequential"] = key(
        "auto", help="photos that are compared: all pairs, or neighbours by name; auto: neighbours in videos and for more than 200 photos"
    )
    retries: bool = key(True, help="try other features, first pairs and mapping where fewer than 80 % of the photos are registered")
    distance: float = key(10.0, help="median distance from the cameras to the points that they see, scene units")
    seed: int = key(0, help="of the random choices of COLMAP")
    overwrite: bool = key(False, help="replace the poses of the scene; those that another program wrote are kept beside them")

    def __post_init__(self) -> None:
        if self.max_image_size < 64:
            raise InputError(f"max_image_size: expected at least 64 pixels, got {self.max_image_size}")
        if self.frames < 2:
            raise InputError(f"frames: expected at least 2 frames, got {self.frames}")
        if self.features is not None and self.features < 100:
            raise InputError(f"features: expected at least 100 per photo, got {self.features}")
        if not 0 < self.distance < math.inf:
            raise InputError(f"distance: expected a positive number of scene units, got {self.distance:g}")


@dataclass(frozen=True)
class ResizeSettings:
    """Arguments of ``npbgpp prepare resize``."""

    dir: Path = key(help="folder of images", exists="a folder of images")
    out: Path | None = key(None, help="folder of the resized images; null: <dir>_<1/factor>, such as images_2")
    factor: float | None = key(None, help="factor of the sides, such as 0.5")
    max_size: int | None = key(None, help="longest side, pixels, in place of factor; smaller images keep their size")
    overwrite: bool = key(False, help="replace files of an earlier call in out")

    def __post_init__(self) -> None:
        if (self.factor is None) == (self.max_size is None):
            raise InputError(f"factor, max_size: expected one of them, got factor={self.factor} max_size={self.max_size}")
        if self.factor is not None and not 0 < self.factor <= 1:
            raise InputError(f"factor: expected a number above 0 and up to 1, got {self.factor:g}")
        if self.max_size is not None and self.max_size < 1:
            raise InputError(f"max_size: expected a positive number of pixels, got {self.max_size}")
