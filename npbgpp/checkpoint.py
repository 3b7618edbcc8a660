"""Reading and writing weights: atomic files, plain content, and a report of what was loaded."""

import difflib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.files import load_tensors, save_tensors
from npbgpp.paths import Bases
from npbgpp.systems.base import CHECKPOINT_FORMAT, System

log = logging.getLogger(__name__)

# what Lightning 1 wrote beside the weights: the config as OmegaConf objects, and the classes of callbacks, those of the authors among them
_OLD_LIGHTNING = (
    *("omegaconf.", "pytorch_lightning.", "npbgplusplus.", "pathlib.", "typing.", "collections.defaultdict"),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str")),
)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning checkpoints that are either complete or absent, and are read without running code from them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes through a temporary file. A full disk leaves the previous file and raises InputError."""
        save_tensors(Path(path), checkpoint)

    def load_checkpoint(self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads tensors and plain values only, onto the CPU; Lightning moves them."""
        return load_tensors(Path(path), "checkpoint")

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


def find_weights(path: str, bases: Bases) -> Path:
    """The checkpoint a user means: relative to the launch folder, with the known slip ``/result/checkpoints/`` mended."""
    found = bases.output(path)
    if found.is_file():
        return found
    mended = Path(str(found).replace("/result/checkpoints/", "/checkpoints/"))
    if mended != found and mended.is_file():
        log.warning("weights_path: %s does not exist, using %s", found, mended)
        return mended
    siblings = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
    close = difflib.get_close_matches(found.name, siblings, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"weights_path={path}: expected a checkpoint file, there is none at {found}{hint}")


def load_weights(system: System, path: Path, strict: bool) -> LoadReport:
    """Copies the weights of a checkpoint into a system.

    Args:
        system: receives the weights.
        path: Lightning checkpoint, also of Lightning 1 with its config inside, or a file with a ``state_dict``.
        strict: refuse weights of another shape and checkpoints of another system; otherwise these are skipped and reported.

    Raises:
        InputError: damaged file, newer format, no weights, another system, other shapes, or not one matching name.
    """
    content = load_tensors(path, "checkpoint", _OLD_LIGHTNING)
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(f"checkpoint {path}: expected a mapping 'state_dict' of tensors, got none; this is not a checkpoint of a system")
    _check_origin(system, path, content.get("npbgpp"), strict)
    own = system.state_dict()
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
    log.info("weights %s: %s", path, report)
    surprising = [name for name in report.unexpected if name.partition(".")[0] not in system.has_no_use_for]
    if report.missing or surprising:
        log.warning("weights %s: not everything matched: %s", path, report)
    return report


def _check_origin(system: System, path: Path, origin: Any, strict: bool) -> None:
    if not isinstance(origin, dict):
        return  # a file of the authors
    if origin.get("format", 0) > CHECKPOINT_FORMAT:
        raise InputError(
            f"checkpoint {path}: format {origin['format']} is newer than this program ({CHECKPOINT_FORMAT}); update the program"
        )
    name, ours = origin.get("system"), type(system).__name__
    if strict and name != ours and name not in system.accepts_checkpoints_of:
        raise InputError(
            f"checkpoint {path}: weights of system {name}, not of {ours}; choose its system, or load what fits with weights_strict=false"
        )
