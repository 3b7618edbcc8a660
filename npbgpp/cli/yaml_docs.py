"""Documentation of config keys, read from the comments of their yaml files.

A comment stands behind a key or in the lines directly above it; the comment that a file begins with documents the file. A sentence ``One of a, b, c.`` lists
all values that a key accepts.
"""

import re
from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_COMMENT = re.compile(r"\s*#\s?(.*?)\s*$")


def header(text: str) -> str:
    """The comment that a yaml file begins with, in one line; empty without one. Hydra's directives (``# @package``) do not count."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("#").strip())
    return " ".join(lines)


def first_sentence(text: str) -> str:
    """Text up to its first full stop."""
    return re.split(r"\.(?:\s+(?=[A-Z])|$)", text, maxsplit=1)[0]


def key_comments(text: str) -> dict[str, str]:
    """Comments of the keys of a yaml file by their dotted names; keys without a comment are left out."""
    node = yaml.compose(text, Loader=_LOADER)
    found: dict[str, str] = {}
    if isinstance(node, yaml.MappingNode):
        lines = text.splitlines()
        first = next((k for k, line in enumerate(lines) if not line.startswith("#")), len(lines))
        _collect(node, "", lines, first, found)
    return found


def _collect(node: yaml.MappingNode, prefix: str, lines: list[str], first: int, found: dict[str, str]) -> None:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        nested = isinstance(value, yaml.MappingNode | yaml.SequenceNode) and not value.flow_style
        # a block ends behind its last line, so its comment is behind the key
        line, column = (key.end_mark.line, key.end_mark.column + 1) if nested else (value.end_mark.line, value.end_mark.column)
        behind = _COMMENT.fullmatch(lines[line][column:]) if line < len(lines) else None
        above = key.start_mark.line
        while above > first and lines[above - 1].lstrip().startswith("#"):
            above -= 1
        parts = [line.strip().lstrip("#").strip() for line in lines[above : key.start_mark.line]] if not node.flow_style else []
        if behind is not None:
            parts.append(behind[1])
        if parts:
            found[name] = " ".join(parts)
        if isinstance(value, yaml.MappingNode):
            _collect(value, f"{name}.", lines, first, found)


def choices(comment: str) -> tuple[str, ...]:
    """Accepted values that a comment lists, without what it says about them in brackets; empty where any value of the right type may be."""
    match = re.search(r"\bOne of ([^.;]+)", re.sub(r"\s*\([^()]*\)", "", comment))
    return tuple(word for word in re.split(r",\s*(?:or\s+)?|\s+or\s+", match[1].strip()) if word) if match is not None else ()
