"""Functions of the direction in which a point is seen: learned from harmonics (NPBG++, section 3.3), or the first spherical harmonics.

Symbols: v points, m basis functions, h harmonics.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

# type -> whether the learned basis reads the distance, and the optical axis
BASES = {
    "learnable_v": (False, False),
    "learnable_vd": (True, False),
    "learnable_vo": (False, True),
    "learnable_vdo": (True, True),
    "spherical": (False, False),
}
_OCTAVES = 3
_FIRST_LEARNED_FREQUENCY = 0.1
_SMALLEST_DISTANCE = 1e-7
_Y0, _Y1 = 0.282095, 0.488603  # real spherical harmonics of degree 0 and 1


@dataclass(frozen=True)
class Looked:
    """From where v points are seen.

    Attributes:
        offset: point minus camera centre, scene units.
        axis: optical axis of the camera, in world coordinates.
    """

    offset: Float[Tensor, "v 3"]
    axis: Float[Tensor, "1 3"]

    def __len__(self) -> int:
        return len(self.offset)

    def distance(self) -> Float[Tensor, "v 1"]:
        """Distance from the camera, scene units."""
        return self.offset.norm(dim=1, keepdim=True)

    def direction(self) -> Float[Tensor, "v 3"]:
        """Unit vector from the camera to the point; zero for a point in the camera centre."""
        return self.offset / (self.distance() + _SMALLEST_DISTANCE)


class HarmonicEmbedding(nn.Module):
    """Sines, then cosines, of every coordinate times 1, 2, 4 times a base frequency.

    Args:
        learnable: the base frequency is the softplus of a weight, and starts at 0.1 as the authors' does; otherwise it is pi / 2.
    """

    frequencies: Tensor

    def __init__(self, learnable: bool) -> None:
        super().__init__()
        self.learnable = learnable
        if learnable:
            self.omega0 = nn.Parameter(torch.tensor(_FIRST_LEARNED_FREQUENCY).expm1().log())
        else:
            self.register_buffer("frequencies", torch.pi / 2 * 2.0 ** torch.arange(_OCTAVES))

    def forward(self, x: Float[Tensor, "v 3"]) -> Float[Tensor, "v h"]:
        """(v, 18) numbers."""
        frequencies = softplus(self.omega0) * 2.0 ** torch.arange(_OCTAVES, device=x.device) if self.learnable else self.frequencies
        phase = (x[:, :, None] * frequencies).flatten(1)
        return torch.cat([phase.sin(), phase.cos()], 1)


def basis_network(type: str, m: int, depth: int, width: int) -> nn.Sequential:
    """The network from harmonics (and distance) to m functions. Arguments as in ``npbgpp.models.aggregation.Sphere``."""
    reads_distance, reads_axis = BASES[type]
    layers: list[nn.Module] = [nn.Linear(6 * _OCTAVES * (1 + reads_axis) + reads_distance, width), nn.LeakyReLU()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Linear(width, m))


def network_inputs(type: str, embedding: HarmonicEmbedding, looked: Looked) -> Float[Tensor, "v i"]:
    """What ``basis_network`` of this type reads."""
    reads_distance, reads_axis = BASES[type]
    inputs = [looked.distance()] if reads_distance else []
    inputs.append(embedding(looked.direction()))
    if reads_axis:
        inputs.append(embedding(looked.axis).expand(len(looked), -1))
    return torch.cat(inputs, 1)


def spherical_harmonics(direction: Float[Tensor, "v 3"]) -> Float[Tensor, "v 4"]:
    """Real spherical harmonics of degree 0 and 1."""
    return torch.cat([torch.full_like(direction[:, :1], _Y0), _Y1 * direction], 1)
