"""Output files: images, depth maps, videos, contact sheets."""

from npbgpp.io.contact_sheet import SheetRow, TileRow, contact_sheet, tile_sheet
from npbgpp.io.images import RAW, depth_picture, depth_range, write_depth, write_image, write_png
from npbgpp.io.videos import KINDS, Video, video

__all__ = [
    "KINDS",
    "RAW",
    "SheetRow",
    "TileRow",
    "Video",
    "contact_sheet",
    "depth_picture",
    "depth_range",
    "tile_sheet",
    "video",
    "write_depth",
    "write_image",
    "write_png",
]
