"""Multi-view stereo against exact depths: a rendered room with texture everywhere, and the motorcycle of Middlebury 2014 that comes with scikit-image.

For the room, depth maps of some views from the middle to the rim and of all that they are compared with; coverage is the share of pixels on which enough views
agree, errors are relative, "median of means" that of the depths of all views that agree. CPU seconds are those of a depth map alone, in all threads, after the
kernels are compiled. The pair has one source and one view to compare with; errors are disparities in pixels.

Run: ``python benchmarks/stereo.py [--sizes 320x240 640x480] [--views 50] [--checked 4]``, 5 CPU minutes, of which rendering takes most.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from skimage.data import stereo_motorcycle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the room is a helper of the tests

from measure import machine
from npbgpp.kernels.stereo import Neighbour, PlaneMap, StereoPyramid, StereoView, consistent_depth, estimate_planes
from npbgpp.prepare.dense import SparsePoints, choose_sources, view_scores
from tests.helpers.room import ROOM, Room

COMPARED = 10
SPARSE = 150  # points of each view
RANGE = (1 / 6.0, 1 / 0.8)  # inverse depths in the room
FOCAL, BASELINE, BETWEEN, CENTRE = 994.978, 193.001, 31.086, (311.193, 254.877)  # pixels, mm, pixels, pixels: calibration of the pair
DISPARITIES = (4.0, 64.0)


@dataclass(frozen=True)
class Shot:
    """What the choice of views asks of a view."""

    centre: np.ndarray


def sparse_points(room: Room) -> SparsePoints:
    """Points of random pixels, seen where they are not occluded."""
    rng, xyz = np.random.default_rng(0), []
    height, width = room.depths[0].shape
    for view, depth in zip(room.views, room.depths, strict=True):
        row, column = rng.integers(0, height, SPARSE), rng.integers(0, width, SPARSE)
        xyz_cam = np.stack([column + 0.5, row + 0.5, np.ones(SPARSE)], 1) @ np.linalg.inv(view.K).T * depth[row, column][:, None]
        xyz.append((xyz_cam - view.world_to_cam[:3, 3]) @ view.world_to_cam[:3, :3])
    points = np.concatenate(xyz)
    seen = np.zeros((len(room.views), len(points)), bool)
    for k, (view, depth) in enumerate(zip(room.views, room.depths, strict=True)):
        uvw = (points @ view.world_to_cam[:3, :3].T + view.world_to_cam[:3, 3]) @ view.K.T
        uv = uvw[:, :2] / uvw[:, 2:]
        inside = (uvw[:, 2] > 0) & (uv >= 0).all(1) & (uv < (width, height)).all(1)
        row, column = (np.where(inside, part, 0).astype(int) for part in (uv[:, 1], uv[:, 0]))
        seen[k] = inside & (np.abs(depth[row, column] / uvw[:, 2] - 1) < 0.02)
    return SparsePoints(points, seen)


def measure_room(views: int, checked: int, height: int, width: int) -> None:
    """Prints a line."""
    room = ROOM.rendered(views, height, width)
    shots = [Shot(-view.world_to_cam[:3, :3].T @ view.world_to_cam[:3, 3]) for view in room.views]
    scores = view_scores(shots, sparse_points(room))
    pyramids = [StereoPyramid(view) for view in room.views]
    planes: dict[int, PlaneMap] = {}
    cpu: list[float] = []

    def depth_map(k: int) -> PlaneMap:
        if k not in planes:
            sources = [pyramids[j] for j in choose_sources(k, shots, scores)]
            start = time.process_time()
            planes[k] = estimate_planes(pyramids[k], sources, RANGE)
            cpu.append(time.process_time() - start)
        return planes[k]

    rows = []
    for k in np.linspace(0, views - 1, checked).round().astype(int).tolist():  # from the middle to the rim
        near = [int(j) for j in np.argsort(-scores[k], kind="stable")[:COMPARED] if scores[k, j] > 0]
        depth = consistent_depth(room.views[k], depth_map(k), [Neighbour(room.views[j], depth_map(j)) for j in near])
        known = depth > 0
        alone = np.abs(room.depths[k] * depth_map(k).inverse_depth - 1)[known]
        mean = np.abs(room.depths[k] * depth - 1)[known]
        rows.append((known.mean(), np.median(alone), (alone < 0.01).mean(), np.median(mean)))
    coverage, alone, within, mean = np.mean(rows, 0)
    print(
        f"room {width}x{height:<4d} coverage {100 * coverage:5.1f} %, error: median {100 * alone:.3f} %, within 1 %: {100 * within:.1f} %, median of means "
        f"{100 * mean:.3f} %; {np.median(cpu):.2f} CPU-s a view"
    )


def measure_pair() -> None:
    """Prints a line."""
    left, right, disparity = stereo_motorcycle()
    views = []
    for k, image in enumerate((left, right)):
        K = np.array([[FOCAL, 0, CENTRE[0] + k * BETWEEN + 0.5], [0, FOCAL, CENTRE[1] + 0.5], [0, 0, 1]])
        pose = np.eye(4)
        pose[0, 3] = -k * BASELINE
        views.append(StereoView((image @ np.array([0.299, 0.587, 0.114]) / 255).astype(np.float32), None, K, pose))
    low, high = ((d + BETWEEN) / (FOCAL * BASELINE) for d in DISPARITIES)
    pyramids = [StereoPyramid(view) for view in views]
    start = time.process_time()
    planes = [estimate_planes(pyramids[k], [pyramids[1 - k]], (low, high)) for k in range(2)]
    seconds = (time.process_time() - start) / 2
    depth = consistent_depth(views[0], planes[0], [Neighbour(views[1], planes[1])], least=1)
    measured = np.isfinite(disparity) & (disparity > 0)
    known = measured & (depth > 0)
    error = np.abs(planes[0].inverse_depth * FOCAL * BASELINE - BETWEEN - disparity)[known]
    print(
        f"motorcycle {left.shape[1]}x{left.shape[0]}: checked {100 * known.sum() / measured.sum():.1f} %, error: median {np.median(error):.3f} px, above 1 px "
        f"{100 * (error > 1).mean():.1f} %; {seconds:.2f} CPU-s a view"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", default=["320x240", "640x480"])
    parser.add_argument("--views", type=int, default=50)
    parser.add_argument("--checked", type=int, default=4)
    options = parser.parse_args()
    print(machine())
    warm = [StereoPyramid(view) for view in ROOM.rendered(3, 48, 64, 1).views]
    estimate_planes(warm[0], warm[1:], RANGE)
    for size in options.sizes:
        width, height = map(int, size.split("x"))
        measure_room(options.views, options.checked, height, width)
    measure_pair()


if __name__ == "__main__":
    main()
