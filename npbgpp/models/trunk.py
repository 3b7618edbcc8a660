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
