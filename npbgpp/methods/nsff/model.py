"""Pixels of a moving scene at its moments, from static and dynamic matter and from the motion between neighbouring moments.

Source: Neural Scene Flow Fields (Li et al., CVPR 2021) as nsff_pl has them. Symbols: n rays of one moment, s samples of each, p points.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from npbgpp.errors import InputError
from npbgpp.methods.nsff.compositing import (
    LAST_DYNAMIC,
    LAST_STATIC,
    Plane,
    Trust,
    TwoLayers,
    composite_both,
    composite_one,
    dynamic_layer,
    mean_along,
    near_motion,
    optical_depth,
    reach,
    trust_in,
    unseen_is_empty,
)
from npbgpp.methods.nsff.field import Matter, Motion, SpaceTimeField
from npbgpp.volume import Rays, sample_pdf, stratified

Seen = Callable[[Float[Tensor, "p 3"]], Bool[Tensor, " p"]]


@dataclass(frozen=True)
class NsffSampling:
    """How rays are sampled.

    Attributes:
        samples: depths at which the field is asked; with ``importance`` those of the coarse one.
        importance: depths drawn where static, and as many where dynamic matter of a coarse field is dense; 0 goes without a coarse field.
        perturb: in training, share of its stratum from which a depth is drawn; 0 takes even depths.
        noise_std: in training, deviation of the noise added to densities.

    Raises:
        InputError: a number out of range.
    """

    samples: int = 128
    importance: int = 0
    perturb: float = 1.0
    noise_std: float = 1.0

    def __post_init__(self) -> None:
        for name, number, least, most in (
            ("samples", self.samples, 3, torch.inf),
            ("importance", self.importance, 0, torch.inf),
            ("perturb", self.perturb, 0, 1),
            ("noise_std", self.noise_std, 0, torch.inf),
        ):
            if not least <= number <= most:
                raise InputError(f"{name} of rays: expected {f'{least} or more' if most > 1 else f'{least} to {most}'}, got {number:g}")


@dataclass(frozen=True)
class Warp:
    """The present, seen with the dynamic matter that a neighbouring moment has where the points of the present have gone.

    Attributes:
        xyz: the samples where they are at that moment, NDC.
        returned: these taken back by the motion there, NDC; where it is consistent, the samples themselves.
        seen: static matter of the present, dynamic matter of the neighbour.
        point: where what each ray hits is at that moment, NDC.
        trust: how far that can be compared with the present.
    """

    xyz: Float[Tensor, "n s 3"]
    returned: Float[Tensor, "n s 3"]
    seen: TwoLayers
    point: Float[Tensor, "n 3"]
    trust: Trust


@dataclass(frozen=True)
class Training:
    """n rays of a batch.

    Attributes:
        xyz: the samples, NDC.
        seen: by the field that pixels are taken from.
        coarse: by the coarse one; None where there is none.
        forward: as the next moment has it; None at the last one.
        backward: as the moment before has it; None at the first one.
    """

    xyz: Float[Tensor, "n s 3"]
    seen: TwoLayers
    coarse: TwoLayers | None
    forward: Warp | None
    backward: Warp | None


@dataclass(frozen=True)
class Look:
    """n rays outside of training.

    Attributes:
        rgb: colours of everything.
        depth: NDC, 0 to 1.
        dynamic_alpha: how much of each ray is seen to move.
        dynamic_rgb: what moves, on grey.
        dynamic_depth: depths by dynamic weight; not divided by ``dynamic_alpha``.
        static_rgb, static_depth: as if nothing moved.
        forward, backward: where what each ray hits is at the neighbouring moments, NDC.
    """

    rgb: Float[Tensor, "n 3"]
    depth: Float[Tensor, " n"]
    dynamic_alpha: Float[Tensor, " n"]
    dynamic_rgb: Float[Tensor, "n 3"]
    dynamic_depth: Float[Tensor, " n"]
    static_rgb: Float[Tensor, "n 3"]
    static_depth: Float[Tensor, " n"]
    forward: Float[Tensor, "n 3"]
    backward: Float[Tensor, "n 3"]


class Nsff(nn.Module):
    """The field of a video, with a coarse one beside it where importance sampling is wanted, and codes of its moments.

    Args:
        sampling: how rays are sampled.
        moments: of the video.
        time_channels: see SpaceTimeField.
        appearance_channels: see SpaceTimeField; the coarse field does not read them.
        flow_scale: see SpaceTimeField.
        dynamic_sigma: raw density that dynamic matter begins with, about; below 0 it grows only where static matter does not explain the photos. None: 0.
        depth, width, skips, xyz_frequencies, dir_frequencies, view_directions: of both fields, see SpaceTimeField.

    Raises:
        InputError: see SpaceTimeField; fewer than two moments.
    """

    def __init__(
        self,
        sampling: NsffSampling,
        *,
        moments: int,
        depth: int = 8,
        width: int = 256,
        skips: Sequence[int] = (4,),
        xyz_frequencies: int = 10,
        dir_frequencies: int = 4,
        time_channels: int = 48,
        appearance_channels: int = 0,
        view_directions: bool = True,
        flow_scale: float = 0.2,
        dynamic_sigma: float | None = None,
    ) -> None:
        super().__init__()
        if moments < 2:
            raise InputError(f"moments of the video: expected at least two frames to learn motion from, got {moments}; use more of it")

        def field(appearance: int, flow: float | None) -> SpaceTimeField:
            return SpaceTimeField(
                depth=depth,
                width=width,
                skips=skips,
                xyz_frequencies=xyz_frequencies,
                dir_frequencies=dir_frequencies,
                time_channels=time_channels,
                appearance_channels=appearance,
                view_directions=view_directions,
                flow_scale=flow,
            )

        self.sampling, self.moments = sampling, moments
        self.nerf_fine = field(appearance_channels, flow_scale)
        self.nerf_coarse = field(0, None) if sampling.importance else None
        if dynamic_sigma is not None:
            for net in filter(None, (self.nerf_fine, self.nerf_coarse)):
                nn.init.constant_(net.transient_sigma.bias, dynamic_sigma)
        self.embedding_t = nn.Embedding(moments, time_channels)
        self.embedding_a = nn.Embedding(moments, appearance_channels) if appearance_channels else None

    # -------------------------------------------------------------- training
    def train_on(self, rays: Rays, told: Float[Tensor, "n 3"], moment: int, generator: torch.Generator | None = None) -> Training:
        """Rays of one moment, its neighbours as far as there are any, with random depths and noise.

        Args:
            rays: in NDC.
            told: the directions that the field is told.
            moment: of all rays.
            generator: source of the draws.
        """
        s = self.sampling
        coarse, z = self._depths(rays, told, moment, s.perturb, s.noise_std, True, None, generator)
        xyz = rays.points(z)
        points = self.nerf_fine.embedded(xyz.flatten(0, 1))
        still = self._static(self.nerf_fine, points, told, moment, True)
        there, motion = self._dynamic(self.nerf_fine, points, moment, True, moment + 1 < self.moments, moment > 0)
        assert still.rgb is not None and there.rgb is not None
        static_tau = optical_depth(still.sigma.view_as(z), reach(z, LAST_STATIC), s.noise_std, generator)
        static_rgb = still.rgb.view_as(xyz)

        def composited(matter: Matter) -> TwoLayers:
            assert matter.rgb is not None
            tau = optical_depth(matter.sigma.view_as(z), reach(z, LAST_DYNAMIC), s.noise_std, generator)
            return composite_both(static_tau, static_rgb, tau, matter.rgb.view_as(xyz), z)

        seen = composited(there)

        def warp(offset: Float[Tensor, "p 3"] | None, neighbour: int) -> Warp | None:
            if offset is None:
                return None
            gone = xyz + near_motion(offset.view_as(xyz), z)
            arrived = self.nerf_fine.embedded(gone.flatten(0, 1))
            matter, back = self._dynamic(self.nerf_fine, arrived, neighbour, True, neighbour < moment, neighbour > moment)
            home = back.forward if back.backward is None else back.backward
            assert home is not None
            warped = composited(matter)
            point = mean_along(seen.weights, gone)
            return Warp(gone, gone + near_motion(home.view_as(xyz), z), warped, point, trust_in(warped, seen))

        return Training(xyz, seen, coarse, warp(motion.forward, moment + 1), warp(motion.backward, moment - 1))

    # -------------------------------------------------------------- afterwards
    def look(self, rays: Rays, told: Float[Tensor, "n 3"], moment: int, seen_by_camera: Seen | None = None, chunk: int = 32768) -> Look:
        """Rays of one moment without draws; no result depends on ``chunk``. Wrap the call in ``torch.no_grad`` where no gradient is wanted.

        Args:
            rays: in NDC.
            told: the directions that the field is told.
            moment: what is seen to move is that of this moment.
            seen_by_camera: which points of NDC the camera of the moment saw; where it did not, nothing moves. None: no matter.
            chunk: points that the field is asked about at a time. Halved for as long as the memory of the device does not suffice.
        """
        while True:
            try:
                size = max(1, chunk // self._along())
                blocks = [
                    self._look(rays[first : first + size], told[first : first + size], moment, seen_by_camera)
                    for first in range(0, max(1, len(rays)), size)
                ]
                return Look(**{name: torch.cat([getattr(block, name) for block in blocks]) for name in blocks[0].__dict__})
            except torch.OutOfMemoryError:
                if chunk <= 1:
                    raise
            chunk //= 2

    def depths(
        self, rays: Rays, told: Float[Tensor, "n 3"], moment: int, seen_by_camera: Seen | None = None, chunk: int = 32768
    ) -> Float[Tensor, "n s"]:
        """The depths that ``look`` asks at."""
        size = max(1, chunk // self._along())
        return torch.cat(
            [
                self._depths(rays[k : k + size], told[k : k + size], moment, 0.0, 0.0, False, seen_by_camera, None)[1]
                for k in range(0, max(1, len(rays)), size)
            ]
        )

    def plane(
        self,
        rays: Rays,
        told: Float[Tensor, "n 3"],
        moment: int,
        z: Float[Tensor, "n s"],
        k: int,
        seen_by_camera: Seen | None = None,
        chunk: int = 32768,
    ) -> Plane:
        """Sample k of every ray at a moment, and its motion to the moments beside.

        Args:
            rays, told, moment, seen_by_camera, chunk: see ``look``.
            z: depths of all samples.
            k: which sample.
        """
        xyz = rays.points(z[:, k : k + 1])[:, 0]
        parts = []
        for block, seen_along in zip(xyz.split(chunk), told.split(chunk), strict=True):
            points = self.nerf_fine.embedded(block)
            still = self._static(self.nerf_fine, points, seen_along, moment, True)
            there, motion = self._dynamic(self.nerf_fine, points, moment, True, True, True)
            sigma = there.sigma if seen_by_camera is None else unseen_is_empty(there.sigma[:, None], seen_by_camera(block)[:, None])[:, 0]
            parts.append((still.sigma, still.rgb, sigma, there.rgb, motion.forward, motion.backward))
        static_sigma, static_rgb, dynamic_sigma, dynamic_rgb, forward, backward = (torch.cat(values) for values in zip(*parts, strict=True))

        near = z[:, k : k + 1]

        def tau(sigma: Float[Tensor, " n"], last: float) -> Float[Tensor, " n"]:
            return optical_depth(sigma[:, None], reach(z, last)[:, k : k + 1])[:, 0]

        return Plane(
            xyz,
            z[:, k],
            tau(static_sigma, LAST_STATIC),
            static_rgb,
            tau(dynamic_sigma, LAST_DYNAMIC),
            dynamic_rgb,
            near_motion(forward[:, None], near)[:, 0],
            near_motion(backward[:, None], near)[:, 0],
        )

    # -------------------------------------------------------------- one block of rays
    def _along(self) -> int:
        return self.sampling.samples + 2 * self.sampling.importance

    def _look(self, rays: Rays, told: Float[Tensor, "n 3"], moment: int, seen_by_camera: Seen | None) -> Look:
        _, z = self._depths(rays, told, moment, 0.0, 0.0, False, seen_by_camera, None)
        xyz = rays.points(z)
        points = self.nerf_fine.embedded(xyz.flatten(0, 1))
        still = self._static(self.nerf_fine, points, told, moment, True)
        there, motion = self._dynamic(self.nerf_fine, points, moment, True, True, True)
        assert still.rgb is not None and there.rgb is not None and motion.forward is not None and motion.backward is not None
        static_tau = optical_depth(still.sigma.view_as(z), reach(z, LAST_STATIC))
        static_rgb, dynamic_rgb = still.rgb.view_as(xyz), there.rgb.view_as(xyz)
        dynamic_tau = optical_depth(_where_seen(there.sigma.view_as(z), xyz, seen_by_camera), reach(z, LAST_DYNAMIC))
        seen = composite_both(static_tau, static_rgb, dynamic_tau, dynamic_rgb, z)
        alone = composite_one(static_tau, static_rgb, z)
        assert seen.rgb is not None
        return Look(
            seen.rgb,
            seen.depth,
            seen.dynamic_alpha(),
            dynamic_layer(seen, dynamic_rgb),
            (seen.dynamic_weights * z).sum(-1),
            alone.rgb,
            alone.depth,
            mean_along(seen.weights, xyz + near_motion(motion.forward.view_as(xyz), z)),
            mean_along(seen.weights, xyz + near_motion(motion.backward.view_as(xyz), z)),
        )

    def _depths(
        self,
        rays: Rays,
        told: Float[Tensor, "n 3"],
        moment: int,
        perturb: float,
        noise_std: float,
        colours: bool,
        seen_by_camera: Seen | None,
        generator: torch.Generator | None,
    ) -> tuple[TwoLayers | None, Float[Tensor, "n s"]]:
        """(what the coarse field sees, depths for the fine one)."""
        s = self.sampling
        z = stratified(rays.near, rays.far, s.samples, perturb, generator=generator)
        if self.nerf_coarse is None:
            return None, z
        xyz = rays.points(z)
        points = self.nerf_coarse.embedded(xyz.flatten(0, 1))
        still = self._static(self.nerf_coarse, points, told, moment, colours)
        there, _ = self._dynamic(self.nerf_coarse, points, moment, colours, False, False)
        static_tau = optical_depth(still.sigma.view_as(z), reach(z, LAST_STATIC), noise_std, generator)
        dynamic_tau = optical_depth(_where_seen(there.sigma.view_as(z), xyz, seen_by_camera), reach(z, LAST_DYNAMIC), noise_std, generator)
        static_rgb, dynamic_rgb = (None if matter.rgb is None else matter.rgb.view_as(xyz) for matter in (still, there))
        coarse = composite_both(static_tau, static_rgb, dynamic_tau, dynamic_rgb, z)
        middle = 0.5 * (z[:, 1:] + z[:, :-1])
        drawn = [
            sample_pdf(middle, weights[:, 1:-1], s.importance, perturb, generator)
            for weights in (coarse.static_weights, coarse.dynamic_weights)
        ]
        return coarse, torch.cat([z, *drawn], -1).sort(-1).values

    def _static(
        self, field: SpaceTimeField, points: Float[Tensor, "p e"], told: Float[Tensor, "n 3"], moment: int, colours: bool
    ) -> Matter:
        along = told.repeat_interleave(len(points) // len(told), 0) if len(told) else told
        appearance = None
        if self.embedding_a is not None and field is self.nerf_fine:
            appearance = self.embedding_a.weight[moment].expand(len(points), -1)
        return field.static(points, along, appearance, colours)

    def _dynamic(
        self, field: SpaceTimeField, points: Float[Tensor, "p e"], moment: int, colours: bool, forward: bool, backward: bool
    ) -> tuple[Matter, Motion]:
        return field.dynamic(points, self.embedding_t.weight[moment].expand(len(points), -1), colours, forward, backward)


def _where_seen(sigma: Float[Tensor, "n s"], xyz: Float[Tensor, "n s 3"], seen_by_camera: Seen | None) -> Float[Tensor, "n s"]:
    return sigma if seen_by_camera is None else unseen_is_empty(sigma, seen_by_camera(xyz.flatten(0, 1)).view_as(sigma))


# ----------------------------------------------------------------------
# The sizes of the networks of an NSFF, read off its weights: whoever evaluates a checkpoint need not know how it was trained.


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
