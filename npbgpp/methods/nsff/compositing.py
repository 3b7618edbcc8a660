"""Volume rendering of static and dynamic densities, splatting along optical flow, and interpolation between time steps.

Source: Neural Scene Flow Fields (Li et al., CVPR 2021) as in nsff_pl: both densities are added in every sample.

Symbols: n rays, s samples of each; alpha is the opacity of a sample, tau its optical depth: alpha = 1 - exp(-tau). Depths are those of NDC, from 0 to 1.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

LAST_STATIC = 100.0  # delta of the last static sample: the static field extends to infinity
LAST_DYNAMIC = 1e-3
PAPER = 0.8  # grey behind the dynamic part
_FARTHEST_MOTION = 0.95  # NDC depth beyond which the scene flow is zero
_EMPTY = -10.0  # raw density outside of the camera frustum


@dataclass(frozen=True)
class TwoLayers:
    """n rays composited from static and dynamic samples.

    Attributes:
        rgb: colours; None without colours of samples. They can exceed 1 where both parts share a sample.
        depth: expected depth.
        static_weights: compositing weights of the static part of each sample.
        dynamic_weights: those of the dynamic part.
        weights: those of both together; less than their sum where both are dense.
    """

    rgb: Float[Tensor, "n 3"] | None
    depth: Float[Tensor, " n"]
    static_weights: Float[Tensor, "n s"]
    dynamic_weights: Float[Tensor, "n s"]
    weights: Float[Tensor, "n s"]

    def dynamic_alpha(self) -> Float[Tensor, " n"]:
        """Opacity of the dynamic part, 0..1."""
        return self.dynamic_weights.sum(-1)


@dataclass(frozen=True)
class OneLayer:
    """n rays composited from one part alone."""

    rgb: Float[Tensor, "n 3"]
    depth: Float[Tensor, " n"]


def deltas(z: Float[Tensor, "n s"], last: float) -> Float[Tensor, "n s"]:
    """Distances between consecutive sorted depths in NDC, regardless of the length of the direction; ``last`` for the last one."""
    return torch.cat([z.diff(dim=-1), torch.full_like(z[:, :1], last)], -1)


def optical_depth(
    sigma: Float[Tensor, "n s"], distance: Float[Tensor, "n s"], noise_std: float = 0.0, generator: torch.Generator | None = None
) -> Float[Tensor, "n s"]:
    """tau of samples: density after a softplus, times the distance to the next sample.

    Args:
        sigma: raw densities.
        distance: see ``deltas``.
        noise_std: standard deviation of normal noise added to the densities.
        generator: random number generator.
    """
    if noise_std > 0:
        sigma = sigma + noise_std * torch.randn(sigma.shape, generator=generator, device=sigma.device, dtype=sigma.dtype)
    return distance * softplus(sigma)


def opacity(tau: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """alpha of an optical depth."""
    return -torch.expm1(-tau)


def composite_both(
    static_tau: Float[Tensor, "n s"],
    static_rgb: Float[Tensor, "n s 3"] | None,
    dynamic_tau: Float[Tensor, "n s"],
    dynamic_rgb: Float[Tensor, "n s 3"] | None,
    z: Float[Tensor, "n s"],
) -> TwoLayers:
    """Composites both parts: each contributes its opacity times the transmittance, which both reduce."""
    passed = _passed_before(static_tau + dynamic_tau)
    static, dynamic = opacity(static_tau) * passed, opacity(dynamic_tau) * passed
    weights = opacity(static_tau + dynamic_tau) * passed
    rgb = None
    if static_rgb is not None and dynamic_rgb is not None:
        rgb = (static[..., None] * static_rgb + dynamic[..., None] * dynamic_rgb).sum(-2)
    return TwoLayers(rgb, (weights * z).sum(-1), static, dynamic, weights)


def composite_one(tau: Float[Tensor, "n s"], rgb: Float[Tensor, "n s 3"], z: Float[Tensor, "n s"]) -> OneLayer:
    """Composites one part alone, on black."""
    weights = opacity(tau) * _passed_before(tau)
    return OneLayer((weights[..., None] * rgb).sum(-2), (weights * z).sum(-1))


def dynamic_layer(seen: TwoLayers, dynamic_rgb: Float[Tensor, "n s 3"]) -> Float[Tensor, "n 3"]:
    """The visible dynamic part on light grey."""
    return (seen.dynamic_weights[..., None] * dynamic_rgb).sum(-2) + PAPER * (1 - seen.dynamic_alpha())[:, None]


def mean_along(weights: Float[Tensor, "n s"], values: Float[Tensor, "n s 3"]) -> Float[Tensor, "n 3"]:
    """Weighted sum of points or offsets along rays."""
    return (weights[..., None] * values).sum(-2)


def near_motion(motion: Float[Tensor, "n s 3"], z: Float[Tensor, "n s"]) -> Float[Tensor, "n s 3"]:
    """Scene flow of samples, zero for z > 0.95, where small NDC offsets are huge Euclidean ones."""
    return motion.masked_fill((z > _FARTHEST_MOTION)[..., None], 0.0)


def mask_unseen(sigma: Float[Tensor, "n s"], seen: Bool[Tensor, "n s"]) -> Float[Tensor, "n s"]:
    """Raw dynamic densities, close to zero after the softplus where the camera of the time step does not see: there is no training signal."""
    return sigma.masked_fill(~seen, _EMPTY)


@dataclass(frozen=True)
class DisocclusionWeights:
    """Weights of the comparison with a neighbouring time step, 0..1, without gradient; small where surfaces are occluded or disoccluded.

    Attributes:
        samples: per sample.
        rays: per ray.
    """

    samples: Float[Tensor, "n s"]
    rays: Float[Tensor, " n"]


def disocclusion_weights(warped: TwoLayers, present: TwoLayers) -> DisocclusionWeights:
    """1 minus the change of the dynamic weights when a time step is rendered with the dynamic field of a neighbouring one."""
    change = (warped.dynamic_weights - present.dynamic_weights).detach()
    return DisocclusionWeights(1 - change.abs(), 1 - change.sum(-1).abs())


def _passed_before(tau: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
    """Transmittance up to each sample."""
    return torch.exp(-torch.cat([torch.zeros_like(tau[:, :1]), tau[:, :-1]], -1).cumsum(-1))


# ---------------------------------------------------------------- splatting (Niklaus and Liu, Softmax Splatting, CVPR 2020)


def splat_sum(image: Float[Tensor, "b c h w"], flow: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b c h w"]:
    """Summation splatting: forward warping with bilinear weights, differentiable in image and flow.

    Args:
        image: values to splat.
        flow: motion of each pixel (right, down), pixels. Pixels with non-finite flow are dropped.
    """
    batch, channels, height, width = image.shape
    row, column = torch.meshgrid(
        torch.arange(height, device=flow.device, dtype=flow.dtype), torch.arange(width, device=flow.device, dtype=flow.dtype), indexing="ij"
    )
    lands = torch.isfinite(flow).all(1)
    # clamps far positions, which are outside anyway, so that integers do not overflow
    x = torch.where(lands, column + flow[:, 0], -2.0).clamp(-2, width + 1)
    y = torch.where(lands, row + flow[:, 1], -2.0).clamp(-2, height + 1)
    left, top = x.detach().floor(), y.detach().floor()
    start = torch.arange(batch, device=flow.device)[:, None, None] * (height * width)
    pixels = image.permute(0, 2, 3, 1).reshape(-1, channels)
    out = pixels.new_zeros(batch * height * width, channels)
    for across in (0, 1):
        for down in (0, 1):
            u, v = left + across, top + down
            share = (1 - (x - u).abs()) * (1 - (y - v).abs())
            inside = ((u >= 0) & (u < width) & (v >= 0) & (v < height)).flatten()
            place = (start + v.long() * width + u.long()).flatten()[inside]
            out = out.index_add(0, place, pixels[inside] * share.flatten()[inside, None])
    return out.view(batch, height, width, channels).permute(0, 3, 1, 2)


def splat_mean(
    image: Float[Tensor, "b c h w"], flow: Float[Tensor, "b 2 h w"], importance: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, "b c h w"]:
    """Weighted mean of the pixels splatted to each position; 0 for holes.

    Args:
        image: values to splat.
        flow: see ``splat_sum``.
        importance: logits of the weights of pixels (softmax splatting); None: equal weights (average splatting).
    """
    # subtracting the maximum avoids overflow and cancels in the mean
    weight = torch.ones_like(image[:, :1]) if importance is None else (importance - importance.detach().amax((1, 2, 3), keepdim=True)).exp()
    added = splat_sum(torch.cat([image * weight, weight], 1), flow)
    total = added[:, -1:]
    return added[:, :-1] / torch.where(total == 0, 1.0, total)


# ---------------------------------------------------------------- interpolation between time steps


ToField = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n 3"]]
ToPixels = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n 2"]]


@dataclass(frozen=True)
class Plane:
    """One sample of each of the n rays of a view, at similar depths.

    Attributes:
        xyz: position, NDC.
        z: depth, NDC.
        static_tau, dynamic_tau: optical depths.
        static_rgb, dynamic_rgb: colours.
        forward, backward: scene flow to the neighbouring time steps, NDC.
    """

    xyz: Float[Tensor, "n 3"]
    z: Float[Tensor, " n"]
    static_tau: Float[Tensor, " n"]
    static_rgb: Float[Tensor, "n 3"]
    dynamic_tau: Float[Tensor, " n"]
    dynamic_rgb: Float[Tensor, "n 3"]
    forward: Float[Tensor, "n 3"]
    backward: Float[Tensor, "n 3"]


@dataclass(frozen=True)
class InterpolatedOutputs:
    """n pixels of a view between two time steps.

    Attributes:
        rgb: colours.
        depth: expected depth, NDC, 0 to 1.
        dynamic_alpha: opacity of the dynamic part.
        dynamic_rgb: the dynamic part on grey.
        dynamic_depth: sum of depths by dynamic weight, not divided by ``dynamic_alpha``.
        static_rgb, static_depth: the static part alone.
    """

    rgb: Float[Tensor, "n 3"]
    depth: Float[Tensor, " n"]
    dynamic_alpha: Float[Tensor, " n"]
    dynamic_rgb: Float[Tensor, "n 3"]
    dynamic_depth: Float[Tensor, " n"]
    static_rgb: Float[Tensor, "n 3"]
    static_depth: Float[Tensor, " n"]


def interpolate_outputs(
    planes: Iterable[tuple[Plane, Plane]],
    shares: Sequence[float],
    image_size: tuple[int, int],
    to_field: ToField,
    to_pixels: ToPixels,
) -> list[InterpolatedOutputs]:
    """Views of one camera between a time step and the next: dynamic samples of both are splatted along their flow, plane by plane, and blended.

    Planes are consumed one by one from front to back, so they need not be in memory together. The static part is that of the first time step.

    Args:
        planes: of the time step and of the next.
        shares: position of each view between the time steps, 0 to 1; motion is linear.
        image_size: (height, width) in pixels; n is their product.
        to_field: NDC to Euclidean coordinates.
        to_pixels: Euclidean coordinates to pixels of the camera.

    Returns:
        One view per share.
    """
    made: list[_Accumulated] = []
    for now, then in planes:
        made = made or [_Accumulated(now.z) for _ in shares]
        place, target = to_field(now.xyz), to_field(now.xyz + now.forward)
        place_then, target_then = to_field(then.xyz), to_field(then.xyz + then.backward)
        uv_px, uv_px_then = to_pixels(place), to_pixels(place_then)
        for share, picture in zip(shares, made, strict=True):
            # differences of projections, so that the flow of static samples is exactly 0
            flow = to_pixels(place + share * (target - place)) - uv_px
            flow_then = to_pixels(place_then + (1 - share) * (target_then - place_then)) - uv_px_then
            rgb, alpha = _pushed(now, flow, image_size)
            rgb_then, alpha_then = _pushed(then, flow_then, image_size)
            alpha, alpha_then = (1 - share) * alpha, share * alpha_then
            picture.add(now, alpha[:, None] * rgb + alpha_then[:, None] * rgb_then, alpha + alpha_then)
    return [picture.finish() for picture in made]


class _Accumulated:
    """Front-to-back compositing of planes."""

    def __init__(self, like: Float[Tensor, " n"]) -> None:
        self.rgb, self.dynamic_rgb, self.static_rgb = (like.new_zeros(len(like), 3) for _ in range(3))
        self.depth, self.dynamic_depth, self.static_depth = (torch.zeros_like(like) for _ in range(3))
        self.alpha, self.dynamic_alpha, self.static_alpha = (torch.zeros_like(like) for _ in range(3))

    def add(self, plane: Plane, dynamic: Float[Tensor, "n 3"], dynamic_alpha: Float[Tensor, " n"]) -> None:
        """Composites the next plane; ``dynamic`` are premultiplied colours."""
        static_alpha = opacity(plane.static_tau)
        passed, passed_static = 1 - self.alpha, 1 - self.static_alpha
        alpha = 1 - (1 - dynamic_alpha) * (1 - static_alpha)
        static = static_alpha[:, None] * plane.static_rgb
        self.rgb = self.rgb + passed[:, None] * (dynamic + static)
        self.dynamic_rgb = self.dynamic_rgb + passed[:, None] * dynamic
        self.dynamic_alpha = self.dynamic_alpha + passed * dynamic_alpha
        self.dynamic_depth = self.dynamic_depth + passed * dynamic_alpha * plane.z
        self.depth = self.depth + passed * alpha * plane.z
        self.alpha = self.alpha + passed * alpha
        self.static_rgb = self.static_rgb + passed_static[:, None] * static
        self.static_depth = self.static_depth + passed_static * static_alpha * plane.z
        self.static_alpha = self.static_alpha + passed_static * static_alpha

    def finish(self) -> InterpolatedOutputs:
        """The composited view."""
        dynamic_rgb = self.dynamic_rgb + PAPER * (1 - self.dynamic_alpha)[:, None]
        return InterpolatedOutputs(
            self.rgb, self.depth, self.dynamic_alpha, dynamic_rgb, self.dynamic_depth, self.static_rgb, self.static_depth
        )


def _pushed(plane: Plane, flow: Float[Tensor, "n 2"], image_size: tuple[int, int]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, " n"]]:
    """Dynamic colours and opacities, splatted along the flow."""
    layers = torch.cat([plane.dynamic_rgb, opacity(plane.dynamic_tau)[:, None]], 1).T.reshape(1, 4, *image_size)
    moved = splat_mean(layers, flow.T.reshape(1, 2, *image_size))[0].flatten(1).T
    return moved[:, :3], moved[:, 3]
