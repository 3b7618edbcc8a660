"""A small encoder that is trained from random weights."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

CHANNELS = (16, 24, 40, 64, 96)


class PlainEncoder(nn.Module):
    """Five stages of two 3x3 convolutions with leaky ReLU; the first one of a stage halves the size, the second one is residual.

    Without normalisation, so that an image has the same features in training and evaluation, alone and in any batch. On CPUs its dense convolutions are
    faster than the depthwise ones of mobile networks.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        self.channels = tuple(channels)
        inputs = (3, *self.channels)
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in zip(inputs, self.channels, strict=False)
        )
        self.same = nn.ModuleList(nn.Conv2d(count, count, 3, padding=1) for count in self.channels)
        self.activation = nn.LeakyReLU(inplace=True)
        for conv in (*self.down, *self.same):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="leaky_relu")
            nn.init.zeros_(conv.bias)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Returns maps of strides 2, 4, 8, 16 and 32 of images whose sides are multiples of 32."""
        maps = []
        for down, same in zip(self.down, self.same, strict=True):
            x = self.activation(down(x))
            x = x + self.activation(same(x))
            maps.append(x)
        return maps
