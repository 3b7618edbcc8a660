"""Gated, anti-aliased U-Net with a colour head and an opacity branch (NPCR).

Symbols: b images, c input channels, h x w pixels, f_0 ... f_4 `filters` of the colour path, a_0 ... a_2 `alpha_filters`. Sources: gated convolution (Yu et al.,
ICCV 2019); pooling that keeps shifts, a maximum of stride 1 followed by a blur of stride 2 (Zhang, ICML 2019).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError

_LEVELS, _ALPHA_LEVELS = 5, 3


class GatedConv(nn.Module):
    """conv(x) * sigmoid(conv(x)), then batch norm and ReLU; 3x3, zero borders."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_f, self.conv_m = (nn.Conv2d(in_channels, out_channels, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h w"]:
        """Returns the features."""
        return F.relu(self.norm(self.conv_f(x) * torch.sigmoid(self.conv_m(x))))


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(GatedConv(in_channels, out_channels), GatedConv(out_channels, out_channels))


class BlurPool(nn.Module):
    """Anti-aliased downsampling by 2: maximum of 2x2 neighbours with stride 1, then a blur (1, 2, 1) with stride 2."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (taps[:, None] * taps / 16)[None, None], persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Returns (h + 1) // 2 rows and (w + 1) // 2 columns."""
        channels = x.shape[1]
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, stride=1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), self.kernel.expand(channels, 1, 3, 3), stride=2, groups=channels)


class _Up(nn.Module):
    """Resize to the size of the skips (bilinear, corners aligned), concatenate them, block."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = _block(in_channels, out_channels)

    def forward(self, x: Float[Tensor, "b c _ _"], *skips: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b out h w"]:
        """Returns features of the size of the skips."""
        x = F.interpolate(x, skips[0].shape[2:], mode="bilinear", align_corners=True)
        return self.block(torch.cat([x, *skips], 1))


class RGBAUNet(nn.Module):
    """Colour from a U-Net of five levels; opacity from a smaller one that reads the input and the colour, and in its decoder also features of the colour decoder.

    With the shipped filters the colour decoder has 96, 48, 24 and 24 channels, the opacity decoder 144 -> 32 and 72 -> 8.

    Args:
        in_channels: c: features of a point and three channels of the viewing direction.
        filters: f_k.
        alpha_filters: a_k.

    Raises:
        InputError: not one positive channel, five positive filters and three positive alpha_filters.
    """

    smallest_side = 1 << (_LEVELS - 1)

    def __init__(
        self, *, in_channels: int = 35, filters: Sequence[int] = (24, 48, 96, 384, 384), alpha_filters: Sequence[int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        if in_channels < 1:
            raise InputError(f"in_channels: expected at least 1, got {in_channels}.")
        for key, values, count in (("filters", filters, _LEVELS), ("alpha_filters", alpha_filters, _ALPHA_LEVELS)):
            if len(values) != count or min(values) < 1:
                raise InputError(f"{key}: expected {count} positive numbers, finest level first; got {list(values)}.")
        self.in_channels = in_channels
        f, a = tuple(filters), tuple(alpha_filters)
        self.pool = BlurPool()
        self.down = nn.ModuleList(_block(c, out) for c, out in zip((in_channels, *f[:-1]), f, strict=True))
        ways_up = (*f[-3::-1], f[0])  # f_2, f_1, f_0, f_0
        self.up = nn.ModuleList(_Up(c + skip, out) for c, skip, out in zip((f[-1], *ways_up[:-1]), f[-2::-1], ways_up, strict=True))
        self.colour_point = nn.Conv2d(f[0], 3, 1)
        self.colour_around = nn.Conv2d(f[0], 3, 3, padding=1)
        self.alpha_down = nn.ModuleList(_block(c, out) for c, out in zip((in_channels + 3, *a[:-1]), a, strict=True))
        halves = (max(a[1], 1), max(a[0] // 2, 1))
        self.alpha_up = nn.ModuleList([_Up(a[2] + a[1] + f[1], halves[0]), _Up(halves[0] + a[0] + f[0], halves[1])])
        self.alpha = nn.Conv2d(halves[1], 1, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 4 h w"]:
        """Returns colour and opacity, without a final activation.

        Raises:
            InputError: other channels, or an image too small for five levels.
        """
        if x.shape[1] != self.in_channels or min(x.shape[2:]) < self.smallest_side:
            raise InputError(
                f"system.network: expected {self.in_channels} channels and at least {self.smallest_side} pixels a side, got {x.shape[1]} channels and "
                f"{x.shape[2]}x{x.shape[3]} pixels; make system.network.in_channels agree with system.descriptor_dim, or render larger images"
            )
        x = x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x
        skips: list[Tensor] = []
        features = x
        for level, block in enumerate(self.down):
            features = block(self.pool(features) if level else features)
            skips.append(features)
        for up, skip in zip(self.up, skips[-2::-1], strict=True):
            features = up(features, skip)
        colour = self.colour_point(features) + self.colour_around(features)
        fine = self.alpha_down[0](torch.cat([x, colour], 1))
        middle = self.alpha_down[1](self.pool(fine))
        coarse = self.alpha_down[2](self.pool(middle))
        alpha = self.alpha_up[1](self.alpha_up[0](coarse, middle, skips[1]), fine, skips[0])
        return torch.cat([colour, self.alpha(alpha)], 1)
