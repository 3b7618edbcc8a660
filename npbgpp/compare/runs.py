"""Finished runs read from their folders: scores, costs, pictures, and the settings in which they differ."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from npbgpp.core.config import typed
from npbgpp.core.costs import Costs
from npbgpp.errors import InputError

FAILURE = "failure.txt"  # in the folder of a failed run of a sweep


@dataclass(frozen=True)
class Scores:
    """Means over the views of a dataset, and the PSNR of each view; ``lpips`` is None where it was not available."""

    psnr: float
    ssim: float
    lpips: float | None
    views: int
    seconds_per_view: float
    psnr_by_view: dict[str, float]


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        folder: absolute path.
        name: shortest end of the path that is unique among the runs.
        scores: by dataset; empty without an evaluation.
        costs: None for runs that wrote none.
        failure: error message; None when the run did not fail.
        settings: settings in which the compared runs differ, as text, by key.
    """

    folder: Path
    name: str
    scores: dict[str, Scores]
    costs: Costs | None = None
    failure: str | None = None
    settings: dict[str, str] = field(default_factory=dict)

    def pictures(self, dataset: str) -> dict[str, tuple[Path, Path]]:
        """(photo, rendering) of every test view by name, from the last epoch that was tested."""
        epochs = sorted((self.folder / "rendered" / dataset).glob("test_epoch*"), key=lambda p: int(p.name.removeprefix("test_epoch")))
        if not epochs:
            return {}
        pairs = {p.name.removesuffix("_gt.png"): p for p in epochs[-1].glob("*_gt.png")}
        found = {view: (photo, photo.with_name(f"{view}_rendered.png")) for view, photo in sorted(pairs.items())}
        return {view: pair for view, pair in found.items() if pair[1].is_file()}


def runs_below(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs of a sweep, sorted by name with numbers by value.

    Raises:
        InputError: no run.
    """
    if (folder / "metrics.json").is_file() or (folder / ".hydra").is_dir():
        return [folder]
    found = {path.parent for name in (".hydra", "metrics.json", FAILURE) for path in folder.rglob(name)}
    if not found:
        raise InputError(f"{folder}: expected the folder of a run (with metrics.json) or of a sweep, found no run in it; correct the path")
    return sorted(found, key=lambda path: [(int(n or 0), text) for n, text in re.findall(r"(\d*)(\D*)", str(path.relative_to(folder)))])


def read_runs(folders: Sequence[Path], must_be_evaluated: bool = True) -> list[RunSummary]:
    """Reads runs.

    Args:
        folders: absolute paths of run folders.
        must_be_evaluated: refuse a run without metrics.json; otherwise it has no scores.

    Raises:
        InputError: a run without readable metrics.json, or given twice.
    """
    if len(set(folders)) < len(folders):
        raise InputError("npbgpp.compare: a run is given twice; give every run once")
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    settings = _differing([_Settings(folder) for folder in folders])
    runs = []
    for folder, own in zip(folders, settings, strict=True):
        failure = _failure(folder)
        scores, costs = _read_metrics(folder, must_be_evaluated and failure is None)
        runs.append(RunSummary(folder, "/".join(folder.parts[-depth:]), scores, costs, failure, own))
    return runs


def _failure(folder: Path) -> str | None:
    path = folder / FAILURE
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None


def _read_metrics(folder: Path, required: bool) -> tuple[dict[str, Scores], Costs | None]:
    path = folder / "metrics.json"
    if not required and not path.exists():
        return {}, None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["datasets"], dict):
            raise ValueError("no scores per dataset")
        scores = {str(name): _scores(row) for name, row in content["datasets"].items()}
        return scores, None if content.get("costs") is None else typed(Costs, content["costs"], "costs")
    except FileNotFoundError:
        raise InputError(
            f"run {folder}: expected {path}, there is none; evaluate the run first (test_after_fit=true or eval_only=true)"
        ) from None
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: expected the metrics of a run, got an unreadable file ({error}); evaluate the run again") from error


def _scores(row: Any) -> Scores:
    lpips = None if row["lpips"] is None else float(row["lpips"])
    by_view = {str(view): float(scores["psnr"]) for view, scores in row["per_view"].items()}
    return Scores(float(row["psnr"]), float(row["ssim"]), lpips, int(row["views"]), float(row["seconds_per_view"]), by_view)


class _Settings:
    """Overrides of a run, and the value of any key of its config."""

    def __init__(self, folder: Path) -> None:
        overrides = _read_yaml(folder / ".hydra" / "overrides.yaml")
        # +key=value adds, ++key=value adds or replaces, ~key removes
        self.keys = [str(o).lstrip("+~").partition("=")[0] for o in overrides] if isinstance(overrides, list) else []
        config, hydra = _read_yaml(folder / ".hydra" / "config.yaml"), _read_yaml(folder / ".hydra" / "hydra.yaml")
        self.config = config if isinstance(config, dict) else {}
        try:
            choices = hydra["hydra"]["runtime"]["choices"]
        except (KeyError, TypeError):
            choices = None
        self.choices = choices if isinstance(choices, dict) else {}

    def value(self, key: str) -> str:
        """The value of a key as text, - for a key that the run does not have."""
        if key in self.choices:
            return str(self.choices[key])
        found: Any = self.config
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                return "-"
            found = found[part]
        return found if isinstance(found, str) else json.dumps(found)


def _read_yaml(path: Path) -> Any:
    """The content of a file; None if it is missing: the run was started without Hydra."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: expected a file written by Hydra, got an unreadable one ({' '.join(str(error).split())})") from error


def _differing(runs: Sequence[_Settings]) -> list[dict[str, str]]:
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    differing = [key for key in keys if len({run.value(key) for run in runs}) > 1]
    return [{key: run.value(key) for key in differing} for run in runs]
