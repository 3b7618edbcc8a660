"""Tables of the scenes that a run works on: opened when needed, learned from the rows that views see, saved after every epoch.

Symbols: m points that won a pixel in this step, q numbers per point.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.systems.descriptors import DescriptorStore, ResidentScene, unique_rows
from npbgpp.systems.visible import Gathered

log = logging.getLogger(__name__)


class SceneTables:
    """The scenes on the device, and the gradients that belong to their tables.

    Args:
        store: where tables come from and go to.
        open_scene: brings a scene to the device; told whether it is to be trained.
        limit: scenes on the device at a time; more only where an epoch trains more.

    Attributes:
        residents: the scenes on the device.
    """

    def __init__(self, store: DescriptorStore, open_scene: Callable[[str, bool], ResidentScene], limit: int) -> None:
        self.store, self._open, self._limit = store, open_scene, limit
        self.residents: dict[str, ResidentScene] = {}
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
        if self.store.read_saved and not any(self.store.has(scene) for scene in trained):
            raise InputError(
                f"trainer.resume_from_checkpoint: expected descriptors of {', '.join(trained)} in {self.store.save_dir}, found none; go on in the folder of the "
                "interrupted run (hydra.run.dir), or name its descriptors with system.descriptors_pretrained_dir"
            )
        for scene in required:
            self.store.require(scene)
        for scene in validated:
            if scene not in trained and not self.store.has(scene):
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
            self.residents[scene] = self._open(scene, training)
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
        merged = []
        for name in dict.fromkeys(name for name, _, _ in self._pending):
            parts = [(seen, gradient) for other, seen, gradient in self._pending if other == name]
            if len(parts) == 1:
                merged.append((name, *parts[0]))
                continue
            rows, position = unique_rows(torch.cat([seen for seen, _ in parts]), self.residents[name].slot)
            total = parts[0][1].new_zeros(len(rows), self.store.dim)
            merged.append((name, rows, total.index_add_(0, position, torch.cat([gradient for _, gradient in parts]))))
        self._pending.clear()
        return merged

    def save_trained(self) -> None:
        """Saves the tables of every scene of the epoch."""
        for name in sorted(self._trained_this_epoch):
            path = self.store.save(name, self.residents[name].table)
            log.info("descriptors of scene %s: %s", name, path)


def clipped(gradient: Float[Tensor, "m q"], limit: float | None) -> Float[Tensor, "m q"]:
    """The gradient of a table, no longer than ``limit`` as a whole; None does not limit it."""
    return gradient * min(1.0, limit / (gradient.norm().item() + 1e-6)) if limit else gradient
