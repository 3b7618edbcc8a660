"""What all systems share: rendering one view at a time for evaluation, scores, and the border to Lightning.

A system renders (``render``) and trains (``training_step``). Evaluation lives here once: every view is rendered, timed and scored, and the result is
handed to callbacks, which write pictures and tables.
"""

import json
import math
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pytorch_lightning import LightningModule
from torch import Tensor

from npbgpp.core.distributed import process_count, process_rank, share_buffers
from npbgpp.data import Batch, Scene
from npbgpp.geometry import Cameras
from npbgpp.metrics import ImageMetrics, ImageScores, MatteScores, MovingScores

CHECKPOINT_FORMAT = 1


@dataclass(frozen=True)
class Render:
    """b rendered views.

    Attributes:
        rgb: colours; in training not clamped to [0, 1].
        mask: probability of the object, None for systems that predict none.
        raster: coloured points without the network, on white; None unless asked for.
        depth: of what is seen, along the viewing axis, scene units; 0 where nothing is, inf at the end of the world; None unless asked for.
        rgba: colours weighted by opacity, and opacity, of systems that learn mattes.
    """

    rgb: Float[Tensor, "b 3 h w"]
    mask: Float[Tensor, "b 1 h w"] | None = None
    raster: Float[Tensor, "b 3 h w"] | None = None
    depth: Float[Tensor, "b 1 h w"] | None = None
    rgba: Float[Tensor, "b 4 h w"] | None = None


@dataclass(frozen=True)
class ViewResult:
    """One evaluated view; images are on the CPU in [0, 1].

    Attributes:
        seconds: time of rendering it.
        matte: further scores, of systems that learn mattes.
        moving: further scores, of systems for moving scenes.
        parts: what it is made of, side by side; None for systems that make it in one piece.
    """

    dataset: str
    view: str
    rendered: Float[Tensor, "3 h w"]
    target: Float[Tensor, "3 h w"]
    raster: Float[Tensor, "3 h w"] | None
    scores: ImageScores
    seconds: float
    matte: MatteScores | None = None
    moving: MovingScores | None = None
    parts: Float[Tensor, "3 _ _"] | None = None


class System(LightningModule):
    """A method of novel-view synthesis.

    Args:
        scenes: every scene of the run by name.
        metrics: how views are scored.

    Attributes:
        wants_pictures: set before a training batch: keep pictures of it.
        pictures: those of the last batch that were wanted.
        training_keys: keys of the config that decide what is learnt, for checkpoints.
    """

    # what the logged figure "points" of a batch counts: points of its clouds, or rays
    unit: str = "points"
    accepts_checkpoints_of: tuple[str, ...] = ()
    # networks of other systems that their checkpoints may hold and this one has no use for
    has_no_use_for: tuple[str, ...] = ()

    def __init__(self, scenes: Mapping[str, Scene], metrics: ImageMetrics) -> None:
        super().__init__()
        self.scenes = dict(scenes)
        self.metrics = metrics
        self.wants_pictures = False
        self.pictures: tuple[Tensor, ...] = ()
        self.training_keys: dict[str, Any] = {}
        self._seed = 0

    @abstractmethod
    def require_weights(self, missing: Sequence[str]) -> None:
        """Raises InputError when the weights that a checkpoint lacks leave a network random, as a whole or in part."""

    @abstractmethod
    def check_before_training(self, trained: Sequence[str], validated: Sequence[str]) -> None:
        """Refuses a run that would fail later. Names are of the scenes that are trained and validated."""

    @abstractmethod
    def start_without_weights(self, evaluate_only: bool) -> None:
        """Begins without a checkpoint. Raises InputError when that makes no sense."""

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a checkpoint by the names that they have in this system."""
        return weights

    def adapt_to_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes the sizes of networks that weights have, by the names that they have in this system, where it can read them off.

        Raises InputError for weights that belong to something else than the scene of the run.
        """

    @abstractmethod
    def render(self, cameras: Cameras, scene: str, raster: bool = False, depth: bool = False) -> Render:
        """Views of a scene as its cameras see them, clamped to [0, 1]. ``raster`` asks for the picture of the bare points, ``depth`` for depths as well."""

    def can_render(self, scene: str) -> bool:
        """Whether a scene can be evaluated now. Validation skips scenes whose turn in training is still to come."""
        return True

    def prepare(self, scene: str) -> None:
        """Work that is done once before the views of a scene are rendered; it does not count as rendering time."""

    def on_validation_start(self) -> None:
        """All processes evaluate the same networks."""
        share_buffers(self)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[ViewResult]:  # type: ignore[override]
        """Results of the views of a batch, for callbacks."""
        return self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[ViewResult]:  # type: ignore[override]
        """Results of the views of a batch, for callbacks."""
        return self._evaluate(batch)

    def _evaluate(self, batch: Batch) -> list[ViewResult]:
        results = []
        for k, scene in enumerate(batch.scene):
            if not self.can_render(scene):
                continue
            self.prepare(scene)
            start = time.perf_counter()
            render = self.render_target(batch, k)
            rendered = render.rgb[0].cpu()  # waits for the device, so the clock is honest
            seconds = time.perf_counter() - start
            target = self.evaluation_target(batch, k)
            (scores,) = self.metrics(render.rgb, target[None])
            raster = None if render.raster is None else render.raster[0].cpu()
            further = (self.matte_scores(render, batch, k), self.moving_scores(batch, k, render), self.parts(batch, k, render))
            results.append(ViewResult(batch.dataset[k], batch.target.names[k], rendered, target.cpu(), raster, scores, seconds, *further))
        return results

    def render_target(self, batch: Batch, k: int) -> Render:
        """View k of a batch, with the picture of the bare points."""
        return self.render(batch.target.cameras[k], batch.scene[k], raster=True)

    def moving_scores(self, batch: Batch, k: int, render: Render) -> MovingScores | None:
        """Further scores of view k as it was rendered."""
        return None

    def parts(self, batch: Batch, k: int, render: Render) -> Float[Tensor, "3 _ _"] | None:
        """Pictures of what view k is made of, as it was rendered, side by side."""
        return None

    def evaluation_target(self, batch: Batch, k: int) -> Float[Tensor, "3 h w"]:
        """The photo that view k is compared with."""
        return batch.target.image[k]

    def conditions(self) -> dict[str, str]:
        """What else scores depend on, in words; joins what the data say of themselves."""
        return {}

    def matte_scores(self, render: Render, batch: Batch, k: int) -> MatteScores | None:
        """Scores of the opacity of view k, the first one of ``render``; None for systems that learn none."""
        return None

    def begin_training(self, shares_scenes: bool) -> None:
        """What training needs to know of the processes that work together: whether several of them may train the same scene."""

    def on_fit_start(self) -> None:
        """Takes the seed of the run as that of its steps."""
        self._seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Chance in a step depends on the seed of the run, the place of the step and the process alone, so that resumed runs repeat."""
        place = (self._seed, self.current_epoch, batch_idx, process_rank())
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Marks the file, so that weights of another system are refused by name, and a run is not continued under other settings."""
        checkpoint["npbgpp"] = {"format": CHECKPOINT_FORMAT, "system": type(self).__name__, "training": json.dumps(self.training_keys)}

    def autocast_free(self) -> torch.autocast:
        """A context in which geometry stays in full precision under mixed precision."""
        return torch.autocast(device_type=self.device.type, enabled=False)


# ----------------------------------------------------------------------
# Systems that step their own optimisers: accumulation, clipping, schedule by steps, and what they log of every batch.


class ManualOptimizationSystem(System):
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
