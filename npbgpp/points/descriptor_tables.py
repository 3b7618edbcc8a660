"""Descriptors of the points of every scene: a sparse parameter per scene, of which a step reads and updates the rows that its views see.

Only the scenes in use are on the device; the others are in files ``<scene>.pth``, float32 tensors (n, q).

Symbols: b views, n points of a scene, q parameters of a point, m points that won a pixel in this step, c channels of a descriptor.
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

from npbgpp.core.distributed import gather, gather_tensors, process_count, process_rank
from npbgpp.core.files import load_tensors, read_mark, save_tensors
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras
from npbgpp.kernels.rasterization import ChunkedCloud
from npbgpp.nets import Aggregator, PointDirections
from npbgpp.points.front_points import FrontPoints
from npbgpp.points.sparse_optim import SparseAdam, SparseParameter, SparseRMSprop

log = logging.getLogger(__name__)

CLOUD_KEY = "cloud"  # metadata of a descriptor file: checksum of the cloud
_DIGEST_KEY = "digest"  # metadata of a descriptor file: identifies its version without reading the tensor
_PREVIOUS = "earlier"  # subfolder with the files that the last checkpoint refers to
_STATE = ("values", "square_average", "last_step", "mean")  # fields of SparseParameter in checkpoints


@dataclass
class ResidentScene:
    """A scene on the device.

    Attributes:
        cloud: the points that are drawn.
        table: descriptors, or the coefficients that they are computed from, of every point of the cloud file.
        slot: scratch for ``unique_rows``.
        xyz_world: points of the cloud file, where descriptors depend on the viewing direction; else None.
    """

    cloud: ChunkedCloud
    table: SparseParameter
    slot: Int[Tensor, " n"]
    xyz_world: Float[Tensor, "n 3"] | None = None


# ---------------------------------------------------------------- gathering rows


def unique_rows(index: Int[Tensor, " k"], slot: Int[Tensor, " n"]) -> tuple[Int[Tensor, " m"], Int[Tensor, " k"]]:
    """Distinct values of ``index`` in any order and the position of each entry among them: ``torch.unique`` in O(k), without sorting.

    ``slot`` is scratch with one entry per possible value; it need not be initialised.
    """
    position = torch.arange(len(index), dtype=slot.dtype, device=slot.device)
    slot.scatter_(0, index, position)  # of equal entries, one position stays
    rows = index.index_select(0, (slot.index_select(0, index) == position).nonzero()[:, 0])
    slot.scatter_(0, rows, position[: len(rows)])
    return rows, slot.index_select(0, index).long()


@dataclass(frozen=True)
class Part:
    """Rows of one scene's table within ``Gathered.values``.

    Attributes:
        scene: its name.
        points: rows of its table.
        where: their place in ``Gathered.values``.
        view: the view that sees them; None if the views of the scene share the part.
    """

    scene: str
    points: Int[Tensor, " _"]
    where: slice
    view: int | None


@dataclass(frozen=True)
class Gathered:
    """Table rows of the points that b views see.

    Attributes:
        values: rows of the m points that won a pixel; a leaf of the graph in training.
        rows: per level, the row of ``values`` of every cell, -1 for empty cells.
        parts: the origin of the rows.
    """

    values: Float[Tensor, "m q"]
    rows: tuple[Int[Tensor, "b _ _"], ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Visible:
    """Descriptors of the points that b views see.

    Attributes:
        descriptors: of the m points that won a pixel.
        rows: per level, the row of ``descriptors`` of every cell, -1 for empty cells.
        gathered: the table rows that the descriptors were computed from; None for descriptors without tables.
        front: per level, the rows of the nearest points of every cell, where several are blended; else empty.
    """

    descriptors: Float[Tensor, "m c"]
    rows: tuple[Int[Tensor, "b _ _"], ...]
    gathered: Gathered | None = None
    front: tuple[FrontPoints, ...] = ()


def gather_visible(
    maps: Sequence[Int[Tensor, "b _ _"]], scenes: Sequence[str], residents: Mapping[str, ResidentScene], learn: bool, by_view: bool = False
) -> Gathered:
    """Gathers the table rows of the winning points; in training once per point, however many views and levels see it.

    Args:
        maps: per level, the point index of each cell of each view, -1 for empty cells.
        scenes: scene of each view.
        residents: the scenes. Their tables may be on another device than the maps.
        learn: let gradients reach ``Gathered.values``.
        by_view: one part per view, for descriptors that depend on the viewing direction.
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
        all_views = len(views) == len(scenes)
        cells = index.view(-1) if all_views else index[views].view(-1)
        hit = (cells >= 0).nonzero()[:, 0]
        winners = cells.index_select(0, hit)
        # without gradients to sum, gathering a row twice is cheaper than removing duplicates
        if learn or by_view:
            points, position = unique_rows(winners, scene.slot)
        else:
            points, position = winners, torch.arange(len(winners), device=winners.device)
        found = torch.full_like(cells, -1).scatter_(0, hit, position.add_(start))
        if all_views:
            rows = found.view_as(rows)
        else:
            rows[views] = found.view(len(views), -1)
        table = scene.table.values
        values.append(table.index_select(0, points.to(table.device)).to(index.device))
        parts.append(Part(name, points, slice(start, start + len(points)), views[0] if by_view else None))
        start += len(points)
    levels = [flat.reshape(level.shape) for flat, level in zip(rows.split(sizes, 1), maps, strict=True)]
    gathered = values[0] if len(values) == 1 else torch.cat(values)
    return Gathered(gathered.requires_grad_(learn), tuple(levels), tuple(parts))


def describe(gathered: Gathered, residents: Mapping[str, ResidentScene], aggregator: Aggregator, cameras: Cameras) -> Visible:
    """Evaluates coefficients that were gathered by view in the viewing directions of ``cameras``."""
    descriptors = []
    for part in gathered.parts:
        assert part.view is not None
        xyz_world = residents[part.scene].xyz_world
        assert xyz_world is not None
        directions = point_directions(xyz_world.index_select(0, part.points), cameras[part.view])
        descriptors.append(aggregator.evaluate(gathered.values[part.where], directions))
    return Visible(torch.cat(descriptors), gathered.rows, gathered)


def point_directions(xyz_world: Float[Tensor, "v 3"], camera: Cameras) -> PointDirections:
    """Viewing directions of points from one camera."""
    return PointDirections(xyz_world - camera.centers(), camera.R[:, :, 2])


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class ScenePoints:
    """The cloud of a scene that is opened.

    Attributes:
        xyz_world: points on the device that the table is kept on.
        checksum: identifies the cloud: descriptor files of a cloud with another checksum are refused; None is not compared.
    """

    xyz_world: Float[Tensor, "n 3"]
    checksum: str | None = None


@dataclass(frozen=True)
class DescriptorFolders:
    """Folders of the files ``<scene>.pth``.

    Attributes:
        save: written; created when first needed.
        pretrained: searched for tables that ``save`` lacks.
        resumed: of the run that is resumed, searched for the files that its checkpoint refers to.
        reuse: read tables of an earlier run from ``save``; those saved by this run are always read.
    """

    save: Path
    pretrained: Path | None = None
    resumed: Path | None = None
    reuse: bool = False


def digest(values: Float[Tensor, "n q"]) -> str:
    """Hash of a table."""
    return hashlib.blake2b(values.detach().cpu().contiguous().numpy().data, digest_size=16).hexdigest()


def _is_version(path: Path, version: str) -> bool:
    """Whether a file holds a version of a table; False for a missing or damaged file."""
    if not path.is_file():
        return False
    found = read_mark(path).get(_DIGEST_KEY)
    if found is None:  # of an old version
        try:
            found = digest(load_tensors(path, "descriptors"))
        except (InputError, AttributeError, TypeError):
            return False
    return found == version


class DescriptorTables:
    """Per-scene parameters: residency on the device, gradients and updates, files, and the state in checkpoints.

    Every epoch trains some scenes and saves their tables at its end. A checkpoint refers to these files by digest and holds only the state that they lack;
    files that the last checkpoint refers to are kept in ``earlier/`` until there is a newer one.

    Args:
        dim: q.
        folders: where tables are read and saved.
        optimizer: updates the rows; its state is kept per scene, its step counter here.
        read_cloud: reads the points of a scene.
        max_resident: scenes on the device at a time; exceeded only if an epoch trains more.
        max_points: refuse clouds with more points; None: no limit.
        keep_history: keep the optimizer state between epochs; else it is reset before every epoch.
        drawn_from: None: descriptors, zero in scenes without a file. Otherwise coefficients: scenes need a file, and points whose parameters are zero
            from this column on are not drawn.

    Attributes:
        residents: the scenes on the device.
        shared: several processes may train the same scene. Then every process opens every scene that one of them trains and takes all steps, so that tables
            and optimizer states stay equal.
    """

    def __init__(
        self,
        dim: int,
        folders: DescriptorFolders,
        optimizer: SparseRMSprop | SparseAdam,
        read_cloud: Callable[[str], ScenePoints],
        *,
        max_resident: int = 1,
        max_points: int | None = None,
        keep_history: bool = True,
        drawn_from: int | None = None,
    ) -> None:
        self.dim, self.folders, self.optimizer, self._read_cloud = dim, folders, optimizer, read_cloud
        self._max_resident, self._max_points, self._keep_history, self._drawn_from = max_resident, max_points, keep_history, drawn_from
        self.residents: dict[str, ResidentScene] = {}
        self.shared = False
        self.suggested: Path | None = None  # folder where missing files may lie, for messages
        self._reuse = folders.reuse
        self._digests: dict[str, str] = {}  # of the files of this run
        self._referenced: dict[str, str] = {}  # of the files that the last checkpoint refers to
        self._checksums: dict[str, str | None] = {}  # of the clouds
        self._restored: dict[str, dict[str, Tensor | None]] = {}  # tables of a checkpoint that are not open yet
        self._to_open: Sequence[str] = ()
        self._training = False
        self._trained: set[str] = set()  # in this epoch
        self._gradients: list[tuple[str, Tensor, Tensor]] = []  # scene, rows, gradient
        self._advice = (
            "resume from the last checkpoint of the run, or begin with what there is: weights_path=<checkpoint> "
            "system.descriptors_pretrained_dir=<folder>"
        )

    # ---------------------------------------------------------------- training
    def begin_training(self, trained: Sequence[str], validated: Sequence[str], overwrite: bool) -> None:
        """Checks a run before it trains.

        Raises:
            InputError: files of an earlier run in the save folder without ``overwrite``, coefficients without a file, or validation of scenes without
                descriptors.
        """
        save, pretrained = self.folders.save, self.folders.pretrained
        found = [scene for scene in trained if (save / f"{scene}.pth").exists()]
        if found and save != pretrained and not overwrite and not self._reuse:
            raise InputError(
                f"system.descriptors_save_dir={save}: already holds descriptors of {', '.join(found)} from an earlier run; choose another hydra.run.dir, "
                f"go on from them with system.descriptors_pretrained_dir={save}, or replace them with system.overwrite_descriptors=true"
            )
        for scene in trained if self._drawn_from is not None else ():
            self._require_saved(scene)
        for scene in validated:
            # with _reuse, the checkpoint that is loaded later may refer to a file
            if scene not in trained and not self._has_saved(scene) and not self._reuse:
                raise InputError(
                    f"datasets.scenes.val: scene {scene} is not trained in this run and has no saved descriptors, so it cannot be rendered: validate on a "
                    "trained scene, name its descriptors with system.descriptors_pretrained_dir, or set trainer.limit_val_batches=0"
                )
        self._training = True

    def begin_epoch(self) -> None:
        """Starts an epoch, in which no scene has been trained yet."""
        self._trained.clear()
        if not self._keep_history:
            self.optimizer.steps = 0
            for scene in self.residents.values():
                scene.table.reset_state()

    def end_training(self) -> None:
        """From now on every scene needs descriptors to be rendered."""
        self._training = False

    def can_render(self, scene: str) -> bool:
        """False for scenes that this run trains in a later epoch."""
        if scene in self.residents or self._has_saved(scene) or not self._training:
            return True
        log.info("validation of scene %s skipped: its first training epoch is still to come", scene)
        return False

    def resident(self, scene: str, training: bool) -> ResidentScene:
        """The scene on the device; opening it may evict one that this epoch does not train.

        Raises:
            InputError: no usable file of a scene that needs one, or more points than ``max_points``.
        """
        if scene not in self.residents:
            idle = [name for name in self.residents if name not in self._trained]
            if len(self.residents) >= self._max_resident and idle:
                del self.residents[idle[0]]
            self.residents[scene] = self._open(scene, training)
        if training:
            self._trained.add(scene)
        return self.residents[scene]

    def gather(self, maps: Sequence[Int[Tensor, "b _ _"]], scenes: Sequence[str], learn: bool) -> Gathered:
        """Rows of the winning points of resident scenes, see ``gather_visible``; coefficients by view."""
        return gather_visible(maps, scenes, self.residents, learn, by_view=self._drawn_from is not None)

    def accumulate(self, gathered: Gathered) -> None:
        """Keeps the gradients of gathered rows until the next step."""
        gradient = gathered.values.grad
        if gradient is not None:
            self._gradients += [(part.scene, part.points, gradient[part.where]) for part in gathered.parts]

    def step(self, lr: float, clip: float | None = None) -> None:
        """Updates the rows with accumulated gradients. ``clip``: largest norm of the gradient of a table."""
        self.optimizer.lr = lr
        self.optimizer.begin_step()
        for scene, rows, gradient in self._merged_gradients():
            if clip:
                gradient = gradient * min(1.0, clip / (gradient.norm().item() + 1e-6))
            self.optimizer.update(self.residents[scene].table, rows, gradient)

    def _merged_gradients(self) -> list[tuple[str, Int[Tensor, " m"], Float[Tensor, "m q"]]]:
        """Accumulated gradients per scene, with unique rows."""
        merged, gradients = [], self._exchanged_gradients()
        for scene in dict.fromkeys(scene for scene, _, _ in gradients):
            parts = [(rows, gradient) for name, rows, gradient in gradients if name == scene]
            if len(parts) == 1:
                merged.append((scene, *parts[0]))
                continue
            rows, position = unique_rows(torch.cat([rows for rows, _ in parts]), self.residents[scene].slot)
            total = parts[0][1].new_zeros(len(rows), self.dim)
            merged.append((scene, rows, total.index_add_(0, position, torch.cat([gradient for _, gradient in parts]))))
        self._gradients.clear()
        return merged

    def _exchanged_gradients(self) -> list[tuple[str, Int[Tensor, " m"], Float[Tensor, "m q"]]]:
        """Gradients of the mean over processes: the share of this process, with ``shared`` those of all."""
        count = process_count()
        own = [(scene, rows, gradient / count) for scene, rows, gradient in self._gradients] if count > 1 else self._gradients
        if not self.shared:
            return own
        names = gather([scene for scene, _, _ in own])
        tensors = gather_tensors([tensor for _, rows, gradient in own for tensor in (rows, gradient)])
        everyone = [
            (scene, rows, gradient)
            for listed, part in zip(names, tensors, strict=True)
            for scene, rows, gradient in zip(listed, part[::2], part[1::2], strict=True)
        ]
        home = {
            scene: self.resident(scene, training=True).table.values.device for scene in dict.fromkeys(scene for scene, _, _ in everyone)
        }
        return [(scene, rows.to(home[scene]), gradient.to(home[scene])) for scene, rows, gradient in everyone]

    # ---------------------------------------------------------------- opening
    def _open(self, scene: str, training: bool) -> ResidentScene:
        points = self._read_cloud(scene)
        xyz_world, self._checksums[scene] = points.xyz_world, points.checksum
        restored = self._restored.pop(scene, {})
        values = restored.get("values")
        if values is None:
            if self._drawn_from is not None or not training:
                self._require_saved(scene)
            values = self._initial_values(scene, len(xyz_world))
        elif tuple(values.shape) != (len(xyz_world), self.dim):
            raise InputError(
                f"descriptors of scene {scene} in the checkpoint: expected {len(xyz_world)} x {self.dim} for its cloud, got "
                f"{' x '.join(map(str, values.shape))}; use the cloud file and datasets.n_point of the run"
            )
        drawn = None
        if self._drawn_from is not None:
            drawn = values[:, self._drawn_from :].any(1).nonzero()[:, 0].to(xyz_world.device)
            if len(drawn) == 0:
                raise InputError(
                    f"coefficients of scene {scene}: expected some that are not zero, got none in {len(values)} points; no photo saw the cloud when they were "
                    "made: evaluate the scene again with an NPBG++ system"
                )
        table = SparseParameter(values.to(xyz_world.device), changed=restored.get("values") is not None)
        for name in _STATE[1:]:
            state = restored.get(name)
            setattr(table, name, None if state is None else state.to(xyz_world.device))
        slot = torch.empty(len(values), dtype=torch.int32, device=xyz_world.device)
        return ResidentScene(ChunkedCloud.build(xyz_world, rows=drawn), table, slot, None if drawn is None else xyz_world)

    def _initial_values(self, scene: str, points: int) -> Float[Tensor, "n q"]:
        """Saved descriptors of a scene, else zeros."""
        if self._max_points is not None and points > self._max_points:
            raise InputError(
                f"system.max_points: scene {scene} has {points} points, more than {self._max_points}; raise system.max_points (null: no limit) or thin the "
                "cloud with datasets.n_point"
            )
        if scene in self._digests:
            return self._read_version(scene, points)
        path = self._find(scene)
        return torch.zeros(points, self.dim) if path is None else self._read(path, scene, points)

    def _find(self, scene: str) -> Path | None:
        """File of a scene that this run has not saved."""
        folders = (self.folders.save if self._reuse else None, self.folders.pretrained)
        return next((path for folder in folders if folder is not None and (path := folder / f"{scene}.pth").is_file()), None)

    def _has_saved(self, scene: str) -> bool:
        return scene in self._digests or self._find(scene) is not None

    def _require_saved(self, scene: str) -> None:
        if not self._has_saved(scene):
            places = " and ".join(str(f) for f in (self.folders.save, self.folders.pretrained) if f is not None)
            if self.suggested is not None and (self.suggested / f"{scene}.pth").is_file():
                raise InputError(
                    f"descriptors of scene {scene}: expected {scene}.pth in {places}, found none; those of the run of weights_path are in {self.suggested}: "
                    f"system.descriptors_pretrained_dir={self.suggested}"
                )
            raise InputError(
                f"descriptors of scene {scene}: expected {scene}.pth in {places}, found none; train the scene first (for coefficients: evaluate it with an NPBG++ "
                "system, eval_only=true), or name the folder of its descriptors with system.descriptors_pretrained_dir"
            )

    def _read_version(self, scene: str, points: int) -> Float[Tensor, "n q"]:
        """The version of a file that this run, or the checkpoint that it resumes, refers to."""
        folders = [folder for folder in (self.folders.save, self.folders.resumed, self.folders.pretrained) if folder is not None]
        # the previous version is right if the run was stopped between saving descriptors and writing its checkpoint
        paths = [path for folder in folders for path in (folder / f"{scene}.pth", folder / _PREVIOUS / f"{scene}.pth") if path.is_file()]
        for path in paths:
            version = read_mark(path).get(_DIGEST_KEY)
            if version not in (None, self._digests[scene]):
                continue
            values = self._read(path, scene, points)
            if version is not None or digest(values) == self._digests[scene]:  # old files have no metadata
                return values
        raise InputError(
            f"descriptors of scene {scene}: expected those that the checkpoint was saved with, got {'others' if paths else 'none'} in "
            f"{' and '.join(map(str, folders))}; {self._advice}"
        )

    def _read(self, path: Path, scene: str, points: int) -> Float[Tensor, "n q"]:
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
        checksum, saved_checksum = self._checksums.get(scene), read_mark(path).get(CLOUD_KEY)
        if checksum is not None and saved_checksum is not None and saved_checksum != checksum:
            raise InputError(
                f"descriptors {path}: expected those of the cloud of scene {scene} (checksum {checksum}), got those of another cloud with as many points "
                f"({saved_checksum}); use the cloud file, datasets.n_point and datasets.noise_sigma that they were made with, or train the scene anew"
            )
        if not torch.isfinite(values).all():
            raise InputError(f"descriptors {path}: some values are not finite; train the scene again")
        return values.float()

    # ---------------------------------------------------------------- saving
    def save(self, scene: str) -> Path:
        """Writes the file of a resident scene and returns its path."""
        table = self.residents[scene].table
        path, values = self.folders.save / f"{scene}.pth", table.values.detach().cpu().contiguous()
        referenced = self._referenced.get(scene)
        # a run that was stopped before its checkpoint leaves a file here that no checkpoint refers to, beside the one that the last checkpoint needs
        if referenced is not None and _is_version(path, referenced):
            previous = self.folders.save / _PREVIOUS / path.name
            previous.parent.mkdir(exist_ok=True)
            previous.unlink(missing_ok=True)
            os.link(path, previous)
        self._write(scene, path, values)
        table.changed = False
        return path

    def _write(self, scene: str, path: Path, values: Float[Tensor, "n q"]) -> None:
        metadata = {_DIGEST_KEY: digest(values)}
        checksum = self._checksums.get(scene)
        save_tensors(path, values, metadata if checksum is None else metadata | {CLOUD_KEY: checksum})
        self._digests[scene] = metadata[_DIGEST_KEY]

    def save_copy(self, scene: str, folder: Path) -> None:
        """Writes the file of a scene into another folder; checkpoints refer to it from now on. Raises InputError for a scene without descriptors."""
        table = (self.residents[scene] if scene in self.residents else self.resident(scene, training=False)).table
        self._write(scene, folder / f"{scene}.pth", table.values.detach().cpu().contiguous())
        table.changed = False

    def save_trained(self) -> None:
        """Saves the tables of the scenes of the epoch; afterwards every process can open every saved scene."""
        for scene in sorted(self._trained) if not self.shared or process_rank() == 0 else ():
            if self.residents[scene].table.changed or scene not in self._digests:
                log.info("descriptors of scene %s: %s", scene, self.save(scene))
        own = dict(self._digests)
        for others in gather(own):
            newer = {
                scene: version
                for scene, version in others.items()
                if own.get(scene) != version and (self.shared or scene not in self._trained)
            }
            self._digests |= newer
            for scene in newer:
                if self.shared:
                    self.residents[scene].table.changed = False  # equal to the table that rank 0 saved
                else:
                    self.residents.pop(scene, None)  # outdated: another process trained it

    def publish(self) -> None:
        """Saves the tables of the epoch if other processes may evaluate them."""
        if process_count() > 1 and self._training:
            self.save_trained()

    # ---------------------------------------------------------------- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """State of all processes in tensors and plain values; a collective call. The files that it refers to are kept until the next call.

        Keys: ``steps`` of the optimizer; ``saved``: digests of the files; ``tables``: values (None if they equal the file) and optimizer state of the tables
        that are more than their files; ``residents`` and ``trained``: per process, the resident scenes, oldest first, and those trained in this epoch.
        """
        tables = {}
        for scene, resident in self.residents.items():
            table = resident.table
            if self._keep_history or table.changed:
                state = {name: getattr(table, name) for name in _STATE if name != "values" or table.changed}
                tables[scene] = {name: value for name, value in state.items() if value is not None}
        own: dict[str, Any] = {
            "saved": dict(self._digests),
            "tables": {scene: list(state) for scene, state in tables.items()},
            "residents": list(self.residents),
            "trained": sorted(self._trained),
        }
        parts = gather(own)
        everyone: dict[str, dict[str, Tensor | None]] = {}
        for part, tensors in zip(parts, gather_tensors([value for state in tables.values() for value in state.values()]), strict=True):
            values = iter(tensors)
            for scene, names in part["tables"].items():
                everyone[scene] = dict.fromkeys(_STATE) | {name: next(values).cpu().clone() for name in names}
        self._digests |= {scene: version for part in parts for scene, version in part["saved"].items()}
        self._referenced = {scene: version for part in parts for scene, version in part["saved"].items()}
        return {
            "steps": self.optimizer.steps,
            "saved": dict(self._referenced),
            "tables": everyone,
            "residents": [part["residents"] for part in parts],
            "trained": [part["trained"] for part in parts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores ``state_dict``: from now on only the files that it refers to are read. Scenes are opened by ``open_restored``."""
        self.optimizer.steps = state["steps"]
        self._reuse = False
        self._digests |= state["saved"]
        self._referenced = dict(state["saved"])
        self._restored = dict(state["tables"])
        if len(state["residents"]) == process_count():
            self._to_open = tuple(state["residents"][process_rank()])
            self._trained = set(state["trained"][process_rank()])

    def expect(self, state: Mapping[str, Any]) -> None:
        """Reads only the files that a checkpoint refers to, for an evaluation of it; ``state`` is that of ``state_dict``."""
        self._digests |= state["saved"]
        self._restored = {scene: {"values": table["values"]} for scene, table in state["tables"].items() if table.get("values") is not None}
        self._advice = "they belong to another run or epoch: copy the whole folder of the run again, or train the scene anew"

    def open_restored(self) -> None:
        """Opens the scenes that were resident, in their order."""
        for scene in self._to_open:
            self.resident(scene, training=scene in self._trained)
        self._to_open = ()
