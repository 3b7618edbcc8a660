"""What a user of NPBG++ and of coefficients can get wrong ends in one message that names it, before work starts."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from npbgpp.errors import InputError
from npbgpp.geometry.point_cloud import PointCloud, read_ply, write_ply

QUIET = ("trainer.limit_val_batches=0", "datasets.scenes.test=[]", "datasets.train_num_samples=1")
FINETUNE = ("system=coefficients_ft", "system/loss_factors=l1_ssim", *QUIET)


@pytest.fixture
def refuse(run_npbgpp, run_here, tmp_path) -> Callable[..., str]:
    """Runs what must be refused; returns the message. ``system=...`` among the overrides takes the place of NPBG++."""

    def go(*overrides: str, **options: Path) -> str:
        named = any(override.startswith("system=") for override in overrides)
        with pytest.raises(InputError) as caught:
            run_here(*overrides, **options) if named else run_npbgpp(tmp_path, *overrides, **options)
        message = str(caught.value)
        assert "\n" not in message
        return message

    return go


@dataclass(frozen=True)
class Files:
    """What earlier runs left: checkpoints (overrides that name them), and the folder of the coefficients of the first one."""

    sphere: str
    mean: str
    npbg: str
    coefficients: Path


@pytest.fixture(scope="module")
def files(run_npbgpp, run_in, tmp_path_factory) -> Files:
    launch = tmp_path_factory.mktemp("earlier")
    sphere = run_npbgpp(launch, *QUIET, "test_after_fit=true", "datasets.scenes.test=[ball]", name="sphere")
    mean = run_npbgpp(launch, *QUIET, "system/aggregator=mean", name="mean")
    npbg = run_in(launch, *QUIET, name="npbg")
    named = [f"weights_path={folder}/checkpoints/last.ckpt" for folder in (sphere, mean, npbg)]
    return Files(*named, sphere / "descriptors")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["datasets.selection_count=12"], "datasets.selection_count: expected at least 1 and at most .* 11 in scene ball, got 12"),
        (["datasets.selection_count=0"], "datasets.selection_count: expected at least 1 and at most .* got 0"),
        (["datasets.selection_method=worst"], "datasets.selection_method: expected one of multinomial, best, got worst"),
        (["system.feature_extractor.encoder=resnet1"], "encoder: expected the name of a network in timm, got 'resnet1'"),
        (["system.feature_extractor.out_channels=4"], "system.feature_extractor: has 4 channels, expected system.descriptor_dim=8"),
        (["+system.feature_extractor.decoder=[8]"], "system.feature_extractor: .*'decoder'"),
        (["system.aggregator.type=cube"], "system.aggregator.type: expected one of learnable_v, .*, spherical, got cube"),
        (
            ["system.aggregator.type=spherical"],
            "system.aggregator.m: the spherical basis has 4 functions, got 6; set system.aggregator.m=4",
        ),
        (["system.aggregator.m=0"], "system.aggregator.m: expected a positive number, got 0"),
        (["system.aggregator.descriptor_dim=4"], "system.aggregator: has 4 channels, expected system.descriptor_dim=8"),
        (["system.rasterizer.descriptor_dim=4"], "system.rasterizer: has 4 channels, expected system.descriptor_dim=8"),
        (["system.descriptor_dim=4"], "in_channels"),
        (["system.visibility_scale=0"], "system.visibility_scale: expected a positive share of the image size or null, got 0.0"),
        (["system.visibility_scale=-1"], "system.visibility_scale: expected a positive share"),
        (
            ["system.visibility_scale=0.01"],
            "system.visibility_scale: expected .* at least one cell, got 0.01 .* scene ball of 32x32 pixels",
        ),
        (["system.state_device=gpu"], "system.state_device: expected a device of this machine, such as cpu, or null, got gpu"),
        (["system.points_per_pass=0"], "system.points_per_pass: expected a positive number of points or null, got 0"),
        (["system.color_aug_p=2"], "system.color_aug_p: expected a probability between 0 and 1, got 2.0"),
        (["system.up=[0,0,0]"], "system.up: expected a direction"),
        (["trainer.precision=16"], "use trainer.precision=bf16 or 32"),
        (["+system.learning_rates.decoder=1"], "system.learning_rates.decoder: unknown key"),
        (["eval_only=true"], "weights_path: expected the checkpoint of a trained system for eval_only=true, got none"),
        (["eval_only=true", "datasets.scenes.test=[]"], "datasets.scenes.test: expected at least one scene for eval_only=true, got none"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_config_mistakes_are_named(refuse, overrides, words):
    quiet = () if "eval_only=true" in overrides else QUIET
    message = refuse(*quiet, *overrides)
    assert re.search(words, message), message


@pytest.mark.parametrize("purpose", [QUIET, ("eval_only=true",)], ids=["training", "evaluation"])
def test_cloud_that_no_photo_shows(run_colours, tiny_root, tmp_path, purpose):
    root = tmp_path / "data"
    shutil.copytree(tiny_root / "ball", root / "ball")
    path = root / "ball" / "mvs_pc.ply"
    write_ply(path, PointCloud(read_ply(path).xyz + torch.tensor([0.0, 0.0, 100.0])))
    with pytest.raises(InputError, match="none of its 400 points is seen by any training camera of scene ball") as caught:
        run_colours(tmp_path, *purpose, root=root)
    assert str(path) in str(caught.value) and "system.near=1.0" in str(caught.value)


def test_encoder_weights_that_are_not_here(refuse, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hugging_face"))
    message = refuse(*QUIET, "system.feature_extractor.pretrained_encoder=true")
    for part in (
        "ImageNet weights of timm's test_efficientnet not found",
        "encoder_weights=",
        "pretrained_encoder=false",
        "nothing is downloaded",
    ):
        assert part in message


# ------------------------------------------------------------------ checkpoints
def test_checkpoint_of_another_system(refuse, files):
    message = refuse(*QUIET, files.npbg)
    assert "weights of system NPBG, not of NPBGPlusPlus" in message and files.npbg.partition("=")[2] in message


@pytest.mark.parametrize("purpose", [QUIET, ("eval_only=true",), FINETUNE], ids=["training", "evaluation", "finetuning"])
def test_checkpoint_without_an_aggregator(refuse, files, purpose):
    """It would be random, and everything that is computed with it."""
    start = [f"system.descriptors_pretrained_dir={files.coefficients}"] if purpose is FINETUNE else []
    message = refuse(*purpose, files.mean, *start)
    assert "weights_path: the checkpoint lacks weights of system.aggregator, which would be random (aggregator.alpha" in message
    assert "weights_strict=false" in message


def test_networks_may_begin_anew_when_that_is_wanted(run_npbgpp, tmp_path, files, caplog):
    folder = run_npbgpp(tmp_path, *QUIET, files.mean, "weights_strict=false")
    assert (folder / "checkpoints" / "last.ckpt").is_file() and "not everything matched" in caplog.text


@pytest.mark.parametrize("override", ["system.aggregator.m=5", "system.aggregator.width=8", "system.aggregator.type=learnable_vd"])
def test_checkpoint_of_another_width(refuse, files, override):
    message = refuse("eval_only=true", files.sphere, override)
    assert "weights have another shape (aggregator." in message and "use the settings it was trained with" in message


# ------------------------------------------------------------------ coefficients
def test_coefficients_without_weights(refuse, files):
    message = refuse(*FINETUNE, f"system.descriptors_pretrained_dir={files.coefficients}")
    assert "weights_path: coefficients need the aggregator and the refiner they were made with, got no checkpoint" in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["datasets.scene_name=globe"],
            "expected globe.pth in .*run/descriptors and .*sphere/descriptors, found none; train the scene first",
        ),
        (["datasets.n_point=100"], "ball.pth: expected 100 x 56 for the cloud of scene ball, got 400 x 56; they belong to another cloud"),
        (["system/aggregator=mean"], "ball.pth: expected 400 x 8 for the cloud of scene ball, got 400 x 56; .*or aggregator"),
        (["system.aggregator.m=5"], "weights have another shape .aggregator."),
        (["system.aggregator.type=spherical", "system.aggregator.m=4"], "weights have another shape .aggregator.alpha"),
        (["system.descriptor_dim=4"], "weights have another shape"),
        (["system.max_points=399"], "system.max_points: scene ball has 400 points, more than 399"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_coefficients_that_do_not_fit(refuse, files, overrides, words):
    message = refuse(*FINETUNE, files.sphere, f"system.descriptors_pretrained_dir={files.coefficients}", *overrides)
    assert re.search(words, message), message


def test_coefficients_of_points_that_nobody_saw(refuse, files, tmp_path):
    """Those of an evaluation whose cameras and cloud did not fit."""
    (tmp_path / "zeros").mkdir()
    torch.save(torch.zeros(400, 56), tmp_path / "zeros" / "ball.pth")
    message = refuse(*FINETUNE, files.sphere, "system.descriptors_pretrained_dir=zeros")
    assert "coefficients of scene ball: expected some that are not zero, got none in 400 points" in message


def test_finetuned_coefficients_are_not_overwritten(run_here, refuse, files):
    job = (*FINETUNE, files.sphere, f"system.descriptors_pretrained_dir={files.coefficients}")
    path = run_here(*job) / "descriptors" / "ball.pth"
    before = path.read_bytes()
    message = refuse(*job)
    assert "already holds descriptors of ball from an earlier run" in message and "system.overwrite_descriptors=true" in message
    assert path.read_bytes() == before


def test_choices_that_a_layout_or_a_system_does_not_have_are_refused(run_in, tmp_path):
    with pytest.raises(InputError, match="datasets.intrinsics: layout nerf_synthetic has no such option, got exact; leave it at authors"):
        run_in(tmp_path, *QUIET, "datasets.intrinsics=exact")
    with pytest.raises(InputError, match="datasets.views: layout nerf_synthetic has no such option"):
        run_in(tmp_path, *QUIET, "datasets.views=[1,2]")
    with pytest.raises(InputError, match="system.loss_factors.rgb_reg_loss: NPBG reads no photos"):
        run_in(tmp_path, *QUIET, "system/loss_factors=l1_ssim_npbgpp")
