"""How methods for moving scenes draw rays from a video: keys of the ``datasets`` group."""

from dataclasses import dataclass

from npbgpp.errors import InputError


@dataclass(frozen=True)
class VideoSampling:
    """Keys of ``conf/datasets/_video.yaml`` that concern training.

    Attributes:
        batches_per_epoch: None is one for every 1000 pixels of all frames.
        exclusion_window: minimum frame gap between consecutive batches, less 1.
        hard_sampling: draw pixels by their error in the epoch before, otherwise evenly.
        moving_share: share of the pixels that is drawn evenly from the moving part of the frame, by its mask.
        motion_cache: folder, relative to the launch folder, that keeps frames and motion maps at the size of use; None: no cache.
    """

    batches_per_epoch: int | None = None
    exclusion_window: int = 5
    hard_sampling: bool = False
    moving_share: float = 0.0
    motion_cache: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("batches_per_epoch", 1), ("exclusion_window", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"datasets.{name}: expected {least} or more, got {value}")
        if not 0 <= self.moving_share <= 1:
            raise InputError(f"datasets.moving_share: expected a share of the pixels, 0 to 1, got {self.moving_share:g}")
