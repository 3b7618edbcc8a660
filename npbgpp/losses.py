"""Image losses shared by the methods, unweighted, and SSIM.

Symbols: images are RGB, (b, 3, h, w), in [0, 1]; masks are (b, 1, h, w), in [0, 1]; c channels of a feature map. Every loss is a scalar tensor, in float32
also under mixed precision.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from npbgpp.errors import InputError
from npbgpp.nets import load_features

SSIM_MIN_SIDE = 6
"""Shortest image side for SSIM, pixels: reflection padding by 5 pixels needs at least 6."""

VGG_MIN_SIDE = 16
"""Shortest image side for the VGG loss, pixels: four poolings halve it."""

_SSIM_RADIUS, _SSIM_SIGMA = 5, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2

_CONTENT_LAYERS = (1, 3, 6, 8, 11, 13, 15, 17, 20, 22, 24, 26, 29)
_STYLE_LAYERS = (3, 8, 17, 26, 35)
_STYLE_CONTENT_LAYER = 26
_CAFFE_MEAN = (103.939, 116.779, 123.680)
_RGBA_LAYERS = (3, 8)


def downscaled_l1(rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"], factor: int) -> Float[Tensor, ""]:
    """L1 loss after bilinear resizing of both images to floor(h / factor) x floor(w / factor) pixels, as in the released NPBG++.

    For sides not divisible by `factor` the step between samples is slightly larger than `factor`. Factor 1 is the plain L1 loss.

    Raises:
        InputError: factor is below 1 or larger than an image side.
    """
    height, width = rendering.shape[-2:]
    if not 1 <= factor <= min(height, width):
        raise InputError(f"l1 loss: expected a downscaling factor from 1 to {min(height, width)} for {height}x{width} images, got {factor}")
    size = (height // factor, width // factor)
    small, small_target = (F.interpolate(image.float(), size=size, mode="bilinear", align_corners=False) for image in (rendering, target))
    return F.l1_loss(small, small_target)


def ssim(rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Mean of ``ssim_map`` over each image."""
    return ssim_map(rendering, target).mean(dim=(1, 2, 3))


def ssim_loss(rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """1 - mean of ``ssim_map``, from 0 (equal images) to 2."""
    return 1 - ssim_map(rendering, target).mean()


def ssim_map(rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Structural similarity of each pixel and channel (Wang et al. 2004): 11x11 Gaussian window (sigma 1.5), data range 1, reflection padding.

    The same values as ``torchmetrics.functional.image.structural_similarity_index_measure``, with a separable window, which is several times faster.
    Computed in float32, or in float64 for float64 images; differentiable in both arguments.

    Raises:
        InputError: an image side is shorter than `SSIM_MIN_SIDE`.
    """
    height, width = rendering.shape[-2:]
    if min(height, width) < SSIM_MIN_SIDE:
        raise InputError(
            f"SSIM: expected images of at least {SSIM_MIN_SIDE}x{SSIM_MIN_SIDE} pixels, got {height}x{width}; use larger images"
        )
    dtype = torch.promote_types(rendering.dtype, torch.float32)
    a, b = rendering.to(dtype), target.to(dtype)
    # not in half precision: the variances are small differences of large numbers
    with torch.autocast(device_type=rendering.device.type, enabled=False):
        mean_a, mean_b, square_a, square_b, product = _window_means(torch.cat([a, b, a * a, b * b, a * b], 1)).split(3, 1)
        variance = (square_a - mean_a**2).clamp_min(0) + (square_b - mean_b**2).clamp_min(0)
        covariance = product - mean_a * mean_b
        similarity = (2 * mean_a * mean_b + _SSIM_C1) * (2 * covariance + _SSIM_C2)
        return similarity / ((mean_a**2 + mean_b**2 + _SSIM_C1) * (variance + _SSIM_C2))


def _window_means(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Gaussian-weighted means around every pixel, with reflection padding."""
    channels = maps.shape[1]
    offset = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, dtype=maps.dtype, device=maps.device)
    weights = torch.exp(-0.5 * (offset / _SSIM_SIGMA) ** 2)
    kernel = (weights / weights.sum()).expand(channels, 1, 1, -1)
    padded = F.pad(maps, [_SSIM_RADIUS] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel, groups=channels), kernel.transpose(2, 3), groups=channels)


def dice_score(mask: Float[Tensor, "b 1 h w"], target_mask: Float[Tensor, "b 1 h w"]) -> Float[Tensor, " b"]:
    """Dice coefficient 2 sum(m t) / (sum(m^2) + sum(t^2) + 1e-10) of each image (Milletari et al. 2016).

    From 0 to 1; 1 for equal binary masks, 0 for two empty masks.
    """
    mask, target_mask = mask.float(), target_mask.float()
    overlap = (mask * target_mask).sum(dim=(1, 2, 3))
    return 2 * overlap / ((mask.square() + target_mask.square()).sum(dim=(1, 2, 3)) + 1e-10)


def dice_loss(mask: Float[Tensor, "b 1 h w"], target_mask: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Mean over images of -log(dice + 1e-10): 0 for equal masks, 23.03 without overlap, also for two empty masks."""
    return -torch.log(dice_score(mask, target_mask) + 1e-10).mean()


@dataclass(frozen=True)
class StyleTerms:
    """Unweighted terms of style transfer, scalars."""

    content: Float[Tensor, ""]
    style: Float[Tensor, ""]


class VGGLoss(nn.Module):
    """Perceptual losses on activations of a frozen VGG-19 (Johnson et al. 2016; style: Gatys et al. 2016).

    The network has the weights of Caffe and 2x2 average pooling in place of max pooling; its input is 255 * image minus the mean colour of Caffe. That mean
    and the training images of Caffe are in the order blue, green, red, but NPBG and NPBG++ apply them to red, green, blue; this is kept, since the published
    loss factors depend on it. Layer numbers are indices in torchvision's `vgg19().features`.

    The parameters are frozen and should not go into checkpoints: keep the module outside of the state dict of the system.
    """

    mean: Tensor

    def __init__(self, weights: str | Path | Mapping[str, Tensor]) -> None:
        """Build the network.

        Args:
            weights: the file found by `find_backbone("vgg19_caffe")`, or its state dict.

        Raises:
            InputError: the weights cannot be read or belong to another network.
        """
        super().__init__()
        layers = load_features("vgg19_caffe", weights)
        self.layers = nn.ModuleList(nn.AvgPool2d(2) if isinstance(layer, nn.MaxPool2d) else layer for layer in layers).eval()
        self.register_buffer("mean", torch.tensor(_CAFFE_MEAN).view(1, 3, 1, 1) / 255, persistent=False)

    def forward(self, rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """Content loss: sum over 13 ReLU layers (1 to 29) of the mean absolute difference of the activations.

        Raises:
            InputError: an image side is shorter than `VGG_MIN_SIDE`.
        """
        pairs = zip(self._activations(rendering, _CONTENT_LAYERS), self._activations(target.detach(), _CONTENT_LAYERS), strict=True)
        return torch.stack([F.l1_loss(rendered.float(), expected.float()) for rendered, expected in pairs]).sum()

    @torch.no_grad()
    def style_grams(self, style_image: Float[Tensor, "1 3 h w"]) -> tuple[Float[Tensor, "1 _ _"], ...]:
        """Gram matrices of the style image at layers 3, 8, 17, 26, 35, for `style_terms`."""
        return tuple(_gram(features, mask=None) for features in self._activations(style_image, _STYLE_LAYERS))

    def style_terms(
        self,
        rendering: Float[Tensor, "b 3 h w"],
        target: Float[Tensor, "b 3 h w"],
        grams: tuple[Float[Tensor, "1 _ _"], ...],
        mask: Float[Tensor, "b 1 h w"] | None = None,
    ) -> StyleTerms:
        """Style transfer: mean squared difference at layer 26 (content), and of the Gram matrices, summed over five layers (style).

        Args:
            rendering: rendered images.
            target: images with the target content.
            grams: Gram matrices of the target style, from `style_grams`.
            mask: restricts the Gram matrices of the rendering to pixels whose mask, resized to the layer, exceeds 0.5; they are 0 without any.

        Raises:
            InputError: an image side is shorter than `VGG_MIN_SIDE`.
        """
        (content,) = self._activations(target.detach(), (_STYLE_CONTENT_LAYER,))
        features = dict(zip(_STYLE_LAYERS, self._activations(rendering, _STYLE_LAYERS), strict=True))
        rendered_grams = [_gram(layer_features, mask) for layer_features in features.values()]
        return StyleTerms(
            content=F.mse_loss(features[_STYLE_CONTENT_LAYER].float(), content.float()),
            style=torch.stack([F.mse_loss(gram, style.expand_as(gram)) for gram, style in zip(rendered_grams, grams, strict=True)]).sum(),
        )

    def _activations(self, images: Float[Tensor, "b 3 h w"], layers: tuple[int, ...]) -> Iterator[Float[Tensor, "b _ _ _"]]:
        # a generator, so that only one activation of the target is in memory at a time
        height, width = images.shape[-2:]
        if min(height, width) < VGG_MIN_SIDE:
            raise InputError(
                f"VGG loss: expected images of at least {VGG_MIN_SIDE}x{VGG_MIN_SIDE} pixels, got {height}x{width}; use larger crops"
            )
        features = (images - self.mean) * 255
        for index in range(layers[-1] + 1):
            features = self.layers[index](features)
            if index in layers:
                yield features


class RGBAPerceptualLoss(nn.Module):
    """Perceptual loss of NPCR on RGBA images: activations relu1_2 and relu2_2 (layers 3 and 8) of a frozen VGG-19, for colours and mattes.

    The network has the weights of torchvision; its input is the image without normalisation. Like `VGGLoss` it should not go into checkpoints.
    """

    def __init__(self, weights: str | Path | Mapping[str, Tensor]) -> None:
        """Build the first layers of the network.

        Args:
            weights: the file found by `find_backbone("vgg19")`, or its state dict.

        Raises:
            InputError: the weights cannot be read or belong to another network.
        """
        super().__init__()
        self.layers = load_features("vgg19", weights)[: _RGBA_LAYERS[-1] + 1].eval()

    def forward(self, rendering: Float[Tensor, "b 4 h w"], target: Float[Tensor, "b 4 h w"]) -> Float[Tensor, ""]:
        """Mean of ``colours`` for the colours and for the mattes as grey images."""
        mattes = (image[:, 3:].expand(-1, 3, -1, -1) for image in (rendering, target))
        return (self.colours(rendering[:, :3], target[:, :3]) + self.colours(*mattes)) / 2

    def colours(self, rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """Mean over both layers of the mean squared difference of the activations."""
        target, terms = target.detach(), []
        for index, layer in enumerate(self.layers):
            rendering, target = layer(rendering), layer(target)
            if index in _RGBA_LAYERS:
                terms.append(F.mse_loss(rendering.float(), target.float()))
        return torch.stack(terms).mean()


def _gram(features: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 _ _"] | None) -> Float[Tensor, "b c c"]:
    channels, height, width = features.shape[1:]
    # not in half precision, whose range the sums exceed
    with torch.autocast(device_type=features.device.type, enabled=False):
        flat = features.float().flatten(2)
        if mask is None:
            return flat @ flat.mT / (channels * height * width)
        kept = (F.interpolate(mask.float(), size=(height, width), mode="bilinear", align_corners=False) > 0.5).flatten(2)
        flat = flat * kept
        return flat @ flat.mT / (channels * kept.sum(dim=2, keepdim=True).clamp(min=1))
