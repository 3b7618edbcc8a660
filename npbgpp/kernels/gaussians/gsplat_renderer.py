"""``render_gaussians`` by gsplat (Ye et al., gsplat: An Open-Source Library for Gaussian Splatting, JMLR 2025), where it is installed.

gsplat compiles its kernels with nvcc at first use. Its opacities saturate at 0.999 instead of 0.99; otherwise its rules are those of ``render_gaussians``.
"""

from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.geometry import Cameras
from npbgpp.kernels.backend import SelfCheck, forced_backend
from npbgpp.kernels.gaussians.self_check import difference_from_reference
from npbgpp.kernels.gaussians.types import GaussianImage, SplattingSettings

_RGB = 3  # channels that gsplat's spherical harmonics have


@cache
def is_installed() -> bool:
    """Whether Python finds gsplat."""
    return find_spec("gsplat") is not None


def is_wanted() -> bool:
    """Whether it goes before the kernels of this project: unless ``NPBGPP_KERNELS`` forces those, or results must be deterministic, since it adds gradients in
    any order."""
    return is_installed() and forced_backend() == "auto" and not torch.are_deterministic_algorithms_enabled()


def render_with_gsplat(
    means: Float[Tensor, "n 3"],
    log_scales: Float[Tensor, "n 3"],
    quaternions: Float[Tensor, "n 4"],
    opacity_logits: Float[Tensor, " n"],
    sh: Float[Tensor, "n k c"],
    background: Float[Tensor, "c 1 1"] | Float[Tensor, "c h w"],
    camera: Cameras,
    sh_degree: int,
    settings: SplattingSettings,
    rgb: bool,
) -> GaussianImage:
    """See ``render_gaussians``; at least one gaussian."""
    import gsplat

    height, width = camera.image_size
    camera = camera.to(means.device)
    channels = sh.shape[2]
    direction = means - camera.centers()
    padded = torch.nn.functional.pad(sh, (0, -channels % _RGB))
    features = torch.cat([gsplat.spherical_harmonics(sh_degree, direction, part) for part in padded.split(_RGB, 2)], 1)[:, :channels]
    if rgb:
        features = (features + 0.5).clamp_min(0)
    intrinsics = torch.diag_embed(torch.nn.functional.pad(camera.focal_length, (0, 1), value=1.0))
    intrinsics[:, :2, 2] = camera.principal_point
    rendered, alpha, found = gsplat.rasterization(
        means,
        quaternions,
        log_scales.exp(),
        opacity_logits.sigmoid(),
        features,
        camera.to_opencv(),
        intrinsics,
        width,
        height,
        near_plane=settings.near,
        eps2d=settings.dilation,
        packed=False,
        render_mode="RGB+D",
        rasterize_mode="antialiased" if settings.antialiased else "classic",
    )
    planes, alpha = rendered[0].permute(2, 0, 1), alpha[0].permute(2, 0, 1)
    return GaussianImage(
        planes[:channels] + (1 - alpha) * background, alpha, planes[channels:], (found["radii"][0] > 0).view(len(means), -1).all(1)
    )


def _check(device: torch.device) -> str | None:
    return difference_from_reference(render_with_gsplat, device)


CHECK = SelfCheck("gsplat", "the kernels of this project are used", _check)
