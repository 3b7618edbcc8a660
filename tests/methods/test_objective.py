"""Loss factors of the config: what is accepted, what is refused, and the terms that need the VGG network."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from npbgpp.core.paths import SearchPaths
from npbgpp.errors import InputError
from npbgpp.losses import downscaled_l1, ssim_loss
from npbgpp.methods.points import Objective, ObjectiveSettings

QUIET = ("trainer.limit_val_batches=0", "datasets.scenes.test=[]")


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "torch_home" / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory) -> Path:
    """Random VGG-19 convolutions, scaled to keep activations in range, in half precision."""
    with torch.device("meta"):
        shapes = torchvision.models.vgg19(weights=None).features.state_dict()
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, tensor in shapes.items():
        spread = math.sqrt(2 / tensor[0].numel()) if tensor.dim() == 4 else 0.0
        state[name] = (spread * torch.randn(tensor.shape, generator=generator)).half()
    path = tmp_path_factory.mktemp("vgg") / "random.pth"
    torch.save(state, path)
    return path


def settings(factors: dict[str, float], style_weight: float = 0.0, style: str = "", base: Path = Path("/")) -> ObjectiveSettings:
    return ObjectiveSettings.from_config(factors, style_weight, style, None, SearchPaths(base, base, base))


@pytest.mark.parametrize("name", ["vgg", "l1_loss", "l1_d_loss", "l1_d4", "l1_d2.5_loss", "ssim"])
def test_unknown_terms_are_refused_by_name(name):
    with pytest.raises(InputError, match=f"system.loss_factors.{name}: unknown term; known are vgg_loss"):
        settings({name: 1.0})
    with pytest.raises(InputError, match="unknown term"):
        settings({name: 0.0, "ssim_loss": 1.0})


def test_nothing_to_learn_is_refused():
    with pytest.raises(InputError, match="every factor is 0"):
        settings({"vgg_loss": 0.0, "l1_d4_loss": 0.0})
    with pytest.raises(InputError, match="every factor is 0"):
        settings({})


def test_terms_are_the_losses_and_zero_factors_are_left_out():
    objective = Objective(settings({"l1_d1_loss": 1.0, "l1_d4_loss": 2.0, "l1_d2_loss": 0.0, "ssim_loss": 0.5, "vgg_loss": 0.0}))
    a, b = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    terms = objective.image_terms(a, b, None)
    assert terms.keys() == {"l1_d1_loss", "l1_d4_loss", "ssim_loss"}
    assert torch.equal(terms["l1_d1_loss"], downscaled_l1(a, b, 1)) and torch.equal(terms["l1_d4_loss"], downscaled_l1(a, b, 4))
    assert torch.equal(terms["ssim_loss"], ssim_loss(a, b))


def test_mask_terms_follow_their_factors():
    mask, target = torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    asked = []

    def empty() -> Tensor:
        asked.append(True)
        return torch.full((1, 1, 4, 4), 0.25)

    terms = Objective(settings({"mask_loss": 1.0, "m_reg_loss": 1.0})).mask_terms(mask, target, empty)
    assert terms.keys() == {"mask_loss", "m_reg_loss"} and terms["m_reg_loss"].item() == 0.25
    assert not Objective(settings({"ssim_loss": 1.0})).mask_terms(mask, target, empty)
    assert len(asked) == 1


def test_missing_vgg_weights_stop_the_start(run_here, empty_caches):
    with pytest.raises(InputError) as caught:
        run_here(*QUIET, "system/loss_factors=published")
    for part in ("vgg19-d01eb7cb.pth", str(empty_caches), "system/loss_factors=l1_ssim"):
        assert part in str(caught.value)


def test_vgg_weights_named_but_absent(run_here):
    with pytest.raises(InputError, match="system.vgg_weights=nowhere.pth: expected a file or folder that exists"):
        run_here(*QUIET, "system.vgg_weights=nowhere.pth")


def test_a_step_with_the_vgg_network(run_here, vgg_file):
    folder = run_here(
        *QUIET, "system/loss_factors=published", f"system.vgg_weights={vgg_file}", "datasets.train_num_samples=1", "loggers=[csv]",
        "trainer.log_every_n_steps=1",
    )  # fmt: skip
    header, values = (folder / "csv_logs" / "metrics.csv").read_text().splitlines()[:2]
    row = dict(zip(header.split(","), values.split(","), strict=True))
    assert float(row["vgg_loss"]) > 0 and math.isfinite(float(row["loss"]))
    assert float(row["loss"]) == pytest.approx(
        float(row["vgg_loss"]) + 2500 * float(row["l1_d4_loss"]) + float(row["dimred_loss"]), rel=1e-3
    )
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "vgg" in name or "objective" in name or "lpips" in name]
    assert (folder / "checkpoints" / "last.ckpt").stat().st_size < 2**21
    assert torch.load(folder / "descriptors" / "ball.pth", weights_only=True).any()


def test_style_replaces_the_l1_terms(run_here, vgg_file, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "style.png")
    folder = run_here(
        *QUIET, "system/loss_factors=published", f"system.vgg_weights={vgg_file}", "system.style_weight=10", "system.style_img_path=style.png",
        "datasets.train_num_samples=1", "loggers=[csv]", "trainer.log_every_n_steps=1",
    )  # fmt: skip
    header, values = (folder / "csv_logs" / "metrics.csv").read_text().splitlines()[:2]
    row = dict(zip(header.split(","), values.split(","), strict=True))
    assert float(row["style_loss"]) > 0 and math.isfinite(float(row["loss"])) and "l1_d4_loss" not in row
    assert float(row["loss"]) == pytest.approx(10 * float(row["style_loss"]) + float(row["vgg_loss"]) + float(row["dimred_loss"]), rel=1e-3)


def test_style_image_that_is_none(tmp_path, vgg_file):
    with pytest.raises(InputError, match="system.style_img_path=style.png: expected a file"):
        settings({"vgg_loss": 1.0}, 1.0, "style.png", tmp_path)
    (tmp_path / "style.png").write_text("no image")
    found = settings({"l1_d4_loss": 1.0}, 1.0, "style.png", tmp_path)
    assert found.factors == {"style_loss": 1.0}
    with pytest.raises(InputError, match="system.style_img_path: .*style.png: expected a readable image"):
        Objective(ObjectiveSettings(found.factors, found.style_image, vgg_file))
