"""Views that several runs rendered: which are shown, and a sheet of them as one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from npbgpp.compare.runs import RunSummary
from npbgpp.errors import InputError
from npbgpp.io import SheetRow, contact_sheet

_VIEWS = 6  # of each dataset


@dataclass(frozen=True)
class SharedView:
    """A test view: its photo, and per run (in the order they are given) its rendering and PSNR; None for runs without it."""

    dataset: str
    view: str
    photo: Path
    renderings: tuple[Path | None, ...]
    psnr: tuple[float | None, ...]


def shared_views(runs: Sequence[RunSummary]) -> list[SharedView]:
    """Up to six views of each dataset that all of its runs rendered, evenly from the list."""
    found = []
    for dataset in dict.fromkeys(name for run in runs for name in run.scores):
        pictures = [run.pictures(dataset) for run in runs]
        having = [views for views in pictures if views]
        common = [view for view in having[0] if all(view in views for views in having)] if having else []
        for view in common[:: max(1, -(-len(common) // _VIEWS))]:
            found.append(
                SharedView(
                    dataset,
                    view,
                    having[0][view][0],
                    tuple(views[view][1] if views else None for views in pictures),
                    tuple(run.scores[dataset].psnr_by_view.get(view) if dataset in run.scores else None for run in runs),
                )
            )
    return found


def sheet(runs: Sequence[RunSummary], views: Sequence[SharedView]) -> Image.Image | None:
    """Photo and the rendering of every run, a row per view; None without views."""
    rows = []
    for view in views:
        pictures = tuple(None if path is None else _tensor(path) for path in (view.photo, *view.renderings))
        scores = ", ".join(f"{run.name} {psnr:.2f}" for run, psnr in zip(runs, view.psnr, strict=True) if psnr is not None)
        rows.append(SheetRow(f"{view.dataset} {view.view}: PSNR {scores}", pictures))
    return contact_sheet("Held-out views", ("photo", *(run.name for run in runs)), rows) if rows else None


def read_picture(path: Path) -> Image.Image:
    """A picture of a run as RGB. Raises InputError when it is damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: expected a picture of a run, got an unreadable file ({error}); evaluate the run again") from error


def _tensor(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(read_picture(path))).permute(2, 0, 1).float() / 255
