"""Radiance fields of known shape."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.export.mesh import DensityField
from npbgpp.volume import RadianceField

THRESHOLD = 20.0
STEEPNESS = 200.0  # fall of the density per radius
Density = Callable[[Float[Tensor, "n 3"]], Float[Tensor, " n"]]


def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...], steepness: float = STEEPNESS) -> Density:
    """Raw density, THRESHOLD on the surface, larger inside, negative outside."""
    return lambda xyz: THRESHOLD + steepness * (1 - ((xyz - xyz.new_tensor(centre)) / xyz.new_tensor(radii)).norm(dim=1))


def union(*fields: Density) -> Density:
    return lambda xyz: torch.stack([field(xyz) for field in fields]).amax(0)


def densities(field: Density, grid=None, chunk: int = 1000) -> DensityField:
    return DensityField(field, grid, chunk, torch.device("cpu"))


class DirectionField(RadianceField):
    """A ball around the origin with the colour 0.5 + 0.5 d in the viewing direction d."""

    def __init__(self, radius: float) -> None:
        super().__init__(depth=1, width=2, skips=())
        self.solid = ellipsoid((0.0,) * 3, (radius,) * 3)

    def density(self, xyz):
        return self.solid(xyz)

    def forward(self, xyz, directions):
        return self.solid(xyz), 0.5 + 0.5 * directions


def octahedron_weights(semi_axes: tuple[float, float, float], prefix: str) -> dict[str, Tensor]:
    """Weights of a field with one layer of six channels and no frequencies: an octahedron with the density THRESHOLD on its surface, of one colour."""
    axes = torch.eye(3)
    fall = STEEPNESS / torch.tensor(semi_axes)
    field = RadianceField(depth=1, width=6, skips=(), xyz_frequencies=0, dir_frequencies=0)
    weights = {name: torch.zeros_like(value) for name, value in field.state_dict().items()}
    weights["xyz_encoding_1.0.weight"] = torch.cat([axes, -axes])
    weights["sigma.weight"] = -torch.cat([fall, fall])[None]
    weights["sigma.bias"] = torch.tensor([THRESHOLD + STEEPNESS])
    weights["rgb.0.bias"] = torch.tensor([3.0, 0.0, -3.0])
    return {prefix + name: value for name, value in weights.items()}
