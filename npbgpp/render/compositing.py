"""Layers of colour and opacity become one picture, front to back (Porter and Duff, "Compositing digital images", 1984)."""

import torch
from jaxtyping import Float
from torch import Tensor


class _Cut(torch.autograd.Function):
    """Cuts to [0, 1]. Values outside keep the gradient that leads back inside: a plain cut has none there, and a layer that begins clear stays clear."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        leads_away = ((values < 0) & (gradient > 0)) | ((values > 1) & (gradient < 0))  # steps go against the gradient
        return gradient.masked_fill(leads_away, 0.0)


def over(layers: Float[Tensor, "b l 4 h w"]) -> Float[Tensor, "b 4 h w"]:
    """Lays each layer over those behind it.

    Args:
        layers: straight colours and opacities, front to back; opacities are cut to [0, 1], and those outside learn only to come back.

    Returns:
        Colours weighted by what is seen of them, not divided by the opacity, and the opacity. A single layer is returned as it is.
    """
    if layers.shape[1] == 1:
        return layers[:, 0]
    through = torch.ones_like(layers[:, 0, 3:])  # share of the light that comes from behind the layers so far
    colour = torch.zeros_like(layers[:, 0, :3])
    for layer in layers.unbind(1):
        opacity = _Cut.apply(layer[:, 3:])
        colour = colour + through * opacity * layer[:, :3]
        through = through * (1 - opacity)
    return torch.cat([colour, 1 - through], 1)
