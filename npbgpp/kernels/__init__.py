"""Point rasterization: a fast implementation and a plain reference, spatial chunks of clouds, and thread pools for CPU kernels."""

from npbgpp.kernels.chunks import ChunkedCloud, ElementwiseProjection, visible_chunks
from npbgpp.kernels.huge_pages import empty_table
from npbgpp.kernels.rasterization import EMPTY_KEY, Fragments, Level, rasterize
from npbgpp.kernels.threads import map_in_threads, thread_count

__all__ = [
    "ChunkedCloud",
    "EMPTY_KEY",
    "ElementwiseProjection",
    "Fragments",
    "Level",
    "empty_table",
    "map_in_threads",
    "rasterize",
    "thread_count",
    "visible_chunks",
]
