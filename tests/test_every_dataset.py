"""Every ``datasets=`` choice for a single scene trains and is evaluated from its folder alone, with NPBG and with NPBG++."""

import json
from pathlib import Path

import pytest

from .layouts import colmap, dtu, h3ds, llff, monocular, nerf_synthetic, npbg, npcr, scannet, scannet_raw

NPBG = ("system=npbg", "system/loss_factors=l1_ssim", "system.refiner.filters=[10,11,12,13,14]")
COLOURS = ("system=npbgpp_rgb", "system/loss_factors=l1_ssim_npbgpp", "datasets.selection_count=2")
ONE = ("datasets.scene_name=scene",)
CHOICES = {
    "nerf_blender_one_scene": (nerf_synthetic.write, ONE),
    "scannet_one_scene": (scannet.write, (*ONE, "datasets.image_margin=4", "datasets.val_indices=[1]", "datasets.holdout_indices=[2]")),
    "scannet_raw": (scannet_raw.write, (*ONE, "datasets.image_margin=4", "datasets.val_indices=[1]", "datasets.holdout_indices=[2]")),
    "dtu_one_scene": (dtu.write, ONE),
    "h3ds_one_scene": (h3ds.write, ONE),
    "llff_one_scene": (llff.write, ONE),
    "colmap_one_scene": (colmap.write, ONE),
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


@pytest.mark.parametrize("choice", ["llff_one_scene", "colmap_one_scene", "npbg_scenes", "npcr_one_scene", "scannet_raw"])
def test_npbgpp_trains_on_every_dataset(train, choice):
    (scores,) = train(choice, *COLOURS)["datasets"].values()
    assert scores["views"] >= 1 and 3 < scores["psnr"] < 60


def test_every_choice_for_one_scene_is_tried():
    folder = Path(__file__).resolve().parents[1] / "conf" / "datasets"
    choices = {path.stem for path in folder.glob("[!_]*.yaml") if not path.stem.endswith("_pretrain")}
    assert choices == set(CHOICES) - {"scannet_raw"}
