"""Tables of the scenes that a run works on: opened when needed, learned from the rows that views see, saved after every epoch.

Symbols: m points that won a pixel in this step, q numbers per point.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.distributed import gather, process_count, process_rank
from npbgpp.errors import InputError
from npbgpp.systems.descriptors import DescriptorStore, ResidentScene, unique_rows
from npbgpp.systems.table_state import SavedTable, TableState
from npbgpp.systems.visible import Gathered

log = logging.getLogger(__name__)


class SceneTables:
    """The scenes on the device, and the gradients that belong to their tables.

    Args:
        store: where tables come from and go to.
        open_scene: brings a scene to the device; told its name, whether it is to be trained, and the values of its table where they are not the saved ones.
        limit: scenes on the device at a time; more only where an epoch trains more.

    Attributes:
        residents: the scenes on the device.
        shared: several processes may train the same scene; then all of them take every step, and all tables stay equal. So every process opens every scene
            that one of them trains: it may need any of these later, and would then find its values in the saved file, but not what the optimiser
            remembers of it.
    """

    def __init__(self, store: DescriptorStore, open_scene: Callable[[str, bool, Tensor | None], ResidentScene], limit: int) -> None:
        self.store, self._open, self._limit = store, open_scene, limit
        self.residents: dict[str, ResidentScene] = {}
        self.shared = False
        self._told: dict[str, SavedTable] = {}  # tables of a checkpoint that have not been opened yet
        self._to_open: tuple[str, ...] = ()
        self._fitting = False
        self._trained_this_epoch: set[str] = set()
        self._pending: list[tuple[str, Tensor, Tensor]] = []

    def begin_training(self, trained: Sequence[str], validated: Sequence[str], overwrite: bool, required: Sequence[str] = ()) -> None:
        """Refuses a run that would fail later.

        Raises:
            InputError: leftovers in the save folder without ``overwrite``, resuming without tables, no saved table of a scene that is ``required`` to have
                one, or validation of scenes that nobody trains.
        """
        if not overwrite and not self.store.read_saved:
            self.store.refuse_leftovers(trained)
        for scene in required:
            self.store.require(scene)
        for scene in validated:
            if (
                scene not in trained and not self.store.has(scene) and not self.store.read_saved
            ):  # what a checkpoint refers to is not known yet
                raise InputError(
                    f"datasets.scenes.val: scene {scene} is not trained in this run and has no saved descriptors, so that it cannot be rendered: validate on a "
                    "trained scene, name its descriptors with system.descriptors_pretrained_dir, or set trainer.limit_val_batches=0"
                )
        self._fitting = True

    def end_training(self) -> None:
        """From here on every scene must have descriptors to be rendered."""
        self._fitting = False

    def can_render(self, scene: str) -> bool:
        """False for scenes of this run whose first training epoch is still to come."""
        if scene in self.residents or self.store.has(scene) or not self._fitting:
            return True
        log.info("validation of scene %s skipped: its first training epoch is still to come", scene)
        return False

    def resident(self, scene: str, training: bool) -> ResidentScene:
        """The scene on the device; opened when first asked for, in place of one that this epoch does not need."""
        if scene not in self.residents:
            idle = [name for name in self.residents if name not in self._trained_this_epoch]
            if len(self.residents) >= self._limit and idle:
                del self.residents[idle[0]]
            told = self._told.pop(scene, None)
            self.residents[scene] = self._open(scene, training, None if told is None else told.values)
            if told is not None:
                told.continue_in(self.residents[scene].table)
        if training:
            self._trained_this_epoch.add(scene)
        return self.residents[scene]

    def begin_epoch(self) -> None:
        """Forgets what the last epoch trained."""
        self._trained_this_epoch.clear()

    def keep_gradients(self, gathered: Gathered) -> None:
        """Puts the gradients of table rows aside until the step."""
        gradient = gathered.values.grad
        if gradient is not None:
            self._pending += [(part.scene, part.points, gradient[part.where]) for part in gathered.parts]

    def take_gradients(self) -> list[tuple[str, Int[Tensor, " m"], Float[Tensor, "m q"]]]:
        """Gradients of the batches of one step by scene, those of a point that several batches or views saw summed."""
        merged, pending = [], self._exchanged()
        for name in dict.fromkeys(name for name, _, _ in pending):
            parts = [(seen, gradient) for other, seen, gradient in pending if other == name]
            if len(parts) == 1:
                merged.append((name, *parts[0]))
                continue
            rows, position = unique_rows(torch.cat([seen for seen, _ in parts]), self.residents[name].slot)
            total = parts[0][1].new_zeros(len(rows), self.store.dim)
            merged.append((name, rows, total.index_add_(0, position, torch.cat([gradient for _, gradient in parts]))))
        self._pending.clear()
        return merged

    def _exchanged(self) -> list[tuple[str, Int[Tensor, " m"], Float[Tensor, "m q"]]]:
        """Gradients of this process as its share of the mean over all, and those of other processes for scenes that they may share."""
        count = process_count()
        own = [(name, seen, gradient / count) for name, seen, gradient in self._pending] if count > 1 else self._pending
        if not self.shared:
            return own
        everybody = [entry for part in gather([(name, seen.cpu(), gradient.cpu()) for name, seen, gradient in own]) for entry in part]
        home = {name: self.resident(name, training=True).table.values.device for name in dict.fromkeys(name for name, _, _ in everybody)}
        return [(name, seen.to(home[name]), gradient.to(home[name])) for name, seen, gradient in everybody]

    def publish(self) -> None:
        """Saves what has changed where other processes may need it."""
        if process_count() > 1 and self._fitting:
            self.save_trained()

    def save_trained(self) -> None:
        """Saves the tables of every scene of the epoch; afterwards every process can open every saved scene."""
        for name in sorted(self._trained_this_epoch) if not self.shared or process_rank() == 0 else ():
            if self.residents[name].table.changed or name not in self.store.saved():
                log.info("descriptors of scene %s: %s", name, self.store.save(name, self.residents[name].table))
        own = self.store.saved()
        for others in gather(own):
            foreign = {name: mark for name, mark in others.items() if self.shared or name not in self._trained_this_epoch}
            newer = {name: mark for name, mark in foreign.items() if own.get(name) != mark}
            self.store.take_over(newer)
            for name in newer:
                if self.shared:
                    self.residents[name].table.changed = False  # the first process has saved the same
                else:
                    self.residents.pop(name, None)  # it was trained elsewhere since

    # ---------------------------------------------------------------- checkpoints
    def state(self, steps: int, history: bool) -> TableState:
        """What a checkpoint needs besides the saved files, of all processes; every process must ask. From now on it refers to these files.

        Args:
            steps: of the optimiser of the tables.
            history: what the optimiser knows is needed also where a table is as saved.
        """
        tables = {
            name: SavedTable.of(scene.table, history or scene.table.changed)
            for name, scene in self.residents.items()
            if history or scene.table.changed
        }
        own = TableState(steps, self.store.saved(), tables, (tuple(self.residents),), (tuple(sorted(self._trained_this_epoch)),))
        together = TableState.together(gather(own))
        self.store.refer(together.saved)
        return together

    def go_on(self, state: TableState, folder: Path | None) -> None:
        """Takes over what belongs to a checkpoint; ``folder`` has the saved files of the run that is continued. See ``open_again``."""
        self.store.go_on(state.saved, folder)
        self._told = dict(state.tables)
        if len(state.residents) == process_count():
            self._to_open = state.residents[process_rank()]
            self._trained_this_epoch = set(state.trained[process_rank()])

    def open_again(self) -> None:
        """Opens the scenes that were open, in their order."""
        for name in self._to_open:
            self.resident(name, training=name in self._trained_this_epoch)
        self._to_open = ()


def clipped(gradient: Float[Tensor, "m q"], limit: float | None) -> Float[Tensor, "m q"]:
    """The gradient of a table, no longer than ``limit`` as a whole; None does not limit it."""
    return gradient * min(1.0, limit / (gradient.norm().item() + 1e-6)) if limit else gradient
