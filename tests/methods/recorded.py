"""The recorded scene on disk, and the shipped systems built for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_pil_image

from npbgpp.core.config import typed
from npbgpp.core.paths import SearchPaths
from npbgpp.data.point_files import CloudFile
from npbgpp.data.scene import Batch, Scene, View
from npbgpp.engine.run import method_of
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.point_cloud import PointCloud, write_ply
from npbgpp.methods.base import RunContext
from npbgpp.methods.npbgpp import NPBGPlusPlus
from npbgpp.methods.points import PointSystem
from npbgpp.metrics import ImageMetrics

from ..helpers.settings import composed, plain


def scene_cameras(recorded: dict, views: list[int]) -> Cameras:
    """Cameras of some recorded views; intrinsics in double precision, from which the recorded ones come back to the last bit."""
    count = len(views)
    intrinsics = (recorded["fcl_ndc"].double().expand(count, 2), recorded["prp_ndc"].double().expand(count, 2))
    return Cameras.from_authors_ndc(recorded["R_row"][views], recorded["T"][views], *intrinsics, tuple(recorded["image_size"]))


def write_scene(recorded: dict, folder: Path) -> Scene:
    """The recorded scene as files: a PNG per view, and its cloud."""
    write_ply(folder / "cloud.ply", PointCloud(recorded["points"]))
    views = []
    for k, image in enumerate(recorded["images_uint8"]):
        to_pil_image(image).save(folder / f"view{k}.png")
        views.append(View(f"view{k}", folder / f"view{k}.png", scene_cameras(recorded, [k])))
    splits = {"train": tuple(recorded["input_views"]), "val": (), "test": tuple(recorded["target_views"])}
    return Scene("recorded", tuple(views), splits, CloudFile(folder / "cloud.ply"))


def build_system(name: str, scenes: dict[str, Scene], folder: Path, *overrides: str) -> PointSystem:
    """A system as ``system=<name>`` describes it."""
    config = composed("datasets=nerf_blender_one_scene", f"system={name}", *(f"system.{override}" for override in overrides))
    values, method = plain(config.system), method_of(config)
    networks = {key for key, value in values.items() if isinstance(value, dict) and "_target_" in value}
    modules = {key: instantiate(config.system[key], _convert_="all") for key in networks}
    settings = typed(method.settings_class, {key: value for key, value in values.items() if key not in networks}, "system")
    system = method(settings, RunContext(scenes, SearchPaths(folder, folder / "run", folder), ImageMetrics()), **modules)
    assert isinstance(system, PointSystem)
    return system


def build_npbgpp(parity: Callable[[str], Any], folder: Path, name: str, *overrides: str, changes: dict | None = None) -> NPBGPlusPlus:
    """A recorded NPBG++ with its weights; ``changes`` are of the scene, such as other intrinsics."""
    scene = write_scene(parity("h0_scene.pt") | (changes or {}), folder)
    system = build_system(name, {"recorded": scene}, folder, *overrides)
    assert isinstance(system, NPBGPlusPlus)
    weights = parity("h_ckpt_npbgpp_rgb.pt" if name == "npbgpp_rgb" else "h_ckpt_npbgpp_sphere.pt")["state_dict"]
    system.load_state_dict({key: value for key, value in weights.items() if name == "npbgpp_sphere" or "aggregator" not in key})
    return system


def train(system: PointSystem, batch: Batch, folder: Path) -> Trainer:
    """One training step on a recorded batch."""
    trainer = Trainer(
        max_epochs=1,
        limit_val_batches=0,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    system.check_before_training(["recorded"], [])
    trainer.fit(system, DataLoader([batch], batch_size=None))
    return trainer


SAMPLED = 2e-4  # of features read at points and what is made of them, relative to the largest; the tolerance of the recordings


def close_to_largest(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compares with a tolerance relative to the largest number expected."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())
