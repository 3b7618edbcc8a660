"""Layout of help texts: keys with their defaults and meaning."""

import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_WIDEST_NAMES = 34
_LONGEST_LINE = 140


@dataclass(frozen=True)
class KeyHelp:
    """One key of a command.

    Attributes:
        name: as it is typed.
        default: its value when it is not given, as it would be typed; None: it must be given.
        help: what it means.
        choices: all values that it accepts; empty: any of its type.
        takes_list: it accepts several of the choices.
    """

    name: str
    default: str | None
    help: str
    choices: tuple[str, ...] = ()
    takes_list: bool = False

    def entry(self) -> tuple[str, str]:
        """The key with its default, and the text that explains it."""
        sentences = [self.help]
        if self.choices:
            sentences = [f"{self.help.rstrip('.')}.", f"{'Any' if self.takes_list else 'One'} of {', '.join(self.choices)}."]
        if self.default is None:
            sentences.append("(required)")
        return f"{self.name}={self.default or ''}", " ".join(sentences).strip()


def columns(entries: Iterable[tuple[str, str]]) -> list[str]:
    """Names and the texts that explain them, in two columns; the lines of a text are wrapped one by one."""
    entries = list(entries)
    left = min(max((len(name) for name, _ in entries), default=0) + 4, _WIDEST_NAMES)
    lines = []
    for name, text in entries:
        body = [part for line in text.splitlines() for part in _wrapped(line, _width() - left)] or [""]
        if len(name) + 3 > left:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name}".ljust(left) + body.pop(0))
        lines += [" " * left + line for line in body]
    return [line.rstrip() for line in lines]


def section(title: str, keys: Iterable[KeyHelp]) -> list[str]:
    """A titled list of keys, with an empty line before it."""
    return ["", f"{title}:", *columns(key.entry() for key in keys)]


def paragraph(text: str) -> list[str]:
    """Running text in lines of the terminal's width."""
    return _wrapped(text, _width())


def _width() -> int:
    return min(shutil.get_terminal_size().columns, _LONGEST_LINE) - 1


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 30), break_long_words=False, break_on_hyphens=False)


def typed_value(value: Any) -> str:
    """A value as it would be typed on the command line."""
    if isinstance(value, str | Path):
        return str(value) or "''"
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000, sort_keys=False).removesuffix("...\n").strip()
    return (
        text.replace(", ", ",") if isinstance(value, tuple | list) else text
    )  # without spaces, which a shell would take for ends of words


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value
