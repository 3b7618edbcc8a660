"""Colour, density and motion of every point of a moving scene at every moment: a static and a dynamic network side by side.

Source: Neural Scene Flow Fields (Li et al., CVPR 2021) as nsff_pl has them: both networks add up, where the paper blends them. The names of the weights are
those of nsff_pl, so that its checkpoints load as they are. Points are in NDC of ``npbgpp.methods.nsff.normalisation``. Symbols: n points, k channels of a code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError
from npbgpp.volume import add_trunk, check_sizes, positional_encoding, run_trunk


@dataclass(frozen=True)
class Matter:
    """What a network says of n points.

    Attributes:
        sigma: raw density, before the softplus.
        rgb: colours in 0..1; None where only densities were asked for.
    """

    sigma: Float[Tensor, " n"]
    rgb: Float[Tensor, "n 3"] | None


@dataclass(frozen=True)
class Motion:
    """Where n points of a moment are at its neighbours, as offsets in NDC.

    Attributes:
        forward: to the next moment; None where it was not asked for.
        backward: to the moment before; None where it was not asked for.
    """

    forward: Float[Tensor, "n 3"] | None
    backward: Float[Tensor, "n 3"] | None


class SpaceTimeField(nn.Module):
    """A static network, which knows no time, and a dynamic one, which is told a code of the moment.

    Args:
        depth: layers of either trunk.
        width: channels of each of them.
        skips: layers, counted from 0, that read the input again beside the output of the layer before.
        xyz_frequencies: frequencies in the embedding of a point.
        dir_frequencies: frequencies in the embedding of a direction.
        time_channels: channels of the code of a moment.
        appearance_channels: channels of the code of a photo, which changes static colours only; 0: there is none.
        view_directions: static colours depend on the direction that they are seen from.
        flow_scale: largest motion along an axis between two moments, NDC; None: the network knows of no motion.

    Raises:
        InputError: a size that makes no network, or an appearance without directions: the layer that would read it is theirs.
    """

    def __init__(
        self,
        *,
        depth: int = 8,
        width: int = 256,
        skips: Sequence[int] = (4,),
        xyz_frequencies: int = 10,
        dir_frequencies: int = 4,
        time_channels: int = 48,
        appearance_channels: int = 0,
        view_directions: bool = True,
        flow_scale: float | None = 0.2,
    ) -> None:
        super().__init__()
        least = {
            "depth": (depth, 1),
            "width": (width, 2),
            "xyz_frequencies": (xyz_frequencies, 0),
            "dir_frequencies": (dir_frequencies, 0),
            "time_channels": (time_channels, 1),
            "appearance_channels": (appearance_channels, 0),
        }
        check_sizes(skips, depth, least)
        if appearance_channels and not view_directions:
            raise InputError("appearance of the radiance field: it is read together with view directions; set view_directions=true")
        if flow_scale is not None and not flow_scale > 0:
            raise InputError(f"flow_scale of the radiance field: expected a positive length, got {flow_scale:g}")
        self.depth, self.skips, self.flow_scale = depth, frozenset(skips), flow_scale
        self.xyz_frequencies, self.dir_frequencies, self.appearance_channels = xyz_frequencies, dir_frequencies, appearance_channels
        xyz_channels, dir_channels = 3 + 6 * xyz_frequencies, 3 + 6 * dir_frequencies

        add_trunk(self, "static_xyz_encoding", xyz_channels, width, depth, self.skips)
        self.static_xyz_encoding_final = nn.Linear(width, width)
        self.static_dir_encoding = (
            nn.Sequential(nn.Linear(width + dir_channels + appearance_channels, width), nn.ReLU(inplace=True)) if view_directions else None
        )
        self.static_sigma = nn.Linear(width, 1)
        self.static_rgb = nn.Sequential(nn.Linear(width, 3), nn.Sigmoid())

        add_trunk(self, "transient_xyz_encoding", xyz_channels + time_channels, width, depth, self.skips)
        self.transient_xyz_encoding_final = nn.Linear(width, width)
        self.transient_sigma = nn.Linear(width, 1)
        self.transient_rgb = nn.Sequential(nn.Linear(width, 3), nn.Sigmoid())
        if flow_scale is not None:
            self.transient_flow_fw = nn.Sequential(nn.Linear(width, 3), nn.Tanh())
            self.transient_flow_bw = nn.Sequential(nn.Linear(width, 3), nn.Tanh())

    def embedded(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n e"]:
        """Points as both networks read them."""
        return positional_encoding(xyz, self.xyz_frequencies)

    def static(
        self,
        points: Float[Tensor, "n e"],
        directions: Float[Tensor, "n 3"],
        appearance: Float[Tensor, "n k"] | None = None,
        colours: bool = True,
    ) -> Matter:
        """What never moves.

        Args:
            points: see ``embedded``.
            directions: that they are looked at along; networks without view directions do not look at them.
            appearance: code of the photo, for networks that have one, and for no others.
            colours: ask for them.
        """
        hidden = run_trunk(self, "static_xyz_encoding", points, self.depth, self.skips)
        sigma = self.static_sigma(hidden)[:, 0]
        if not colours:
            return Matter(sigma, None)
        feature = self.static_xyz_encoding_final(hidden)
        if self.static_dir_encoding is not None:
            assert (appearance is not None) == (self.appearance_channels > 0)
            told = [feature, positional_encoding(directions, self.dir_frequencies)] + ([] if appearance is None else [appearance])
            feature = self.static_dir_encoding(torch.cat(told, -1))
        return Matter(sigma, self.static_rgb(feature))

    def dynamic(
        self, points: Float[Tensor, "n e"], time: Float[Tensor, "n k"], colours: bool = True, forward: bool = False, backward: bool = False
    ) -> tuple[Matter, Motion]:
        """What is there at a moment, and where it comes from or goes to.

        Args:
            points: see ``embedded``.
            time: code of the moment of each.
            colours: ask for them.
            forward: ask for the motion to the next moment.
            backward: ask for the motion to the moment before.
        """
        timed = torch.cat([points, time], -1)
        feature = self.transient_xyz_encoding_final(run_trunk(self, "transient_xyz_encoding", timed, self.depth, self.skips))
        matter = Matter(self.transient_sigma(feature)[:, 0], self.transient_rgb(feature) if colours else None)
        assert self.flow_scale is not None or not (forward or backward), "this field knows of no motion"
        scale = self.flow_scale or 0.0
        return matter, Motion(
            scale * self.transient_flow_fw(feature) if forward else None, scale * self.transient_flow_bw(feature) if backward else None
        )
