"""The scene itself in the viewer's coordinates: cameras and points, as arguments of viser's nodes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npbgpp.data import Scene
from npbgpp.viewer.pictures import ViewedRun
from npbgpp.viewer.poses import ViewerFrame

LARGEST_FRUSTUMS = 512
_SHARE = 0.01  # of the points that lie outside of the box, along each axis and direction
_COLOURS = {"train": (60, 120, 220), "val": (230, 160, 40), "test": (220, 60, 60)}
_GREY = 160  # of points without colour


@dataclass(frozen=True)
class Frustum:
    """A camera in the scene: index of its view, and arguments of ``add_camera_frustum``."""

    index: int
    arguments: dict[str, Any]


def frustums(run: ViewedRun, frame: ViewerFrame) -> Iterator[Frustum]:
    """Cameras of a scene, coloured by split, without photos; at most 512, evenly chosen."""
    split = {i: name for name, views in run.scene.splits.items() for i in views}
    chosen = sorted(split)
    chosen = [chosen[k] for k in np.unique(np.linspace(0, len(chosen) - 1, min(len(chosen), LARGEST_FRUSTUMS)).astype(int))]
    for index in chosen:
        camera = run.scene.views[index].camera
        aspect = camera.image_size[1] / camera.image_size[0]
        pose = frame.pose(camera, aspect)
        yield Frustum(
            index,
            {
                "fov": pose.fov,
                "aspect": aspect,
                "scale": 0.15,
                "color": _COLOURS[split[index]],
                "wxyz": pose.wxyz,
                "position": pose.position,
            },
        )


def cloud_arguments(run: ViewedRun, frame: ViewerFrame, largest: int) -> dict[str, Any] | None:
    """Arguments of ``add_point_cloud`` for at most so many points, evenly chosen; None for scenes without a cloud."""
    if not run.scene.cloud.path.is_file():
        return None
    points = run.scene.cloud.read()
    every = -(-len(points) // largest)
    xyz = points.xyz[::every]
    colours = np.full((len(xyz), 3), _GREY, np.uint8) if points.rgb is None else _bytes(points.rgb[::every])
    return {"points": frame.to_viewer(xyz), "colors": colours, "point_size": 0.01, "precision": "float32"}


def scene_box(scene: Scene) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(low, high) ends of a box around nearly all points of a scene, else around its cameras, in the coordinates of its files."""
    if scene.cloud.path.is_file():
        xyz = scene.cloud.read().xyz.numpy()
        ends = np.quantile(xyz[:: max(1, len(xyz) // 100_000)], [_SHARE, 1 - _SHARE], axis=0)
    else:
        centres = torch.cat([view.camera.centers() for view in scene.views]).numpy()
        ends = np.stack([centres.min(0), centres.max(0)])
    (x0, y0, z0), (x1, y1, z1) = (ends + np.asarray(scene.offset or (0.0, 0.0, 0.0))).round(3).tolist()
    return (x0, y0, z0), (x1, y1, z1)


def box_edges(ends: np.ndarray) -> np.ndarray:
    """The 12 edges (12, 2, 3) of a box, given its lowest and highest corner (2, 3)."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    pairs = [(a, b) for a in range(8) for b in range(a) if np.abs(corners[a] - corners[b]).sum() == 1]
    return np.array([[[ends[corners[k, axis], axis] for axis in range(3)] for k in pair] for pair in pairs])


def _bytes(colours: Tensor) -> np.ndarray:
    return (colours if colours.dtype == torch.uint8 else (colours * 255).round().to(torch.uint8)).numpy()
