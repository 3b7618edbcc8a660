"""Finished runs side by side: ``python -m npbgpp.compare <run> <run> ... --out <folder>``.

Reads ``metrics.json`` and the test pictures of run folders; prints a table and writes ``comparison.md`` and ``comparison.png``.
"""

import argparse
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from npbgpp.callbacks.pictures import write_image
from npbgpp.callbacks.tile_sheet import TileRow, tile_sheet
from npbgpp.errors import InputError
from npbgpp.files import write_atomically

log = logging.getLogger(__name__)

_VIEWS = 6  # of each dataset on the sheet
_COLUMNS = ("dataset", "run", "PSNR [dB]", "SSIM", "LPIPS", "views", "s/view")


@dataclass(frozen=True)
class Run:
    """One evaluated run: its folder, the shortest name that tells it from the others, and the content of its metrics.json."""

    folder: Path
    name: str
    metrics: dict[str, Any]

    def pictures(self, dataset: str) -> dict[str, tuple[Path, Path]]:
        """(photo, rendering) of every test view, by view name; of the last epoch that was tested."""
        epochs = sorted((self.folder / "rendered" / dataset).glob("test_epoch*"), key=lambda p: int(p.name.removeprefix("test_epoch")))
        if not epochs:
            return {}
        photos = {p.name.removesuffix("_gt.png"): p for p in epochs[-1].glob("*_gt.png")}
        return {view: (photo, photo.with_name(f"{view}_rendered.png")) for view, photo in sorted(photos.items())}


def read_runs(folders: list[Path]) -> list[Run]:
    """Reads runs. Raises InputError when one has no readable metrics.json, or is named twice."""
    if len(set(folders)) < len(folders):
        raise InputError("npbgpp.compare: a run is named twice; name every run once")
    contents = []
    for folder in folders:
        path = folder / "metrics.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content["datasets"], dict):
                raise ValueError("no scores per dataset")
        except FileNotFoundError:
            raise InputError(
                f"run {folder}: expected {path}, there is none; evaluate the run first (test_after_fit=true or eval_only=true)"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: expected the metrics of a run, got an unreadable file ({error}); evaluate the run again") from error
        contents.append(content)
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return [Run(folder, "/".join(folder.parts[-depth:]), content) for folder, content in zip(folders, contents, strict=True)]


def table_rows(runs: list[Run]) -> list[tuple[str, ...]]:
    """Cells of the table, dataset by dataset."""
    rows: list[tuple[str, ...]] = []
    for dataset in dict.fromkeys(name for run in runs for name in run.metrics["datasets"]):
        for run in runs:
            scores = run.metrics["datasets"].get(dataset)
            if scores is not None:
                lpips = "not available" if scores["lpips"] is None else f"{scores['lpips']:.4f}"
                numbers = (
                    f"{scores['psnr']:.2f}",
                    f"{scores['ssim']:.4f}",
                    lpips,
                    str(scores["views"]),
                    f"{scores['seconds_per_view']:.3f}",
                )
                rows.append((dataset, run.name, *numbers))
    return rows


def sheet(runs: list[Run]) -> Image.Image | None:
    """Photo and the rendering of every run, for views that all runs of a dataset rendered; None when they share none."""
    rows = []
    for dataset in dict.fromkeys(name for run in runs for name in run.metrics["datasets"]):
        found = [run.pictures(dataset) for run in runs]
        shared = [view for view in found[0] if all(view in other for other in found)]
        for view in shared[:: max(1, -(-len(shared) // _VIEWS))]:
            pictures = (found[0][view][0], *(other[view][1] for other in found))
            scores = [run.metrics["datasets"][dataset]["per_view"][view]["psnr"] for run in runs]
            caption = f"{dataset} {view}: PSNR " + ", ".join(f"{run.name} {psnr:.2f}" for run, psnr in zip(runs, scores, strict=True))
            rows.append(TileRow(caption, tuple(_read(path) for path in pictures)))
    return tile_sheet("Held-out views", ("photo", *(run.name for run in runs)), rows) if rows else None


def _read(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def compare(folders: list[Path], out: Path) -> None:
    """Prints the table, and writes it and the pictures into ``out``. Raises InputError for folders that are no evaluated runs."""
    runs = read_runs([folder.resolve() for folder in folders])
    rows = table_rows(runs)
    table = Table(*_COLUMNS, title="comparison")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    lines = ["| " + " | ".join(cells) + " |" for cells in (_COLUMNS, ("---",) * len(_COLUMNS), *rows)]
    write_atomically(out / "comparison.md", lambda file: file.write(("\n".join(lines) + "\n").encode()))
    picture = sheet(runs)
    if picture is None:
        log.warning("the runs share no rendered test view: no comparison.png")
        return
    write_image(out / "comparison.png", picture)
    log.info("table: %s; pictures side by side: %s", out / "comparison.md", out / "comparison.png")


def main() -> None:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(prog="python -m npbgpp.compare", description="Evaluated runs side by side: table and pictures.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, the first one on the left")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for comparison.md and comparison.png")
    options = parser.parse_args()
    try:
        compare(options.runs, options.out)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
