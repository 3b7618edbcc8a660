"""Checkpoints: atomic files without code, loading of weights with a report, and the choice of the checkpoint that a run resumes from."""

import copy
import difflib
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from torch import Tensor

from npbgpp.core.files import load_tensors, read_number, save_tensors
from npbgpp.core.paths import SearchPaths
from npbgpp.core.saved_config import with_current_classes
from npbgpp.errors import InputError, listing
from npbgpp.methods.base import CHECKPOINT_FORMAT, System

log = logging.getLogger(__name__)

SAFETENSORS_KEY = "npbgpp"  # of the metadata of a .safetensors file; its value is the mark of a checkpoint as JSON
# what Lightning wrote beside the weights: the config as OmegaConf objects, a Namespace or an AttributeDict, the classes of callbacks, those of the authors among
# them, and scores as scalars of numpy
_OLD_LIGHTNING = (
    *("omegaconf.", "pytorch_lightning.", "lightning.", "lightning_fabric.", "npbgplusplus.", "pathlib.", "typing.", "numpy."),
    *("argparse.Namespace", "collections.defaultdict", "datetime.datetime", "datetime.timedelta"),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str")),
)

# what Lightning reads when training goes on
_PARTS = {
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
    "epoch": int,
    "global_step": int,
}

_LAST = "checkpoints/last.ckpt"  # in the folder of a run
_SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors")
_PICKLE = b"\x80"  # first byte of files of earlier versions of torch
_PROGRESS = ("global_step", "epoch", "loops", "npbgpp")  # where a run is, and what of it lies in files beside the checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Reads and writes Lightning checkpoints atomically and without running code from them."""

    def __init__(self) -> None:
        self._ahead: tuple[Path, dict[str, Any]] | None = None
        self._stops_in_epoch = False
        self._stopped: dict[str, Any] = {}

    @contextmanager
    def stopping_in_epoch(self) -> Iterator[None]:
        """The checkpoint that is saved inside is the state to go on from: a run that stops within an epoch, at ``max_steps``, afterwards ends this epoch,
        and Lightning saves checkpoints that would go on with the next one. Those of the same step are written with the progress of this one.
        """
        self._stops_in_epoch = True
        try:
            yield
        finally:
            self._stops_in_epoch = False

    def read_ahead(self, path: Path) -> dict[str, Any]:
        """Reads a checkpoint and keeps the content for the next ``load_checkpoint`` by Lightning, so that the file is read once.

        Raises:
            InputError: damaged, not a training checkpoint, or one that lacks a part.
        """
        if self._ahead is None or self._ahead[0] != path:
            content = self.load_checkpoint(path)
            lacking = [name for name, kind in _PARTS.items() if not isinstance(content.get(name), kind)]
            if lacking:
                raise InputError(
                    f"checkpoint {path}: training goes on from a whole checkpoint, this one lacks {', '.join(lacking)}; name another one of the run, or begin with "
                    f"its weights: weights_path={path}"
                )
            self._ahead = (path, content)
        return self._ahead[1]

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes through a temporary file. A full disk leaves the previous file and raises InputError."""
        if self._stops_in_epoch:
            self._stopped = copy.deepcopy({name: checkpoint[name] for name in _PROGRESS if name in checkpoint})
        elif self._stopped and checkpoint.get("global_step") == self._stopped["global_step"]:
            checkpoint = checkpoint | self._stopped
        save_tensors(Path(path), checkpoint)

    def load_checkpoint(self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads tensors and plain values only, onto the CPU; Lightning moves them."""
        if self._ahead is not None and self._ahead[0] == Path(path):
            content, self._ahead = self._ahead[1], None
            return content
        if Path(path).suffix == ".safetensors":
            raise InputError(
                f"checkpoint {path}: training goes on from a checkpoint, got weights alone; begin with them: weights_path={path}"
            )
        content = load_tensors(Path(path), "checkpoint")
        if not isinstance(content, dict):
            raise InputError(f"checkpoint {path}: training goes on from a checkpoint, got a {type(content).__name__}; name one of a run")
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint that this run wrote."""
        Path(path).unlink(missing_ok=True)


@dataclass(frozen=True)
class LoadReport:
    """Names of the weights of a system: loaded, not in the file, and in the file but not in the system."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        def some(names: tuple[str, ...]) -> str:
            return f"{len(names)}" + (f" ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else "")

        return f"loaded {len(self.loaded)}, missing {some(self.missing)}, unexpected {some(self.unexpected)}"


def find_weights(path: str, search_paths: SearchPaths, key: str = "weights_path") -> Path:
    """The checkpoint file at a path relative to the launch folder, the last one of the run in a folder, or the weights of that name that come with the project.

    ``/result/checkpoints/``, a known slip, is read as ``/checkpoints/``.

    Raises:
        InputError: no such file, a folder without a last checkpoint, or shipped weights without their card; the message names ``key``.
    """
    found = search_paths.output(path)
    if found.is_file():
        return found
    if (found / _LAST).is_file():
        return found / _LAST
    shipped = search_paths.project / "checkpoints" / f"{path}.safetensors"
    if shipped.parent == search_paths.project / "checkpoints" and shipped.is_file():
        card = shipped.with_suffix(".md")
        if not card.is_file():
            raise InputError(
                f"{key}={path}: expected the card of these weights beside them, there is none at {card}; install the project again"
            )
        return shipped
    mended = Path(str(found).replace("/result/checkpoints/", "/checkpoints/"))
    if mended != found and mended.is_file():
        log.warning("%s: %s does not exist, using %s", key, found, mended)
        return mended
    if found.is_dir():
        there = sorted(file.relative_to(found).as_posix() for place in (".", "checkpoints") for file in (found / place).glob("*.ckpt"))
        raise InputError(
            f"{key}={path}: expected a checkpoint file, or the folder of a run with {_LAST}, got the folder {found} without; name one of its checkpoints: "
            f"{listing(there)}"
        )
    siblings = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
    names = [p.stem for p in (search_paths.project / "checkpoints").glob("*.safetensors")] if Path(path).name == path else []
    close = difflib.get_close_matches(found.name, [*siblings, *names], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"{key}={path}: expected a checkpoint file, or the folder of a run, there is none at {found}{hint}")


@dataclass(frozen=True)
class Origin:
    """Format of a checkpoint and name of the method that wrote it."""

    format: int
    system: str


@dataclass(frozen=True)
class SavedWeights:
    """Weights of a file by name; ``origin`` is None for files of the authors, which do not state it.

    ``mark`` is what the method kept beside the weights; empty for files without.
    """

    tensors: dict[str, Tensor]
    origin: Origin | None
    mark: dict[str, Any] = field(default_factory=dict)


def read_weights(path: Path) -> SavedWeights:
    """Reads the weights of a checkpoint and ignores the rest.

    Args:
        path: Lightning checkpoint, also of Lightning 1 with its config inside, a file with a ``state_dict``, or ``.safetensors``.

    Raises:
        InputError: damaged file, newer format, or no weights.
    """
    weights: Any
    if path.suffix == ".safetensors":
        weights, mark = _read_safetensors(path)
    else:
        content = load_tensors(path, "checkpoint", _OLD_LIGHTNING)
        content = content if isinstance(content, dict) else {}
        weights, mark = content.get("state_dict"), content.get("npbgpp")
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(f"checkpoint {path}: expected a mapping 'state_dict' of tensors, got none; this is not a checkpoint of a system")
    if not isinstance(mark, dict):
        return SavedWeights(weights, None)
    number, name = mark.get("format", 0), mark.get("system", "")
    if not isinstance(number, int) or not isinstance(name, str):
        raise InputError(f"checkpoint {path}: expected the number of its format and the name of its system, got {mark}; copy it again")
    if number > CHECKPOINT_FORMAT:
        raise InputError(f"checkpoint {path}: format {number} is newer than this program ({CHECKPOINT_FORMAT}); update the program")
    return SavedWeights(weights, Origin(number, name), mark)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the metadata of the checkpoint that they were exported from."""
    try:
        with safe_open(path, framework="pt") as file:
            mark = (file.metadata() or {}).get(SAFETENSORS_KEY)
            return {name: file.get_tensor(name) for name in file.keys()}, None if mark is None else json.loads(mark)  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"checkpoint {path}: expected a file in the safetensors format, got a damaged one ({error}); copy it again"
        ) from error


def _expect_scene_files(system: System, path: Path, mark: Any) -> None:
    """Tells the system which data of scenes the last checkpoint of the run left. Raises InputError for a damaged one."""
    last = path.with_name("last.ckpt")
    mark = mark if path == last or not last.is_file() else read_weights(last).mark
    try:
        system.expect_scene_files(mark)
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"checkpoint {last}: expected what it says about descriptors, got something else ({error}); copy it again"
        ) from error


def load_weights(system: System, path: Path, strict: bool, run: Path | None = None) -> LoadReport:
    """Copies the weights of a checkpoint into a system.

    Args:
        system: receives the weights.
        path: see ``read_weights``, or a file of another program that the method reads.
        run: folder of the run that is evaluated. If the checkpoint is one of this run, its data of scenes are read as its last checkpoint left them.
        strict: refuse weights of another shape and checkpoints of another system; otherwise these are skipped and reported.

    Raises:
        InputError: damaged file, newer format, no weights, another system, other shapes, or not one matching name.
    """
    foreign = system.read_foreign_weights(path)
    if foreign is not None:
        weights = foreign
    else:
        _check_kind(system, path)
        saved = read_weights(path)
        _check_origin(system, path, saved.origin, strict)
        if run is not None and system.has_scene_files and path.resolve().parent == run.resolve() / "checkpoints":
            _expect_scene_files(system, path, saved.mark)
        system.suggest_scene_files(path.resolve().parent.parent)
        weights = system.translate_weights(saved.tensors)
    if strict:
        system.adapt_to_weights(weights)
    own = system.state_dict()
    if not own:
        return LoadReport((), (), tuple(weights))
    shapes = [
        f"{k}: {tuple(weights[k].shape)} in the file, {tuple(own[k].shape)} in the system"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    if shapes and strict:
        raise InputError(
            f"checkpoint {path}: {len(shapes)} weights have another shape ({'; '.join(shapes[:3])}); use the settings it was trained with, or skip them with "
            "weights_strict=false"
        )
    fitting = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    if not fitting:
        raise InputError(
            f"checkpoint {path}: none of its {len(weights)} weights belongs to system {type(system).__name__} (file: {', '.join(list(weights)[:3])}, ...; system: "
            f"{', '.join(list(own)[:3])}, ...); choose the system that it was trained with"
        )
    system.load_state_dict(fitting, strict=False)
    report = LoadReport(tuple(fitting), tuple(k for k in own if k not in fitting), tuple(k for k in weights if k not in own))
    surprising = [name for name in report.unexpected if name.partition(".")[0] not in system.unused_weights]
    if report.missing or surprising:
        log.warning("weights %s: not everything matched: %s", path, report)
    else:
        log.info("weights %s: %s", path, report)
    return report


def _check_kind(system: System, path: Path) -> None:
    """Raises InputError for a file that is of none of the kinds that are read, neither by its name nor by its content."""
    if path.suffix.lower() in _SUFFIXES:
        return
    with path.open("rb") as file:
        is_pickle = file.read(1) == _PICKLE
    if not is_pickle and not zipfile.is_zipfile(path):
        kinds = ", ".join((*_SUFFIXES, *system.foreign_weights))
        raise InputError(
            f"checkpoint {path}: expected a file {kinds}, got {path.suffix or 'one without a suffix'}, which holds no weights that "
            f"{type(system).__name__} reads; name a checkpoint"
        )


def _check_origin(system: System, path: Path, origin: Origin | None, strict: bool) -> None:
    name, ours = None if origin is None else origin.system, type(system).__name__
    if strict and origin is not None and name != ours and name not in system.accepts_checkpoints_of:
        raise InputError(
            f"checkpoint {path}: weights of system {name}, not of {ours}; choose its system, or load what fits with weights_strict=false"
        )


_LISTED = 6  # keys that a message names
# keys that influence training; of datasets, those that only say where data are or how they are cached do not
_TRAINER_KEYS = ("precision", "limit_train_batches", "overfit_batches", "accumulate_grad_batches", "gradient_clip_val", "fast_dev_run")
_DATASET_PLACES = ("data_root", "scene_subroot", "images_subroot", "paths_file", "cache_images", "cache_memory_gb", "motion_cache")


def training_keys(config: dict[str, Any], display_keys: Sequence[str]) -> dict[str, Any]:
    """Keys of a config that influence training, by their full names. ``display_keys`` are those of the method that do not."""
    kept = {
        "seed": config["seed"],
        "datasets": {k: v for k, v in config["datasets"].items() if k not in _DATASET_PLACES},
        "system": {k: v for k, v in config["system"].items() if k not in display_keys},
        "dataloader": {k: config["dataloader"].get(k) for k in ("train_total_batch_size", "train_data_mode")},
        "trainer": {k: config["trainer"].get(k) for k in _TRAINER_KEYS},
    }
    return _flat(kept, "")


def _flat(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): json.loads(json.dumps(node, default=str))}
    return {name: value for key, part in node.items() for name, value in _flat(part, f"{prefix}{key}.").items()}


def find_checkpoint(word: str, search_paths: SearchPaths, checkpoints: AtomicCheckpointIO) -> Path | None:
    """Finds the checkpoint to resume from.

    Args:
        word: ``auto``, the readable checkpoint of the run folder with the most steps, if any; or the folder of a run; or a checkpoint.
        search_paths: base folders of relative paths.
        checkpoints: reads the candidates; see ``read_ahead``.

    Raises:
        InputError: no such file, or no readable checkpoint in a folder that was named.
    """
    folder = search_paths.run if word == "auto" else search_paths.output(word)
    if not folder.is_dir():
        return None if word == "auto" else find_weights(word, search_paths, "resume")
    files = list((folder / "checkpoints").glob("*.ckpt"))
    for path in _by_steps(files, word):
        try:
            checkpoints.read_ahead(path)
            return path
        except InputError as error:
            log.warning("resume=%s: %s; trying an earlier checkpoint", word, error)
    if word != "auto" or files:
        raise InputError(
            f"resume={word}: expected a checkpoint in {folder / 'checkpoints'}, got {'only damaged ones' if files else 'none'}; begin anew in another "
            "hydra.run.dir, or name a checkpoint"
        )
    return None


def _by_steps(files: Sequence[Path], word: str) -> list[Path]:
    """Checkpoints by their optimizer steps, most first, last.ckpt before others of the same step. Times of files do not count: copies and clocks change them."""
    found = []
    for path in files:
        try:
            found.append((read_number(path, "global_step"), path.stem == "last", path.name, path))
        except InputError as error:
            log.warning("resume=%s: checkpoint %s; trying an earlier checkpoint", word, error)
    return [path for *_, path in sorted(found, reverse=True)]


def check_same_training(checkpoint: Path, content: dict[str, Any], method: str, keys: dict[str, Any], strict: bool) -> None:
    """Compares the method and the config that a checkpoint was trained with to those of this run. Keys that came later than it may have any value.

    Args:
        checkpoint: its path, for messages.
        content: of the checkpoint. Checkpoints of early versions do not contain their config; they are accepted.
        method: name of the class of the method.
        keys: from ``training_keys``.
        strict: refuse differences instead of logging them.

    Raises:
        InputError: another method, or keys that differ.
    """
    mark = content.get("npbgpp")
    trained = mark.get("system") if isinstance(mark, dict) else None
    if isinstance(trained, str) and trained != method:
        raise InputError(
            f"checkpoint {checkpoint}: of {trained}, not of {method}; training goes on with the method that it began with: choose its system, or the "
            "checkpoint of another run"
        )
    saved = mark.get("training") if isinstance(mark, dict) else None
    if not isinstance(saved, str):
        return
    try:
        before = with_current_classes(json.loads(saved))
        differing_keys = before.keys() | keys.keys()
    except (ValueError, RecursionError, AttributeError) as error:
        raise InputError(
            f"checkpoint {checkpoint}: expected the settings that it was trained with, got something else; copy it again"
        ) from error
    later = {key for key in keys.keys() - before.keys() if not any(key.startswith(f"{leaf}.") for leaf in before)}
    if later:
        log.info("checkpoint %s: an earlier version had no %s; training goes on with today's", checkpoint, ", ".join(sorted(later)))
    differing = [key for key in sorted(differing_keys - later) if before.get(key) != keys.get(key)]
    if not differing:
        return
    named = "; ".join(f"{key}: {before.get(key)} then, {keys.get(key)} now" for key in differing[:_LISTED])
    named += f"; and {len(differing) - _LISTED} more" if len(differing) > _LISTED else ""
    if strict:
        raise InputError(
            f"checkpoint {checkpoint}: it was trained with other settings ({named}); resume with the same ones, go on with these ones all the same "
            f"(resume_strict=false), or begin anew from its weights: weights_path={checkpoint}"
        )
    log.warning("checkpoint %s: going on with other settings (%s)", checkpoint, named)


def warn_of_other_processes(checkpoint: Path, content: dict[str, Any], processes: int) -> None:
    """Says when training goes on in another number of processes than that of the checkpoint; checkpoints of early versions do not tell theirs."""
    mark = content.get("npbgpp")
    before = mark.get("processes") if isinstance(mark, dict) else None
    if isinstance(before, int) and before != processes:
        log.warning(
            "checkpoint %s: saved by %d processes, training goes on in %d: batches keep their size over all processes, but are divided and drawn anew, so that the "
            "result is not bit for bit that of an uninterrupted run",
            checkpoint,
            before,
            processes,
        )
