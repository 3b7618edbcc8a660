"""Image networks shared by methods: U-Nets, feature extractors, aggregation of view features, pretrained backbones."""

from npbgpp.nets.aggregation import Aggregator, PointDirections
from npbgpp.nets.feature_extractor import FeatureExtractor, IdentityExtractor
from npbgpp.nets.pretrained import find_backbone, load_features, read_backbone

__all__ = ["Aggregator", "FeatureExtractor", "IdentityExtractor", "PointDirections", "find_backbone", "load_features", "read_backbone"]
