"""Programs of the project as processes of their own that start at once: a server that has imported the project forks them.

An interpreter takes seconds to import PyTorch and Lightning. Tests of imports and of an installation start one of their own with ``subprocess``.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..run_folders import REPOSITORY

TRAIN_NET = REPOSITORY / "train_net.py"

# found by the server, as this module
if str(REPOSITORY) not in sys.path:
    sys.path.append(str(REPOSITORY))
_CONTEXT = multiprocessing.get_context("forkserver")
# PyTorch imports the last one with the first optimiser
_CONTEXT.set_forkserver_preload(["npbgpp.engine.run", "torch._dynamo"])


def _main(
    name: str, arguments: list[str], folder: str, environment: dict[str, str], files: list[str], before: Callable[[], object] | None
) -> None:
    for number, file in enumerate(files, 1):
        written = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(written, number)
        os.close(written)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    if before is not None:
        before()
    if name.endswith(".py"):
        sys.argv[0], sys.path[0] = name, str(Path(name).parent)
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


class Program:
    """A process that runs ``python -m name arguments``, or ``python name arguments``; like ``subprocess.Popen``, with its output in files.

    Args:
        name: a module that has a ``__main__``, or the path of a script.
        arguments: of the command line.
        folder: working directory.
        together: standard error goes where the output goes.
        before: called first in the process; picklable.
        environment: variables beside those of the tests.
    """

    def __init__(
        self,
        name: str | Path,
        arguments: Sequence[object],
        folder: Path,
        *,
        together: bool = False,
        before: Callable[[], object] | None = None,
        **environment: str,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="program-")
        self._files = [Path(self._folder.name) / name for name in ("out", "out" if together else "err")]
        for file in self._files:
            file.touch()
        words = [str(word) for word in arguments]
        variables = {**os.environ, **environment}
        self._process = _CONTEXT.Process(
            target=_main, args=(str(name), words, str(folder), variables, [str(file) for file in self._files], before)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of a signal, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        return self.returncode

    @property
    def stdout(self) -> str:
        """What has been written so far."""
        return self._files[0].read_text()

    @property
    def stderr(self) -> str:
        """What has been written so far; equal to ``stdout`` when they go together."""
        return self._files[1].read_text()

    def wait(self, timeout: float = 300) -> int:
        """The exit code; raises TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self._process.name, timeout, self.stdout)
        return self._process.exitcode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Waits; output and errors."""
        self.wait(timeout)
        return self.stdout, self.stderr

    def send_signal(self, number: signal.Signals) -> None:
        """To the process, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)


def run_program(
    name: str | Path, arguments: Sequence[object], folder: Path, timeout: float = 300, **named: object
) -> subprocess.CompletedProcess:
    """Runs a program to its end; arguments as of ``Program``."""
    program = Program(name, arguments, folder, **named)  # type: ignore[arg-type]
    code = program.wait(timeout)
    return subprocess.CompletedProcess([name, *arguments], code, program.stdout, program.stderr)
