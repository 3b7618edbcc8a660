"""Convolution blocks of the U-Nets: (b, c, h, w) -> (b, out, h, w), height and width unchanged."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError


class _Elu(torch.autograd.Function):
    """ELU as max(x, exp(min(x, 0)) - 1), which holds since exp(x) - 1 >= x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clamp_max(0).exp_().sub_(1)
        torch.maximum(x, y, out=y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.elu_backward(grad, 1, 1, 1, True, y)


def elu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """ELU with alpha = 1 (Clevert et al., ICLR 2016).

    In float32 on a CPU three times as fast as `torch.nn.functional.elu`, which spends its time in expm1 (3.5 against 12.0 ms for 16 x 512 x 512 values on 2
    threads), and within one rounding of 1 (6e-8, absolute) of it; elsewhere the torch function.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return _Elu.apply(x)
    return F.elu(x)


Choice = TypeVar("Choice")

NORMALIZATIONS: dict[str, Callable[[int], nn.Module]] = {
    "identity": nn.Identity,
    "batch": nn.BatchNorm2d,
    "instance": partial(nn.InstanceNorm2d, affine=True),
}
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES: dict[str, PaddingMode] = {"zeros": "zeros", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}

# Up to this many output channels of features and gate together, one convolution is faster than two, since each alone would fill only part of a vector
# register (16 floats). Above, two are faster, since the halves of one result are not dense in channels_last.
_FUSE_UP_TO = 16


def choose(key: str, value: str, table: Mapping[str, Choice]) -> Choice:
    """Returns `table[value]`; raises InputError with the configuration key and the valid values if there is none."""
    if value not in table:
        raise InputError(
            f"{key}: expected one of {', '.join(map(repr, table))}, got {value!r}; change this key of the network's configuration."
        )
    return table[value]


def median_filter(x: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c h w"]:
    """Median of every `size` x `size` window (size odd) of each channel, with zero padding."""
    windows = F.pad(x, (size // 2,) * 4).unfold(2, size, 1).unfold(3, size, 1)
    return windows.flatten(-2).median(dim=-1).values


class BasicBlock(nn.Module):
    """'basic': twice conv 3x3, norm, ReLU; then optionally a 5x5 median.

    Args:
        in_channels: c.
        out_channels: out.
        padding_mode: key of `PADDING_MODES`. 'reflect' needs h, w of at least 2.
        normalization: key of `NORMALIZATIONS`.
        median_filter: filter the result.

    Raises:
        InputError: unknown padding mode or normalization.
    """

    median_size = 5

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        padding_mode: str = "zeros",
        normalization: str = "identity",
        median_filter: bool = False,
    ) -> None:
        super().__init__()
        mode = choose("padding_mode", padding_mode, PADDING_MODES)
        norm = choose("normalization", normalization, NORMALIZATIONS)
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode=mode)
        self.conv1 = nn.Sequential(conv(in_channels, out_channels), norm(out_channels), nn.ReLU())
        self.conv2 = nn.Sequential(conv(out_channels, out_channels), norm(out_channels), nn.ReLU())
        self.median_filter = median_filter

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h w"]:
        """Returns the block's features."""
        x = self.conv2(self.conv1(x))
        return median_filter(x, self.median_size) if self.median_filter else x


class GatedBlock(nn.Module):
    """'gated': features and gate are both full 3x3 convolutions. Arguments as in `BasicBlock`; the median is 3x3."""

    median_size = 3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        padding_mode: str = "zeros",
        normalization: str = "identity",
        median_filter: bool = False,
    ) -> None:
        super().__init__()
        self.padding_mode = choose("padding_mode", padding_mode, PADDING_MODES)
        norm = choose("normalization", normalization, NORMALIZATIONS)
        conv_f, conv_m = self.convolutions(in_channels, out_channels)
        self.block = nn.ModuleDict({"conv_f": conv_f, "conv_m": conv_m, "norm": norm(out_channels)})
        self.median_filter = median_filter
        self.fused = 2 * out_channels <= _FUSE_UP_TO

    def conv3x3(self, in_channels: int, out_channels: int, groups: int = 1) -> nn.Conv2d:
        """3x3 convolution for an input padded by `pad`, which leaves zero padding to the convolution."""
        return nn.Conv2d(in_channels, out_channels, 3, padding=int(self.padding_mode == "zeros"), groups=groups)

    def pad(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c hp wp"]:
        """Pads x once for all convolutions that read it; x itself for zero padding."""
        return x if self.padding_mode == "zeros" else F.pad(x, (1, 1, 1, 1), mode=self.padding_mode)

    def convolutions(self, in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
        """Builds (conv_f, conv_m)."""
        return self.conv3x3(in_channels, out_channels), self.conv3x3(in_channels, out_channels)

    def preactivations(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b out h w"], Float[Tensor, "b _ h w"]]:
        """Returns features before the ELU and gate before the sigmoid."""
        conv_f, conv_m, padded = self.block["conv_f"], self.block["conv_m"], self.pad(x)
        if not self.fused:
            return conv_f(padded), conv_m(padded)
        weight, bias = (torch.cat([conv_f.get_parameter(name), conv_m.get_parameter(name)]) for name in ("weight", "bias"))
        features, gate = F.conv2d(padded, weight, bias, padding=int(self.padding_mode == "zeros")).chunk(2, dim=1)
        return features, gate

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h w"]:
        """Returns the block's features."""
        features, gate = self.preactivations(x)
        x = self.block["norm"](elu(features) * torch.sigmoid(gate))
        return median_filter(x, self.median_size) if self.median_filter else x


class SingleChannelGate(GatedBlock):
    """'gated-sc': one gate for all channels of a pixel."""

    def convolutions(self, in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
        return self.conv3x3(in_channels, out_channels), self.conv3x3(in_channels, 1)

    def preactivations(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b out h w"], Float[Tensor, "b _ h w"]]:
        padded = self.pad(x)
        return self.block["conv_f"](padded), self.block["conv_m"](padded)


class PointwiseGate(GatedBlock):
    """'gated-pw': the gate is a 1x1 convolution."""

    def convolutions(self, in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
        return self.conv3x3(in_channels, out_channels), nn.Conv2d(in_channels, out_channels, 1)

    def preactivations(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b out h w"], Float[Tensor, "b _ h w"]]:
        return self.block["conv_f"](self.pad(x)), self.block["conv_m"](x)


class DepthwiseGate(SingleChannelGate):
    """'gated-ds': the gate is a depthwise 3x3 followed by a 1x1 convolution."""

    def convolutions(self, in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
        gate = nn.Sequential(self.conv3x3(in_channels, in_channels, groups=in_channels), nn.Conv2d(in_channels, out_channels, 1))
        return self.conv3x3(in_channels, out_channels), gate


class SeparableBlock(GatedBlock):
    """'gated-sd': features and gate are both a 1x1 followed by a depthwise 3x3 convolution, padded in between."""

    def convolutions(self, in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
        depthwise = partial(nn.Conv2d, out_channels, out_channels, 3, padding=1, groups=out_channels, padding_mode=self.padding_mode)
        conv_f, conv_m = (nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), depthwise()) for _ in range(2))
        return conv_f, conv_m

    def preactivations(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b out h w"], Float[Tensor, "b _ h w"]]:
        return self.block["conv_f"](x), self.block["conv_m"](x)


BLOCKS: dict[str, type[BasicBlock] | type[GatedBlock]] = {
    "basic": BasicBlock,
    "gated": GatedBlock,
    "gated-sc": SingleChannelGate,
    "gated-pw": PointwiseGate,
    "gated-ds": DepthwiseGate,
    "gated-sd": SeparableBlock,
}
