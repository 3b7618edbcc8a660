"""The gaussians that training starts from: their number, and their places from a cloud, around its points, or at random where cameras look.

Symbols: n gaussians, p points, v views.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from torch import Tensor

from npbgpp.data import Scene, View, available_bytes, double, read_photo
from npbgpp.errors import InputError
from npbgpp.geometry import SH_DC, Cameras, GaussianCloud, PointCloud

log = logging.getLogger(__name__)

_PIXELS_PER_GAUSSIAN = 128  # of all training photos together
_FEWEST, _MOST = 5_000, 1_000_000  # that ``auto`` chooses
_NEIGHBOURS = 3
_JITTER = 0.5  # standard deviation of copies of a point, relative to the distance of its neighbours
_EXTENT_MARGIN = 1.1  # as in the code of 3D Gaussian Splatting
_LEAST_ANGLE = 0.1  # radians between optical axes, from which on they have a common point
_SHELL = (1.0, 2.0)  # depths of far points, relative to the farthest points of the cloud
_EXCLUDED = 2  # masks that must exclude a point
_EXCLUDED_SHARE = 0.1  # of the views that show it
_TRIES = 20  # draws of random points
_WORKSPACE = 1024  # bytes per gaussian that rendering and its backward pass need


@dataclass(frozen=True)
class Start:
    """Where gaussians begin.

    Attributes:
        count: n.
        opacity: their opacity, above 0 and below 1.
        far_share: share of them on a shell behind the cloud, for backgrounds; ``cloud`` only.
        sh_degree: of the coefficients.
    """

    count: int
    opacity: float
    far_share: float
    sh_degree: int


def scene_extent(cameras: Sequence[Cameras], depth: float) -> float:
    """Largest distance of camera centres from their mean, with a margin: the unit of the learning rate of means (Kerbl et al., 2023).

    At least a tenth of ``depth``, the typical depth of the scene, since one camera, or cameras side by side, have no extent.
    """
    centres = torch.cat([camera.centers() for camera in cameras]).double()
    return max(_EXTENT_MARGIN * (centres - centres.mean(0)).norm(dim=1).max().item(), 0.1 * depth)


def choose_count(wanted: int | None, views: Sequence[View], points: int | None) -> tuple[int, str]:
    """Number of gaussians and the reason for it: as given, or from the pixels of the training photos and the number of points of the cloud.

    One gaussian per 128 pixels, within 5,000 and 1,000,000. A cloud of half to twice as many points is taken as it is.
    """
    if wanted is not None:
        return wanted, "system.gaussians"
    pixels = sum(math.prod(view.camera.image_size) for view in views)
    count = min(max(pixels // _PIXELS_PER_GAUSSIAN, _FEWEST), _MOST)
    reason = f"one per {_PIXELS_PER_GAUSSIAN} of the {pixels} training pixels, within {_FEWEST} and {_MOST}"
    if points is not None and count / 2 <= points <= 2 * count:
        return points, f"the number of points of the cloud, near {reason}"
    return count, reason


def bytes_needed(count: int, sh_degree: int, channels: int = 3) -> int:
    """Estimate of the memory of training: parameters, gradients, two moments, a copy of these but the gradients, and rendering."""
    numbers = 3 + 3 + 4 + 1 + channels * (sh_degree + 1) ** 2
    return count * (4 * numbers * (1 + 1 + 2 + 3) + _WORKSPACE)


def check_memory(count: int, sh_degree: int, channels: int, device: torch.device) -> float:
    """The estimate in GiB. Raises InputError if the device has less free memory."""
    needed = bytes_needed(count, sh_degree, channels)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    if needed > free:
        raise InputError(
            f"system.gaussians: {count} gaussians of degree {sh_degree} need about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; lower "
            "system.gaussians or system.sh_degree"
        )
    return needed / 2**30


# ---------------------------------------------------------------- places


def initial_gaussians(scene: Scene, views: Sequence[View], cloud: PointCloud | None, start: Start, seed: int) -> GaussianCloud:
    """The gaussians of a new training.

    Points of a cloud: a random subset of a larger one, jittered copies beside the points of a smaller one. Isotropic, of the size of the distance to their
    neighbours, in the colours of the cloud, else grey.

    Args:
        scene: the scene.
        views: its training views.
        cloud: its points; None for a random start.
        start: their number and look.
        seed: of random numbers.

    Raises:
        InputError: masks that exclude all points or everything, or a random start where nothing tells the depth of the scene.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = _Masks.read(scene, views)
    if cloud is None:
        xyz = random_points(scene, views, start.count, masks, generator)
        rgb = torch.full_like(xyz, 0.5)
    else:
        xyz, rgb = cloud.xyz.float(), cloud.rgb if cloud.rgb is not None else torch.full_like(cloud.xyz, 0.5)
        if masks is not None:
            inside = masks.inside(xyz)
            if not inside.any():
                raise InputError(
                    f"scene {scene.name}: the masks exclude all {len(xyz)} points of {scene.cloud.path}; correct the masks, the cloud or the poses, or start "
                    "with system.start=random"
                )
            if not inside.all():
                log.info("scene %s: %d of %d points lie outside of the masks and are left out", scene.name, (~inside).sum(), len(xyz))
            xyz, rgb = xyz[inside], rgb[inside]
        far = round(start.far_share * start.count)
        xyz, rgb = _resampled(xyz, rgb, start.count - far, generator)
        if far:
            shell = _far_points(views, xyz, far, generator)
            xyz, rgb = torch.cat([xyz, shell]), torch.cat([rgb, torch.full_like(shell, 0.5)])
    distance = neighbour_distance(xyz)
    sh = torch.zeros(len(xyz), (start.sh_degree + 1) ** 2, 3)
    sh[:, 0] = (rgb - 0.5) / SH_DC
    quaternions = torch.zeros(len(xyz), 4)
    quaternions[:, 0] = 1
    logits = torch.full((len(xyz),), math.log(start.opacity / (1 - start.opacity)))
    return GaussianCloud(xyz, distance.log()[:, None].repeat(1, 3), quaternions, logits, sh)


def neighbour_distance(xyz: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
    """Root mean square of the distances to the three nearest other points. Equal points get a millionth of the size of the cloud at least."""
    extent = max((xyz.amax(0) - xyz.amin(0)).norm().item(), 1e-6)
    nearest = min(_NEIGHBOURS + 1, len(xyz))
    if nearest < 2:
        return torch.full((len(xyz),), 0.01 * max(xyz.norm(dim=1).max().item(), 1.0))
    distance, _ = cKDTree(xyz.numpy()).query(xyz.numpy(), k=nearest)
    return torch.from_numpy(np.sqrt((distance[:, 1:] ** 2).mean(1))).float().clamp(min=1e-6 * extent)


def _resampled(
    xyz: Float[Tensor, "p 3"], rgb: Float[Tensor, "p 3"], count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """So many points: a subset, or all and jittered copies."""
    if count <= len(xyz):
        kept = torch.randperm(len(xyz), generator=generator)[:count].sort().values
        return xyz[kept], rgb[kept]
    extra = torch.randint(len(xyz), (count - len(xyz),), generator=generator)
    spread = _JITTER * neighbour_distance(xyz)[extra, None] * torch.randn(len(extra), 3, generator=generator)
    return torch.cat([xyz, xyz[extra] + spread]), torch.cat([rgb, rgb[extra]])


def _far_points(views: Sequence[View], xyz: Float[Tensor, "p 3"], count: int, generator: torch.Generator) -> Float[Tensor, "m 3"]:
    """Points behind those that the views show, at random pixels of random views."""
    parts = []
    for view, number in zip(views, _shares(count, len(views)), strict=True):
        depth = view.camera.project(xyz)[1][0]
        front = depth[depth > 0]
        far = (front.quantile(0.99).item() if 0 < len(front) < 1 << 24 else depth.abs().max().item()) or 1.0
        factor = _SHELL[0] + (_SHELL[1] - _SHELL[0]) * torch.rand(number, generator=generator)
        parts.append(_along_rays(view.camera, far * factor, generator))
    return torch.cat(parts)


def _shares(count: int, parts: int) -> list[int]:
    """Whole numbers that differ by at most 1 and sum to ``count``."""
    return [count * (k + 1) // parts - count * k // parts for k in range(parts)]


def _along_rays(camera: Cameras, depth: Float[Tensor, " m"], generator: torch.Generator) -> Float[Tensor, "m 3"]:
    """Points at these depths, at random places of the image of a camera."""
    size = torch.tensor(camera.image_size[::-1], dtype=torch.float64)
    uv_px = torch.rand(len(depth), 2, generator=generator, dtype=torch.float64) * size
    xy = (camera.principal_point.double() - uv_px) / camera.focal_length.double() * depth[:, None]
    xyz = torch.cat([xy, depth[:, None].double()], 1)
    return ((xyz - camera.T.double()) @ torch.linalg.inv(camera.R[0].double())).float()


# ---------------------------------------------------------------- random start


@dataclass(frozen=True)
class Region:
    """A ball that the views look at."""

    centre: Float[Tensor, " 3"]
    radius: float


def viewed_region(views: Sequence[View]) -> Region | None:
    """The ball around the point nearest to all optical axes that fits into the images; None for axes that are nearly parallel or point apart."""
    cameras = [double(view) for view in views]
    centres = torch.cat([camera.centers() for camera in cameras])
    axes = torch.cat([camera.R[:, :, 2] for camera in cameras])
    axes = torch.nn.functional.normalize(axes, dim=1)
    # of least squares: the sum over views of (1 - a a^T) x = (1 - a a^T) centre
    projections = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    normal = projections.mean(0)
    if torch.linalg.eigvalsh(normal)[0].item() < math.sin(_LEAST_ANGLE) ** 2:
        return None
    focus = torch.linalg.solve(normal, (projections @ centres[:, :, None]).mean(0)[:, 0])
    along = ((focus - centres) * axes).sum(1)
    if (along > 0).double().mean() < 0.9:
        return None
    half = [
        0.5 * max(camera.image_size[1] / camera.focal_length[0, 0].item(), camera.image_size[0] / camera.focal_length[0, 1].item())
        for camera in cameras
    ]
    radius = torch.median(along * torch.tensor(half, dtype=torch.float64)).item()
    return Region(focus.float(), radius)


def random_points(
    scene: Scene, views: Sequence[View], count: int, masks: "_Masks | None", generator: torch.Generator
) -> Float[Tensor, "n 3"]:
    """Random points in the space that the training views show.

    With depth bounds: in the frusta of the views between them, uniform in the inverse depth. Otherwise in the ball that the cameras look at. Points that masks
    exclude are drawn anew.

    Raises:
        InputError: no bounds, and cameras that do not look at a common point, or masks that exclude everything.
    """
    bounded = [view for view in views if view.bounds is not None and 0 < view.bounds[0] < view.bounds[1] < math.inf]
    region = None if bounded else viewed_region(views)
    if not bounded and region is None:
        raise InputError(
            f"scene {scene.name}: a random start needs to know where the scene is, got no depth bounds and {len(views)} cameras that look at no common point; "
            f"make a cloud with npbgpp prepare cloud, or name one with datasets.pc_name (there is no {scene.cloud.path})"
        )
    found: list[Tensor] = []
    missing = count
    for _ in range(_TRIES):
        if region is not None:
            directions = torch.nn.functional.normalize(torch.randn(missing, 3, generator=generator), dim=1)
            xyz = region.centre + region.radius * directions * torch.rand(missing, 1, generator=generator) ** (1 / 3)
        else:
            parts = []
            for view, number in zip(bounded, _shares(missing, len(bounded)), strict=True):
                assert view.bounds is not None
                near, far = view.bounds
                inverse = 1 / far + (1 / near - 1 / far) * torch.rand(number, generator=generator)
                parts.append(_along_rays(view.camera, 1 / inverse, generator))
            xyz = torch.cat(parts)
        if masks is not None:
            xyz = xyz[masks.inside(xyz)]
        found.append(xyz)
        missing -= len(xyz)
        if missing == 0:
            return torch.cat(found)
    kept = torch.cat(found)
    if len(kept) == 0:
        raise InputError(
            f"scene {scene.name}: the masks of the training photos exclude all of the space that they show; correct the masks or the poses"
        )
    again = torch.randint(len(kept), (missing,), generator=generator)  # a small object: some points twice, which noise tells apart
    return torch.cat([kept, kept[again] + 1e-3 * kept.std(0) * torch.randn(missing, 3, generator=generator)])


# ---------------------------------------------------------------- masks


@dataclass(frozen=True)
class _Masks:
    """Masks of training views.

    Attributes:
        cameras: of the views.
        masks: object pixels.
    """

    cameras: tuple[Cameras, ...]
    masks: tuple[Bool[Tensor, "_ _"], ...]

    @classmethod
    def read(cls, scene: Scene, views: Sequence[View]) -> "_Masks | None":
        """Masks of the views that have one; None where no view does. Raises InputError when all are empty."""
        masked = [view for view in views if view.mask is not None or view.alpha_is_mask]
        found = [(view.camera, photo.mask[0] >= 128) for view in masked if (photo := read_photo(view)).mask is not None]
        if not found:
            return None
        if not any(mask.any() for _, mask in found):
            raise InputError(
                f"scene {scene.name}: expected an object in the masks of the training photos, got {len(found)} masks that are dark everywhere; correct the masks"
            )
        return cls(tuple(camera for camera, _ in found), tuple(mask for _, mask in found))

    def inside(self, xyz: Float[Tensor, "p 3"]) -> Bool[Tensor, " p"]:
        """Points that are not outside of the masks of several views: at least 2 of them, and a tenth of the views that show the point."""
        shown, outside = torch.zeros(len(xyz), dtype=torch.int64), torch.zeros(len(xyz), dtype=torch.int64)
        for camera, mask in zip(self.cameras, self.masks, strict=True):
            uv_px, depth = camera.project(xyz)
            height, width = camera.image_size
            u, v = uv_px[0].floor().unbind(1)
            within = (depth[0] > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
            on = mask[v.clamp(0, height - 1).long(), u.clamp(0, width - 1).long()]
            shown += within
            outside += within & ~on
        return outside < torch.clamp(_EXCLUDED_SHARE * shown, min=_EXCLUDED)
