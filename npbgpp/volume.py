"""Volume rendering (NeRF; Mildenhall et al., ECCV 2020): rays and samples along them, compositing, occupancy grids and fields.

Symbols: n rays, s samples per ray, m new samples per ray, p samples of all rays together. Depths z are in units of the ray direction: a point is
origin + z direction.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import max_pool3d

from npbgpp.errors import InputError

__all__ = [
    "Composited",
    "OccupancyGrid",
    "RadianceField",
    "Rays",
    "add_trunk",
    "check_sizes",
    "composite",
    "composite_layers",
    "composite_packed",
    "positional_encoding",
    "run_trunk",
    "sample_pdf",
    "stratified",
    "to_ndc",
]

# ----------------------------------------------------------------------
# Rays, depth sampling along them and normalised device coordinates (sections 4, 5.2 and appendix C)


_LAST_INTERVAL = 1e10  # depth that the last sample of a ray covers
_MIN_WEIGHT = 1e-5  # added to all weights of a distribution
_MIN_STEP = 1e-5  # smallest step of a cumulative distribution to divide by


@dataclass(frozen=True)
class Rays:
    """n rays with depth bounds.

    Attributes:
        origins: points.
        directions: of any length.
        near: smallest depth.
        far: largest depth.

    Raises:
        InputError: bounds that are not finite or do not enclose anything.
    """

    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    near: Float[Tensor, " n"]
    far: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        valid = (self.near < self.far) & torch.isfinite(self.near) & torch.isfinite(self.far)
        if not valid.all():
            bad = (~valid).nonzero()[:, 0]
            near, far = self.near[bad[0]].item(), self.far[bad[0]].item()
            raise InputError(
                f"bounds of rays: expected finite near < far, got near {near:g} and far {far:g} for ray {bad[0].item()} "
                f"({len(bad)} of {len(self)} rays); correct the bounds of the scene"
            )

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, item: slice) -> "Rays":
        return Rays(self.origins[item], self.directions[item], self.near[item], self.far[item])

    def points(self, z: Float[Tensor, "n s"]) -> Float[Tensor, "n s 3"]:
        """Points at these depths."""
        return self.origins[:, None] + z[..., None] * self.directions[:, None]


@dataclass(frozen=True)
class PackedSamples:
    """p samples of n rays, any number per ray, sorted by ray, then by depth.

    Attributes:
        ray: index of the ray of each sample.
        z: depth.
        delta: length of the interval that the sample represents, in depth.
    """

    ray: Int[Tensor, " p"]
    z: Float[Tensor, " p"]
    delta: Float[Tensor, " p"]

    def __len__(self) -> int:
        return len(self.ray)

    def points(self, rays: Rays) -> Float[Tensor, "p 3"]:
        """Points of the samples."""
        return rays.origins[self.ray] + self.z[:, None] * rays.directions[self.ray]

    def ranks(self) -> Int[Tensor, " p"]:
        """Number of preceding samples on the same ray."""
        counts = torch.bincount(self.ray)
        return torch.arange(len(self), device=self.ray.device) - (counts.cumsum(0) - counts)[self.ray]


def intervals(z: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
    """Distance of each of the sorted depths to the next one; 1e10 for the last."""
    return torch.cat([z.diff(dim=-1), torch.full_like(z[:, :1], _LAST_INTERVAL)], -1)


def stratified(
    near: Float[Tensor, " n"],
    far: Float[Tensor, " n"],
    count: int,
    perturb: float = 0.0,
    disparity: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n s"]:
    """Sorted depths by stratified sampling (section 4).

    Args:
        near: smallest depth of each ray.
        far: largest depth of each ray.
        count: s.
        perturb: 0 returns evenly spaced depths from near to far; 1 samples each depth between the midpoints to its neighbours; values between restrict the
            samples to that fraction of the interval, from its near end.
        disparity: space depths evenly in 1 / depth.
        generator: random number generator.

    Raises:
        InputError: ``disparity`` with a near bound that is not positive.
    """
    fraction = torch.linspace(0, 1, count, device=near.device, dtype=near.dtype)
    if disparity:
        if (near <= 0).any():
            raise InputError(
                f"disparity: expected rays that start at positive depths, got near {near.min().item():g}; "
                "switch it off (normalised device coordinates are even in 1 / depth already)"
            )
        z = 1 / ((1 - fraction) / near[:, None] + fraction / far[:, None])
    else:
        z = near[:, None] * (1 - fraction) + far[:, None] * fraction
    if perturb == 0:
        return z
    middle = 0.5 * (z[:, 1:] + z[:, :-1])
    lower, upper = torch.cat([z[:, :1], middle], -1), torch.cat([middle, z[:, -1:]], -1)
    return lower + (upper - lower) * perturb * torch.rand(z.shape, generator=generator, device=z.device, dtype=z.dtype)


def sample_pdf(
    bins: Float[Tensor, "n s1"], weights: Float[Tensor, "n s"], count: int, perturb: float = 0.0, generator: torch.Generator | None = None
) -> Float[Tensor, "n m"]:
    """Depths by importance sampling: inverse transform sampling of the piecewise constant density given by ``weights`` (section 5.2).

    Args:
        bins: s + 1 sorted interval borders.
        weights: weights of the s intervals, not negative, of any sum; all zeros give the uniform distribution. They get no gradients.
        count: m.
        perturb: 0 takes evenly spaced quantiles from 0 to 1, otherwise they are random.
        generator: random number generator.

    Returns:
        Depths; not sorted for random quantiles.
    """
    weights = weights.detach() + _MIN_WEIGHT
    cdf = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], -1)
    if perturb == 0:
        quantile = torch.linspace(0, 1, count, device=cdf.device, dtype=cdf.dtype).expand(len(cdf), -1).contiguous()
    else:
        quantile = torch.rand(len(cdf), count, generator=generator, device=cdf.device, dtype=cdf.dtype)
    found = torch.searchsorted(cdf, quantile, right=True)
    below, above = (found - 1).clamp(min=0), found.clamp(max=weights.shape[1])
    cdf_below, bin_below = cdf.gather(1, below), bins.gather(1, below)
    step = cdf.gather(1, above) - cdf_below
    step = torch.where(step < _MIN_STEP, 1.0, step)
    return bin_below + (quantile - cdf_below) / step * (bins.gather(1, above) - bin_below)


def to_ndc(
    origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], focal: float, image_size: tuple[int, int]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Rays of a forward-facing scene in normalised device coordinates with near plane z = -1 (appendix C).

    Args:
        origins: in axes right, up, backward.
        directions: in the same axes, all with negative z.
        focal: focal length in pixels.
        image_size: (height, width) in pixels.

    Returns:
        (origins, directions): depth 0 is the near plane, depth 1 is infinity. Directions are not of unit length.

    Raises:
        InputError: a direction with z >= 0.
    """
    backward = directions[:, 2] >= 0
    if backward.any():
        raise InputError(
            f"normalised device coordinates: expected rays that look along -z, got {int(backward.sum())} of {len(directions)} that do not; "
            "the scene is not forward-facing: choose another value of system.ray_frame"
        )
    height, width = image_size
    to_plane = -(1 + origins[:, 2:]) / directions[:, 2:]
    start = origins + to_plane * directions
    scale = start.new_tensor([-2 * focal / width, -2 * focal / height])
    slope, offset = directions[:, :2] / directions[:, 2:], start[:, :2] / start[:, 2:]
    z = 1 + 2 / start[:, 2:]
    return torch.cat([scale * offset, z], -1), torch.cat([scale * (slope - offset), 1 - z], -1)


# ----------------------------------------------------------------------
# Compositing of samples along rays (equation 3), and of RGBA layers (Porter and Duff, 1984).
#
# A density of minus infinity marks empty space, also with noise.


_MIN_TRANSMITTANCE = 1e-10  # of a sample, so that samples behind it get gradients


@dataclass(frozen=True)
class Composited:
    """n composited rays.

    Attributes:
        rgb: colours; None if samples had none.
        depth: weighted sum of the depths, not divided by the opacity.
        opacity: sum of the weights, 0..1.
        weights: weight of each sample, in the shape of the samples.
    """

    rgb: Float[Tensor, "n 3"] | None
    depth: Float[Tensor, " n"]
    opacity: Float[Tensor, " n"]
    weights: Float[Tensor, "*samples"]

    def normalised_depth(self) -> Float[Tensor, " n"]:
        """Depth divided by the opacity; infinite where that is 0."""
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
    """Composites rays with equally many samples.

    Args:
        sigma: raw densities; negative ones count as 0.
        rgb: colours of the samples, or None.
        z: sorted depths; the interval of the last sample is infinite.
        direction_norms: lengths of the ray directions.
        background: one colour or one per ray; None for black.
        noise_std: standard deviation of normal noise added to the densities.
        generator: random number generator.
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
    """Composites rays with different numbers of samples.

    Args:
        sigma: raw densities; negative ones count as 0.
        rgb: colours of the samples.
        samples: rays, depths and intervals of the samples.
        direction_norms: lengths of the ray directions.
        background: see ``composite``.

    Returns:
        With (p,) weights. Rays without samples have the background colour, depth 0 and opacity 0.
    """
    rank = samples.ranks()
    longest = int(rank.max()) + 1 if len(samples) else 0
    index = (samples.ray, rank)

    def padded(values: Tensor, fill: float) -> Tensor:
        shape = (len(direction_norms), longest, *values.shape[1:])
        return values.new_full(shape, fill).index_put(index, values)

    delta = samples.delta * direction_norms[samples.ray]
    result = _composite(padded(sigma, -torch.inf), padded(rgb, 0.0), padded(samples.z, 0.0), padded(delta, 0.0), background)
    return Composited(result.rgb, result.depth, result.opacity, result.weights[index])


def _composite(
    sigma: Float[Tensor, "n s"],
    rgb: Float[Tensor, "n s 3"] | None,
    z: Float[Tensor, "n s"],
    length: Float[Tensor, "n s"],
    background: Float[Tensor, "*each 3"] | None,
) -> Composited:
    transmittance = torch.exp(-length * torch.relu(sigma))
    in_front = torch.cat([torch.ones_like(transmittance[:, :1]), transmittance + _MIN_TRANSMITTANCE], -1).cumprod(-1)[:, :-1]
    weights = (1 - transmittance) * in_front
    opacity = weights.sum(-1)
    colour = None
    if rgb is not None:
        colour = (weights[..., None] * rgb).sum(-2)
        if background is not None:
            colour = colour + (1 - opacity)[:, None] * background
    return Composited(colour, (weights * z).sum(-1), opacity, weights)


class _Clamp(torch.autograd.Function):
    """Clamps to [0, 1]; values outside keep gradients that lead back inside, so that layers initialised transparent or opaque can be trained."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        leads_away = ((values < 0) & (gradient > 0)) | ((values > 1) & (gradient < 0))  # steps go against the gradient
        return gradient.masked_fill(leads_away, 0.0)


def composite_layers(layers: Float[Tensor, "b l 4 h w"]) -> Float[Tensor, "b 4 h w"]:
    """Composites RGBA layers with the over operator (Porter and Duff, "Compositing digital images", 1984).

    Args:
        layers: straight colours and opacities, front to back; opacities are clamped to [0, 1].

    Returns:
        Premultiplied colours and opacity. A single layer is returned unchanged.
    """
    if layers.shape[1] == 1:
        return layers[:, 0]
    transmittance = torch.ones_like(layers[:, 0, 3:])
    colour = torch.zeros_like(layers[:, 0, :3])
    for layer in layers.unbind(1):
        opacity = _Clamp.apply(layer[:, 3:])
        colour = colour + transmittance * opacity * layer[:, :3]
        transmittance = transmittance * (1 - opacity)
    return torch.cat([colour, 1 - transmittance], 1)


# ----------------------------------------------------------------------
# Occupancy grids: skip samples in empty space (Mueller et al., Instant NGP, SIGGRAPH 2022, appendix E.2).
#
# A grid stores the largest recent density sample of each cell. A cell is occupied if it or one of its 26 neighbours has density, so that surfaces near cell
# borders are not clipped. Symbols: n points or rays, s depths per ray, p samples kept, r cells along a side, q cells sampled.


_DECAY = 0.95  # of the stored density at every update of a cell
_UPDATE_FRACTION = 4  # after warm-up, 1 / 4 of the cells are sampled uniformly, and as many among the occupied
_BATCH_SIZE = 2**17


class OccupancyGrid(nn.Module):
    """Occupancy of the cells of an axis-aligned box; all occupied until the first update. Space outside of the box is empty.

    Args:
        low: minimum corner of the box, in the coordinates of the rays.
        high: maximum corner.
        resolution: r.
        least_opacity: cells are empty if the opacity along their diagonal is less than this, and their density less than half of the mean.
        warmup_steps: updates before this step sample every cell.

    Raises:
        InputError: an empty box, no cells, or an opacity outside of (0, 1).
    """

    low: Tensor
    high: Tensor
    densities: Tensor
    cells: Tensor

    def __init__(
        self, low: Sequence[float], high: Sequence[float], *, resolution: int = 128, least_opacity: float = 0.01, warmup_steps: int = 256
    ) -> None:
        super().__init__()
        if (
            len(low) != 3
            or len(high) != 3
            or any(not (math.isfinite(a) and math.isfinite(b) and a < b) for a, b in zip(low, high, strict=True))
        ):
            raise InputError(
                f"box of the occupancy grid: expected three finite numbers, each below its counterpart, got {list(low)} and {list(high)}"
            )
        if resolution < 1:
            raise InputError(f"resolution of the occupancy grid: expected 1 or more, got {resolution}")
        if not 0 < least_opacity < 1:
            raise InputError(f"least_opacity of the occupancy grid: expected a number between 0 and 1, got {least_opacity:g}")
        self.resolution, self.least_opacity, self.warmup_steps = resolution, least_opacity, warmup_steps
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(high, dtype=torch.float32))
        self.register_buffer("densities", torch.zeros(resolution, resolution, resolution))
        self.register_buffer("cells", torch.ones(resolution, resolution, resolution, dtype=torch.bool))

    @torch.no_grad()
    def update(
        self, density_fn: Callable[[Float[Tensor, "q 3"]], Float[Tensor, " q"]], step: int, generator: torch.Generator | None = None
    ) -> None:
        """Samples the density at a random point of cells: of all before ``warmup_steps``, then of uniformly sampled and of occupied ones.

        Args:
            density_fn: raw densities of points; negative ones count as 0.
            step: training step.
            generator: random number generator.
        """
        chosen = self._sample_cells(step, generator)
        corner = torch.stack(torch.unravel_index(chosen, self.cells.shape), -1)
        offset = torch.rand(corner.shape, generator=generator, device=self.low.device)
        xyz = self.low + (corner + offset) / self.resolution * (self.high - self.low)
        density = torch.cat([density_fn(points) for points in xyz.split(_BATCH_SIZE)]).to(self.densities.dtype)
        density = density.nan_to_num(nan=torch.inf).clamp(min=0)  # nan counts as occupied
        flat = self.densities.flatten()
        flat[chosen] = _DECAY * flat[chosen]
        flat.scatter_reduce_(0, chosen, density, "amax")
        self.densities.copy_(flat.view_as(self.densities))
        diagonal = ((self.high - self.low) / self.resolution).norm().item()
        # an untrained field is thin everywhere; the threshold relative to its mean keeps it from being classified as empty
        threshold = (self.densities.mean() / 2).clamp(max=-math.log1p(-self.least_opacity) / diagonal)
        self.cells.copy_(max_pool3d(self.densities[None, None], 3, stride=1, padding=1)[0, 0] >= threshold)

    def _sample_cells(self, step: int, generator: torch.Generator | None) -> Int[Tensor, " q"]:
        total, device = self.cells.numel(), self.cells.device
        if step < self.warmup_steps:
            return torch.arange(total, device=device)
        count = max(1, total // _UPDATE_FRACTION)
        uniform = torch.randint(total, (count,), generator=generator, device=device)
        occupied = self.cells.flatten().nonzero()[:, 0]
        return torch.cat([uniform, occupied[torch.randint(len(occupied), (count,), generator=generator, device=device)]])

    def occupied(self, xyz: Float[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch"]:
        """Whether points lie in occupied cells; the box includes its boundary."""
        relative = (xyz - self.low) / (self.high - self.low)
        inside = ((relative >= 0) & (relative <= 1)).all(-1)
        i, j, k = (relative * self.resolution).nan_to_num().clamp(0, self.resolution - 1).long().unbind(-1)
        return self.cells[i, j, k] & inside

    def march(self, rays: Rays, z: Float[Tensor, "n s"]) -> PackedSamples:
        """Samples in occupied cells.

        Args:
            rays: n rays.
            z: sorted candidate depths, with steps smaller than a cell.

        Returns:
            The samples with their intervals in ``z``, so that compositing them equals compositing all of ``z`` with zero density in empty cells.
        """
        ray, k = self.occupied(rays.points(z)).nonzero(as_tuple=True)
        return PackedSamples(ray, z[ray, k], intervals(z)[ray, k])


# ----------------------------------------------------------------------
# Radiance fields as MLPs (sections 3 and 5.1, figure 7).
#
# Layers are registered in the field as ``<prefix>_1``, ``<prefix>_2``, ..., the parameter names of nerf_pl and nsff_pl. Symbols: n points, c channels.


def check_sizes(skips: Sequence[int], depth: int, least: dict[str, tuple[int, int]]) -> None:
    """Raises InputError for a size below its minimum (``least`` maps names to both), or a skip that is not a layer after the first."""
    for name, (number, smallest) in least.items():
        if number < smallest:
            raise InputError(f"{name} of the radiance field: expected {smallest} or more, got {number}")
    if any(not 0 < skip < depth for skip in skips):
        raise InputError(f"skips of the radiance field: expected layers from 1 to {depth - 1} (depth {depth}), got {list(skips)}")


def add_trunk(field: nn.Module, prefix: str, channels: int, width: int, depth: int, skips: Collection[int]) -> None:
    """Registers ``depth`` layers of ``width`` channels; layers in ``skips``, counted from 0, have the ``channels`` of the input as additional inputs."""
    for k in range(depth):
        inputs = (width if k else 0) + (channels if k == 0 or k in skips else 0)
        field.add_module(f"{prefix}_{k + 1}", nn.Sequential(nn.Linear(inputs, width), nn.ReLU(inplace=True)))


def run_trunk(field: nn.Module, prefix: str, embedded: Float[Tensor, "n c"], depth: int, skips: Collection[int]) -> Float[Tensor, "n w"]:
    """Output of the layers registered by ``add_trunk``."""
    hidden = embedded
    for k in range(depth):
        layer = field.get_submodule(f"{prefix}_{k + 1}")
        hidden = layer(torch.cat([embedded, hidden], -1) if k in skips else hidden)
    return hidden


def positional_encoding(x: Float[Tensor, "*batch c"], frequencies: int) -> Float[Tensor, "*batch e"]:
    """x, then sin(2^k x) and cos(2^k x) for k = 0 .. frequencies - 1 (section 5.1, but without the factor pi and with x itself).

    Returns:
        e = c (1 + 2 frequencies) channels; for each k the c sines come before the cosines.
    """
    phase = x[..., None, :] * 2.0 ** torch.arange(frequencies, device=x.device, dtype=x.dtype)[:, None]
    return torch.cat([x, torch.stack([phase.sin(), phase.cos()], -2).flatten(-3)], -1)


class RadianceField(nn.Module):
    """Raw density and view-dependent colour of points.

    Args:
        depth: layers before the density.
        width: channels of these layers; the layer with the direction has half as many.
        skips: layers, counted from 0, that have the encoded point as additional input.
        xyz_frequencies: frequencies of the positional encoding of points.
        dir_frequencies: frequencies of the positional encoding of directions.

    Raises:
        InputError: a size below its minimum, or a skip that is not a layer after the first.
    """

    def __init__(
        self,
        *,
        depth: int = 8,
        width: int = 256,
        skips: Sequence[int] = (4,),
        xyz_frequencies: int = 10,
        dir_frequencies: int = 4,
    ) -> None:
        super().__init__()
        least = {"depth": (depth, 1), "width": (width, 2), "xyz_frequencies": (xyz_frequencies, 0), "dir_frequencies": (dir_frequencies, 0)}
        check_sizes(skips, depth, least)
        self.depth, self.skips = depth, frozenset(skips)
        self.xyz_frequencies, self.dir_frequencies = xyz_frequencies, dir_frequencies
        xyz_channels, dir_channels = 3 + 6 * xyz_frequencies, 3 + 6 * dir_frequencies
        add_trunk(self, "xyz_encoding", xyz_channels, width, depth, self.skips)
        self.xyz_encoding_final = nn.Linear(width, width)
        self.dir_encoding = nn.Sequential(nn.Linear(width + dir_channels, width // 2), nn.ReLU(inplace=True))
        self.sigma = nn.Linear(width, 1)
        self.rgb = nn.Sequential(nn.Linear(width // 2, 3), nn.Sigmoid())

    def density(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Raw density of points, per unit of length; negative values mean empty space."""
        return self.sigma(self._hidden(xyz))[:, 0]

    def forward(self, xyz: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """Raw density, see ``density``, and RGB in 0..1 of points for viewing directions.

        Directions may have any length; the weights of nerf_pl for forward-facing scenes expect those of normalised device coordinates.
        """
        hidden = self._hidden(xyz)
        features = torch.cat([self.xyz_encoding_final(hidden), positional_encoding(directions, self.dir_frequencies)], -1)
        return self.sigma(hidden)[:, 0], self.rgb(self.dir_encoding(features))

    def _hidden(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n c"]:
        return run_trunk(self, "xyz_encoding", positional_encoding(xyz, self.xyz_frequencies), self.depth, self.skips)
