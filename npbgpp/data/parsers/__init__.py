"""One file per layout on disk: each reads metadata only, writes nothing, and returns a Scene in the package's convention."""

from collections.abc import Callable

from npbgpp.data.parsers.dtu import parse_dtu
from npbgpp.data.parsers.h3ds import parse_h3ds
from npbgpp.data.parsers.nerf_synthetic import parse_nerf_synthetic
from npbgpp.data.parsers.scannet import parse_scannet
from npbgpp.data.scene import Scene

PARSERS: dict[str, Callable[..., Scene]] = {
    "dtu": parse_dtu,
    "h3ds": parse_h3ds,
    "nerf_synthetic": parse_nerf_synthetic,
    "scannet": parse_scannet,
}
