"""The command lines of the NPBG++ project as they stand, on small data in the places that they name, with small networks and a small job.

Pretraining of NPBG++ on four data sets; evaluation, finetuning and test of one scene, each with what the one before left; pretraining of NPBG.
"""

import csv
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from npbgpp.data.scene import Batch
from npbgpp.methods.npbg import NPBG
from npbgpp.methods.npbgpp import NPBGPlusPlus
from npbgpp.methods.points import PointSystem

from .helpers.programs import TRAIN_NET, run_program
from .helpers.scenes import write_dtu, write_h3ds, write_scannet

HEAD = "5ae021f2805c0854"

PRETRAIN_SCANNET = """python train_net.py trainer.gpus=4 hydra.run.dir=experiments/npbgpp_scannet datasets=scannet_pretrain datasets.n_point=6e6
    system=npbgpp_sphere system.visibility_scale=0.5 trainer.max_epochs=39 dataloader.train_data_mode=each
    trainer.reload_dataloaders_every_n_epochs=1"""
PRETRAIN_BLENDER = """python train_net.py trainer.gpus=4 hydra.run.dir=experiments/npbgpp_nerf datasets=nerf_blender_pretrain system=npbgpp_sphere
    system.visibility_scale=1.0 trainer.max_epochs=24 dataloader.train_data_mode=each
    weights_path=experiments/npbgpp_scannet/checkpoints/epoch38.ckpt"""
PRETRAIN_H3DS = """python train_net.py trainer.gpus=4 hydra.run.dir=experiments/npbgpp_h3ds datasets=h3ds_pretrain system=npbgpp_sphere
    system.visibility_scale=1.0 trainer.max_epochs=24 dataloader.train_data_mode=each trainer.reload_dataloaders_every_n_epochs=1
    weights_path=experiments/npbgpp_scannet/checkpoints/epoch38.ckpt"""
PRETRAIN_DTU = """python train_net.py trainer.gpus=4 hydra.run.dir=experiments/npbgpp_dtu datasets=dtu_pretrain system=npbgpp_sphere
    system.visibility_scale=1.0 trainer.max_epochs=36 dataloader.train_data_mode=each trainer.reload_dataloaders_every_n_epochs=1
    weights_path=experiments/npbgpp_scannet/checkpoints/epoch38.ckpt"""
EVALUATE = r"""python train_net.py trainer.gpus=1 hydra.run.dir=experiments/npbgpp_eval_scan118 datasets=dtu_one_scene
    datasets.data_root=$\{hydra:runtime.cwd\}/example/DTU_masked datasets.scene_name=scan118 system=npbgpp_sphere system.visibility_scale=1.0
    weights_path=./checkpoints/npbgpp_dtu_nm_mvs_ft_epoch35.ckpt eval_only=true dataloader=small"""
FINETUNE = r"""python train_net.py trainer.gpus=1 hydra.run.dir=experiments/npbgpp_5ae021f2805c0854_ft datasets=h3ds_one_scene
    datasets.data_root=$\{hydra:runtime.cwd\}/example/H3DS datasets.selection_count=0 datasets.train_num_samples=2000
    datasets.train_image_size=null datasets.train_random_shift=false datasets.train_random_zoom=[0.5,2.0] datasets.scene_name=5ae021f2805c0854
    system=coefficients_ft system.max_points=1e6 system.descriptors_save_dir=$\{hydra:run.dir\}/descriptors trainer.max_epochs=20
    system.descriptors_pretrained_dir=experiments/npbgpp_eval_5ae021f2805c0854/descriptors
    weights_path=$\{hydra:runtime.cwd\}/checkpoints/npbgpp_h3ds.ckpt dataloader=small"""
TEST = r"""python train_net.py trainer.gpus=1 hydra.run.dir=experiments/npbgpp_5ae021f2805c0854_test datasets=h3ds_one_scene
    datasets.data_root=$\{hydra:runtime.cwd\}/example/H3DS datasets.selection_count=0 datasets.scene_name=5ae021f2805c0854
    system=coefficients_ft system.max_points=1e6 system.descriptors_save_dir=$\{hydra:run.dir\}/descriptors
    system.descriptors_pretrained_dir=experiments/npbgpp_5ae021f2805c0854_ft/descriptors
    weights_path=experiments/npbgpp_5ae021f2805c0854_ft/checkpoints/last.ckpt dataloader=small eval_only=true"""
NPBG_SCANNET = """python train_net.py trainer.gpus=4 hydra.run.dir=experiments/npbg_scannet datasets=scannet_pretrain
    datasets.train_random_zoom=[0.5,2.0] datasets.train_image_size=512 datasets.selection_count=0 system=npbg
    system.descriptors_save_dir=experiments/npbg_scannet/result/descriptors trainer.max_epochs=39 dataloader.train_data_mode=each
    trainer.reload_dataloaders_every_n_epochs=1 trainer.limit_val_batches=0 system.max_points=11e6"""
NPBG_BLENDER = """python train_net.py trainer.gpus=4 hydra.run.dir=experiments/npbg_nerf datasets=nerf_blender_pretrain
    datasets.train_random_zoom=[0.5,2.0] datasets.train_image_size=512 datasets.selection_count=0 system=npbg
    system.descriptors_save_dir=experiments/npbg_nerf/result/descriptors trainer.max_epochs=24 dataloader.train_data_mode=each
    trainer.reload_dataloaders_every_n_epochs=1 trainer.limit_val_batches=0 system.max_points=4e6"""
NPBG_H3DS = """python train_net.py trainer.gpus=4 hydra.run.dir=experiments/npbg_h3ds datasets=h3ds_pretrain datasets.train_random_zoom=[0.5,2.0]
    datasets.train_image_size=null datasets.train_random_shift=false datasets.selection_count=0 system=npbg
    system.descriptors_save_dir=experiments/npbg_h3ds/result/descriptors trainer.max_epochs=24 dataloader.train_data_mode=each
    trainer.reload_dataloaders_every_n_epochs=1 trainer.limit_val_batches=0 system.max_points=3e6  # Submitted batch job 1175175"""
NPBG_DTU = """python train_net.py trainer.gpus=4 hydra.run.dir=experiments/npbg_dtu_nm datasets=dtu_pretrain datasets.train_random_zoom=[0.5,2.0]
    datasets.train_image_size=512 datasets.selection_count=0 system=npbg system.descriptors_save_dir=experiments/npbg_dtu_nm/result/descriptors
    trainer.max_epochs=36 dataloader.train_data_mode=each trainer.reload_dataloaders_every_n_epochs=1 trainer.limit_val_batches=0
    system.max_points=3e6"""

REFINER = "system.refiner.filters=[10,11,12,13,14]"
NETWORKS = (REFINER, "system.feature_extractor.encoder=test_efficientnet", "system.feature_extractor.decoder_channels=[8,8,8,8,8]")
JOB = ("datasets.train_num_samples=2", "dataloader.train_total_batch_size=2", "dataloader.train.num_workers=0", "loggers=none")
CROP = "datasets.train_image_size=32"
PRETRAIN = (*NETWORKS, *JOB, CROP, "system/loss_factors=l1_ssim_npbgpp", "system.feature_extractor.pretrained_encoder=false")
THREE_SCANS = ("datasets.scenes.train=[scene0002_00,scene0003_00,scene0005_00]", "system.max_scenes_per_train_epoch=2")
SCANNET = (*THREE_SCANS, "datasets.scenes.val=[scene0005_00]", "datasets.scenes.test=[scene0002_00]")


@pytest.fixture(scope="module")
def launch(tmp_path_factory, tiny_root) -> Path:
    """A folder to type commands in, with the data where they look for it: one scene of each data set under all names."""
    folder = tmp_path_factory.mktemp("launch")
    data = folder / "data"
    write_scannet(data / "scannet_for_npbg" / "scene0002_00")
    write_h3ds(data / "H3DS" / HEAD)
    write_dtu(data / "DTU_masked" / "scan118")
    names = {
        "scannet_for_npbg": "scene0003_00 scene0005_00",
        "DTU_masked": "scan37 scan40 scan55 scan63 scan65 scan69 scan83 scan97 scan105 scan106 scan122",
        "H3DS": "1b2a8613401e42a8 3b5a2eb92a501d54 5cd49557ea450c89 444ea0dc5e85ee0b 609cc60fd416e187 868765907f66fd85 e98bae39fad2244e "
        "f7e930d8a9ff2091",
    }
    for layout, scenes in names.items():
        (original,) = (data / layout).iterdir()
        for scene in scenes.split():
            (data / layout / scene).symlink_to(original)
    shutil.copytree(tiny_root, data / "nerf_synthetic")
    for k, scene in enumerate(("chair", "drums", "lego", "materials", "ship")):
        (data / "nerf_synthetic" / scene).symlink_to(data / "nerf_synthetic" / ("ball", "globe", "moon")[k % 3])
    (folder / "example").symlink_to(data)
    (folder / "checkpoints").mkdir()
    return folder


@dataclass(frozen=True)
class Trained:
    """What a run left.

    Attributes:
        folder: its run folder.
        epochs: scenes visited, by epoch.
        batches: what it trained on.
    """

    folder: Path
    epochs: list[set[str]]
    batches: list[Batch]


@pytest.fixture(scope="module")
def train(run_line, launch) -> Callable[..., Trained]:
    """Types a command line with further overrides into the launch folder, and watches what is trained."""

    def go(line: str, *overrides: str) -> Trained:
        epochs: list[set[str]] = []
        batches: list[Batch] = []
        start, step = PointSystem.on_train_epoch_start, PointSystem.training_step

        def training_step(self, batch, batch_idx):
            epochs[-1].update(batch.scene)
            batches.append(batch)
            step(self, batch, batch_idx)

        with pytest.MonkeyPatch.context() as patch:
            for system in (NPBG, NPBGPlusPlus):
                patch.setattr(system, "training_step", training_step)
            patch.setattr(PointSystem, "on_train_epoch_start", lambda self: epochs.append(set()) or start(self))
            folder = run_line(launch, *shlex.split(line, comments=True)[2:], *overrides)
        return Trained(folder, epochs, batches)

    return go


def weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def descriptors(folder: Path) -> Tensor:
    (path,) = folder.glob("*.pth")
    return torch.load(path, weights_only=True)


def scores(folder: Path) -> dict[str, tuple[float, float]]:
    (found,) = json.loads((folder / "metrics.json").read_text())["datasets"].values()
    return {view: (row["psnr"], row["ssim"]) for view, row in found["per_view"].items()}


def mean_psnr(folder: Path) -> float:
    found = scores(folder).values()
    return sum(psnr for psnr, _ in found) / len(found)


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------ pretraining of NPBG++
@pytest.fixture(scope="module")
def scannet(train, launch) -> Trained:
    done = train(PRETRAIN_SCANNET, *PRETRAIN, *SCANNET, "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2", "datasets.n_point=150")
    shutil.copy(done.folder / "checkpoints" / "epoch1.ckpt", done.folder / "checkpoints" / "epoch38.ckpt")
    return done


@pytest.fixture(scope="module")
def h3ds(train, scannet, launch) -> Trained:
    done = train(PRETRAIN_H3DS, *PRETRAIN, "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2", "datasets.train_num_samples=4")
    shutil.copy(done.folder / "checkpoints" / "last.ckpt", launch / "checkpoints" / "npbgpp_h3ds.ckpt")
    return done


@pytest.fixture(scope="module")
def dtu(train, scannet, launch) -> Trained:
    done = train(PRETRAIN_DTU, *PRETRAIN, "trainer.max_epochs=3", "trainer.limit_val_batches=0")
    shutil.copy(done.folder / "checkpoints" / "last.ckpt", launch / "checkpoints" / "npbgpp_dtu_nm_mvs_ft_epoch35.ckpt")
    return done


def test_pretraining_on_scannet(scannet, launch):
    assert scannet.folder == launch / "experiments" / "npbgpp_scannet"
    assert {p.name for p in (scannet.folder / "checkpoints").iterdir()} == {"epoch0.ckpt", "epoch1.ckpt", "epoch38.ckpt", "last.ckpt"}
    assert [len(scenes) for scenes in scannet.epochs] == [2, 2] and scannet.epochs[0] != scannet.epochs[1]
    assert set.union(*scannet.epochs) == {"scene0002_00", "scene0003_00", "scene0005_00"}
    assert {batch.target.image.shape for batch in scannet.batches} == {(2, 3, 32, 32)}
    assert {views.image.shape for batch in scannet.batches for views in batch.inputs} == {(3, 3, 60, 80)}
    rendered = scannet.folder / "rendered" / "scene0005_00_val" / "val_epoch1"
    assert sorted(int(p.name.split("_")[0]) for p in rendered.iterdir()) == [3 * view for view in range(5, 95, 10)]


def test_pretraining_on_blender_goes_on_from_scannet(train, scannet, caplog):
    """Without reloading of loaders, as the line has it, all five scenes are seen all the same. There is no GPU here, and that is said."""
    done = train(PRETRAIN_BLENDER, *PRETRAIN, "trainer.max_epochs=2", "trainer.limit_val_batches=0", "datasets.train_random_shift=false")
    assert set.union(*done.epochs) == {"chair", "drums", "lego", "materials", "ship"} and [len(e) for e in done.epochs] == [4, 4]
    if not torch.cuda.is_available():
        assert "trainer.gpus=4: this machine has no usable GPU; running on the CPU instead" in caplog.text
    expected = len(weights(scannet.folder / "checkpoints" / "epoch38.ckpt"))
    assert "not everything matched" not in caplog.text and len(weights(done.folder / "checkpoints" / "last.ckpt")) == expected


def test_pretraining_on_h3ds_sees_heads_on_white(h3ds):
    assert [len(scenes) for scenes in h3ds.epochs] == [4, 4] and len(set.union(*h3ds.epochs)) == 8
    for batch in h3ds.batches:
        outside = (batch.target.mask < 0.5).expand(-1, 3, -1, -1)
        assert outside.any() and (batch.target.image[outside] == 1).all() and (batch.target.image[~outside] < 1).any()
    assert (h3ds.folder / "rendered" / "f7e930d8a9ff2091_val").is_dir()


def test_pretraining_on_dtu_has_full_epochs(dtu):
    assert [len(e) for e in dtu.epochs] == [4, 4, 4] and len(set.union(*dtu.epochs)) == 11


# ------------------------------------------------------------------ one scene
@pytest.fixture(scope="module")
def evaluate(run_line, launch) -> Callable[..., Path]:
    return lambda line, *overrides: run_line(launch, *shlex.split(line, comments=True)[2:], *overrides)


@pytest.fixture(scope="module")
def evaluated_scan(dtu, evaluate) -> Path:
    return evaluate(EVALUATE, *NETWORKS, "loggers=[csv]", "hydra.run.dir=experiments/evaluated_scan")


def test_evaluation_of_a_scan(evaluated_scan, evaluate):
    folder = evaluated_scan
    rendered = folder / "rendered" / "scan118_holdout" / "test_epoch0"
    kinds = ("rendered", "gt", "raster")
    assert {p.name for p in rendered.glob("*.png")} == {f"{view}_{kind}.png" for view in range(7, 48, 5) for kind in kinds}
    assert all(Image.open(p).size == (64, 48) for p in rendered.glob("*.png"))
    photo = np.asarray(Image.open(rendered / "7_gt.png"))
    assert (photo[0, 0] == 255).all() and (photo < 255).any()
    first, found = scores(folder), descriptors(folder / "descriptors")
    assert list(first) == [str(view) for view in range(7, 48, 5)]
    assert found.shape == (400, 56) and found.dtype == torch.float32 and found.any()
    with open(folder / "csv_logs" / "metrics.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["PSNR/scan118_holdout"]) == pytest.approx(mean_psnr(folder), abs=1e-4) and "SSIM/scan118_holdout" in row
    again = evaluate(EVALUATE, *NETWORKS, "loggers=none")
    assert scores(again) == first and torch.equal(descriptors(again / "descriptors"), found)


@pytest.fixture(scope="module")
def chain(h3ds, evaluate) -> dict[str, Path]:
    """Run folders of an evaluation, a finetuning that starts from it, and a test of what that made."""
    line = EVALUATE.replace("scan118", HEAD).replace("dtu_one_scene", "h3ds_one_scene").replace("DTU_masked", "H3DS")
    line = line.replace("npbgpp_dtu_nm_mvs_ft_epoch35", "npbgpp_h3ds")
    evaluated = evaluate(line, *NETWORKS, "loggers=none")
    before = files_of(evaluated)
    job = (
        "datasets.train_num_samples=24",
        "trainer.max_epochs=3",
        "trainer.log_every_n_steps=1",
        "trainer.limit_val_batches=0",
        "loggers=[csv]",
    )
    finetuned = evaluate(FINETUNE, REFINER, *job, "system.loss_factors.vgg_loss=0")
    assert files_of(evaluated) == before, "finetuning reads what the evaluation left, and leaves it alone"
    before = files_of(finetuned)
    tested = evaluate(TEST, REFINER, "loggers=none")
    assert files_of(finetuned) == before, "a test does not touch what was finetuned"
    return {"evaluated": evaluated, "finetuned": finetuned, "tested": tested}


def test_finetuning_moves_the_coefficients_of_points_in_view(chain):
    before, after = (descriptors(chain[name] / "descriptors") for name in ("evaluated", "finetuned"))
    assert before.shape == after.shape == (400, 56) and [p.name for p in (chain["finetuned"] / "descriptors").glob("*.pth")] == [
        f"{HEAD}.pth"
    ]
    drawn = before[:, 8:].any(1)  # the others have no slope: one photo saw them, or none
    moved = (before != after).any(1)
    assert drawn.any() and moved[drawn].float().mean() > 0.5 and not moved[~drawn].any()
    assert after.isfinite().all()


def test_finetuning_learns_and_keeps_the_aggregator(chain, launch):
    with open(chain["finetuned"] / "csv_logs" / "metrics.csv", newline="") as file:
        loss = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    first, second, third = (sum(loss[k : k + 24]) for k in (0, 24, 48))
    assert len(loss) == 72 and third < second < first
    start, end = weights(launch / "checkpoints" / "npbgpp_h3ds.ckpt"), weights(chain["finetuned"] / "checkpoints" / "last.ckpt")
    kept = [name for name in end if name.startswith("aggregator.")]
    assert len(kept) == 8 and all(torch.equal(start[name], end[name]) for name in kept)
    assert not torch.equal(start["refiner.final.weight"], end["refiner.final.weight"])
    assert not [name for name in end if name.startswith("feature_extractor.")]


def test_finetuned_coefficients_give_better_pictures(chain):
    held_out = ["0008", "0017", "0027", "0038", "0052", "0063"]  # views 5, 10, ..., 30 of the 32
    assert list(scores(chain["evaluated"])) == list(scores(chain["tested"])) == held_out
    assert mean_psnr(chain["tested"]) > mean_psnr(chain["evaluated"]) + 0.5
    assert not list((chain["tested"]).rglob("*.pth")), "a test saves no coefficients"


# ------------------------------------------------------------------ pretraining of NPBG
@pytest.mark.parametrize(
    ("line", "overrides", "scenes", "size"),
    [
        (NPBG_SCANNET, (*SCANNET, "trainer.max_epochs=2", CROP), 3, (32, 32)),
        (NPBG_BLENDER, ("trainer.max_epochs=2", CROP, "datasets.train_random_shift=false"), 5, (32, 32)),
        (NPBG_H3DS, ("trainer.max_epochs=2",), 8, (64, 64)),
        (NPBG_DTU, ("trainer.max_epochs=3", CROP, "datasets.train_num_samples=4"), 11, (32, 32)),
    ],
    ids=["scannet", "blender", "h3ds", "dtu"],
)
def test_pretraining_of_npbg(train, launch, line, overrides, scenes, size):
    """Every scene gets its file, where the line says."""
    done = train(line, REFINER, *JOB, "system/loss_factors=l1_ssim", *overrides)
    visited = set.union(*done.epochs)
    assert len(visited) == scenes
    (folder,) = (launch / word.partition("=")[2] for word in line.split() if word.startswith("system.descriptors_save_dir="))
    assert {path.stem for path in folder.glob("*.pth")} == visited
    assert all(torch.load(path, weights_only=True).any() for path in folder.glob("*.pth"))
    assert {batch.target.image.shape[2:] for batch in done.batches} == {size} and not any(batch.inputs for batch in done.batches)
    assert not (done.folder / "rendered").exists() and (done.folder / "checkpoints" / "last.ckpt").is_file()


# ------------------------------------------------------------------ in a shell
def test_evaluation_typed_into_a_shell(evaluated_scan, launch):
    """bash takes the backslashes away."""
    here = scores(evaluated_scan)
    command = " ".join(EVALUATE.split("\n")).replace("python train_net.py", "printf '%s\\n'")
    words = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()
    done = run_program(TRAIN_NET, [*words, *NETWORKS, "hydra.run.dir=experiments/typed"], launch)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert "scan118_holdout" in done.stdout
    assert scores(launch / "experiments" / "typed") == {view: pytest.approx(found, abs=1e-3) for view, found in here.items()}
