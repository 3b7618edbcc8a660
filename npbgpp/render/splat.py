"""Descriptors of the winning points become feature images: one look-up per level, and gradients only for points that won a pixel.

Symbols: m compact rows (the points that won at least one pixel), c channels.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, embedding


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
