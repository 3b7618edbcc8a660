"""Volume rendering: ray sampling, compositing, occupancy grids and MLP fields."""

from npbgpp.volume.compositing import Composited, composite, composite_layers, composite_packed
from npbgpp.volume.field import RadianceField, add_trunk, check_sizes, positional_encoding, run_trunk
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
    "composite_layers",
    "composite_packed",
    "positional_encoding",
    "run_trunk",
    "sample_pdf",
    "stratified",
    "to_ndc",
]
