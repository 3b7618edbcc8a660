"""Densities and colours along rays become pixels: numerical quadrature of the volume (NeRF; Mildenhall et al., ECCV 2020, section 4, equation 3).

Symbols: n rays, s samples of each, p samples of all rays together. Density minus infinity is space known to be empty: noise does not fill it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.volume.sampling import PackedSamples, intervals

_LEAST_TRANSMITTANCE = 1e-10  # a sample never hides everything behind it, so that gradients get there


@dataclass(frozen=True)
class Composited:
    """n rays seen.

    Attributes:
        rgb: colours; None where only densities were known.
        depth: sum of the depths by weight, so that empty space counts as depth 0.
        opacity: sum of the weights, 0..1.
        weights: how much each sample adds, shaped as the samples came.
    """

    rgb: Float[Tensor, "n 3"] | None
    depth: Float[Tensor, " n"]
    opacity: Float[Tensor, " n"]
    weights: Float[Tensor, "*samples"]

    def normalised_depth(self) -> Float[Tensor, " n"]:
        """Mean depth of what is seen, whatever the opacity; infinite where nothing is."""
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
    """Rays with equally many samples.

    Args:
        sigma: raw densities; what is negative counts as 0.
        rgb: colours of the samples, or None.
        z: sorted depths. The last sample reaches to infinity.
        direction_norms: lengths of the directions that the depths count.
        background: one colour or one per ray, seen as far as the ray is not opaque; None is black.
        noise_std: deviation of the normal noise added to the densities.
        generator: source of the noise.
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
    """Rays with any number of samples each, as ``composite`` with samples of no density in between.

    Args:
        sigma: raw densities; what is negative counts as 0.
        rgb: colours of the samples.
        samples: where they are, ordered by ray, then by depth.
        direction_norms: lengths of the directions that the depths count.
        background: see ``composite``.

    Returns:
        With (p,) weights. Rays without a sample show the background at depth 0 and opacity 0.
    """
    rank = samples.ranks()
    longest = int(rank.max()) + 1 if len(samples) else 0
    place = (samples.ray, rank)

    def padded(values: Tensor, filling: float) -> Tensor:
        shape = (len(direction_norms), longest, *values.shape[1:])
        return values.new_full(shape, filling).index_put(place, values)

    delta = samples.delta * direction_norms[samples.ray]
    seen = _composite(padded(sigma, -torch.inf), padded(rgb, 0.0), padded(samples.z, 0.0), padded(delta, 0.0), background)
    return Composited(seen.rgb, seen.depth, seen.opacity, seen.weights[place])


def _composite(
    sigma: Float[Tensor, "n s"],
    rgb: Float[Tensor, "n s 3"] | None,
    z: Float[Tensor, "n s"],
    length: Float[Tensor, "n s"],
    background: Float[Tensor, "*each 3"] | None,
) -> Composited:
    passed = torch.exp(-length * torch.relu(sigma))
    before = torch.cat([torch.ones_like(passed[:, :1]), passed + _LEAST_TRANSMITTANCE], -1).cumprod(-1)[:, :-1]
    weights = (1 - passed) * before
    opacity = weights.sum(-1)
    colour = None
    if rgb is not None:
        colour = (weights[..., None] * rgb).sum(-2)
        if background is not None:
            colour = colour + (1 - opacity)[:, None] * background
    return Composited(colour, (weights * z).sum(-1), opacity, weights)


# ----------------------------------------------------------------------
# Layers of colour and opacity become one picture, front to back (Porter and Duff, "Compositing digital images", 1984).


class _Cut(torch.autograd.Function):
    """Cuts to [0, 1]. Values outside keep the gradient that leads back inside: a plain cut has none there, and a layer that begins clear stays clear."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        leads_away = ((values < 0) & (gradient > 0)) | ((values > 1) & (gradient < 0))  # steps go against the gradient
        return gradient.masked_fill(leads_away, 0.0)


def over(layers: Float[Tensor, "b l 4 h w"]) -> Float[Tensor, "b 4 h w"]:
    """Lays each layer over those behind it.

    Args:
        layers: straight colours and opacities, front to back; opacities are cut to [0, 1], and those outside learn only to come back.

    Returns:
        Colours weighted by what is seen of them, not divided by the opacity, and the opacity. A single layer is returned as it is.
    """
    if layers.shape[1] == 1:
        return layers[:, 0]
    through = torch.ones_like(layers[:, 0, 3:])  # share of the light that comes from behind the layers so far
    colour = torch.zeros_like(layers[:, 0, :3])
    for layer in layers.unbind(1):
        opacity = _Cut.apply(layer[:, 3:])
        colour = colour + through * opacity * layer[:, :3]
        through = through * (1 - opacity)
    return torch.cat([colour, 1 - through], 1)
