"""NPBG's ``paths.yaml`` (Aliev et al., Neural Point-Based Graphics, 2020): where the scene, the photos and the masks of data sets lie.

``datasets: {<name>: {scene_path, target_path, target_name_func, mask_path, mask_name_func}}``; the functions give the name of a file for the label of a camera
and are written in Python. They are not run: a few forms are understood, see ``NameRule``. Relative paths refer to the folder of the file, then to
``data_root`` of the sections of hosts, ``<host>: {data_root}``, in the order of the file.
"""

import ast
import os
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from npbgpp.errors import InputError

_DEFAULT_PHOTO_NAME = "{:06}.png"
_LONGEST_RULE = 200  # characters
_SPEC = re.compile(r"(?:0([0-9]{1,2}))?[sd]?")
_FORMS = (
    "one argument and a text in which only that stands in braces, such as lambda i: f'{i}.png', zeros in front as in f'{i:06}.png', "
    "a number made of the label as in f'{int(i):06}.png', or just {}.png"
)


@dataclass(frozen=True)
class _Label:
    """The place of the label in a name: filled with zeros to this width, as a number without those it has if it is one."""

    width: int
    is_number: bool


@dataclass(frozen=True)
class NameRule:
    """How the name of a file follows from a label.

    Attributes:
        text: as written.
        parts: what it says: fixed pieces and places of the label.
    """

    text: str
    parts: tuple[str | _Label, ...]

    @classmethod
    def parse(cls, text: object, where: str) -> "NameRule":
        """Reads ``lambda i: '<text>'``, ``lambda i: f'<text with {i}, {i:06}, {int(i):06}>'``, or ``<text with {} or {:06}>``.

        Raises:
            InputError: anything else; nothing is ever evaluated.
        """
        try:
            if not isinstance(text, str) or len(text) > _LONGEST_RULE:
                raise ValueError
            return cls(text, tuple(_of_lambda(text) if text.lstrip().startswith("lambda") else _of_format(text)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            shown = text[:_LONGEST_RULE] if isinstance(text, str) else type(text).__name__
            raise InputError(
                f"{where}: expected {_FORMS}, got {shown}; other Python is not run, write the name in one of these forms"
            ) from None

    def name(self, label: str) -> str:
        """The name of the file. Raises InputError when a number is to be made of a label that is none."""
        if any(isinstance(p, _Label) and p.is_number for p in self.parts) and not re.fullmatch("[0-9]+", label):
            raise InputError(
                f"name of a file {self.text}: expected labels that are numbers, got {label}; write {{i}} in place of {{int(i)}}"
            )
        return "".join(p if isinstance(p, str) else (label.lstrip("0") or "0" if p.is_number else label).zfill(p.width) for p in self.parts)


def _label(spec: str, is_number: bool) -> _Label:
    found = _SPEC.fullmatch(spec)
    if found is None:
        raise ValueError
    return _Label(int(found[1] or 0), is_number)


def _of_lambda(text: str) -> Iterator[str | _Label]:
    match ast.parse(text.strip(), mode="eval").body:
        case ast.Lambda(
            args=ast.arguments(posonlyargs=[], args=[ast.arg(arg=x)], vararg=None, kwonlyargs=[], kwarg=None, defaults=[]), body=body
        ):
            parts = body.values if isinstance(body, ast.JoinedStr) else [body]
        case _:
            raise ValueError
    for part in parts:
        match part:
            case ast.Constant(value=str(fixed)):
                yield fixed
            case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
                yield _label("", _is_number(value, x))
            case ast.FormattedValue(value=value, conversion=-1, format_spec=ast.JoinedStr(values=[ast.Constant(value=str(spec))])):
                yield _label(spec, _is_number(value, x))
            case _:
                raise ValueError


def _is_number(value: ast.expr, x: str) -> bool:
    """False for x, True for int(x)."""
    match value:
        case ast.Name(id=name) if name == x:
            return False
        case ast.Call(func=ast.Name(id="int"), args=[ast.Name(id=name)], keywords=[]) if name == x:
            return True
    raise ValueError


def _of_format(text: str) -> Iterator[str | _Label]:
    pieces = list(string.Formatter().parse(text))
    # quotes are Python, which is no name of a file
    if all(field is None for _, field, _, _ in pieces) or re.search("[\"']", text):
        raise ValueError
    for fixed, field, spec, conversion in pieces:
        yield fixed
        if field is not None:
            if field or conversion:
                raise ValueError
            yield _label(spec or "", False)


@dataclass(frozen=True)
class NamedFiles:
    """Files of a folder by the labels of cameras."""

    folder: Path
    rule: NameRule

    def path(self, label: str) -> Path:
        """Where the file of a label is; it need not exist. Raises InputError as ``NameRule.name`` does."""
        return self.folder / self.rule.name(label)


@dataclass(frozen=True)
class DatasetPaths:
    """Where a data set lies: its scene file, its photos, and its masks where it has any."""

    scene: Path
    photos: NamedFiles
    masks: NamedFiles | None

    @classmethod
    def read(cls, paths_file: Path, name: str) -> "DatasetPaths":
        """Reads one data set of a paths file. Raises InputError for an unreadable file, an unknown data set, a missing path or other functions."""
        content = read_yaml(paths_file)
        datasets = content.get("datasets")
        if not isinstance(datasets, dict) or not datasets:
            raise InputError(
                f"{paths_file}: expected datasets: {{<name>: {{scene_path: ..., target_path: ...}}}}, got none; correct the file"
            )
        entries = {str(key): value for key, value in datasets.items()}
        if name not in entries:
            raise InputError(f"{paths_file}: no dataset {name}; it holds {', '.join(sorted(entries)[:20])}: correct the name of the scene")
        entry, where = entries[name], f"{paths_file}: {name}"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected scene_path and target_path, got {type(entry).__name__}; correct the file")
        sections = [v for k, v in content.items() if k != "datasets" and isinstance(v, dict)]
        roots = [root for root in (section.get("data_root") for section in sections) if isinstance(root, str)]
        bases = [paths_file.parent, *(paths_file.parent / root for root in roots)]

        def files(key: str, default: str | None) -> NamedFiles:
            folder, function = _located(entry, f"{key}_path", bases, where), f"{key}_name_func"
            return NamedFiles(folder, NameRule.parse(entry.get(function, default), f"{where}: {function}"))

        # the original has no default for masks
        masks = files("mask", None) if entry.get("mask_path") is not None else None
        return cls(_located(entry, "scene_path", bases, where), files("target", _DEFAULT_PHOTO_NAME), masks)


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a yaml file. Raises InputError when the file is missing, damaged or holds something else."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; correct the path or restore it") from None
    # what PyYAML raises for damaged text besides its own errors
    except (yaml.YAMLError, OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: expected a yaml file, got a damaged or other one ({error}); correct it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a yaml file with keys, got {type(content).__name__}; correct it")
    return content


def _located(entry: dict[Any, Any], key: str, bases: list[Path], where: str) -> Path:
    """The first existing of the places that a path may mean."""
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {key}: expected a path, got {type(value).__name__}; correct the file")
    places = list(dict.fromkeys(base / value for base in bases))
    found = next((place for place in places if os.path.exists(place)), None)
    if found is None:
        raise InputError(f"{where}: {key}: expected {value} to exist, looked at {', '.join(map(str, places))}; correct the path")
    return found
