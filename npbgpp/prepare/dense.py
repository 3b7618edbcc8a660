"""Dense points of photos with known cameras, by PatchMatch multi-view stereo (``npbgpp.kernels.stereo``).

Depth maps of the training views, one after the other, then their comparison with one another, then one point for all pixels that show the same place.

Sources: Schoenberger et al., Pixelwise View Selection for Unstructured Multi-View Stereo, 2016; Galliani, Lasinger and Schindler, Massively Parallel Multiview
Stereopsis, 2015 (fusion); Xu and Tao, ACMH, 2019.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8
from tqdm import tqdm

from npbgpp.core.files import write_atomically
from npbgpp.data import ColmapModel, ModelImage, Scene, View, read_cloud, read_photo
from npbgpp.data.colmap_model import read_points
from npbgpp.errors import InputError
from npbgpp.geometry import PointCloud
from npbgpp.kernels.stereo import (
    Neighbour,
    PlaneMap,
    StereoPyramid,
    StereoView,
    consistent_depth,
    estimate_planes,
    fuse_view,
    plane_normals,
)
from npbgpp.parsers.colmap import photos_of_model
from npbgpp.prepare.depth_fusion import fuse_depth
from npbgpp.prepare.forecast import in_words, slower
from npbgpp.prepare.visual_hull import masks_carve, visual_hull

log = logging.getLogger("npbgpp.prepare")

_SOURCES = 4  # views that a depth map is estimated from
_COMPARED = 10  # views that it is compared with
_BEST_ANGLE, _BELOW, _ABOVE = 7.0, 3.0, 12.0  # degrees between the rays of a point; how far smaller and larger ones may be off
_SAME_SIDE = 0.8  # share of a view's score that is lost to a chosen one with a baseline in the same direction
_QUANTILES, _MARGINS = (0.005, 0.995), (0.8, 1.4)  # of the depths of a view's sparse points
_SPARSE_POINTS = 8000  # drawn, where nothing says which views see them
_FEWEST_POINTS = 8  # of a view, for a range of depths of its own
# bytes of a pixel: brightness and packed brightness of all levels; plane and cost; depth and colour
_PYRAMID_BYTES, _PLANE_BYTES, _PHOTO_BYTES = 17, 16, 7
_CACHED_BYTES = 500_000_000  # of photos, and of depth maps, kept in memory
# Seconds per megapixel of a photo on two cores of an AMD EPYC: its depth map; its comparison and fusion with others. 52 photos of 256 and of 512 pixels took 6.7 and
# 7.0, 0.8 and 0.7 CPU seconds, of which fusion uses one core.
_DEPTH_MAP, _FUSION = 5.0, 1.0
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class DenseOptions:
    """Options of ``dense_points``.

    Attributes:
        size: longest side of the photos, pixels; smaller ones are not enlarged.
        min_views: views that must see a point.
        seed: of the random search.
        depth_folder: for depth and normal maps, in the format of COLMAP's workspaces; None keeps none.
    """

    size: int = 640
    min_views: int = 4
    seed: int = 0
    depth_folder: Path | None = None


@dataclass(frozen=True)
class DensePoints:
    """m points.

    Attributes:
        cloud: positions and colours.
        normal_world: unit length, towards the views.
        seen: indices of the training views that see each point, -1 fills the rows; None unless depth maps are kept.
    """

    cloud: PointCloud
    normal_world: Float32[np.ndarray, "m 3"]
    seen: Int32[np.ndarray, "m k"] | None


def forecast_seconds(megapixels: Sequence[float]) -> dict[str, float]:
    """Expected seconds of each stage on this machine without a GPU and without masks, for photos that are compared at these sizes."""
    return {"depth maps": slower() * _DEPTH_MAP * sum(megapixels), "fusion": slower() * _FUSION * sum(megapixels)}


def dense_points(scene: Scene, folder: Path, downscale: float, work: Path, options: DenseOptions) -> DensePoints:
    """Points from the training views of a scene.

    Args:
        scene: the scene.
        folder: its folder.
        downscale: that it was read with.
        work: folder for depth maps, made here. A call that was interrupted goes on from them; they are removed at the end.
        options: see there.

    Raises:
        InputError: fewer than three training views, no points to tell which views see the same, views that share nothing, or no point left.
    """
    views = [scene.views[i] for i in scene.splits["train"]]
    if len(views) < 3:
        raise InputError(
            f"scene {scene.name}: expected at least 3 training views for stereo, got {len(views)}; add photos, or hold out fewer"
        )
    shots = [_Shot(view, options.size) for view in views]
    if not torch.cuda.is_available():  # where depth maps take a small part of this
        log.info("%d photos, %s", len(shots), in_words(forecast_seconds([shot.size[0] * shot.size[1] / 1e6 for shot in shots])))
    sparse = _sparse_points(scene, folder, downscale, views, shots)
    scores = view_scores(shots, sparse)
    ranges = _inverse_depth_ranges(shots, sparse)
    planes = _depth_maps(shots, scores, ranges, work, options)
    points = _fused(shots, scores, planes, options)
    planes.remove()
    return points


class _Shot:
    """A training view at the size of the depth maps."""

    def __init__(self, view: View, size: int) -> None:
        height, width = view.camera.image_size
        scale = min(1.0, size / max(height, width))
        camera = view.camera.resize((max(1, round(height * scale)), max(1, round(width * scale))))
        self.view, self.size = view, camera.image_size
        (fx, fy), (cx, cy) = camera.focal_length[0].tolist(), camera.principal_point[0].tolist()
        self.K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
        self.world_to_cam: Float64[np.ndarray, "4 4"] = camera.to_opencv()[0].double().numpy()
        self.centre = -self.world_to_cam[:3, :3].T @ self.world_to_cam[:3, 3]

    def photo(self) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"] | None]:
        """Colours, and the mask where it hides something."""
        photo, (height, width) = read_photo(self.view), self.size
        colour = cv2.resize(photo.image.permute(1, 2, 0).numpy(), (width, height), interpolation=cv2.INTER_AREA)
        if photo.mask is None:
            return colour, None
        mask = cv2.resize(photo.mask[0].numpy(), (width, height), interpolation=cv2.INTER_AREA) >= 128
        return colour, None if mask.all() else mask

    def stereo_view(self) -> StereoView:
        colour, mask = self.photo()
        return StereoView(colour @ (_GREY / 255), mask, self.K, self.world_to_cam)

    def camera(self) -> StereoView:
        """The view without its photo."""
        return StereoView(np.broadcast_to(np.float32(0), self.size), None, self.K, self.world_to_cam)

    def project(self, xyz_world: Float64[np.ndarray, "n 3"]) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, " n"]]:
        """Pixels and depths."""
        xyz_cam = xyz_world @ self.world_to_cam[:3, :3].T + self.world_to_cam[:3, 3]
        uvw = xyz_cam @ self.K.T
        with np.errstate(divide="ignore", invalid="ignore"):
            return uvw[:, :2] / uvw[:, 2:], xyz_cam[:, 2]


# ----------------------------------------------------------------------
# Which views to compare


@dataclass(frozen=True)
class SparsePoints:
    """n points, and which of the v views see them."""

    xyz_world: Float64[np.ndarray, "n 3"]
    seen: Bool[np.ndarray, "v n"]


def _sparse_points(scene: Scene, folder: Path, downscale: float, views: Sequence[View], shots: Sequence[_Shot]) -> SparsePoints:
    """From the tracks of a COLMAP model; else the points of the poses, a cloud, the visual hull of the masks or fused depth maps, seen by all views that show
    their place."""
    points_file = scene.carried_points
    if scene.layout == "colmap" and points_file is not None and points_file.suffix in (".bin", ".txt"):
        return _tracks(scene, points_file, photos_of_model(folder, downscale, ColmapModel.read(points_file.parent)), views)
    if points_file is not None:
        cloud = read_cloud(points_file, scene.carried_transform)
    elif scene.cloud.path.is_file():
        cloud = read_cloud(scene.cloud.path, scene.cloud.transform)
    elif masks_carve(views):
        cloud = visual_hull(views, _SPARSE_POINTS)
    elif any(view.depth is not None for view in views):
        cloud = fuse_depth(views, None)
    else:
        raise InputError(
            f"scene {scene.name}: expected a COLMAP model, a cloud, masks or depth maps, which tell the photos that show the same from others, got none of them; "
            "make poses and points with npbgpp prepare photos"
        )
    drawn = np.random.default_rng(0).permutation(len(cloud))[:_SPARSE_POINTS]
    xyz_world = cloud.xyz.numpy()[drawn].astype(np.float64)
    seen = np.zeros((len(shots), len(xyz_world)), bool)
    for k, shot in enumerate(shots):
        uv_px, depth = shot.project(xyz_world)
        seen[k] = (depth > 0) & (uv_px >= 0).all(1) & (uv_px < shot.size[::-1]).all(1)
    return SparsePoints(xyz_world, seen)


def _tracks(scene: Scene, points_file: Path, photos: Mapping[Path, ModelImage], views: Sequence[View]) -> SparsePoints:
    points = read_points(points_file, scene.carried_transform)
    order = np.argsort(points.number)
    numbers = points.number[order]
    seen = np.zeros((len(views), len(numbers)), bool)
    for k, view in enumerate(views):
        observed = photos[view.image].point
        at = np.searchsorted(numbers, observed).clip(max=len(order) - 1)
        seen[k, order[at[numbers[at] == observed]]] = True
    return SparsePoints(points.cloud.xyz.numpy().astype(np.float64), seen)


def view_scores(shots: Sequence["_Shot"], sparse: SparsePoints) -> Float64[np.ndarray, "v v"]:
    """How well each view is compared with each other: points that both see, weighted by the angle between their rays, best at 7 degrees."""
    centres = np.stack([shot.centre for shot in shots])
    scores = np.zeros((len(shots), len(shots)))
    for i in range(len(shots)):
        for j in range(i):
            xyz = sparse.xyz_world[sparse.seen[i] & sparse.seen[j]]
            a, b = centres[i] - xyz, centres[j] - xyz
            cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
            off = np.degrees(np.arccos(cosine.clip(-1, 1))) - _BEST_ANGLE
            scores[i, j] = scores[j, i] = np.exp(-(off**2) / (2 * np.where(off < 0, _BELOW, _ABOVE) ** 2)).sum()
    return scores


def choose_sources(view: int, shots: Sequence["_Shot"], scores: Float64[np.ndarray, "v v"], count: int = _SOURCES) -> list[int]:
    """Views of high scores in different directions: by score alone all lie on one side, and what one occludes is occluded in all."""
    baseline = np.stack([shot.centre for shot in shots]) - shots[view].centre
    baseline /= np.maximum(np.linalg.norm(baseline, axis=1, keepdims=True), 1e-30)
    left, chosen = scores[view].copy(), []
    for _ in range(min(count, len(shots) - 1)):
        best = int(left.argmax())
        if left[best] <= 0:
            break
        chosen.append(best)
        left *= 1 - _SAME_SIDE * np.maximum(baseline @ baseline[best], 0) ** 2
        left[best] = 0
    return chosen


def _inverse_depth_ranges(shots: Sequence["_Shot"], sparse: SparsePoints) -> list[tuple[float, float]]:
    depths = [
        depth[seen & (depth > 0)] for seen, (_, depth) in zip(sparse.seen, (shot.project(sparse.xyz_world) for shot in shots), strict=True)
    ]
    everywhere = np.concatenate(depths)
    if not len(everywhere):
        raise InputError("sparse points: expected some in front of the cameras, got none; check the poses with npbgpp prepare check")
    ranges = []
    for of_view in depths:
        near, far = np.quantile(of_view if len(of_view) >= _FEWEST_POINTS else everywhere, _QUANTILES)
        ranges.append((1 / (far * _MARGINS[1]), 1 / (near * _MARGINS[0])))
    return ranges


# ----------------------------------------------------------------------
# Depth maps


class _DepthMaps:
    """Plane maps of the views, then their consistent depths and photos, in files: memory does not grow with them, and an interrupted call goes on."""

    def __init__(self, work: Path, names: Sequence[str], settings: dict[str, object]) -> None:
        self.work, self.count = work, len(names)
        self._mark = work / "settings.json"
        mark = json.dumps({"views": list(names), **settings})
        if not (self._mark.is_file() and self._mark.read_text(encoding="utf-8") == mark):
            self.remove()
            write_atomically(self._mark, lambda file: file.write(mark.encode()))

    def _path(self, k: int, name: str = "planes") -> Path:
        return self.work / f"{k:05}.{name}.npy"

    def has(self, k: int) -> bool:
        return self._path(k).is_file()

    def write(self, k: int, planes: PlaneMap) -> None:
        stacked = np.concatenate([planes.inverse_depth[None], planes.slope, planes.cost[None]])
        write_atomically(self._path(k), lambda file: np.save(file, stacked))

    def read(self, k: int) -> PlaneMap:
        stacked = np.load(self._path(k), allow_pickle=False)
        return PlaneMap(stacked[0], stacked[1:3], stacked[3])

    def write_consistent(self, k: int, inverse_depth: Float32[np.ndarray, "h w"], photo: UInt8[np.ndarray, "h w 3"]) -> None:
        write_atomically(self._path(k, "depth"), lambda file: np.save(file, inverse_depth))
        write_atomically(self._path(k, "photo"), lambda file: np.save(file, photo))

    def consistent(self, name: Literal["depth", "photo"], cached: int) -> "_Arrays":
        """What ``write_consistent`` wrote, of which so many views stay in memory."""
        return _Arrays([self._path(k, name) for k in range(self.count)], cached)

    def remove(self) -> None:
        for path in (*self.work.glob("[0-9][0-9][0-9][0-9][0-9].*.npy"), self._mark):
            path.unlink(missing_ok=True)
        if self.work.is_dir() and not any(self.work.iterdir()):
            self.work.rmdir()


class _Arrays(Sequence[np.ndarray]):
    """Arrays in files, of which the last ones that were used stay in memory."""

    def __init__(self, paths: Sequence[Path], cached: int) -> None:
        self._paths = paths
        self._read = lru_cache(cached)(lambda k: np.load(paths[k], allow_pickle=False))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, k: Any) -> Any:
        return self._read(k)


def _cached(shots: Sequence["_Shot"], bytes_per_pixel: int) -> int:
    """Number of views that are kept in memory, at least one and all that it is compared with."""
    pixels = max(shot.size[0] * shot.size[1] for shot in shots)
    return max(_COMPARED + 1, _CACHED_BYTES // (pixels * bytes_per_pixel))


def _depth_maps(
    shots: Sequence["_Shot"], scores: Float64[np.ndarray, "v v"], ranges: Sequence[tuple[float, float]], work: Path, options: DenseOptions
) -> _DepthMaps:
    maps = _DepthMaps(
        work, [shot.view.name for shot in shots], {"size": options.size, "seed": options.seed, "ranges": [list(r) for r in ranges]}
    )
    sources = [choose_sources(k, shots, scores) for k in range(len(shots))]
    alone = [shot.view.name for shot, chosen in zip(shots, sources, strict=True) if not chosen]
    if len(alone) > len(shots) - 2:
        raise InputError("photos: expected some that show the same points from different sides, got none; take photos that overlap")
    pyramid = lru_cache(_cached(shots, _PYRAMID_BYTES))(lambda k: StereoPyramid(shots[k].stereo_view()))
    waiting = [k for k in range(len(shots)) if not maps.has(k)]
    if len(waiting) < len(shots):
        log.info("%d of %d depth maps are there from an earlier call", len(shots) - len(waiting), len(shots))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for k in tqdm(waiting, desc="depth maps", unit="view", disable=None, leave=False):
        if sources[k]:
            planes = estimate_planes(pyramid(k), [pyramid(j) for j in sources[k]], ranges[k], options.seed, device)
        else:
            empty = np.zeros((4, *shots[k].size), np.float32)
            planes = PlaneMap(empty[0], empty[1:3], empty[3] + 2)
        maps.write(k, planes)
    return maps


def _fused(shots: Sequence["_Shot"], scores: Float64[np.ndarray, "v v"], maps: _DepthMaps, options: DenseOptions) -> DensePoints:
    views = [shot.camera() for shot in shots]
    compared = [[int(j) for j in np.argsort(-row, kind="stable")[:_COMPARED] if row[j] > 0] for row in scores]
    read = lru_cache(_cached(shots, _PLANE_BYTES))(maps.read)
    least = max(1, min(options.min_views, 3) - 1)
    covered = []
    for k in tqdm(range(len(shots)), desc="comparison of depth maps", unit="view", disable=None, leave=False):
        depth = consistent_depth(views[k], read(k), [Neighbour(views[j], read(j)) for j in compared[k]], least)
        covered.append(float((depth > 0).mean()))
        maps.write_consistent(k, depth, shots[k].photo()[0])
    read.cache_clear()
    cached = _cached(shots, _PHOTO_BYTES)
    depths, photos = maps.consistent("depth", cached), maps.consistent("photo", cached)
    used = [np.zeros(shot.size, bool) for shot in shots]
    parts = []
    for k in tqdm(range(len(shots)), desc="fusion", unit="view", disable=None, leave=False):
        planes = maps.read(k)
        if options.depth_folder is not None:
            _keep_depth(options.depth_folder, shots[k], depths[k], planes.slope)
        part = fuse_view(k, views, depths, planes.slope, photos, used, compared[k], options.min_views)
        parts.append(part if options.depth_folder is not None else replace(part, seen=part.seen[:, :0].copy()))
    xyz = np.concatenate([part.xyz_world for part in parts])
    if not len(xyz):
        raise InputError(
            f"min_views: expected points that at least {options.min_views} of {len(shots)} views agree on, got none; "
            "lower min_views, or take photos that overlap more"
        )
    log.info(
        "depth maps: %.0f %% of the pixels of a view agree with others (least: %.0f %%, %s)",
        *(100 * float(np.mean(covered)), 100 * min(covered), shots[int(np.argmin(covered))].view.name),
    )
    rgb = np.concatenate([part.rgb_u8 for part in parts])
    seen = None
    if options.depth_folder is not None:
        columns = max(part.seen.shape[1] for part in parts)
        seen = np.concatenate([np.pad(part.seen, ((0, 0), (0, columns - part.seen.shape[1])), constant_values=-1) for part in parts])
    return DensePoints(
        PointCloud(torch.from_numpy(xyz), torch.from_numpy(rgb)), np.concatenate([part.normal_world for part in parts]), seen
    )


def _keep_depth(folder: Path, shot: _Shot, inverse_depth: Float32[np.ndarray, "h w"], slope: Float32[np.ndarray, "2 h w"]) -> None:
    """Writes the depth map of a view and its normals in camera axes (OpenCV), 0 where unknown."""
    height, width = inverse_depth.shape
    known = inverse_depth > 0
    v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    normal = plane_normals(inverse_depth, slope, u, v, shot.K)
    with np.errstate(divide="ignore"):
        depth = np.where(known, 1 / inverse_depth, 0)
    name = f"{shot.view.image.name}.geometric.bin"
    write_colmap_map(folder / "stereo" / "depth_maps" / name, depth[..., None])
    write_colmap_map(folder / "stereo" / "normal_maps" / name, np.where(known[..., None], normal, 0))


def write_colmap_map(path: Path, values: np.ndarray) -> None:
    """Writes a map (h, w, c) as COLMAP does: ``width&height&channels&`` and float32 values, channel by channel."""
    height, width, channels = values.shape

    def write(file: IO[bytes]) -> None:
        file.write(f"{width}&{height}&{channels}&".encode())
        file.write(np.ascontiguousarray(values.transpose(2, 0, 1), "<f4").tobytes())

    write_atomically(path, write)


def write_visibility(path: Path, seen: Int32[np.ndarray, "m k"]) -> None:
    """Writes which views see each point as COLMAP does for its meshers (``fused.ply.vis``)."""

    def write(file: IO[bytes]) -> None:
        file.write(np.array([len(seen)], "<u8").tobytes())
        known = seen >= 0
        counts: Int64[np.ndarray, " m"] = known.sum(1)
        starts = np.cumsum(counts + 1) - counts - 1
        rows = np.empty(int((counts + 1).sum()), "<u4")
        rows[starts] = counts
        places = np.ones(len(rows), bool)
        places[starts] = False
        rows[places] = seen[known]
        file.write(rows.tobytes())

    write_atomically(path, write)
