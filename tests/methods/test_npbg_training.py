"""Training of NPBG on tiny scenes: descriptors, networks, files."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.geometry.point_cloud import PointCloud, read_ply, write_ply
from npbgpp.methods.npbg import NPBG
from npbgpp.points.descriptor_tables import DescriptorTables
from npbgpp.points.sparse_optim import SparseRMSprop

from .run_files import descriptors, logged, weights

QUIET = ("trainer.limit_val_batches=0", "datasets.scenes.test=[]")


@pytest.fixture
def updates(monkeypatch) -> list[tuple[int, float, Tensor, Tensor, Tensor]]:
    """Every update of descriptors: step, learning rate, rows, gradient, and the values it left."""
    seen = []
    original = SparseRMSprop.update

    def update(self, table, rows, gradient):
        original(self, table, rows, gradient)
        seen.append((self.steps, self.lr, rows.clone(), gradient.clone(), table.values[rows].clone()))

    monkeypatch.setattr(SparseRMSprop, "update", update)
    return seen


def test_training_learns(run_here):
    """60 steps on a tiny scene lift the PSNR of training views by far more than noise."""
    faster = ("system.learning_rates.refiner=1e-3", "system.reset_descriptor_optimizer=false", "datasets.train_num_samples=60")
    folder = run_here(*QUIET, *faster, "loggers=[csv]", "trainer.log_every_n_steps=1")
    psnr = logged(folder, "psnr")
    assert len(psnr) == 60
    assert sum(psnr[-10:]) / 10 > psnr[0] + 5
    assert all(math.isfinite(value) for value in logged(folder, "loss"))


def test_descriptors_of_invisible_points_stay_zero(run_here, tiny_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_root / "ball", root / "ball")
    cloud = read_ply(root / "ball" / "mvs_pc.ply")
    far_above = torch.tensor([[0.0, 0.0, 40.0]]) + torch.rand(25, 3)
    write_ply(root / "ball" / "mvs_pc.ply", PointCloud(torch.cat([far_above, cloud.xyz])))
    found = descriptors(run_here(*QUIET, root=root))
    assert found.shape == (425, 8)
    assert not found[:25].any()
    assert found[25:].any(1).float().mean() > 0.5


def test_frozen_refiner(run_here):
    first = run_here(*QUIET, name="first")
    second = run_here(*QUIET, "system.freeze_refiner=true", f"weights_path={first}/checkpoints/last.ckpt", name="second")
    before, after = weights(first), weights(second)
    assert before.keys() == after.keys()
    for name in before:
        if name.startswith("refiner."):
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["rasterizer.bg_feature"], after["rasterizer.bg_feature"])
    assert descriptors(second).any()


def test_masks_are_learned(run_here):
    folder = run_here(
        "system.use_masks=true", "system.refiner.out_channels=4", "loggers=[csv]", "trainer.log_every_n_steps=1", "test_after_fit=true"
    )
    for name in ("mask_loss", "m_reg_loss", "l1_d1_loss", "ssim_loss", "dimred_loss", "loss"):
        values = logged(folder, name)
        assert len(values) == 4 and all(math.isfinite(v) for v in values), name
    assert max(logged(folder, "m_reg_loss")) <= 1
    assert (folder / "metrics.json").is_file()


def test_predicted_mask_composites_the_background(run_here, monkeypatch):
    original = NPBG.decode

    def decode(self, aligned, visible):
        render = original(self, aligned, visible)
        mask = torch.zeros_like(render.alpha)
        mask[..., 16:] = 1.0
        return replace(render, rgb=render.rgb * 0 + 0.25, alpha=mask)

    settings = (*QUIET, "system.use_masks=true", "system.refiner.out_channels=4", "system.bg_rgb_color=[0,1,0]")
    first = run_here(*settings, name="first")
    monkeypatch.setattr(NPBG, "decode", decode)
    start = (f"weights_path={first}/checkpoints/last.ckpt", f"system.descriptors_pretrained_dir={first}/descriptors")
    folder = run_here(*settings[1:], *start, "eval_only=true", "datasets.scenes.test=[ball]", name="second")
    picture = np.asarray(Image.open(folder / "rendered" / "ball_holdout" / "test_epoch0" / "test-r_0_rendered.png"))
    assert (picture[:, :16] == [0, 255, 0]).all() and (picture[:, 16:] == 64).all()


def test_pixels_outside_the_mask_have_no_gradient(run_here):
    """With masks and the L1 term alone no background changes a gradient: outside the mask both images are ``bg_rgb_color``."""
    settings = (*QUIET, "system.use_masks=true", "system.loss_factors.ssim_loss=0", "system.loss_factors.dimred_loss=0")
    one = descriptors(run_here(*settings, name="white"))
    stored = descriptors(run_here(*settings, "datasets.white_bg=false", name="stored"))
    black = descriptors(run_here(*settings, "system.bg_rgb_color=[0,0,0]", name="black"))
    assert one.any() and torch.equal(one, stored) and torch.equal(one, black)


@pytest.mark.parametrize("option", ["system.align_during_rendering=true", "system.pixel_convention=exact"])
def test_other_geometry_trains_and_evaluates(run_here, option):
    folder = run_here(option, "test_after_fit=true", "loggers=[csv]", "trainer.log_every_n_steps=1", "system.up=[0,0,1]")
    assert len(logged(folder, "loss")) == 4 and all(math.isfinite(v) for v in logged(folder, "loss"))
    assert (folder / "rendered" / "ball_holdout" / "test_epoch0" / "test-r_0_rendered.png").is_file()


def test_accumulated_batches_equal_one_large_batch(run_here, updates):
    order = ("dataloader.train.shuffle=false", "system.reset_descriptor_optimizer=false")
    large = run_here(*QUIET, *order, "dataloader.train_total_batch_size=2", name="large")
    (batches, updates[:]) = (list(updates), [])
    small = run_here(*QUIET, *order, "trainer.accumulate_grad_batches=2", name="small")
    assert [step for step, *_ in updates] == [step for step, *_ in batches] == [1, 2]
    (_, _, rows, gradient, values), (_, _, other_rows, other_gradient, other_values) = batches[0], updates[0]
    assert torch.equal(rows.sort().values, other_rows.sort().values)
    order_a, order_b = rows.argsort(), other_rows.argsort()
    largest = gradient.abs().max().item()
    torch.testing.assert_close(gradient[order_a], other_gradient[order_b], rtol=0, atol=1e-4 * largest)
    sure = gradient[order_a].abs() > 1e-3 * largest
    assert sure.any()
    torch.testing.assert_close(values[order_a][sure], other_values[order_b][sure], rtol=0, atol=1e-2)
    expected = weights(small)
    for name, value in weights(large).items():
        if not name.startswith("rgb_converter."):  # its loss is a mean over the points in view, which differ between the batches
            torch.testing.assert_close(value, expected[name], rtol=0, atol=5e-2 if name.startswith("rasterizer") else 3e-4)


def test_incomplete_accumulation_steps_at_the_end_of_an_epoch(run_here, updates):
    run_here(*QUIET, "trainer.accumulate_grad_batches=3")
    assert [step for step, *_ in updates] == [1, 2]


def test_gradient_clipping(run_here, updates):
    run_here(*QUIET, name="free")
    free = [gradient.norm().item() for *_, gradient, _ in updates]
    updates.clear()
    limit = min(free) / 10
    run_here(*QUIET, f"trainer.gradient_clip_val={limit}", name="clipped")
    clipped = [gradient.norm().item() for *_, gradient, _ in updates]
    assert len(clipped) == len(free) == 4
    assert clipped == pytest.approx([limit] * 4, rel=1e-2)


def test_clipping_reaches_the_networks(run_here):
    """Gradients far below Adam's eps move nothing."""
    folder = run_here(*QUIET, "trainer.gradient_clip_val=1e-20", "trainer.max_epochs=2")
    first, second = weights(folder, "epoch0"), weights(folder, "epoch1")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("schedule", "accumulated"), [("constant", 1), ("cosine", 1), ("cosine", 2)])
def test_learning_rate_schedule(run_here, updates, schedule, accumulated):
    """The cosine schedule ends at a hundredth of the learning rate."""
    run_here(
        *QUIET,
        f"system.lr_schedule={schedule}",
        "trainer.max_epochs=2",
        "datasets.train_num_samples=4",
        f"trainer.accumulate_grad_batches={accumulated}",
    )
    steps = 8 // accumulated
    cosine = [0.1 * (0.01 + 0.99 * (1 + math.cos(math.pi * k / steps)) / 2) for k in range(steps)]
    assert [lr for _, lr, *_ in updates] == pytest.approx(cosine if schedule == "cosine" else [0.1] * steps, rel=1e-4)


def test_max_steps_counts_batches(run_here, updates):
    """Two optimisers step per batch; a batch is one step all the same."""
    folder = run_here(*QUIET, "trainer.max_steps=6", "trainer.max_epochs=5")
    assert len(updates) == 6
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] in (4, 6)


def test_epochs_cycle_through_scenes(run_here, updates, monkeypatch):
    """Three scenes, two per epoch: after two epochs each has its file, and one was visited twice."""
    saved: dict[str, list[Tensor]] = {}
    opened: dict[str, list[Tensor]] = {}
    save, initial = DescriptorTables.save, DescriptorTables._open

    def spy_save(self, scene):
        saved.setdefault(scene, []).append(self.residents[scene].table.values.clone())
        return save(self, scene)

    def spy_open(self, scene, training):
        found = initial(self, scene, training)
        opened.setdefault(scene, []).append(found.table.values.clone())
        return found

    monkeypatch.setattr(DescriptorTables, "save", spy_save)
    monkeypatch.setattr(DescriptorTables, "_open", spy_open)
    folder = run_here(
        *QUIET,
        "datasets.scenes.train=[ball,globe,moon]",
        "datasets.scenes.val=[]",
        "system.max_scenes_per_train_epoch=2",
        "trainer.max_epochs=4",
        "trainer.reload_dataloaders_every_n_epochs=0",
        "datasets.train_num_samples=2",
    )
    points = {"ball": 400, "globe": 450, "moon": 500}
    assert {path.stem for path in (folder / "descriptors").glob("*.pth")} == set(points)
    assert {scene: len(descriptors(folder, scene)) for scene in points} == points
    assert all(descriptors(folder, scene).any() for scene in points)
    assert sum(len(times) for times in saved.values()) == 8 and min(len(times) for times in saved.values()) >= 2
    revisited = [scene for scene in opened if len(opened[scene]) > 1]
    assert revisited
    for scene in opened:
        assert not opened[scene][0].any()
        for start in opened[scene][1:]:
            assert any(torch.equal(start, values) for values in saved[scene][:-1])


def test_validation_skips_scenes_of_later_epochs(run_here):
    """Scenes without trained descriptors are not validated."""
    folder = run_here(
        "datasets.scenes.train=[ball,globe,moon]",
        "datasets.scenes.val=[ball,globe,moon]",
        "datasets.scenes.test=[]",
        "system.max_scenes_per_train_epoch=1",
        "trainer.max_epochs=1",
        "datasets.train_num_samples=2",
    )
    trained = [path.stem for path in (folder / "descriptors").glob("*.pth")]
    validated = [path.name.removesuffix("_val") for path in (folder / "rendered").iterdir()]
    assert len(trained) == 1 and validated == trained


def test_optimizer_state_is_reset_between_epochs_if_configured(run_here, monkeypatch):
    remembered = []
    original = SparseRMSprop.update

    def update(self, table, rows, gradient):
        remembered.append((self.steps, table.state()[0].any().item()))
        original(self, table, rows, gradient)

    monkeypatch.setattr(SparseRMSprop, "update", update)
    run_here(*QUIET, "trainer.max_epochs=2", name="erased")
    assert remembered == 2 * [(1, False), (2, True), (3, True), (4, True)]
    remembered.clear()
    run_here(*QUIET, "trainer.max_epochs=2", "system.reset_descriptor_optimizer=false", name="kept")
    assert remembered == [(1, False), *((step, True) for step in range(2, 9))]


def test_cloud_that_no_camera_sees(run_here, tiny_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_root / "ball", root / "ball")
    path = root / "ball" / "mvs_pc.ply"
    write_ply(path, PointCloud(read_ply(path).xyz + torch.tensor([0.0, 0.0, 100.0])))
    with pytest.raises(InputError, match="none of its 400 points is seen") as caught:
        run_here(*QUIET, root=root)
    assert str(path) in str(caught.value) and "system.near=1.0" in str(caught.value)


def test_warning_if_the_near_plane_removes_many_points(run_here, caplog):
    run_here(*QUIET, name="harmless")
    assert "system.near" not in caplog.text
    run_here(*QUIET, "system.near=3.0", name="cut")
    (line,) = [record.getMessage() for record in caplog.records if "system.near" in record.getMessage()]
    assert line.startswith("scene ball: system.near=3 removes up to") and "%" in line
