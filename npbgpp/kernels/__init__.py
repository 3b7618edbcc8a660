"""Kernels: one file each, with a plain PyTorch reference, a numba kernel for the CPU and a CUDA kernel that is compiled at run time."""
