"""A look into training: what one batch read, what it drew and what it should have drawn, every few hundred batches."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.functional import interpolate

from npbgpp.io import write_png
from npbgpp.methods.base import System


class TrainingStrip(Callback):
    """Writes ``train_images/step<batch>_rank<r>.png``: the pictures of the first item of a batch side by side.

    From left to right: input photos and their features (systems that read photos), the points at every level, the rendering, the photo. Features and
    points have the colours of the system's RGB converter.

    Args:
        every_n_batches: batches between two strips, the first one included.
    """

    def __init__(self, every_n_batches: int = 500) -> None:
        self.every_n_batches = every_n_batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Asks for pictures when it is time."""
        assert isinstance(pl_module, System)
        pl_module.wants_pictures = trainer.fit_loop.total_batch_idx % self.every_n_batches == 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Writes the pictures of the batch."""
        assert isinstance(pl_module, System)
        pictures = pl_module.pictures
        if not pictures:
            return
        height = max(picture.shape[1] for picture in pictures)
        tiles = []
        for picture in pictures:
            width = max(1, round(picture.shape[2] * height / picture.shape[1]))
            tiles.append(interpolate(picture[None], (height, width), mode="nearest")[0].float().cpu())
        path = Path(trainer.default_root_dir) / "train_images" / f"step{trainer.fit_loop.total_batch_idx}_rank{trainer.global_rank}.png"
        write_png(path, torch.cat(tiles, 2))
        pl_module.pictures = ()
