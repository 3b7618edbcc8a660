"""Hierarchical volume rendering with a coarse and a fine radiance field (NeRF; Mildenhall et al., ECCV 2020, section 5.2).

Symbols: n rays, s samples of each, p samples of all rays together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from npbgpp.errors import InputError
from npbgpp.volume import Composited, OccupancyGrid, RadianceField, Rays, composite, composite_packed, sample_pdf, stratified

_MARCHED_CHUNKS = 16  # points looked up in the grid per point of a chunk: most are empty
_WAVE = 16  # samples of a ray per query, between early-termination tests
_OPAQUE = 9.2  # optical depth of early termination: transmittance 1e-4


@dataclass(frozen=True)
class NerfSampling:
    """How rays are sampled.

    Attributes:
        samples: depths per ray for the coarse field.
        importance: importance samples for the fine field; 0: no fine field.
        perturb: in training, fraction of its stratum that a depth is drawn from; 0: evenly spaced depths.
        noise_std: in training, standard deviation of noise added to densities.
        disparity: depths evenly spaced in 1 / depth.
        marched: in evaluation, depths per ray that an occupancy grid selects from.

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
        # importance sampling uses the midpoints of the samples and all weights but the first and the last
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
    """n rays rendered by both fields.

    Attributes:
        coarse: by the coarse field, without colours if only its densities were needed; None if it was skipped.
        fine: by the fine field; None without one.
    """

    coarse: Composited | None
    fine: Composited | None

    def final(self) -> Composited:
        """The fine rendering, or the coarse one if there is no other."""
        final = self.coarse if self.fine is None else self.fine
        assert final is not None, "a render holds at least one field"
        return final


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
        """The field that renders pixels: the fine one if there is one."""
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
        """Renders rays.

        Args:
            rays: in coordinates of the fields.
            view_directions: viewing directions for the fields; nerf_pl uses ``rays.directions``, which are not normalised.
            training: random depths and noise, colours of both fields, all rays at once. Otherwise rendering is deterministic and independent of ``chunk``;
                call it under ``torch.no_grad`` if no gradient is needed.
            grid: the density is 0 in empty cells, without a query. In evaluation, the grid replaces the coarse field, and rays are terminated early.
            chunk: points per query of a field; in evaluation halved while the device is out of memory.
            background: one colour or one per ray; None: black.
            coarse_colours: in evaluation without a grid, render colours of the coarse field, too.
            generator: random number generator.
        """
        if training:
            return self._coarse_to_fine(rays, view_directions, True, grid, chunk, True, background, generator)
        while True:
            try:
                return self._render_chunks(rays, view_directions, grid, chunk, coarse_colours, background)
            except torch.OutOfMemoryError:
                if chunk <= 1:
                    raise
            chunk //= 2

    # ------------------------------------------------------------------ evaluation, in chunks of rays
    def _render_chunks(
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
        chunks = []
        for first in range(0, max(1, len(rays)), size):
            part, directions = rays[first : first + size], view_directions[first : first + size]
            behind = background[first : first + size] if background is not None and background.ndim == 2 else background
            if grid is None:
                chunks.append(
                    self._coarse_to_fine(part, directions, False, None, chunk, coarse_colours or self.nerf_fine is None, behind, None)
                )
            else:
                chunks.append(self._marched(part, directions, grid, chunk, behind))
        return NerfRender(_joined([b.coarse for b in chunks]), _joined([b.fine for b in chunks]))

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
            queried = ((wave == k) & (absorbed < _OPAQUE)[samples.ray]).nonzero()[:, 0]
            ray = samples.ray[queried]
            found, colours = self._query(self.final, xyz[queried], view_directions[ray], chunk, True)
            assert colours is not None
            sigma, rgb = sigma.index_put((queried,), found.to(sigma)), rgb.index_put((queried,), colours.to(rgb))
            absorbed = absorbed.index_add(0, ray, sigma[queried].detach().relu() * samples.delta[queried] * norms[ray])
        seen = composite_packed(sigma, rgb, samples, norms, background)
        return NerfRender(seen, None) if self.nerf_fine is None else NerfRender(None, seen)

    # ------------------------------------------------------------------ one chunk of rays
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

        def evaluate(field: RadianceField, z: Float[Tensor, "n s"], colours: bool) -> Composited:
            xyz = rays.points(z)
            along = view_directions[:, None].expand_as(xyz)
            if grid is None:
                flat_sigma, flat_rgb = self._query(field, xyz.flatten(0, 1), along.flatten(0, 1), chunk, colours)
                sigma, rgb = flat_sigma.view_as(z), None if flat_rgb is None else flat_rgb.view_as(xyz)
            else:
                kept = grid.occupied(xyz)
                flat_sigma, flat_rgb = self._query(field, xyz[kept], along[kept], chunk, colours)
                sigma = flat_sigma.new_full(z.shape, -torch.inf).index_put((kept,), flat_sigma)
                rgb = None if flat_rgb is None else flat_rgb.new_zeros(xyz.shape).index_put((kept,), flat_rgb)
            return composite(sigma, rgb, z, norms, background, noise_std, generator)

        z = stratified(rays.near, rays.far, settings.samples, perturb, settings.disparity, generator)
        coarse = evaluate(self.nerf_coarse, z, coarse_colours)
        if self.nerf_fine is None:
            return NerfRender(coarse, None)
        drawn = sample_pdf(0.5 * (z[:, 1:] + z[:, :-1]), coarse.weights[:, 1:-1], settings.importance, perturb, generator)
        return NerfRender(coarse, evaluate(self.nerf_fine, torch.cat([z, drawn], -1).sort(-1).values, True))

    def _query(
        self, field: RadianceField, xyz: Float[Tensor, "p 3"], along: Float[Tensor, "p 3"], chunk: int, colours: bool
    ) -> tuple[Float[Tensor, " p"], Float[Tensor, "p 3"] | None]:
        if not colours:
            return torch.cat([field.density(points) for points in xyz.split(chunk)]), None
        queried = [field(points, directions) for points, directions in zip(xyz.split(chunk), along.split(chunk), strict=True)]
        return torch.cat([sigma for sigma, _ in queried]), torch.cat([rgb for _, rgb in queried])


def _joined(chunks: Sequence[Composited | None]) -> Composited | None:
    seen = [part for part in chunks if part is not None]
    if not seen:
        return None
    colours = [part.rgb for part in seen if part.rgb is not None]
    return Composited(
        torch.cat(colours) if colours else None,
        torch.cat([part.depth for part in seen]),
        torch.cat([part.opacity for part in seen]),
        torch.cat([part.weights for part in seen]),
    )
