"""One file with all that renders a trained scene: config, networks, descriptors, point cloud and cameras.

It is the folder of a run whose scene has the layout of nerfstudio, with black images of the size of the photos in their place.
"""

import json
import tempfile
import zipfile
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from npbgpp.core.bundle import BUNDLED_SCENES
from npbgpp.core.files import save_tensors, write_atomically
from npbgpp.core.paths import conf_folder
from npbgpp.data import Scene
from npbgpp.engine.run import Run
from npbgpp.geometry import Cameras, write_ply

_FRAGMENTS = ("_base", "_one_scene", "nerfstudio_one_scene")


def write_bundle(out: Path, config: DictConfig, parts: Run, scene: str) -> int:
    """Writes the file; returns the number of its points.

    Args:
        out: the file.
        config: of the run as it was trained, references unresolved; changed.
        parts: the run with its weights.
        scene: name of the scene.

    Raises:
        InputError: a scene without data, or a file that cannot be written.
    """
    system = parts.system
    system.prepare(scene)
    cloud = parts.data.scenes[scene].cloud.read()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        checkpoint: dict[str, object] = {"state_dict": {name: value.cpu() for name, value in system.state_dict().items()}}
        system.save_scene_files(scene, folder)
        system.on_save_checkpoint(checkpoint)  # refers to these files
        save_tensors(folder / "checkpoints" / "last.ckpt", checkpoint)
        write_ply(folder / BUNDLED_SCENES / scene / "cloud.ply", cloud)
        _write_scene(folder / BUNDLED_SCENES / scene, parts.data.scenes[scene])
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(_config(config, scene)), encoding="utf-8")
        files = sorted(path for path in folder.rglob("*") if path.is_file())

        def write(file: object) -> None:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
                for path in files:
                    archive.write(path, path.relative_to(folder).as_posix())

        write_atomically(out, write)
    return len(cloud)


def _config(config: DictConfig, scene: str) -> DictConfig:
    for key in ("descriptors_save_dir", "descriptors_pretrained_dir"):
        if key in config.system:
            config.system[key] = None
    parts = [OmegaConf.load(conf_folder() / "datasets" / f"{name}.yaml") for name in _FRAGMENTS]
    datasets = OmegaConf.merge(*parts)
    assert isinstance(datasets, DictConfig)
    datasets.pop("defaults")
    datasets.data_root, datasets.scene_name, datasets.pc_name = BUNDLED_SCENES, scene, "cloud.ply"
    config.datasets = datasets
    return config


def _write_scene(folder: Path, scene: Scene) -> None:
    frames, names = [], [f"{view.name}.png" for view in scene.views]
    for view, name in zip(scene.views, names, strict=True):
        height, width = view.camera.image_size
        Image.new("L", (width, height)).save(folder / name)
        (fx, fy), (cx, cy) = view.camera.focal_length[0].tolist(), view.camera.principal_point[0].tolist()
        intrinsics = {"w": width, "h": height, "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
        frames.append({"file_path": name, "transform_matrix": _pose(view.camera), **intrinsics})
    lists = {f"{stage}_filenames": [names[k] for k in indices] for stage, indices in scene.splits.items()}
    (folder / "transforms.json").write_text(json.dumps({**lists, "frames": frames}), encoding="utf-8")


def _pose(camera: Cameras) -> list[list[float]]:
    """Camera-to-world in double precision, whose inverse has exactly the translation of the camera: rotations are orthogonal up to rounding only."""
    exact = Cameras(camera.R.double(), camera.T.double(), camera.focal_length, camera.principal_point, camera.image_size)
    matrix = exact.to_opengl()[0].double()
    matrix[:3, 3] = -(exact.T @ torch.linalg.inv(exact.R[0]))[0]
    rows: list[list[float]] = matrix.tolist()
    return rows
