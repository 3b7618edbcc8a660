"""Where training drew pixels unlike the photos, so that the next epoch draws more of them (``hard_sampling`` of nsff_pl).

Symbols: n pixels of one frame, N frames of h x w pixels.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from npbgpp.data.pixel_weights import PixelWeights
from npbgpp.losses import ssim_map


class HardPixels:
    """Remembers the last colours of pixels, in 8 bits, on the CPU and out of checkpoints: only the weights made from them are kept.

    Args:
        weights: of the pixels of all frames, which are changed.
    """

    def __init__(self, weights: PixelWeights) -> None:
        self.weights = weights
        self._rendered: dict[int, Tensor] = {}
        self._photo: dict[int, Tensor] = {}
        self._drawn: dict[int, Tensor] = {}

    def record(self, moment: int, pixel: Int64[Tensor, " n"], rgb: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"]) -> None:
        """Takes colours of pixels of a frame, and those of the photo."""
        height, width = self.weights.image_size
        pixel = pixel.cpu()
        for store, values in ((self._rendered, rgb), (self._photo, target)):
            kept = store.setdefault(moment, torch.zeros(height * width, 3, dtype=torch.uint8))
            kept[pixel] = (values.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        self._drawn.setdefault(moment, torch.zeros(height * width, dtype=torch.bool))[pixel] = True

    def reweigh(self) -> None:
        """Weights become (1 - SSIM) / 2 around each pixel. Pixels that were never drawn keep theirs, and count as alike in the windows of others."""
        for moment, rendered in self._rendered.items():
            pair = (
                store.unflatten(0, self.weights.image_size).permute(2, 0, 1)[None].float() / 255
                for store in (rendered, self._photo[moment])
            )
            unlike = (0.5 * (1 - ssim_map(*pair)[0].mean(0))).clamp(0, 1)
            drawn = self._drawn[moment].view(self.weights.image_size)
            self.weights.update(moment, torch.where(drawn, unlike, self.weights.of(moment)))
