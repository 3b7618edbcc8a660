"""Pixels from two radiance fields: a coarse one says where, a fine one what (NeRF; Mildenhall et al., ECCV 2020, section 5.2).

Symbols: n rays, s samples of each, p samples of all rays together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError
from npbgpp.volume import Composited, OccupancyGrid, RadianceField, Rays, composite, composite_packed, sample_pdf, stratified

_MARCHED_CHUNKS = 16  # so many points are looked up in the grid for one that a network is asked about: most are empty
_FIELDS = ("nerf_coarse.", "nerf_fine.")  # how the names of their weights start in nerf_pl
_WAVE = 16  # samples of a ray that a network is asked about before it is seen whether the ray goes on
_OPAQUE = 9.2  # optical depth at which a ray ends: a ten-thousandth of the light passes


@dataclass(frozen=True)
class NerfSampling:
    """How rays are sampled.

    Attributes:
        samples: depths at which the coarse field is asked.
        importance: depths drawn where the coarse field is dense, for the fine one; 0 goes without a fine field.
        perturb: in training, share of its stratum from which a depth is drawn; 0 takes even depths.
        noise_std: in training, deviation of the noise added to densities.
        disparity: depths even in 1 / depth.
        marched: outside of training, depths along a ray among which an occupancy grid chooses.

    Raises:
        InputError: a number out of range.
    """

    samples: int = 64
    importance: int = 128
    perturb: float = 1.0
    noise_std: float = 1.0
    disparity: bool = False
    marched: int = 512

    def __post_init__(self) -> None:
        # importance sampling goes by the midpoints between the samples, and by all weights but the first and the last
        for name, number, least, most in (
            ("samples", self.samples, 3 if self.importance else 1, torch.inf),
            ("importance", self.importance, 0, torch.inf),
            ("perturb", self.perturb, 0, 1),
            ("noise_std", self.noise_std, 0, torch.inf),
            ("marched", self.marched, 1, torch.inf),
        ):
            if not least <= number <= most:
                raise InputError(f"{name} of rays: expected {f'{least} or more' if most > 1 else f'{least} to {most}'}, got {number:g}")


@dataclass(frozen=True)
class NerfRender:
    """n rays as either field sees them; None where it was not asked.

    Attributes:
        coarse: of the coarse field; without colours where only its densities were needed.
        fine: of the fine field.
    """

    coarse: Composited | None
    fine: Composited | None

    def final(self) -> Composited:
        """The better of the two."""
        seen = self.coarse if self.fine is None else self.fine
        assert seen is not None, "a render holds at least one field"
        return seen


class Nerf(nn.Module):
    """A coarse and, with importance sampling, a fine radiance field.

    Args:
        sampling: how rays are sampled.
        depth, width, skips, xyz_frequencies, dir_frequencies: of both fields, see RadianceField.
    """

    def __init__(
        self,
        sampling: NerfSampling,
        *,
        depth: int = 8,
        width: int = 256,
        skips: Sequence[int] = (4,),
        xyz_frequencies: int = 10,
        dir_frequencies: int = 4,
    ) -> None:
        super().__init__()

        def field() -> RadianceField:
            return RadianceField(depth=depth, width=width, skips=skips, xyz_frequencies=xyz_frequencies, dir_frequencies=dir_frequencies)

        self.sampling = sampling
        self.nerf_coarse = field()
        self.nerf_fine = field() if sampling.importance else None

    @property
    def final(self) -> RadianceField:
        """The field that pixels are taken from."""
        return self.nerf_coarse if self.nerf_fine is None else self.nerf_fine

    def render(
        self,
        rays: Rays,
        view_directions: Float[Tensor, "n 3"],
        training: bool,
        grid: OccupancyGrid | None = None,
        chunk: int = 32768,
        *,
        background: Float[Tensor, "*each 3"] | None = None,
        coarse_colours: bool = False,
        generator: torch.Generator | None = None,
    ) -> NerfRender:
        """Rays seen by the fields.

        Args:
            rays: where to look.
            view_directions: what the fields are told about the direction; nerf_pl tells them ``rays.directions``, whatever their length.
            training: draw depths and noise, and ask for the colours of both fields, all rays at once. Otherwise nothing is drawn, and no result depends on
                ``chunk``; wrap the call in ``torch.no_grad`` where no gradient is wanted.
            grid: where it says empty, no field is asked and the density is 0. Outside of training, a grid takes the place of the coarse field, and nothing is
                asked about what lies behind all but a ten-thousandth of opacity.
            chunk: points that a field is asked about at a time. Outside of training, halved for as long as the memory of the device does not suffice.
            background: one colour or one per ray, seen as far as a ray is not opaque; None is black.
            coarse_colours: outside of training and without a grid, colours of the coarse field, too: for its loss.
            generator: source of the draws.
        """
        if training:
            return self._coarse_to_fine(rays, view_directions, True, grid, chunk, True, background, generator)
        while True:
            try:
                return self._in_blocks(rays, view_directions, grid, chunk, coarse_colours, background)
            except torch.OutOfMemoryError:
                if chunk <= 1:
                    raise
            chunk //= 2

    def load_nerf_pl(self, checkpoint: Mapping[str, Any], prefixes_to_ignore: Sequence[str] = ()) -> None:
        """Takes over the weights of a checkpoint of nerf_pl.

        Args:
            checkpoint: with a ``state_dict``, or that alone. Names that do not start with ``nerf_coarse.`` or ``nerf_fine.`` are not looked at.
            prefixes_to_ignore: weights of either field whose names start so keep the values that they have.

        Raises:
            InputError: no weights, no such field here or there, other names or sizes, or numbers that are not finite.
        """
        state = checkpoint.get("state_dict", checkpoint)
        state = state if isinstance(state, Mapping) else {}
        weights = {name: value for name, value in state.items() if str(name).startswith(_FIELDS)}
        if not weights:
            raise InputError("checkpoint of nerf_pl: expected weights named nerf_coarse.* and nerf_fine.*, got none; choose another file")
        has_fine = any(name.startswith("nerf_fine.") for name in weights)
        if has_fine != (self.nerf_fine is not None):
            raise InputError(
                f"checkpoint of nerf_pl: expected {'no' if self.nerf_fine is None else 'a'} fine field (importance {self.sampling.importance}), "
                f"got a file {'with' if has_fine else 'without'} one; set importance to {'the number it was trained with' if has_fine else 0}"
            )
        ignored = tuple(prefixes_to_ignore)
        wanted, weights = (
            {name: value for name, value in named.items() if not name.partition(".")[2].startswith(ignored)}
            for named in (self.state_dict(), weights)
        )
        for name in sorted(wanted.keys() | weights.keys()):
            expected, got = (_described(tensors.get(name)) for tensors in (wanted, weights))
            if expected != got:
                raise InputError(
                    f"checkpoint of nerf_pl, {name}: expected {expected}, got {got}; set depth, width, skips and frequencies as they were in training, "
                    "or leave such weights out with prefixes_to_ignore"
                )
            if not torch.isfinite(weights[name]).all():
                raise InputError(f"checkpoint of nerf_pl, {name}: expected finite numbers, got others; choose an earlier checkpoint")
        self.load_state_dict(weights, strict=False)

    # ------------------------------------------------------------------ outside of training, rays come in blocks
    def _in_blocks(
        self,
        rays: Rays,
        view_directions: Float[Tensor, "n 3"],
        grid: OccupancyGrid | None,
        chunk: int,
        coarse_colours: bool,
        background: Float[Tensor, "*each 3"] | None,
    ) -> NerfRender:
        settings = self.sampling
        along = settings.samples + settings.importance if grid is None else settings.marched
        size = max(1, (chunk if grid is None else _MARCHED_CHUNKS * chunk) // along)
        blocks = []
        for first in range(0, max(1, len(rays)), size):
            block, seen_along = rays[first : first + size], view_directions[first : first + size]
            behind = background[first : first + size] if background is not None and background.ndim == 2 else background
            if grid is None:
                blocks.append(
                    self._coarse_to_fine(block, seen_along, False, None, chunk, coarse_colours or self.nerf_fine is None, behind, None)
                )
            else:
                blocks.append(self._marched(block, seen_along, grid, chunk, behind))
        return NerfRender(_joined([b.coarse for b in blocks]), _joined([b.fine for b in blocks]))

    def _marched(
        self,
        rays: Rays,
        view_directions: Float[Tensor, "n 3"],
        grid: OccupancyGrid,
        chunk: int,
        background: Float[Tensor, "*each 3"] | None,
    ) -> NerfRender:
        samples = grid.march(rays, stratified(rays.near, rays.far, self.sampling.marched, 0.0, self.sampling.disparity))
        norms, xyz, wave = rays.directions.norm(dim=-1), samples.points(rays), samples.ranks() // _WAVE
        sigma, rgb = torch.full_like(samples.z, -torch.inf), torch.zeros_like(xyz)
        absorbed = torch.zeros_like(norms)
        for k in range(int(wave.max()) + 1 if len(samples) else 0):
            asked = ((wave == k) & (absorbed < _OPAQUE)[samples.ray]).nonzero()[:, 0]
            ray = samples.ray[asked]
            found, colours = self._ask(self.final, xyz[asked], view_directions[ray], chunk, True)
            assert colours is not None
            sigma, rgb = sigma.index_put((asked,), found.to(sigma)), rgb.index_put((asked,), colours.to(rgb))
            absorbed = absorbed.index_add(0, ray, sigma[asked].detach().relu() * samples.delta[asked] * norms[ray])
        seen = composite_packed(sigma, rgb, samples, norms, background)
        return NerfRender(seen, None) if self.nerf_fine is None else NerfRender(None, seen)

    # ------------------------------------------------------------------ one block of rays
    def _coarse_to_fine(
        self,
        rays: Rays,
        view_directions: Float[Tensor, "n 3"],
        training: bool,
        grid: OccupancyGrid | None,
        chunk: int,
        coarse_colours: bool,
        background: Float[Tensor, "*each 3"] | None,
        generator: torch.Generator | None,
    ) -> NerfRender:
        settings = self.sampling
        perturb, noise_std = (settings.perturb, settings.noise_std) if training else (0.0, 0.0)
        norms = rays.directions.norm(dim=-1)

        def look(field: RadianceField, z: Float[Tensor, "n s"], colours: bool) -> Composited:
            xyz = rays.points(z)
            along = view_directions[:, None].expand_as(xyz)
            if grid is None:
                flat_sigma, flat_rgb = self._ask(field, xyz.flatten(0, 1), along.flatten(0, 1), chunk, colours)
                sigma, rgb = flat_sigma.view_as(z), None if flat_rgb is None else flat_rgb.view_as(xyz)
            else:
                kept = grid.occupied(xyz)
                flat_sigma, flat_rgb = self._ask(field, xyz[kept], along[kept], chunk, colours)
                sigma = flat_sigma.new_full(z.shape, -torch.inf).index_put((kept,), flat_sigma)
                rgb = None if flat_rgb is None else flat_rgb.new_zeros(xyz.shape).index_put((kept,), flat_rgb)
            return composite(sigma, rgb, z, norms, background, noise_std, generator)

        z = stratified(rays.near, rays.far, settings.samples, perturb, settings.disparity, generator)
        coarse = look(self.nerf_coarse, z, coarse_colours)
        if self.nerf_fine is None:
            return NerfRender(coarse, None)
        drawn = sample_pdf(0.5 * (z[:, 1:] + z[:, :-1]), coarse.weights[:, 1:-1], settings.importance, perturb, generator)
        return NerfRender(coarse, look(self.nerf_fine, torch.cat([z, drawn], -1).sort(-1).values, True))

    def _ask(
        self, field: RadianceField, xyz: Float[Tensor, "p 3"], along: Float[Tensor, "p 3"], chunk: int, colours: bool
    ) -> tuple[Float[Tensor, " p"], Float[Tensor, "p 3"] | None]:
        if not colours:
            return torch.cat([field.density(points) for points in xyz.split(chunk)]), None
        asked = [field(points, seen_along) for points, seen_along in zip(xyz.split(chunk), along.split(chunk), strict=True)]
        return torch.cat([sigma for sigma, _ in asked]), torch.cat([rgb for _, rgb in asked])


def _joined(blocks: Sequence[Composited | None]) -> Composited | None:
    seen = [block for block in blocks if block is not None]
    if not seen:
        return None
    colours = [block.rgb for block in seen if block.rgb is not None]
    return Composited(
        torch.cat(colours) if colours else None,
        torch.cat([block.depth for block in seen]),
        torch.cat([block.opacity for block in seen]),
        torch.cat([block.weights for block in seen]),
    )


def _described(tensor: Any) -> str:
    if tensor is None:
        return "no such weight"
    return f"size {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
