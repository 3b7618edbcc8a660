"""Layers of colour and opacity become one picture, front to back (Porter and Duff, "Compositing digital images", 1984)."""

import torch
from jaxtyping import Float
from torch import Tensor


def over(layers: Float[Tensor, "b l 4 h w"]) -> Float[Tensor, "b 4 h w"]:
    """Lays each layer over those behind it.

    Args:
        layers: straight colours and opacities, front to back; opacities are cut to [0, 1].

    Returns:
        Colours weighted by what is seen of them, not divided by the opacity, and the opacity. A single layer is returned as it is.
    """
    if layers.shape[1] == 1:
        return layers[:, 0]
    through = torch.ones_like(layers[:, 0, 3:])  # share of the light that comes from behind the layers so far
    colour = torch.zeros_like(layers[:, 0, :3])
    for layer in layers.unbind(1):
        opacity = layer[:, 3:].clamp(0, 1)
        colour = colour + through * opacity * layer[:, :3]
        through = through * (1 - opacity)
    return torch.cat([colour, 1 - through], 1)
