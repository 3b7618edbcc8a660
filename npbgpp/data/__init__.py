"""Scenes, photos, lenses, point files and ray coordinates. The datamodule, datasets and samplers are imported from their own modules."""

from npbgpp.data.colmap_model import ColmapModel, ModelImage, find_models, model_file, read_points
from npbgpp.data.images import (
    DECODER_ERRORS,
    Photo,
    PhotoCache,
    available_bytes,
    common_size,
    fitted,
    image_size,
    numbered_images,
    picture_folder,
    read_photo,
)
from npbgpp.data.layout import Layout
from npbgpp.data.lens import Lens, pinhole
from npbgpp.data.motion_maps import check_flow, read_disparity, read_flow, read_numbers, read_static, read_uv, required_map, write_flow
from npbgpp.data.normalisation import SceneNormalisation, corner_directions, double, mean_pose, ray_frame
from npbgpp.data.point_files import CloudFile, CloudManifest, cloud_checksum, file_sha256, manifest_path, read_cloud
from npbgpp.data.pose_files import LARGEST_SIDE, read_poses, write_npcr_cameras, write_poses
from npbgpp.data.scene import Batch, DepthMap, MotionMaps, Scene, Stage, View, ViewChoice, Views, rule_splits
from npbgpp.data.video_sampling import VideoSampling

__all__ = [
    "Batch",
    "CloudFile",
    "CloudManifest",
    "ColmapModel",
    "DECODER_ERRORS",
    "DepthMap",
    "LARGEST_SIDE",
    "Layout",
    "Lens",
    "ModelImage",
    "MotionMaps",
    "Photo",
    "PhotoCache",
    "SceneNormalisation",
    "Scene",
    "Stage",
    "VideoSampling",
    "View",
    "ViewChoice",
    "Views",
    "available_bytes",
    "check_flow",
    "cloud_checksum",
    "common_size",
    "corner_directions",
    "double",
    "file_sha256",
    "find_models",
    "fitted",
    "image_size",
    "manifest_path",
    "mean_pose",
    "model_file",
    "numbered_images",
    "picture_folder",
    "pinhole",
    "ray_frame",
    "read_cloud",
    "read_disparity",
    "read_flow",
    "read_numbers",
    "read_photo",
    "read_points",
    "read_poses",
    "read_static",
    "read_uv",
    "required_map",
    "rule_splits",
    "write_flow",
    "write_npcr_cameras",
    "write_poses",
]
