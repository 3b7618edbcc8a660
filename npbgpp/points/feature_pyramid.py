"""Descriptors of the winning points become feature images: one look-up per level, and gradients only for points that won a pixel.

Symbols: m compact rows (the points that won at least one pixel), c channels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, embedding, interpolate

from npbgpp.errors import InputError
from npbgpp.kernels import Level


def feature_table(descriptors: Float[Tensor, "m c"], background: Float[Tensor, "1 c 1 1"]) -> Float[Tensor, "m1 c1"]:
    """What cells can show: row 0 is an empty one (background, mask 0), row k + 1 is descriptor k with mask 1. One table serves all levels."""
    channels = descriptors.shape[1]
    table = descriptors.new_empty(len(descriptors) + 1, channels + 1)
    table[0, :channels], table[0, channels] = background.flatten(), 0.0
    table[1:, :channels] = descriptors
    table[1:, channels] = 1.0
    return table


def splat(row: Int[Tensor, "b h w"], table: Float[Tensor, "m1 c1"], supersampling: int = 1) -> Float[Tensor, "b c1 h2 w2"]:
    """Feature image and coverage of one level.

    Args:
        row: descriptor that each cell shows, -1 where the cell is empty.
        table: see ``feature_table``.
        supersampling: cells along one side of a pixel; the features of its covered cells are averaged.

    Returns:
        c feature channels and, last, the coverage mask: 1 where any cell of the pixel is covered, else 0. Laid out channels-last in memory, as one look-up
        gives it and the refiner likes it.
    """
    # empty cells are a row like any other, so one look-up serves all and the background's gradient needs no mask
    image = embedding(row + 1, table).permute(0, 3, 1, 2)
    if supersampling == 1:
        return image
    image = avg_pool2d(image * image[:, -1:], supersampling)
    share = image[:, -1:]
    return torch.where(share > 0, image / torch.where(share > 0, share, 1.0), table[0][:, None, None])


def splat_reference(
    row: Int[Tensor, "b h w"], descriptors: Float[Tensor, "m c"], background: Float[Tensor, "1 c 1 1"], supersampling: int = 1
) -> Float[Tensor, "b c1 h2 w2"]:
    """The same, pixel by pixel. For tests."""
    b, h, w = row.shape
    images, masks = [], []
    for k in range(b):
        for i in range(0, h, supersampling):
            for j in range(0, w, supersampling):
                block = row[k, i : i + supersampling, j : j + supersampling].flatten().tolist()
                seen = [descriptors[r] for r in block if r >= 0]
                images.append(sum(seen[1:], seen[0]) / len(seen) if seen else background[0, :, 0, 0])
                masks.append(float(bool(seen)))
    size = (b, h // supersampling, w // supersampling)
    features = torch.stack(images).view(*size, -1).permute(0, 3, 1, 2)
    return torch.cat([features, torch.tensor(masks).view(*size)[:, None].to(features)], 1)


# ----------------------------------------------------------------------
# The multi-scale feature image that the refiner reads: levels, background feature, mask channel.


class NearestScatterRasterizer(nn.Module):
    """Looks up the descriptors of the nearest points at several scales.

    Args:
        descriptor_dim: channels of a descriptor.
        scales: raster size of each level as a share of the image, finest first.
        ss_scale: supersampling of each level.
        learnable: train the background feature.
        cat_mask: append the coverage mask as a channel.
        invert_mask_values: append 1 - mask instead (the original inverted the features here, which no release uses).
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

    def forward(self, rows: Sequence[Int[Tensor, "b _ _"]], descriptors: Float[Tensor, "m c"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Pyramid of (b, c + 1, h_k, w_k) images (c channels without ``cat_mask``) from the row shown by each cell of each level."""
        table = feature_table(descriptors, self.bg_feature)
        pyramid = []
        for row, level in zip(rows, self.levels, strict=True):
            pyramid.append(self._masked(splat(row, table, level.supersampling)))
        return pyramid

    def empty(self, image_size: tuple[int, int], batch: int = 1) -> list[Float[Tensor, "b _ _ _"]]:
        """The pyramid that no point falls into."""
        height, width = image_size
        pyramid = []
        for level in self.levels:
            size = (batch, int(level.scale * height), int(level.scale * width))
            features = self.bg_feature.expand(size[0], -1, *size[1:])
            pyramid.append(self._masked(torch.cat([features, features.new_zeros(size[0], 1, *size[1:])], 1)))
        return pyramid

    def of_image(
        self,
        features: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b 1 h w"] | None,
        corrupt: bool,
        draws: Sequence[Float[Tensor, "b 1 _ _"]] | None = None,
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """The pyramid in which every pixel shows its own feature: nearest pixels at each level, background outside of ``mask``.

        Args:
            features: one feature per pixel.
            mask: pixels that show theirs; None are all.
            corrupt: drop pixels with probability scale / 2, most of them at the finest level.
            draws: uniform numbers that decide which, one image per level; None draws them.
        """
        size, pyramid = features.shape[-2:], []
        for k, level in enumerate(self.levels):
            shape = (int(level.scale * size[0]), int(level.scale * size[1]))
            resized = interpolate(features, shape, mode="nearest")
            kept = torch.ones_like(resized[:, :1]) if mask is None else interpolate(mask.to(features.dtype), shape, mode="nearest")
            if corrupt:
                draw = torch.rand_like(kept) if draws is None else draws[k]
                kept = kept * (draw > level.scale / 2)
            pyramid.append(self._masked(torch.cat([torch.where(kept > 0, resized, self.bg_feature), kept], 1)))
        return pyramid

    def _masked(self, image: Float[Tensor, "b c1 h w"]) -> Float[Tensor, "b _ h w"]:
        """Drops or inverts the mask channel, as configured."""
        if not self.cat_mask:
            return image[:, :-1]
        return torch.cat([image[:, :-1], 1 - image[:, -1:]], 1) if self.invert_mask_values else image


# ----------------------------------------------------------------------
# Colours for looking at descriptors: descriptor (c numbers) -> RGB -> descriptor. Trained beside a system, never part of its image.


class RGBConverter(nn.Module):
    """Two linear maps between descriptors and colours, each applied to the last axis.

    Args:
        feature_dim: c, numbers per descriptor.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(feature_dim, 3)
        self.lin2 = nn.Linear(3, feature_dim)

    def forward(self, descriptors: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch 3"]:
        """Returns 0.9 sigmoid(lin1(descriptors)): RGB in (0, 0.9), so that no point is as bright as a white background."""
        return 0.9 * torch.sigmoid(self.lin1(descriptors))

    def reconstruct(self, rgb: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch c"]:
        """Returns lin2(rgb), the descriptors that the colours stand for."""
        return self.lin2(rgb)
