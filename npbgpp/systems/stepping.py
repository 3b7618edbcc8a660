"""Systems that step their own optimisers: accumulation, clipping, schedule by steps, and what they log of every batch."""

import math
import time

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.data.scene import Batch, Scene
from npbgpp.distributed import process_count
from npbgpp.metrics import ImageMetrics
from npbgpp.systems.base import System


class SteppingSystem(System):
    """What Lightning leaves to systems of several optimisers.

    Args:
        scenes: every scene of the run.
        metrics: how views are scored.
        accumulate: batches per step.
        clip: largest norm of the gradients of an optimiser; None does not clip.
        schedule: ``constant``, or ``cosine``: down to a hundredth at the end of the run.
    """

    def __init__(self, scenes: dict[str, Scene], metrics: ImageMetrics, accumulate: int, clip: float | None, schedule: str) -> None:
        super().__init__(scenes, metrics)
        self.automatic_optimization = False
        self._accumulate, self._clip, self._schedule = accumulate, clip, schedule
        self._last_batch_end: float | None = None
        self._batches_in_step = 0

    def learn(self, loss: Float[Tensor, ""]) -> None:
        """Adds the gradients of a batch; ``finish_batch`` comes after what else is to be done with them."""
        if not loss.requires_grad and process_count() > 1:  # the other processes wait for the gradients of this one
            parameters = [p for p in self.parameters() if p.requires_grad]
            loss = loss + sum((0.0 * p.sum() for p in parameters), loss.new_zeros(()))
        if loss.requires_grad:  # a target that sees no point teaches a frozen network nothing
            self.manual_backward(loss / self._accumulate)

    def finish_batch(self) -> None:
        """Counts a batch, and steps when there are enough."""
        self._batches_in_step += 1
        if self._batches_in_step >= self._accumulate:
            self.step()

    def log_batch(self, batch: Batch, terms: dict[str, Tensor], loss: Tensor, rendered: Tensor, target: Tensor, points: int) -> None:
        """Logs the terms, the loss, the PSNR of colours and how many points were drawn per second."""
        for name, value in terms.items():
            self.log(name, value.detach(), batch_size=len(batch))
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        with torch.no_grad():
            error = torch.nn.functional.mse_loss(rendered.detach().clamp(0, 1), target)
        self.log("psnr", -10 * torch.log10(error.clamp_min(1e-10)), prog_bar=True, batch_size=len(batch))
        now = time.perf_counter()
        # tensors of the CPU: plain numbers would be sent to the device, which is waited for
        self.log("points", torch.tensor(float(points)), logger=False, batch_size=len(batch))
        if self._last_batch_end is not None:
            rate = torch.tensor(points / (now - self._last_batch_end))
            self.log("points_per_s", rate, prog_bar=True, batch_size=len(batch))
        self._last_batch_end = now

    def step(self) -> None:
        """Steps and clears every optimiser."""
        scale = self.learning_rate_scale()
        wrapped = self.optimizers()
        first, *others = wrapped if isinstance(wrapped, list) else [wrapped]
        for optimizer in (first, *others):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
            if self._clip:
                torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], self._clip)
        first.step()
        for optimizer in others:
            # past Lightning's wrapper: it would count every optimiser as a step of its own, and max_steps would come too early
            optimizer.optimizer.step()
        for optimizer in (first, *others):
            optimizer.zero_grad()
        self._batches_in_step = 0

    def learning_rate_scale(self) -> float:
        """Factor of every learning rate at this moment of the run."""
        if self._schedule == "constant":
            return 1.0
        total = self._total_steps()
        done = min(self.trainer.global_step / total, 1.0) if total > 0 else 0.0
        return 0.5 * (1 + math.cos(done * math.pi)) * 0.99 + 0.01

    def _total_steps(self) -> float:
        """Optimiser steps of the run, inf when it has no end. Lightning's estimate counts batches: it does not know of the accumulation done here."""
        limit = math.inf if self.trainer.max_steps < 0 else float(self.trainer.max_steps)
        if self.trainer.max_epochs is None or self.trainer.max_epochs < 0:
            return limit
        per_epoch = math.ceil(self.trainer.num_training_batches / self._accumulate)
        return min(limit, float(per_epoch * self.trainer.max_epochs))

    def on_train_epoch_start(self) -> None:
        """Evaluation and saving are not training time."""
        self._last_batch_end = None

    def on_train_epoch_end(self) -> None:
        """Does not lose a last part of accumulated batches."""
        if self._batches_in_step:
            self.step()
