"""One file per layout on disk: each reads metadata only, writes nothing, and returns a Scene in the package's convention."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from npbgpp.data.parsers.dtu import parse_dtu
from npbgpp.data.parsers.h3ds import parse_h3ds
from npbgpp.data.parsers.nerf_synthetic import parse_nerf_synthetic
from npbgpp.data.parsers.scannet import parse_scannet
from npbgpp.data.scene import Scene


@dataclass(frozen=True)
class Layout:
    """How scenes lie on disk.

    Attributes:
        parse: reads the metadata of one scene: ``parse(root, images_root, name, cloud, **choices)``; the choices that it takes are among those of the
            ``datasets`` group.
        marks: what tells its folders: of every group one pattern matches a file below the folder.
    """

    parse: Callable[..., Scene]
    marks: tuple[tuple[str, ...], ...]

    def fits(self, folder: Path) -> bool:
        """Whether a folder looks like a scene of this layout."""
        return all(any(any(folder.glob(pattern)) for pattern in group) for group in self.marks)


# the more particular ones first: a folder may look like several
LAYOUTS: dict[str, Layout] = {
    "nerf_synthetic": Layout(parse_nerf_synthetic, (("transforms_train.json",),)),
    "scannet": Layout(parse_scannet, (("extrinsics.npy", "pose/*.txt"), ("images", "color"))),
    "h3ds": Layout(parse_h3ds, (("cameras.npz",), ("image/img_*",), ("mask/mask_*",))),
    "dtu": Layout(parse_dtu, (("cameras.npz", "cameras_sphere.npz"), ("image/*",), ("mask/*",))),
}


def recognise(folder: Path) -> tuple[str, ...]:
    """Names of the layouts that a folder looks like, the likeliest first; empty when it looks like none."""
    return tuple(name for name, layout in LAYOUTS.items() if layout.fits(folder))
