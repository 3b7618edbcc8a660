"""U-Nets that decode a pyramid of feature images to an image: the networks of NPBG and NPBG++ (config group ``system/refiner``).

Symbols: level k has size (h >> k, w >> k); level 0 is the finest. These are the sizes of the feature pyramid (scales 1, 1/2, 1/4, ...) and of repeated 2x2
pooling with sizes rounded down.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError

# ----------------------------------------------------------------------
# Convolution blocks: (b, c, h, w) -> (b, out, h, w), height and width unchanged


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


# ----------------------------------------------------------------------
# What the networks share


LEVELS = 5
UPSAMPLE_MODES = {name: name for name in ("bilinear", "nearest", "deconv")}
LAST_ACTIVATIONS: dict[str, type[nn.Module] | None] = {"": None, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def check_channels(in_channels: Sequence[int], filters: Sequence[int], key: str = "filters") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Validates both lists and pads in_channels with zeros to `LEVELS` entries (levels without input).

    Args:
        in_channels: channels per input level.
        filters: channels per level of the network.
        key: the configuration key of the filters.

    Raises:
        InputError: not 1 to 5 positive in_channels, not 5 positive filters, or a filter not above the input channels of its level.
    """
    channels, widths = tuple(in_channels), tuple(filters)
    if not 1 <= len(channels) <= LEVELS or min(channels) < 1:
        raise InputError(
            f"in_channels: expected 1 to {LEVELS} positive numbers, one per pyramid level, finest first; got {list(channels)}."
        )
    if len(widths) != LEVELS or min(widths) < 1:
        raise InputError(f"{key}: expected {LEVELS} positive filters, finest level first; got {list(widths)}.")
    channels += (0,) * (LEVELS - len(channels))
    for level in range(1, LEVELS):
        if widths[level] <= channels[level]:
            raise InputError(
                f"{key}: level {level} has {widths[level]} channels of which {channels[level]} are its input (in_channels); "
                f"expected at least {channels[level] + 1}."
            )
    return channels, widths


def check_pyramid(levels: Sequence[Float[Tensor, "b _ _ _"]], in_channels: Sequence[int], smallest_side: int) -> None:
    """Checks number, channels and sizes of the levels of a pyramid.

    Args:
        levels: finest first.
        in_channels: channels per level; 0, at the end, for levels without input.
        smallest_side: minimum height and width of the coarsest of the `LEVELS` levels, pixels.

    Raises:
        InputError: a pyramid that does not match.
    """
    expected, got = [c for c in in_channels if c], [level.shape[1] for level in levels]
    if got != expected:
        raise InputError(
            f"refiner input: expected {len(expected)} levels of {expected} channels (in_channels), got {got}; "
            "make in_channels agree with the rasterizer's scales and descriptor_dim (plus 1 for its mask)."
        )
    h, w = levels[0].shape[2:]
    if min(h, w) >> (LEVELS - 1) < smallest_side:
        needed = smallest_side << (LEVELS - 1)
        raise InputError(
            f"refiner input: height and width must be at least {needed} pixels for {LEVELS} levels, got {h} x {w}; render a larger image."
        )
    for k, level in enumerate(levels):
        if tuple(level.shape[2:]) != (h >> k, w >> k):
            raise InputError(
                f"refiner input: level {k} of a {h} x {w} image must be {h >> k} x {w >> k}, got {level.shape[2]} x {level.shape[3]}; "
                "the rasterizer's scales must be 1, 1/2, 1/4, ..."
            )


def to_fast_layout(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """x in channels_last memory on a CPU, where convolutions run fastest in it (see `NPBGPlusPlusUNet`); unchanged on other devices."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def resize(x: Float[Tensor, "b c _ _"], size: tuple[int, int], mode: str = "bilinear") -> Float[Tensor, "b c h w"]:
    """Resizes to `size` = (h, w), 'nearest' or 'bilinear' with align_corners=False; x itself if it has that size."""
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size=size, mode=mode, align_corners=False if mode == "bilinear" else None)


class Down(nn.Module):
    """One level down: 2x2 average pooling, then `conv`. Odd sides are first resized bilinearly to even ones, so that all pixels contribute."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Float[Tensor, "b c _ _"]) -> Float[Tensor, "b out h w"]:
        """Returns features of half the size, rounded down."""
        h, w = x.shape[2:]
        return self.conv(F.avg_pool2d(resize(x, (h // 2 * 2, w // 2 * 2)), 2))


def output_layer(in_channels: int, out_channels: int, last_act: type[nn.Module] | None) -> nn.Sequential:
    """A 1x1 convolution and, if given, an activation.

    Without an activation the bias is initialised to 0.5 (mid grey), and to 0 for a fourth channel, a mask logit.
    """
    conv = nn.Conv2d(in_channels, out_channels, 1)
    if last_act is not None:
        return nn.Sequential(conv, last_act())
    bias = torch.full((out_channels,), 0.5)
    bias[3:4] = 0.0
    conv.bias = nn.Parameter(bias)
    return nn.Sequential(conv)


class PyramidUNet(nn.Module):
    """Base class of U-Nets on pyramids; a subclass sets `start`, `down1` ... `down4`, `center`, `up4` ... `up1` and `final`.

    Args:
        in_channels: channels per input level, padded with zeros to `LEVELS` entries.
        smallest_side: minimum height and width of the coarsest level, pixels.
    """

    start: nn.Module
    center: nn.Module
    final: nn.Module

    def __init__(self, in_channels: tuple[int, ...], smallest_side: int) -> None:
        super().__init__()
        self.in_channels, self.smallest_side = in_channels, smallest_side

    def forward(self, levels: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b out h w"]:
        """Decodes a pyramid.

        Args:
            levels: one tensor (b, c_k, h >> k, w >> k) per entry of in_channels, finest first.

        Returns:
            The image at the size of level 0, unbounded without last_act.

        Raises:
            InputError: wrong number, channels or sizes of levels; a side below 32 pixels with 'reflect' padding or instance
                normalisation, below 16 otherwise.
        """
        check_pyramid(levels, self.in_channels, self.smallest_side)
        levels = [to_fast_layout(level) for level in levels]
        x = self.start(levels[0])
        skips = []
        for k in range(1, LEVELS):
            skips.append(x)
            x = self.get_submodule(f"down{k}")(x)
            if k < len(levels):
                x = torch.cat([x, levels[k]], dim=1)
        x = self.center(x)
        for k in range(LEVELS - 1, 0, -1):
            x = self.get_submodule(f"up{k}")(x, skips[k - 1])
        return self.final(x).contiguous()


# ----------------------------------------------------------------------
# NPBG++


class Up(nn.Module):
    """One level up of `NPBGPlusPlusUNet`: resize to the size of the skip, concatenate the skip if used, block `conv`.

    'deconv' is a transposed convolution to the channels of the skip, resized if the skip has an odd side.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        conv_block: Callable[[int, int], nn.Module],
        upsample_mode: str,
        use_skip: bool,
    ) -> None:
        super().__init__()
        self.mode, self.use_skip, self.up = upsample_mode, use_skip, None
        if upsample_mode == "deconv":
            self.up = nn.ConvTranspose2d(in_channels, skip_channels, 4, stride=2, padding=1)
            self.mode, in_channels = "bilinear", skip_channels
        self.conv = conv_block(in_channels + skip_channels * use_skip, out_channels)

    def forward(self, x: Float[Tensor, "b c _ _"], skip: Float[Tensor, "b s h w"]) -> Float[Tensor, "b out h w"]:
        """Returns features of the skip's size."""
        if self.up is not None:
            x = self.up(x)
        x = resize(x, (skip.shape[2], skip.shape[3]), self.mode)
        return self.conv(torch.cat([x, skip], dim=1) if self.use_skip else x)


class NPBGPlusPlusUNet(PyramidUNet):
    """The light gated U-Net of NPBG++ (457 969 parameters as shipped).

    `start` maps level 0 to f_0 channels. In the encoder, level k has f_k channels: f_k - c_k from the block after 2x2 average pooling, then the c_k of the
    input. `center` works on level 4. In the decoder, `up4` ... `up1` output 16, 8, 4 and 2 times out_channels without normalisation, and a 1x1 convolution
    outputs the image.

    On a CPU it runs in channels_last, and features and gate of a block share one padded input. One image, shipped size, 2 threads of an AVX-512 machine:
    91 ms forward and 282 ms with backward at 512 x 512 (without both: 142 and 488), 24 and 69 ms at 256 x 256 (35 and 124).

    Args:
        in_channels: c_k of the 1 to 5 input levels, finest first; other levels get no input.
        out_channels: 3, or 4 with a foreground logit as the last channel.
        filters: f_k of the 5 levels.
        upsample_mode: 'bilinear', 'nearest' or 'deconv'.
        last_act: '' (none), 'sigmoid' or 'tanh'.
        stem_conv_block_name: block of `start`, a key of `BLOCKS`.
        encoder_conv_block_name: block of `down1` ... `down4` and `center`.
        decoder_conv_block_name: block of `up4` ... `up1`.
        padding_mode: 'zeros', 'reflect', 'replicate' or 'circular'.
        median_filter: median filter after `start`, every down block and `center` (5x5 for 'basic', 3x3 for gated blocks).
        encoder_normalization: 'identity', 'batch' or 'instance', in the same blocks.
        use_skip: concatenate encoder features in the decoder.

    Raises:
        InputError: an invalid value; the message names the key.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int] = (8,),
        out_channels: int = 4,
        filters: Sequence[int] = (16, 32, 64, 128, 210),
        upsample_mode: str = "bilinear",
        last_act: str = "",
        stem_conv_block_name: str = "gated",
        encoder_conv_block_name: str = "gated",
        decoder_conv_block_name: str = "gated",
        padding_mode: str = "replicate",
        median_filter: bool = False,
        encoder_normalization: str = "identity",
        use_skip: bool = True,
    ) -> None:
        channels, f = check_channels(in_channels, filters)
        if out_channels < 1:
            raise InputError(f"out_channels: expected at least 1, got {out_channels}.")
        choose("padding_mode", padding_mode, PADDING_MODES)
        choose("encoder_normalization", encoder_normalization, NORMALIZATIONS)
        stem, encoder = (
            partial(choose(key, name, BLOCKS), padding_mode=padding_mode, normalization=encoder_normalization, median_filter=median_filter)
            for key, name in (("stem_conv_block_name", stem_conv_block_name), ("encoder_conv_block_name", encoder_conv_block_name))
        )
        decoder = partial(choose("decoder_conv_block_name", decoder_conv_block_name, BLOCKS), padding_mode=padding_mode)
        choose("upsample_mode", upsample_mode, UPSAMPLE_MODES)
        activation = choose("last_act", last_act, LAST_ACTIVATIONS)
        # reflection padding needs a neighbour, instance statistics more than one pixel
        super().__init__(channels, smallest_side=2 if padding_mode == "reflect" or encoder_normalization == "instance" else 1)

        self.start = stem(channels[0], f[0])
        for k in range(1, LEVELS):
            self.add_module(f"down{k}", Down(encoder(f[k - 1], f[k] - channels[k])))
        self.center = encoder(f[-1], f[-1])

        below = f[-1]
        for k in range(LEVELS - 1, 0, -1):
            width = out_channels << k
            self.add_module(
                f"up{k}",
                Up(below, f[k - 1], width, decoder, upsample_mode, use_skip),
            )
            below = width
        final = output_layer(below, out_channels, activation)
        self.final = (
            final if last_act else final[0]
        )  # parameter names of the checkpoints: `final.weight`, or `final.0.weight` with an activation


class IdentityRefiner(nn.Module):
    """Returns the descriptors as colours. No parameters."""

    def forward(self, levels: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b 3 h w"]:
        """Returns the first three channels of the finest level; fewer than three raise InputError."""
        channels = [level.shape[1] for level in levels]
        if not channels or channels[0] < 3:
            raise InputError(
                f"IdentityRefiner: the finest level needs at least 3 channels, got levels of {channels}; set descriptor_dim=3."
            )
        return levels[0][:, :3]


# ----------------------------------------------------------------------
# NPBG


class NPBGUp(nn.Module):
    """One level up of `NPBGUNet`: halve the channels and resize to the size of the skip, concatenate the skip, block `conv` without normalisation.

    'bilinear' and 'nearest' resize and then convolve 3x3 with zero padding; 'deconv' is one transposed convolution.
    """

    def __init__(self, out_channels: int, conv_block: Callable[[int, int], nn.Module], upsample_mode: str) -> None:
        super().__init__()
        self.deconv = upsample_mode == "deconv"
        self.mode = "bilinear" if self.deconv else upsample_mode
        if self.deconv:
            self.up: nn.Module = nn.ConvTranspose2d(2 * out_channels, out_channels, 4, stride=2, padding=1)
        else:
            # nested for the parameter names `up.1.0.*`; in NPBG the first entry is the resizing layer
            self.up = nn.Sequential(nn.Identity(), nn.Sequential(nn.Conv2d(2 * out_channels, out_channels, 3, padding=1)))
        self.conv = conv_block(2 * out_channels, out_channels)

    def forward(self, x: Float[Tensor, "b c _ _"], skip: Float[Tensor, "b out h w"]) -> Float[Tensor, "b out h w"]:
        """Returns features of the skip's size."""
        size = (skip.shape[2], skip.shape[3])
        x = resize(self.up(x), size) if self.deconv else self.up(resize(x, size, self.mode))
        return self.conv(torch.cat([x, skip], dim=1))


class NPBGUNet(PyramidUNet):
    """The U-Net of NPBG (Aliev et al., ECCV 2020; 1 928 771 parameters with the defaults), for images of any size.

    Args:
        in_channels: c_k of the 1 to 5 input levels, finest first; other levels get no input.
        out_channels: channels of the image.
        net_size: divisor of the filters 64, 128, 256, 512, 1024; 4 gives 16, 32, 64, 128, 256.
        upsample_mode: 'bilinear', 'nearest' or 'deconv'.
        last_act: '' (none), 'sigmoid' or 'tanh'.
        conv_block: block of every level, a key of `BLOCKS`; NPBG has 'gated' and 'basic'.
        padding_mode: of the blocks: 'reflect' as in the released networks, 'zeros' as in later versions of NPBG, 'replicate' or 'circular'.

    Raises:
        InputError: an invalid value; the message names the key.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int] = (8, 8, 8, 8, 8),
        out_channels: int = 3,
        net_size: int = 4,
        upsample_mode: str = "bilinear",
        last_act: str = "",
        conv_block: str = "gated",
        padding_mode: str = "reflect",
    ) -> None:
        if net_size < 1 or 64 % net_size:
            raise InputError(
                f"net_size: expected a divisor of 64 (the filters are 64, 128, 256, 512 and 1024 divided by it), got {net_size}."
            )
        if out_channels < 1:
            raise InputError(f"out_channels: expected at least 1, got {out_channels}.")
        channels, f = check_channels(in_channels, [(64 << k) // net_size for k in range(LEVELS)], key="net_size")
        choose("padding_mode", padding_mode, PADDING_MODES)
        block = partial(choose("conv_block", conv_block, BLOCKS), padding_mode=padding_mode)
        choose("upsample_mode", upsample_mode, UPSAMPLE_MODES)
        activation = choose("last_act", last_act, LAST_ACTIVATIONS)
        super().__init__(channels, smallest_side=2 if padding_mode == "reflect" else 1)

        self.start = block(channels[0], f[0], normalization="batch")
        for k in range(1, LEVELS):
            self.add_module(f"down{k}", Down(block(f[k - 1], f[k] - channels[k], normalization="batch")))
        self.center = nn.Identity()
        for k in range(LEVELS - 1, 0, -1):
            self.add_module(f"up{k}", NPBGUp(f[k - 1], block, upsample_mode))
        self.final = output_layer(f[0], out_channels, activation)
