"""Functions of the direction in which a point is seen: learned from harmonics (NPBG++, section 3.3), or the first spherical harmonics.

Symbols: v points, m basis functions, h harmonics.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from npbgpp.errors import InputError

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
class PointDirections:
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
    """The network from harmonics (and distance) to m functions. Arguments as in ``npbgpp.nets.aggregation.Sphere``."""
    reads_distance, reads_axis = BASES[type]
    layers: list[nn.Module] = [nn.Linear(6 * _OCTAVES * (1 + reads_axis) + reads_distance, width), nn.LeakyReLU()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Linear(width, m))


def network_inputs(type: str, embedding: HarmonicEmbedding, looked: PointDirections) -> Float[Tensor, "v i"]:
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


# ----------------------------------------------------------------------
# From what several photos show of a point to one descriptor: order-free sums over views, a solve, an evaluation for the direction looked from.


_SMALLEST_WEIGHT = 1e-8


class Aggregator(nn.Module, ABC):
    """Sums, solve and evaluation of one kind of aggregation.

    Args:
        descriptor_dim: c.

    Attributes:
        sums: s. The first number is the total weight of the views that saw the point.
        coefficients: q. The first c are the mean feature.
    """

    def __init__(self, descriptor_dim: int, sums: int, coefficients: int) -> None:
        super().__init__()
        self.descriptor_dim, self.sums, self.coefficients = descriptor_dim, sums, coefficients

    @abstractmethod
    def observe(self, features: Float[Tensor, "v c"], weights: Float[Tensor, " v"], looked: PointDirections) -> Float[Tensor, "v s"]:
        """What v observations of points add to their sums.

        Args:
            features: what the photo shows of each point.
            weights: 1 for a point that is plainly visible.
            looked: from where each point was seen.
        """

    @abstractmethod
    def solve(self, sums: Float[Tensor, "r s"]) -> Float[Tensor, "r q"]:
        """Coefficients of points from their sums; zeros for a point that nothing was observed of."""

    @abstractmethod
    def describe(self, coefficients: Float[Tensor, "r q"], looked: PointDirections) -> Float[Tensor, "r c"]:
        """Descriptors of points as seen from somewhere. No gradient reaches the direction."""

    @staticmethod
    def seen(sums: Float[Tensor, "r s"]) -> Tensor:
        """Which points anything was observed of (r, bool)."""
        return sums[:, 0] > _SMALLEST_WEIGHT


class Mean(Aggregator):
    """Weighted mean of the features; the direction does not matter.

    Args:
        descriptor_dim: c.
        weighted: weigh an observation; otherwise each counts 1.
    """

    def __init__(self, *, descriptor_dim: int, weighted: bool = True) -> None:
        super().__init__(descriptor_dim, 1 + descriptor_dim, descriptor_dim)
        self.weighted = weighted

    def observe(self, features: Float[Tensor, "v c"], weights: Float[Tensor, " v"], looked: PointDirections) -> Float[Tensor, "v s"]:
        """See Aggregator."""
        weight = (weights if self.weighted else torch.ones_like(weights))[:, None]
        return torch.cat([weight, weight * features], 1)

    def solve(self, sums: Float[Tensor, "r s"]) -> Float[Tensor, "r q"]:
        """See Aggregator."""
        weight = sums[:, :1]
        return torch.where(weight > _SMALLEST_WEIGHT, sums[:, 1:] / weight.clamp_min(_SMALLEST_WEIGHT), 0.0)

    def describe(self, coefficients: Float[Tensor, "r q"], looked: PointDirections) -> Float[Tensor, "r c"]:
        """See Aggregator."""
        return coefficients


class Sphere(Aggregator):
    """Ridge regression of the feature on basis functions a(d) of the viewing direction, around the mean feature.

    With N views of a point, A the sum of a, Y of the features, G of a aT and B of a yT: mean = Y / N, beta = (G + diag(alpha))^-1 (B - A meanT), and the
    descriptor for direction d is ``betaT a(d) + mean``. G is symmetric and kept once. Basis and alpha learn through the sums only.

    Args:
        descriptor_dim: c.
        type: basis, see ``npbgpp.nets.aggregation.BASES``.
        m: basis functions; 4 for ``spherical``.
        depth: hidden layers of the basis beyond the first.
        width: of the hidden layers.
        tanh: bound the basis functions.
        learnable_freq: learn the base frequency of the direction's harmonics.
        learnable_alpha: learn the ridge, one positive number per basis function; otherwise 1.
    """

    def __init__(
        self,
        *,
        descriptor_dim: int,
        type: str = "learnable_v",
        m: int = 6,
        depth: int = 1,
        width: int = 16,
        tanh: bool = False,
        learnable_freq: bool = False,
        learnable_alpha: bool = False,
    ) -> None:
        if type not in BASES:
            raise InputError(f"system.aggregator.type: expected one of {', '.join(BASES)}, got {type}")
        if type == "spherical" and m != 4:
            raise InputError(f"system.aggregator.m: the spherical basis has 4 functions, got {m}; set system.aggregator.m=4")
        for key, value in (("m", m), ("width", width), ("depth", depth + 1)):
            if value < 1:
                raise InputError(f"system.aggregator.{key}: expected a positive number, got {value}")
        super().__init__(descriptor_dim, 1 + m + descriptor_dim + m * (m + 1) // 2 + m * descriptor_dim, (1 + m) * descriptor_dim)
        self.m, self.learnable_alpha = m, learnable_alpha
        self.basis_type, self.tanh = type, tanh
        if type != "spherical":
            self.harmonic_embedding = HarmonicEmbedding(learnable_freq)
            self.mlp = basis_network(type, m, depth, width)
        if learnable_alpha:
            self.alpha = nn.Parameter(torch.ones(m, 1).expm1().log())  # softplus of it is 1
        else:
            self.register_buffer("alpha", torch.ones(m, 1))

    def basis(self, looked: PointDirections) -> Float[Tensor, "v m"]:
        """Values of the basis functions."""
        if self.basis_type == "spherical":
            return spherical_harmonics(looked.direction())
        basis = self.mlp(network_inputs(self.basis_type, self.harmonic_embedding, looked))
        return basis.tanh() if self.tanh else basis

    def observe(self, features: Float[Tensor, "v c"], weights: Float[Tensor, " v"], looked: PointDirections) -> Float[Tensor, "v s"]:
        """See Aggregator. Weights are not used: a point is seen or not.

        The order of the sums is that in which ``solve`` eliminates: the count, A, Y, then for every basis function its row of G, from the diagonal on, and
        its row of B.
        """
        basis = self.basis(looked)
        rows = []
        for k in range(self.m):
            rows += [basis[:, k, None] * basis[:, k:], basis[:, k, None] * features]
        return torch.cat([torch.ones_like(basis[:, :1]), basis, features, *rows], 1)

    def solve(self, sums: Float[Tensor, "r s"]) -> Float[Tensor, "r q"]:
        """See Aggregator.

        G = L D LT, written out over columns: m is small and r is large, so that every step is one operation on r numbers. A batched library call
        factorises matrix after matrix and is several times slower. Row j of B follows row j of G in memory, so that the elimination of G solves for it too;
        steps are done in place, because fresh memory costs more than the arithmetic.
        """
        m, c = self.m, self.descriptor_dim
        sizes = [1, m, c, *(m - j + c for j in range(m))]
        count, basis, total, *columns = sums.t().clone(memory_format=torch.contiguous_format).split(sizes)
        ridge = (softplus(self.alpha) if self.learnable_alpha else self.alpha).to(sums.device)  # sums may be kept elsewhere
        differentiated = torch.is_grad_enabled() and (sums.requires_grad or ridge.requires_grad)
        if differentiated:  # what is changed in place must not share memory with what a gradient needs
            columns = [column.clone() for column in columns]
        mean = total / count.clamp_min(1.0)
        factors: list[Tensor] = []  # j holds column j of L below the diagonal
        pivots: list[Tensor] = []  # 1 / D
        for j, column in enumerate(columns):
            column[0].add_(ridge[j])
            # not fused: of a point that one view saw, the right side is a difference of equal products, which must stay exactly zero
            column[m - j :].sub_(basis[j] * mean)
            for k in range(j):
                column.addcmul_(columns[k][j - k :], factors[k][j - k - 1], value=-1)
            pivots.append(column[0].reciprocal())
            factors.append(column[1 : m - j] * pivots[j])
        solved = [column[m - j :].clone() if differentiated else column[m - j :] for j, column in enumerate(columns)]
        for j in reversed(range(m)):
            solved[j].mul_(pivots[j])
            for k in range(j + 1, m):
                solved[j].addcmul_(factors[j][k - j - 1], solved[k], value=-1)
        return torch.cat([mean, *solved]).t().contiguous()

    def describe(self, coefficients: Float[Tensor, "r q"], looked: PointDirections) -> Float[Tensor, "r c"]:
        """See Aggregator."""
        with torch.no_grad():
            basis = self.basis(looked)
        mean, beta = coefficients[:, : self.descriptor_dim], coefficients[:, self.descriptor_dim :]
        return mean + torch.einsum("rm,rmc->rc", basis, beta.view(-1, self.m, self.descriptor_dim))
