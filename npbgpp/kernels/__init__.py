"""Point rasterisation: fast kernels beside a plain reference."""

from npbgpp.kernels.chunks import ChunkedCloud, ProjectionNumbers, visible_blocks
from npbgpp.kernels.huge_pages import empty_table
from npbgpp.kernels.rasterization import EMPTY_KEY, Fragments, Level, rasterize
from npbgpp.kernels.threads import in_threads, thread_count

__all__ = [
    "ChunkedCloud",
    "EMPTY_KEY",
    "Fragments",
    "Level",
    "ProjectionNumbers",
    "empty_table",
    "in_threads",
    "thread_count",
    "rasterize",
    "visible_blocks",
]
