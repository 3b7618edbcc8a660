"""Aggregation of view features into view-dependent point descriptors (NPBG++, section 3.3).

Features observed in any number of views are accumulated in order-independent sums, solved for coefficients, and evaluated for a viewing direction on basis
functions: learned ones of a harmonic embedding, or the first spherical harmonics.

Symbols: v observations or points, c channels of a descriptor, m basis functions, h harmonics.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor, nn
from torch.nn.functional import softplus

from npbgpp.errors import InputError
from npbgpp.kernels.aggregation import add_observations, learned_basis_numba, observation_products
from npbgpp.kernels.backend import backend
from npbgpp.kernels.ridge import ridge_solve, ridge_solve_rows, sums_length

# type -> inputs of the learned basis beside the viewing direction: (distance, optical axis)
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
_NEGATIVE_SLOPE = 0.01
_Y0, _Y1 = 0.282095, 0.488603  # real spherical harmonics of degree 0 and 1


@dataclass(frozen=True)
class PointDirections:
    """Viewing directions of v points in one camera.

    Attributes:
        offset: point minus camera centre, scene units.
        axis: optical axis of the camera, world coordinates.
    """

    offset: Float[Tensor, "v 3"]
    axis: Float[Tensor, "1 3"]

    def __len__(self) -> int:
        return len(self.offset)

    def distance(self) -> Float[Tensor, "v 1"]:
        """Distance from the camera, scene units."""
        return self.offset.norm(dim=1, keepdim=True)

    def direction(self) -> Float[Tensor, "v 3"]:
        """Unit vector from the camera to the point; zero for a point at the camera centre."""
        return self.offset / (self.distance() + _SMALLEST_DISTANCE)


class HarmonicEmbedding(nn.Module):
    """Sines, then cosines, of every coordinate at 1, 2 and 4 times a base frequency.

    Args:
        learnable: the base frequency is the softplus of a weight, initially 0.1 as in the authors' code; otherwise it is pi / 2.
    """

    frequencies: Tensor

    def __init__(self, learnable: bool) -> None:
        super().__init__()
        self.learnable = learnable
        if learnable:
            self.omega0 = nn.Parameter(torch.tensor(_FIRST_LEARNED_FREQUENCY).expm1().log())
        else:
            self.register_buffer("frequencies", torch.pi / 2 * 2.0 ** torch.arange(_OCTAVES))

    def base(self) -> float:
        """The base frequency."""
        return softplus(self.omega0).item() if self.learnable else self.frequencies[0].item()

    def forward(self, x: Float[Tensor, "v 3"]) -> Float[Tensor, "v h"]:
        """Returns (v, 18) harmonics."""
        frequencies = softplus(self.omega0) * 2.0 ** torch.arange(_OCTAVES, device=x.device) if self.learnable else self.frequencies
        phase = (x[:, :, None] * frequencies).flatten(1)
        return torch.cat([phase.sin(), phase.cos()], 1)


def basis_network(type: str, m: int, depth: int, width: int) -> nn.Sequential:
    """MLP from ``network_inputs`` to m basis functions. Arguments as in ``SphereAggregator``."""
    reads_distance, reads_axis = BASES[type]
    layers: list[nn.Module] = [nn.Linear(6 * _OCTAVES * (1 + reads_axis) + reads_distance, width), nn.LeakyReLU(_NEGATIVE_SLOPE)]
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.LeakyReLU(_NEGATIVE_SLOPE)]
    return nn.Sequential(*layers, nn.Linear(width, m))


def network_inputs(type: str, embedding: HarmonicEmbedding, directions: PointDirections) -> Float[Tensor, "v i"]:
    """Inputs of ``basis_network``: distance, embedded direction and embedded optical axis, as the type has them."""
    reads_distance, reads_axis = BASES[type]
    inputs = [directions.distance()] if reads_distance else []
    inputs.append(embedding(directions.direction()))
    if reads_axis:
        inputs.append(embedding(directions.axis).expand(len(directions), -1))
    return torch.cat(inputs, 1)


def spherical_harmonics(direction: Float[Tensor, "v 3"]) -> Float[Tensor, "v 4"]:
    """Real spherical harmonics of degree 0 and 1."""
    return torch.cat([torch.full_like(direction[:, :1], _Y0), _Y1 * direction], 1)


_SMALLEST_WEIGHT = 1e-8


class Aggregator(nn.Module, ABC):
    """Base class of aggregations: sums over observations, coefficients, descriptors.

    Args:
        descriptor_dim: c.

    Attributes:
        sums: s, numbers per point to accumulate; the first is the total weight of the observations.
        coefficients: q, numbers per point after ``solve``; the first c are the mean feature.
    """

    def __init__(self, descriptor_dim: int, sums: int, coefficients: int) -> None:
        super().__init__()
        self.descriptor_dim, self.sums, self.coefficients = descriptor_dim, sums, coefficients

    @abstractmethod
    def observe(self, features: Float[Tensor, "v c"], weights: Float[Tensor, " v"], directions: PointDirections) -> Float[Tensor, "v s"]:
        """Summands of v observations of points.

        Args:
            features: feature of each point in the view.
            weights: 1 for a fully visible point.
            directions: viewing direction of each point.
        """

    @torch.no_grad()
    def add(
        self,
        sums: Float[Tensor, "r s"],
        rows: Int32[Tensor, " v"],
        features: Float[Tensor, "v c"],
        weights: Float[Tensor, " v"],
        directions: PointDirections,
    ) -> None:
        """Adds v observations to ``rows`` of the sums, which must be unique; the observations may be on another device."""
        sums.index_add_(0, rows, self.observe(features, weights, directions).to(sums.device))

    @abstractmethod
    def solve(self, sums: Float[Tensor, "r s"]) -> Float[Tensor, "r q"]:
        """Coefficients of points from their sums; zeros for points without observations."""

    @torch.no_grad()
    def solve_rows(self, sums: Float[Tensor, "r s"], rows: Int32[Tensor, " n"], out: Float[Tensor, "n q"]) -> None:
        """Writes the coefficients of row ``rows[i]`` of the sums to row i of ``out``, and zeros where ``rows[i]`` is -1."""
        known = (rows >= 0).nonzero()[:, 0]
        out.zero_().index_copy_(0, known, self.solve(sums[rows[known]]))

    @abstractmethod
    def evaluate(self, coefficients: Float[Tensor, "r q"], directions: PointDirections) -> Float[Tensor, "r c"]:
        """Descriptors of points for viewing directions, which get no gradients."""

    @staticmethod
    def observed(sums: Float[Tensor, "r s"]) -> Bool[Tensor, " r"]:
        """Whether points have any observation."""
        return sums[:, 0] > _SMALLEST_WEIGHT


class MeanAggregator(Aggregator):
    """Weighted mean of the features, independent of direction.

    Args:
        descriptor_dim: c.
        weighted: use the weights of the observations; otherwise all are 1.
    """

    def __init__(self, *, descriptor_dim: int, weighted: bool = True) -> None:
        super().__init__(descriptor_dim, 1 + descriptor_dim, descriptor_dim)
        self.weighted = weighted

    def observe(self, features: Float[Tensor, "v c"], weights: Float[Tensor, " v"], directions: PointDirections) -> Float[Tensor, "v s"]:
        weight = (weights if self.weighted else torch.ones_like(weights))[:, None]
        return torch.cat([weight, weight * features], 1)

    def solve(self, sums: Float[Tensor, "r s"]) -> Float[Tensor, "r q"]:
        weight = sums[:, :1]
        return torch.where(weight > _SMALLEST_WEIGHT, sums[:, 1:] / weight.clamp_min(_SMALLEST_WEIGHT), 0.0)

    def evaluate(self, coefficients: Float[Tensor, "r q"], directions: PointDirections) -> Float[Tensor, "r c"]:
        return coefficients


class SphereAggregator(Aggregator):
    """Ridge regression of the feature on basis functions a(d) of the viewing direction, around the mean feature.

    With N views of a point, A the sum of a, Y of the features, G of a aT and B of a yT: mean = Y / N, beta = (G + diag(alpha))^-1 (B - A meanT), and the
    descriptor for direction d is ``betaT a(d) + mean``. Only one triangle of the symmetric G is stored. Basis and alpha get gradients through the sums only.

    Args:
        descriptor_dim: c.
        type: basis, a key of ``BASES``.
        m: basis functions; 4 for ``spherical``.
        depth: hidden layers of the basis beyond the first.
        width: of the hidden layers.
        tanh: bound the basis functions.
        learnable_freq: learn the base frequency of the harmonic embedding.
        learnable_alpha: learn the ridge, one positive number per basis function; otherwise 1.

    Raises:
        InputError: an unknown type, or a size below its minimum.
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
        super().__init__(descriptor_dim, sums_length(m, descriptor_dim), (1 + m) * descriptor_dim)
        self.m, self.learnable_alpha = m, learnable_alpha
        self.basis_type, self.tanh = type, tanh
        if type != "spherical":
            self.harmonic_embedding = HarmonicEmbedding(learnable_freq)
            self.mlp = basis_network(type, m, depth, width)
        if learnable_alpha:
            self.alpha = nn.Parameter(torch.ones(m, 1).expm1().log())  # softplus of it is 1
        else:
            self.register_buffer("alpha", torch.ones(m, 1))

    def basis(self, directions: PointDirections) -> Float[Tensor, "v m"]:
        """Values of the basis functions."""
        if self.basis_type == "spherical":
            return spherical_harmonics(directions.direction())
        offset = directions.offset
        if not torch.is_grad_enabled() and offset.dtype == torch.float32 and backend(offset.device) == "numba":
            basis = self._learned_basis_numba(directions)
        else:
            basis = self.mlp(network_inputs(self.basis_type, self.harmonic_embedding, directions))
        return basis.tanh() if self.tanh else basis

    def _learned_basis_numba(self, directions: PointDirections) -> Float[Tensor, "v m"]:
        """The network without gradients. The optical axis is the same for all points: its share of the first layer goes to the biases."""
        reads_distance, reads_axis = BASES[self.basis_type]
        layers = [(layer.weight, layer.bias) for layer in self.mlp if isinstance(layer, nn.Linear)]
        if reads_axis:
            weight, bias = layers[0]
            weight, of_axis = weight.split([weight.shape[1] - 6 * _OCTAVES, 6 * _OCTAVES], 1)
            layers[0] = (weight, bias + of_axis @ self.harmonic_embedding(directions.axis)[0])
        return learned_basis_numba(directions.offset, self.harmonic_embedding.base(), reads_distance, layers, _NEGATIVE_SLOPE)

    def observe(self, features: Float[Tensor, "v c"], weights: Float[Tensor, " v"], directions: PointDirections) -> Float[Tensor, "v s"]:
        """Summands of v observations, see ``npbgpp.kernels.aggregation``; weights are ignored."""
        return observation_products(self.basis(directions), features)

    @torch.no_grad()
    def add(
        self,
        sums: Float[Tensor, "r s"],
        rows: Int32[Tensor, " v"],
        features: Float[Tensor, "v c"],
        weights: Float[Tensor, " v"],
        directions: PointDirections,
    ) -> None:
        add_observations(sums, rows, self.basis(directions).to(sums.device), features.to(sums.device))

    def _ridge(self, sums: Tensor) -> Float[Tensor, " m"]:
        """The ridge in the precision of the sums, on their device."""
        return (softplus(self.alpha) if self.learnable_alpha else self.alpha)[:, 0].to(sums)

    def solve(self, sums: Float[Tensor, "r s"]) -> Float[Tensor, "r q"]:
        return ridge_solve(sums, self._ridge(sums), self.descriptor_dim)

    @torch.no_grad()
    def solve_rows(self, sums: Float[Tensor, "r s"], rows: Int32[Tensor, " n"], out: Float[Tensor, "n q"]) -> None:
        ridge_solve_rows(sums, rows, self._ridge(sums), self.descriptor_dim, out)

    def evaluate(self, coefficients: Float[Tensor, "r q"], directions: PointDirections) -> Float[Tensor, "r c"]:
        with torch.no_grad():
            basis = self.basis(directions)
        mean, beta = coefficients[:, : self.descriptor_dim], coefficients[:, self.descriptor_dim :]
        return mean + torch.einsum("rm,rmc->rc", basis, beta.view(-1, self.m, self.descriptor_dim))
