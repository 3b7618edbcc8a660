"""Output files: images, depth maps, videos, contact sheets. Each file is either complete or absent."""

from npbgpp.io.contact_sheet import EvaluationRow, SheetRow, contact_sheet, evaluation_sheet
from npbgpp.io.images import DEPTH_FORMATS, depth_colormap, depth_range, write_depth, write_png
from npbgpp.io.videos import VIDEO_FORMATS, VideoWriter, open_video

__all__ = [
    "DEPTH_FORMATS",
    "VIDEO_FORMATS",
    "EvaluationRow",
    "SheetRow",
    "VideoWriter",
    "contact_sheet",
    "depth_colormap",
    "depth_range",
    "evaluation_sheet",
    "open_video",
    "write_depth",
    "write_png",
]
