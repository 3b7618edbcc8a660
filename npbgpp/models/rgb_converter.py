"""Colours for looking at descriptors: descriptor (c numbers) -> RGB -> descriptor. Trained beside a system, never part of its image."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


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
