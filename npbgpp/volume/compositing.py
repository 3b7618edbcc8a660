"""Compositing: volume rendering of samples along rays (NeRF; Mildenhall et al., ECCV 2020, equation 3), and of RGBA layers (Porter and Duff, 1984).

Symbols: n rays, s samples per ray, p samples of all rays together. A density of minus infinity marks empty space, also with noise.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.volume.sampling import PackedSamples, intervals

_MIN_TRANSMITTANCE = 1e-10  # of a sample, so that samples behind it get gradients


@dataclass(frozen=True)
class Composited:
    """n composited rays.

    Attributes:
        rgb: colours; None if samples had none.
        depth: weighted sum of the depths, not divided by the opacity.
        opacity: sum of the weights, 0..1.
        weights: weight of each sample, in the shape of the samples.
    """

    rgb: Float[Tensor, "n 3"] | None
    depth: Float[Tensor, " n"]
    opacity: Float[Tensor, " n"]
    weights: Float[Tensor, "*samples"]

    def normalised_depth(self) -> Float[Tensor, " n"]:
        """Depth divided by the opacity; infinite where that is 0."""
        return torch.where(self.opacity > 0, self.depth / torch.where(self.opacity > 0, self.opacity, 1.0), torch.inf)


def composite(
    sigma: Float[Tensor, "n s"],
    rgb: Float[Tensor, "n s 3"] | None,
    z: Float[Tensor, "n s"],
    direction_norms: Float[Tensor, " n"],
    background: Float[Tensor, "*each 3"] | None = None,
    noise_std: float = 0.0,
    generator: torch.Generator | None = None,
) -> Composited:
    """Composites rays with equally many samples.

    Args:
        sigma: raw densities; negative ones count as 0.
        rgb: colours of the samples, or None.
        z: sorted depths; the interval of the last sample is infinite.
        direction_norms: lengths of the ray directions.
        background: one colour or one per ray; None for black.
        noise_std: standard deviation of normal noise added to the densities.
        generator: random number generator.
    """
    if noise_std > 0:
        sigma = sigma + noise_std * torch.randn(sigma.shape, generator=generator, device=sigma.device, dtype=sigma.dtype)
    return _composite(sigma, rgb, z, intervals(z) * direction_norms[:, None], background)


def composite_packed(
    sigma: Float[Tensor, " p"],
    rgb: Float[Tensor, "p 3"],
    samples: PackedSamples,
    direction_norms: Float[Tensor, " n"],
    background: Float[Tensor, "*each 3"] | None = None,
) -> Composited:
    """Composites rays with different numbers of samples.

    Args:
        sigma: raw densities; negative ones count as 0.
        rgb: colours of the samples.
        samples: rays, depths and intervals of the samples.
        direction_norms: lengths of the ray directions.
        background: see ``composite``.

    Returns:
        With (p,) weights. Rays without samples have the background colour, depth 0 and opacity 0.
    """
    rank = samples.ranks()
    longest = int(rank.max()) + 1 if len(samples) else 0
    index = (samples.ray, rank)

    def padded(values: Tensor, fill: float) -> Tensor:
        shape = (len(direction_norms), longest, *values.shape[1:])
        return values.new_full(shape, fill).index_put(index, values)

    delta = samples.delta * direction_norms[samples.ray]
    result = _composite(padded(sigma, -torch.inf), padded(rgb, 0.0), padded(samples.z, 0.0), padded(delta, 0.0), background)
    return Composited(result.rgb, result.depth, result.opacity, result.weights[index])


def _composite(
    sigma: Float[Tensor, "n s"],
    rgb: Float[Tensor, "n s 3"] | None,
    z: Float[Tensor, "n s"],
    length: Float[Tensor, "n s"],
    background: Float[Tensor, "*each 3"] | None,
) -> Composited:
    transmittance = torch.exp(-length * torch.relu(sigma))
    in_front = torch.cat([torch.ones_like(transmittance[:, :1]), transmittance + _MIN_TRANSMITTANCE], -1).cumprod(-1)[:, :-1]
    weights = (1 - transmittance) * in_front
    opacity = weights.sum(-1)
    colour = None
    if rgb is not None:
        colour = (weights[..., None] * rgb).sum(-2)
        if background is not None:
            colour = colour + (1 - opacity)[:, None] * background
    return Composited(colour, (weights * z).sum(-1), opacity, weights)


class _Clamp(torch.autograd.Function):
    """Clamps to [0, 1]; values outside keep gradients that lead back inside, so that layers initialised transparent or opaque can be trained."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        leads_away = ((values < 0) & (gradient > 0)) | ((values > 1) & (gradient < 0))  # steps go against the gradient
        return gradient.masked_fill(leads_away, 0.0)


def composite_layers(layers: Float[Tensor, "b l 4 h w"]) -> Float[Tensor, "b 4 h w"]:
    """Composites RGBA layers with the over operator (Porter and Duff, "Compositing digital images", 1984).

    Args:
        layers: straight colours and opacities, front to back; opacities are clamped to [0, 1].

    Returns:
        Premultiplied colours and opacity. A single layer is returned unchanged.
    """
    if layers.shape[1] == 1:
        return layers[:, 0]
    transmittance = torch.ones_like(layers[:, 0, 3:])
    colour = torch.zeros_like(layers[:, 0, :3])
    for layer in layers.unbind(1):
        opacity = _Clamp.apply(layer[:, 3:])
        colour = colour + transmittance * opacity * layer[:, :3]
        transmittance = transmittance * (1 - opacity)
    return torch.cat([colour, 1 - transmittance], 1)
