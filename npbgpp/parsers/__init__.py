"""One file per layout on disk: each reads metadata only, writes nothing, and returns a Scene in the package's convention."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npbgpp.data import CloudFile, Scene, fitted
from npbgpp.errors import InputError
from npbgpp.parsers.colmap import parse_colmap
from npbgpp.parsers.idr import parse_dtu, parse_h3ds
from npbgpp.parsers.llff import parse_llff
from npbgpp.parsers.monocular import parse_monocular
from npbgpp.parsers.nerf_synthetic import parse_nerf_synthetic
from npbgpp.parsers.npbg import parse_npbg
from npbgpp.parsers.npcr import parse_npcr
from npbgpp.parsers.scannet import parse_scannet


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
    "monocular": Layout(parse_monocular, (("images/*",), ("disps/*",), ("flow_fw/*.flo",), ("flow_bw/*.flo",))),
    "scannet": Layout(parse_scannet, (("extrinsics.npy", "pose/*.txt"), ("images", "color"))),
    "h3ds": Layout(parse_h3ds, (("cameras.npz",), ("image/img_*",), ("mask/mask_*",))),
    "dtu": Layout(parse_dtu, (("cameras.npz", "cameras_sphere.npz"), ("image/*",), ("mask/*",))),
    "npcr": Layout(parse_npcr, (("CamPose.inf",), ("Intrinsic.inf",))),
    "npbg": Layout(parse_npbg, (("scene.yaml",),)),
    "llff": Layout(parse_llff, (("poses_bounds.npy",),)),
    "colmap": Layout(parse_colmap, (("sparse/cameras.*", "sparse/*/cameras.*", "cameras.bin", "cameras.txt"), ("images", "images_*"))),
}


def recognise(folder: Path) -> tuple[str, ...]:
    """Names of the layouts that a folder looks like, the likeliest first; empty when it looks like none."""
    return tuple(name for name, layout in LAYOUTS.items() if layout.fits(folder))


# what a layout does that does not have the choice
_WITHOUT_CHOICE = {
    "white_bg": True,
    "compositing": "authors",
    "intrinsics": "authors",
    "views": None,
    "published_views": {},
    "paths_file": None,
    "start_end": None,
    "img_wh": None,
}


def read_scene(layout: str, root: Path, images_root: Path, name: str, cloud: CloudFile, choices: Mapping[str, Any]) -> Scene:
    """Reads the metadata of one scene.

    Args:
        layout: a name of ``LAYOUTS``, or ``auto`` for the likeliest one.
        root: folder of the scene.
        images_root: folder with its photos, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        choices: what the ``datasets`` group says, those that are missing are as usual; of them a parser gets those that it takes.

    Raises:
        InputError: an unknown layout, a folder that looks like none, a choice that the layout does not have, or whatever is wrong with the scene.
    """
    notes: tuple[str, ...] = ()
    if layout == "auto":
        found = recognise(root)
        if not found:
            raise InputError(
                f"scene {name}: {root} looks like none of the layouts {', '.join(sorted(LAYOUTS))}; name its layout: datasets.layout=<name>"
            )
        layout = found[0]
        others = f" (it could also be {', '.join(found[1:])}: choose with datasets.layout)" if found[1:] else ""
        notes = (f"read as {layout}{others}",)
    if layout not in LAYOUTS:
        raise InputError(f"datasets.layout: expected auto or one of {', '.join(sorted(LAYOUTS))}, got {layout}")
    downscale = choices.get("downscale", 1.0)
    if not 1 <= downscale < math.inf:
        raise InputError(f"datasets.downscale: expected 1 or more, got {downscale}")
    parse = LAYOUTS[layout].parse
    takes = inspect.signature(parse).parameters
    for key, value in _WITHOUT_CHOICE.items():
        if key not in takes and choices.get(key, value) != value:
            raise InputError(f"datasets.{key}: layout {layout} has no such choice, got {choices[key]}; leave it at {value}")
    scene = parse(root, images_root, name, cloud, **{key: value for key, value in choices.items() if key in takes})
    if "downscale" not in takes and downscale != 1:
        scene = replace(scene, views=tuple(fitted(view, downscale) for view in scene.views))
    return replace(scene, layout=layout, notes=(*notes, *scene.notes))


def with_cloud(scene: Scene, root: Path) -> Scene:
    """The scene as it is when its cloud is there; otherwise points that came with the poses take its place, and a note says so.

    Raises:
        InputError: there is neither.
    """
    path = scene.cloud.path
    if path.is_file():
        return scene
    others = sorted(p.name for p in root.glob("*.ply"))
    there = f"clouds there: {', '.join(others[:5])}; " if others else ""
    make = f"{there}python -m npbgpp.prepare cloud scene={root} makes one"
    if scene.carried_points is None:
        raise InputError(f"point cloud {path}: no such file; name the cloud of scene {scene.name} with datasets.pc_name=<file> ({make})")
    note = f"there is no cloud {path.name}, the points of {scene.carried_points} are used ({make} of more points)"
    return replace(scene, cloud=replace(scene.cloud, path=scene.carried_points), notes=(*scene.notes, note))
