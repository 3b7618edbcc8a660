"""Image losses, unweighted.

Symbols: images are RGB, (b, 3, h, w), in [0, 1]; masks are (b, 1, h, w), in [0, 1]; c is the number of channels of a feature map. Every
loss is a scalar tensor, float32 also under mixed precision. The weights of the terms are the business of whoever adds them up.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from npbgpp.errors import InputError
from npbgpp.nets import load_features

SSIM_MIN_SIDE = 6
"""Shortest image side in pixels for SSIM: half the 11 px window is mirrored at the border, which needs more pixels than it mirrors."""

VGG_MIN_SIDE = 16
"""Shortest image side in pixels for the VGG loss: four poolings halve it."""

_SSIM_RADIUS, _SSIM_SIGMA = 5, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2

_CONTENT_LAYERS = (1, 3, 6, 8, 11, 13, 15, 17, 20, 22, 24, 26, 29)
_STYLE_LAYERS = (3, 8, 17, 26, 35)
_STYLE_CONTENT_LAYER = 26
_CAFFE_MEAN = (103.939, 116.779, 123.680)
_RGBA_LAYERS = (3, 8)


def downscaled_l1(rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"], factor: int) -> Float[Tensor, ""]:
    """Mean absolute difference after both images are shrunk bilinearly to floor(h / factor) x floor(w / factor) pixels.

    The shrunk size is rounded down and the images are resized to exactly that size, so for sides that `factor` does not divide the step
    between samples is a little larger than `factor` (NPBG++ of Rakhimov et al. 2022, released code). Factor 1 is the plain L1 difference.

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
    """Structural similarity of each image: 11x11 Gaussian window (sigma 1.5), data range 1, mirrored border, mean over the whole map.

    Wang et al. 2004. Computed in float32, or in float64 for float64 images; differentiable in both arguments.

    Raises:
        InputError: an image side is shorter than `SSIM_MIN_SIDE`.
    """
    _check_ssim_size(rendering)
    dtype = torch.promote_types(rendering.dtype, torch.float32)
    # The variances are small differences of large numbers: half precision leaves nothing of them.
    with torch.autocast(device_type=rendering.device.type, enabled=False):
        values = structural_similarity_index_measure(rendering.to(dtype), target.to(dtype), data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values


def ssim_map(rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Structural similarity of each pixel and channel: the map whose mean `ssim` is. Raises InputError as `ssim`."""
    _check_ssim_size(rendering)
    dtype = torch.promote_types(rendering.dtype, torch.float32)
    with torch.autocast(device_type=rendering.device.type, enabled=False):
        return _similarity(rendering.to(dtype), target.to(dtype))


def ssim_loss(rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """1 - mean SSIM, from 0 (equal images) to 2. Raises InputError as `ssim`.

    The same number as `1 - ssim(...).mean()` with a window that is applied along rows, then columns: a training step calls this, and the
    library's two-dimensional window takes several times longer.
    """
    _check_ssim_size(rendering)
    dtype = torch.promote_types(rendering.dtype, torch.float32)
    with torch.autocast(device_type=rendering.device.type, enabled=False):
        similarity = _similarity(rendering.to(dtype), target.to(dtype))
    return 1 - similarity.mean()


def _similarity(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    mean_a, mean_b, square_a, square_b, product = _window_means(torch.cat([a, b, a * a, b * b, a * b], 1)).split(3, 1)
    variance = (square_a - mean_a**2).clamp_min(0) + (square_b - mean_b**2).clamp_min(0)
    covariance = product - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + _SSIM_C1) * (2 * covariance + _SSIM_C2)
    return similarity / ((mean_a**2 + mean_b**2 + _SSIM_C1) * (variance + _SSIM_C2))


def _check_ssim_size(image: Float[Tensor, "b 3 h w"]) -> None:
    height, width = image.shape[-2:]
    if min(height, width) < SSIM_MIN_SIDE:
        raise InputError(
            f"SSIM: expected images of at least {SSIM_MIN_SIDE}x{SSIM_MIN_SIDE} pixels, got {height}x{width}; use larger images"
        )


def _window_means(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Gaussian means around every pixel, the border mirrored."""
    channels = maps.shape[1]
    offset = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, dtype=maps.dtype, device=maps.device)
    weights = torch.exp(-0.5 * (offset / _SSIM_SIGMA) ** 2)
    kernel = (weights / weights.sum()).expand(channels, 1, 1, -1)
    padded = F.pad(maps, [_SSIM_RADIUS] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel, groups=channels), kernel.transpose(2, 3), groups=channels)


def dice_score(mask: Float[Tensor, "b 1 h w"], target_mask: Float[Tensor, "b 1 h w"]) -> Float[Tensor, " b"]:
    """Soft overlap 2 sum(m t) / (sum(m^2) + sum(t^2) + 1e-10) of each image (Milletari et al. 2016).

    From 0 to 1, equal binary masks have 1; two empty masks have 0.
    """
    predicted, wanted = mask.float(), target_mask.float()
    overlap = (predicted * wanted).sum(dim=(1, 2, 3))
    return 2 * overlap / ((predicted.square() + wanted.square()).sum(dim=(1, 2, 3)) + 1e-10)


def dice_loss(mask: Float[Tensor, "b 1 h w"], target_mask: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Mean over images of -log(dice + 1e-10): 0 for equal masks, 23.03 where nothing overlaps, two empty masks included."""
    return -torch.log(dice_score(mask, target_mask) + 1e-10).mean()


@dataclass(frozen=True)
class StyleTerms:
    """Unweighted terms of a style transfer, scalars."""

    content: Float[Tensor, ""]
    style: Float[Tensor, ""]


class VGGLoss(nn.Module):
    """Perceptual losses on the activations of a frozen VGG-19 (Johnson et al. 2016; Gatys et al. 2016 for the style).

    The network is that of Caffe with its max-poolings replaced by 2x2 average poolings. It takes 255 * image minus Caffe's mean colour.
    That mean is in the order blue, green, red, and so are the images that Caffe's weights were trained on; NPBG and NPBG++ subtract it from
    RED, green, blue and feed that. This is kept: the published factors of the loss terms belong to it. Layer numbers are indices in
    torchvision's `vgg19().features`.

    The parameters are frozen and should not go into checkpoints: hold the module outside of the state dict of the system that uses it.
    """

    mean: Tensor

    def __init__(self, weights: str | Path | Mapping[str, Tensor]) -> None:
        """Build the network.

        Args:
            weights: the file that `find_backbone("vgg19_caffe")` finds, or its state dict.

        Raises:
            InputError: the weights cannot be read or are those of another network.
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
        return torch.stack([F.l1_loss(ours.float(), wanted.float()) for ours, wanted in pairs]).sum()

    @torch.no_grad()
    def style_grams(self, style_image: Float[Tensor, "1 3 h w"]) -> tuple[Float[Tensor, "1 _ _"], ...]:
        """Gram matrices of the style image at layers 3, 8, 17, 26, 35: compute them once, `style_terms` takes them."""
        return tuple(_gram(features, mask=None) for features in self._activations(style_image, _STYLE_LAYERS))

    def style_terms(
        self,
        rendering: Float[Tensor, "b 3 h w"],
        target: Float[Tensor, "b 3 h w"],
        grams: tuple[Float[Tensor, "1 _ _"], ...],
        mask: Float[Tensor, "b 1 h w"] | None = None,
    ) -> StyleTerms:
        """Style mode: mean squared difference at layer 26 (content), and of the Gram matrices, summed over their five layers (style).

        Args:
            rendering: images to judge.
            target: images with the wanted content.
            grams: of the wanted style, from `style_grams`.
            mask: where given, the Gram matrices of the rendering see only pixels whose mask, resized to the layer, exceeds 0.5. An image
                without such pixels has the Gram matrix 0.

        Raises:
            InputError: an image side is shorter than `VGG_MIN_SIDE`.
        """
        (wanted,) = self._activations(target.detach(), (_STYLE_CONTENT_LAYER,))
        features = dict(zip(_STYLE_LAYERS, self._activations(rendering, _STYLE_LAYERS), strict=True))
        ours = [_gram(layer_features, mask) for layer_features in features.values()]
        return StyleTerms(
            content=F.mse_loss(features[_STYLE_CONTENT_LAYER].float(), wanted.float()),
            style=torch.stack([F.mse_loss(gram, style.expand_as(gram)) for gram, style in zip(ours, grams, strict=True)]).sum(),
        )

    def _activations(self, images: Float[Tensor, "b 3 h w"], wanted: tuple[int, ...]) -> Iterator[Float[Tensor, "b _ _ _"]]:
        # A generator: rendering and target walk through the network side by side, and only one activation of the target is held at a time.
        height, width = images.shape[-2:]
        if min(height, width) < VGG_MIN_SIDE:
            raise InputError(
                f"VGG loss: expected images of at least {VGG_MIN_SIDE}x{VGG_MIN_SIDE} pixels, got {height}x{width}; use larger crops"
            )
        features = (images - self.mean) * 255
        for index in range(wanted[-1] + 1):
            features = self.layers[index](features)
            if index in wanted:
                yield features


class RGBAPerceptualLoss(nn.Module):
    """Differences of colours and mattes on the first activations of a frozen VGG-19 (NPCR): layers 3 and 8, which are relu1_2 and relu2_2.

    The network is torchvision's; it takes images as they are, neither shifted nor scaled. Like `VGGLoss` it should not go into checkpoints.
    """

    def __init__(self, weights: str | Path | Mapping[str, Tensor]) -> None:
        """Build the part of the network that is used.

        Args:
            weights: the file that `find_backbone("vgg19")` finds, or its state dict.

        Raises:
            InputError: the weights cannot be read or are those of another network.
        """
        super().__init__()
        self.layers = load_features("vgg19", weights)[: _RGBA_LAYERS[-1] + 1].eval()

    def forward(self, rendering: Float[Tensor, "b 4 h w"], target: Float[Tensor, "b 4 h w"]) -> Float[Tensor, ""]:
        """Mean over both layers, and over colour and matte (as a grey picture), of the mean squared difference of the activations."""
        grey = (image[:, 3:].expand(-1, 3, -1, -1) for image in (rendering, target))
        return (self.colours(rendering[:, :3], target[:, :3]) + self.colours(*grey)) / 2

    def colours(self, rendering: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """Mean over both layers of the mean squared difference of the activations."""
        ours, wanted, terms = rendering, target.detach(), []
        for index, layer in enumerate(self.layers):
            ours, wanted = layer(ours), layer(wanted)
            if index in _RGBA_LAYERS:
                terms.append(F.mse_loss(ours.float(), wanted.float()))
        return torch.stack(terms).mean()


def _gram(features: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 _ _"] | None) -> Float[Tensor, "b c c"]:
    channels, height, width = features.shape[1:]
    # The sums of squares exceed the range of half precision.
    with torch.autocast(device_type=features.device.type, enabled=False):
        flat = features.float().flatten(2)
        if mask is None:
            return flat @ flat.mT / (channels * height * width)
        kept = (F.interpolate(mask.float(), size=(height, width), mode="bilinear", align_corners=False) > 0.5).flatten(2)
        flat = flat * kept
        return flat @ flat.mT / (channels * kept.sum(dim=2, keepdim=True).clamp(min=1))
