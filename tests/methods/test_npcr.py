"""NPCR on tiny scenes with mattes: training, layers, resuming, scores, invalid input."""

import json
import math
import shutil
from functools import partial

import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.point_cloud import PointCloud, read_ply, write_ply
from npbgpp.methods.npcr.system import NPCR

from ..conftest import SMALL_HAIR
from ..run_folders import REPOSITORY
from .run_files import descriptors, logged, weights

QUIET = ("trainer.limit_val_batches=0", "datasets.scenes.test=[]")


@pytest.fixture
def run_here(run_npcr, tmp_path):
    return partial(run_npcr, tmp_path)


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """Number of layers of every rendered view."""
    counts = []
    original = NPCR.render_layers

    def render_layers(self, *arguments, **keywords):
        found = original(self, *arguments, **keywords)
        counts.append(found.layers.shape[1])
        return found

    monkeypatch.setattr(NPCR, "render_layers", render_layers)
    return counts


def test_training_learns_colours_and_mattes(run_in, tmp_path):
    """80 steps on the hair: held-out views get scores of their mattes over several backgrounds, far from those of an empty picture."""
    words = (
        "datasets.train_num_samples=80",
        "loggers=[csv]",
        "trainer.log_every_n_steps=1",
        "test_after_fit=true",
        "trainer.limit_val_batches=0",
    )
    folder = run_in(tmp_path, *words, root=REPOSITORY / "example", tiny=SMALL_HAIR)
    psnr = logged(folder, "psnr")
    assert len(psnr) == 80 and sum(psnr[-10:]) / 10 > psnr[0] + 5
    assert all(math.isfinite(value) for value in logged(folder, "loss"))
    metrics = json.loads((folder / "metrics.json").read_text())
    (scores,) = metrics["datasets"].values()
    matte = scores["matte"]
    # an empty picture has 9.8 dB and 0.25
    assert set(matte["over"]) == {"black", "grey", "white"} and matte["psnr_rgba"] > 18.5
    assert 0 <= matte["matte_mse"] < 0.03 and 0 <= matte["matte_sad"] < 0.11
    for name in ("psnr_rgba", "matte_mse", "matte_sad"):
        found = [view["matte"][name] for view in scores["per_view"].values()]
        assert matte[name] == pytest.approx(sum(found) / len(found))
    table = descriptors(folder, "hair")
    assert table.shape == (18000, 6) and 0.2 < table.any(1).float().mean() < 1


@pytest.mark.parametrize(("share", "learned"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_norms_freeze_their_statistics(run_here, share, learned):
    """Batch norms of both decoders count the steps in which they use batch statistics."""
    folder = run_here(*QUIET, f"system.norms_learn_for={share}")
    counts = {int(value) for name, value in weights(folder).items() if name.endswith("num_batches_tracked")}
    assert counts == {learned}


def test_other_systems_report_no_mattes(run_in, tmp_path):
    folder = run_in(tmp_path, "datasets.train_num_samples=1", "trainer.limit_val_batches=0", "test_after_fit=true")
    (scores,) = json.loads((folder / "metrics.json").read_text())["datasets"].values()
    assert "matte" not in scores and all("matte" not in view for view in scores["per_view"].values())


def test_layer_schedule_in_training_and_evaluation(run_here, drawn):
    first = run_here(*QUIET, "system.layers={0: 1, 1: 3, 5: 4}", "trainer.max_epochs=3", "datasets.train_num_samples=2", name="first")
    assert drawn == [1, 1, 3, 3, 3, 3]
    drawn.clear()
    evaluate = ("eval_only=true", f"system.descriptors_pretrained_dir={first}/descriptors", "system.layers={0: 1, 1: 3, 5: 4}")
    run_here(*evaluate, f"weights_path={first}/checkpoints/last.ckpt", name="second")
    assert set(drawn) == {3}
    drawn.clear()
    run_here(*evaluate, f"weights_path={first}/checkpoints/epoch0.ckpt", name="third")
    assert set(drawn) == {1}
    drawn.clear()
    run_here(*evaluate[:2], "system.layers=2", f"weights_path={first}/checkpoints/last.ckpt", name="fourth")
    assert set(drawn) == {2}, "a plain number wins"


def test_layers_can_be_raised_when_a_run_goes_on(run_here, drawn):
    first = run_here(*QUIET, "system.layers=1", name="run")
    before, table = weights(first), descriptors(first)
    drawn.clear()
    again = ("resume=run", "resume_strict=false", "trainer.max_epochs=2", "system.layers=3")
    folder = run_here(*QUIET, *again, name="run")
    assert drawn == [3] * 4
    after = weights(folder)
    assert not torch.equal(before["network.alpha.weight"], after["network.alpha.weight"])
    assert not torch.equal(table, descriptors(folder)) and {"epoch0.ckpt", "epoch1.ckpt"} <= {
        p.name for p in (folder / "checkpoints").iterdir()
    }


def test_resumed_run_equals_an_uninterrupted_one(run_here):
    """Weights and descriptors of two epochs at once are those of one epoch and then another, Adam's memory of the descriptors included.

    Norms learn throughout: a share of a run is another time in a run of another length.
    """
    steps = ("datasets.train_num_samples=2", "system.norms_learn_for=1.0")
    whole = run_here(*QUIET, *steps, "trainer.max_epochs=2", name="whole")
    run_here(*QUIET, *steps, name="parts")
    parts = run_here(*QUIET, *steps, "resume=parts", "trainer.max_epochs=2", name="parts")
    expected, found = weights(whole), weights(parts)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert torch.equal(descriptors(whole), descriptors(parts))


def test_evaluation_again_gives_the_same_scores(run_here):
    first = run_here("test_after_fit=true", "trainer.limit_val_batches=0", name="first")
    start = (f"weights_path={first}/checkpoints/last.ckpt", f"system.descriptors_pretrained_dir={first}/descriptors")
    second = run_here(*start, "eval_only=true", name="second")

    def scores(folder):
        (found,) = json.loads((folder / "metrics.json").read_text())["datasets"].values()
        return {k: v for k, v in found["matte"].items() if k != "over"} | {"psnr": found["psnr"]}

    assert scores(first) == pytest.approx(scores(second))


def test_warmup_of_the_learning_rate(run_here, monkeypatch):
    rates = []
    original = NPCR.step

    def step(self):
        original(self)
        (optimizer,) = [self.optimizers()]
        rates.append([group["lr"] for group in optimizer.param_groups])

    monkeypatch.setattr(NPCR, "step", step)
    run_here(*QUIET, "system.warmup_epochs=2", "trainer.max_epochs=4", "datasets.train_num_samples=1")
    assert [r[0] for r in rates] == pytest.approx([5e-3 / 3, 5e-3 * 2 / 3, 5e-3, 5e-3])
    assert rates[-1] == pytest.approx([5e-3, 1e-2, 2e-2]), "network, its biases, the default feature"


def test_only_visible_points_and_the_default_feature_are_updated(run_here, tiny_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_root / "ball", root / "ball")
    cloud = read_ply(root / "ball" / "mvs_pc.ply")
    far_above = torch.tensor([[0.0, 0.0, 40.0]]) + torch.rand(25, 3)
    write_ply(root / "ball" / "mvs_pc.ply", PointCloud(torch.cat([far_above, cloud.xyz])))
    folder = run_here(*QUIET, "trainer.max_epochs=2", root=root)
    found = descriptors(folder)
    assert not found[:25].any() and found[25:].any(1).float().mean() > 0.5
    assert not torch.equal(weights(folder, "epoch0")["default_feature"], weights(folder, "epoch1")["default_feature"])


@pytest.mark.parametrize(
    "words",
    [
        ("system.loss_region=seen",),
        ("datasets.train_random_zoom=[1.0,1.5]", "datasets.train_image_size=24", "datasets.train_random_shift=true"),
        ("system.use_rgb=true", "system.network.in_channels=12"),
        ("system.layers=4", "system.depth_threshold=0.05", "system.max_splat=2.0", "system.near=2.0", "system.far=4.0"),
        ("trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1", "system.lr_schedule=cosine"),
        ("dataloader.train_total_batch_size=2",),
        ("trainer.precision=bf16",),
    ],
    ids=lambda words: words[0],
)
def test_other_settings_train(run_here, words):
    folder = run_here(*QUIET, *words, "loggers=[csv]", "trainer.log_every_n_steps=1")
    assert all(math.isfinite(value) for value in logged(folder, "loss"))
    assert descriptors(folder).isfinite().all() and descriptors(folder).any()


# --------------------------------------------------------------------- parts
def test_viewing_directions_do_not_depend_on_the_camera_position(run_here, tiny_root):
    """A translated camera has the same directions; those of empty pixels are 0."""
    system = system_of(run_here, tiny_root)
    camera = system.scenes["ball"].views[0].camera
    moved = Cameras(camera.R, camera.T + torch.tensor([[0.1, -0.05, 0.2]]), camera.focal_length, camera.principal_point, camera.image_size)
    images = []
    for c in (camera, moved):
        seen = []
        system.network.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        system.render(c, "ball")
        images.append(seen[0][0, -3:])
    both = (images[0].norm(dim=0) > 0) & (images[1].norm(dim=0) > 0)
    assert both.sum() > 20
    torch.testing.assert_close(images[0][:, both], images[1][:, both])
    torch.testing.assert_close(images[0].norm(dim=0)[both], torch.ones(int(both.sum())))
    empty = system.render_layers(camera, ["ball"]).depth[0].isinf()
    assert empty.any() and not images[0][:, empty].any()
    row, column = both.nonzero()[0].tolist()
    _, rays = camera.rays()
    torch.testing.assert_close(images[0][:, row, column], rays[0, row, column])


def system_of(run_here, tiny_root) -> NPCR:
    """A trained system outside of a run."""
    from omegaconf import OmegaConf

    from npbgpp.engine.run import build_run, run_config

    from ..conftest import TINY_NPCR
    from ..run_folders import remember

    folder = run_here(*QUIET)
    remember(folder, folder.parent, *TINY_NPCR, f"datasets.data_root={tiny_root}")
    config, search_paths = run_config(folder)
    OmegaConf.update(config, "eval_only", True)
    OmegaConf.update(config, "weights_path", str(folder / "checkpoints" / "last.ckpt"))
    system = build_run(config, search_paths).system.eval()
    system.prepare("ball")
    assert isinstance(system, NPCR)
    return system


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("system.layers=0",), "system.layers: expected 1 to 8 layers, got 0"),
        (("system.layers=9",), "system.layers: expected 1 to 8 layers, got 9"),
        (("system.layers={0: 1, 3: 12}",), "got 12"),
        (("system.layers={3: 2}",), "the first of them 0"),
        (("system.layers={0: 1, later: 2}",), "the first of them 0"),
        (("system.near=3.0", "system.far=3.0"), "system.near, system.far: expected near < far, got 3 and 3"),
        (("system.near=300.0",), "system.near, system.far: expected near < far, got 300 and"),
        (("system.max_splat=-1",), "system.max_splat"),
        (("system.norms_learn_for=1.5",), "system.norms_learn_for: expected a fraction of the run, 0 to 1, got 1.5"),
        (("system.loss_region=some",), "system.loss_region"),
        (("system.history_weights=[1,1,0,0,0,0,0]",), "system.history_weights: expected weights"),
        (("system.refine_weights=[0.5,0.5,0.5,0.75]",), "the last two"),
        (("system.losses={rgba_mse: 0.0, ssim: 0.0}",), "system.losses"),
        (("system.network.in_channels=8",), "system.network.in_channels: expected 9"),
        (("eval_only=true", "datasets.scenes.test=[ball]"), "weights_path: expected the checkpoint"),
        (("system.losses.perceptual=1.0",), "vgg19-dcbb9e9d.pth"),
        (("system.max_points=10",), "system.max_points"),
    ],
)
def test_invalid_settings_are_refused(run_here, monkeypatch, tmp_path, words, message):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(InputError) as caught:
        run_here(*QUIET, *words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (
            lambda cloud: PointCloud(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5]])),
            ("system.layers=4",),
            "system.layers: the 2 points of scene ball make . layers in its training views, got 4",
        ),
        (lambda cloud: PointCloud(cloud.xyz + torch.tensor([0.0, 0.0, 100.0])), (), "none of its 400 points is seen"),
        (
            lambda cloud: PointCloud(cloud.xyz),
            ("system.use_rgb=true", "system.network.in_channels=12"),
            "system.use_rgb: .* has no colours",
        ),
    ],
    ids=["layers", "invisible", "colours"],
)
def test_unusable_clouds_are_refused(run_here, tiny_root, tmp_path, change, overrides, message):
    root = tmp_path / "data"
    shutil.copytree(tiny_root / "ball", root / "ball")
    path = root / "ball" / "mvs_pc.ply"
    write_ply(path, change(read_ply(path)))
    with pytest.raises(InputError, match=message):
        run_here(*QUIET, *overrides, root=root)
