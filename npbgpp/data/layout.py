"""How scenes of one kind lie on disk: the interface of a dataset parser."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from npbgpp.core.config import typed
from npbgpp.data.scene import Scene

_STANDARD = ("root", "images_root", "name", "cloud", "downscale")


@dataclass(frozen=True)
class Layout:
    """A dataset layout.

    Attributes:
        parse: reads the metadata of one scene and writes nothing: ``parse(root, images_root, name, cloud, downscale=1.0, **options)`` with the folder of the
            scene, the folder of its photos (usually the same), its name and its ``CloudFile``. Further parameters, with type and default, are keys of the
            ``datasets`` group. Without ``downscale`` the views are reduced afterwards.
        marks: file patterns that identify a folder of the layout: one pattern of every group must match.
        precedence: of layouts that match, the one with the highest precedence is chosen.
        sampling: dataclass of further keys of the ``datasets`` group, for methods that draw rays from scenes of this layout; None: no such keys.
        locate: finds the folder of a scene from its name and the options, for layouts whose scenes are listed in a file; None: below ``data_root``.
        accepts: looks into the files of a folder whose names match, for layouts whose names say too little; None: the names are enough.
    """

    parse: Callable[..., Scene]
    marks: tuple[tuple[str, ...], ...]
    precedence: int = 10
    sampling: type | None = None
    locate: Callable[[str, Mapping[str, Any]], Path | None] | None = None
    accepts: Callable[[Path], bool] | None = None

    def fits(self, folder: Path) -> bool:
        """Whether a folder looks like a scene of this layout."""
        named = all(any(any(folder.glob(pattern)) for pattern in group) for group in self.marks)
        return named and (self.accepts is None or self.accepts(folder))

    @property
    def scales_itself(self) -> bool:
        """Whether ``parse`` reduces the views itself."""
        return "downscale" in inspect.signature(self.parse).parameters

    def options(self) -> dict[str, Any]:
        """Defaults of the options of ``parse``."""
        parameters = inspect.signature(self.parse).parameters.values()
        return {p.name: p.default for p in parameters if p.name not in _STANDARD}

    def declared_keys(self) -> frozenset[str]:
        """All keys of the ``datasets`` group that the layout declares."""
        return frozenset(self.options()) | frozenset(f.name for f in dataclasses.fields(self.sampling or _NoSampling))

    def checked_options(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Options of ``parse`` among some values, converted to their types. Raises InputError for a value of another type."""
        hints = get_type_hints(self.parse)
        schema = dataclasses.make_dataclass("Options", [(k, hints[k], field(default=None)) for k in self.options()])
        given = {key: value for key, value in values.items() if key in self.options()}
        found: Any = typed(schema, given, "datasets")
        return {key: getattr(found, key) for key in given}

    def sampling_options(self, values: Mapping[str, Any]) -> Any:
        """An instance of ``sampling`` from some values; None without. Raises InputError for a value of another type."""
        if self.sampling is None:
            return None
        names = {f.name for f in dataclasses.fields(self.sampling)}
        return typed(self.sampling, {key: value for key, value in values.items() if key in names}, "datasets")


@dataclass(frozen=True)
class _NoSampling:
    """A layout without sampling keys."""
