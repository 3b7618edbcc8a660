"""A comparison on disk: a table, contact sheet, and HTML page with its pictures embedded."""

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
from rich.console import Console

from npbgpp.compare.runs import RunSummary
from npbgpp.compare.table import columns, markdown, rows, terminal
from npbgpp.compare.views import SharedView, read_image, shared_views, sheet
from npbgpp.core.files import write_atomically
from npbgpp.io import write_png

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
