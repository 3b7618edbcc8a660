"""The layers that radiance fields begin with: perceptrons that read their input again half-way (NeRF; Mildenhall et al., ECCV 2020, figure 7).

They are registered in the field itself as ``<prefix>_1``, ``<prefix>_2``, ..., so that weights have the names that nerf_pl and nsff_pl gave them.
Symbols: n points, c channels.
"""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError


def check_sizes(skips: Sequence[int], depth: int, least: dict[str, tuple[int, int]]) -> None:
    """Raises InputError for a size below its least value (``least`` has both by name), or a skip that is no layer after the first."""
    for name, (number, smallest) in least.items():
        if number < smallest:
            raise InputError(f"{name} of the radiance field: expected {smallest} or more, got {number}")
    if any(not 0 < skip < depth for skip in skips):
        raise InputError(f"skips of the radiance field: expected layers from 1 to {depth - 1} (depth {depth}), got {list(skips)}")


def add_trunk(field: nn.Module, prefix: str, channels: int, width: int, depth: int, skips: Collection[int]) -> None:
    """Registers ``depth`` layers of ``width`` channels; those in ``skips``, counted from 0, read the ``channels`` of the input again."""
    for k in range(depth):
        inputs = (width if k else 0) + (channels if k == 0 or k in skips else 0)
        field.add_module(f"{prefix}_{k + 1}", nn.Sequential(nn.Linear(inputs, width), nn.ReLU(inplace=True)))


def through_trunk(
    field: nn.Module, prefix: str, embedded: Float[Tensor, "n c"], depth: int, skips: Collection[int]
) -> Float[Tensor, "n w"]:
    """What the last of the layers says of an input."""
    hidden = embedded
    for k in range(depth):
        layer = field.get_submodule(f"{prefix}_{k + 1}")
        hidden = layer(torch.cat([embedded, hidden], -1) if k in skips else hidden)
    return hidden


# ----------------------------------------------------------------------
# Colour and density of every point of a scene, as a network (NeRF; Mildenhall et al., ECCV 2020, section 3 and figure 7).


def embed(x: Float[Tensor, "*batch c"], frequencies: int) -> Float[Tensor, "*batch e"]:
    """x, then sin(2^k x) and cos(2^k x) for k = 0 .. frequencies - 1: the positional encoding (section 5.1) without pi and with x itself.

    Returns:
        e = c (1 + 2 frequencies) channels; for each k all c sines come before the cosines. With no frequencies x itself.
    """
    phase = x[..., None, :] * 2.0 ** torch.arange(frequencies, device=x.device, dtype=x.dtype)[:, None]
    return torch.cat([x, torch.stack([phase.sin(), phase.cos()], -2).flatten(-3)], -1)


class RadianceField(nn.Module):
    """Raw density and colour of points seen from directions.

    Args:
        depth: layers before the density.
        width: channels of each of them; the layer that reads the direction has half as many.
        skips: layers, counted from 0, that read the embedded point again beside the output of the layer before.
        xyz_frequencies: frequencies in the embedding of a point.
        dir_frequencies: frequencies in the embedding of a direction.

    Raises:
        InputError: a size that makes no network, or a skip that is no layer after the first.
    """

    def __init__(
        self,
        *,
        depth: int = 8,
        width: int = 256,
        skips: Sequence[int] = (4,),
        xyz_frequencies: int = 10,
        dir_frequencies: int = 4,
    ) -> None:
        super().__init__()
        least = {"depth": (depth, 1), "width": (width, 2), "xyz_frequencies": (xyz_frequencies, 0), "dir_frequencies": (dir_frequencies, 0)}
        check_sizes(skips, depth, least)
        self.depth, self.skips = depth, frozenset(skips)
        self.xyz_frequencies, self.dir_frequencies = xyz_frequencies, dir_frequencies
        xyz_channels, dir_channels = 3 + 6 * xyz_frequencies, 3 + 6 * dir_frequencies
        add_trunk(self, "xyz_encoding", xyz_channels, width, depth, self.skips)
        self.xyz_encoding_final = nn.Linear(width, width)
        self.dir_encoding = nn.Sequential(nn.Linear(width + dir_channels, width // 2), nn.ReLU(inplace=True))
        self.sigma = nn.Linear(width, 1)
        self.rgb = nn.Sequential(nn.Linear(width // 2, 3), nn.Sigmoid())

    def density(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Raw density of points, per unit of length: negative numbers are empty space, too."""
        return self.sigma(self._hidden(xyz))[:, 0]

    def forward(self, xyz: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """Raw density, see ``density``, and RGB in 0..1 of points looked at along directions (any length; nerf_pl's weights for
        forward-facing scenes want them as they are in normalised device coordinates)."""
        hidden = self._hidden(xyz)
        seen = torch.cat([self.xyz_encoding_final(hidden), embed(directions, self.dir_frequencies)], -1)
        return self.sigma(hidden)[:, 0], self.rgb(self.dir_encoding(seen))

    def _hidden(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n c"]:
        return through_trunk(self, "xyz_encoding", embed(xyz, self.xyz_frequencies), self.depth, self.skips)
