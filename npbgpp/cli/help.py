"""Layout of help texts: keys with their defaults and meaning."""

import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_NAME_WIDTH = 34
_LONGEST_LINE = 140


@dataclass(frozen=True)
class KeyHelp:
    """One key of a command.

    Attributes:
        name: as it is typed.
        default: its value when it is not given, as it would be typed; None: it must be given.
        help: what it means.
        choices: all values that it accepts; empty: any of its type.
    """

    name: str
    default: str | None
    help: str
    choices: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The entry of the key in a help text."""
        text = self.help if not self.choices else f"{self.help.rstrip('.')}{'. ' if self.help else ''}One of {', '.join(self.choices)}."
        return entry(
            f"{self.name}=" if self.default is None else f"{self.name}={self.default}", text + " (required)" * (self.default is None)
        )


def entry(name: str, text: str) -> list[str]:
    """A name and the text that explains it, in two columns."""
    width = min(shutil.get_terminal_size().columns, _LONGEST_LINE) - 1
    body = textwrap.wrap(text, max(width - _NAME_WIDTH, 30), break_long_words=False, break_on_hyphens=False)
    left = f"  {name}"
    if len(left) + 2 > _NAME_WIDTH:
        return [left, *(" " * _NAME_WIDTH + line for line in body)]
    return [left.ljust(_NAME_WIDTH) + (body[0] if body else ""), *(" " * _NAME_WIDTH + line for line in body[1:])]


def typed_value(value: Any) -> str:
    """A value as it would be typed on the command line."""
    if isinstance(value, str | Path):
        return str(value) or "''"
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def section(title: str, keys: Iterable[KeyHelp]) -> list[str]:
    """A titled list of keys, with an empty line before it."""
    return ["", f"{title}:", *(line for key in keys for line in key.lines())]


def paragraph(text: str) -> list[str]:
    """Running text in lines of the terminal's width."""
    width = min(shutil.get_terminal_size().columns, _LONGEST_LINE) - 1
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
