"""Hard sampling: which pixels of the frames of a video are drawn more often than others.

Symbols: f frames of h rows and w columns, n pixels that are drawn.
"""

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from npbgpp.errors import InputError

_LEAST = 1e-3  # a pixel that is right now may be wrong later


class PixelWeights:
    """One weight for each pixel of each frame, at first all alike. Worker processes that are forked share them with the process that updates them.

    Args:
        moments: of the frames.
        image_size: (height, width).
    """

    def __init__(self, moments: Sequence[int], image_size: tuple[int, int]) -> None:
        self.moments, self.image_size = tuple(moments), image_size
        self._map()
        self._weights.fill_(1)

    def _map(self) -> None:
        shape = (len(self.moments), *self.image_size)
        # anonymous and shared: not bound by the size of /dev/shm
        memory = mmap.mmap(-1, 4 * int(np.prod(shape)))
        self._weights = torch.frombuffer(memory, dtype=torch.float32).view(shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_weights": self._weights.clone()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()
        self._weights.copy_(state["_weights"])

    def update(self, moment: int, dissimilarity: Float[Tensor, "h w"]) -> None:
        """Sets the weights of a frame: 1 - SSIM of what was rendered and the photo, of every pixel, or anything else that grows with the error.

        The pixels of a frame keep a chance of a thousandth of the largest one at least.
        """
        assert torch.isfinite(dissimilarity).all() and dissimilarity.shape == self.image_size
        weights = dissimilarity.detach().float().cpu().clamp(min=0)
        largest = weights.max()
        self._weights[self.moments.index(moment)] = weights.clamp(min=_LEAST * largest) if largest > 0 else 1.0

    def of(self, moment: int) -> Float[Tensor, "h w"]:
        """The weights of a frame; not to be written to."""
        return self._weights[self.moments.index(moment)]

    def draw(self, moment: int, count: int, margin: int, rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
        """Pixels of a frame, with replacement, by their weights; numbers count row by row. None of them is closer to a border than ``margin``."""
        inner = np.zeros(self.image_size)
        inside = slice(margin, -margin or None), slice(margin, -margin or None)
        inner[inside] = self.of(moment).numpy()[inside]
        sums = np.cumsum(inner)
        return np.searchsorted(sums, rng.random(count) * sums[-1], side="right")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"moments": list(self.moments), "weights": self._weights.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes weights of a checkpoint. Raises InputError when they are those of other frames or of another size."""
        weights = state["weights"]
        if list(state["moments"]) != list(self.moments) or tuple(weights.shape[1:]) != self.image_size:
            height, width = self.image_size
            raise InputError(
                f"checkpoint: expected weights of hard sampling for {len(self.moments)} frames of {width}x{height} pixels, got {len(state['moments'])} of "
                f"{weights.shape[2]}x{weights.shape[1]}; resume with the same datasets.start_end, holdout_indices and size"
            )
        self._weights.copy_(weights)
