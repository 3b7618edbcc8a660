"""Methods and dataset layouts, ours and those of other packages, found through entry points.

A distribution registers classes of methods in the entry point group ``npbgpp.methods`` and dataset layouts in ``npbgpp.layouts``. Hydra configs in the
folder ``conf`` of a registering package are on the config search path.
"""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from npbgpp.core.paths import conf_folder
from npbgpp.errors import InputError

log = logging.getLogger(__name__)

METHODS, LAYOUTS = "npbgpp.methods", "npbgpp.layouts"
_OURS = "npbgpp"


@dataclass(frozen=True)
class Plugin:
    """One registered name.

    Attributes:
        name: of the method (``system.system_class``) or of the layout (``datasets.layout``).
        distribution: name and version of the package that registers it.
        entry_point: where its object is.
    """

    name: str
    distribution: str
    entry_point: EntryPoint

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution})"

    @property
    def is_ours(self) -> bool:
        """Whether this package registers it."""
        return self.distribution.partition(" ")[0] == _OURS

    def load(self, kind: type) -> Any:
        """Imports the object, an instance or a subclass of ``kind``.

        Raises:
            InputError: the import fails, or the object is something else; the message names the distribution.
        """
        try:
            found = self.entry_point.load()
        except Exception as error:
            if self.is_ours:
                raise
            raise InputError(
                f"plug-in {self.name} of {self.distribution}: expected an importable object {self.entry_point.value}, got {type(error).__name__}: {error}; "
                "repair or uninstall that package"
            ) from error
        if not (issubclass(found, kind) if isinstance(found, type) else isinstance(found, kind)):
            raise InputError(
                f"plug-in {self.name} of {self.distribution}: expected a {kind.__name__} at {self.entry_point.value}, got {found!r}; repair or uninstall "
                "that package"
            )
        return found


@functools.cache
def plugins(group: str) -> Mapping[str, Plugin]:
    """Registered names of a group, without importing anything. Where two distributions register one name, ours comes first, then the alphabet.

    Raises:
        InputError: this package is not installed, so that its own entry points are unknown.
    """
    found = [
        Plugin(point.name, f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown package", point)
        for point in entry_points(group=group)
    ]
    chosen: dict[str, Plugin] = {}
    for plugin in sorted(found, key=lambda plugin: (not plugin.is_ours, plugin.distribution)):
        if plugin.name in chosen:
            log.warning(
                "%s: %s and %s both register %s; that of %s is used",
                group,
                chosen[plugin.name].distribution,
                plugin.distribution,
                plugin.name,
                chosen[plugin.name].distribution,
            )
        else:
            chosen[plugin.name] = plugin
    if not any(plugin.is_ours for plugin in chosen.values()):
        raise InputError("npbgpp: expected the package to be installed, got no entry points of it; run pip install -e . in the checkout")
    return chosen


def load_plugin(group: str, kind: type, name: str, key: str) -> Any:
    """The object that is registered under a name.

    Args:
        group: METHODS or LAYOUTS.
        kind: type of the objects of the group, or their base class.
        name: as registered.
        key: config key that holds the name, for messages.

    Raises:
        InputError: an unknown name, an object that cannot be imported, or one of another type.
    """
    known = plugins(group)
    if name not in known:
        raise InputError(f"{key}: expected one of {', '.join(str(known[k]) for k in sorted(known))}, got {name}")
    return known[name].load(kind)


@functools.cache
def load_all(group: str, kind: type) -> Mapping[str, Any]:
    """Objects of a group by name. Those of other packages that cannot be imported are left out with a warning. Arguments as of ``load_plugin``."""
    loaded = {}
    for name, plugin in plugins(group).items():
        try:
            loaded[name] = plugin.load(kind)
        except InputError as error:
            if plugin.is_ours:
                raise
            log.warning("%s; it is left out", error)
    return loaded


def warn_of_broken_plugins(group: str, kind: type) -> None:
    """Warns of objects of other packages that cannot be imported. Imports none of ours. Arguments as of ``load_plugin``."""
    for plugin in plugins(group).values():
        if not plugin.is_ours:
            try:
                plugin.load(kind)
            except InputError as error:
                log.warning("%s; it is left out", error)


def config_folders() -> tuple[tuple[str, Path], ...]:
    """(distribution, folder ``conf`` of a package that registers something) of other distributions, without importing these packages."""
    folders: dict[Path, str] = {}
    for group in (METHODS, LAYOUTS):
        for plugin in plugins(group).values():
            if plugin.is_ours:
                continue
            spec = find_spec(plugin.entry_point.module.partition(".")[0])
            for place in (spec.submodule_search_locations or ()) if spec is not None else ():
                if (Path(place) / "conf").is_dir():
                    folders.setdefault(Path(place) / "conf", plugin.distribution)
    return tuple((distribution, folder) for folder, distribution in folders.items())


def warn_of_shared_configs() -> None:
    """Warns of config files of one name that several distributions have: Hydra takes the first one."""
    others, owners = config_folders(), dict[str, str]()
    for distribution, folder in (("npbgpp", conf_folder()), *others) if others else ():
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).as_posix()
            first = owners.setdefault(name, distribution)
            if first != distribution:
                log.warning("config %s: %s and %s both have it; that of %s is used", name, first, distribution, first)


class PluginConfigs(SearchPathPlugin):
    """Adds the config folders of other packages to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for distribution, folder in config_folders():
            search_path.append(distribution.partition(" ")[0], f"file://{folder}")


def register_config_folders() -> None:
    """Makes Hydra find the configs of plug-ins; to be called before Hydra composes a config."""
    warn_of_shared_configs()
    Plugins.instance().register(PluginConfigs)
