"""The multi-scale feature image that the refiner reads: levels, background feature, mask channel.

Holds one weight, ``bg_feature``, under the name it has in released checkpoints.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from npbgpp.errors import InputError
from npbgpp.render.rasterize import Level
from npbgpp.render.splat import feature_table, splat


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
