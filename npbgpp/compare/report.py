"""Writes a comparison: table, page, sheet."""

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from npbgpp.callbacks.pictures import write_image
from npbgpp.compare.page import page
from npbgpp.compare.runs import Run
from npbgpp.compare.table import markdown, terminal
from npbgpp.compare.views import shared_views, sheet
from npbgpp.files import write_atomically

log = logging.getLogger(__name__)


def write_comparison(runs: Sequence[Run], out: Path, title: str = "Comparison") -> None:
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
    write_image(out / "compare.png", picture)
    log.info("table: %s; page: %s; pictures side by side: %s", out / "compare.md", out / "compare.html", out / "compare.png")
