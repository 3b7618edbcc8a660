"""Kernels: one file each, with a plain PyTorch reference, a numba kernel for the CPU and a CUDA kernel that is compiled at run time."""

from npbgpp.kernels.rasterization import EMPTY_KEY, ChunkedCloud, Fragments, Level, rasterize

__all__ = ["ChunkedCloud", "EMPTY_KEY", "Fragments", "Level", "rasterize"]
