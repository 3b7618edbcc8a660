"""NPBGPlusPlusUNet and IdentityRefiner: parameters, image sizes, gradients, recordings, invalid arguments."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from npbgpp.errors import InputError
from npbgpp.nets.unet import IdentityRefiner, NPBGPlusPlusUNet

RELEASED: dict[str, Any] = {"in_channels": [9] * 5, "out_channels": 3, "filters": [16, 32, 48, 64, 80], "padding_mode": "reflect"}
TINY: dict[str, Any] = {"in_channels": [4] * 5, "out_channels": 3, "filters": [10, 11, 12, 13, 14]}
VARIANTS: list[dict[str, Any]] = [
    {},
    {
        "padding_mode": "reflect",
        "stem_conv_block_name": "gated-sc",
        "encoder_conv_block_name": "gated-pw",
        "decoder_conv_block_name": "gated-ds",
    },
    {"padding_mode": "zeros", "encoder_conv_block_name": "gated-sd", "median_filter": True, "upsample_mode": "deconv"},
    {
        "stem_conv_block_name": "basic",
        "encoder_conv_block_name": "basic",
        "decoder_conv_block_name": "basic",
        "encoder_normalization": "batch",
    },
    {"encoder_normalization": "instance", "last_act": "sigmoid", "upsample_mode": "nearest", "use_skip": False},
    {"in_channels": [4, 4], "last_act": "tanh", "padding_mode": "circular", "out_channels": 4},
]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


def pyramid(h: int, w: int, channels: Sequence[int] = (9,) * 5, b: int = 1) -> list[torch.Tensor]:
    return [torch.randn(b, c, h >> k, w >> k) for k, c in enumerate(channels)]


def plain_forward(weights: dict[str, torch.Tensor], levels: list[torch.Tensor]) -> torch.Tensor:
    """Reference implementation of the released network: NCHW, padding per convolution, ELU of torch."""

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        f, m = (
            F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weights[f"{name}.block.{part}.weight"], weights[f"{name}.block.{part}.bias"])
            for part in ("conv_f", "conv_m")
        )
        return F.elu(f) * torch.sigmoid(m)

    skips = [block("start", levels[0])]
    for k in range(1, 5):
        h, w = skips[-1].shape[2:]
        even = F.interpolate(skips[-1], size=(h - h % 2, w - w % 2), mode="bilinear", align_corners=False)
        skips.append(torch.cat([block(f"down{k}.conv", F.avg_pool2d(even, 2)), levels[k]], 1))
    x = block("center", skips.pop())
    for k in (4, 3, 2, 1):
        skip = skips.pop()
        x = block(f"up{k}.conv", torch.cat([F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False), skip], 1))
    return F.conv2d(x, weights["final.weight"], weights["final.bias"])


def test_parameter_counts() -> None:
    net = NPBGPlusPlusUNet(**RELEASED)
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in net.named_children()}
    downs = {"down1": 6670, "down2": 22542, "down3": 47630, "down4": 81934}
    ups = {"up4": 124512, "up3": 41520, "up2": 12120, "up1": 3036}
    assert counts == {"start": 2624, **downs, "center": 115360, **ups, "final": 21}
    assert sum(counts.values()) == 457_969


@pytest.mark.parametrize("size", [(32, 32), (47, 61)])
def test_equals_reference_in_values_and_gradients(size: tuple[int, int]) -> None:
    net = NPBGPlusPlusUNet(**RELEASED)
    fast, plain = (
        [level.requires_grad_() for level in levels] for levels in zip(*[(x, x.clone()) for x in pyramid(*size, b=2)], strict=True)
    )
    weights = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    got, expected = net(list(fast)), plain_forward(weights, list(plain))
    assert relative(got, expected) < 1e-5
    cotangent = torch.randn_like(expected)
    got.backward(cotangent)
    expected.backward(cotangent)
    for a, b in zip(fast, plain, strict=True):
        assert relative(a.grad, b.grad) < 1e-4
    for name, p in net.named_parameters():
        assert relative(p.grad, weights[name].grad) < 1e-4, name


def test_input_layout_is_irrelevant_and_output_is_contiguous() -> None:
    net, levels = NPBGPlusPlusUNet(**RELEASED), pyramid(32, 48)
    other = [level.contiguous(memory_format=torch.channels_last) for level in levels]
    got = net(levels)
    assert torch.equal(got, net(other))
    assert got.is_contiguous()
    assert all(level.is_contiguous() for level in levels)


def test_features_stay_channels_last_on_a_cpu() -> None:
    net, layouts = NPBGPlusPlusUNet(**RELEASED), []
    for block in (net.start, net.down2, net.center, net.up3, net.up1):
        block.register_forward_hook(lambda _module, _inputs, y: layouts.append(y.is_contiguous(memory_format=torch.channels_last)))
    net(pyramid(32, 48))
    assert layouts == [True] * 5


@pytest.mark.parametrize("options", VARIANTS)
def test_batched_is_looped(options: dict[str, Any]) -> None:
    net = NPBGPlusPlusUNet(**TINY | options).eval()
    levels = pyramid(34, 41, net.in_channels[: 2 if "in_channels" in options else 5], b=3)
    looped = torch.cat([net([level[i : i + 1] for level in levels]) for i in range(3)])
    torch.testing.assert_close(net(levels), looped, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("size", [(32, 32), (33, 63), (45, 38)])
def test_output_has_the_size_of_the_input(options: dict[str, Any], size: tuple[int, int]) -> None:
    arguments = TINY | options
    out = NPBGPlusPlusUNet(**arguments)(pyramid(*size, arguments["in_channels"]))
    assert out.shape == (1, arguments["out_channels"], *size)
    bounds = {"sigmoid": (0, 1), "tanh": (-1, 1)}.get(options.get("last_act", ""), (-1e3, 1e3))
    assert bounds[0] <= float(out.detach().min()) <= float(out.detach().max()) <= bounds[1]


@pytest.mark.parametrize("options", VARIANTS)
def test_all_parameters_and_levels_get_gradients(options: dict[str, Any]) -> None:
    net = NPBGPlusPlusUNet(**TINY | options).eval()  # in training mode batch statistics cancel the bias before them
    # The coarsest level is 4x4: of 2x2 pixels the median with zeros outside is always 0.
    levels = [level.requires_grad_() for level in pyramid(67, 64, (TINY | options)["in_channels"])]
    net(levels).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(bool(level.grad.any()) for level in levels)


def test_initial_bias_of_the_output_layer() -> None:
    assert NPBGPlusPlusUNet(**RELEASED).final.bias.tolist() == [0.5, 0.5, 0.5]
    assert NPBGPlusPlusUNet(**RELEASED | {"out_channels": 4}).final.bias.tolist() == [0.5, 0.5, 0.5, 0.0]


def test_arguments_are_not_modified() -> None:
    channels, filters = [4, 4], [10, 11, 12, 13, 14]
    NPBGPlusPlusUNet(in_channels=channels, filters=filters)
    assert (channels, filters) == ([4, 4], [10, 11, 12, 13, 14])


def test_released_names_load_strictly(parity) -> None:
    state = parity("h_ckpt_npbgpp_sphere.pt")["state_dict"]
    weights = {key.removeprefix("refiner."): value for key, value in state.items() if key.startswith("refiner.")}
    net = NPBGPlusPlusUNet(**RELEASED)
    assert list(net.state_dict()) == list(weights)
    net.load_state_dict(weights, strict=True)
    for case in parity("f2_refiner.pt")["cases"]:
        assert relative(net(case["inputs"]), case["output"]) < 1e-5


@pytest.mark.parametrize("variant", range(6))
def test_recorded_variants(parity, variant: int) -> None:
    record = parity("f3_refiner_variants.pt")[variant]
    net = NPBGPlusPlusUNet(**record["kwargs"]).eval()
    assert list(net.state_dict()) == list(record["state_dict"])
    net.load_state_dict(record["state_dict"], strict=True)
    assert relative(net(record["inputs"]), record["output"]) < 1e-5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stem_conv_block_name", "partial"),
        ("encoder_conv_block_name", "gated_sc"),
        ("decoder_conv_block_name", ""),
        ("padding_mode", "reflection"),
        ("encoder_normalization", "none"),
        ("upsample_mode", "bicubic"),
        ("last_act", "relu"),
        ("in_channels", []),
        ("in_channels", [9, 0, 9]),
        ("in_channels", [9] * 6),
        ("filters", [16, 32, 48, 64]),
        ("filters", [16, 9, 48, 64, 80]),
        ("out_channels", 0),
    ],
)
def test_invalid_arguments_are_refused(key: str, value: object) -> None:
    with pytest.raises(InputError, match=key) as error:
        NPBGPlusPlusUNet(**RELEASED | {key: value})
    assert (repr(value) in str(error.value)) or key == "filters"


def test_invalid_pyramids_are_refused() -> None:
    net = NPBGPlusPlusUNet(**RELEASED)
    with pytest.raises(InputError, match="5 levels"):
        net(pyramid(32, 32)[:4])
    with pytest.raises(InputError, match="channels"):
        net(pyramid(32, 32, (8,) * 5))
    with pytest.raises(InputError, match="level 2 of a 40 x 40 image must be 10 x 10, got 8 x 8"):
        net([*pyramid(40, 40)[:2], *pyramid(32, 32)[2:]])
    with pytest.raises(InputError, match="at least 32 pixels.*31 x 64"):
        net(pyramid(31, 64))
    assert NPBGPlusPlusUNet(**RELEASED | {"padding_mode": "replicate"})(pyramid(16, 31)).shape == (1, 3, 16, 31)


def test_identity_refiner_returns_the_first_three_channels() -> None:
    levels = pyramid(5, 7, (4, 4))
    assert torch.equal(IdentityRefiner()(levels), levels[0][:, :3])
    assert list(IdentityRefiner().parameters()) == []
    with pytest.raises(InputError, match="3 channels"):
        IdentityRefiner()([torch.zeros(1, 2, 4, 4)])
    with pytest.raises(InputError, match="3 channels"):
        IdentityRefiner()([])
