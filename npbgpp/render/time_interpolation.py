"""Pictures between two moments of a video: the dynamic matter of both is pushed along its motion, depth by depth, and blended in front of the static.

Source: Neural Scene Flow Fields (Li et al., CVPR 2021, section 3.4), as nsff_pl has it. Symbols: n pixels of one picture, row by row.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.render.dynamic_volume import PAPER, opacity
from npbgpp.render.image_splat import splat_mean

ToField = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n 3"]]
ToPixels = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n 2"]]


@dataclass(frozen=True)
class Plane:
    """One sample of each of the n rays of a picture, about equally deep.

    Attributes:
        xyz: where it is, NDC.
        z: depth, NDC.
        static_tau, dynamic_tau: optical depths.
        static_rgb, dynamic_rgb: colours.
        forward, backward: motion to the neighbouring moments, NDC.
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
class Between:
    """A picture between two moments.

    Attributes:
        rgb: colours of everything.
        depth: NDC, 0 to 1.
        dynamic_alpha: how much of each pixel is seen to move.
        dynamic_rgb: what moves, on grey.
        dynamic_depth: depths by how much moves there; not divided by ``dynamic_alpha``.
        static_rgb, static_depth: as if nothing moved.
    """

    rgb: Float[Tensor, "n 3"]
    depth: Float[Tensor, " n"]
    dynamic_alpha: Float[Tensor, " n"]
    dynamic_rgb: Float[Tensor, "n 3"]
    dynamic_depth: Float[Tensor, " n"]
    static_rgb: Float[Tensor, "n 3"]
    static_depth: Float[Tensor, " n"]


def pictures_between(
    planes: Iterable[tuple[Plane, Plane]],
    shares: Sequence[float],
    image_size: tuple[int, int],
    to_field: ToField,
    to_pixels: ToPixels,
) -> list[Between]:
    """Pictures of one camera between a moment and the next.

    Planes are looked at one by one, from front to back, so that they need not be in memory together. Static matter is that of the first moment.

    Args:
        planes: of the moment and of the next.
        shares: how far from the one moment to the other each picture is, 0 to 1; motion in between is straight and even.
        image_size: (height, width) in pixels; n is their product.
        to_field: NDC to Euclidean coordinates.
        to_pixels: these to pixels of the camera.

    Returns:
        One picture per share.
    """
    made: list[_Accumulated] = []
    for now, then in planes:
        made = made or [_Accumulated(now.z) for _ in shares]
        place, target = to_field(now.xyz), to_field(now.xyz + now.forward)
        place_then, target_then = to_field(then.xyz), to_field(then.xyz + then.backward)
        uv_px, uv_px_then = to_pixels(place), to_pixels(place_then)
        for share, picture in zip(shares, made, strict=True):
            # differences of projections, so that what stays where it is does so bit by bit
            flow = to_pixels(place + share * (target - place)) - uv_px
            flow_then = to_pixels(place_then + (1 - share) * (target_then - place_then)) - uv_px_then
            rgb, alpha = _pushed(now, flow, image_size)
            rgb_then, alpha_then = _pushed(then, flow_then, image_size)
            alpha, alpha_then = (1 - share) * alpha, share * alpha_then
            picture.add(now, alpha[:, None] * rgb + alpha_then[:, None] * rgb_then, alpha + alpha_then)
    return [picture.finish() for picture in made]


class _Accumulated:
    """Sums over the planes in front so far."""

    def __init__(self, like: Float[Tensor, " n"]) -> None:
        self.rgb, self.dynamic_rgb, self.static_rgb = (like.new_zeros(len(like), 3) for _ in range(3))
        self.depth, self.dynamic_depth, self.static_depth = (torch.zeros_like(like) for _ in range(3))
        self.alpha, self.dynamic_alpha, self.static_alpha = (torch.zeros_like(like) for _ in range(3))

    def add(self, plane: Plane, dynamic: Float[Tensor, "n 3"], dynamic_alpha: Float[Tensor, " n"]) -> None:
        """Takes the next plane; ``dynamic`` are colours times opacity."""
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

    def finish(self) -> Between:
        """The picture."""
        dynamic_rgb = self.dynamic_rgb + PAPER * (1 - self.dynamic_alpha)[:, None]
        return Between(self.rgb, self.depth, self.dynamic_alpha, dynamic_rgb, self.dynamic_depth, self.static_rgb, self.static_depth)


def _pushed(plane: Plane, flow: Float[Tensor, "n 2"], image_size: tuple[int, int]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, " n"]]:
    """Dynamic colours and opacities where the flow takes them."""
    layers = torch.cat([plane.dynamic_rgb, opacity(plane.dynamic_tau)[:, None]], 1).T.reshape(1, 4, *image_size)
    moved = splat_mean(layers, flow.T.reshape(1, 2, *image_size))[0].flatten(1).T
    return moved[:, :3], moved[:, 3]
