"""``python -m npbgpp.prepare cloud scene=<folder>``: makes the point cloud of a scene from its training views."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from npbgpp.data import CloudManifest, ColmapModel, Scene, View, file_sha256, find_models, manifest_path, read_cloud
from npbgpp.errors import InputError
from npbgpp.geometry import PointCloud, write_ply
from npbgpp.prepare.depth_fusion import check_voxel, decimate, fuse_depth
from npbgpp.prepare.scene_choice import SceneChoice
from npbgpp.prepare.sparse import sparse_points
from npbgpp.prepare.visual_hull import visual_hull

log = logging.getLogger("npbgpp.prepare")

_POINTS = 100_000


@dataclass(frozen=True)
class CloudSettings(SceneChoice):
    """Keys of ``cloud``.

    Attributes:
        method: depth (fuses depth maps), hull (carves by masks), sparse (points of COLMAP, triangulated anew), decimate (thins out ``source``), or auto:
            decimate where ``source`` is given, else the first of depth, hull and sparse that the scene has what is needed for.
        source: the cloud to decimate, below the folder of the scene.
        count: number of points; of a hull about so many, of another cloud at most so many.
        voxel: side of the cells that points are averaged in, scene units; depth maps choose one when it is not given.
        dissent: of a hull, share of the photos that may have a point outside their masks.
        overwrite: replace a cloud that is there.
    """

    method: str = "auto"
    source: str | None = None
    count: int | None = None
    voxel: float | None = None
    dissent: float = 0.05
    overwrite: bool = False


def make_cloud(settings: CloudSettings, command: str) -> None:
    """Makes the cloud of a scene from its training views."""
    if settings.count is not None and settings.count < 1:
        raise InputError(f"count: expected a positive number of points, got {settings.count}")
    check_voxel(settings.voxel)
    scene = settings.read()
    path = scene.cloud.path
    if path.exists() and not settings.overwrite:
        raise InputError(f"pc_name={settings.pc_name}: {path} is there already; choose another name, or overwrite=true")
    CloudManifest.read(path)  # minutes of work are not begun where another file has the name of the manifest
    train = tuple(scene.views[i] for i in scene.splits["train"])
    method = _method(settings, train)
    log.info("scene %s, read as %s: %s from %d training views of %d", scene.name, scene.layout, method, len(train), len(scene.views))
    points, used = _make(method, settings, scene, train)
    held_out = tuple(view.name for view in scene.views if view.name not in used)
    if method == "decimate":
        assert settings.source is not None
        origin = CloudManifest.read(settings.folder() / settings.source)
        # without a manifest of its source nobody knows what a cloud was made from: neither list says anything
        used, held_out = (origin.used_views, origin.held_out_views) if origin is not None else ((), ())
    # fused depth maps have their voxels already, a hull about its count
    points = decimate(points, None if method == "depth" else settings.voxel, None if method == "hull" else settings.count)
    _replace(path, points)
    manifest = CloudManifest(
        method=method,
        settings={key: value for key, value in asdict(settings).items() if value is None or isinstance(value, int | float | str)},
        scene=scene.name,
        layout=scene.layout,
        used_views=used,
        held_out_views=held_out,
        points=len(points),
        cloud=path.name,
        sha256=file_sha256(path),
        command=command,
    )
    manifest.write(path)
    log.info("%d points: %s; how they were made: %s", len(points), path, manifest_path(path))


def _replace(path: Path, points: PointCloud) -> None:
    """Writes a cloud through a file beside it, so that either the old or the new one is there. Raises InputError when it cannot be written."""
    part = path.with_name(f".{path.name}.part")
    try:
        write_ply(part, points)
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error}); free space, or choose another name with pc_name=<file>") from error
    finally:
        part.unlink(missing_ok=True)


def _method(settings: CloudSettings, train: tuple[View, ...]) -> str:
    folder = settings.folder()
    possible = {
        "depth": sum(view.depth is not None for view in train) > 1,
        "hull": all(view.mask is not None or view.alpha_is_mask for view in train),
        "sparse": bool(find_models(folder)),
        "decimate": settings.source is not None,
    }
    needs = {"depth": "depth maps", "hull": "a mask for every photo", "sparse": "a COLMAP model", "decimate": "source=<cloud>"}
    if settings.method == "auto":
        for method in ("decimate", "depth", "hull", "sparse"):
            if possible[method]:
                return method
        raise InputError(
            f"scene={settings.scene}: no cloud can be made, it has neither {', '.join(list(needs.values())[:-1])}; reconstruct it with COLMAP, or name a "
            "cloud of your own with source=<file> (method=decimate)"
        )
    if settings.method not in possible:
        raise InputError(f"method: expected auto, {', '.join(possible)}, got {settings.method}")
    if not possible[settings.method]:
        raise InputError(f"method={settings.method}: needs {needs[settings.method]}, scene {settings.scene} has none")
    return settings.method


def _make(method: str, settings: CloudSettings, scene: Scene, train: tuple[View, ...]) -> tuple[PointCloud, tuple[str, ...]]:
    """The cloud and the names of the views that were opened for it."""
    names = tuple(view.name for view in train)
    if method == "depth":
        with_depth = tuple(view for view in train if view.depth is not None)
        return fuse_depth(with_depth, settings.voxel), tuple(view.name for view in with_depth)
    if method == "hull":
        return visual_hull(train, settings.count or _POINTS, settings.dissent), names
    folder = settings.folder()
    if method == "sparse":
        return _sparse(ColmapModel.read(find_models(folder)[0][0]), scene), names
    assert settings.source is not None
    return read_cloud(folder / settings.source), ()


def _sparse(model: ColmapModel, scene: Scene) -> PointCloud:
    """Layouts that only keep a model beside their own poses may have other names for the same photos, in the same order."""
    named = {image.name: view for view in scene.views for image in model.images if view.image.as_posix().endswith("/" + image.name)}
    if len(named) < len(scene.views):
        if len(model.images) != len(scene.views):
            raise InputError(
                f"{model.folder}: expected a pose for each of the {len(scene.views)} photos of scene {scene.name}, got {len(model.images)}"
            )
        named = {image.name: view for view, image in zip(scene.views, model.images, strict=True)}
    train = {scene.views[i].name for i in scene.splits["train"]}
    photos = {name: view.image for name, view in named.items() if view.name in train}
    return sparse_points(model, photos.keys(), photos=photos)
