"""Point-based rendering: visibility, depth peeling, feature pyramids, descriptor tables and their sparse optimisers."""

from npbgpp.kernels.peeling import MAX_LAYERS, Footprint, Layer, peel
from npbgpp.kernels.visibility import visible_points
from npbgpp.points.descriptor_tables import (
    CLOUD_KEY,
    DescriptorFolders,
    DescriptorTables,
    Gathered,
    ResidentScene,
    ScenePoints,
    Visible,
    describe,
    gather_visible,
    point_directions,
)
from npbgpp.points.feature_pyramid import FeaturePyramid, RGBConverter, feature_image, feature_table
from npbgpp.points.front_points import FrontPoints, front_points
from npbgpp.points.sparse_optim import SparseAdam, SparseParameter, SparseRMSprop
from npbgpp.points.visibility import cloud_coverage, sample_features

__all__ = [
    "CLOUD_KEY",
    "DescriptorFolders",
    "DescriptorTables",
    "FeaturePyramid",
    "Footprint",
    "FrontPoints",
    "Gathered",
    "Layer",
    "MAX_LAYERS",
    "RGBConverter",
    "ResidentScene",
    "SparseAdam",
    "SparseParameter",
    "ScenePoints",
    "SparseRMSprop",
    "Visible",
    "cloud_coverage",
    "describe",
    "feature_image",
    "feature_table",
    "front_points",
    "gather_visible",
    "peel",
    "point_directions",
    "sample_features",
    "visible_points",
]
