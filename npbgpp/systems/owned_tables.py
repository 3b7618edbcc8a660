"""Systems whose scenes own tables: what checkpoints hold of them, and when they are opened, shared and saved."""

from pathlib import Path

from npbgpp.systems.base import System
from npbgpp.systems.scene_tables import SceneTables
from npbgpp.systems.table_state import TableState


class OwnedTables(System):
    """Hooks of Lightning, to stand before another base class.

    Attributes:
        tables: of the scenes.
        continued_descriptors: those of the run that is resumed, in case it is not in the same folder.
        keeps_history: what the optimiser of the tables knows outlasts an epoch.
        table_steps: of that optimiser.
    """

    tables: SceneTables
    continued_descriptors: Path | None
    keeps_history: bool
    table_steps: int = 0

    def can_render(self, scene: str) -> bool:
        """False for scenes of this run whose first training epoch is still to come."""
        return self.tables.can_render(scene)

    def begin_training(self, shares_scenes: bool) -> None:
        """See System.begin_training."""
        self.tables.shared = shares_scenes

    def on_train_start(self) -> None:
        """Opens the scenes that were open."""
        self.tables.open_again()

    def on_train_epoch_start(self) -> None:
        """Forgets what the last epoch trained."""
        super().on_train_epoch_start()
        self.tables.begin_epoch()

    def on_train_epoch_end(self) -> None:
        """Saves the descriptors of every scene of the epoch."""
        super().on_train_epoch_end()
        self.tables.save_trained()

    def on_fit_end(self) -> None:
        """From here on every scene must have descriptors to be rendered."""
        self.tables.end_training()

    def on_validation_start(self) -> None:
        """Processes evaluate what others train."""
        super().on_validation_start()
        self.tables.publish()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Refers to the saved descriptors, and holds what they lack."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["npbgpp"]["descriptors"] = self.tables.state(self.table_steps, history=self.keeps_history).as_plain()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Takes over what belongs to a checkpoint; one of an earlier version refers to no descriptors, and those of its folder are taken."""
        super().on_load_checkpoint(checkpoint)
        found = checkpoint.get("npbgpp", {}).get("descriptors")
        if found is not None:
            state = TableState.from_plain(found)
            self.table_steps = state.steps
            self.tables.go_on(state, self.continued_descriptors)
