"""The U-Net of the first NPBG, on pyramids of any size.

Symbols: b images, level k of size (h >> k, w >> k) with c_k channels, f_k = 64, 128, 256, 512, 1024 divided by `net_size`. Source: NPBG
(Aliev et al., ECCV 2020) and its code, whose parameter names are kept: `start`, `down1` ... `down4`, `up4` ... `up1`, `final`. Where NPBG
doubles the size, which needs multiples of 16, this net resizes to the size of the level above; for multiples of 16 it is the same.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError
from npbgpp.models.blocks import BLOCKS, PADDING_MODES, choose
from npbgpp.models.pyramid import (
    LAST_ACTIVATIONS,
    LEVELS,
    UPSAMPLE_MODES,
    Down,
    PyramidUNet,
    check_channels,
    output_layer,
    resize,
)


class NpbgUp(nn.Module):
    """One level up: halve the channels while resizing to the skip's size, concatenate the skip, block `conv` without normalisation.

    'bilinear' and 'nearest' resize and then convolve 3x3 (zero borders); 'deconv' is one transposed convolution.
    """

    def __init__(self, out_channels: int, conv_block: Callable[[int, int], nn.Module], upsample_mode: str) -> None:
        super().__init__()
        self.deconv = upsample_mode == "deconv"
        self.mode = "bilinear" if self.deconv else upsample_mode
        if self.deconv:
            self.up: nn.Module = nn.ConvTranspose2d(2 * out_channels, out_channels, 4, stride=2, padding=1)
        else:
            # The nesting gives the parameter names `up.1.0.*`; in NPBG the first entry is the resizing layer.
            self.up = nn.Sequential(nn.Identity(), nn.Sequential(nn.Conv2d(2 * out_channels, out_channels, 3, padding=1)))
        self.conv = conv_block(2 * out_channels, out_channels)

    def forward(self, x: Float[Tensor, "b c _ _"], skip: Float[Tensor, "b out h w"]) -> Float[Tensor, "b out h w"]:
        """Returns features of the skip's size."""
        size = (skip.shape[2], skip.shape[3])
        x = resize(self.up(x), size) if self.deconv else self.up(resize(x, size, self.mode))
        return self.conv(torch.cat([x, skip], dim=1))


class RefinerUNet(PyramidUNet):
    """NPBG's network (1 928 771 parameters with the defaults).

    Args:
        in_channels: c_k of the 1 to 5 input levels, finest first; coarser levels that are not listed get no input.
        out_channels: channels of the image.
        net_size: divisor of the filters; 4 gives 16, 32, 64, 128, 256.
        upsample_mode: 'bilinear', 'nearest' or 'deconv'.
        last_act: '' (none), 'sigmoid' or 'tanh'.
        conv_block: block of every level, a key of `BLOCKS`; NPBG has 'gated' and 'basic'.
        padding_mode: borders of the blocks: 'reflect' as in the version that trained the released networks, 'zeros' as in later
            versions, 'replicate' or 'circular'.

    Raises:
        InputError: a value that is not allowed; the message names the key.
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
        if net_size < 1:
            raise InputError(f"net_size: expected at least 1, the divisor of 64, 128, 256, 512 and 1024 filters; got {net_size}.")
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
            self.add_module(f"up{k}", NpbgUp(f[k - 1], block, upsample_mode))
        self.final = output_layer(f[0], out_channels, activation)
