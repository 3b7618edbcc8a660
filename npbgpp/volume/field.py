"""Radiance fields as MLPs (NeRF; Mildenhall et al., ECCV 2020, sections 3 and 5.1, figure 7).

Layers are registered in the field as ``<prefix>_1``, ``<prefix>_2``, ..., the parameter names of nerf_pl and nsff_pl. Symbols: n points, c channels.
"""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError


def check_sizes(skips: Sequence[int], depth: int, least: dict[str, tuple[int, int]]) -> None:
    """Raises InputError for a size below its minimum (``least`` maps names to both), or a skip that is not a layer after the first."""
    for name, (number, smallest) in least.items():
        if number < smallest:
            raise InputError(f"{name} of the radiance field: expected {smallest} or more, got {number}")
    if any(not 0 < skip < depth for skip in skips):
        raise InputError(f"skips of the radiance field: expected layers from 1 to {depth - 1} (depth {depth}), got {list(skips)}")


def add_trunk(field: nn.Module, prefix: str, channels: int, width: int, depth: int, skips: Collection[int]) -> None:
    """Registers ``depth`` layers of ``width`` channels; layers in ``skips``, counted from 0, have the ``channels`` of the input as additional inputs."""
    for k in range(depth):
        inputs = (width if k else 0) + (channels if k == 0 or k in skips else 0)
        field.add_module(f"{prefix}_{k + 1}", nn.Sequential(nn.Linear(inputs, width), nn.ReLU(inplace=True)))


def run_trunk(field: nn.Module, prefix: str, embedded: Float[Tensor, "n c"], depth: int, skips: Collection[int]) -> Float[Tensor, "n w"]:
    """Output of the layers registered by ``add_trunk``."""
    hidden = embedded
    for k in range(depth):
        layer = field.get_submodule(f"{prefix}_{k + 1}")
        hidden = layer(torch.cat([embedded, hidden], -1) if k in skips else hidden)
    return hidden


def positional_encoding(x: Float[Tensor, "*batch c"], frequencies: int) -> Float[Tensor, "*batch e"]:
    """x, then sin(2^k x) and cos(2^k x) for k = 0 .. frequencies - 1 (section 5.1, but without the factor pi and with x itself).

    Returns:
        e = c (1 + 2 frequencies) channels; for each k the c sines come before the cosines.
    """
    phase = x[..., None, :] * 2.0 ** torch.arange(frequencies, device=x.device, dtype=x.dtype)[:, None]
    return torch.cat([x, torch.stack([phase.sin(), phase.cos()], -2).flatten(-3)], -1)


class RadianceField(nn.Module):
    """Raw density and view-dependent colour of points.

    Args:
        depth: layers before the density.
        width: channels of these layers; the layer with the direction has half as many.
        skips: layers, counted from 0, that have the encoded point as additional input.
        xyz_frequencies: frequencies of the positional encoding of points.
        dir_frequencies: frequencies of the positional encoding of directions.

    Raises:
        InputError: a size below its minimum, or a skip that is not a layer after the first.
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
        """Raw density of points, per unit of length; negative values mean empty space."""
        return self.sigma(self._hidden(xyz))[:, 0]

    def forward(self, xyz: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """Raw density, see ``density``, and RGB in 0..1 of points for viewing directions.

        Directions may have any length; the weights of nerf_pl for forward-facing scenes expect those of normalised device coordinates.
        """
        hidden = self._hidden(xyz)
        features = torch.cat([self.xyz_encoding_final(hidden), positional_encoding(directions, self.dir_frequencies)], -1)
        return self.sigma(hidden)[:, 0], self.rgb(self.dir_encoding(features))

    def _hidden(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n c"]:
        return run_trunk(self, "xyz_encoding", positional_encoding(xyz, self.xyz_frequencies), self.depth, self.skips)
