"""Volume rendering: ray sampling, compositing, occupancy grids and MLP fields."""

from npbgpp.volume.compositing import Composited, composite, composite_packed, over
from npbgpp.volume.field import RadianceField, add_trunk, check_sizes, embed, through_trunk
from npbgpp.volume.occupancy import OccupancyGrid
from npbgpp.volume.sampling import Rays, sample_pdf, stratified, to_ndc

__all__ = [
    "Composited",
    "OccupancyGrid",
    "RadianceField",
    "Rays",
    "add_trunk",
    "check_sizes",
    "composite",
    "composite_packed",
    "embed",
    "over",
    "sample_pdf",
    "stratified",
    "through_trunk",
    "to_ndc",
]
