"""``npbgpp compare <run or sweep> ... [out=<folder>]``, the same as ``python -m npbgpp.compare``: evaluated runs side by side.

Reads ``metrics.json``, the command lines and the test images of run folders; prints a table and writes ``compare.md``, ``compare.html`` (one page with its
images inside) and ``compare.png``.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npbgpp.cli.command import Command, read_arguments, user_errors
from npbgpp.core.config import key


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Arguments of the command."""

    runs: tuple[Path, ...] = key(
        help="folders of runs or sweeps (hydra -m), the first one on the left", exists="the folder of a run or of a sweep"
    )
    out: Path = key(Path("."), help="folder for compare.md, compare.html and compare.png")
    trust_config: bool = key(False, help="also compare runs whose saved configs name other code than that of npbgpp and of plug-ins")


COMMAND = Command(
    "compare",
    "Compares evaluated runs in a table and a page of images.",
    CompareSettings,
    positional=("runs",),
    example="experiments/demo/npbgpp experiments/demo/npbg out=experiments/demo",
)


def compare(folders: Sequence[Path], out: Path, trust_config: bool = False) -> None:
    """Compares runs, and the runs of sweeps.

    Raises:
        InputError: folders without runs, a run, named as such, that was not evaluated, or a saved config that names other code, without ``trust_config``.
    """
    from npbgpp.compare.page import write_comparison
    from npbgpp.compare.runs import read_runs, runs_below
    from npbgpp.core.saved_config import launch_folder, saved_config

    found = [runs_below(folder.resolve()) for folder in folders]
    for run in (run for runs in found for run in runs):
        if (run / ".hydra" / "config.yaml").is_file():
            saved_config(run, launch_folder(run), trust_config)
    single = all(len(runs) == 1 for runs in found)
    write_comparison(read_runs([run for runs in found for run in runs], must_be_evaluated=single), out)


def _without_option(arguments: Sequence[str]) -> list[str]:
    """``--out <folder>`` as ``out=<folder>``."""
    words = [word.removeprefix("--") if word.startswith("--out=") else word for word in arguments]
    while "--out" in words[:-1]:
        k = words.index("--out")
        words[k : k + 2] = [f"out={words[k + 1]}"]
    return words


def main() -> None:
    """The command."""
    settings, _ = read_arguments(COMMAND, _without_option(sys.argv[1:]))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with user_errors():
        compare(settings.runs, settings.out, settings.trust_config)


if __name__ == "__main__":
    main()
