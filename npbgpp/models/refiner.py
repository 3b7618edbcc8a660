"""From a pyramid of rasterised descriptors to an image.

Symbols: b images, level k of size (h >> k, w >> k) with c_k channels, f_k `filters`. Source: NPBG++ (Rakhimov et al., CVPR 2022) and its
released checkpoints, whose parameter names are kept: `start`, `down1` ... `down4`, `center`, `up4` ... `up1`, `final`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError
from npbgpp.models.blocks import BLOCKS, NORMALIZATIONS, PADDING_MODES, choose
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


class Up(nn.Module):
    """One level up: resize to the skip's size, concatenate the skip if used, block `conv`.

    'deconv' is a transposed convolution to the skip's channels with zero borders, resized if the skip has an odd side.
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


class RefinerUnetV2(PyramidUNet):
    """The light gated U-Net of NPBG++ (457 969 parameters as shipped).

    `start` turns level 0 into f_0 channels. Going down, level k has f_k channels: f_k - c_k from the block behind a 2x2 average, then the
    c_k of the input. `center` works on level 4; going up, `up4` ... `up1` give 16, 8, 4 and 2 times out_channels without normalisation,
    and a 1x1 convolution gives the image.

    On a CPU it runs in channels_last; features and gate of a block share one border. One image, shipped size, 2 threads of an AVX-512
    machine: 91 ms forward and 282 ms with backward at 512 x 512 (the plain network in NCHW: 142 and 488), 24 and 69 ms at 256 x 256
    (35 and 124).

    Args:
        in_channels: c_k of the 1 to 5 input levels, finest first; coarser levels that are not listed get no input.
        out_channels: 3, or 4 where the last one is a foreground logit.
        filters: f_k of the 5 levels.
        upsample_mode: 'bilinear', 'nearest' or 'deconv'.
        last_act: '' (none), 'sigmoid' or 'tanh'.
        stem_conv_block_name: block of `start`, a key of `BLOCKS`.
        encoder_conv_block_name: block of `down1` ... `down4` and `center`.
        decoder_conv_block_name: block of `up4` ... `up1`.
        padding_mode: 'zeros', 'reflect', 'replicate' or 'circular'.
        median_filter: median of the result of `start`, every down block and `center` (5x5 for 'basic', 3x3 for gated blocks).
        encoder_normalization: 'identity', 'batch' or 'instance', in the same blocks.
        use_skip: concatenate the features of the way down on the way up.

    Raises:
        InputError: a value that is not allowed; the message names the key.
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
        # Reflection needs a neighbour inside the image, instance statistics more than one pixel.
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
        self.final = final if last_act else final[0]  # the checkpoints say `final.weight`, but `final.0.weight` with an activation


class IdentityRefiner(nn.Module):
    """No refinement: the descriptors are colours. No parameters."""

    def forward(self, levels: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b 3 h w"]:
        """Returns the first three channels of the finest level; fewer than three raise InputError."""
        channels = [level.shape[1] for level in levels]
        if not channels or channels[0] < 3:
            raise InputError(
                f"IdentityRefiner: the finest level needs at least 3 channels, got levels of {channels}; set descriptor_dim=3."
            )
        return levels[0][:, :3]
