"""Settings and result of the renderer of 3D Gaussians, and the constants of its rules."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

MAX_SH_DEGREE = 3
TILE = 16  # side in pixels
MAX_ALPHA = 0.99
MIN_ALPHA = 1 / 255  # smaller contributions are dropped
MIN_TRANSMITTANCE = 1e-4  # a tile ends when all its pixels are below
FOV_MARGIN = 0.3  # of the half field of view, see ``render_gaussians``


@dataclass(frozen=True)
class SplattingSettings:
    """How gaussians are projected.

    Attributes:
        dilation: added to both variances of every projected gaussian, pixels^2 (3DGS: 0.3); above 0.
        antialiased: scale opacities by the square root of the ratio of the determinants of the covariance before and after dilation, so that gaussians
            smaller than a pixel keep their total weight (Yu et al., Mip-Splatting, CVPR 2024, section 4.2).
        near: gaussians at depth <= near are culled; scene units, above 0.
    """

    dilation: float
    antialiased: bool
    near: float


@dataclass(frozen=True)
class GaussianImage:
    """A rendering.

    Attributes:
        image: features composited over the background.
        alpha: 1 - transmittance of all gaussians, in [0, 1].
        depth: sum over gaussians of blending weight times depth of the mean along z, scene units; 0 for empty pixels. Not divided by ``alpha``:
            ``depth / alpha`` is the mean depth.
        visible: gaussians beyond the near plane whose bounding box, see ``render_gaussians``, holds a pixel centre.
    """

    image: Float[Tensor, "c h w"]
    alpha: Float[Tensor, "1 h w"]
    depth: Float[Tensor, "1 h w"]
    visible: Bool[Tensor, " n"]
