"""Selection of input views for target views during training (NPBG++, Rakhimov et al. 2022).

A good input view sees the points of the target from about 15 degrees beside it. Each point of the target scores each input view; views are selected greedily,
and points visible in a selected view no longer vote.

Symbols: p points, k input views, n points and d coordinates of a general set, theta the angle at a point between two camera centres.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.data import Scene
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, PixelConvention, PixelGrid, ProjectionSettings
from npbgpp.kernels.rasterization import ChunkedCloud, Level, rasterize
from npbgpp.points import visible_points

METHODS = ("multinomial", "best")
_LEVEL = Level(0.125)  # a coarse z-buffer has no holes between points, so that surfaces occlude
_VOTERS = 500
_SHARE_EPSILON = 1e-6


def angle_scores(
    xyz_world: Float[Tensor, "p 3"],
    target_center: Float[Tensor, " 3"],
    inputs: Cameras,
    projection: ProjectionSettings,
    lower_sigma: float = 5.0,
    upper_sigma: float = 15.0,
    optimal: float = 15.0,
) -> Float[Tensor, "k p"]:
    """Score of each input view for each point of a target view: ``exp(-(theta - optimal)^2 / (2 sigma^2))``.

    Args:
        xyz_world: points visible in the target.
        target_center: camera centre of the target.
        inputs: the k input views, whole images.
        projection: near plane and pixel convention.
        lower_sigma: sigma up to the optimal angle, degrees.
        upper_sigma: sigma beyond it, degrees.
        optimal: the angle of score 1, degrees.

    Returns:
        Scores in 0..1; 0 for invisible points: outside the image, or behind another of these points in a cell of 8x8 pixels.
    """
    view, point = visible_points(xyz_world, inputs, _LEVEL.scale, projection).nonzero().unbind(1)
    to_target = torch.nn.functional.normalize(target_center - xyz_world, dim=1)[point]
    to_input = torch.nn.functional.normalize(inputs.centers()[view] - xyz_world[point], dim=1)
    # accurate for small angles in single precision, unlike the arc cosine
    theta = torch.rad2deg(2 * torch.atan2((to_target - to_input).norm(dim=1), (to_target + to_input).norm(dim=1)))
    sigma = torch.where(theta <= optimal, lower_sigma, upper_sigma)
    scores = xyz_world.new_zeros(len(inputs), len(xyz_world))
    scores[view, point] = torch.exp(-((theta - optimal) ** 2) / (2 * sigma**2))
    return scores


def farthest_points(xyz: Float[Tensor, "n d"], count: int, start: int) -> Int[Tensor, " {count}"]:
    """Farthest point sampling (Eldar et al. 1997): indices of ``count`` distinct points on the CPU, from ``start``; ties go to the lowest index.

    Raises ValueError for fewer than ``count`` points.
    """
    if count > len(xyz):
        raise ValueError(f"farthest_points: expected at least {count} points, got {len(xyz)}")
    planes = np.ascontiguousarray(xyz.numpy().T)  # numpy has less overhead than torch in hundreds of tiny steps
    difference, squared = np.empty_like(planes), np.empty_like(planes[0])
    distance = np.full_like(squared, np.inf)
    chosen = np.empty(count, dtype=np.int64)
    latest = start
    for k in range(count):
        chosen[k] = latest
        np.subtract(planes, planes[:, latest, None], out=difference)
        np.multiply(difference, difference, out=difference)
        np.add.reduce(difference, 0, out=squared)
        np.minimum(distance, squared, out=distance)
        distance[latest] = -1.0  # below the 0 of duplicates
        latest = int(distance.argmax())
    return torch.from_numpy(chosen)


def best_views(scores: Float[Tensor, "k p"], count: int) -> list[int]:
    """Deterministic greedy selection of the view with the most votes. Ties go to the lowest index.

    When no votes are left, the remaining views are selected by their sum of scores. Raises ValueError for fewer than ``count`` views.
    """
    return _take_turns(scores, count, scores.sum(1), lambda votes: int(votes.argmax()))


def multinomial_views(scores: Float[Tensor, "k p"], count: int, generator: torch.Generator | None = None) -> list[int]:
    """Random selection without replacement, with probabilities proportional to votes; ``generator`` None is the global RNG.

    When no votes are left, the remaining views are equally likely. Raises ValueError for fewer than ``count`` views.
    """
    return _take_turns(
        scores, count, scores.new_ones(len(scores)), lambda v: int(torch.multinomial(v.clamp(min=0.0), 1, generator=generator))
    )


def _take_turns(
    scores: Float[Tensor, "k p"], count: int, without_voters: Float[Tensor, " k"], pick: Callable[[Float[Tensor, " k"]], int]
) -> list[int]:
    """Selects views one by one; points visible in a selected view lose their vote. Selected views have -1 votes."""
    if count > len(scores):
        raise ValueError(f"view selection: expected at least {count} views, got {len(scores)}")
    chosen: list[int] = []
    voters = scores
    for _ in range(count):
        votes = _votes(voters)
        if not votes.any():
            votes = without_voters.clone()
        votes[chosen] = -1.0
        chosen.append(pick(votes))
        voters = voters[:, voters[chosen[-1]] == 0]
    return chosen


def _votes(scores: Float[Tensor, "k p"]) -> Float[Tensor, " k"]:
    """Votes per view: each point distributes one vote in proportion to its scores."""
    return (scores / (scores.sum(0) + _SHARE_EPSILON)).sum(1)


class ViewSelector:
    """Selects input views for the target views of one scene.

    The points visible in a whole target view at 1/8 of its resolution are computed once per target and kept. The cloud is read at the first target and
    released after the last one; it is not pickled.

    Args:
        scene: the scene, with its cloud.
        inputs: indices of the candidate views.
        targets: indices of all target views.
        method: "multinomial" samples views; "best" selects deterministically, except for targets without points.
        count: number of views to select.
        projection: near plane and pixel convention.

    Raises:
        InputError: an unknown method, fewer than ``count`` candidates besides a target, or candidates of different sizes.
    """

    def __init__(
        self, scene: Scene, inputs: tuple[int, ...], targets: Iterable[int], method: str, count: int, projection: ProjectionSettings
    ) -> None:
        if method not in METHODS:
            raise InputError(f"datasets.selection_method: expected one of {', '.join(METHODS)}, got {method}; correct it")
        self.targets = frozenset(targets)
        available = len(inputs) - any(target in inputs for target in self.targets)
        if not 1 <= count <= available:
            raise InputError(
                f"datasets.selection_count: expected at least 1 and at most the number of input views besides the target, {available} in scene "
                f"{scene.name}, got {count}; change it or give the scene more input views"
            )
        cameras = [scene.views[i].camera for i in inputs]
        sizes = sorted({camera.image_size for camera in cameras})
        if len(sizes) != 1:
            raise InputError(
                f"scene {scene.name}: expected input views of one size, got {sizes} (height, width); bring the photos to one size"
            )
        self.scene, self.inputs, self.method, self.count, self.projection = scene, inputs, method, count, projection
        self._cameras = Cameras.cat(cameras)
        self._visible: dict[int, Float[Tensor, "n 3"]] = {}
        self._cloud: tuple[Float[Tensor, "n 3"], ChunkedCloud] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cloud": None}  # cheaper to read again than to hold twice

    def precompute(self) -> None:
        """Computes the visible points of all targets, so that worker processes need no cloud."""
        for target in self.targets:
            self._visible_from(target)

    def select(self, target_index: int, target_camera: Cameras, generator: torch.Generator | None = None) -> tuple[int, ...]:
        """Indices of the ``count`` input views of an item in the order of selection, without the target itself.

        Args:
            target_index: the view of the item.
            target_camera: its camera after crop and zoom. If no point lies in its image, all views are equally likely.
            generator: RNG; None is the global one.
        """
        candidates = [k for k, view in enumerate(self.inputs) if view != target_index]
        voters = self._voters(target_camera, self._visible_from(target_index), generator)
        scores = angle_scores(voters, target_camera.centers()[0], self._cameras, self.projection)[candidates]
        best = self.method == "best" and len(voters) > 0
        chosen = best_views(scores, self.count) if best else multinomial_views(scores, self.count, generator)
        return tuple(self.inputs[candidates[k]] for k in chosen)

    def _voters(self, camera: Cameras, xyz_world: Float[Tensor, "n 3"], generator: torch.Generator | None) -> Float[Tensor, "p 3"]:
        """Points in the image of a camera; for random selection a subset by farthest point sampling from a random start."""
        grid = self.projection.grid(camera.image_size)
        x, y, _ = grid.normalise(camera, xyz_world)[0].unbind(-1)
        shown = xyz_world[grid.inside(x, y)]
        if self.method == "best" or len(shown) <= _VOTERS:
            return shown
        # normalised under both conventions, as the authors do: pixels would outweigh depth
        ndc = PixelGrid(PixelConvention.AUTHORS, camera.image_size).normalise(camera, shown)[0]
        return shown[farthest_points(ndc, _VOTERS, int(torch.randint(len(ndc), (), generator=generator)))]

    def _visible_from(self, target_index: int) -> Float[Tensor, "n 3"]:
        """Points visible in the coarse z-buffer of a whole target view."""
        if target_index not in self.targets:
            raise ValueError(f"ViewSelector: expected one of the targets {sorted(self.targets)}, got {target_index}")
        if target_index not in self._visible:
            if self._cloud is None:
                xyz_world = self.scene.cloud.read().xyz
                self._cloud = xyz_world, ChunkedCloud.build(xyz_world)
            xyz_world, chunks = self._cloud
            index = rasterize(chunks, self.scene.views[target_index].camera, [_LEVEL], self.projection)[0].index
            self._visible[target_index] = xyz_world[index[index >= 0]]
            if self._visible.keys() == self.targets:
                self._cloud = None
        return self._visible[target_index]
