"""Where training drew pixels unlike the photos, so that the next epoch draws more of them (``hard_sampling`` of nsff_pl).

Symbols: n pixels of one frame, N frames of h x w pixels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from npbgpp.data.pixel_weights import PixelWeights
from npbgpp.distributed import gather
from npbgpp.losses import ssim_map


@dataclass(frozen=True)
class _Drawn:
    """Pixels of a batch, in 8 bits: as they were rendered, and as they are."""

    moment: int
    pixel: Int64[Tensor, " n"]
    rendered: UInt8[Tensor, "n 3"]
    photo: UInt8[Tensor, "n 3"]


class HardPixels:
    """Remembers the last colours of pixels, on the CPU and out of checkpoints: only the weights made from them are kept.

    Args:
        weights: of the pixels of all frames, which are changed.
    """

    def __init__(self, weights: PixelWeights) -> None:
        self.weights = weights
        self._epoch: list[_Drawn] = []
        self._rendered: dict[int, Tensor] = {}
        self._photo: dict[int, Tensor] = {}
        self._known: dict[int, Tensor] = {}

    def record(self, moment: int, pixel: Int64[Tensor, " n"], rgb: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"]) -> None:
        """Takes colours of pixels of a frame, and those of the photo."""
        self._epoch.append(_Drawn(moment, pixel.cpu(), _bytes(rgb), _bytes(target)))

    def reweigh(self) -> None:
        """Ends an epoch, of all processes together: weights become (1 - SSIM) / 2 around each pixel.

        Pixels that were never drawn keep theirs, and count as alike in the windows of others.
        """
        height, width = self.weights.image_size
        changed = set()
        for drawn in (batch for part in gather(self._epoch) for batch in part):
            changed.add(drawn.moment)
            for store, values in ((self._rendered, drawn.rendered), (self._photo, drawn.photo)):
                store.setdefault(drawn.moment, torch.zeros(height * width, 3, dtype=torch.uint8))[drawn.pixel] = values
            self._known.setdefault(drawn.moment, torch.zeros(height * width, dtype=torch.bool))[drawn.pixel] = True
        self._epoch = []
        for moment in sorted(changed):
            pair = (store[moment].view(height, width, 3).permute(2, 0, 1)[None].float() / 255 for store in (self._rendered, self._photo))
            unlike = (0.5 * (1 - ssim_map(*pair)[0].mean(0))).clamp(0, 1)
            known = self._known[moment].view(height, width)
            self.weights.update(moment, torch.where(known, unlike, self.weights.of(moment)))


def _bytes(rgb: Float[Tensor, "n 3"]) -> UInt8[Tensor, "n 3"]:
    return (rgb.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
