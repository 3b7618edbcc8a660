"""Compares finished runs: ``python -m npbgpp.compare <run or sweep> ... --out <folder>``.

Reads ``metrics.json``, the configs and the test images of run folders; prints a table and writes ``compare.md``, ``compare.html`` (with its images
embedded) and ``compare.png``.
"""

import argparse
import logging
import sys
from pathlib import Path

from npbgpp.compare.page import write_comparison
from npbgpp.compare.runs import read_runs, runs_below
from npbgpp.errors import InputError


def compare(folders: list[Path], out: Path) -> None:
    """Compares runs and the runs of sweeps. Raises InputError for folders without runs, and for single runs that were not evaluated."""
    found = [runs_below(folder.resolve()) for folder in folders]
    single = all(len(runs) == 1 for runs in found)
    write_comparison(read_runs([run for runs in found for run in runs], must_be_evaluated=single), out)


def main() -> None:
    """Command line entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(prog="python -m npbgpp.compare", description="Compares evaluated runs: table and images.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs or sweeps (hydra -m), from left to right")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for compare.md, compare.html and compare.png")
    options = parser.parse_args()
    try:
        compare(options.runs, options.out)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
