"""Images of training batches at regular intervals."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.functional import interpolate

from npbgpp.io import write_png
from npbgpp.methods.base import System


class TrainingStrip(Callback):
    """Writes ``train_images/step<batch>_rank<r>.png``: images of the first item of a batch, side by side.

    From left to right: input photos and their features (systems that read photos), the rasterized points of every level, the rendering, the target photo.
    Features and points are coloured by the RGB converter of the system.

    Args:
        every_n_batches: batches between two images, the first batch included.
    """

    def __init__(self, every_n_batches: int = 500) -> None:
        self.every_n_batches = every_n_batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Requests images from the system."""
        assert isinstance(pl_module, System)
        pl_module.wants_pictures = trainer.fit_loop.total_batch_idx % self.every_n_batches == 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, System)
        if not pl_module.pictures:
            return
        height = max(image.shape[1] for image in pl_module.pictures)
        tiles = []
        for image in pl_module.pictures:
            width = max(1, round(image.shape[2] * height / image.shape[1]))
            tiles.append(interpolate(image[None], (height, width), mode="nearest")[0].float().cpu())
        name = f"step{trainer.fit_loop.total_batch_idx}_rank{trainer.global_rank}.png"
        write_png(Path(trainer.default_root_dir) / "train_images" / name, torch.cat(tiles, 2))
        pl_module.pictures = ()
