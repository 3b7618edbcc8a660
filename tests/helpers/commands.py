"""Commands run in the process of the tests."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


class Command:
    """Calls the ``main`` of a command in a working directory.

    Args:
        main: reads its arguments from ``sys.argv``.
        request: of the test.
        folder: working directory.
    """

    def __init__(self, main: Callable[[], None], request: pytest.FixtureRequest, folder: Path) -> None:
        self.main = main
        self.patch, self.capsys, self.caplog = (request.getfixturevalue(name) for name in ("monkeypatch", "capsys", "caplog"))
        self.caplog.set_level(logging.INFO)
        self.patch.chdir(folder)
        self.patch.setenv("COLUMNS", "160")

    def __call__(self, *arguments: object) -> str:
        """Runs the command; returns its output and its log on one line."""
        self.patch.setattr(sys, "argv", ["npbgpp", *map(str, arguments)])
        self.caplog.clear()
        self.main()
        return " ".join((self.capsys.readouterr().out + " " + self.caplog.text).split())

    def refused(self, *arguments: object) -> str:
        """The error message of a command that exits with code 1; it is a single line."""
        with pytest.raises(SystemExit) as caught:
            self(*arguments)
        message = str(caught.value.code)
        assert message.startswith("error: ") and "\n" not in message.strip()
        return message


def exit_of(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Runs a command; returns its exit code or message, 0 where it ends without one."""
    monkeypatch.setattr(sys, "argv", ["npbgpp", *arguments])
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0
