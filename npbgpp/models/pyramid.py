"""What the refiners share: checks of an image pyramid, one level down, resizing to the level above, the path through a U-Net.

Symbols: level k has size (h >> k, w >> k); level 0 is the finest. The sizes are those of the multi-scale rasterisation (scales 1, 1/2,
1/4, ...) and, rounding down at every step, those of repeated 2x2 pooling.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError

LEVELS = 5
UPSAMPLE_MODES = {name: name for name in ("bilinear", "nearest", "deconv")}
LAST_ACTIVATIONS: dict[str, type[nn.Module] | None] = {"": None, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def check_channels(in_channels: Sequence[int], filters: Sequence[int], key: str = "filters") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns copies of both lists, in_channels continued with zeros to `LEVELS` entries (a level with 0 channels is absent).

    Args:
        in_channels: channels per input level.
        filters: channels per level of the network.
        key: the configuration key that the filters come from.

    Raises:
        InputError: not 1 to 5 positive in_channels, not 5 positive filters, or a filter that leaves no channel beside its level's input.
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
    """Checks number, channels and sizes of the levels that a refiner gets.

    Args:
        levels: finest first.
        in_channels: channels per level, 0 for an absent one (at the end).
        smallest_side: pixels that height and width of the coarsest of the `LEVELS` levels need.

    Raises:
        InputError: what differs and what was expected.
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


def in_fast_layout(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """x in the memory layout in which the convolutions run fastest on its device; same values. All later layers keep it.

    On a CPU that is channels_last (figures: `RefinerUnetV2`); elsewhere the caller's choice stays.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def resize(x: Float[Tensor, "b c _ _"], size: tuple[int, int], mode: str = "bilinear") -> Float[Tensor, "b c h w"]:
    """Resizes to `size` = (h, w), 'nearest' or 'bilinear' with pixel edges aligned; x itself if it has that size."""
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size=size, mode=mode, align_corners=False if mode == "bilinear" else None)


class Down(nn.Module):
    """One level down: 2x2 average, then `conv`. An odd side is first resized bilinearly to the even one below, so no pixel is left out."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Float[Tensor, "b c _ _"]) -> Float[Tensor, "b out h w"]:
        """Returns features of half the size, rounded down."""
        h, w = x.shape[2:]
        return self.conv(F.avg_pool2d(resize(x, (h // 2 * 2, w // 2 * 2)), 2))


def output_layer(in_channels: int, out_channels: int, last_act: type[nn.Module] | None) -> nn.Sequential:
    """A 1x1 convolution and, if given, an activation.

    Without one the bias starts at 0.5, mid grey; that of a fourth channel, a mask logit, at 0.
    """
    conv = nn.Conv2d(in_channels, out_channels, 1)
    if last_act is not None:
        return nn.Sequential(conv, last_act())
    bias = torch.full((out_channels,), 0.5)
    bias[3:4] = 0.0
    conv.bias = nn.Parameter(bias)
    return nn.Sequential(conv)


class PyramidUNet(nn.Module):
    """The path of a pyramid through a U-Net; a subclass sets `start`, `down1` ... `down4`, `center`, `up4` ... `up1` and `final`.

    Args:
        in_channels: channels per input level, continued with zeros to `LEVELS` entries.
        smallest_side: pixels that height and width of the coarsest level need.
    """

    start: nn.Module
    center: nn.Module
    final: nn.Module

    def __init__(self, in_channels: tuple[int, ...], smallest_side: int) -> None:
        super().__init__()
        self.in_channels, self.smallest_side = in_channels, smallest_side

    def forward(self, levels: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b out h w"]:
        """Refines a pyramid.

        Args:
            levels: one tensor (b, c_k, h >> k, w >> k) per entry of in_channels, finest first.

        Returns:
            The image at the size of level 0. Without last_act its values are not bounded.

        Raises:
            InputError: wrong number, channels or sizes of levels; a side below 32 pixels with 'reflect' padding or instance
                normalisation, below 16 otherwise.
        """
        check_pyramid(levels, self.in_channels, self.smallest_side)
        levels = [in_fast_layout(level) for level in levels]
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
