"""The yaml files that runs are composed from, as Hydra finds them: groups, choices, keys and their documentation.

Everything goes through Hydra's search path, so that configs of plug-ins and of ``hydra.searchpath`` count like our own.
"""

import functools
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from npbgpp.core.paths import conf_folder
from npbgpp.core.plugins import register_config_folders

ROOT = "config"


class ConfigTree:
    """The config files that a command line can choose from.

    Args:
        loader: of Hydra.
        search_path: entries of ``hydra.searchpath`` on the command line, such as ``file:///home/me/conf``.
    """

    def __init__(self, loader: ConfigLoader, search_path: Sequence[str] = ()) -> None:
        self._loader, self._search_path = loader, tuple(search_path)

    @property
    def _overrides(self) -> list[str]:
        return [f"hydra.searchpath=[{','.join(self._search_path)}]"] if self._search_path else []

    @functools.cached_property
    def _folders(self) -> list[Any]:
        """Folders of the search path in its order, without those of Hydra."""
        paths = [f"{source.scheme()}://{source.path}" for source in self._loader.get_sources() if source.provider != "hydra"]
        return _folders_at(paths) + self._added_folders

    @functools.cached_property
    def _added_folders(self) -> list[Any]:
        return _folders_at(self._search_path)

    @functools.cached_property
    def groups(self) -> list[str]:
        """Groups that have a file in these folders, parents before children."""
        found = {
            path.parent.relative_to(folder).as_posix()
            for folder in self._folders
            if isinstance(folder, Path)
            for path in folder.rglob("*.yaml")
            if path.parent != folder and not path.name.startswith("_")
        }
        return sorted(found)

    def options(self, group: str) -> list[str]:
        """Choices of a group, those of Hydra's own groups too. Fragments for use by other files begin with an underscore and are left out."""
        return [option for option in self.options_and_fragments(group) if not option.startswith("_")]

    def options_and_fragments(self, group: str) -> list[str]:
        """Choices of a group, and the files that choices are made of; empty for what is no group.

        ``ConfigLoader.get_group_options`` gives the same, but composes the config anew at every call.
        """
        found = {name for source in self._loader.get_sources() if source.is_group(group) for name in source.list(group, ObjectType.CONFIG)}
        for folder in self._added_folders:
            found |= {path.stem for path in (folder / group).glob("*.yaml")}
        return sorted(found)

    def text(self, name: str) -> str | None:
        """Text of a config file such as ``datasets/monocular``; None for those of Hydra."""
        for folder in self._folders:
            file = folder / f"{name}.yaml"
            if file.is_file():
                return str(file.read_text(encoding="utf-8"))
        return None

    def summary(self, group: str, option: str) -> str:
        """What the file of a choice says about itself."""
        return header(self.text(f"{group}/{option}") or "")

    def compose(self, overrides: Sequence[str], may_miss_groups: bool = False) -> DictConfig:
        """The config with its ``hydra`` node that a command line gives. Raises HydraException where it gives none."""
        mode = RunMode.MULTIRUN if may_miss_groups else RunMode.RUN  # Hydra insists on mandatory groups in single runs only
        return self._loader.load_configuration(ROOT, [*self._overrides, *overrides], mode, validate_sweep_overrides=False)

    def comments(self, overrides: Sequence[str]) -> dict[str, str]:
        """Documentation of the keys of a command line by their dotted names.

        Where several files comment on a key, the first one documents it, and the others give reasons for their values. Experiments do not count.
        """
        found: dict[str, str] = {}
        for default in self._loader.compute_defaults_list(ROOT, [*self._overrides, *overrides], RunMode.MULTIRUN).defaults:
            name = default.config_path
            text = None if name is None or name.startswith("experiment/") else self.text(name)
            for key, comment in ({} if text is None else key_comments(text)).items():
                full = f"{default.package}.{key}" if default.package else key
                found[full] = f"{found[full]} ({name.rpartition('/')[2]}: {comment})" if full in found else comment
        return found


def _folders_at(search_path: Sequence[str]) -> list[Any]:
    """Folders of entries of a search path; other kinds of entries have none."""
    folders: list[Any] = []
    for path in search_path:
        scheme, _, place = path.rpartition("://")
        if scheme == "pkg":
            folders.append(files(place.replace("/", ".")))
        elif scheme in ("file", ""):
            folders.append(Path(place))
    return folders


def flattened(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested mappings by dotted names; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def plain(node: DictConfig) -> dict[str, Any]:
    """A config as a container, with its interpolations as they are written."""
    container = OmegaConf.to_container(node, resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


@contextmanager
def config_loader() -> Iterator[ConfigLoader]:
    """Hydra's loader for the config files of the project and of plug-ins."""
    register_config_folders()
    with warnings.catch_warnings(), initialize_config_dir(str(conf_folder()), version_base="1.3"):
        warnings.simplefilter("ignore")  # Hydra says the same again when it composes the config of the run
        yield GlobalHydra.instance().config_loader()


# ----------------------------------------------------------------------
# Documentation of keys, read from the comments of their yaml files.
#
# A comment stands behind a key or in the lines directly above it; the comment that a file begins with documents the file. A sentence ``One of a, b, c.`` lists
# all values that a key accepts.


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
