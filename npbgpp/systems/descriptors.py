"""Descriptors of the scenes of a run: which are in memory, where they come from, where they are saved.

Only the scenes that are being worked on are on the device. A scene's table is as large as its cloud; nothing is padded to the largest one.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.files import load_tensors, read_mark, save_tensors
from npbgpp.optim import RowTable
from npbgpp.render.blocks import BlockedCloud

_EARLIER = "earlier"
CLOUD_KEY = "cloud"  # of the mark of a descriptor file; its value is the checksum of the cloud
_DIGEST_KEY = "digest"  # of the same mark: tells versions of a file apart without reading them


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


def digest(values: Float[Tensor, "n c"]) -> str:
    """Tells descriptors apart."""
    return hashlib.blake2b(values.detach().cpu().contiguous().numpy().data, digest_size=16).hexdigest()


class DescriptorStore:
    """Loads, keeps and saves descriptor tables ``<folder>/<scene>.pth``, each a float32 tensor (n, c).

    The version that the last checkpoint refers to is kept as ``<folder>/earlier/<scene>.pth`` until there is a newer checkpoint.

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
        self._saved: dict[str, str] = {}  # digests of the files of this run
        self._kept: dict[str, str] = {}  # digests of those that the last checkpoint refers to
        self._clouds: dict[str, str] = {}  # checksums of the clouds, by scene
        self._continued: Path | None = None  # descriptors of the run that is continued

    def belong(self, scene: str, cloud: str) -> None:
        """Descriptors of a scene belong to the cloud of this checksum: files of another one are refused, those without a checksum are taken."""
        self._clouds[scene] = cloud

    def saved(self) -> dict[str, str]:
        """Digests of the descriptors that this run has saved, by scene."""
        return dict(self._saved)

    def refer(self, digests: Mapping[str, str]) -> None:
        """A checkpoint refers to these files: they stay readable, wherever the run is stopped, until the next one does."""
        self._saved |= digests
        self._kept = dict(digests)

    def take_over(self, digests: Mapping[str, str]) -> None:
        """Other processes have saved these."""
        self._saved |= digests

    def go_on(self, digests: Mapping[str, str], folder: Path | None) -> None:
        """A resumed run takes the files that its checkpoint refers to, also those of the ``folder`` of the run that is continued, and no others."""
        self.read_saved, self._continued = False, folder
        self.refer(digests)

    def _find(self, scene: str) -> Path | None:
        folders = [self.save_dir] if self.read_saved else []
        folders += [self.pretrained_dir] if self.pretrained_dir is not None else []
        return next((path for folder in folders if (path := folder / f"{scene}.pth").is_file()), None)

    def has(self, scene: str) -> bool:
        """Whether saved descriptors of a scene would be taken."""
        return scene in self._saved or self._find(scene) is not None

    def initial_values(self, scene: str, points: int) -> Float[Tensor, "n c"] | None:
        """Saved descriptors of a scene, or None when there are none.

        Raises:
            InputError: they belong to another cloud, or are not those that this run, or its checkpoint, refers to.
        """
        if scene in self._saved:
            return self._referred(scene, points)
        path = self._find(scene)
        return None if path is None else self._read(path, scene, points)

    def _referred(self, scene: str, points: int) -> Float[Tensor, "n c"]:
        folders = [folder for folder in (self.save_dir, self._continued, self.pretrained_dir) if folder is not None]
        # the earlier one is the right one where the run was stopped between saving descriptors and writing its checkpoint
        paths = [path for folder in folders for path in (folder / f"{scene}.pth", folder / _EARLIER / f"{scene}.pth") if path.is_file()]
        for path in paths:
            told = read_mark(path).get(_DIGEST_KEY)
            if told not in (None, self._saved[scene]):
                continue
            values = self._read(path, scene, points)
            if told is not None or digest(values) == self._saved[scene]:  # files of earlier versions do not say
                return values
        raise InputError(
            f"descriptors of scene {scene}: expected those that the checkpoint was saved with, got {'others' if paths else 'none'} in "
            f"{' and '.join(map(str, folders))}; resume from the last checkpoint of the run, or begin with what there is: weights_path=<checkpoint> "
            "system.descriptors_pretrained_dir=<folder>"
        )

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
        cloud, made_for = self._clouds.get(scene), read_mark(path).get(CLOUD_KEY)
        if cloud is not None and made_for is not None and made_for != cloud:
            raise InputError(
                f"descriptors {path}: expected those of the cloud of scene {scene} (checksum {cloud}), got those of another cloud with as many points "
                f"({made_for}); use the cloud file, datasets.n_point and datasets.noise_sigma that they were made with, or train the scene anew"
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

    def open(
        self,
        scene: str,
        xyz_world: Float[Tensor, "n 3"],
        device: torch.device,
        required: bool,
        values: Float[Tensor, "n c"] | None = None,
    ) -> ResidentScene:
        """Brings a scene to the device with ``values``, else its saved descriptors, else zeros.

        Raises:
            InputError: ``required`` and no saved descriptors, or more points than ``max_points``.
        """
        if values is None:
            if required:
                self.require(scene)
            values = self._values(scene, xyz_world)
        values = torch.zeros(len(xyz_world), self.dim) if values is None else values
        return self._resident(xyz_world.to(device), values.to(device), None)

    def open_coefficients(
        self,
        scene: str,
        xyz_world: Float[Tensor, "n 3"],
        device: torch.device,
        first: int,
        values: Float[Tensor, "n c"] | None = None,
    ) -> ResidentScene:
        """Brings a scene to the device with ``values``, else its saved coefficients. Points whose coefficients from ``first`` on are all zero are not drawn.

        Raises:
            InputError: no saved coefficients, none that is not zero, or more points than ``max_points``.
        """
        if values is None:
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
        path, values = self.save_dir / f"{scene}.pth", table.values.detach().cpu().contiguous()
        kept, current = self._kept.get(scene), self._saved.get(scene)
        if kept is not None and kept == current and path.is_file():
            earlier = self.save_dir / _EARLIER / path.name
            earlier.parent.mkdir(exist_ok=True)
            earlier.unlink(missing_ok=True)
            os.link(path, earlier)
        self._saved[scene] = digest(values)
        save_tensors(path, values, {_DIGEST_KEY: self._saved[scene]} | ({CLOUD_KEY: self._clouds[scene]} if scene in self._clouds else {}))
        table.changed = False
        return path

    def refuse_leftovers(self, scenes: Sequence[str]) -> None:
        """Raises InputError when ``save_dir`` already holds descriptors of scenes about to be trained: they are of another run and would be replaced."""
        found = [scene for scene in scenes if (self.save_dir / f"{scene}.pth").exists()]
        if found and self.save_dir != self.pretrained_dir:
            raise InputError(
                f"system.descriptors_save_dir={self.save_dir}: already holds descriptors of {', '.join(found)} from an earlier run; choose another hydra.run.dir, "
                f"go on from them with system.descriptors_pretrained_dir={self.save_dir}, or replace them with system.overwrite_descriptors=true"
            )
