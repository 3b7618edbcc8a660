"""Descriptors of the scenes of a run: which are in memory, where they come from, where they are saved.

Only the scenes that are being worked on are on the device. A scene's table is as large as its cloud; nothing is padded to the largest one.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from npbgpp.core.distributed import gather, process_count, process_rank
from npbgpp.core.files import load_tensors, read_mark, save_tensors
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras
from npbgpp.kernels import ChunkedCloud
from npbgpp.nets import Aggregator, PointDirections
from npbgpp.points.sparse_optim import SparseParameter

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

    cloud: ChunkedCloud
    table: SparseParameter
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
        return ResidentScene(ChunkedCloud.build(xyz_world, rows=drawn), SparseParameter(values), slot, None if drawn is None else xyz_world)

    def save(self, scene: str, table: SparseParameter) -> Path:
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


# ----------------------------------------------------------------------
# What a checkpoint holds of the tables of scenes: references to their saved files, and tables that are not as saved.


@dataclass(frozen=True)
class SavedTable:
    """A table in a checkpoint; see SparseParameter.

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
    def of(cls, table: SparseParameter, history: bool) -> "SavedTable":
        """What is to be kept of a table besides its file."""
        past = (table.square_average, table.last_step, table.mean) if history else (None, None, None)
        return cls(*(None if part is None else part.cpu().clone() for part in (table.values if table.changed else None, *past)))

    def continue_in(self, table: SparseParameter) -> None:
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


# ----------------------------------------------------------------------
# From point indices per pixel to the descriptors that a step needs: those of the winning points, once each.


@dataclass(frozen=True)
class Part:
    """Rows of one scene's table within ``Gathered.values``.

    Attributes:
        scene: its name.
        points: rows of its table.
        where: where they lie in ``Gathered.values``.
        view: the view that sees them, None when several views of the scene share the part.
    """

    scene: str
    points: Int[Tensor, " _"]
    where: slice
    view: int | None


@dataclass(frozen=True)
class Gathered:
    """Table rows of what b views see.

    Attributes:
        values: rows of the tables of the m points that won a pixel; for learning a leaf, where gradients stop.
        rows: per level, the row of ``values`` that every cell shows, -1 where it is empty.
        parts: where the rows come from.
    """

    values: Float[Tensor, "m q"]
    rows: tuple[Int[Tensor, "b _ _"], ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Visible:
    """What b views see.

    Attributes:
        descriptors: of the m points that won a pixel.
        rows: per level, the row of ``descriptors`` that every cell shows, -1 where it is empty.
        gathered: the table rows that the descriptors were made of, where they come from tables.
    """

    descriptors: Float[Tensor, "m c"]
    rows: tuple[Int[Tensor, "b _ _"], ...]
    gathered: Gathered | None = None


def gather_visible(
    maps: Sequence[Int[Tensor, "b _ _"]], scenes: Sequence[str], residents: Mapping[str, ResidentScene], learn: bool, by_view: bool = False
) -> Gathered:
    """Collects the table rows of the winning points, for learning those of a point once, however many views and levels see it.

    Args:
        maps: per level, index of the point that each cell of each view shows, -1 where it is empty.
        scenes: scene of each view.
        residents: the scenes. Their tables may be on another device than the maps.
        learn: let gradients reach ``Gathered.values``.
        by_view: a part per view, because what is made of a row depends on who looks.
    """
    sizes = [level[0].numel() for level in maps]
    # all levels of a view side by side: (b, cells)
    index = torch.cat([level.flatten(1) for level in maps], 1)
    rows = torch.full_like(index, -1)
    parts, values, start = [], [], 0
    groups = [[k] for k in range(len(scenes))] if by_view else [[k for k, s in enumerate(scenes) if s == n] for n in dict.fromkeys(scenes)]
    for views in groups:
        name = scenes[views[0]]
        scene = residents[name]
        for_all = len(views) == len(scenes)
        cells = index.view(-1) if for_all else index[views].view(-1)
        hit = (cells >= 0).nonzero()[:, 0]
        winners = cells.index_select(0, hit)
        # without gradients to sum up, looking a descriptor up twice is cheaper than finding out that it is the same
        if learn or by_view:
            seen, position = unique_rows(winners, scene.slot)
        else:
            seen, position = winners, torch.arange(len(winners), device=winners.device)
        found = torch.full_like(cells, -1).scatter_(0, hit, position.add_(start))
        if for_all:
            rows = found.view_as(rows)
        else:
            rows[views] = found.view(len(views), -1)
        table = scene.table.values
        values.append(table.index_select(0, seen.to(table.device)).to(index.device))
        parts.append(Part(name, seen, slice(start, start + len(seen)), views[0] if by_view else None))
        start += len(seen)
    levels = [flat.reshape(level.shape) for flat, level in zip(rows.split(sizes, 1), maps, strict=True)]
    rows_of_tables = values[0] if len(values) == 1 else torch.cat(values)
    return Gathered(rows_of_tables.requires_grad_(learn), tuple(levels), tuple(parts))


def describe(gathered: Gathered, residents: Mapping[str, ResidentScene], aggregator: Aggregator, cameras: Cameras) -> Visible:
    """Evaluates coefficients, gathered by view, for the views that look at them."""
    descriptors = []
    for part in gathered.parts:
        assert part.view is not None
        xyz_world = residents[part.scene].xyz_world
        assert xyz_world is not None
        looked = point_directions(xyz_world.index_select(0, part.points), cameras[part.view])
        descriptors.append(aggregator.evaluate(gathered.values[part.where], looked))
    return Visible(torch.cat(descriptors), gathered.rows, gathered)


def point_directions(xyz_world: Float[Tensor, "v 3"], camera: Cameras) -> PointDirections:
    """Points as one camera looks at them."""
    return PointDirections(xyz_world - camera.centers(), camera.R[:, :, 2])


# ----------------------------------------------------------------------
# Tables of the scenes that a run works on: opened when needed, learned from the rows that views see, saved after every epoch.


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
