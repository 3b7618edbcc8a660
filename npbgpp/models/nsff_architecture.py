"""The sizes of the networks of an NSFF, read off its weights: whoever evaluates a checkpoint need not know how it was trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.models.nsff import Nsff

SAME_AS_NSFF_PL = ("nerf_fine.", "nerf_coarse.", "embedding_t.", "embedding_a.")
"""How the names of the weights start."""

_TRUNK = "nerf_fine.transient_xyz_encoding"


@dataclass(frozen=True)
class NsffArchitecture:
    """Sizes as the arguments of ``Nsff``; ``coarse``: there is a coarse field."""

    moments: int
    depth: int
    width: int
    skips: tuple[int, ...]
    xyz_frequencies: int
    dir_frequencies: int
    time_channels: int
    appearance_channels: int
    view_directions: bool
    coarse: bool

    def changes(self, field: Nsff) -> dict[str, Any]:
        """Arguments of ``Nsff`` for a field of these sizes that samples rays as the given one does.

        Raises:
            InputError: the given one draws depths by a coarse field and the weights have none, or the other way round: how many is not in the weights.
        """
        importance = field.sampling.importance
        if self.coarse != (importance > 0):
            expected = (
                "the number that the weights were trained with, for they have a coarse field"
                if self.coarse
                else "0, for the weights have no coarse field"
            )
            raise InputError(f"system.field.sampling.importance: expected {expected}, got {importance}")
        keys = ("depth", "width", "skips", "xyz_frequencies", "time_channels", "appearance_channels", "view_directions")
        found = {key: getattr(self, key) for key in keys}
        if self.view_directions:
            found["dir_frequencies"] = self.dir_frequencies
        return found


def architecture_of(weights: Mapping[str, Tensor]) -> NsffArchitecture:
    """Reads sizes off weights named as in nsff_pl.

    Raises:
        InputError: weights that are no field of a video with motion, or of a video that was trained without its dynamic part.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise InputError(
                f"weights of an NSFF: expected {name}, got none; this is the checkpoint of something else, or of a run of nsff_pl without --encode_t, "
                "which has static matter only: choose another file"
            )
        return tuple(weights[name].shape)

    moments, time_channels = shape("embedding_t.weight")
    shape("nerf_fine.transient_flow_fw.0.weight")
    width, first = shape(f"{_TRUNK}_1.0.weight")
    xyz_channels = first - time_channels
    depth = 1
    while f"{_TRUNK}_{depth + 1}.0.weight" in weights:
        depth += 1
    skips = tuple(k for k in range(1, depth) if shape(f"{_TRUNK}_{k + 1}.0.weight")[1] != width)
    appearance = shape("embedding_a.weight")[1] if "embedding_a.weight" in weights else 0
    directions = "nerf_fine.static_dir_encoding.0.weight"
    dir_channels = shape(directions)[1] - width - appearance if directions in weights else 3
    coarse = any(name.startswith("nerf_coarse.") for name in weights)
    return NsffArchitecture(
        moments,
        depth,
        width,
        skips,
        (xyz_channels - 3) // 6,
        (dir_channels - 3) // 6,
        time_channels,
        appearance,
        directions in weights,
        coarse,
    )
