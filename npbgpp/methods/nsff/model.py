"""NSFF on rays: the space-time field, sampling, rendering at a time step, and warping to the neighbouring time steps.

Source: Neural Scene Flow Fields (Li et al., CVPR 2021) as in nsff_pl: densities of both networks are added, where the paper blends them. Weight names are those
of nsff_pl, so its checkpoints load unchanged. Points are in NDC of ``npbgpp.methods.nsff.normalisation``. Symbols: n points of the field or rays of one time
step, s samples of each ray, p points, k channels of a code.
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
    DisocclusionWeights,
    Plane,
    TwoLayers,
    composite_both,
    composite_one,
    deltas,
    disocclusion_weights,
    dynamic_layer,
    mask_unseen,
    mean_along,
    near_motion,
    optical_depth,
)
from npbgpp.volume import Rays, add_trunk, check_sizes, positional_encoding, run_trunk, sample_pdf, stratified

# ----------------------------------------------------------------------
# Field: colour, density and scene flow of points at every time step, from a static and a dynamic network


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


# ----------------------------------------------------------------------
# Rays


VisibilityTest = Callable[[Float[Tensor, "p 3"]], Bool[Tensor, " p"]]


@dataclass(frozen=True)
class NsffSampling:
    """How rays are sampled.

    Attributes:
        samples: depths per ray; with ``importance`` those of the coarse field.
        importance: importance samples by the static weights of a coarse field, and as many by its dynamic weights; 0: no coarse field.
        perturb: in training, fraction of its stratum that a depth is drawn from; 0: evenly spaced depths.
        noise_std: in training, standard deviation of noise added to densities.

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
    """A time step rendered with the dynamic field of a neighbouring one, at samples moved there by the scene flow.

    Attributes:
        xyz: samples, moved to the neighbouring time step, NDC.
        returned: samples moved there and back, NDC; equal to the samples if the flow is cycle consistent.
        composited: static field of the time step, dynamic field of the neighbour.
        point: expected surface point of each ray, moved to the neighbouring time step, NDC.
        disocclusion: weights of the comparison with the time step.
    """

    xyz: Float[Tensor, "n s 3"]
    returned: Float[Tensor, "n s 3"]
    composited: TwoLayers
    point: Float[Tensor, "n 3"]
    disocclusion: DisocclusionWeights


@dataclass(frozen=True)
class Training:
    """n rendered rays of a training batch.

    Attributes:
        xyz: samples, NDC.
        fine: rendered by the fine field.
        coarse: rendered by the coarse field; None without one.
        forward: warped to the next time step; None at the last one.
        backward: warped to the previous time step; None at the first one.
    """

    xyz: Float[Tensor, "n s 3"]
    fine: TwoLayers
    coarse: TwoLayers | None
    forward: Warp | None
    backward: Warp | None


@dataclass(frozen=True)
class RayOutputs:
    """n rays rendered at a time step.

    Attributes:
        rgb: colours.
        depth: expected depth, NDC, 0 to 1.
        dynamic_alpha: opacity of the dynamic part.
        dynamic_rgb: the dynamic part on grey.
        dynamic_depth: sum of depths by dynamic weight, not divided by ``dynamic_alpha``.
        static_rgb, static_depth: the static part alone.
        forward, backward: expected surface points, moved to the neighbouring time steps, NDC.
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
    """The field of a video, a coarse field for importance sampling, and embeddings of the time steps.

    Args:
        sampling: how rays are sampled.
        time_steps: number of frames of the video.
        time_channels: see SpaceTimeField.
        appearance_channels: see SpaceTimeField; not used by the coarse field.
        flow_scale: see SpaceTimeField.
        dynamic_sigma: initial bias of the raw dynamic density; below 0, density grows only where the static field does not explain the photos. None: about 0.
        depth, width, skips, xyz_frequencies, dir_frequencies, view_directions: of both fields, see SpaceTimeField.

    Raises:
        InputError: see SpaceTimeField; fewer than two time steps.
    """

    def __init__(
        self,
        sampling: NsffSampling,
        *,
        time_steps: int,
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
        if time_steps < 2:
            raise InputError(
                f"time steps of the video: expected at least two frames to learn motion from, got {time_steps}; use more of it"
            )

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

        self.sampling, self.time_steps = sampling, time_steps
        self.nerf_fine = field(appearance_channels, flow_scale)
        self.nerf_coarse = field(0, None) if sampling.importance else None
        if dynamic_sigma is not None:
            for net in filter(None, (self.nerf_fine, self.nerf_coarse)):
                nn.init.constant_(net.transient_sigma.bias, dynamic_sigma)
        self.embedding_t = nn.Embedding(time_steps, time_channels)
        self.embedding_a = nn.Embedding(time_steps, appearance_channels) if appearance_channels else None

    # -------------------------------------------------------------- training
    def render_training(
        self, rays: Rays, viewdirs: Float[Tensor, "n 3"], time_step: int, generator: torch.Generator | None = None
    ) -> Training:
        """Renders rays at one time step and warped to its neighbours, with random depths and noise.

        Args:
            rays: in NDC.
            viewdirs: viewing directions for the field.
            time_step: of all rays.
            generator: random number generator.
        """
        s = self.sampling
        coarse, z = self._depths(rays, viewdirs, time_step, s.perturb, s.noise_std, True, None, generator)
        xyz = rays.points(z)
        points = self.nerf_fine.embedded(xyz.flatten(0, 1))
        static = self._static(self.nerf_fine, points, viewdirs, time_step, True)
        dynamic, motion = self._dynamic(self.nerf_fine, points, time_step, True, time_step + 1 < self.time_steps, time_step > 0)
        assert static.rgb is not None and dynamic.rgb is not None
        static_tau = optical_depth(static.sigma.view_as(z), deltas(z, LAST_STATIC), s.noise_std, generator)
        static_rgb = static.rgb.view_as(xyz)

        def composited(output: FieldOutput) -> TwoLayers:
            assert output.rgb is not None
            tau = optical_depth(output.sigma.view_as(z), deltas(z, LAST_DYNAMIC), s.noise_std, generator)
            return composite_both(static_tau, static_rgb, tau, output.rgb.view_as(xyz), z)

        seen = composited(dynamic)

        def warp(offset: Float[Tensor, "p 3"] | None, neighbour: int) -> Warp | None:
            if offset is None:
                return None
            gone = xyz + near_motion(offset.view_as(xyz), z)
            arrived = self.nerf_fine.embedded(gone.flatten(0, 1))
            output, back = self._dynamic(self.nerf_fine, arrived, neighbour, True, neighbour < time_step, neighbour > time_step)
            home = back.forward if back.backward is None else back.backward
            assert home is not None
            warped = composited(output)
            point = mean_along(seen.weights, gone)
            return Warp(gone, gone + near_motion(home.view_as(xyz), z), warped, point, disocclusion_weights(warped, seen))

        return Training(xyz, seen, coarse, warp(motion.forward, time_step + 1), warp(motion.backward, time_step - 1))

    # -------------------------------------------------------------- evaluation
    def render(
        self, rays: Rays, viewdirs: Float[Tensor, "n 3"], time_step: int, is_visible: VisibilityTest | None = None, chunk: int = 32768
    ) -> RayOutputs:
        """Renders rays at one time step, deterministically and independent of ``chunk``; call it under ``torch.no_grad`` if no gradient is needed.

        Args:
            rays: in NDC.
            viewdirs: viewing directions for the field.
            time_step: of all rays.
            is_visible: visibility of NDC points in the camera of the time step; the dynamic density is zero elsewhere. None: not used.
            chunk: points per query of the field; halved while the device is out of memory.
        """
        while True:
            try:
                size = max(1, chunk // self._along())
                blocks = [
                    self._render_chunk(rays[first : first + size], viewdirs[first : first + size], time_step, is_visible)
                    for first in range(0, max(1, len(rays)), size)
                ]
                return RayOutputs(**{name: torch.cat([getattr(block, name) for block in blocks]) for name in blocks[0].__dict__})
            except torch.OutOfMemoryError:
                if chunk <= 1:
                    raise
            chunk //= 2

    def depths(
        self, rays: Rays, viewdirs: Float[Tensor, "n 3"], time_step: int, is_visible: VisibilityTest | None = None, chunk: int = 32768
    ) -> Float[Tensor, "n s"]:
        """The depths that ``render`` samples."""
        size = max(1, chunk // self._along())
        return torch.cat(
            [
                self._depths(rays[k : k + size], viewdirs[k : k + size], time_step, 0.0, 0.0, False, is_visible, None)[1]
                for k in range(0, max(1, len(rays)), size)
            ]
        )

    def plane(
        self,
        rays: Rays,
        viewdirs: Float[Tensor, "n 3"],
        time_step: int,
        z: Float[Tensor, "n s"],
        k: int,
        is_visible: VisibilityTest | None = None,
        chunk: int = 32768,
    ) -> Plane:
        """Sample k of every ray at a time step, and its scene flow to the neighbouring time steps.

        Args:
            rays, viewdirs, time_step, is_visible, chunk: see ``render``.
            z: depths of all samples.
            k: index of the sample.
        """
        xyz = rays.points(z[:, k : k + 1])[:, 0]
        parts = []
        for block, seen_along in zip(xyz.split(chunk), viewdirs.split(chunk), strict=True):
            points = self.nerf_fine.embedded(block)
            static = self._static(self.nerf_fine, points, seen_along, time_step, True)
            dynamic, motion = self._dynamic(self.nerf_fine, points, time_step, True, True, True)
            sigma = dynamic.sigma if is_visible is None else mask_unseen(dynamic.sigma[:, None], is_visible(block)[:, None])[:, 0]
            parts.append((static.sigma, static.rgb, sigma, dynamic.rgb, motion.forward, motion.backward))
        static_sigma, static_rgb, dynamic_sigma, dynamic_rgb, forward, backward = (torch.cat(values) for values in zip(*parts, strict=True))

        near = z[:, k : k + 1]

        def tau(sigma: Float[Tensor, " n"], last: float) -> Float[Tensor, " n"]:
            return optical_depth(sigma[:, None], deltas(z, last)[:, k : k + 1])[:, 0]

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

    # -------------------------------------------------------------- one chunk of rays
    def _along(self) -> int:
        return self.sampling.samples + 2 * self.sampling.importance

    def _render_chunk(self, rays: Rays, viewdirs: Float[Tensor, "n 3"], time_step: int, is_visible: VisibilityTest | None) -> RayOutputs:
        _, z = self._depths(rays, viewdirs, time_step, 0.0, 0.0, False, is_visible, None)
        xyz = rays.points(z)
        points = self.nerf_fine.embedded(xyz.flatten(0, 1))
        static = self._static(self.nerf_fine, points, viewdirs, time_step, True)
        dynamic, motion = self._dynamic(self.nerf_fine, points, time_step, True, True, True)
        assert static.rgb is not None and dynamic.rgb is not None and motion.forward is not None and motion.backward is not None
        static_tau = optical_depth(static.sigma.view_as(z), deltas(z, LAST_STATIC))
        static_rgb, dynamic_rgb = static.rgb.view_as(xyz), dynamic.rgb.view_as(xyz)
        dynamic_tau = optical_depth(_mask_unseen_samples(dynamic.sigma.view_as(z), xyz, is_visible), deltas(z, LAST_DYNAMIC))
        seen = composite_both(static_tau, static_rgb, dynamic_tau, dynamic_rgb, z)
        alone = composite_one(static_tau, static_rgb, z)
        assert seen.rgb is not None
        return RayOutputs(
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
        viewdirs: Float[Tensor, "n 3"],
        time_step: int,
        perturb: float,
        noise_std: float,
        colours: bool,
        is_visible: VisibilityTest | None,
        generator: torch.Generator | None,
    ) -> tuple[TwoLayers | None, Float[Tensor, "n s"]]:
        """(rendering of the coarse field, depths for the fine field)."""
        s = self.sampling
        z = stratified(rays.near, rays.far, s.samples, perturb, generator=generator)
        if self.nerf_coarse is None:
            return None, z
        xyz = rays.points(z)
        points = self.nerf_coarse.embedded(xyz.flatten(0, 1))
        static = self._static(self.nerf_coarse, points, viewdirs, time_step, colours)
        dynamic, _ = self._dynamic(self.nerf_coarse, points, time_step, colours, False, False)
        static_tau = optical_depth(static.sigma.view_as(z), deltas(z, LAST_STATIC), noise_std, generator)
        dynamic_tau = optical_depth(
            _mask_unseen_samples(dynamic.sigma.view_as(z), xyz, is_visible), deltas(z, LAST_DYNAMIC), noise_std, generator
        )
        static_rgb, dynamic_rgb = (None if output.rgb is None else output.rgb.view_as(xyz) for output in (static, dynamic))
        coarse = composite_both(static_tau, static_rgb, dynamic_tau, dynamic_rgb, z)
        middle = 0.5 * (z[:, 1:] + z[:, :-1])
        drawn = [
            sample_pdf(middle, weights[:, 1:-1], s.importance, perturb, generator)
            for weights in (coarse.static_weights, coarse.dynamic_weights)
        ]
        return coarse, torch.cat([z, *drawn], -1).sort(-1).values

    def _static(
        self, field: SpaceTimeField, points: Float[Tensor, "p e"], viewdirs: Float[Tensor, "n 3"], time_step: int, colours: bool
    ) -> FieldOutput:
        along = viewdirs.repeat_interleave(len(points) // len(viewdirs), 0) if len(viewdirs) else viewdirs
        appearance = None
        if self.embedding_a is not None and field is self.nerf_fine:
            appearance = self.embedding_a.weight[time_step].expand(len(points), -1)
        return field.static(points, along, appearance, colours)

    def _dynamic(
        self, field: SpaceTimeField, points: Float[Tensor, "p e"], time_step: int, colours: bool, forward: bool, backward: bool
    ) -> tuple[FieldOutput, SceneFlow]:
        return field.dynamic(points, self.embedding_t.weight[time_step].expand(len(points), -1), colours, forward, backward)


def _mask_unseen_samples(
    sigma: Float[Tensor, "n s"], xyz: Float[Tensor, "n s 3"], is_visible: VisibilityTest | None
) -> Float[Tensor, "n s"]:
    return sigma if is_visible is None else mask_unseen(sigma, is_visible(xyz.flatten(0, 1)).view_as(sigma))


# ---------------------------------------------------------------- network sizes from weights


SAME_AS_NSFF_PL = ("nerf_fine.", "nerf_coarse.", "embedding_t.", "embedding_a.")
"""Prefixes of weight names."""

_TRUNK = "nerf_fine.transient_xyz_encoding"


@dataclass(frozen=True)
class NsffArchitecture:
    """Arguments of ``Nsff``; ``coarse``: whether there is a coarse field."""

    time_steps: int
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
        """Arguments of ``Nsff`` for a field of these sizes with the sampling of ``field``.

        Raises:
            InputError: only one of the weights and ``field`` has a coarse field; the number of importance samples is not in the weights.
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
    """Infers the sizes from weights named as in nsff_pl.

    Raises:
        InputError: weights of something else, or of a field without scene flow or without dynamic part.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise InputError(
                f"weights of an NSFF: expected {name}, got none; this is the checkpoint of something else, or of a run of nsff_pl without --encode_t, "
                "which has a static field only: choose another file"
            )
        return tuple(weights[name].shape)

    time_steps, time_channels = shape("embedding_t.weight")
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
        time_steps,
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
