"""NPBGUNet: parameters, a reference implementation, image sizes, invalid arguments, training as refiner."""

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from npbgpp.errors import InputError
from npbgpp.nets.unet import NPBGUNet

from ..conftest import TINY_OVERRIDES

SMALL: dict[str, Any] = {"in_channels": [2] * 5, "net_size": 16}


def pyramid(h: int, w: int, c: int = 2, b: int = 1) -> list[torch.Tensor]:
    return [torch.randn(b, c, h >> k, w >> k) for k in range(5)]


def plain_forward(weights: dict[str, torch.Tensor], levels: list[torch.Tensor], mode: str) -> torch.Tensor:
    """Reference implementation for sizes divisible by 16, with frozen batch statistics."""

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
        f, m = (F.conv2d(x, weights[f"{name}.block.{part}.weight"], weights[f"{name}.block.{part}.bias"]) for part in ("conv_f", "conv_m"))
        x = F.elu(f) * torch.sigmoid(m)
        norm = f"{name}.block.norm."
        if norm + "weight" not in weights:
            return x
        return F.batch_norm(
            x, weights[norm + "running_mean"], weights[norm + "running_var"], weights[norm + "weight"], weights[norm + "bias"]
        )

    skips = [block("start", levels[0])]
    for k in range(1, 5):
        skips.append(torch.cat([block(f"down{k}.conv", F.avg_pool2d(skips[-1], 2)), levels[k]], 1))
    x = skips.pop()
    for k in (4, 3, 2, 1):
        doubled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = F.conv2d(doubled, weights[f"up{k}.up.1.0.weight"], weights[f"up{k}.up.1.0.bias"], padding=1)
        x = block(f"up{k}.conv", torch.cat([x, skips.pop()], 1))
    return F.conv2d(x, weights["final.0.weight"], weights["final.0.bias"])


def test_parameter_count() -> None:
    assert sum(p.numel() for p in NPBGUNet().parameters()) == 1_928_771


def test_parameter_names() -> None:
    expected = set()
    for name in ["start", *(f"down{k}.conv" for k in range(1, 5)), *(f"up{k}.conv" for k in range(1, 5))]:
        expected |= {f"{name}.block.{part}.{kind}" for part in ("conv_f", "conv_m") for kind in ("weight", "bias")}
        if not name.startswith("up"):
            expected |= {f"{name}.block.norm.{kind}" for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    expected |= {f"up{k}.up.1.0.{kind}" for k in range(1, 5) for kind in ("weight", "bias")}
    assert set(NPBGUNet().state_dict()) == expected | {"final.0.weight", "final.0.bias"}
    assert "final.0.weight" in NPBGUNet(**SMALL, last_act="tanh").state_dict()


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_equals_reference(mode: str) -> None:
    net = NPBGUNet(**SMALL, padding_mode=mode)
    for _ in range(3):  # move the running statistics away from 0 and 1
        net(pyramid(32, 32, b=2))
    net.eval()
    levels = pyramid(32, 48, b=2)
    expected = plain_forward(net.state_dict(), levels, mode)
    assert float((net(levels) - expected).detach().abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize(
    "options", [{}, {"upsample_mode": "nearest"}, {"upsample_mode": "deconv", "last_act": "sigmoid"}, {"conv_block": "basic"}]
)
def test_any_size_and_gradients_of_all_parameters(options: dict[str, Any]) -> None:
    net = NPBGUNet(**SMALL, **options).eval()
    out = net(pyramid(37, 50))
    assert out.shape == (1, 3, 37, 50)
    out.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_invalid_arguments_and_sizes_are_refused() -> None:
    for key, value in (
        ("conv_block", "partial"),
        ("padding_mode", "mirror"),
        ("upsample_mode", "x2"),
        ("last_act", "relu"),
        ("net_size", 0),
        ("net_size", 12),
        ("out_channels", 0),
    ):
        with pytest.raises(InputError, match=key):
            NPBGUNet(**SMALL | {key: value})
    with pytest.raises(InputError, match="net_size: level 1 has 8 channels"):
        NPBGUNet(in_channels=[8] * 5, net_size=16)
    with pytest.raises(InputError, match="at least 32 pixels"):
        NPBGUNet(**SMALL)(pyramid(30, 40))


def test_trains_as_refiner(run_in, tmp_path) -> None:
    """``system/refiner=npbg_unet`` composes, trains and evaluates NPBG on the tiny scene."""
    tiny = tuple(override for override in TINY_OVERRIDES if "system.refiner." not in override)
    narrow = ("system/refiner=npbg_unet", "system.refiner.net_size=8")
    run = run_in(tmp_path, *narrow, "trainer.limit_train_batches=1", "test_after_fit=true", tiny=tiny)
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    start = NPBGUNet(in_channels=[9] * 5, net_size=8).state_dict()
    assert {name.removeprefix("refiner."): value.shape for name, value in weights.items() if name.startswith("refiner.")} == {
        name: value.shape for name, value in start.items()
    }
    assert weights["refiner.start.block.norm.num_batches_tracked"] > 0
    (scores,) = json.loads((run / "metrics.json").read_text())["datasets"].values()
    assert all(math.isfinite(view["psnr"]) for view in scores["per_view"].values()) and scores["per_view"]
