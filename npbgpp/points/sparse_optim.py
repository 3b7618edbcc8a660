"""RMSprop and Adam on the rows of a table of which a step sees only a few.

Dense RMSprop (Tieleman & Hinton, 2012) touches every row at every step: ``v <- alpha v + (1 - alpha) g^2``, ``p <- p - lr g / (sqrt(v) + eps)``. A row
whose gradient is zero keeps its value, and its ``v`` only decays. So the decay can wait: a row that is next seen after k steps without gradient first gets
``v <- alpha^k v``. The trajectory is the same; the cost of a step grows with the rows it sees.

Adam has no such short cut, since its momentum moves rows without a gradient as well; here it leaves them alone.

Symbols: n rows, c columns, m rows seen by a step.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class SparseParameter:
    """Parameters of one scene and what the optimiser remembers about them.

    Attributes:
        values: the parameters.
        square_average: running mean of squared gradients as of ``last_step``; None before the first update.
        last_step: step at which each row was last updated, for Adam how often it was; None before the first update.
        mean: running mean of gradients, of Adam; None before the first update.
        changed: the parameters are others than when they were last saved.
    """

    values: Float[Tensor, "n c"]
    square_average: Float[Tensor, "n c"] | None = None
    last_step: Int[Tensor, " n"] | None = None
    changed: bool = False
    mean: Float[Tensor, "n c"] | None = None

    def forget(self) -> None:
        """Erases the history, as a newly made optimiser has none."""
        self.square_average = self.last_step = self.mean = None

    def history(self) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]:
        """(square_average, last_step), made when first asked for: tables that are only read need none."""
        if self.square_average is None or self.last_step is None:
            self.square_average = torch.zeros_like(self.values)
            self.last_step = torch.zeros(len(self.values), dtype=torch.int32, device=self.values.device)
        return self.square_average, self.last_step


@dataclass
class SparseRMSprop:
    """RMSprop over any number of tables that share one step counter.

    Attributes:
        lr: learning rate.
        alpha: decay of the running mean, as torch.optim.RMSprop names it.
        eps: added to the root.
        steps: steps begun so far.
    """

    lr: float
    alpha: float = 0.99
    eps: float = 1e-8
    steps: int = 0

    def begin_step(self) -> None:
        """Counts a step; every table updated until the next call belongs to it."""
        self.steps += 1

    @torch.no_grad()
    def update(self, table: SparseParameter, rows: Int[Tensor, " m"], gradient: Float[Tensor, "m c"]) -> None:
        """Updates the rows that a step saw, in place. ``rows`` must not repeat."""
        table.changed = True
        square_average, last_step = table.history()
        missed = (self.steps - 1 - last_step.index_select(0, rows)).to(gradient.dtype)
        decay = torch.pow(self.alpha, missed)[:, None]
        average = square_average.index_select(0, rows).mul_(decay * self.alpha).addcmul_(gradient, gradient, value=1 - self.alpha)
        square_average.index_copy_(0, rows, average)
        last_step.index_fill_(0, rows, self.steps)
        table.values.index_add_(0, rows, gradient / average.sqrt_().add_(self.eps), alpha=-self.lr)


@dataclass
class SparseAdam:
    """Adam (Kingma and Ba, 2015) over any number of tables; the start of the running means is corrected by how often each row was seen.

    Attributes:
        lr: learning rate.
        weight_decay: share of a row that is added to its gradient.
        betas: decays of the running means of gradients and of their squares.
        eps: added to the root.
    """

    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    @torch.no_grad()
    def update(self, table: SparseParameter, rows: Int[Tensor, " m"], gradient: Float[Tensor, "m c"], scale: float = 1.0) -> None:
        """Updates the rows that a step saw, in place, at ``scale`` times the rate. ``rows`` must not repeat."""
        table.changed = True
        squares, seen = table.history()
        if table.mean is None:
            table.mean = torch.zeros_like(table.values)
        of_mean, of_square = self.betas
        gradient = gradient.add(table.values.index_select(0, rows), alpha=self.weight_decay)
        mean = torch.lerp(gradient, table.mean.index_select(0, rows), of_mean)
        square = torch.lerp(gradient.square(), squares.index_select(0, rows), of_square)
        count = seen.index_select(0, rows) + 1
        table.mean.index_copy_(0, rows, mean)
        squares.index_copy_(0, rows, square)
        seen.index_copy_(0, rows, count)
        corrections = (1 - torch.pow(beta, count.to(gradient.dtype))[:, None] for beta in self.betas)
        mean, square = (part / correction for part, correction in zip((mean, square), corrections, strict=True))
        table.values.index_add_(0, rows, mean / square.sqrt_().add_(self.eps), alpha=-self.lr * scale)
