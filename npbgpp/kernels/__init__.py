"""Point rasterisation: fast kernels beside a plain reference."""

from npbgpp.kernels.chunks import ChunkedCloud, ElementwiseProjection, visible_chunks
from npbgpp.kernels.huge_pages import empty_table
from npbgpp.kernels.rasterization import EMPTY_KEY, Fragments, Level, rasterize
from npbgpp.kernels.threads import map_in_threads, thread_count

__all__ = [
    "ChunkedCloud",
    "EMPTY_KEY",
    "Fragments",
    "Level",
    "ElementwiseProjection",
    "empty_table",
    "map_in_threads",
    "thread_count",
    "rasterize",
    "visible_chunks",
]
