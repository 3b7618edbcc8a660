"""The Python interface: read scenes and point clouds, render trained runs.

    import npbgpp

    scene = npbgpp.load_scene("data/my_scene")
    run = npbgpp.load_run("experiments/demo/npbg")
    render = run.render(run.cameras("test"))  # render.rgb: (b, 3, h, w) in [0, 1]

Cameras follow PyTorch3D's convention (row vectors; x left, y up, z forward) with pixel centres at +0.5, see ``docs/conventions.md``.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from npbgpp.core.bundle import run_folder
from npbgpp.data import CloudFile, Scene, Stage, read_cloud
from npbgpp.engine.run import Run, build_run, evaluation_of, run_config, trainer_of
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PointCloud
from npbgpp.methods.base import Render
from npbgpp.parsers import read_scene, with_cloud

__all__ = ["TrainedRun", "load_cloud", "load_run", "load_scene"]


def load_scene(
    folder: str | Path,
    *,
    layout: str = "auto",
    pc_name: str = "mvs_pc.ply",
    downscale: float = 1.0,
    **options: Any,
) -> Scene:
    """Reads the metadata of a scene: views with cameras, splits and the point cloud file. No photo is decoded.

    Args:
        folder: folder of the scene.
        layout: name of its layout, such as ``colmap``; ``auto`` recognises it by its files.
        pc_name: name of the point cloud in the folder. Without ``mvs_pc.ply``, the points that came with the poses are used.
        downscale: factor by which photos and cameras are reduced.
        options: further keys of the ``datasets`` group that the layout has, such as ``white_bg``.

    Returns:
        The scene; ``scene.views[i].camera`` is one camera, ``scene.splits["test"]`` holds indices into ``scene.views``, and ``scene.cloud.read()`` gives the
        points.

    Raises:
        InputError: no such folder, an unknown layout, damaged files, or neither a cloud nor points.
    """
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise InputError(f"folder={folder}: expected the folder of a scene, there is none at {path}; correct the path")
    scene = read_scene(layout, path, path, path.name, CloudFile(path / pc_name), {**options, "downscale": downscale})
    return with_cloud(scene, path).with_splits(None, None)


def load_cloud(file: str | Path) -> PointCloud:
    """Reads a point cloud: PLY, COLMAP's ``points3D``, or a text file with one point per line.

    Returns:
        n points with ``xyz`` (n, 3) and ``rgb`` (n, 3) in [0, 1], None for a file without colours.

    Raises:
        InputError: a missing or damaged file, or one without points.
    """
    return read_cloud(Path(file).expanduser())


def load_run(
    folder: str | Path,
    *,
    checkpoint: str = "last",
    scene: str | None = None,
    overrides: Sequence[str] = (),
    trust_config: bool = False,
) -> "TrainedRun":
    """Loads a trained run with its weights, on the device and in the precision that it asks for.

    Args:
        folder: folder of the run (``hydra.run.dir``), or a .zip file of ``npbgpp export weights``.
        checkpoint: name of a file in its checkpoints.
        scene: name of the scene; needed if the run has several.
        overrides: ``key=value`` for the config of the run, such as ``trainer.accelerator=cpu`` or ``datasets.data_root=data``.
        trust_config: let the config of the run name any code as ``_target_``; otherwise classes of this project and of installed plug-ins alone.

    Raises:
        InputError: a folder that is no run, a config that would run other code, no such checkpoint or scene, data that are no longer there.
    """
    path = run_folder(Path(folder).expanduser().resolve())
    config, search_paths = run_config(path, trust_config)
    name = evaluation_of(config, path, checkpoint, scene, list(overrides))
    return TrainedRun(path, name, build_run(config, search_paths, needs_test_views=False))


class TrainedRun:
    """A trained method on one scene.

    Args:
        folder: of the run.
        scene: its name.
        parts: of the run, with weights.

    Attributes:
        folder: of the run.
        scene: the scene with its views and splits.
        method: name of the method, such as NPBG.
    """

    def __init__(self, folder: Path, scene: str, parts: Run) -> None:
        self.folder = folder
        self.scene: Scene = parts.data.scenes[scene]
        self.method = type(parts.system).__name__
        self._trainer = trainer_of(parts)
        self._trainer.precision_plugin.convert_module(parts.system)
        self._system = parts.system.to(self._trainer.strategy.root_device).eval()

    def __repr__(self) -> str:
        return f"TrainedRun({self.method}, scene {self.scene.name}, {len(self.scene.views)} views, {self.folder})"

    def cameras(self, split: Stage = "test") -> Cameras:
        """Cameras of the views of a split: ``train``, ``val`` or ``test``.

        Raises:
            InputError: an unknown or empty split, or views of several sizes (choose single ones: ``run.scene.views[i].camera``).
        """
        if split not in self.scene.splits:
            raise InputError(f"split: expected one of {', '.join(self.scene.splits)}, got {split}")
        views = [self.scene.views[i] for i in self.scene.splits[split]]
        sizes = {view.camera.image_size for view in views}
        if len(sizes) != 1:
            raise InputError(
                f"split={split}: expected views of one size in scene {self.scene.name}, got {len(views)} views of {len(sizes)} sizes; use "
                "run.scene.views[i].camera"
            )
        return Cameras.cat([view.camera for view in views])

    @torch.no_grad()
    def render(self, cameras: Cameras) -> Render:
        """Renders views one after another.

        Args:
            cameras: b cameras of one image size (h, w).

        Returns:
            Tensors on the CPU: ``rgb`` (b, 3, h, w) in [0, 1]; ``depth`` (b, 1, h, w) along the viewing axis in scene units, 0 where there is no surface;
            ``alpha`` (b, 1, h, w), or None for methods that predict none.

        Raises:
            InputError: no camera.
        """
        if not isinstance(cameras, Cameras) or not len(cameras):
            got = "none" if isinstance(cameras, Cameras) else f"{type(cameras).__name__}"
            raise InputError(f"cameras: expected at least one camera, such as run.cameras('test'), got {got}")
        self._system.prepare(self.scene.name)
        with self._trainer.precision_plugin.test_step_context():
            views = [self._system.render(cameras[k], self.scene.name, depth=True) for k in range(len(cameras))]

        def joined(name: str) -> torch.Tensor | None:
            parts = [getattr(view, name) for view in views]
            return None if any(part is None for part in parts) else torch.cat([part.float().cpu() for part in parts])

        rgb = joined("rgb")
        assert rgb is not None
        return replace(Render(rgb), alpha=joined("alpha"), depth=joined("depth"))
