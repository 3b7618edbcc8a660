"""Space-time field of NSFF: colour, density and scene flow of points at every time step, from a static and a dynamic network.

Source: Neural Scene Flow Fields (Li et al., CVPR 2021) as in nsff_pl: densities of both networks are added, where the paper blends them. Weight names are those
of nsff_pl, so its checkpoints load unchanged. Points are in NDC of ``npbgpp.methods.nsff.normalisation``. Symbols: n points, k channels of a code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError
from npbgpp.volume import add_trunk, check_sizes, positional_encoding, run_trunk


@dataclass(frozen=True)
class FieldOutput:
    """Output of a network for n points.

    Attributes:
        sigma: raw density, before the softplus.
        rgb: colours in 0..1; None unless requested.
    """

    sigma: Float[Tensor, " n"]
    rgb: Float[Tensor, "n 3"] | None


@dataclass(frozen=True)
class SceneFlow:
    """Offsets of n points to their positions at the neighbouring time steps, NDC.

    Attributes:
        forward: to the next time step; None unless requested.
        backward: to the previous time step; None unless requested.
    """

    forward: Float[Tensor, "n 3"] | None
    backward: Float[Tensor, "n 3"] | None


class SpaceTimeField(nn.Module):
    """A static network, and a dynamic network that is conditioned on a time embedding.

    Args:
        depth: layers of either trunk.
        width: channels of each of them.
        skips: layers, counted from 0, with a skip connection from the input.
        xyz_frequencies: frequencies in the embedding of a point.
        dir_frequencies: frequencies in the embedding of a direction.
        time_channels: channels of the time embedding.
        appearance_channels: channels of the appearance embedding of a photo, which affects static colours only; 0: none.
        view_directions: static colours depend on the viewing direction.
        flow_scale: largest motion along an axis between two time steps, NDC; None: no scene flow.

    Raises:
        InputError: a size out of range, or an appearance embedding without view directions.
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
            raise InputError("appearance of the radiance field: expected 0 without view directions; set view_directions=true")
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
        """Positional encoding of points for both networks."""
        return positional_encoding(xyz, self.xyz_frequencies)

    def static(
        self,
        points: Float[Tensor, "n e"],
        directions: Float[Tensor, "n 3"],
        appearance: Float[Tensor, "n k"] | None = None,
        colours: bool = True,
    ) -> FieldOutput:
        """The static part of the field.

        Args:
            points: see ``embedded``.
            directions: viewing directions; unused by networks without view directions.
            appearance: appearance embedding; None for networks without.
            colours: compute colours.
        """
        hidden = run_trunk(self, "static_xyz_encoding", points, self.depth, self.skips)
        sigma = self.static_sigma(hidden)[:, 0]
        if not colours:
            return FieldOutput(sigma, None)
        feature = self.static_xyz_encoding_final(hidden)
        if self.static_dir_encoding is not None:
            assert (appearance is not None) == (self.appearance_channels > 0)
            inputs = [feature, positional_encoding(directions, self.dir_frequencies)] + ([] if appearance is None else [appearance])
            feature = self.static_dir_encoding(torch.cat(inputs, -1))
        return FieldOutput(sigma, self.static_rgb(feature))

    def dynamic(
        self, points: Float[Tensor, "n e"], time: Float[Tensor, "n k"], colours: bool = True, forward: bool = False, backward: bool = False
    ) -> tuple[FieldOutput, SceneFlow]:
        """The dynamic part of the field and its scene flow.

        Args:
            points: see ``embedded``.
            time: time embedding of each point.
            colours: compute colours.
            forward: compute the flow to the next time step.
            backward: compute the flow to the previous time step.
        """
        timed = torch.cat([points, time], -1)
        feature = self.transient_xyz_encoding_final(run_trunk(self, "transient_xyz_encoding", timed, self.depth, self.skips))
        output = FieldOutput(self.transient_sigma(feature)[:, 0], self.transient_rgb(feature) if colours else None)
        assert self.flow_scale is not None or not (forward or backward), "this field has no scene flow"
        scale = self.flow_scale or 0.0
        return output, SceneFlow(
            scale * self.transient_flow_fw(feature) if forward else None, scale * self.transient_flow_bw(feature) if backward else None
        )
