"""Commands as processes of their own, and what they cost."""

import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# runs a module or a script like the command line does, and then says on stderr whether torch was imported
_WATCHED = """
import runpy, sys
name, *sys.argv[1:] = sys.argv[1:]
try:
    if name.endswith(".py"):
        sys.argv[0] = name
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
finally:
    print("torch imported:", "torch" in sys.modules, file=sys.stderr)
"""


@dataclass(frozen=True)
class Done:
    """A finished command: exit code, what it printed, CPU seconds with start-up, and whether it imported torch."""

    code: int
    out: str
    err: str
    cpu_s: float
    imported_torch: bool


def run_watched(folder: Path, name: str, arguments: Sequence[str]) -> Done:
    """Runs ``python -m name`` or ``python name`` from a folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", _WATCHED, name, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said, _, rest = done.stderr.rpartition("torch imported: ")
    watched, _, end = rest.partition("\n")  # the message of SystemExit comes last
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Done(done.returncode, done.stdout, said + end, cpu_s, watched == "True")
