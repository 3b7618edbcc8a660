"""PatchMatch multi-view stereo: depth maps of photos with known cameras.

Every pixel (u, v) of a reference photo holds a plane: its inverse depth w there, and the slopes a = dw/du, b = dw/dv, since the inverse depth of a plane is
linear in the image. A source photo sees the point at ``A (u, v, 1) + w q``, with A = K_s R K_r^-1 and q = K_s t in columns: a window around the pixel maps to it
linearly before the division, without a homography. The cost of a plane is one minus the normalised cross-correlation of a window that weights pixels of similar
brightness more, averaged over the two sources that fit best. Planes spread from pixel to pixel and are improved by random search, from coarse to fine images.

Sources: Bleyer, Rhemann and Rother, PatchMatch Stereo, 2011; Galliani, Lasinger and Schindler, Massively Parallel Multiview Stereopsis, 2015 (red and black
pixels); Schoenberger et al., Pixelwise View Selection, 2016 (best sources); Xu and Tao, Multi-Scale Geometric Consistency Guided Multi-View Stereo, 2019 (which
neighbours, pyramid).

Symbols: h, w image size; s sources. Coordinates in pixels from the corner of the image, pixel centres at +0.5.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64, UInt8, UInt64
from scipy import ndimage

from npbgpp.kernels.backend import CudaModule, backend, kernel, run_threads, spans, thread_count
from npbgpp.kernels.vectors import bilinear, load, maximum, splat, total, where_less

LEVELS = 3  # of the pyramid, each half the size of the one below
_ITERATIONS = (1, 2, 4)  # by level, from the full image on
_RANGE = (0.002, 0.006, 0.03)  # of random changes of the inverse depth, relative; by level
_STARTS = 12  # random planes per pixel of the coarsest level
WORST = 2.0  # cost where a plane cannot be compared

_OFFSETS = tuple(
    (du, dv) for dv in range(-5, 6, 2) for du in range(-5, 6, 2) if abs(du) + abs(dv) < 10
)  # a window of 11x11 without its corners
_SAMPLES = len(_OFFSETS)
_DU = np.array([du for du, _ in _OFFSETS], np.float32)
_DV = np.array([dv for _, dv in _OFFSETS], np.float32)
_NEARNESS = np.exp(-(_DU**2 + _DV**2) / 32).astype(np.float32)
_SIMILAR = np.float32(1 / 0.15)  # inverse of the difference in brightness that halves a weight
_FLOOR = np.float32(1e-6)  # of variances of brightness; a larger one empties weakly textured surfaces
# neighbours whose planes are tried: in each of four directions, the cheapest of a V of near pixels, and the cheapest of a row of far ones. They are all of the
# other colour, so that a half step reads only what it does not write.
_NEAR = ((0, 1), (-1, 2), (1, 2), (-2, 3), (2, 3), (-3, 4), (3, 4))
_FAR = ((0, 3), (0, 5), (0, 7), (0, 9), (0, 11))
_TURNS = ((1, 0, 0, 1), (-1, 0, 0, -1), (0, 1, -1, 0), (0, -1, 1, 0))
_NEIGHBOURS = np.array([[[(p * x + q * y, r * x + s * y) for x, y in group] for p, q, r, s in _TURNS] for group in (_NEAR,)], np.int64)[0]
_FAR_NEIGHBOURS = np.array([[(p * x + q * y, r * x + s * y) for x, y in _FAR] for p, q, r, s in _TURNS], np.int64)

_START, _COMPARE, _IMPROVE = 0, 1, 2  # what a sweep does
_CPU = torch.device("cpu")
_ZERO, _HALF, _ONE, _TWO, _WORST = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2), np.float32(WORST)
_UNIT = np.float32(1 / 65535)  # of brightness in packed images
_EDGE = np.float32(1e-3)
_MIX_1, _MIX_2, _STEP = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15)
_27, _30, _31, _40 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(40)
_2_TO_MINUS_24 = np.float32(2.0**-24)


@dataclass(frozen=True)
class StereoView:
    """A photo for stereo.

    Attributes:
        grey: brightness in [0, 1].
        mask: pixels to estimate; None for all.
        K: calibration matrix in columns (OpenCV axes: right, down, forward).
        world_to_cam: pose in columns, OpenCV axes, scene units.
    """

    grey: Float32[np.ndarray, "h w"]
    mask: Bool[np.ndarray, "h w"] | None
    K: Float64[np.ndarray, "3 3"]
    world_to_cam: Float64[np.ndarray, "4 4"]

    def halved(self) -> "StereoView":
        """The view at half the size, rounded up; every pixel is the mean of four. A pixel is estimated if any of the four is."""
        grey = _blocks(self.grey).mean((1, 3))
        mask = None if self.mask is None else np.asarray(_blocks(self.mask).any((1, 3)))
        return StereoView(np.ascontiguousarray(grey, np.float32), mask, np.diag([0.5, 0.5, 1.0]) @ self.K, self.world_to_cam)

    def packed(self) -> UInt64[np.ndarray, " n"]:
        """The image as ``npbgpp.kernels.vectors.bilinear`` reads it."""
        levels = (self.grey.clip(0, 1) * 65535 + 0.5).astype(np.uint64)
        right = np.concatenate([levels[:, 1:], levels[:, -1:]], 1)
        pairs = levels | right << np.uint64(16)
        return np.ascontiguousarray((pairs | np.concatenate([pairs[1:], pairs[-1:]]) << np.uint64(32)).reshape(-1))


def _blocks(image: np.ndarray) -> np.ndarray:
    h, w = image.shape
    image = np.pad(image, ((0, h % 2), (0, w % 2)), mode="edge")
    return image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2)


class StereoPyramid:
    """A view at all levels, and packed."""

    def __init__(self, view: StereoView) -> None:
        self.levels = [view]
        while len(self.levels) < LEVELS:
            self.levels.append(self.levels[-1].halved())
        self.packed = [level.packed() for level in self.levels]


@dataclass(frozen=True)
class PlaneMap:
    """Planes of the pixels of a view.

    Attributes:
        inverse_depth: along the viewing axis, per scene unit; 0 outside the mask.
        slope: its derivatives along the row and down the column.
        cost: 0 to 2; ``WORST`` outside the mask.
    """

    inverse_depth: Float32[np.ndarray, "h w"]
    slope: Float32[np.ndarray, "2 h w"]
    cost: Float32[np.ndarray, "h w"]


def estimate_planes(
    reference: StereoPyramid,
    sources: Sequence[StereoPyramid],
    inverse_depths: tuple[float, float],
    seed: int = 0,
    device: torch.device = _CPU,
) -> PlaneMap:
    """Planes of the pixels of a view, by PatchMatch. The same for any number of threads.

    Args:
        reference: the view.
        sources: views to compare with, about four with baselines in several directions; at least one.
        inverse_depths: least and largest inverse depth.
        seed: of the random search.
        device: to compute on.
    """
    found = backend(device)
    if found == "cuda" and not _CUDA.usable(device):
        return estimate_planes(reference, sources, inverse_depths, seed)
    if found == "torch":
        return estimate_planes_reference(reference.levels, [source.levels for source in sources], inverse_depths, seed)
    plane, cost = np.zeros((3, 0, 0), np.float32), np.zeros((0, 0), np.float32)
    for level in reversed(range(LEVELS)):
        task = _Level(reference.levels[level], [(s.levels[level], s.packed[level]) for s in sources], inverse_depths, device)
        if level == LEVELS - 1:
            plane, cost = task.empty()
            task.sweep(plane, cost, _START, seed, _RANGE[level], 1.0)
        else:
            plane, cost = task.enlarged(plane)
            task.sweep(plane, cost, _COMPARE, 0, 0.0, 0.0)
        for iteration in range(_ITERATIONS[level]):
            share = 0.5**iteration
            draw = ((seed * LEVELS + level) * 16 + iteration + 1) * 2
            task.sweep(plane, cost, _IMPROVE, draw, _RANGE[level] * share, share)
    return PlaneMap(plane[0], plane[1:], cost)


class _Level:
    """The work on one level of the pyramid."""

    def __init__(
        self,
        view: StereoView,
        sources: Sequence[tuple[StereoView, UInt64[np.ndarray, " n"]]],
        inverse_depths: tuple[float, float],
        device: torch.device,
    ) -> None:
        self.view, self.device = view, device
        self.mask = np.ones(view.grey.shape, bool) if view.mask is None else view.mask
        self.images = np.concatenate([packed for _, packed in sources])
        lengths = [len(packed) for _, packed in sources]
        self.starts = np.cumsum([0, *lengths[:-1]]).astype(np.int64)
        self.sizes = np.array([source.grey.shape for source, _ in sources], np.int64)
        matrices = [relative_projection(view, source) for source, _ in sources]
        self.A = np.stack([A for A, _ in matrices]).astype(np.float32)
        self.q = np.stack([q for _, q in matrices]).astype(np.float32)
        self.low, self.high = map(np.float32, inverse_depths)
        self.focal = np.float32((view.K[0, 0] + view.K[1, 1]) / 2)

    def empty(self) -> tuple[np.ndarray, np.ndarray]:
        shape = self.view.grey.shape
        return np.zeros((3, *shape), np.float32), np.full(shape, WORST, np.float32)

    def enlarged(self, coarse: Float32[np.ndarray, "3 h2 w2"]) -> tuple[np.ndarray, np.ndarray]:
        """Planes of the level above, continued to the pixels of this one."""
        plane, cost = self.empty()
        h, w = cost.shape
        rows, columns = np.arange(h) // 2, np.arange(w) // 2
        near = coarse[:, rows[:, None], columns]
        across, down = (np.arange(size, dtype=np.float32) / 2 + 0.25 - index - 0.5 for size, index in ((w, columns), (h, rows)))
        plane[0] = (near[0] + near[1] * across + near[2] * down[:, None]).clip(self.low, self.high)
        plane[1:] = near[1:] / 2
        plane *= self.mask
        return plane, cost

    def sweep(self, plane: np.ndarray, cost: np.ndarray, mode: int, draw: int, range_w: float, range_slope: float) -> None:
        h, w = cost.shape
        if self.device.type == "cuda":
            self._sweep_cuda(plane, cost, mode, draw, (float(self.low), float(self.high), float(self.focal), range_w, range_slope))
            return
        parts = spans(h, thread_count(h, 8))
        values = (self.low, self.high, self.focal, np.float32(range_w), np.float32(range_slope))
        for colour in (0, 1):

            def work(k: int, colour: int = colour) -> None:
                _sweep(
                    *(self.view.grey, self.mask, self.images, self.starts, self.sizes, self.A, self.q),
                    *(plane, cost, mode, draw + colour, *values, colour, *parts[k]),
                )

            run_threads(work, len(parts))

    @functools.cached_property
    def _on_device(self) -> tuple[torch.Tensor, ...]:
        """What all sweeps read."""
        pixels = np.bitwise_and(self.images, np.uint64(0xFFFF)).astype(np.float32) / np.float32(65535)
        arrays = (self.view.grey, self.mask.astype(np.uint8), pixels, self.starts, self.sizes.astype(np.int32), self.A, self.q)
        return tuple(self._there(values) for values in arrays)

    def _there(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _sweep_cuda(self, plane: np.ndarray, cost: np.ndarray, mode: int, draw: int, numbers: tuple[float, ...]) -> None:
        planes, costs = self._there(plane), self._there(cost)
        values = self._there(np.array(numbers, np.float32))
        for colour in (0, 1):
            arguments = (*self._on_device, values, planes, costs, mode, draw + colour, colour, *cost.shape, len(self.starts))
            _CUDA.launch("sweep", cost.size, *arguments, block=64)
        plane[:], cost[:] = planes.cpu().numpy(), costs.cpu().numpy()


def relative_projection(reference: StereoView, source: StereoView) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, " 3"]]:
    """A and q of the module docstring."""
    between = source.world_to_cam @ np.linalg.inv(reference.world_to_cam)
    return source.K @ between[:3, :3] @ np.linalg.inv(reference.K), source.K @ between[:3, 3]


# ----------------------------------------------------------------------
# Reference


def estimate_planes_reference(
    reference: Sequence[StereoView], sources: Sequence[Sequence[StereoView]], inverse_depths: tuple[float, float], seed: int = 0
) -> PlaneMap:
    """``estimate_planes`` in NumPy, all pixels of a colour at once; views are given as their levels, from the full image on."""
    low, high = map(np.float32, inverse_depths)
    plane = np.zeros((3, 1, 1), np.float32)
    for level in reversed(range(LEVELS)):
        view, others = reference[level], [source[level] for source in sources]
        h, w = view.grey.shape
        rows, columns = np.mgrid[:h, :w]
        if level < LEVELS - 1:
            near = plane[:, rows // 2, columns // 2]
            across, down = np.float32(columns / 2 + 0.25 - columns // 2 - 0.5), np.float32(rows / 2 + 0.25 - rows // 2 - 0.5)
            plane = np.stack([(near[0] + near[1] * across + near[2] * down).clip(low, high), near[1] / 2, near[2] / 2])
        else:
            plane = np.zeros((3, h, w), np.float32)
        mask = np.ones((h, w), bool) if view.mask is None else view.mask
        plane *= mask
        cost = np.full((h, w), WORST, np.float32)
        focal = np.float32((view.K[0, 0] + view.K[1, 1]) / 2)
        first = [(seed, 0.0, 1.0, True)] if level == LEVELS - 1 else [(0, 0.0, 0.0, True)]
        steps = [((((seed * LEVELS + level) * 16 + k + 1) * 2), _RANGE[level] * 0.5**k, 0.5**k, False) for k in range(_ITERATIONS[level])]
        for draw, range_w, range_slope, is_first in first + steps:
            for colour in (0, 1):
                i, j = (mask & ((rows + columns) % 2 == colour)).nonzero()
                compared = _Comparison(view, others, i, j)
                numbers = _reference_numbers(i * w + j, draw + colour)
                hypotheses = [plane[:, i, j]]
                if is_first and level == LEVELS - 1:
                    hypotheses = []
                    for k in range(_STARTS):
                        start = low + (high - low) * (k + (numbers(3 * k) + 1) / 2) / np.float32(_STARTS)
                        hypotheses.append(np.stack([start, start / focal * numbers(3 * k + 1), start / focal * numbers(3 * k + 2)]))
                best, chosen = (np.full(len(i), WORST + 1, np.float32) if is_first else cost[i, j]), plane[:, i, j]
                if not is_first:
                    hypotheses = []
                    for group in (_NEIGHBOURS, _FAR_NEIGHBOURS):
                        for direction in group:
                            places = np.stack([i[:, None] + direction[:, 1], j[:, None] + direction[:, 0]])
                            inside = (places >= 0).all(0) & (places[0] < h) & (places[1] < w)
                            there = np.where(inside, cost[places[0].clip(0, h - 1), places[1].clip(0, w - 1)], WORST)
                            which = there.argmin(1)[:, None]
                            row, column = (
                                np.take_along_axis(part, which, 1)[:, 0].clip(0, side - 1)
                                for part, side in zip(places, (h, w), strict=True)
                            )
                            from_w, a, b = plane[:, row, column]
                            found = np.stack([from_w + a * np.float32(j - column) + b * np.float32(i - row), a, b])
                            usable = (np.take_along_axis(there, which, 1)[:, 0] < WORST) & (found[0] >= low) & (found[0] <= high)
                            hypotheses.append(np.where(usable, found, np.nan))
                for new in hypotheses:
                    best, chosen = compared.better(best, chosen, new)
                for k in range(0 if is_first else 4):
                    change = range_slope * chosen[0] / focal
                    new = np.stack(
                        [
                            (chosen[0] * (1 + (range_w * numbers(3 * k) if k != 1 else 0))).clip(low, high),
                            chosen[1] + (change * numbers(3 * k + 1) if k != 0 else 0),
                            chosen[2] + (change * numbers(3 * k + 2) if k != 0 else 0),
                        ]
                    )
                    best, chosen = compared.better(best, chosen, new.astype(np.float32))
                cost[i, j], plane[:, i, j] = best, chosen
    return PlaneMap(np.ascontiguousarray(plane[0]), np.ascontiguousarray(plane[1:]), cost)


def _reference_numbers(pixel: np.ndarray, draw: int) -> Callable[[int], np.ndarray]:
    def mixed(x: np.ndarray) -> np.ndarray:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return x ^ (x >> np.uint64(31))

    golden = 0x9E3779B97F4A7C15
    state = mixed(pixel.astype(np.uint64) + np.uint64(draw * golden % 2**64))
    return lambda k: (
        (mixed(state + np.uint64((k + 1) * golden % 2**64)) >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    )


class _Comparison:
    """Windows of some pixels, and the cost of planes there."""

    def __init__(self, view: StereoView, sources: Sequence[StereoView], i: np.ndarray, j: np.ndarray) -> None:
        h, w = view.grey.shape
        self.du, self.dv = np.array(_OFFSETS, np.float64).T
        values = view.grey[(i[:, None] + self.dv.astype(int)).clip(0, h - 1), (j[:, None] + self.du.astype(int)).clip(0, w - 1)].astype(
            float
        )
        weight = np.exp(-(self.du**2 + self.dv**2) / 32) / (1 + ((values - view.grey[i, j][:, None]) / 0.15) ** 2)
        self.weight = weight / weight.sum(1, keepdims=True)
        self.centred = values - (self.weight * values).sum(1, keepdims=True)
        self.deviation = np.sqrt(np.maximum((self.weight * self.centred**2).sum(1), 1e-6))
        self.u, self.v = j[:, None] + 0.5 + self.du, i[:, None] + 0.5 + self.dv
        self.centre, self.view, self.sources = (j + 0.5, i + 0.5), view, sources

    def better(self, best: np.ndarray, chosen: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The planes of lower cost of ``chosen`` and ``new`` (NaN: none), with their costs."""
        cost = np.where(np.isfinite(new).all(0), self.cost(np.nan_to_num(new)), np.inf).astype(np.float32)
        return np.where(cost < best, cost, best), np.where(cost < best, new, chosen).astype(np.float32)

    def cost(self, plane: np.ndarray) -> np.ndarray:
        w, a, b = plane[:, :, None].astype(float)
        costs = [np.full(len(self.u), WORST)] * (len(self.sources) > 1)
        for source in self.sources:
            between = source.world_to_cam @ np.linalg.inv(self.view.world_to_cam)
            homogeneous = np.stack([self.u, self.v, np.ones_like(self.u)], -1) @ (source.K @ between[:3, :3] @ np.linalg.inv(self.view.K)).T
            homogeneous = homogeneous + (w + a * self.du + b * self.dv)[..., None] * (source.K @ between[:3, 3])
            h, w_source = source.grey.shape
            rays = np.stack([*self.centre, np.ones_like(self.centre[0])], -1) @ (source.K @ between[:3, :3] @ np.linalg.inv(self.view.K)).T
            x, y, z = (rays + plane[0][:, None] * (source.K @ between[:3, 3])).T
            inside = (z > 0) & (x >= 0) & (y >= 0) & (x <= w_source * z) & (y <= h * z)
            with np.errstate(divide="ignore", invalid="ignore"):
                columns = np.nan_to_num(homogeneous[..., 0] / homogeneous[..., 2] - 0.5, nan=w_source).clip(0, w_source - 1)
                rows = np.nan_to_num(homogeneous[..., 1] / homogeneous[..., 2] - 0.5, nan=h).clip(0, h - 1)
            sample = ndimage.map_coordinates(source.grey.astype(float), [rows, columns], order=1, mode="nearest")
            deviation = sample - (self.weight * sample).sum(1, keepdims=True)
            scale = self.deviation * np.sqrt(np.maximum((self.weight * deviation**2).sum(1), 1e-6))
            costs.append(np.where(inside, 1 - (self.weight * self.centred * deviation).sum(1) / scale, WORST))
        best = np.sort(np.stack(costs), 0)
        return best[: min(2, len(self.sources))].mean(0)


def agreeing_reference(
    view: StereoView, inverse_depth: Float32[np.ndarray, "h w"], other: StereoView, planes: PlaneMap
) -> tuple[Bool[np.ndarray, "h w"], Float64[np.ndarray, "h w"], Int64[np.ndarray, "h w"]]:
    """Whether each pixel agrees with another view, see ``consistent_depth``; the inverse depth that view gives it, and the index of the pixel there."""
    h, w = other.grey.shape
    rows, columns = np.mgrid[: inverse_depth.shape[0], : inverse_depth.shape[1]] + 0.5
    known = inverse_depth > 0
    depth = np.where(known, 1 / np.where(known, inverse_depth, 1.0), 1.0)

    def moved(start: StereoView, end: StereoView, u: np.ndarray, v: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, ...]:
        xyz = np.stack([u * z, v * z, z], -1) @ np.linalg.inv(start.K).T
        world = (xyz - start.world_to_cam[:3, 3]) @ start.world_to_cam[:3, :3]
        x, y, z = np.moveaxis((world @ end.world_to_cam[:3, :3].T + end.world_to_cam[:3, 3]) @ end.K.T, -1, 0)
        return x / np.where(z > 0, z, np.nan), y / np.where(z > 0, z, np.nan), z

    u, v, z = moved(view, other, columns, rows, depth)
    inside = known & (u >= 0) & (v >= 0) & (u < w) & (v < h)
    i, j = (np.where(inside, place, 0).astype(np.int64) for place in (v, u))
    there = planes.inverse_depth[i, j] + planes.slope[0, i, j] * (u - j - 0.5) + planes.slope[1, i, j] * (v - i - 0.5)
    agree = inside & (planes.inverse_depth[i, j] > 0) & (planes.cost[i, j] < 0.5) & (np.abs(there * z - 1) <= 0.01)
    back_u, back_v, back_z = moved(
        other, view, np.where(agree, u, 0), np.where(agree, v, 0), np.where(agree, 1 / np.where(agree, there, 1), 1)
    )
    agree &= (back_z > 0) & (np.hypot(back_u - columns, back_v - rows) <= 1.5)
    return agree, np.where(agree, 1 / np.where(agree, back_z, 1), 0), i * w + j


# ----------------------------------------------------------------------
# CPU


@kernel()
def _mixed(x):
    """splitmix64 (Steele, Lea and Flood, 2014): 64 bits that depend on all bits of x."""
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@kernel()
def _random(state, k):
    """The k-th number of a stream, uniform in [-1, 1)."""
    return np.float32(_mixed(state + np.uint64(k + 1) * _STEP) >> _40) * _2_TO_MINUS_24 * _TWO - _ONE


@kernel(fastmath={"contract", "nsz", "arcp", "reassoc"})
def _window(grey, row, column, weights, products):
    """Weights of a window, of sum 1, and weights times brightness, of mean 0 and normalised by the deviation; returns the mean."""
    h, w = grey.shape
    centre, sum_w, sum_r = grey[row, column], _ZERO, _ZERO
    for k in range(_SAMPLES):
        i = min(max(row + int(_DV[k]), 0), h - 1)
        j = min(max(column + int(_DU[k]), 0), w - 1)
        value = grey[i, j]
        difference = (value - centre) * _SIMILAR
        weight = _NEARNESS[k] / (_ONE + difference * difference)
        weights[k] = weight
        products[k] = value
        sum_w += weight
        sum_r += weight * value
    scale, mean, variance = _ONE / sum_w, sum_r / sum_w, _ZERO
    for k in range(_SAMPLES):
        weight, value = weights[k] * scale, products[k] - mean
        weights[k] = weight
        products[k] = weight * value
        variance += weight * value * value
    normal = _ONE / np.sqrt(max(variance, _FLOOR))
    for k in range(_SAMPLES):
        products[k] *= normal
    return mean


@kernel(fastmath={"contract", "nsz", "arcp", "reassoc"})
def _cost(images, starts, sizes, A, q, u, v, w, a, b, weights, products, mean):
    """Cost of a plane: mean over the two best sources of 1 - NCC."""
    first, second = _WORST, _WORST
    for s in range(len(starts)):
        x, y, z = (
            A[s, 0, 0] * u + A[s, 0, 1] * v + A[s, 0, 2] + w * q[s, 0],
            A[s, 1, 0] * u + A[s, 1, 1] * v + A[s, 1, 2] + w * q[s, 1],
            A[s, 2, 0] * u + A[s, 2, 1] * v + A[s, 2, 2] + w * q[s, 2],
        )
        rows, columns = np.float32(sizes[s, 0]), np.float32(sizes[s, 1])
        if not (z > _ZERO and x >= _ZERO and x <= columns * z and y >= _ZERO and y <= rows * z):
            continue
        x_u, y_u, z_u = A[s, 0, 0] + a * q[s, 0], A[s, 1, 0] + a * q[s, 1], A[s, 2, 0] + a * q[s, 2]
        x_v, y_v, z_v = A[s, 0, 1] + b * q[s, 0], A[s, 1, 1] + b * q[s, 1], A[s, 2, 1] + b * q[s, 2]
        right, bottom = columns - _ONE - _EDGE, rows - _ONE - _EDGE
        sums, squares, covariances = splat(_ZERO), splat(_ZERO), splat(_ZERO)
        for k in range(0, _SAMPLES, 16):
            du, dv = load(_DU, k), load(_DV, k)
            nearness = splat(_ONE) / (du * z_u + dv * z_v + z)
            column = (du * x_u + dv * x_v + x) * nearness - _HALF
            row = (du * y_u + dv * y_v + y) * nearness - _HALF
            # what is no number takes the border, too
            column = maximum(where_less(column, right, column, splat(right)), _ZERO)
            row = maximum(where_less(row, bottom, row, splat(bottom)), _ZERO)
            sample = bilinear(images, starts[s], sizes[s, 1], column, row) * _UNIT - mean
            weighted = load(weights, k) * sample
            sums = sums + weighted
            squares = squares + weighted * sample
            covariances = covariances + load(products, k) * sample
        average = total(sums)
        variance = max(total(squares) - average * average, _FLOOR)
        value = _ONE - total(covariances) / np.sqrt(variance)
        if value < first:
            first, second = value, first
        elif value < second:
            second = value
    return (first + second) * _HALF if len(starts) > 1 else first


@kernel(fastmath={"contract", "nsz", "arcp", "reassoc"})
def _sweep(grey, mask, images, starts, sizes, A, q, plane, cost, mode, draw, low, high, focal, range_w, range_slope, colour, begin, end):
    """Starts, compares or improves the planes of the pixels of one colour in some rows."""
    height, width = grey.shape
    weights, products = np.empty(_SAMPLES, np.float32), np.empty(_SAMPLES, np.float32)
    for row in range(begin, end):
        for column in range((row + colour) % 2, width, 2):
            if not mask[row, column]:
                continue
            mean = _window(grey, row, column, weights, products)
            u, v = np.float32(column) + _HALF, np.float32(row) + _HALF
            state = _mixed(np.uint64(row * width + column) + np.uint64(draw) * _STEP)
            best = _WORST + _ONE
            w, a, b = plane[0, row, column], plane[1, row, column], plane[2, row, column]
            if mode == _START:
                for k in range(_STARTS):
                    share = (np.float32(k) + (_random(state, 3 * k) + _ONE) * _HALF) / np.float32(_STARTS)
                    new_w = low + (high - low) * share
                    slope = new_w / focal * range_slope
                    new_a, new_b = slope * _random(state, 3 * k + 1), slope * _random(state, 3 * k + 2)
                    new = _cost(images, starts, sizes, A, q, u, v, new_w, new_a, new_b, weights, products, mean)
                    if new < best:
                        best, w, a, b = new, new_w, new_a, new_b
            elif mode == _COMPARE:
                best = _cost(images, starts, sizes, A, q, u, v, w, a, b, weights, products, mean)
            else:
                best = cost[row, column]
                for group in (_NEIGHBOURS, _FAR_NEIGHBOURS):
                    for direction in range(4):
                        lowest, from_row, from_column = _WORST, -1, -1
                        for k in range(group.shape[1]):
                            i, j = row + group[direction, k, 1], column + group[direction, k, 0]
                            if i >= 0 and i < height and j >= 0 and j < width and cost[i, j] < lowest:
                                lowest, from_row, from_column = cost[i, j], i, j
                        if from_row < 0:
                            continue
                        new_a, new_b = plane[1, from_row, from_column], plane[2, from_row, from_column]
                        new_w = (
                            plane[0, from_row, from_column] + new_a * np.float32(column - from_column) + new_b * np.float32(row - from_row)
                        )
                        if new_w >= low and new_w <= high:
                            new = _cost(images, starts, sizes, A, q, u, v, new_w, new_a, new_b, weights, products, mean)
                            if new < best:
                                best, w, a, b = new, new_w, new_a, new_b
                for k in range(4):
                    new_w, new_a, new_b = w, a, b
                    if k != 1:
                        new_w = w * (_ONE + range_w * _random(state, 3 * k))
                    if k != 0:
                        slope = w / focal * range_slope
                        new_a, new_b = a + slope * _random(state, 3 * k + 1), b + slope * _random(state, 3 * k + 2)
                    new_w = min(max(new_w, low), high)
                    new = _cost(images, starts, sizes, A, q, u, v, new_w, new_a, new_b, weights, products, mean)
                    if new < best:
                        best, w, a, b = new, new_w, new_a, new_b
            cost[row, column] = best
            plane[0, row, column], plane[1, row, column], plane[2, row, column] = w, a, b


# ----------------------------------------------------------------------
# CUDA

_SOURCE = (
    f"""
#define SAMPLES {_SAMPLES}
#define WORST {WORST}f
#define FLOOR 1e-6f
__constant__ int OFFSETS[SAMPLES][2] = {{{", ".join(f"{{{du}, {dv}}}" for du, dv in _OFFSETS)}}};
__constant__ int NEAR[4][7][2] = {{{", ".join("{" + ", ".join(f"{{{x}, {y}}}" for x, y in group) + "}" for group in _NEIGHBOURS.tolist())}}};
__constant__ int FAR[4][5][2] = {{{", ".join("{" + ", ".join(f"{{{x}, {y}}}" for x, y in group) + "}" for group in _FAR_NEIGHBOURS.tolist())}}};
#define STARTS {_STARTS}
"""
    + r"""
typedef unsigned long long u64;

__device__ u64 mixed(u64 x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

__device__ float number(u64 state, int k) { return (float)(mixed(state + (u64)(k + 1) * 0x9E3779B97F4A7C15ull) >> 40) * (1.0f / 8388608.0f) - 1.0f; }

struct Task {
    const float *grey, *images, *A, *q;
    const unsigned char* mask;
    const long long* starts;
    const int* sizes;
    int height, width, sources;
};

struct Window {
    float weight[SAMPLES], product[SAMPLES], mean;
};

__device__ void read_window(const Task& t, int row, int column, Window& window) {
    float centre = t.grey[(long long)row * t.width + column], sum_w = 0.0f, sum_r = 0.0f;
    for (int k = 0; k < SAMPLES; k++) {
        int du = OFFSETS[k][0], dv = OFFSETS[k][1];
        int i = min(max(row + dv, 0), t.height - 1), j = min(max(column + du, 0), t.width - 1);
        float value = t.grey[(long long)i * t.width + j], difference = (value - centre) / 0.15f;
        float weight = expf(-(float)(du * du + dv * dv) / 32.0f) / (1.0f + difference * difference);
        window.weight[k] = weight;
        window.product[k] = value;
        sum_w += weight;
        sum_r += weight * value;
    }
    float variance = 0.0f;
    window.mean = sum_r / sum_w;
    for (int k = 0; k < SAMPLES; k++) {
        float weight = window.weight[k] / sum_w, value = window.product[k] - window.mean;
        window.weight[k] = weight;
        window.product[k] = weight * value;
        variance += weight * value * value;
    }
    float normal = rsqrtf(fmaxf(variance, FLOOR));
    for (int k = 0; k < SAMPLES; k++) window.product[k] *= normal;
}

__device__ float compare(const Task& t, const Window& window, float u, float v, float w, float a, float b) {
    float first = WORST, second = WORST;
    for (int s = 0; s < t.sources; s++) {
        const float *A = t.A + 9 * s, *q = t.q + 3 * s;
        float x = A[0] * u + A[1] * v + A[2] + w * q[0], y = A[3] * u + A[4] * v + A[5] + w * q[1], z = A[6] * u + A[7] * v + A[8] + w * q[2];
        int rows = t.sizes[2 * s], columns = t.sizes[2 * s + 1];
        if (!(z > 0.0f && x >= 0.0f && x <= columns * z && y >= 0.0f && y <= rows * z)) continue;
        float x_u = A[0] + a * q[0], y_u = A[3] + a * q[1], z_u = A[6] + a * q[2];
        float x_v = A[1] + b * q[0], y_v = A[4] + b * q[1], z_v = A[7] + b * q[2];
        const float* image = t.images + t.starts[s];
        float sum = 0.0f, squares = 0.0f, covariance = 0.0f;
        for (int k = 0; k < SAMPLES; k++) {
            float du = OFFSETS[k][0], dv = OFFSETS[k][1], nearness = 1.0f / (du * z_u + dv * z_v + z);
            float column = (du * x_u + dv * x_v + x) * nearness - 0.5f, row = (du * y_u + dv * y_v + y) * nearness - 0.5f;
            column = column < columns - 1.001f ? fmaxf(column, 0.0f) : columns - 1.001f;
            row = row < rows - 1.001f ? fmaxf(row, 0.0f) : rows - 1.001f;
            int j = (int)column, i = (int)row;
            float right = column - j, below = row - i;
            const float* at = image + (long long)i * columns + j;
            float top = at[0] + right * (at[1] - at[0]), bottom = at[columns] + right * (at[columns + 1] - at[columns]);
            float sample = top + below * (bottom - top) - window.mean, weighted = window.weight[k] * sample;
            sum += weighted;
            squares += weighted * sample;
            covariance += window.product[k] * sample;
        }
        float value = 1.0f - covariance * rsqrtf(fmaxf(squares - sum * sum, FLOOR));
        if (value < first) {
            second = first;
            first = value;
        } else if (value < second) {
            second = value;
        }
    }
    return t.sources > 1 ? (first + second) * 0.5f : first;
}

extern "C" __global__ void sweep(const float* grey, const unsigned char* mask, const float* images, const long long* starts, const int* sizes, const float* A,
                                 const float* q, const float* numbers, float* plane, float* cost, int mode, int draw, int colour, int height, int width,
                                 int sources) {
    long long pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x, count = (long long)height * width;
    if (pixel >= count || !mask[pixel]) return;
    int row = (int)(pixel / width), column = (int)(pixel % width);
    if ((row + column) % 2 != colour) return;
    Task t = {grey, images, A, q, mask, starts, sizes, height, width, sources};
    float low = numbers[0], high = numbers[1], focal = numbers[2], range_w = numbers[3], range_slope = numbers[4];
    Window window;
    read_window(t, row, column, window);
    float u = column + 0.5f, v = row + 0.5f, best = WORST + 1.0f;
    u64 state = mixed((u64)pixel + (u64)draw * 0x9E3779B97F4A7C15ull);
    float w = plane[pixel], a = plane[count + pixel], b = plane[2 * count + pixel];
    if (mode == 0) {
        for (int k = 0; k < STARTS; k++) {
            float start = low + (high - low) * ((k + (number(state, 3 * k) + 1.0f) * 0.5f) / STARTS), slope = start / focal * range_slope;
            float new_a = slope * number(state, 3 * k + 1), new_b = slope * number(state, 3 * k + 2);
            float found = compare(t, window, u, v, start, new_a, new_b);
            if (found < best) { best = found; w = start; a = new_a; b = new_b; }
        }
    } else if (mode == 1) {
        best = compare(t, window, u, v, w, a, b);
    } else {
        best = cost[pixel];
        for (int group = 0; group < 2; group++) {
            for (int direction = 0; direction < 4; direction++) {
                float lowest = WORST;
                int from_row = -1, from_column = -1;
                for (int k = 0; k < (group ? 5 : 7); k++) {
                    const int* step = group ? FAR[direction][k] : NEAR[direction][k];
                    int i = row + step[1], j = column + step[0];
                    if (i >= 0 && i < height && j >= 0 && j < width && cost[(long long)i * width + j] < lowest) {
                        lowest = cost[(long long)i * width + j];
                        from_row = i;
                        from_column = j;
                    }
                }
                if (from_row < 0) continue;
                long long from = (long long)from_row * width + from_column;
                float new_a = plane[count + from], new_b = plane[2 * count + from];
                float new_w = plane[from] + new_a * (column - from_column) + new_b * (row - from_row);
                if (new_w < low || new_w > high) continue;
                float found = compare(t, window, u, v, new_w, new_a, new_b);
                if (found < best) { best = found; w = new_w; a = new_a; b = new_b; }
            }
        }
        for (int k = 0; k < 4; k++) {
            float new_w = w, new_a = a, new_b = b;
            if (k != 1) new_w = fminf(fmaxf(w * (1.0f + range_w * number(state, 3 * k)), low), high);
            if (k != 0) {
                float slope = w / focal * range_slope;
                new_a += slope * number(state, 3 * k + 1);
                new_b += slope * number(state, 3 * k + 2);
            }
            float found = compare(t, window, u, v, new_w, new_a, new_b);
            if (found < best) { best = found; w = new_w; a = new_a; b = new_b; }
        }
    }
    cost[pixel] = best;
    plane[pixel] = w;
    plane[count + pixel] = a;
    plane[2 * count + pixel] = b;
}
"""
)


def _check_cuda(device: torch.device) -> str | None:
    """Compares planes of a small image of noise with those of the reference: rounding decides between planes of equal cost in single pixels."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(40, 72)), 1.5)
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    K, views = np.array([[40.0, 0, 24], [0, 40.0, 20], [0, 0, 1]]), []
    for k in range(3):
        pose = np.eye(4)
        pose[0, 3] = -0.3 * k
        views.append(StereoPyramid(StereoView(np.ascontiguousarray(noise[:, 6 * k : 6 * k + 48], np.float32), None, K, pose)))
    found = estimate_planes(views[0], views[1:], (0.2, 1.0), 1, device)
    expected = estimate_planes_reference(views[0].levels, [view.levels for view in views[1:]], (0.2, 1.0), 1)
    share = float((np.abs(found.cost - expected.cost) < 1e-2).mean())
    return None if share > 0.9 else f"{100 * (1 - share):.0f} % of the pixels differ from the reference"


_CUDA = CudaModule("stereo", _SOURCE, ("sweep",), _check_cuda)


# ----------------------------------------------------------------------
# Geometric consistency and fusion


@dataclass(frozen=True)
class Neighbour:
    """A view to compare depths with.

    Attributes:
        view: its camera and size.
        planes: its planes.
    """

    view: StereoView
    planes: PlaneMap


_WORST_COST = np.float32(0.5)  # of pixels that count
_FARTHEST_PX = np.float32(1.5)  # between a pixel and where it comes back to
_RELATIVE = np.float32(0.01)  # difference of inverse depths that agree


def consistent_depth(view: StereoView, planes: PlaneMap, neighbours: Sequence[Neighbour], least: int = 2) -> Float32[np.ndarray, "h w"]:
    """Inverse depths on which a view and its neighbours agree: the mean of all that do; 0 where fewer than ``least`` neighbours do.

    A pixel agrees with a neighbour if the neighbour's plane at its place takes it back to within 1.5 pixels, at an inverse depth within 1 %.
    """
    shown = planes.inverse_depth * (planes.cost < _WORST_COST)
    sums, count = shown.copy(), np.zeros(shown.shape, np.int32)
    parts = spans(shown.shape[0], thread_count(shown.shape[0], 8))
    for neighbour in neighbours:
        if backend(_CPU) == "torch":
            agree, found, _ = agreeing_reference(view, shown, neighbour.view, neighbour.planes)
            sums += np.float32(found)
            count += agree
            continue
        other = neighbour.planes
        arguments = (shown, *_both_ways(view, neighbour.view), other.inverse_depth, other.slope, other.cost, sums, count)

        def work(k: int, arguments: tuple[np.ndarray, ...] = arguments) -> None:
            _compare_depths(*arguments, *parts[k])

        run_threads(work, len(parts))
    return np.where(count >= least, sums / (count + 1), 0).astype(np.float32)


def _both_ways(view: StereoView, other: StereoView) -> list[np.ndarray]:
    """``relative_projection`` there and back."""
    return [matrix.astype(np.float32) for pair in ((view, other), (other, view)) for matrix in relative_projection(*pair)]


@kernel(fastmath={"contract"})
def _returns(w, row, column, A, q, back_A, back_q, other, slope):
    """Place (row, column) in a neighbour and the inverse depth that the neighbour gives a pixel; (-1, -1, 0) where they do not agree."""
    u, v = np.float32(column) + _HALF, np.float32(row) + _HALF
    z = A[2, 0] * u + A[2, 1] * v + A[2, 2] + w * q[2]
    if not z > _ZERO:
        return -1, -1, _ZERO
    x = (A[0, 0] * u + A[0, 1] * v + A[0, 2] + w * q[0]) / z
    y = (A[1, 0] * u + A[1, 1] * v + A[1, 2] + w * q[1]) / z
    height, width = other.shape
    if not (x >= _ZERO and y >= _ZERO and x < np.float32(width) and y < np.float32(height)):
        return -1, -1, _ZERO
    i, j = int(y), int(x)
    w_there = other[i, j]
    if w_there <= _ZERO:
        return -1, -1, _ZERO
    if slope.shape[0] == 2:
        w_there += slope[0, i, j] * (x - np.float32(j) - _HALF) + slope[1, i, j] * (y - np.float32(i) - _HALF)
    expected = w / z
    if abs(w_there - expected) > _RELATIVE * expected:
        return -1, -1, _ZERO
    z_back = back_A[2, 0] * x + back_A[2, 1] * y + back_A[2, 2] + w_there * back_q[2]
    if not z_back > _ZERO:
        return -1, -1, _ZERO
    du = (back_A[0, 0] * x + back_A[0, 1] * y + back_A[0, 2] + w_there * back_q[0]) / z_back - u
    dv = (back_A[1, 0] * x + back_A[1, 1] * y + back_A[1, 2] + w_there * back_q[1]) / z_back - v
    if du * du + dv * dv > _FARTHEST_PX * _FARTHEST_PX:
        return -1, -1, _ZERO
    return i, j, w_there / z_back


@kernel(fastmath={"contract"})
def _compare_depths(shown, A, q, back_A, back_q, other, slope, cost, sums, count, begin, end):
    for row in range(begin, end):
        for column in range(shown.shape[1]):
            w = shown[row, column]
            if w > _ZERO:
                i, j, found = _returns(w, row, column, A, q, back_A, back_q, other, slope)
                if i >= 0 and cost[i, j] < _WORST_COST:
                    sums[row, column] += found
                    count[row, column] += 1


@dataclass(frozen=True)
class FusedPoints:
    """m points that several views see.

    Attributes:
        xyz_world: scene units.
        normal_world: unit length, towards the views.
        rgb_u8: mean colours.
        seen: indices of the views that see each point, the first one the view it comes from; -1 fills the rows.
    """

    xyz_world: Float32[np.ndarray, "m 3"]
    normal_world: Float32[np.ndarray, "m 3"]
    rgb_u8: UInt8[np.ndarray, "m 3"]
    seen: Int32[np.ndarray, "m k"]


def plane_normals(
    inverse_depth: Float[np.ndarray, "*n"],
    slope: Float32[np.ndarray, "2 *n"],
    u: Float64[np.ndarray, "*n"],
    v: Float64[np.ndarray, "*n"],
    K: Float64[np.ndarray, "3 3"],
) -> Float64[np.ndarray, "*n 3"]:
    """Normals of planes at pixels (u, v) in camera axes (OpenCV), of unit length, towards the camera."""
    a, b = slope.astype(np.float64)
    normal = -np.stack([a, b, inverse_depth - a * u - b * v], -1) @ K
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-30)


def fuse_view(
    index: int,
    views: Sequence[StereoView],
    depths: Sequence[Float32[np.ndarray, "h w"]],
    slopes: Float32[np.ndarray, "2 h w"],
    photos: Sequence[UInt8[np.ndarray, "h w 3"]],
    used: Sequence[Bool[np.ndarray, "h w"]],
    neighbours: Sequence[int],
    least: int = 4,
) -> FusedPoints:
    """Points of the pixels of a view that no earlier view has used: mean inverse depth and colour of the views that agree, at least ``least``.

    Args:
        index: the view.
        views: all views.
        depths: their consistent inverse depths, 0 for none; see ``consistent_depth``.
        slopes: of the planes of the view, for normals.
        photos: their colours.
        used: pixels that belong to a point already; updated in place.
        neighbours: indices of the views to compare with.
        least: views per point, with the view itself.
    """
    view, depth = views[index], depths[index]
    h, w = depth.shape
    free = (depth > 0) & ~used[index]
    places = np.full((len(neighbours), h, w), -1, np.int64)
    sums, count = (depth * free).astype(np.float32), free.astype(np.int32)
    colour = photos[index].astype(np.float32)
    shown, flat = sums.copy(), np.zeros((0, 1, 1), np.float32)
    for k, j in enumerate(neighbours):
        if backend(_CPU) == "torch":
            level = PlaneMap(depths[j], np.zeros((2, *depths[j].shape), np.float32), np.zeros(depths[j].shape, np.float32))
            agree, found, place = agreeing_reference(view, shown, views[j], level)
            sums, count, places[k] = sums + np.float32(found), count + agree, np.where(agree, place, -1)
            colour += agree[..., None] * photos[j].reshape(-1, 3)[place]
        else:
            _gather_agreeing(shown, *_both_ways(view, views[j]), depths[j], flat, photos[j], sums, count, colour, places[k])
    kept = count >= least
    for k, j in enumerate(neighbours):
        taken = places[k][kept & (places[k] >= 0)]
        used[j].reshape(-1)[taken] = True
    used[index][kept] = True
    row, column = kept.nonzero()
    inverse_depth = sums[kept] / count[kept]
    uv_px = np.stack([column + 0.5, row + 0.5, np.ones(len(row))], 1)
    rays_cam = uv_px @ np.linalg.inv(view.K).T
    R, t = view.world_to_cam[:3, :3], view.world_to_cam[:3, 3]
    xyz = (rays_cam / inverse_depth[:, None].astype(np.float64) - t) @ R
    normal = plane_normals(inverse_depth, slopes[:, row, column], uv_px[:, 0], uv_px[:, 1], view.K) @ R
    seen = np.full((len(row), len(neighbours) + 1), -1, np.int32)
    seen[:, 0] = index
    for k, j in enumerate(neighbours):
        seen[:, k + 1] = np.where(places[k][kept] >= 0, j, -1)
    rgb = (colour[kept] / count[kept][:, None] + 0.5).astype(np.uint8)
    return FusedPoints(xyz.astype(np.float32), normal.astype(np.float32), rgb, seen)


@kernel(fastmath={"contract"})
def _gather_agreeing(shown, A, q, back_A, back_q, other, flat, photo, sums, count, colour, places):
    for row in range(shown.shape[0]):
        for column in range(shown.shape[1]):
            w = shown[row, column]
            if w > _ZERO:
                i, j, found = _returns(w, row, column, A, q, back_A, back_q, other, flat)
                if i >= 0:
                    sums[row, column] += found
                    count[row, column] += 1
                    places[row, column] = i * other.shape[1] + j
                    for channel in range(3):
                        colour[row, column, channel] += photo[i, j, channel]
