"""Test views that several runs rendered, and a contact sheet of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torchvision.transforms.functional import to_tensor

from npbgpp.compare.runs import RunSummary
from npbgpp.errors import InputError
from npbgpp.io import SheetRow, contact_sheet

_VIEWS = 6  # per dataset


@dataclass(frozen=True)
class SharedView:
    """A test view: its photo, and the rendering and PSNR [dB] of every run, in their order; None for runs without it."""

    dataset: str
    view: str
    photo: Path
    renderings: tuple[Path | None, ...]
    psnr: tuple[float | None, ...]

    def is_best(self, run: int) -> bool:
        """Whether the PSNR of a run is the highest, where not all are equal."""
        known = {psnr for psnr in self.psnr if psnr is not None}
        return len(known) > 1 and self.psnr[run] == max(known)


def shared_views(runs: Sequence[RunSummary]) -> list[SharedView]:
    """Up to six views per dataset, evenly spaced, that all runs with pictures of the dataset rendered."""
    found = []
    for dataset in dict.fromkeys(name for run in runs for name in run.scores):
        pictures = [run.pictures(dataset) for run in runs]
        rendered = [views for views in pictures if views]
        common = [view for view in rendered[0] if all(view in views for views in rendered)] if rendered else []
        for view in common[:: max(1, -(-len(common) // _VIEWS))]:
            photo = rendered[0][view][0]
            renderings = tuple(views[view][1] if views else None for views in pictures)
            psnr = tuple(run.scores[dataset].psnr_by_view.get(view) if dataset in run.scores else None for run in runs)
            found.append(SharedView(dataset, view, photo, renderings, psnr))
    return found


def sheet(runs: Sequence[RunSummary], views: Sequence[SharedView]) -> Image.Image | None:
    """Contact sheet with a row per view: the photo and the rendering of every run. None without views."""
    rows = []
    for view in views:
        images = tuple(None if path is None else to_tensor(read_image(path)) for path in (view.photo, *view.renderings))
        scores = ", ".join(f"{run.name} {psnr:.2f}" for run, psnr in zip(runs, view.psnr, strict=True) if psnr is not None)
        rows.append(SheetRow(f"{view.dataset} {view.view}: PSNR {scores}", images))
    return contact_sheet("Held-out views", ("photo", *(run.name for run in runs)), rows) if rows else None


def read_image(path: Path) -> Image.Image:
    """A picture of a run as RGB. Raises InputError when it is damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: expected a picture of a run, got an unreadable file ({error}); evaluate the run again") from error
