"""Cameras, pixel conventions, trajectories, image warps and point clouds: pure functions and frozen dataclasses on torch tensors."""

from npbgpp.geometry.cameras import Cameras, rigid_defect
from npbgpp.geometry.gaussian_cloud import LARGEST_SH_DEGREE, SH_DC, GaussianCloud, read_gaussian_ply, write_gaussian_ply
from npbgpp.geometry.image_warp import Alignment, align_vertically, crop_to_points, resample
from npbgpp.geometry.origin import Offset, cam_to_world_from, centres_of, far_offset, reduced, world_to_cam_from
from npbgpp.geometry.pixels import PixelConvention, PixelGrid, Projection, ProjectionSettings
from npbgpp.geometry.point_cloud import PointCloud, Transform, in_8_bits, read_ply, transformed, write_ply
from npbgpp.geometry.trajectories import (
    TimedCamera,
    at_time,
    average_pose,
    common_up,
    fit_to_size,
    interpolate_path,
    linear_path,
    loop_path,
    orbit_path,
    random_rotation_path,
    spiral_along_path,
    spiral_path,
    turntable_path,
)

__all__ = [
    "Alignment",
    "Cameras",
    "GaussianCloud",
    "LARGEST_SH_DEGREE",
    "Offset",
    "PixelConvention",
    "PixelGrid",
    "PointCloud",
    "Projection",
    "ProjectionSettings",
    "SH_DC",
    "TimedCamera",
    "Transform",
    "align_vertically",
    "cam_to_world_from",
    "centres_of",
    "common_up",
    "far_offset",
    "reduced",
    "world_to_cam_from",
    "at_time",
    "average_pose",
    "crop_to_points",
    "fit_to_size",
    "interpolate_path",
    "linear_path",
    "loop_path",
    "in_8_bits",
    "orbit_path",
    "random_rotation_path",
    "read_gaussian_ply",
    "read_ply",
    "resample",
    "rigid_defect",
    "spiral_along_path",
    "spiral_path",
    "transformed",
    "turntable_path",
    "write_gaussian_ply",
    "write_ply",
]
