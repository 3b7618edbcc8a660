"""Scores of renderings with a matte: of the four channels, of the matte alone, and of the colours over several backgrounds.

Pictures are (4, h, w): colours weighted by the opacity ("premultiplied"), then the opacity, in [0, 1].
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.metrics import PSNR_CAP_DB, ImageMetrics, ImageScores

BACKGROUNDS = {"black": (0.0, 0.0, 0.0), "grey": (0.5, 0.5, 0.5), "white": (1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class MatteScores:
    """Scores of one rendering.

    Attributes:
        psnr_rgba: of the four channels together, dB, at most ``PSNR_CAP_DB``.
        matte_mse: mean squared difference of the opacities.
        matte_sad: sum of their absolute differences, in thousands of pixels, as matting benchmarks count it.
        over: scores of the colours over each of ``BACKGROUNDS``.
    """

    psnr_rgba: float
    matte_mse: float
    matte_sad: float
    over: dict[str, ImageScores]


def composite_over(rgba: Float[Tensor, "*b 4 h w"], background: tuple[float, float, float]) -> Float[Tensor, "*b 3 h w"]:
    """Colours with a background behind them."""
    behind = rgba.new_tensor(background)[:, None, None]
    return rgba[..., :3, :, :] + (1 - rgba[..., 3:, :, :]) * behind


@torch.no_grad()
def matte_scores(metrics: ImageMetrics, rendering: Float[Tensor, "4 h w"], target: Float[Tensor, "4 h w"]) -> MatteScores:
    """Scores of one rendering, cut to [0, 1], under the protocol of ``metrics``; pixels in its margin do not count."""
    margin = metrics.protocol().margin
    ours, wanted = (image.double().clamp(0, 1) for image in (rendering, target))
    inner = (..., slice(margin, ours.shape[1] - margin), slice(margin, ours.shape[2] - margin))
    difference = ours[inner] - wanted[inner]
    mse = difference.square().mean().clamp_min(10 ** (-PSNR_CAP_DB / 10))
    over = {}
    for name, colour in BACKGROUNDS.items():
        (over[name],) = metrics(composite_over(ours, colour)[None].float(), composite_over(wanted, colour)[None].float())
    return MatteScores(
        psnr_rgba=float(-10 * torch.log10(mse)),
        matte_mse=float(difference[3].square().mean()),
        matte_sad=float(difference[3].abs().sum()) / 1000,
        over=over,
    )
