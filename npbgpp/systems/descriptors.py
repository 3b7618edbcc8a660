"""Descriptors of the scenes of a run: which are in memory, where they come from, where they are saved.

Only the scenes that are being worked on are on the device. A scene's table is as large as its cloud; nothing is padded to the largest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.files import load_tensors, save_tensors
from npbgpp.optim import RowTable
from npbgpp.render.blocks import BlockedCloud


@dataclass
class ResidentScene:
    """A scene on the device.

    Attributes:
        cloud: what is drawn.
        table: descriptors, or the coefficients that they are computed from, of every point of the cloud file.
        slot: scratch for ``unique_rows``.
        xyz_world: points of the cloud file, kept where descriptors depend on the direction looked from.
    """

    cloud: BlockedCloud
    table: RowTable
    slot: Int[Tensor, " n"]
    xyz_world: Float[Tensor, "n 3"] | None = None


def unique_rows(index: Int[Tensor, " k"], slot: Int[Tensor, " n"]) -> tuple[Int[Tensor, " m"], Int[Tensor, " k"]]:
    """Distinct values of ``index`` and the position of each entry among them, like ``torch.unique`` without sorting and without an order.

    ``slot`` is scratch of one entry per possible value; its content does not matter and need not be cleared. Costs k, not n.
    """
    position = torch.arange(len(index), dtype=slot.dtype, device=slot.device)
    slot.scatter_(0, index, position)  # of equal entries, one position stays
    rows = index.index_select(0, (slot.index_select(0, index) == position).nonzero()[:, 0])
    slot.scatter_(0, rows, position[: len(rows)])
    return rows, slot.index_select(0, index).long()


class DescriptorStore:
    """Loads, keeps and saves descriptor tables ``<folder>/<scene>.pth``, each a float32 tensor (n, c).

    Args:
        dim: c.
        save_dir: where tables are written; created when first needed.
        pretrained_dir: where tables are looked for when ``save_dir`` has none.
        max_points: refuse clouds with more points; None takes any.
        read_saved: take tables of an earlier run from ``save_dir``; those saved by this object are always taken.
    """

    def __init__(self, dim: int, save_dir: Path, pretrained_dir: Path | None, max_points: int | None, read_saved: bool) -> None:
        self.dim, self.save_dir, self.pretrained_dir, self.max_points = dim, save_dir, pretrained_dir, max_points
        self.read_saved = read_saved
        self._saved: set[str] = set()

    def _find(self, scene: str) -> Path | None:
        folders = [self.save_dir] if self.read_saved or scene in self._saved else []
        folders += [self.pretrained_dir] if self.pretrained_dir is not None else []
        return next((path for folder in folders if (path := folder / f"{scene}.pth").is_file()), None)

    def has(self, scene: str) -> bool:
        """Whether saved descriptors of a scene would be taken."""
        return self._find(scene) is not None

    def initial_values(self, scene: str, points: int) -> Float[Tensor, "n c"] | None:
        """Saved descriptors of a scene, or None when neither folder has any. Raises InputError when they belong to another cloud."""
        path = self._find(scene)
        return None if path is None else self._read(path, scene, points)

    def _read(self, path: Path, scene: str, points: int) -> Float[Tensor, "n c"]:
        values = load_tensors(path, "descriptors")
        if not isinstance(values, Tensor) or values.dim() != 2:
            raise InputError(
                f"descriptors {path}: expected a tensor (points, {self.dim}), got {type(values).__name__}; delete or replace the file"
            )
        if tuple(values.shape) != (points, self.dim):
            raise InputError(
                f"descriptors {path}: expected {points} x {self.dim} for the cloud of scene {scene}, got {' x '.join(map(str, values.shape))}; they belong to "
                "another cloud, n_point, descriptor_dim or aggregator"
            )
        if not torch.isfinite(values).all():
            raise InputError(f"descriptors {path}: some values are not finite; train the scene again")
        return values.float()

    def require(self, scene: str) -> None:
        """Raises InputError when a scene has no saved descriptors."""
        if not self.has(scene):
            places = " and ".join(str(f) for f in (self.save_dir, self.pretrained_dir) if f is not None)
            raise InputError(
                f"descriptors of scene {scene}: expected {scene}.pth in {places}, found none; train the scene first (for coefficients: evaluate it with an NPBG++ "
                "system, eval_only=true), or name the folder of its descriptors with system.descriptors_pretrained_dir"
            )

    def open(self, scene: str, xyz_world: Float[Tensor, "n 3"], device: torch.device, required: bool) -> ResidentScene:
        """Brings a scene to the device with its saved descriptors, else zeros.

        Raises:
            InputError: ``required`` and no saved descriptors, or more points than ``max_points``.
        """
        if required:
            self.require(scene)
        values = self._values(scene, xyz_world)
        values = torch.zeros(len(xyz_world), self.dim) if values is None else values
        return self._resident(xyz_world.to(device), values.to(device), None)

    def open_coefficients(self, scene: str, xyz_world: Float[Tensor, "n 3"], device: torch.device, first: int) -> ResidentScene:
        """Brings a scene to the device with its saved coefficients. Points whose coefficients from ``first`` on are all zero are not drawn.

        Raises:
            InputError: no saved coefficients, none that is not zero, or more points than ``max_points``.
        """
        self.require(scene)
        values = self._values(scene, xyz_world)
        assert values is not None
        drawn = values[:, first:].any(1).nonzero()[:, 0].to(device)
        if len(drawn) == 0:
            raise InputError(
                f"coefficients of scene {scene}: expected some that are not zero, got none in {len(values)} points; no photo saw the cloud when they were made: "
                "evaluate the scene again with an NPBG++ system"
            )
        return self._resident(xyz_world.to(device), values.to(device), drawn)

    def _values(self, scene: str, xyz_world: Float[Tensor, "n 3"]) -> Float[Tensor, "n c"] | None:
        points = len(xyz_world)
        if self.max_points is not None and points > self.max_points:
            raise InputError(
                f"system.max_points: scene {scene} has {points} points, more than {self.max_points}; raise system.max_points (null: no limit) or thin the cloud "
                "with datasets.n_point"
            )
        return self.initial_values(scene, points)

    @staticmethod
    def _resident(xyz_world: Float[Tensor, "n 3"], values: Float[Tensor, "n c"], drawn: Int[Tensor, " r"] | None) -> ResidentScene:
        slot = torch.empty(len(values), dtype=torch.int32, device=values.device)
        return ResidentScene(BlockedCloud.build(xyz_world, rows=drawn), RowTable(values), slot, None if drawn is None else xyz_world)

    def save(self, scene: str, table: RowTable) -> Path:
        """Writes the descriptors of a scene."""
        path = self.save_dir / f"{scene}.pth"
        save_tensors(path, table.values.detach().cpu().contiguous())
        self._saved.add(scene)
        return path

    def refuse_leftovers(self, scenes: Sequence[str]) -> None:
        """Raises InputError when ``save_dir`` already holds descriptors of scenes about to be trained: they are of another run and would be replaced."""
        found = [scene for scene in scenes if (self.save_dir / f"{scene}.pth").exists()]
        if found and self.save_dir != self.pretrained_dir:
            raise InputError(
                f"system.descriptors_save_dir={self.save_dir}: already holds descriptors of {', '.join(found)} from an earlier run; choose another hydra.run.dir, "
                f"go on from them with system.descriptors_pretrained_dir={self.save_dir}, or replace them with system.overwrite_descriptors=true"
            )
