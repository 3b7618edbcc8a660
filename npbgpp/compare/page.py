"""A comparison as one HTML page that holds its pictures and needs nothing else."""

import base64
import io
import logging
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from rich.console import Console

from npbgpp.compare.runs import RunSummary
from npbgpp.compare.table import columns, markdown, rows, terminal
from npbgpp.compare.views import SharedView, read_picture, shared_views, sheet
from npbgpp.core.files import write_atomically
from npbgpp.io import write_png

_LARGEST = 640  # pixels of the longer side; the page links to the picture in full
_QUALITY = 92

_STYLE = """
:root { color-scheme: light dark; --paper: #fafaf8; --ink: #1e1e22; --line: #d8d8d4; --soft: #6b6b70; --best: #0a6b3d; }
@media (prefers-color-scheme: dark) { :root { --paper: #17171a; --ink: #e8e8e4; --line: #3a3a40; --soft: #9a9aa0; --best: #6fd3a0; } }
body { margin: 2rem; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p { color: var(--soft); max-width: 60rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; vertical-align: top; }
th { font-weight: 600; } td.number, th.number { text-align: right; }
td.best { color: var(--best); font-weight: 700; } td.long { white-space: normal; min-width: 18rem; }
.view { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(9rem, 20rem); gap: .6rem; overflow-x: auto; margin: .4rem 0 1.4rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; image-rendering: auto; }
figcaption { font-size: .85rem; color: var(--soft); } figcaption b { color: var(--ink); } figcaption .best { color: var(--best); font-weight: 700; }
.none { border: 1px dashed var(--line); padding: 1rem; color: var(--soft); }
"""


def page(runs: Sequence[RunSummary], views: Sequence[SharedView], title: str, place: Path) -> str:
    """The page.

    Args:
        runs: in the order of its columns.
        views: the views that are shown.
        title: heading.
        place: folder that the page will lie in; links to full pictures are relative to it.

    Raises:
        InputError: a picture that cannot be read.
    """
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
        f"<p>{_summary(runs)}</p>",
        f'<div class="wide">{_table(runs)}</div>',
    ]
    dataset = None
    for view in views:
        if view.dataset != dataset:
            dataset = view.dataset
            parts.append(f"<h2>{escape(dataset)}</h2>")
        parts.append(_view(runs, view, place))
    if not views:
        parts.append("<p>The runs share no rendered test view.</p>")
    return "\n".join([*parts, "</body></html>", ""])


def _summary(runs: Sequence[RunSummary]) -> str:
    failed = sum(run.failure is not None for run in runs)
    words = [f"{len(runs)} runs", *([f"{failed} failed"] if failed else [])]
    words += [f"in which differ: {escape(', '.join(runs[0].settings))}"] if runs[0].settings else []
    return (
        "; ".join(words)
        + ". The best value of a dataset is coloured. A click on a picture opens it in full size where its run still lies beside this page."
    )


def _table(runs: Sequence[RunSummary]) -> str:
    titles, found = columns(runs), rows(runs)
    numeric = [any(row.cells[k].number is not None for row in found) for k in range(len(titles))]
    head = "".join(f"<th{_class(number=n)}>{escape(column.title)}</th>" for column, n in zip(titles, numeric, strict=True))
    body = []
    for row in found:
        cells = (
            f"<td{_class(number=n, best=best, long=len(cell.text) > 60)}>{escape(cell.text)}</td>"
            for cell, best, n in zip(row.cells, row.best, numeric, strict=True)
        )
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _class(**flags: bool) -> str:
    names = " ".join(name for name, on in flags.items() if on)
    return f' class="{names}"' if names else ""


def _view(runs: Sequence[RunSummary], view: SharedView, place: Path) -> str:
    known = [psnr for psnr in view.psnr if psnr is not None]
    figures = [_figure(view.photo, f"<b>photo</b> {escape(view.view)}", place)]
    for run, path, psnr in zip(runs, view.renderings, view.psnr, strict=True):
        best = psnr is not None and len(set(known)) > 1 and psnr == max(known)
        score = "" if psnr is None else f" <span{_class(best=best)}>{psnr:.2f} dB</span>"
        figures.append(_figure(path, f"<b>{escape(run.name)}</b>{score}", place))
    return f'<div class="view">{"".join(figures)}</div>'


def _figure(path: Path | None, caption: str, place: Path) -> str:
    if path is None:
        return f'<figure><div class="none">not rendered</div><figcaption>{caption}</figcaption></figure>'
    image = read_picture(path)
    image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    link = quote(Path(os.path.relpath(path, place)).as_posix())
    size = f'width="{image.width}" height="{image.height}"'
    picture = f'<img {size} alt="{escape(path.stem)}" src="data:image/jpeg;base64,{data}">'
    return f'<figure><a href="{link}">{picture}</a><figcaption>{caption}</figcaption></figure>'


# ----------------------------------------------------------------------
# Writes a comparison: table, page, sheet.


log = logging.getLogger(__name__)


def write_comparison(runs: Sequence[RunSummary], out: Path, title: str = "Comparison") -> None:
    """Prints the table; writes ``compare.md``, ``compare.html`` and, when the runs share rendered views, ``compare.png``.

    Raises:
        InputError: a picture that cannot be read, a folder that cannot be written.
    """
    out = out.resolve()
    Console().print(terminal(runs))
    views = shared_views(runs)
    text = page(runs, views, title, out)
    write_atomically(out / "compare.md", lambda file: file.write(markdown(runs).encode()))
    write_atomically(out / "compare.html", lambda file: file.write(text.encode()))
    picture = sheet(runs, views)
    if picture is None:
        log.warning("the runs share no rendered test view: no compare.png, and no pictures in %s", out / "compare.html")
        return
    write_png(out / "compare.png", picture)
    log.info("table: %s; page: %s; pictures side by side: %s", out / "compare.md", out / "compare.html", out / "compare.png")
