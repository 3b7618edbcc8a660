"""Feature extractors of input views: (b, 3, h, w) -> (b, c, h, w), height and width unchanged.

Symbols: b images with RGB in [0, 1], h x w pixels, hp x wp after padding to multiples of `STRIDE`, e_k channels of encoder map k (size
hp / 2^k x wp / 2^k, k = 1 ... 5), d_i channels of decoder block i (0 is the deepest). Source: NPBG++ (Rakhimov et al., CVPR 2022) and its released
checkpoints, whose parameter names are kept: `mean`, `std`, `encoder.*`, `decoder.blocks.{i}.block.{j}.weight`, `final.weight`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError
from npbgpp.nets.pretrained import PublishedEncoder, find_encoder, read_encoder
from npbgpp.nets.unet import LAST_ACTIVATIONS, LEVELS, NORMALIZATIONS, choose, to_fast_layout

CHANNELS = (16, 24, 40, 64, 96)


class PlainEncoder(nn.Module):
    """Five stages of two 3x3 convolutions with leaky ReLU; the first one of a stage halves the size, the second one is residual.

    Without normalisation, so that an image has the same features in training and evaluation, alone and in any batch. On CPUs its dense convolutions are
    faster than the depthwise ones of mobile networks.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        self.channels = tuple(channels)
        inputs = (3, *self.channels)
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in zip(inputs, self.channels, strict=False)
        )
        self.same = nn.ModuleList(nn.Conv2d(count, count, 3, padding=1) for count in self.channels)
        self.activation = nn.LeakyReLU(inplace=True)
        for conv in (*self.down, *self.same):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="leaky_relu")
            nn.init.zeros_(conv.bias)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Returns maps of strides 2, 4, 8, 16 and 32 of images whose sides are multiples of 32."""
        maps = []
        for down, same in zip(self.down, self.same, strict=True):
            x = self.activation(down(x))
            x = x + self.activation(same(x))
            maps.append(x)
        return maps


ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU}
STRIDE = 1 << LEVELS
PLAIN = "plain"
ENCODER_EXAMPLES = ("spnasnet_100", "resnet18", "efficientnet_b0", "mobilenetv3_large_100", "regnety_008")


class IdentityExtractor(nn.Module):
    """Uses the colours as features (system 'npbgpp_rgb'). No parameters."""

    out_channels = 3

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Returns the images."""
        return images


class DecoderBlock(nn.Module):
    """Upsampling by 2, concatenation with the skip if there is one, then `layers` times conv 3x3 without bias, norm, activation."""

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        layers: int,
        norm: Callable[[int], nn.Module],
        activation: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.block = nn.Sequential()
        for k in range(layers):
            conv = nn.Conv2d(out_channels if k else in_channels + skip_channels, out_channels, 3, padding=1, bias=False)
            nn.init.kaiming_uniform_(conv.weight, mode="fan_out", nonlinearity="leaky_relu")
            self.block.extend([conv, norm(out_channels), activation(inplace=True)])

    def forward(self, x: Float[Tensor, "b c _ _"], skip: Float[Tensor, "b s h w"] | None) -> Float[Tensor, "b out _ _"]:
        """Returns features of the skip's size; upsampling is bilinear with aligned corners."""
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        return self.block(x if skip is None else torch.cat([x, skip], dim=1))


class Decoder(nn.Module):
    """Decoder blocks, deepest first; each has the next finer encoder map as its skip, the last one the image if `rgb_channels` is 3."""

    def __init__(
        self,
        encoder_channels: Sequence[int],
        rgb_channels: int,
        out_channels: Sequence[int],
        *,
        layers: Sequence[int],
        norm: Callable[[int], nn.Module],
        activation: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        deepest, *skips = [*encoder_channels[::-1], rgb_channels]
        inputs = [deepest, *out_channels]
        self.blocks = nn.ModuleList(
            DecoderBlock(inputs[i], skips[i], out_channels[i], layers=layers[i], norm=norm, activation=activation) for i in range(LEVELS)
        )

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]], image: Float[Tensor, "b 3 hp wp"] | None) -> Float[Tensor, "b out hp wp"]:
        """Returns features at the size of the padded image from the encoder maps, finest first."""
        x = maps[-1]
        for block, skip in zip(self.blocks, [*maps[-2::-1], image], strict=True):
            x = block(x, skip)
        return x


def encoder_channels(name: str) -> list[int]:
    """Returns e_1 ... e_5 of a timm encoder, from a run on the meta device that allocates no weights and draws no random numbers.

    Raises:
        InputError: timm has no network of that name, or the network does not return feature maps at strides 2 ... 32 for any image size.
    """
    import timm  # slow to import

    advice = f"choose another one, for instance {', '.join(ENCODER_EXAMPLES)}"
    if not timm.is_model(name):
        raise InputError(f"encoder: expected the name of a network in timm, got {name!r}; {advice}.")
    expected = f"encoder: expected a network with feature maps at strides {[2 << k for k in range(LEVELS)]} of images of any size"
    h, w = 2 * STRIDE, 3 * STRIDE
    try:
        with torch.device("meta"), torch.no_grad():
            network = timm.create_model(name, features_only=True, pretrained=False).eval()
            shapes = [tuple(features.shape[1:]) for features in network(torch.empty(1, 3, h, w))]
    except Exception as error:  # networks of timm raise various types
        raise InputError(f"{expected}, but {name!r} gives none ({type(error).__name__}: {error}); {advice}.") from error
    info: Any = network.feature_info
    channels = list(info.channels())
    if shapes != [(c, h >> k, w >> k) for k, c in enumerate(channels, 1)] or len(shapes) != LEVELS:
        raise InputError(f"{expected}, but of {h} x {w} pixels {name!r} gives maps of (channels, rows, columns) {shapes}; {advice}.")
    return channels


class FeatureExtractor(nn.Module):
    """U-Net with a timm encoder (shipped size: 1 415 088 parameters in the decoder, 128 in `final`), or with the one of `plain_encoder`.

    The image is padded symmetrically by replication (odd remainders at the bottom and right) and normalised as `(image - mean) / std` for the encoder.
    Decoder block i has encoder map 4 - i as its skip; the last one has the padded, not normalised image if skip_rgb. A 1x1 convolution without bias yields
    the features, which are cropped to the image.

    On a CPU it runs in channels_last: three images of 256 x 256 with backward take 381 ms on 2 threads (NCHW 491), forward alone 92 (145).

    Args:
        out_channels: c, including the three channels of append_rgb.
        encoder: a classifier of timm with feature maps at strides 2, 4, 8, 16 and 32 for any image size; 'plain' for `PlainEncoder`, which has no published
            weights.
        pretrained_encoder: normalise for the published weights of the encoder (otherwise `mean` and `std` are 0 and 1), which
            `load_pretrained_encoder` reads. The constructor reads no weights, since a checkpoint may provide them.
        encoder_weights: file with these weights; None searches the caches of timm.
        decoder_channels: d_i of the five blocks, deepest first.
        decoder_layers: convolutions of each block.
        activation: of the decoder, 'leaky_relu' or 'relu'.
        norm: of the decoder, 'identity', 'batch' or 'instance'.
        skip_rgb: concatenate the image in the last block.
        append_rgb: append the image as the last three channels.
        last_act: activation of the other channels, '' (none), 'sigmoid' or 'tanh'.
        eval_mode: stay in evaluation mode, so that batch norm statistics are frozen; all parameters are still trained.

    Raises:
        InputError: an invalid value; the message names the key.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        out_channels: int = 8,
        encoder: str = "spnasnet_100",
        pretrained_encoder: bool = True,
        encoder_weights: str | Path | None = None,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        decoder_layers: Sequence[int] = (1, 1, 1, 1, 1),
        activation: str = "leaky_relu",
        norm: str = "identity",
        skip_rgb: bool = True,
        append_rgb: bool = False,
        last_act: str = "",
        eval_mode: bool = True,
    ) -> None:
        super().__init__()
        for key, values in (("decoder_channels", decoder_channels), ("decoder_layers", decoder_layers)):
            if len(values) != LEVELS or min(values) < 1:
                raise InputError(f"{key}: expected {LEVELS} positive numbers, deepest block first; got {list(values)}.")
        head_channels = out_channels - 3 * append_rgb
        if head_channels < 1:
            raise InputError(f"out_channels: expected at least {1 + 3 * append_rgb} with append_rgb={append_rgb}, got {out_channels}.")
        if encoder_weights is not None and not pretrained_encoder:
            raise InputError(f"encoder_weights: expected null with pretrained_encoder=false, got {encoder_weights}; change one of them.")
        self.out_channels, self.append_rgb, self.eval_mode = out_channels, append_rgb, eval_mode
        self.skip_rgb, self.encoder_name = skip_rgb, encoder
        self.pretrained_encoder, self.encoder_weights = pretrained_encoder, encoder_weights

        mean, std = (0.0,) * 3, (1.0,) * 3
        if encoder == PLAIN:
            if pretrained_encoder:
                raise InputError(f"pretrained_encoder: expected false with encoder={PLAIN}, which has no published weights, got true.")
            self.encoder: nn.Module = PlainEncoder()
            channels = list(self.encoder.channels)
        else:
            channels = encoder_channels(encoder)
            import timm

            self.encoder = timm.create_model(encoder, features_only=True, pretrained=False)
            if pretrained_encoder:
                config: Any = self.encoder.pretrained_cfg
                mean, std = config["mean"], config["std"]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.decoder = Decoder(
            channels,
            3 * skip_rgb,
            decoder_channels,
            layers=decoder_layers,
            norm=choose("norm", norm, NORMALIZATIONS),
            activation=choose("activation", activation, ACTIVATIONS),
        )
        self.final = nn.Conv2d(decoder_channels[-1], head_channels, 1, bias=False)
        last = choose("last_act", last_act, LAST_ACTIVATIONS)
        self.last_activation = nn.Identity() if last is None else last()
        self.train()

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """Sets training mode, or evaluation mode with eval_mode."""
        return super().train(mode and not self.eval_mode)

    def load_pretrained_encoder(self) -> None:
        """Reads the published weights of the encoder, unless pretrained_encoder is false.

        Raises:
            InputError: their file is missing or holds other weights.
        """
        if not self.pretrained_encoder:
            return
        config: Any = self.encoder.pretrained_cfg
        published = PublishedEncoder(self.encoder_name, PurePosixPath(config.get("url") or "").name or None, config.get("hf_hub_id"))
        path = find_encoder(published, self.encoder_weights)
        self.encoder.load_state_dict(read_encoder(path, self.encoder_name, self.encoder.state_dict()))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """Returns the features of every pixel, unbounded without last_act."""
        h, w = images.shape[2:]
        rows, columns = -h % STRIDE, -w % STRIDE
        top, left = rows // 2, columns // 2
        x = to_fast_layout(F.pad(images, (left, columns - left, top, rows - top), mode="replicate"))
        maps = self.encoder((x - self.mean) / self.std)
        features = self.last_activation(self.final(self.decoder(maps, x if self.skip_rgb else None)))
        if self.append_rgb:
            features = torch.cat([features, x], dim=1)
        return features[:, :, top : top + h, left : left + w].contiguous()
