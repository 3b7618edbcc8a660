"""Differentiable rendering of 3D Gaussians (Kerbl et al., 3D Gaussian Splatting for Real-Time Radiance Field Rendering, SIGGRAPH 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.geometry import Cameras
from npbgpp.kernels.backend import backend
from npbgpp.kernels.gaussians import gpu, gsplat_renderer
from npbgpp.kernels.gaussians.cpu import CpuRenderer
from npbgpp.kernels.gaussians.reference import render_reference
from npbgpp.kernels.gaussians.types import MAX_SH_DEGREE, GaussianImage, SplattingSettings


def render_gaussians(
    means: Float[Tensor, "n 3"],
    log_scales: Float[Tensor, "n 3"],
    quaternions: Float[Tensor, "n 4"],
    opacity_logits: Float[Tensor, " n"],
    sh: Float[Tensor, "n k c"],
    camera: Cameras,
    *,
    sh_degree: int,
    background: Float[Tensor, " c"] | Float[Tensor, "c h w"] | None,
    settings: SplattingSettings,
    rgb: bool = True,
) -> GaussianImage:
    """Renders gaussians with one camera, in an image of the size of the camera.

    The image of a gaussian is the gaussian of the projected mean and the covariance to first order around the mean, plus ``settings.dilation``
    (Zwicker et al., EWA Volume Splatting, 2001). In the Jacobian only, x/z and y/z are clamped to the field of view, extended on each side by
    0.3 times half its size. Gaussians are blended front to back in the order of the depth of their means; the lowest index comes first in ties:

    * alpha at a pixel centre is min(0.99, opacity * exp(-d^T C^-1 d / 2)), or 0 where that is below 1/255;
    * a gaussian thus ends at its bounding box, half-widths sqrt(2 ln(255 opacity) C_xx) and the same with C_yy;
    * a tile of 16x16 pixels ends when the transmittance of all its pixels is below 1e-4. The fast implementations check this every few gaussians only,
      which changes values by less than 1e-4 of the largest feature.

    Args:
        means: centres in world coordinates.
        log_scales: natural logarithms of the standard deviations along the axes, scene units.
        quaternions: (w, x, y, z) of the rotations of the axes, acting on columns; of any length but 0.
        opacity_logits: opacity is their sigmoid.
        sh: coefficients of real spherical harmonics in the order and with the signs of 3DGS, for ``c`` channels; the direction is that from the camera
            centre to the mean, in world axes. At least (sh_degree + 1)^2 of them; further ones are ignored and get gradient 0.
        camera: one camera. It gets no gradient.
        sh_degree: from 0 to 3.
        background: a value per channel, or an image; None for 0.
        settings: of the projection.
        rgb: features are max(0.5 + sum of harmonics, 0), the colours of 3DGS; otherwise the sum itself (descriptors).

    Returns:
        The rendering; differentiable in all tensors of the arguments. No gaussian, or none in the image, gives the background.

    Raises:
        ValueError: not exactly one camera, a degree out of range, too few coefficients, or a background of another shape.
    """
    channels = sh.shape[2]
    if len(camera) != 1:
        raise ValueError(f"render_gaussians: expected one camera, got {len(camera)}")
    if not 0 <= sh_degree <= MAX_SH_DEGREE or (sh_degree + 1) ** 2 > sh.shape[1]:
        raise ValueError(
            f"render_gaussians: expected a degree from 0 to {MAX_SH_DEGREE} that {sh.shape[1]} coefficients allow, got {sh_degree}"
        )
    if background is None:
        background = sh.new_zeros(channels)
    if background.shape not in ((channels,), (channels, *camera.image_size)):
        raise ValueError(
            f"render_gaussians: expected a background of {channels} channels, alone or times {camera.image_size}, got {tuple(background.shape)}"
        )
    background = background if background.dim() == 3 else background[:, None, None]
    parameters = (means, log_scales, quaternions, opacity_logits, sh)
    if all(p.dtype == torch.float32 for p in (*parameters, background)):
        arguments = (*parameters, background, camera, sh_degree, settings, rgb)
        match backend(means.device):
            case "numba":
                return GaussianImage(*CpuRenderer.apply(*arguments))
            case "cuda" if gsplat_renderer.is_wanted() and len(means) and gsplat_renderer.CHECK.usable(means.device):
                return gsplat_renderer.render_with_gsplat(*arguments)
            case "cuda" if gpu.MODULE.usable(means.device):
                return gpu.render_cuda(*arguments)
    return render_reference(*parameters, camera, sh_degree, background, settings, rgb)
