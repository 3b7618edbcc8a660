"""Blocks against reference implementations from torch layers (padding per convolution, ELU of torch, NCHW)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from npbgpp.errors import InputError
from npbgpp.nets.unet import BLOCKS, NORMALIZATIONS, PADDING_MODES, GatedBlock, elu, median_filter

GATED = [name for name in BLOCKS if name != "basic"]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


def conv(c_in: int, c_out: int, mode: str, size: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, size, padding=size // 2, groups=groups, padding_mode=mode)


class PlainGated(nn.Module):
    """Features and gate from torch layers only."""

    def __init__(self, name: str, c_in: int, c_out: int, mode: str) -> None:
        super().__init__()
        separable = [nn.Sequential(conv(c_in, c_out, mode, 1), conv(c_out, c_out, mode, groups=c_out)) for _ in range(2)]
        gates = {
            "gated": conv(c_in, c_out, mode),
            "gated-sc": conv(c_in, 1, mode),
            "gated-pw": conv(c_in, c_out, mode, 1),
            "gated-ds": nn.Sequential(conv(c_in, c_in, mode, groups=c_in), conv(c_in, c_out, mode, 1)),
            "gated-sd": separable[1],
        }
        self.block = nn.ModuleDict({"conv_f": separable[0] if name == "gated-sd" else conv(c_in, c_out, mode), "conv_m": gates[name]})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.elu(self.block["conv_f"](x)) * torch.sigmoid(self.block["conv_m"](x))


@pytest.mark.parametrize("out", [6, 20])  # one fused convolution, two convolutions
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("name", GATED)
def test_gated_blocks_equal_reference_in_values_and_gradients(name: str, mode: str, out: int) -> None:
    block, plain = BLOCKS[name](5, out, padding_mode=mode), PlainGated(name, 5, out, mode)
    block.load_state_dict(plain.state_dict(), strict=True)
    x = 3 * torch.randn(2, 5, 7, 9)
    x_plain, x_fast = x.clone().requires_grad_(), x.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    expected, got = plain(x_plain), block(x_fast)
    assert relative(got, expected) < 1e-5
    cotangent = torch.randn_like(expected)
    expected.backward(cotangent)
    got.backward(cotangent)
    assert relative(x_fast.grad, x_plain.grad) < 1e-5
    for (key, a), b in zip(block.named_parameters(), plain.parameters(), strict=True):
        assert relative(a.grad, b.grad) < 1e-5, key


def test_only_thin_gated_blocks_fuse() -> None:
    assert GatedBlock(4, 8).fused
    assert not GatedBlock(4, 9).fused


@pytest.mark.parametrize("name", BLOCKS)
def test_padding_modes(name: str) -> None:
    """On a constant image all padding modes but zeros give a constant result."""
    x = torch.ones(1, 3, 6, 6)
    for mode in PADDING_MODES:
        y = BLOCKS[name](3, 16, padding_mode=mode)(x)
        spread = float((y - y[..., 3:4, 3:4]).detach().abs().max())
        assert spread > 1e-3 if mode == "zeros" else spread < 1e-5, mode


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_normalization_is_applied_last(name: str, normalization: str) -> None:
    block = BLOCKS[name](3, 12, normalization=normalization, padding_mode="replicate")
    parameters = dict(block.named_parameters())
    norm = "conv2.1" if name == "basic" else "block.norm"
    assert (f"{norm}.weight" in parameters) == (normalization != "identity")
    y = block(torch.randn(4, 3, 16, 16))
    if name != "basic" and normalization != "identity":  # behind the ReLU of a basic block statistics differ
        dims = (0, 2, 3) if normalization == "batch" else (2, 3)
        assert float(y.mean(dims).detach().abs().max()) < 1e-5
        assert float((y.var(dims, unbiased=False) - 1).detach().abs().max()) < 5e-2


@pytest.mark.parametrize(("name", "size"), [("basic", 5), ("gated", 3), ("gated-sd", 3)])
def test_median_is_applied_to_the_result(name: str, size: int) -> None:
    torch.manual_seed(1)
    plain = BLOCKS[name](3, 4)
    filtered = BLOCKS[name](3, 4, median_filter=True)
    filtered.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 8, 11)
    assert torch.equal(filtered(x), median_filter(plain(x), size))


def test_recorded_median(parity) -> None:
    recorded = parity("j_third_party_semantics.pt")["median_blur"]
    assert torch.equal(median_filter(recorded["image"], 3), recorded["k3"])
    assert torch.equal(median_filter(recorded["image"], 5), recorded["k5"])


def test_median_removes_outliers_and_pads_with_zeros() -> None:
    x = torch.ones(1, 1, 7, 7)
    x[..., 3, 3] = 100.0
    y = median_filter(x, 3)
    assert torch.equal(y[..., 1:-1, 1:-1], torch.ones(1, 1, 5, 5))
    assert y[0, 0, 0, 0] == 0.0  # 5 of 9 window pixels lie outside
    assert y[0, 0, 0, 3] == 1.0  # 3 of 9


def test_elu_equals_torch_in_values_and_gradients() -> None:
    extremes = torch.tensor([0.0, -0.0, 1e-38, -1e-38, 1e-8, -1e-8, 87.0, -87.0, 1e18, -1e18, float("inf"), -float("inf")])
    x = torch.cat([extremes, 5 * torch.randn(1000)])
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    fast, library = elu(a), F.elu(b)
    finite = torch.isfinite(library)
    assert torch.equal(fast[~finite], library[~finite])
    assert float((fast - library)[finite].detach().abs().max()) <= 6e-8  # one rounding of 1; exact for x > 0
    weight = torch.randn_like(x)
    fast.backward(weight)
    library.backward(weight)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)
    assert elu(torch.tensor([float("nan")])).isnan().all()


def test_elu_of_other_types() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.linspace(-3, 3, 31).to(dtype)
        assert torch.equal(elu(x), F.elu(x))


@pytest.mark.parametrize("name", BLOCKS)
def test_invalid_choices_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="padding_mode.*'reflect'.*'mirror'"):
        BLOCKS[name](3, 4, padding_mode="mirror")
    with pytest.raises(InputError, match="normalization.*'batch'.*'layer'"):
        BLOCKS[name](3, 4, normalization="layer")
