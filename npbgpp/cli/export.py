"""``npbgpp export``: files of a trained run for other programs: weights, point clouds, gaussians, meshes, volumes and cameras."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbgpp.cli.settings import (
    BoxExport,
    CameraExport,
    CloudExport,
    CroppedExport,
    InCoordinates,
    MeshExport,
    PageExport,
    SplatExport,
    VolumeExport,
    WeightsExport,
)
from npbgpp.cli.trajectory import trajectory_frames
from npbgpp.cli.view import require_viser, viewed_run
from npbgpp.core.bundle import BUNDLE_SUFFIX
from npbgpp.core.files import write_atomically
from npbgpp.data import Scene, write_npcr_cameras
from npbgpp.engine.checkpoint import find_weights
from npbgpp.engine.run import build_run, evaluation_of, method_of, run_config, trainer_of
from npbgpp.errors import InputError
from npbgpp.export import fusion, mesh, volume
from npbgpp.export import page as pages
from npbgpp.export import splats as splat_files
from npbgpp.export.bundle import write_bundle
from npbgpp.export.coordinates import ExportCoordinates
from npbgpp.export.mesh import Box, DensityField, OcclusionTest, photo_colours, rendered_colours
from npbgpp.export.volume import mean_colours, write_volume
from npbgpp.export.weights import SUFFIX, export_weights
from npbgpp.geometry import Cameras, Offset, write_ply
from npbgpp.methods.base import FieldExport, Render, System
from npbgpp.viewer.poses import frame_of, viewer_frame
from npbgpp.volume import OccupancyGrid

log = logging.getLogger("npbgpp.export")

_OF_FIELDS = ("sigma_threshold", "occ_threshold", "samples", "use_vertex_normal", "near_t")  # keys of meshes of radiance fields
_MARGIN_CELLS = 4  # before a vertex that do not hide it: fields thin out over some cells in front of their surfaces


def weights(settings: WeightsExport) -> None:
    """Writes what a recipient needs to render a scene in one .zip file, or the weights of a checkpoint alone."""
    run = settings.folder()
    config, search_paths = run_config(run, settings.trust_config)
    with_scene = method_of(config).has_scene_files
    suffixes = (BUNDLE_SUFFIX, SUFFIX) if with_scene else (SUFFIX,)
    if settings.out is not None and settings.out.suffix == BUNDLE_SUFFIX and not with_scene:
        raise InputError(
            f"out={settings.out}: {BUNDLE_SUFFIX} files are for methods with descriptors, {method_of(config).__name__} has none; its weights are all of it: "
            f"choose a name that ends in {SUFFIX}"
        )
    out = settings.file(f"{run.name}{suffixes[0]}", suffixes)
    if out.suffix == BUNDLE_SUFFIX:
        as_trained = config.copy()
        scene = evaluation_of(config, run, settings.checkpoint, settings.scene, ())
        parts = build_run(config, search_paths, needs_test_views=False)
        parts.system.eval()
        count = write_bundle(out, as_trained, parts, scene)
        log.info("networks, descriptors, cloud of %d points and cameras of scene %s: %s (npbgpp render %s)", count, scene, out, out.name)
        return
    known = sorted(path.stem for path in (run / "checkpoints").glob("*.ckpt"))
    name = settings.checkpoint.removesuffix(".ckpt")
    if name in known:
        source = run / "checkpoints" / f"{name}.ckpt"
    elif not known and name == "last" and config.get("weights_path") is not None:  # the run of an evaluation
        source = find_weights(str(config.weights_path), search_paths)
    else:
        raise InputError(f"checkpoint: expected one of {', '.join(known) or 'none'} in {run / 'checkpoints'}, got {settings.checkpoint}")
    count = export_weights(source, out)
    log.info("%d tensors of %s: %s", count, source, out)
    if with_scene:
        log.info("descriptors of scenes are not among them, as in a %s file; they lie in %s", BUNDLE_SUFFIX, run / "descriptors")


def cloud(settings: CroppedExport, overrides: list[str]) -> None:
    """Writes the points of a scene in the colours of their descriptors."""
    system, scene = _rebuilt(settings, overrides)
    out, coordinates = settings.file(f"{scene}_cloud.ply", (".ply",)), _coordinates(settings, system.scenes[scene])
    points = system.coloured_cloud(scene)
    points = coordinates.points(points.kept(_kept(settings, points.xyz, system.scenes[scene].offset)))
    write_atomically(out, lambda file: write_ply(file, points, coordinates.offset))
    log.info("%d points: %s", len(points), out)


def splats(settings: SplatExport, overrides: list[str]) -> None:
    """Writes the gaussians of a scene, in world coordinates."""
    system, scene = _rebuilt(settings, overrides)
    out, coordinates = settings.file(f"{scene}.ply", splat_files.SUFFIXES), _coordinates(settings, system.scenes[scene])
    gaussians = system.gaussian_cloud(scene)
    gaussians = coordinates.gaussians(gaussians.kept(_kept(settings, gaussians.means, system.scenes[scene].offset)))
    up = coordinates.direction(viewer_frame([view.camera for view in system.scenes[scene].views], None).up)
    splat_files.write_splats(out, gaussians, up)
    if coordinates.offset is not None:  # the formats have single precision
        log.warning(
            "coordinates in %s are those of the %s less (%s)%s",
            out,
            "scene" if settings.coordinates == "scene" else "original model",
            ", ".join(f"{part:.0f}" for part in coordinates.offset),
            "; weights_path takes them as they are" if settings.coordinates == "scene" else "",
        )
    log.info("%d gaussians of degree %d: %s", len(gaussians), gaussians.sh_degree, out)


def page(settings: PageExport, overrides: list[str]) -> None:
    """Writes a run as one HTML page. Raises InputError without the extra ``viewer``."""
    require_viser("npbgpp export page")
    # viser is an extra
    from npbgpp.viewer.static import scene_page

    out = settings.file(f"{settings.folder().name}{pages.SUFFIX}", (pages.SUFFIX,))
    run = viewed_run(settings, overrides)
    scene = scene_page(run, frame_of(run.scene), settings.points, settings.photos)
    text = pages.page(run.folder, type(run.system).__name__, run.scene.name, scene, settings.film)
    write_atomically(out, lambda file: file.write(text.encode()))
    log.info("page of %.1f MB: %s", len(text) / 1e6, out)


def extract_mesh(settings: MeshExport, overrides: list[str]) -> None:
    """Writes the surface of a scene with its colours: of a radiance field, or fused from depth maps."""
    system, scene = _rebuilt(settings, overrides)
    if system.meshes_from_depth:
        _fuse_mesh(settings, system, scene)
        return
    export, densities = _radiance_field(system)
    out, box = settings.file(f"{scene}_mesh.ply", mesh.SUFFIXES), _box(settings, export.grid)
    coordinates = _coordinates(settings, system.scenes[scene])
    occlusion = OcclusionTest(densities, export.normalisation, settings.samples, settings.occ_threshold, _MARGIN_CELLS * max(box.steps()))
    values = densities.on_grid(box)
    threshold = settings.sigma_threshold
    if threshold is None:
        threshold = mesh.surface_density(values, box)
        log.info("sigma_threshold=%.4g separates empty from dense space", threshold)
    whole = mesh.extract_surface(values, box, threshold)
    if mesh.is_open(values, threshold):
        log.warning("%s cuts what is dense: the mesh is open there; widen x_range, y_range or z_range", box)
    found = whole.largest_component()
    vertices, normals = (torch.from_numpy(part).float().to(densities.device) for part in (found.vertices, found.normals))
    if settings.use_vertex_normal:
        colours = rendered_colours(export.render_rays, vertices, normals, export.normalisation, export.chunk, settings.near_t)
    else:
        colours, known = photo_colours(system.scenes[scene], vertices, normals, occlusion)
        if not known.all():
            log.warning("%d of %d vertices are in no training photo: they are grey", (~known).sum(), len(known))
    in_file = coordinates.mesh(found.to_world(export.normalisation))
    mesh.write_mesh(out, in_file, (colours * 255).round().byte().cpu().numpy(), coordinates.offset)
    _report(whole, found, out)


def _fuse_mesh(settings: MeshExport, system: System, scene: str) -> None:
    """Writes the surface that the depth maps of the training views show."""
    ignored = [name for name in _OF_FIELDS if getattr(settings, name) != MeshExport.__dataclass_fields__[name].default]
    if ignored:
        raise InputError(f"{ignored[0]}: {type(system).__name__} has no radiance field, its meshes are fused from depth maps; leave it out")
    out = settings.file(f"{scene}_mesh.ply", mesh.SUFFIXES)
    found = system.scenes[scene]
    coordinates = _coordinates(settings, found)
    cameras = [found.views[k].camera.to(system.device) for k in found.splits["train"]]

    def render(camera: Cameras) -> Render:
        return system.render(camera, scene, depth=True)

    around = fusion.surface_box(render, cameras, settings.n_grid)
    box = _chosen_box(settings, around.low, around.high)
    fused = fusion.fuse_depth_maps(render, cameras, box, system.device)
    inside = -fused.distance
    if not (inside[fused.known] > 0).any():
        raise InputError(f"export mesh: expected a surface in {box}, got none; change x_range, y_range and z_range")
    whole = mesh.extract_surface(inside, box, 0.0, fused.known)
    largest = whole.largest_component()
    mesh.write_mesh(out, coordinates.mesh(largest), fused.colours_at(largest.vertices, box), coordinates.offset)
    _report(whole, largest, out)


def _report(whole: mesh.Mesh, largest: mesh.Mesh, out: Path) -> None:
    pieces = len(np.unique(whole.components()))
    log.info("%d vertices, %d triangles, the largest of %d pieces: %s", len(largest.vertices), len(largest.faces), pieces, out)


def extract_volume(settings: VolumeExport, overrides: list[str]) -> None:
    """Writes the voxels of a scene."""
    system, scene = _rebuilt(settings, overrides)
    export, densities = _radiance_field(system)
    out, box = settings.file(f"{scene}.vol", volume.SUFFIXES), _box(settings, export.grid)
    field = export.field
    count = write_volume(out, densities.on_grid(box), box, lambda xyz: mean_colours(field, xyz), densities.device)
    log.info("%d of %d voxels, %s: %s", count, box.count**3, box, out)


def cameras(settings: CameraExport, overrides: list[str]) -> None:
    """Writes the cameras of a path in NPCR's files."""
    run = settings.folder()
    out = (settings.out or run / "export").expanduser().absolute()
    there = [path.name for path in (out / "CamPose.inf", out / "Intrinsic.inf") if path.exists()]
    if there and not settings.overwrite:
        raise InputError(f"out={out}: there is {' and '.join(there)} already; choose another folder, or overwrite=true")
    config, search_paths = run_config(run, settings.trust_config)
    scene = evaluation_of(config, run, settings.checkpoint, settings.scene, overrides)
    found = build_run(config, search_paths, needs_test_views=False).data.scenes[scene]
    coordinates = _coordinates(settings, found)
    frames = trajectory_frames(settings, found)
    poses, intrinsics = write_npcr_cameras(out, coordinates.cameras([frame.camera for frame in frames]), coordinates.offset)
    log.info("%d cameras: %s, %s", len(frames), poses, intrinsics)


def _coordinates(settings: InCoordinates, scene: Scene) -> ExportCoordinates:
    """Those that the settings ask for. Raises InputError for a scene without others."""
    return ExportCoordinates.of_scene(scene) if settings.coordinates == "scene" else ExportCoordinates.of_original_model(scene)


def _radiance_field(system: System) -> tuple[FieldExport, DensityField]:
    """The radiance field of a method and its densities."""
    export = system.field_export()
    return export, DensityField(export.field.density, export.grid, export.chunk, system.device)


def _box(settings: BoxExport, grid: OccupancyGrid | None) -> Box:
    """The box to evaluate a field in. Raises InputError for an empty one."""
    if grid is None:
        return _chosen_box(settings, (-1.0,) * 3, (1.0,) * 3)
    return _chosen_box(settings, grid.low.tolist(), grid.high.tolist())


def _chosen_box(settings: BoxExport, low: Sequence[float], high: Sequence[float]) -> Box:
    """The box of the settings; ends that they leave out are those given. Raises InputError for an empty one."""
    ranges = (settings.x_range, settings.y_range, settings.z_range)
    low, high = zip(*(given or ends for given, ends in zip(ranges, zip(low, high, strict=True), strict=True)), strict=True)
    return Box(low, high, settings.n_grid)


def _kept(settings: CroppedExport, xyz: Float[Tensor, "n 3"], offset: Offset | None) -> Bool[Tensor, " n"]:
    """Which points are written. Raises InputError when none is."""
    kept = torch.ones(len(xyz), dtype=torch.bool, device=xyz.device)
    for along, ends, shift in zip(xyz.detach().double().unbind(1), settings.ranges(), offset or (0.0, 0.0, 0.0), strict=True):
        if ends is not None:
            kept &= (along + shift >= ends[0]) & (along + shift <= ends[1])
    if not kept.any():
        raise InputError(f"x_range, y_range, z_range: expected a box with points of the scene in it, got none of {len(xyz)}; widen it")
    return kept


def _rebuilt(settings: CloudExport, overrides: list[str]) -> tuple[System, str]:
    """The system of a run with its weights, on the device that the run asks for, and the name of the scene."""
    run = settings.folder()
    config, search_paths = run_config(run, settings.trust_config)
    scene = evaluation_of(config, run, settings.checkpoint, settings.scene, overrides)
    parts = build_run(config, search_paths, needs_test_views=False)
    trainer = trainer_of(parts)
    return parts.system.to(trainer.strategy.root_device).eval(), scene
