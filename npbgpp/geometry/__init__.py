"""Cameras, pixel rules, trajectories, image warps and point clouds: pure functions and frozen dataclasses on torch tensors."""

from npbgpp.geometry.cameras import Cameras, rigid_defect
from npbgpp.geometry.image_warp import Alignment, align_vertically, crop_to_points, resample
from npbgpp.geometry.pixels import PixelConvention, PixelGrid, Projection
from npbgpp.geometry.point_cloud import PointCloud, read_ply, write_ply
from npbgpp.geometry.trajectories import (
    average_pose,
    fit,
    interpolate,
    loop_about,
    orbit_of,
    shifted,
    spiral,
    spiral_along,
    tumbled,
    turned,
)

__all__ = [
    "Alignment",
    "Cameras",
    "PixelGrid",
    "PixelConvention",
    "PointCloud",
    "Projection",
    "align_vertically",
    "average_pose",
    "crop_to_points",
    "fit",
    "interpolate",
    "loop_about",
    "orbit_of",
    "read_ply",
    "resample",
    "rigid_defect",
    "shifted",
    "spiral",
    "spiral_along",
    "tumbled",
    "turned",
    "write_ply",
]
