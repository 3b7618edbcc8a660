"""Sparse optimizers: RMSprop and Adam that update only the table rows with a gradient.

Dense RMSprop (Tieleman & Hinton, 2012) updates every row at every step: ``v <- alpha v + (1 - alpha) g^2``, ``p <- p - lr g / (sqrt(v) + eps)``. A row with
zero gradient keeps its value while its ``v`` decays, so the decay can be deferred: a row that is next updated after k steps first gets ``v <- alpha^k v``.
The trajectory equals that of dense RMSprop at a cost per step in the number of updated rows.

Adam has no such equivalent, since its momentum also moves rows without a gradient; SparseAdam leaves them unchanged, as torch.optim.SparseAdam does, but
corrects the bias by the updates of each row.

Symbols: n rows, c columns, m rows updated by a step.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class SparseParameter:
    """Parameters of one scene and their optimizer state.

    Attributes:
        values: the parameters.
        square_average: running mean of squared gradients as of ``last_step``; None before the first update.
        last_step: RMSprop: step of the last update of each row; Adam: number of updates of each row. None before the first update.
        changed: the parameters differ from the saved ones.
        mean: Adam: running mean of gradients; None before the first update.
    """

    values: Float[Tensor, "n c"]
    square_average: Float[Tensor, "n c"] | None = None
    last_step: Int[Tensor, " n"] | None = None
    changed: bool = False
    mean: Float[Tensor, "n c"] | None = None

    def reset_state(self) -> None:
        """Discards the optimizer state."""
        self.square_average = self.last_step = self.mean = None

    def state(self) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]:
        """(square_average, last_step), allocated on first access."""
        if self.square_average is None or self.last_step is None:
            self.square_average = torch.zeros_like(self.values)
            self.last_step = torch.zeros(len(self.values), dtype=torch.int32, device=self.values.device)
        return self.square_average, self.last_step


@dataclass
class SparseRMSprop:
    """RMSprop over any number of parameters that share one step counter.

    Attributes:
        lr: learning rate.
        alpha: decay of the running mean.
        eps: added to the root.
        steps: steps begun so far.
    """

    lr: float
    alpha: float = 0.99
    eps: float = 1e-8
    steps: int = 0

    def begin_step(self) -> None:
        """Starts a step; all updates until the next call belong to it."""
        self.steps += 1

    @torch.no_grad()
    def update(self, table: SparseParameter, rows: Int[Tensor, " m"], gradient: Float[Tensor, "m c"]) -> None:
        """Updates rows in place; ``rows`` must be unique."""
        table.changed = True
        square_average, last_step = table.state()
        missed = (self.steps - 1 - last_step.index_select(0, rows)).to(gradient.dtype)
        decay = torch.pow(self.alpha, missed)[:, None]
        average = square_average.index_select(0, rows).mul_(decay * self.alpha).addcmul_(gradient, gradient, value=1 - self.alpha)
        square_average.index_copy_(0, rows, average)
        last_step.index_fill_(0, rows, self.steps)
        table.values.index_add_(0, rows, gradient / average.sqrt_().add_(self.eps), alpha=-self.lr)


@dataclass
class SparseAdam:
    """Adam (Kingma and Ba, 2015) over any number of parameters, with bias correction by the number of updates of each row.

    Attributes:
        lr: learning rate.
        weight_decay: L2 penalty on the updated rows.
        betas: decays of the running means of gradients and of their squares.
        eps: added to the root.
        steps: steps begun so far; updates do not depend on it.
    """

    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    steps: int = 0

    def begin_step(self) -> None:
        """Starts a step."""
        self.steps += 1

    @torch.no_grad()
    def update(self, table: SparseParameter, rows: Int[Tensor, " m"], gradient: Float[Tensor, "m c"]) -> None:
        """Updates rows in place; ``rows`` must be unique."""
        table.changed = True
        squares, updates = table.state()
        if table.mean is None:
            table.mean = torch.zeros_like(table.values)
        beta1, beta2 = self.betas
        gradient = gradient.add(table.values.index_select(0, rows), alpha=self.weight_decay)
        mean = torch.lerp(gradient, table.mean.index_select(0, rows), beta1)
        square = torch.lerp(gradient.square(), squares.index_select(0, rows), beta2)
        count = updates.index_select(0, rows) + 1
        table.mean.index_copy_(0, rows, mean)
        squares.index_copy_(0, rows, square)
        updates.index_copy_(0, rows, count)
        corrections = (1 - torch.pow(beta, count.to(gradient.dtype))[:, None] for beta in self.betas)
        mean, square = (part / correction for part, correction in zip((mean, square), corrections, strict=True))
        table.values.index_add_(0, rows, mean / square.sqrt_().add_(self.eps), alpha=-self.lr)
