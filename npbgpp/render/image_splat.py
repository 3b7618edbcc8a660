"""Pixels pushed along an optical flow: forward warping, differentiable in colours and flow (softmax splatting; Niklaus and Liu, CVPR 2020).

Every pixel lands between four others and is shared among them bilinearly; what falls off the image is dropped. Symbols: b images of c channels.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def splat_sum(image: Float[Tensor, "b c h w"], flow: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b c h w"]:
    """Pixels added up where they land (summation splatting).

    Args:
        image: any values.
        flow: how far each pixel moves: right, down, in pixels. Pixels whose flow is not finite land nowhere.
    """
    batch, channels, height, width = image.shape
    row, column = torch.meshgrid(
        torch.arange(height, device=flow.device, dtype=flow.dtype), torch.arange(width, device=flow.device, dtype=flow.dtype), indexing="ij"
    )
    lands = torch.isfinite(flow).all(1)
    # far beyond the borders one place is as good as another, and integers end somewhere
    x = torch.where(lands, column + flow[:, 0], -2.0).clamp(-2, width + 1)
    y = torch.where(lands, row + flow[:, 1], -2.0).clamp(-2, height + 1)
    left, top = x.detach().floor(), y.detach().floor()
    start = torch.arange(batch, device=flow.device)[:, None, None] * (height * width)
    pixels = image.permute(0, 2, 3, 1).reshape(-1, channels)
    out = pixels.new_zeros(batch * height * width, channels)
    for across in (0, 1):
        for down in (0, 1):
            u, v = left + across, top + down
            share = (1 - (x - u).abs()) * (1 - (y - v).abs())
            inside = ((u >= 0) & (u < width) & (v >= 0) & (v < height)).flatten()
            place = (start + v.long() * width + u.long()).flatten()[inside]
            out = out.index_add(0, place, pixels[inside] * share.flatten()[inside, None])
    return out.view(batch, height, width, channels).permute(0, 3, 1, 2)


def splat_mean(
    image: Float[Tensor, "b c h w"], flow: Float[Tensor, "b 2 h w"], importance: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, "b c h w"]:
    """The mean of the pixels that land in each place, by share; 0 where none does.

    Args:
        image: any values.
        flow: see ``splat_sum``.
        importance: pixels that land together count by its exponential (softmax splatting); None: equally (average splatting).
    """
    # the largest exponent of an image is 0: it cancels, and nothing overflows
    weight = torch.ones_like(image[:, :1]) if importance is None else (importance - importance.detach().amax((1, 2, 3), keepdim=True)).exp()
    added = splat_sum(torch.cat([image * weight, weight], 1), flow)
    total = added[:, -1:]
    return added[:, :-1] / torch.where(total == 0, 1.0, total)
