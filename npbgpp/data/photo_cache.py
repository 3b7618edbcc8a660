"""Decoded photos in memory: 8 bits per value, up to a budget, shared by the worker processes that read them."""

import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from npbgpp.data.images import Photo, read_photo
from npbgpp.data.scene import View

_PAGE = 4096  # photos begin at multiples of it


def available_bytes() -> int:
    """Memory of this machine that no program uses now."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class PhotoCache:
    """The photos of one scene. As many of them as fit into the budget are decoded once and kept, the others every time.

    The memory is taken from the system photo by photo, as they are decoded. Worker processes that are forked share it; where workers are spawned
    instead, each keeps its own.

    Args:
        views: the views of the scene.
        budget: bytes.

    Attributes:
        kept: how many of the photos fit.
        size: bytes that they need.
    """

    def __init__(self, views: Sequence[View], budget: int) -> None:
        self.views = views
        lengths = np.array([-(-_length(view) // _PAGE) * _PAGE for view in views], dtype=np.int64)
        ends = len(views) + np.cumsum(lengths)
        self.kept = int((ends <= budget).sum())
        self.size = int(ends[self.kept - 1]) if self.kept else 0
        self._starts = (ends - lengths).tolist()
        self._map()

    def _map(self) -> None:
        # anonymous and shared: neither bound by the size of /dev/shm nor copied by a fork; its first bytes say which photos are there
        self._memory = torch.frombuffer(mmap.mmap(-1, self.size), dtype=torch.uint8) if self.size else torch.empty(0, dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_memory"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def read(self, index: int) -> Photo:
        """The photo of view ``index``; its tensors must not be written to. Raises InputError for a photo that cannot be read."""
        view = self.views[index]
        if index >= self.kept:
            return read_photo(view)
        height, width = view.camera.image_size
        begin, channels = self._starts[index], _channels(view)
        place = self._memory[begin : begin + channels * height * width].view(channels, height, width)
        if not self._memory[index]:
            photo = read_photo(view)
            place[:3] = photo.image
            if photo.mask is not None:
                place[3:] = photo.mask
            self._memory[index] = 1  # last: other processes may read as soon as it is set
        return Photo(place[:3], place[3:] if channels == 4 else None)


def _channels(view: View) -> int:
    return 3 + (view.mask is not None or view.alpha_is_mask)


def _length(view: View) -> int:
    return _channels(view) * view.camera.image_size[0] * view.camera.image_size[1]
