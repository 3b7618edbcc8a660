"""One file per layout on disk: each reads metadata only, writes nothing, and returns a Scene in the package's convention."""

from collections.abc import Callable

from npbgpp.data.parsers.nerf_synthetic import parse_nerf_synthetic
from npbgpp.data.scene import Scene

PARSERS: dict[str, Callable[..., Scene]] = {"nerf_synthetic": parse_nerf_synthetic}
