"""``npbgpp prepare cloud``: makes the point cloud of a scene from its training views."""

import logging
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from npbgpp.core.config import typed_value
from npbgpp.core.files import write_atomically
from npbgpp.core.paths import require_writable
from npbgpp.data import CloudManifest, ColmapModel, Scene, View, file_sha256, find_models, manifest_path, read_cloud
from npbgpp.errors import InputError
from npbgpp.geometry import PointCloud, write_ply
from npbgpp.parsers.colmap import photos_of_model
from npbgpp.prepare.dense import DenseOptions, dense_points, write_visibility
from npbgpp.prepare.depth_fusion import check_voxel, decimate, fuse_depth
from npbgpp.prepare.photos_manifest import PhotosManifest
from npbgpp.prepare.photos_report import CLOUD, write_report
from npbgpp.prepare.settings import CloudSettings, DenseSettings, SceneSettings
from npbgpp.prepare.triangulation import triangulate_points
from npbgpp.prepare.visual_hull import masks_carve, visual_hull

log = logging.getLogger("npbgpp.prepare")

_HULL_POINTS = 100_000
# what each method needs, in the order of preference
_NEEDS = {"decimate": "source=<cloud>", "depth": "depth maps", "hull": "a mask for every photo", "sparse": "a COLMAP model"}
_ON_REQUEST = {"mvs": "3 training views"}  # takes minutes


def make_cloud(settings: CloudSettings, command: str) -> None:
    """Writes the cloud and its manifest.

    Args:
        settings: the keys.
        command: the command line, for the manifest.

    Raises:
        InputError: a scene that cannot be read or lacks data for the method, an existing cloud, or a file that cannot be written.
    """
    check_voxel(settings.voxel)
    scene = settings.read()
    path = _free_path(scene, settings)
    train = tuple(scene.views[i] for i in scene.splits["train"])
    method = _choose_method(settings, scene.layout, train)
    log.info("scene %s, read as %s: %s from %d training views of %d", scene.name, scene.layout, method, len(train), len(scene.views))
    points, used = _make_points(method, settings, scene, train)
    held_out = tuple(view.name for view in scene.views if view.name not in used)
    if method == "decimate":
        assert settings.source is not None
        origin = CloudManifest.read(settings.folder() / settings.source)
        used, held_out = (origin.used_views, origin.held_out_views) if origin is not None else ((), ())  # unknown without a manifest
    # depth fusion averages voxels itself, the visual hull chooses its resolution by the count
    points = decimate(points, None if method == "depth" else settings.voxel, None if method == "hull" else settings.count)
    _write_cloud(path, points, scene, None, _Origin(method, settings, used, held_out, command))


def make_dense_cloud(settings: DenseSettings, command: str) -> None:
    """Writes the cloud of ``npbgpp prepare dense`` and its manifest.

    Args:
        settings: the keys.
        command: the command line, for the manifest.

    Raises:
        InputError: a scene that cannot be read or lacks data for stereo, an existing cloud, or a file that cannot be written.
    """
    scene = settings.read()
    path = _free_path(scene, settings)
    train = tuple(view.name for view in (scene.views[i] for i in scene.splits["train"]))
    log.info("scene %s, read as %s: stereo of %d training views of %d", scene.name, scene.layout, len(train), len(scene.views))
    folder = settings.folder() / "depth" if settings.keep_depth else None
    options = DenseOptions(settings.size, settings.min_views, settings.seed, folder)
    found = dense_points(scene, settings.folder(), settings.downscale, _work_folder(path), options)
    kept: slice | np.ndarray = slice(None)
    if settings.count is not None and settings.count < len(found.cloud):
        kept = np.sort(np.random.default_rng(settings.seed).permutation(len(found.cloud))[: settings.count])
    held_out = tuple(view.name for view in scene.views if view.name not in train)
    if found.seen is not None:
        write_visibility(path.with_name(f"{path.name}.vis"), found.seen[kept])
    assert found.cloud.rgb_u8 is not None
    cloud = PointCloud(found.cloud.xyz[kept], found.cloud.rgb_u8[kept])
    _write_cloud(path, cloud, scene, found.normal_world[kept], _Origin("mvs", settings, train, held_out, command))


def _free_path(scene: Scene, settings: CloudSettings | DenseSettings) -> Path:
    path = scene.cloud.path
    if path.exists() and not settings.overwrite:
        raise InputError(f"pc_name={settings.pc_name}: {path} exists; choose another name, or overwrite=true")
    require_writable(path.parent, "scene")
    CloudManifest.read(path)  # raises now rather than after minutes if another file has the name of the manifest
    return path


def _work_folder(path: Path) -> Path:
    return path.with_name(f".{path.name}.stereo")


def _choose_method(settings: CloudSettings, layout: str, train: tuple[View, ...]) -> str:
    available = {
        "decimate": settings.source is not None,
        "depth": sum(view.depth is not None for view in train) > 1,
        "hull": all(view.mask is not None or view.alpha_is_mask for view in train),
        # the poses of transforms.json are in a world of their own
        "sparse": layout != "nerfstudio" and bool(find_models(settings.folder())),
        "mvs": len(train) > 2,
    }
    if settings.method == "auto":
        for method in _NEEDS:
            # masks that are bright everywhere say nothing about the object
            if available[method] and (method != "hull" or not available["sparse"] or masks_carve(train)):
                return method
        raise InputError(
            f"scene={settings.scene}: expected {', '.join(_NEEDS.values())}, got none of them; reconstruct the scene with COLMAP, or name a cloud with "
            "source=<file>"
        )
    if settings.method == "sparse" and layout == "nerfstudio":
        raise InputError(
            "method=sparse: the poses of transforms.json may be in another world than the COLMAP model; use layout=colmap, or the points of ply_file_path"
        )
    if not available[settings.method]:
        raise InputError(
            f"method={settings.method}: expected {(_NEEDS | _ON_REQUEST)[settings.method]}, scene {settings.scene} has none; use another method"
        )
    return settings.method


def _make_points(method: str, settings: CloudSettings, scene: Scene, train: tuple[View, ...]) -> tuple[PointCloud, tuple[str, ...]]:
    """The points, and the names of the views that they were made from."""
    names = tuple(view.name for view in train)
    if method == "depth":
        with_depth = tuple(view for view in train if view.depth is not None)
        return fuse_depth(with_depth, settings.voxel), tuple(view.name for view in with_depth)
    if method == "hull":
        return visual_hull(train, settings.count or _HULL_POINTS, settings.dissent), names
    if method == "sparse":
        return _triangulate(ColmapModel.read(find_models(settings.folder())[0][0]), scene, settings), names
    if method == "mvs":
        return dense_points(scene, settings.folder(), settings.downscale, _work_folder(scene.cloud.path), DenseOptions()).cloud, names
    assert settings.source is not None
    return read_cloud(settings.folder() / settings.source, scene.cloud.transform), ()


def _triangulate(model: ColmapModel, scene: Scene, settings: CloudSettings) -> PointCloud:
    """Matches images of the model with views by file in scenes of COLMAP, else by name, or by order in layouts that name their photos otherwise."""
    if scene.layout == "colmap":
        by_file = photos_of_model(settings.folder(), settings.downscale, model)
        views = {by_file[view.image].name: view for view in scene.views}
    else:
        views = {image.name: view for view in scene.views for image in model.images if view.image.as_posix().endswith("/" + image.name)}
    if len(views) < len(scene.views):
        if len(model.images) != len(scene.views):
            raise InputError(
                f"{model.folder}: expected a pose for each of the {len(scene.views)} photos of scene {scene.name}, got {len(model.images)}"
            )
        views = {image.name: view for view, image in zip(scene.views, model.images, strict=True)}
    train = {scene.views[i].name for i in scene.splits["train"]}
    photos = {name: view.image for name, view in views.items() if view.name in train}
    points = triangulate_points(model, photos.keys(), photos=photos)
    if model.offset == scene.offset:
        return points
    between = torch.tensor(model.offset or (0.0,) * 3, dtype=torch.float64) - torch.tensor(scene.offset or (0.0,) * 3, dtype=torch.float64)
    return PointCloud((points.xyz.double() + between).float(), points.rgb_u8)


@dataclass(frozen=True)
class _Origin:
    """What the manifest says about how a cloud was made."""

    method: str
    settings: CloudSettings | DenseSettings
    used_views: tuple[str, ...]
    held_out_views: tuple[str, ...]
    command: str


def _write_cloud(path: Path, points: PointCloud, scene: Scene, normals: np.ndarray | None, origin: _Origin) -> None:
    """Writes the cloud in the coordinates of the scene's files, and its manifest. Raises InputError if it cannot be written; a file that was there is then
    unchanged."""
    write_atomically(path, lambda file: write_ply(file, points, scene.offset, normals))
    manifest = CloudManifest(
        method=origin.method,
        settings={k: value for k, value in asdict(origin.settings).items() if value is None or isinstance(value, int | float | str)},
        scene=scene.name,
        layout=scene.layout,
        used_views=origin.used_views,
        held_out_views=origin.held_out_views,
        points=len(points),
        cloud=path.name,
        sha256=file_sha256(path),
        command=origin.command,
    )
    manifest.write(path)
    log.info("%d points: %s; manifest: %s", len(points), path, manifest_path(path))
    photos = PhotosManifest.read(path.parent) if path.name == CLOUD else None
    if photos is not None:  # its report shows the cloud
        write_report(path.parent, photos)
        log.info("report.html in %s shows the new cloud", path.parent)


def name_training(settings: CloudSettings | DenseSettings) -> None:
    """Says how to train on the scene with the cloud that was made, and the splits that it was made for."""
    if settings.paths_file is not None:
        return
    folder = settings.folder()
    words = [
        "experiment=npbg_quick",
        "datasets=auto_one_scene",
        f"datasets.data_root={folder.parent}",
        f"datasets.scene_name={folder.name}",
    ]
    usual = SceneSettings(settings.scene)
    names = ("layout", "pc_name", "downscale", "white_bg", "val_indices", "test_indices")
    words += [
        f"datasets.{name}={typed_value(getattr(settings, name))}" for name in names if getattr(settings, name) != getattr(usual, name)
    ]
    log.info("next, a training: npbgpp train %s", shlex.join(words))
