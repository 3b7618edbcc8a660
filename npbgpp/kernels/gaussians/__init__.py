"""Differentiable rendering of 3D Gaussians: a plain reference, a CPU kernel and a CUDA kernel behind ``render_gaussians``."""

from npbgpp.kernels.gaussians.render import render_gaussians
from npbgpp.kernels.gaussians.types import MAX_SH_DEGREE, GaussianImage, SplattingSettings

__all__ = ["MAX_SH_DEGREE", "GaussianImage", "SplattingSettings", "render_gaussians"]
