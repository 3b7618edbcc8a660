"""Evaluation by several processes, some of which may have no view."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loops import _EvaluationLoop
from pytorch_lightning.trainer.states import RunningStage, TrainerFn
from torch.nn.parallel import DistributedDataParallel


class SharedEvaluationLoop(_EvaluationLoop):
    """Lightning's loop, in which a process without a view takes part in the hooks around the views: they exchange buffers, tables and scores.

    Lightning lets such a process skip the evaluation, and the others wait for it. Views themselves are evaluated without any exchange.
    """

    def __init__(self, trainer: Trainer, *arguments: Any, **named: Any) -> None:
        super().__init__(trainer, *arguments, **named)
        self._batches_of_all = 0  # over all processes

    def setup_data(self) -> None:
        before = self._combined_loader
        super().setup_data()
        if self._combined_loader is not before:  # alike in all processes
            own = torch.tensor(float(sum(self._max_batches)), device=self.trainer.strategy.root_device)
            self._batches_of_all = int(self.trainer.strategy.reduce(own, reduce_op="sum"))

    def run(self) -> list[Any]:
        with _local_forward(self.trainer.strategy.model):
            return super().run()

    @property
    def skip(self) -> bool:
        """Whether no process has anything to evaluate."""
        return self._batches_of_all == 0 or (self.trainer.sanity_checking and self.trainer.num_sanity_val_steps == 0)


@contextmanager
def _local_forward(model: Any) -> Iterator[None]:
    """Lets DDP exchange nothing in forward passes: with buffers it broadcasts them in each one, and processes have unequal numbers of views.

    ``System.on_validation_start`` has broadcast them.
    """
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    before, model.require_forward_param_sync = model.require_forward_param_sync, False
    try:
        yield
    finally:
        model.require_forward_param_sync = before


def share_evaluations(trainer: Trainer) -> None:
    """Replaces the loops of a Trainer that validate during training, and that test."""
    fit = trainer.fit_loop.epoch_loop
    fit.val_loop = SharedEvaluationLoop(trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False)
    test = SharedEvaluationLoop(trainer, TrainerFn.TESTING, RunningStage.TESTING, inference_mode=trainer.test_loop.inference_mode)
    trainer.test_loop = test
