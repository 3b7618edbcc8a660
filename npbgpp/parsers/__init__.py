"""Dataset layouts: one module per layout, each with a ``LAYOUT`` that is registered as an entry point ``npbgpp.layouts``.

A parser reads metadata only, writes nothing, and returns a Scene in the package's convention.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from npbgpp.core.paths import conf_folder
from npbgpp.core.plugins import LAYOUTS, config_folders, load_all, plugins
from npbgpp.data import CLOUD_SUFFIXES, IMAGE_SUFFIXES, CloudFile, Layout, Scene, fitted
from npbgpp.errors import InputError, listing
from npbgpp.geometry import far_offset

_NO_CLOUDS = (".txt", ".npy", ".npz", ".out")  # suffixes of clouds that files of other kinds have too


def layouts() -> dict[str, Layout]:
    """All layouts by name, those with the highest precedence first."""
    return dict(sorted(load_all(LAYOUTS, Layout).items(), key=lambda item: (-item[1].precedence, item[0])))


def layout_keys() -> frozenset[str]:
    """Keys of the ``datasets`` group that some layout declares."""
    return frozenset(key for layout in layouts().values() for key in layout.declared_keys())


def recognise(folder: Path) -> tuple[str, ...]:
    """Names of the layouts that a folder looks like, the likeliest first; empty when it looks like none."""
    return tuple(name for name, layout in layouts().items() if layout.fits(folder))


def find_layout(name: str) -> Layout:
    """A layout by name. Raises InputError, which lists the known ones, for an unknown name."""
    if name not in layouts():
        known = plugins(LAYOUTS)
        raise InputError(f"datasets.layout: expected auto or one of {', '.join(str(known[k]) for k in sorted(layouts()))}, got {name}")
    return layouts()[name]


def locate_scene(layout: str, name: str, options: Mapping[str, Any]) -> Path | None:
    """The folder of a scene whose place is listed in a file, as the options say; None for scenes below ``data_root``."""
    candidates = layouts().values() if layout == "auto" else (find_layout(layout),)
    found = (candidate.locate(name, options) for candidate in candidates if candidate.locate is not None)
    return next((folder for folder in found if folder is not None), None)


def read_scene(layout: str, root: Path, images_root: Path, name: str, cloud: CloudFile, choices: Mapping[str, Any]) -> Scene:
    """Reads the metadata of one scene.

    Args:
        layout: a registered name, or ``auto`` for the likeliest one.
        root: folder of the scene.
        images_root: folder with its photos, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        choices: ``downscale`` and options of layouts; missing ones have their defaults.

    Raises:
        InputError: an unknown layout, a folder that looks like none, an option that the layout does not have, or whatever is wrong with the scene.
    """
    notes: tuple[str, ...] = ()
    if layout == "auto":
        found = recognise(root)
        if not found:
            raise InputError(
                f"scene {name}: {root} looks like none of the layouts {', '.join(sorted(layouts()))}; {found_in(root)}. If it is one of them, name it with "
                "datasets.layout=<name>"
            )
        layout = found[0]
        others = f" (it could also be {', '.join(found[1:])}: choose with datasets.layout)" if found[1:] else ""
        notes = (f"read as {layout}{others}",)
    chosen = find_layout(layout)
    downscale = float(choices.get("downscale", 1.0))
    if not 1 <= downscale < math.inf:
        raise InputError(f"datasets.downscale: expected 1 or more, got {downscale}")
    _refuse_foreign_options(layout, chosen, choices)
    options = chosen.checked_options(choices) | ({"downscale": downscale} if chosen.scales_itself else {})
    scene = chosen.parse(root, images_root, name, cloud, **options)
    far = far_offset(torch.cat([view.camera.centers() for view in scene.views]))
    if far is not None:
        raise InputError(
            f"scene {name}: expected cameras near the origin for layout {layout}, got positions about {far}, which single precision does not resolve; subtract "
            "this position from poses and points, or convert the scene to COLMAP's or nerfstudio's format, from which it is subtracted when read"
        )
    if not chosen.scales_itself and downscale != 1:
        scene = replace(scene, views=tuple(fitted(view, downscale) for view in scene.views))
    return replace(scene, layout=layout, notes=(*notes, *scene.notes))


def _refuse_foreign_options(name: str, chosen: Layout, choices: Mapping[str, Any]) -> None:
    """Raises InputError for an option of another layout that does not have its default."""
    for other in layouts().values():
        for key, default in other.options().items():
            if key not in chosen.options() and choices.get(key, default) not in (default, default or {}):
                raise InputError(f"datasets.{key}: layout {name} has no such option, got {choices[key]}; leave it at {default}")


def with_cloud(scene: Scene, root: Path) -> Scene:
    """The scene with its cloud file if that exists; otherwise with the points that came with the poses, and a note that says so.

    Raises:
        InputError: there is neither, or a cloud that was named is missing.
    """
    path = scene.cloud.path
    if path.is_file():
        return scene
    require_named_cloud(scene, root)
    if scene.carried_points is None:
        raise _no_cloud(scene, root)
    denser = any(view.depth is not None or view.mask is not None or view.alpha_is_mask for view in scene.views)
    make = (
        f"npbgpp prepare cloud scene={root} makes one from depth maps or masks"
        if denser
        else f"npbgpp prepare dense scene={root} makes one"
    )
    note = f"there is no cloud {path.name}, the points of {scene.carried_points} are used ({make})"
    return replace(scene, cloud=scene.cloud.of_points(scene.carried_points, scene.carried_transform), notes=(*scene.notes, note))


def require_named_cloud(scene: Scene, root: Path) -> None:
    """Raises InputError for a missing cloud whose name is not one that a choice of ``datasets`` has by default: it was named, and is wanted."""
    path = scene.cloud.path
    if not path.is_file() and path not in (root / name for name in _usual_clouds()):
        raise _no_cloud(scene, root)


def _usual_clouds() -> set[str]:
    """Values of ``pc_name`` in the yaml files of datasets, of this project and of plug-ins."""
    folders = (conf_folder(), *(folder for _, folder in config_folders()))
    contents = [yaml.safe_load(path.read_text(encoding="utf-8")) for folder in folders for path in (folder / "datasets").glob("*.yaml")]
    return {str(content["pc_name"]) for content in contents if isinstance(content, dict) and content.get("pc_name") is not None}


def _no_cloud(scene: Scene, root: Path) -> InputError:
    path = scene.cloud.path
    others = sorted(p.name for p in root.glob("*") if p.suffix.lower() in CLOUD_SUFFIXES and p.suffix.lower() not in _NO_CLOUDS)
    close = difflib.get_close_matches(path.name, others, n=1)
    meant = f"did you mean {close[0]}? Else " if close else ""
    there = f"clouds there: {', '.join(others[:5])}; " if others else ""
    return InputError(
        f"point cloud {path}: no such file; {meant}name the cloud of scene {scene.name} with datasets.pc_name=<file> ({there}npbgpp prepare cloud scene={root} "
        "makes one)"
    )


# ----------------------------------------------------------------------
# What a folder holds that is a scene of none of the layouts: for the message that says how to go on


_VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm")
_CLOUDS = (".ply", ".pcd", ".las", ".laz", ".xyz", ".e57", ".pts")
_MOST = 10_000  # files that are listed
# patterns of files of other programs, what they are, and what to do
_OTHERS = (
    ("sfm_data*.json", "OpenMVG", "export to COLMAP (openMVG_main_openMVG2Colmap)"),
    ("*.sfm", "Meshroom (AliceVision)", "export to COLMAP (aliceVision_exportColmap)"),
    ("*.nvm", "VisualSFM", "open it with COLMAP, or reconstruct the photos with COLMAP"),
    ("bundle*.out", "perhaps Bundler, but not in its version 0.3", "export it again, or reconstruct the photos with COLMAP"),
    ("*.psx", "a Metashape project", "export cameras (File > Export > Export Cameras, XML) and a cloud"),
    ("cameras.xml", "perhaps cameras of Metashape, but without a chunk", "export the cameras again (File > Export > Export Cameras, XML)"),
    ("*.csv", "no camera parameters of RealityCapture", "export Registration > Internal/External camera parameters, or COLMAP's format"),
    ("*.rcproj", "a RealityCapture project", "export the registration in COLMAP's format"),
    ("*.r3d", "Record3D", "convert it with ns-process-data record3d"),
    ("keyframes", "Polycam", "convert it with ns-process-data polycam"),
    ("database.db", "a COLMAP database without a model", "finish the reconstruction: colmap mapper"),
    ("*.zip", "an archive", "unpack it"),
)


def found_in(root: Path) -> str:
    """One sentence on the files of a folder, with the next step."""
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        return f"the folder cannot be read ({error.strerror}): correct the path"
    if not entries:
        return "the folder is empty: correct the path"
    for pattern, what, remedy in _OTHERS:
        names = sorted(path.name for path in root.glob(pattern))
        if names:
            return f"there is {names[0]} ({what}), which is not read: {remedy}"
    for folder in (root, root / "images", root / "input", root / "frames"):
        if folder.is_dir():
            files = [path for _, path in zip(range(_MOST), folder.iterdir(), strict=False)]
            photos = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in files)
            videos = [path.name for path in files if path.suffix.lower() in _VIDEOS]
            place = "" if folder == root else f" in {folder.name}"
            if photos:
                there = "is 1 photo" if photos == 1 else f"are {photos} photos"
                return (
                    f"there {there}{place} without poses: find them with npbgpp prepare photos {folder} <scene>, or reconstruct the photos with COLMAP into "
                    f"{root / 'sparse'} (docs/datasets.md)"
                )
            if videos:
                return (
                    f"there is a video ({listing(videos)}){place}: find its poses with npbgpp prepare photos {folder / videos[0]} <scene>, or see npbgpp prepare "
                    "monocular for moving scenes"
                )
    clouds = [path.name for path in entries if path.suffix.lower() in _CLOUDS]
    if clouds:
        return f"there are clouds ({listing(clouds)}), but neither photos nor poses: add them"
    folders = [path for path in entries if path.is_dir()]
    scenes = [path.name for path in folders if (path / "images").is_dir() or any(path.glob("transforms*.json"))]
    if scenes:
        return f"there are scenes in it ({listing(scenes)}): choose one of them"
    return f"there is {listing(path.name for path in entries)}: correct the path, or reconstruct the photos with COLMAP"
