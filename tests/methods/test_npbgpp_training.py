"""Training and evaluation of NPBG++ on tiny scenes."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from npbgpp.data.scene import Batch
from npbgpp.data.view_selection import ViewSelector
from npbgpp.geometry.point_cloud import read_ply
from npbgpp.methods.npbgpp import ColorJitter, NPBGPlusPlus, SceneSums

from .run_files import descriptors, logged, weights

QUIET = ("trainer.limit_val_batches=0", "datasets.scenes.test=[]")
LOGGED = ("loggers=[csv]", "trainer.log_every_n_steps=1")
FEW = "datasets.train_num_samples=2"
NO_CHANCE = ("datasets.selection_method=best", "system.color_aug_p=0", "system.loss_factors.rgb_reg_loss=0")
THREE_SCENES = ("datasets.scenes.train=[ball,globe,moon]", "datasets.scenes.val=[]", "system.max_scenes_per_train_epoch=2")


def scores(folder: Path, dataset: str) -> dict[str, tuple[float, float]]:
    views = json.loads((folder / "metrics.json").read_text())["datasets"][dataset]["per_view"]
    return {view: (found["psnr"], found["ssim"]) for view, found in views.items()}


@pytest.fixture
def run(run_npbgpp, tmp_path) -> Callable[..., Path]:
    return lambda *overrides, **options: run_npbgpp(tmp_path, *overrides, **options)


@pytest.fixture
def gradients(monkeypatch) -> list[dict[str, Tensor | None]]:
    """Gradients of all weights, by step."""
    seen = []
    original = NPBGPlusPlus.step

    def step(self):
        seen.append({name: None if p.grad is None else p.grad.clone() for name, p in self.named_parameters()})
        original(self)

    monkeypatch.setattr(NPBGPlusPlus, "step", step)
    return seen


@pytest.fixture(scope="module")
def trained(run_npbgpp, tmp_path_factory) -> Path:
    """A run of 25 steps on the terms that compare images."""
    rates = "system.learning_rates={feature_extractor: 1e-4, aggregator: 1e-3, background: 0, rgb_converter: 1e-2, refiner: 3e-3}"
    job = ("datasets.train_num_samples=25", "datasets.selection_count=2", "system.color_aug_p=0", "system.loss_factors.dimred_loss=0.001")
    return run_npbgpp(tmp_path_factory.mktemp("npbgpp"), *QUIET, *LOGGED, *job, rates)


@pytest.fixture(scope="module")
def two_steps(run_npbgpp, tmp_path_factory) -> Path:
    """Two steps without options, validated after them."""
    return run_npbgpp(tmp_path_factory.mktemp("npbgpp"), *LOGGED, FEW, "datasets.scenes.test=[]")


# ------------------------------------------------------------------ learning
def test_training_learns(trained):
    loss, psnr = logged(trained, "loss"), logged(trained, "psnr")
    assert len(loss) == 25 and all(math.isfinite(value) for value in loss)
    assert sum(loss[-5:]) < 0.85 * sum(loss[1:6])
    assert sum(psnr[-5:]) / 5 > psnr[0] + 2.5


def test_gradients_reach_every_network(run, gradients):
    run(*QUIET, FEW, "system.feature_extractor.encoder=spnasnet_100")
    first, second = gradients
    assert {name.partition(".")[0] for name in first} == {"rgb_converter", "feature_extractor", "aggregator", "rasterizer", "refiner"}
    # a batch norm far down the encoder may be dead for one picture, not for two
    still = [name for name in first if not any(g[name] is not None and g[name].any() for g in (first, second))]
    assert still == ["rasterizer.bg_feature"]
    assert all(g is None or g.isfinite().all() for step in gradients for g in step.values())


def test_what_is_not_frozen_moves_and_statistics_stay(trained, two_steps):
    before, after = weights(two_steps), weights(trained)
    assert before.keys() == after.keys()
    for name, value in before.items():
        statistics = "running_" in name or "num_batches" in name
        fixed = statistics or name in ("feature_extractor.mean", "feature_extractor.std", "rasterizer.bg_feature")
        fixed |= name in ("aggregator.alpha", "aggregator.harmonic_embedding.frequencies")
        assert torch.equal(value, after[name]) == fixed, name


@pytest.mark.parametrize("frozen", ["refiner", "feature_extractor", "aggregator"])
def test_frozen_networks(run, trained, frozen):
    start = f"weights_path={trained}/checkpoints/last.ckpt"
    before, after = weights(trained), weights(run(*QUIET, FEW, start, f"system.freeze_{frozen}=true"))
    for name, value in before.items():
        if name.startswith(f"{frozen}."):
            assert torch.equal(value, after[name]), name
    moved = {name.partition(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"rgb_converter", "feature_extractor", "aggregator", "refiner"} - {frozen}


def test_a_batch_of_two_scenes_equals_both_one_after_the_other(run, gradients):
    """Losses are means over images, so gradients of a batch are the mean of those of its items."""
    one_of_each = ("datasets.scenes.train=[ball,globe]", "datasets.train_num_samples=1", "dataloader.train.shuffle=false")
    points_differ = "system.loss_factors.dimred_loss=0"  # that loss is a mean over the points in view
    settings = (*QUIET, *NO_CHANCE, *one_of_each, points_differ, "dataloader.train_data_mode=common")
    run(*settings, "dataloader.train_total_batch_size=2", name="together")
    run(*settings, "trainer.accumulate_grad_batches=2", name="apart")
    together, apart = gradients
    for name, gradient in together.items():
        if gradient is not None:
            other = apart[name]
            torch.testing.assert_close(gradient, other, rtol=0, atol=2e-4 * max(other.abs().max().item(), 1e-6), msg=name)


# ------------------------------------------------------------------ options
@pytest.mark.parametrize(
    "options",
    [
        ("system.pixel_convention=exact",),
        ("system.visibility_scale=0.5",),
        ("system.visibility_scale=null",),
        ("system.align_view_images=false",),
        ("system.align_during_rendering=false",),
        ("system.up=[0,0,1]",),
        ("system/aggregator=mean",),
        ("system.aggregator.type=learnable_vdo", "system.aggregator.learnable_alpha=true"),
        ("datasets.train_random_zoom=[0.5,2.0]",),
    ],
    ids=lambda options: options[0].partition(".")[2] or options[0],
)
def test_options_change_training_and_evaluate(run, two_steps, options):
    folder = run(*LOGGED, FEW, "trainer.limit_val_batches=0", "trainer.enable_checkpointing=false", "test_after_fit=true", *options)
    loss = logged(folder, "loss")
    assert len(loss) == 2 and all(math.isfinite(value) for value in loss)
    assert loss != logged(two_steps, "loss")
    found = descriptors(folder)
    assert len(scores(folder, "ball_holdout")) == 2 and found.isfinite().all()
    assert found.shape == (400, 8 if "mean" in options[0] else 56)


def test_masks_are_learned(run, two_steps):
    folder = run(*LOGGED, "system.use_masks=true", "system.refiner.out_channels=4", FEW, "test_after_fit=true")
    for name in ("mask_loss", "m_reg_loss", "l1_d1_loss", "ssim_loss", "dimred_loss", "rgb_reg_loss", "loss"):
        values = logged(folder, name)
        assert len(values) == 2 and all(math.isfinite(v) for v in values), name
    assert len(scores(folder, "ball_holdout")) == 2
    # a random refiner is about as wrong everywhere, and the ball covers half of the photos
    assert logged(folder, "rgb_reg_loss")[0] < 0.75 * logged(two_steps, "rgb_reg_loss")[0]


def test_pixels_outside_the_mask_have_no_gradient(run):
    """With the L1 terms alone, the colour outside the mask is of no consequence: it is the same in both images."""
    terms = ("system.loss_factors.ssim_loss=0", "system.loss_factors.dimred_loss=0", "system.use_masks=true", "system.color_aug_p=0")
    white = weights(run(*QUIET, FEW, *terms, name="white"))
    black = weights(run(*QUIET, FEW, *terms, "system.bg_rgb_color=[0,0,0]", name="black"))
    assert all(torch.equal(value, black[name]) for name, value in white.items())


def test_bfloat16_is_close_to_float32(run, trained):
    """Networks may run in bfloat16; where points project and what photos show there is found in full precision."""
    job = (f"weights_path={trained}/checkpoints/last.ckpt", "system.color_aug_p=0", *LOGGED, "system.loss_factors.rgb_reg_loss=0")
    losses = [logged(run(*job, *QUIET, FEW, f"trainer.precision={p}", name=p), "loss")[0] for p in ("32", "bf16")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)
    plain, short = (run(*job, "eval_only=true", f"trainer.precision={p}", name=f"eval_{p}") for p in ("32", "bf16"))
    assert torch.equal(descriptors(plain), descriptors(short))
    for view, (psnr, ssim) in scores(plain, "ball_holdout").items():
        assert scores(short, "ball_holdout")[view] == pytest.approx((psnr, ssim), abs=0.1)
    assert scores(short, "ball_holdout") != scores(plain, "ball_holdout")


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_colour_jitter_is_shared_by_target_and_inputs(run_colours, tmp_path, monkeypatch, precision):
    """The element that is drawn, not the first ones of the batch, with one change for the target and what it is described from, in full precision."""
    batches, draws = [], []
    augment, draw = NPBGPlusPlus.augment, ColorJitter.draw
    monkeypatch.setattr(NPBGPlusPlus, "augment", lambda self, batch: batches.append((batch, augment(self, batch))) or batches[-1][1])
    monkeypatch.setattr(ColorJitter, "draw", lambda: draws.append(draw()) or draws[-1])
    job = (
        "system.color_aug_p=0.5",
        "datasets.train_num_samples=20",
        "dataloader.train_total_batch_size=4",
        f"trainer.precision={precision}",
    )
    run_colours(tmp_path, *QUIET, *job, "trainer.max_epochs=1")
    patterns = [changed_items(before, after, draws) for before, after in batches]
    assert len(patterns) == 5 and not draws, "each draw belongs to one element"
    assert any(False in pattern[: pattern.index(True)] for pattern in patterns if True in pattern)


def changed_items(before: Batch, after: Batch, draws: list[ColorJitter]) -> list[bool]:
    """Which elements have other colours; takes the draws that explain them off the list."""
    pattern = []
    for k in range(len(before)):
        old, new = (before.target.image[k, None], before.inputs[k].image), (after.target.image[k, None], after.inputs[k].image)
        pattern.append(not torch.equal(old[0], new[0]))
        change = draws.pop(0).apply if pattern[-1] else torch.clone
        assert all(torch.equal(change(a), b) for a, b in zip(old, new, strict=True))
    return pattern


# ------------------------------------------------------------------ views without points
@pytest.fixture
def blind_root(tiny_root, tmp_path) -> Path:
    """The tiny ball with its third training camera turned away from it."""
    folder = tmp_path / "data" / "ball"
    shutil.copytree(tiny_root / "ball", folder)
    path = folder / "transforms_train.json"
    content = json.loads(path.read_text())
    pose = content["frames"][2]["transform_matrix"]
    content["frames"][2]["transform_matrix"] = [[-row[0], row[1], -row[2], row[3]] for row in pose[:3]] + [pose[3]]
    path.write_text(json.dumps(content))
    return folder.parent


def test_views_without_visible_points(run, blind_root, monkeypatch):
    """As a target and among the inputs of all others."""
    seen = []
    original = NPBGPlusPlus.visible_in_training
    monkeypatch.setattr(NPBGPlusPlus, "visible_in_training", lambda self, *target: seen.append(original(self, *target)) or seen[-1])
    every_view = ("datasets.selection_count=11", "datasets.train_num_samples=4", "dataloader.train.shuffle=false")
    folder = run(*QUIET, *LOGGED, *every_view, root=blind_root)
    assert [len(visible.descriptors) > 0 for visible in seen] == [True, True, False, True]
    assert all(math.isfinite(value) for value in logged(folder, "loss"))
    assert all(value.isfinite().all() for value in weights(folder).values())


def test_target_without_points_has_no_gradient_if_the_refiner_is_frozen(run, blind_root, gradients):
    third = ("datasets.val_indices=[0,1]", "datasets.train_num_samples=1", "dataloader.train.shuffle=false")
    run(*QUIET, *third, "system.freeze_refiner=true", root=blind_root)
    (step,) = gradients
    assert [name for name, gradient in step.items() if gradient is not None and gradient.any()] == []


def test_an_input_view_without_points_adds_nothing(run_colours, tmp_path, blind_root):
    with_it = run_colours(tmp_path, "eval_only=true", root=blind_root, name="with")
    without = run_colours(tmp_path, "eval_only=true", "datasets.val_indices=[2]", root=blind_root, name="without")
    assert descriptors(with_it).any() and torch.equal(descriptors(with_it), descriptors(without))


# ------------------------------------------------------------------ scenes
@pytest.mark.parametrize("reload", [0, 1])
def test_epochs_cycle_through_scenes(run_colours, tmp_path, monkeypatch, reload):
    visited: list[set[str]] = []
    start, original = NPBGPlusPlus.on_train_epoch_start, NPBGPlusPlus.visible_in_training

    def spy(self, aligned, batch):
        visited[-1].update(batch.scene)
        return original(self, aligned, batch)

    monkeypatch.setattr(NPBGPlusPlus, "on_train_epoch_start", lambda self: visited.append(set()) or start(self))
    monkeypatch.setattr(NPBGPlusPlus, "visible_in_training", spy)
    run_colours(tmp_path, *QUIET, *THREE_SCENES, FEW, "trainer.max_epochs=4", f"trainer.reload_dataloaders_every_n_epochs={reload}")
    assert [len(scenes) for scenes in visited] == [2] * 4
    assert visited[0] | visited[1] == visited[2] | visited[3] == {"ball", "globe", "moon"}


def test_clouds_on_the_device_are_limited(run_colours, tmp_path, monkeypatch):
    kept = []
    cloud = NPBGPlusPlus.cloud
    monkeypatch.setattr(NPBGPlusPlus, "cloud", lambda self, scene: (cloud(self, scene), kept.append(set(self._clouds)))[0])
    run_colours(tmp_path, *QUIET, *THREE_SCENES, FEW, "trainer.max_epochs=2")
    assert {len(scenes) for scenes in kept} <= {1, 2} and set.union(*kept) == {"ball", "globe", "moon"}


def test_n_point_thins_the_clouds_that_are_trained(run_colours, tmp_path, monkeypatch):
    sizes = {}
    cloud = NPBGPlusPlus.cloud
    monkeypatch.setattr(NPBGPlusPlus, "cloud", lambda self, s: sizes.setdefault(s, found := cloud(self, s)) and found)
    run_colours(tmp_path, *QUIET, *THREE_SCENES, FEW, "trainer.max_epochs=2", "datasets.n_point=150")
    assert {scene: (len(blocked), len(xyz)) for scene, (blocked, xyz) in sizes.items()} == dict.fromkeys(
        ("ball", "globe", "moon"), (150, 150)
    )


def test_selection_best_is_deterministic(run_colours, tmp_path, monkeypatch):
    chosen: dict[str, list[tuple]] = {"best": [], "multinomial": []}
    select = ViewSelector.select
    monkeypatch.setattr(
        ViewSelector,
        "select",
        lambda self, *target: chosen[self.method].append((target[0], select(self, *target))) or chosen[self.method][-1][1],
    )
    for method, seen in chosen.items():
        six_targets = ("datasets.val_indices=[6,7,8,9,10,11]", "datasets.train_num_samples=12")
        run_colours(tmp_path, *QUIET, f"datasets.selection_method={method}", *six_targets, name=method)
        assert len(seen) == 12 and all(target not in views and len(set(views)) == 3 for target, views in seen)
    assert len(set(chosen["best"])) == 6 and len(set(chosen["multinomial"])) > 6


# ------------------------------------------------------------------ what photos show
@pytest.mark.parametrize(("align", "error"), [("false", 0.08), ("true", 0.12)])
def test_colours_of_the_photos_are_the_colours_of_the_points(run_colours, tmp_path, tiny_root, align, error):
    """The one system whose descriptors have a meaning: the mean colour, which the points were drawn with. Turning photos blurs them."""
    hide_the_far_side = "system.visibility_scale=0.25"
    exact = ("system.pixel_convention=exact", f"system.align_view_images={align}")
    found = descriptors(run_colours(tmp_path, "eval_only=true", hide_the_far_side, *exact))
    assert found.shape == (400, 3)
    seen = found.any(1)
    wrong = (found - read_ply(tiny_root / "ball" / "mvs_pc.ply").rgb).abs().amax(1)[seen]
    assert seen.sum() > 200 and wrong.median() < error and (wrong < 0.3).float().mean() > 0.95


def test_visibility_scale_decides_how_much_a_photo_shows(run_colours, tmp_path, monkeypatch):
    shown: list[int] = []
    add = SceneSums.add
    monkeypatch.setattr(SceneSums, "add", lambda self, points, *look: shown.append(len(points)) or add(self, points, *look))
    totals = []
    for scale in ("null", "1.0", "0.5"):
        run_colours(tmp_path, "eval_only=true", f"system.visibility_scale={scale}", name=f"scale_{scale}")
        assert len(shown) == 12, "one per photo"
        totals.append(sum(shown))
        shown.clear()
    assert totals[0] == 12 * 400 and totals[0] > totals[1] > 1.2 * totals[2] > 0


def test_every_validation_reads_the_photos_with_the_weights_of_its_epoch(run, monkeypatch):
    job = ("datasets.scenes.test=[]", FEW, "trainer.max_epochs=2")
    folder = run(*job)
    view = ("datasets.val_indices=[13]", "datasets.test_indices=[12]", "datasets.scenes.val=[]", "datasets.scenes.test=[ball]")
    again = run("eval_only=true", *view, f"weights_path={folder}/checkpoints/epoch1.ckpt", name="again")
    assert scores(folder, "ball_val") == scores(again, "ball_holdout")


def test_points_invisible_in_all_photos_are_not_rendered(run_colours, tmp_path, monkeypatch):
    """The two input photos show the far side of what is rendered."""
    drawn: list[Tensor] = []
    original = NPBGPlusPlus.visible

    def visible(self, *view):
        found = original(self, *view)
        drawn.extend(part.points for part in found.gathered.parts)
        return found

    monkeypatch.setattr(NPBGPlusPlus, "visible", visible)
    far_side = "datasets.val_indices=[0,1,2,3,4,5,8,9,10,11]"
    seen = descriptors(run_colours(tmp_path, "eval_only=true", far_side, "system.visibility_scale=0.5")).any(1)
    assert 50 < seen.sum() < 300 and drawn and seen[torch.cat(drawn).long()].all()


def test_scenes_of_one_evaluation_do_not_mix(run_colours, tmp_path):
    """Clouds of different size: each scene gets what it gets alone, in whatever company."""
    together = run_colours(tmp_path, "eval_only=true", "datasets.scenes.test=[globe,ball,moon]", name="together")
    for scene, points in {"ball": 400, "globe": 450, "moon": 500}.items():
        alone = run_colours(tmp_path, "eval_only=true", f"datasets.scenes.test=[{scene}]", name=scene)
        assert scores(alone, f"{scene}_holdout") == scores(together, f"{scene}_holdout")
        assert descriptors(alone, scene).shape == (points, 3) and torch.equal(descriptors(alone, scene), descriptors(together, scene))
        assert [path.name for path in (alone / "descriptors").iterdir()] == [f"{scene}.pth"]


def test_views_may_be_evaluated_in_batches(run_colours, tmp_path):
    one, two = (run_colours(tmp_path, "eval_only=true", f"dataloader.test.total_batch_size={b}", name=f"batch_{b}") for b in (1, 2))
    assert scores(one, "ball_holdout") == scores(two, "ball_holdout") and len(scores(two, "ball_holdout")) == 2
    pictures = [sorted((folder / "rendered").rglob("*.png")) for folder in (one, two)]
    assert len(pictures[0]) == 6 and [p.read_bytes() for p in pictures[0]] == [p.read_bytes() for p in pictures[1]]
