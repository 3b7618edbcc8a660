"""A comparison on disk: a table, a contact sheet of test views, and an HTML page with its pictures embedded."""

import base64
import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader
from PIL import Image
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from torchvision.transforms.functional import to_tensor

from npbgpp.compare.runs import RunSummary
from npbgpp.core.files import write_atomically
from npbgpp.errors import InputError
from npbgpp.io import SheetRow, contact_sheet, write_png

# ----------------------------------------------------------------------
# Table with a row per dataset and run, for the terminal and as Markdown


_NONE = "-"
_SETTINGS = 2  # columns of settings in the table; more stand below it


@dataclass(frozen=True)
class Column:
    """A column. ``best`` is 1 where the largest number of a dataset is the best, -1 where the smallest is, 0 where none is."""

    title: str
    best: int = 0


@dataclass(frozen=True)
class Cell:
    """One entry: its text, and its value if it is a number."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Row:
    """One run on one dataset; ``dataset`` is empty for a run that was not evaluated."""

    dataset: str
    cells: tuple[Cell, ...]
    best: tuple[bool, ...]


_LPIPS = Column("LPIPS", -1)
_SCORES = (
    Column("PSNR [dB]", 1),
    Column("SSIM", 1),
    _LPIPS,
    Column("views"),
    Column("s/view", -1),
)
_COSTS = (
    Column("epochs"),
    Column("steps"),
    Column("training [s]", -1),
    Column("waiting for data [s]", -1),
    Column("per second", 1),
    Column("host [MiB]", -1),
    Column("device [MiB]", -1),
)


def columns(runs: Sequence[RunSummary]) -> tuple[Column, ...]:
    """Dataset, run, settings in which the runs differ, scores, costs if any run has them, errors if any run failed."""
    named = (Column("dataset"), Column("run"), *(Column(key) for key in runs[0].settings))
    costs = _COSTS if any(run.costs is not None for run in runs) else ()
    failed = (Column("ended with"),) if any(run.failure for run in runs) else ()
    return (*named, *_SCORES, *costs, *failed)


def rows(runs: Sequence[RunSummary]) -> list[Row]:
    """Rows by dataset; runs without scores come last. The best cells of a dataset are marked unless all runs are equal."""
    titles = columns(runs)
    found: list[Row] = []
    for dataset in dict.fromkeys(name for run in runs for name in run.scores):
        cells = [_cells(run, dataset, titles) for run in runs if dataset in run.scores]
        best = [_best(column, [row[k] for row in cells]) for k, column in enumerate(titles)]
        found += [Row(dataset, row, tuple(best[k][i] for k in range(len(titles)))) for i, row in enumerate(cells)]
    found += [Row("", _cells(run, "", titles), (False,) * len(titles)) for run in runs if not run.scores]
    return found


def _best(column: Column, cells: Sequence[Cell]) -> list[bool]:
    numbers = [cell.number for cell in cells if cell.number is not None]
    if not column.best or len(set(numbers)) < 2:
        return [False] * len(cells)
    best = max(numbers) if column.best > 0 else min(numbers)
    return [cell.number == best for cell in cells]


def _cells(run: RunSummary, dataset: str, titles: Sequence[Column]) -> tuple[Cell, ...]:
    scores, costs = run.scores.get(dataset), run.costs
    cells = [Cell(dataset or "not evaluated"), Cell(run.name), *(Cell(value) for value in run.settings.values())]
    if scores is None:
        cells += [Cell(_NONE)] * len(_SCORES)
    else:
        lpips = Cell("not available") if scores.lpips is None else _number(scores.lpips, "{:.4f}")
        cells += [_number(scores.psnr, "{:.2f}"), _number(scores.ssim, "{:.4f}"), lpips]
        cells += [Cell(str(scores.views)), _number(scores.seconds_per_view, "{:.3f}")]
    if any(column in titles for column in _COSTS):
        if costs is None:
            cells += [Cell(_NONE)] * len(_COSTS)
        else:
            rate = Cell(_NONE) if costs.units_per_s is None else Cell(f"{_short(costs.units_per_s)} {costs.unit}", costs.units_per_s)
            cells += [Cell(str(costs.epochs)), Cell(str(costs.steps))]
            cells += [_number(costs.train_seconds or None, "{:.1f}"), _number(costs.data_seconds or None, "{:.1f}"), rate]
            cells += [_number(costs.peak_host_mib, "{:.0f}"), _number(costs.peak_device_mib, "{:.0f}")]
    if len(cells) < len(titles):
        cells.append(Cell(run.failure.splitlines()[0] if run.failure else _NONE))
    return tuple(cells)


def _number(value: float | None, form: str) -> Cell:
    return Cell(_NONE) if value is None else Cell(form.format(value), value)


def _short(value: float) -> str:
    """Three digits with an SI prefix."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g}"


def terminal(runs: Sequence[RunSummary]) -> Group:
    """Tables for the terminal, scores and costs, and below them settings in which runs differ, and errors. What is equal in all rows goes to the captions.

    Scores that no run has are left out.
    """
    titles, found = columns(runs), rows(runs)
    first_score, first_cost = titles.index(_SCORES[0]), titles.index(_SCORES[0]) + len(_SCORES)
    scores = [k for k in range(first_score, first_cost) if titles[k] != _LPIPS or any(row.cells[k].number is not None for row in found)]
    costs = [k for k in range(first_cost, len(titles)) if titles[k] in _COSTS]
    many = first_score - 2 > _SETTINGS
    settings = range(2, first_score)
    parts: list[RenderableType] = [_table("comparison", titles, found, [0, 1, *(() if many else settings), *scores])]
    if costs:
        parts.append(_table("costs", titles, found, [0, 1, *costs]))
    if many:
        for run, row in {row.cells[1].text: row for row in found}.items():
            parts.append(escape(f"{run}: {', '.join(f'{titles[k].title}={row.cells[k].text}' for k in settings)}"))
    parts += [escape(f"{run.name} failed: {run.failure.splitlines()[0]}") for run in runs if run.failure]
    return Group(*parts)


def _table(title: str, titles: Sequence[Column], found: Sequence[Row], chosen: Sequence[int]) -> Table:
    same = [k for k in chosen if k != 1 and len(found) > 1 and len({row.cells[k].text for row in found}) == 1]
    shared = ", ".join(f"{titles[k].title} {found[0].cells[k].text}" for k in same)
    table = Table(title=title, caption=f"in every row: {escape(shared)}" if shared else None)
    shown = [k for k in chosen if k not in same]
    for k in shown:
        numeric = any(row.cells[k].number is not None for row in found)
        table.add_column(escape(titles[k].title), justify="right" if numeric else "left", overflow="fold")
    for row in found:
        table.add_row(*(f"[bold]{escape(row.cells[k].text)}[/bold]" if row.best[k] else escape(row.cells[k].text) for k in shown))
    return table


def markdown(runs: Sequence[RunSummary]) -> str:
    """Markdown table; the best number of a dataset is bold."""
    lines = [[column.title for column in columns(runs)], ["---"] * len(columns(runs))]
    for row in rows(runs):
        texts = [cell.text.replace("|", r"\|") for cell in row.cells]
        lines.append([f"**{text}**" if best else text for text, best in zip(texts, row.best, strict=True)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


# ----------------------------------------------------------------------
# Test views that several runs rendered


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


# ----------------------------------------------------------------------
# Page


log = logging.getLogger(__name__)

_LARGEST = 640  # pixels of the longer side of an embedded picture
_QUALITY = 92  # of its JPEG


def write_comparison(runs: Sequence[RunSummary], out: Path, title: str = "Comparison") -> None:
    """Prints the table; writes ``compare.md``, ``compare.html`` and, when the runs share rendered views, ``compare.png``.

    Raises:
        InputError: an unreadable picture, or a folder that cannot be written.
    """
    out = out.resolve()
    Console().print(terminal(runs))
    views = shared_views(runs)
    text = page(runs, views, title, out)
    write_atomically(out / "compare.md", lambda file: file.write(markdown(runs).encode()))
    write_atomically(out / "compare.html", lambda file: file.write(text.encode()))
    image = sheet(runs, views)
    if image is None:
        log.warning("the runs share no rendered test view: no compare.png, and no pictures in %s", out / "compare.html")
        return
    write_png(out / "compare.png", image)
    log.info("table: %s; page: %s; contact sheet: %s", out / "compare.md", out / "compare.html", out / "compare.png")


def page(runs: Sequence[RunSummary], views: Sequence[SharedView], title: str, folder: Path) -> str:
    """The HTML page, which refers to no other file except by links.

    Args:
        runs: in the order of the columns.
        views: views to show.
        title: heading.
        folder: folder of the page, to which links to full pictures are relative.

    Raises:
        InputError: an unreadable picture.
    """
    found = rows(runs)
    environment = Environment(loader=PackageLoader("npbgpp.compare", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.jinja").render(
        title=title,
        runs=runs,
        failed=sum(run.failure is not None for run in runs),
        settings=list(runs[0].settings),
        columns=[
            {"title": column.title, "numeric": any(row.cells[k].number is not None for row in found)}
            for k, column in enumerate(columns(runs))
        ],
        rows=found,
        views=views,
        embed=lambda path: None if path is None else _embed(path, folder),
    )


@dataclass(frozen=True)
class _EmbeddedImage:
    """A reduced JPEG, and the relative URL of the picture in full."""

    base64: str
    width: int
    height: int
    link: str


def _embed(path: Path, folder: Path) -> _EmbeddedImage:
    image = read_image(path)
    image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY, subsampling=0)
    link = quote(Path(os.path.relpath(path, folder)).as_posix())
    return _EmbeddedImage(base64.b64encode(buffer.getvalue()).decode(), image.width, image.height, link)
