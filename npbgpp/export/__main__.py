"""``python -m npbgpp.export weights|cloud|mesh|volume|cameras run=<run folder> [key=value ...]``: what other programs can use of a trained run.

The dataclasses below are the keys of each command. Keys with a dot, such as ``datasets.data_root``, and ``weights_path``, ``weights_strict``, ``cache_dir``
change the config of the run, as for ``python -m npbgpp.render``; ``weights`` reads a checkpoint alone and takes none of them.
"""

import logging
import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import yaml
from omegaconf.errors import OmegaConfBaseException

from npbgpp.cli.trajectory import PathSettings, trajectory_frames
from npbgpp.core.config import typed
from npbgpp.data import write_npcr_cameras
from npbgpp.engine.checkpoint import find_weights
from npbgpp.engine.run import build_run
from npbgpp.engine.trained_run import configure_logging, evaluation_of, parse_args, run_config, trainer_of
from npbgpp.errors import InputError, original_message
from npbgpp.export import mesh, volume
from npbgpp.export.mesh import Box, DensityField, OcclusionTest, photo_colours, rendered_colours
from npbgpp.export.volume import mean_colours, write_volume
from npbgpp.export.weights import SUFFIX, export_weights
from npbgpp.geometry import write_ply
from npbgpp.methods.base import FieldExport, System
from npbgpp.volume import OccupancyGrid

log = logging.getLogger("npbgpp.export")

_MARGIN_CELLS = 4  # before a vertex that do not hide it: fields thin out over some cells in front of their surfaces


@dataclass(frozen=True)
class RunChoice:
    """Keys of ``weights``.

    Attributes:
        run: folder of the run.
        checkpoint: name of a file in the checkpoints of the run.
        out: the file to write; None is one in ``<run>/export``.
        overwrite: replace a file in its place.
    """

    run: Path
    checkpoint: str = "last"
    out: Path | None = None
    overwrite: bool = False

    def folder(self) -> Path:
        """Absolute path of the run."""
        return self.run.expanduser().resolve()

    def file(self, name: str, suffixes: tuple[str, ...]) -> Path:
        """Absolute path of the file to write. Raises InputError for another suffix, or a file that is there."""
        path = (self.out or self.folder() / "export" / name).expanduser().absolute()
        if path.suffix not in suffixes:
            raise InputError(f"out={path}: expected a name that ends in {' or '.join(suffixes)}")
        if path.exists() and not self.overwrite:
            raise InputError(f"out={path}: there is a file already; choose another one, or overwrite=true")
        return path


@dataclass(frozen=True)
class SceneChoice(RunChoice):
    """Keys of ``cloud``.

    Attributes:
        scene: which scene; needed when the run has several.
    """

    scene: str | None = None


@dataclass(frozen=True)
class BoxChoice(SceneChoice):
    """Where a field is asked, in its coordinates: those of the world unless it was trained with ``system.ray_frame=inward``.

    Attributes:
        x_range, y_range, z_range: ends of a box; None is that of the run's occupancy grid, or -1 to 1 without one.
        n_grid: nodes along each side.
    """

    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    z_range: tuple[float, float] | None = None
    n_grid: int = 256

    def box(self, grid: OccupancyGrid | None) -> Box:
        """The box. Raises InputError for one that is none."""
        whole = [(-1.0, 1.0)] * 3 if grid is None else list(zip(grid.low.tolist(), grid.high.tolist(), strict=True))
        low, high = zip(*(given or end for given, end in zip((self.x_range, self.y_range, self.z_range), whole, strict=True)), strict=True)
        return Box(low, high, self.n_grid)


@dataclass(frozen=True)
class MeshSettings(BoxChoice):
    """Keys of ``mesh``.

    Attributes:
        sigma_threshold: density of the surface.
        occ_threshold: opacity in front of a vertex that hides it from a photo.
        samples: depths at which that is looked for.
        use_vertex_normal: colours of the field against the normals, in place of those of the photos.
        near_t: see ``rendered_colours``.
    """

    sigma_threshold: float = 20.0
    occ_threshold: float = 0.2
    samples: int = 64
    use_vertex_normal: bool = False
    near_t: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.near_t < math.inf:
            raise InputError(f"near_t: expected a finite number, 0 or more, got {self.near_t:g}")


@dataclass(frozen=True)
class VolumeSettings(BoxChoice):
    """Keys of ``volume``."""

    n_grid: int = 512


@dataclass(frozen=True)
class CameraChoice(PathSettings, SceneChoice):
    """Keys of ``cameras``, beside those of the path; it writes ``CamPose.inf`` and ``Intrinsic.inf`` into the folder ``out``."""

    path: str = "turn"


def weights(settings: RunChoice) -> None:
    """Writes the weights of a checkpoint alone."""
    run = settings.folder()
    config, search_paths = run_config(run)
    out = settings.file(f"{run.name}{SUFFIX}", (SUFFIX,))
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
    if (run / "descriptors").is_dir():
        log.info("descriptors of scenes are not among them, they lie in %s", run / "descriptors")


def cloud(settings: SceneChoice, overrides: list[str]) -> None:
    """Writes the points of a scene in the colours of their descriptors."""
    system, scene = _rebuilt(settings, overrides)
    out = settings.file(f"{scene}_cloud.ply", (".ply",))
    points = system.coloured_cloud(scene)
    write_ply(out, points)
    log.info("%d points: %s", len(points), out)


def extract_mesh(settings: MeshSettings, overrides: list[str]) -> None:
    """Writes the surface of a scene with its colours."""
    system, scene, export, densities = _radiance_field(settings, overrides)
    out, box = settings.file(f"{scene}_mesh.ply", mesh.SUFFIXES), settings.box(export.grid)
    occlusion = OcclusionTest(densities, export.normalisation, settings.samples, settings.occ_threshold, _MARGIN_CELLS * max(box.steps()))
    values = densities.on_grid(box)
    whole = mesh.extract_surface(values, box, settings.sigma_threshold)
    if mesh.is_open(values, settings.sigma_threshold):
        log.warning("%s cuts what is dense: the mesh is open there; widen x_range, y_range or z_range", box)
    found = whole.largest_component()
    vertices, normals = (torch.from_numpy(part).float().to(densities.device) for part in (found.vertices, found.normals))
    if settings.use_vertex_normal:
        colours = rendered_colours(export.render_rays, vertices, normals, export.normalisation, export.chunk, settings.near_t)
    else:
        colours, known = photo_colours(system.scenes[scene], vertices, normals, occlusion)
        if not known.all():
            log.warning("%d of %d vertices are in no training photo: they are grey", (~known).sum(), len(known))
    mesh.write_mesh(out, found.to_world(export.normalisation), (colours * 255).round().byte().cpu().numpy())
    log.info(
        "%d vertices, %d triangles, the largest of %d pieces: %s",
        len(found.vertices),
        len(found.faces),
        len(np.unique(whole.components())),
        out,
    )


def extract_volume(settings: VolumeSettings, overrides: list[str]) -> None:
    """Writes the voxels of a scene."""
    system, scene, export, densities = _radiance_field(settings, overrides)
    out, box = settings.file(f"{scene}.vol", volume.SUFFIXES), settings.box(export.grid)
    field = export.field
    count = write_volume(out, densities.on_grid(box), box, lambda xyz: mean_colours(field, xyz), densities.device)
    log.info("%d of %d voxels, %s: %s", count, box.count**3, box, out)


def cameras(settings: CameraChoice, overrides: list[str]) -> None:
    """Writes the cameras of a path in NPCR's files."""
    run = settings.folder()
    out = (settings.out or run / "export").expanduser().absolute()
    there = [path.name for path in (out / "CamPose.inf", out / "Intrinsic.inf") if path.exists()]
    if there and not settings.overwrite:
        raise InputError(f"out={out}: there is {' and '.join(there)} already; choose another folder, or overwrite=true")
    config, search_paths = run_config(run)
    scene = evaluation_of(config, run, settings.checkpoint, settings.scene, overrides)
    frames = trajectory_frames(settings, build_run(config, search_paths, needs_test_views=False).data.scenes[scene])
    poses, intrinsics = write_npcr_cameras(out, [frame.camera for frame in frames])
    log.info("%d cameras: %s, %s", len(frames), poses, intrinsics)


def _radiance_field(settings: BoxChoice, overrides: list[str]) -> tuple[System, str, FieldExport, DensityField]:
    """The method, the name of the scene, its radiance field and the densities of that."""
    system, scene = _rebuilt(settings, overrides)
    export = system.field_export()
    return system, scene, export, DensityField(export.field.density, export.grid, export.chunk, system.device)


def _rebuilt(settings: SceneChoice, overrides: list[str]) -> tuple[System, str]:
    """The system of a run with its weights, on the device that the run asks for, and the name of the scene."""
    run = settings.folder()
    config, search_paths = run_config(run)
    scene = evaluation_of(config, run, settings.checkpoint, settings.scene, overrides)
    parts = build_run(config, search_paths, needs_test_views=False)
    trainer = trainer_of(parts)
    return parts.system.to(trainer.strategy.root_device).eval(), scene


SETTINGS = {"weights": RunChoice, "cloud": SceneChoice, "mesh": MeshSettings, "volume": VolumeSettings, "cameras": CameraChoice}


def main() -> None:
    """The command."""
    configure_logging()
    name, *words = sys.argv[1:] or [""]
    if name not in SETTINGS:
        lines = [f"  {key}: {', '.join(field.name for field in fields(schema))}" for key, schema in SETTINGS.items()]
        sys.exit(f"usage: python -m npbgpp.export {'|'.join(SETTINGS)} run=<run folder> [key=value ...]\nkeys of\n" + "\n".join(lines))
    try:
        given, overrides = parse_args(words)
        if name == "weights":
            if overrides:
                raise InputError(
                    f"{overrides[0]}: weights are read from a checkpoint alone, the config of the run has no part in it; leave it out"
                )
            weights(typed(RunChoice, given, name))
        elif name == "cloud":
            cloud(typed(SceneChoice, given, name), overrides)
        elif name == "mesh":
            extract_mesh(typed(MeshSettings, given, name), overrides)
        elif name == "cameras":
            cameras(typed(CameraChoice, given, name), overrides)
        else:
            extract_volume(typed(VolumeSettings, given, name), overrides)
    except (InputError, OmegaConfBaseException, OSError, yaml.YAMLError) as error:
        sys.exit(f"error: {' '.join(original_message(error).split())}")


if __name__ == "__main__":
    main()
