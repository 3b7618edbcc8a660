"""Every ``datasets=`` choice for a single scene trains and is evaluated from its folder alone, with NPBG, NPBG++ and gaussians."""

import json
from pathlib import Path

import pytest

from npbgpp.errors import InputError

from .helpers.layouts import camera_files, colmap, dtu, h3ds, llff, monocular, nerf_synthetic, nerfstudio, npbg, npcr, scannet, scannet_raw

NPBG = ("system=npbg", "system/loss_factors=l1_ssim", "system.refiner.filters=[10,11,12,13,14]")
COLOURS = ("system=npbgpp_rgb", "system/loss_factors=l1_ssim_npbgpp", "datasets.selection_count=2")
NPCR = (
    "system=npcr",
    "system.descriptor_dim=4",
    "system.network.in_channels=7",
    "system.network.filters=[4,5,6,7,8]",
    "system.network.alpha_filters=[4,5,6]",
    "system.losses={ssim: 0.1, perceptual: 0.0}",
    "system.layers=2",
)
ONE = ("datasets.scene_name=scene",)
GAUSSIANS = ("system=gaussians", "system.gaussians=200", "system.sh_degree=1")
CHOICES = {
    "nerf_blender_one_scene": (nerf_synthetic.write, ONE),
    "scannet_one_scene": (scannet.write, (*ONE, "datasets.image_margin=4", "datasets.val_indices=[1]", "datasets.test_indices=[2]")),
    "scannet_raw": (scannet_raw.write, (*ONE, "datasets.image_margin=4", "datasets.val_indices=[1]", "datasets.test_indices=[2]")),
    "dtu_one_scene": (dtu.write, ONE),
    "h3ds_one_scene": (h3ds.write, ONE),
    "llff_one_scene": (llff.write, ONE),
    "colmap_one_scene": (colmap.write, ONE),
    "nerfstudio_one_scene": (nerfstudio.write, ONE),
    "metashape_one_scene": (camera_files.write_metashape, ONE),
    "reality_capture_one_scene": (camera_files.write_reality_capture, ONE),
    "bundler_one_scene": (camera_files.write_bundler, ONE),
    "npbg_scenes": (npbg.write, ("datasets.names=[scene]",)),
    "npcr_one_scene": (npcr.write, ONE),
    "monocular": (monocular.write, ONE),
    "auto_one_scene": (colmap.write, ONE),
}


@pytest.fixture
def train(run_line, tmp_path):
    def go(choice: str, *overrides: str) -> dict:
        write, own = CHOICES[choice]
        write(tmp_path / "data" / "scene", 8, (48, 64))
        named = choice if choice != "scannet_raw" else "scannet_one_scene"
        folder = run_line(
            tmp_path,
            f"datasets={named}",
            *own,
            f"datasets.data_root={tmp_path / 'data'}",
            "datasets.train_image_size=null",
            "datasets.train_random_shift=false",
            "datasets.train_num_samples=4",
            "datasets.downscale=1",
            "dataloader=small",
            "loggers=none",
            "trainer.max_epochs=1",
            "trainer.accelerator=cpu",
            "test_after_fit=true",
            f"hydra.run.dir={tmp_path / 'run'}",
            *overrides,
        )
        return json.loads((folder / "metrics.json").read_text())

    return go


@pytest.mark.parametrize("choice", CHOICES)
def test_npbg_trains_on_every_dataset(train, choice):
    (scores,) = train(choice, *NPBG)["datasets"].values()
    assert scores["views"] >= 1 and 3 < scores["psnr"] < 60


@pytest.mark.parametrize("choice", CHOICES)
def test_gaussians_train_on_every_dataset(train, choice):
    (scores,) = train(choice, *GAUSSIANS)["datasets"].values()
    assert scores["views"] >= 1 and 3 < scores["psnr"] < 60


@pytest.mark.parametrize("choice", ["llff_one_scene", "colmap_one_scene", "npbg_scenes", "npcr_one_scene", "scannet_raw"])
def test_npbgpp_trains_on_every_dataset(train, choice):
    (scores,) = train(choice, *COLOURS)["datasets"].values()
    assert scores["views"] >= 1 and 3 < scores["psnr"] < 60


@pytest.mark.parametrize("choice", ["nerf_blender_one_scene", "dtu_one_scene", "h3ds_one_scene", "npcr_one_scene"])
def test_npcr_trains_on_every_dataset_with_masks(train, choice):
    (scores,) = train(choice, *NPCR)["datasets"].values()
    assert scores["views"] >= 1 and 3 < scores["psnr"] < 60 and 3 < scores["matte"]["psnr_rgba"] < 60


@pytest.mark.parametrize("choice", ["llff_one_scene", "scannet_one_scene"])
def test_npcr_says_that_a_scene_has_no_mattes(train, choice):
    with pytest.raises(InputError, match="system=npcr: scene scene has no mattes: 8 of its 8 photos"):
        train(choice, *NPCR)


def test_every_choice_for_one_scene_is_tried():
    folder = Path(__file__).resolve().parents[1] / "conf" / "datasets"
    choices = {path.stem for path in folder.glob("[!_]*.yaml") if not path.stem.endswith("_pretrain")}
    assert choices == set(CHOICES) - {"scannet_raw"}
