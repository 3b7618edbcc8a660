"""Feature images from rasterized points: descriptors of the nearest points at several scales, a background feature and a mask channel.

One lookup per level; only points that won a pixel get gradients. Symbols: m descriptors of the points that won at least one pixel, c channels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from npbgpp.errors import InputError
from npbgpp.kernels.rasterization import Level, look_up
from npbgpp.points.front_points import FrontPoints


def feature_table(descriptors: Float[Tensor, "m c"], background: Float[Tensor, "1 c 1 1"]) -> Float[Tensor, "m1 c1"]:
    """Lookup table of ``feature_image``: row 0 is the background with mask 0, row k + 1 is descriptor k with mask 1."""
    channels = descriptors.shape[1]
    table = descriptors.new_empty(len(descriptors) + 1, channels + 1)
    table[0, :channels], table[0, channels] = background.flatten(), 0.0
    table[1:, :channels] = descriptors
    table[1:, channels] = 1.0
    return table


def feature_image(row: Int[Tensor, "b h w"], table: Float[Tensor, "m1 c1"], supersampling: int = 1) -> Float[Tensor, "b c1 h2 w2"]:
    """Feature image and coverage mask of one level.

    Args:
        row: descriptor of each cell, -1 for empty cells.
        table: see ``feature_table``.
        supersampling: cells along one side of a pixel; the features of its covered cells are averaged.

    Returns:
        c feature channels and, last, the mask: 1 where any cell of the pixel is covered, else 0; in channels-last memory, as the lookup yields it and the
        decoder prefers it.
    """
    return _averaged(look_up(row, table).permute(0, 3, 1, 2), table, supersampling)


def blended_image(front: FrontPoints, table: Float[Tensor, "m1 c1"], supersampling: int = 1) -> Float[Tensor, "b c1 h2 w2"]:
    """As ``feature_image``, of several points per cell."""
    image = torch.stack(
        [weight[:, None] * look_up(row, table).permute(0, 3, 1, 2) for row, weight in zip(front.rows, front.weights, strict=True)]
    )
    return _averaged(image.sum(0), table, supersampling)


def _averaged(image: Float[Tensor, "b c1 h w"], table: Float[Tensor, "m1 c1"], supersampling: int) -> Float[Tensor, "b c1 h2 w2"]:
    """Features of pixels from those of their cells."""
    if supersampling == 1:
        return image
    image = avg_pool2d(image * image[:, -1:], supersampling)
    coverage = image[:, -1:]
    return torch.where(coverage > 0, image / torch.where(coverage > 0, coverage, 1.0), table[0][:, None, None])


class FeaturePyramid(nn.Module):
    """Feature images of the nearest points at several scales, the input of the decoder.

    Args:
        descriptor_dim: c.
        scales: size of each level relative to the image, finest first.
        ss_scale: supersampling of each level.
        learnable: train the background feature.
        cat_mask: append the coverage mask as a channel.
        invert_mask_values: append 1 - mask instead (the original inverted the features, which no release uses).

    Raises:
        InputError: ``ss_scale`` of another length than ``scales``, or values that are not positive.
    """

    def __init__(
        self,
        *,
        descriptor_dim: int,
        scales: Sequence[float] = (1.0, 0.5, 0.25, 0.125, 0.0625),
        ss_scale: Sequence[int] = (1, 1, 1, 1, 1),
        learnable: bool = False,
        cat_mask: bool = True,
        invert_mask_values: bool = False,
    ) -> None:
        super().__init__()
        if len(scales) != len(ss_scale) or not scales:
            raise InputError(f"system.rasterizer.ss_scale: expected one entry per scale ({len(scales)}), got {list(ss_scale)}")
        for key, values in (("scales", scales), ("ss_scale", ss_scale)):
            if any(v <= 0 for v in values):
                raise InputError(f"system.rasterizer.{key}: expected positive numbers, got {list(values)}")
        self.levels = tuple(Level(float(s), int(ss)) for s, ss in zip(scales, ss_scale, strict=True))
        self.cat_mask, self.invert_mask_values = cat_mask, invert_mask_values
        self.bg_feature = nn.Parameter(torch.rand(1, descriptor_dim, 1, 1), requires_grad=learnable)

    def forward(
        self, rows: Sequence[Int[Tensor, "b _ _"]], descriptors: Float[Tensor, "m c"], front: Sequence[FrontPoints] = ()
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Pyramid of (b, c + 1, h_k, w_k) images (c channels without ``cat_mask``) from the descriptor row of each cell of each level.

        With ``front``, from the rows of several points per cell of each level.
        """
        table = feature_table(descriptors, self.bg_feature)
        if front:
            return [self._with_mask(blended_image(f, table, level.supersampling)) for f, level in zip(front, self.levels, strict=True)]
        return [self._with_mask(feature_image(row, table, level.supersampling)) for row, level in zip(rows, self.levels, strict=True)]

    def empty(self, image_size: tuple[int, int], batch: int = 1) -> list[Float[Tensor, "b _ _ _"]]:
        """Pyramid without any points."""
        height, width = image_size
        pyramid = []
        for level in self.levels:
            size = (batch, int(level.scale * height), int(level.scale * width))
            features = self.bg_feature.expand(size[0], -1, *size[1:])
            pyramid.append(self._with_mask(torch.cat([features, features.new_zeros(size[0], 1, *size[1:])], 1)))
        return pyramid

    def from_image(
        self,
        features: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b 1 h w"] | None,
        corrupt: bool,
        draws: Sequence[Float[Tensor, "b 1 _ _"]] | None = None,
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Pyramid of a dense feature image: nearest pixels at each level, background outside of ``mask``.

        Args:
            features: one feature per pixel.
            mask: valid pixels; None for all.
            corrupt: drop pixels with probability scale / 2, most of them at the finest level.
            draws: uniform random numbers for ``corrupt``, one image per level; None samples them.
        """
        size, pyramid = features.shape[-2:], []
        for k, level in enumerate(self.levels):
            shape = (int(level.scale * size[0]), int(level.scale * size[1]))
            resized = interpolate(features, shape, mode="nearest")
            kept = torch.ones_like(resized[:, :1]) if mask is None else interpolate(mask.to(features.dtype), shape, mode="nearest")
            if corrupt:
                draw = torch.rand_like(kept) if draws is None else draws[k]
                kept = kept * (draw > level.scale / 2)
            pyramid.append(self._with_mask(torch.cat([torch.where(kept > 0, resized, self.bg_feature), kept], 1)))
        return pyramid

    def _with_mask(self, image: Float[Tensor, "b c1 h w"]) -> Float[Tensor, "b _ h w"]:
        """Drops or inverts the mask channel, as configured."""
        if not self.cat_mask:
            return image[:, :-1]
        return torch.cat([image[:, :-1], 1 - image[:, -1:]], 1) if self.invert_mask_values else image


class RGBConverter(nn.Module):
    """Linear autoencoder between descriptors and colours that visualises descriptors; trained beside a system, not part of its image.

    Args:
        feature_dim: c, channels of a descriptor.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(feature_dim, 3)
        self.lin2 = nn.Linear(3, feature_dim)

    def forward(self, descriptors: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch 3"]:
        """Returns 0.9 sigmoid(lin1(descriptors)): RGB in (0, 0.9), darker than a white background."""
        return 0.9 * torch.sigmoid(self.lin1(descriptors))

    def reconstruct(self, rgb: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch c"]:
        """Returns lin2(rgb), the reconstructed descriptors."""
        return self.lin2(rgb)
