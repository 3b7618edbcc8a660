"""What a checkpoint holds of the tables of scenes: references to their saved files, and tables that are not as saved.

Symbols: n points, q numbers per point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.optim import RowTable


@dataclass(frozen=True)
class SavedTable:
    """A table in a checkpoint; see RowTable.

    Attributes:
        values: None where they are as in the saved file.
        square_average: None where there is no history, or where the next epoch erases it.
        last_step: the same.
        mean: the same.
    """

    values: Float[Tensor, "n q"] | None
    square_average: Float[Tensor, "n q"] | None
    last_step: Int[Tensor, " n"] | None
    mean: Float[Tensor, "n q"] | None = None

    @classmethod
    def of(cls, table: RowTable, history: bool) -> "SavedTable":
        """What is to be kept of a table besides its file."""
        past = (table.square_average, table.last_step, table.mean) if history else (None, None, None)
        return cls(*(None if part is None else part.cpu().clone() for part in (table.values if table.changed else None, *past)))

    def continue_in(self, table: RowTable) -> None:
        """Gives a table its history back."""
        device = table.values.device
        table.square_average = None if self.square_average is None else self.square_average.to(device)
        table.last_step = None if self.last_step is None else self.last_step.to(device)
        table.mean = None if self.mean is None else self.mean.to(device)
        table.changed = self.values is not None


@dataclass(frozen=True)
class TableState:
    """The tables of a run.

    Attributes:
        steps: of their optimiser.
        saved: digests of the saved files, by scene.
        tables: tables that are more than their files, by scene.
        residents: per process, the scenes in memory, the longest there first.
        trained: per process, those trained in the current epoch.
    """

    steps: int
    saved: dict[str, str]
    tables: dict[str, SavedTable]
    residents: tuple[tuple[str, ...], ...]
    trained: tuple[tuple[str, ...], ...]

    @classmethod
    def together(cls, parts: Sequence["TableState"]) -> "TableState":
        """Those of all processes, in the order of their numbers."""
        saved = {name: mark for part in parts for name, mark in part.saved.items()}
        tables = {name: table for part in parts for name, table in part.tables.items()}
        return cls(parts[0].steps, saved, tables, tuple(r for p in parts for r in p.residents), tuple(t for p in parts for t in p.trained))

    def as_plain(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "steps": self.steps,
            "saved": self.saved,
            "tables": {name: dict(vars(table)) for name, table in self.tables.items()},
            "residents": [list(names) for names in self.residents],
            "trained": [list(names) for names in self.trained],
        }

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> "TableState":
        """The inverse of ``as_plain``."""
        return cls(
            content["steps"],
            dict(content["saved"]),
            {name: SavedTable(**table) for name, table in content["tables"].items()},
            tuple(tuple(names) for names in content["residents"]),
            tuple(tuple(names) for names in content["trained"]),
        )
