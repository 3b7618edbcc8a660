"""The scene itself in the viewer's coordinates: cameras and points, as arguments of viser's nodes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npbgpp.viewer.pictures import ViewedRun
from npbgpp.viewer.poses import ViewerFrame

LARGEST_FRUSTUMS = 512
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


def _bytes(colours: Tensor) -> np.ndarray:
    return (colours if colours.dtype == torch.uint8 else (colours * 255).round().to(torch.uint8)).numpy()
