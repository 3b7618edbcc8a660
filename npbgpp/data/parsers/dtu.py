"""DTU scenes as IDR and the NPBG++ authors use them (Jensen et al., Large Scale Multi-view Stereopsis Evaluation, 2014): see ``idr.py`` for the files.

Photos are ``image/000000.png`` and so on, masks ``mask/000.png``; the world is in millimetres. Views are named by their numbers. Validation views are 5,
15, ..., 45 and held-out views 7, 12, ..., 47, as far as a scene has them; every view may train, ``Scene.with_splits`` takes these out.
"""

from pathlib import Path
from typing import Literal

from npbgpp.data.cloud_file import CloudFile
from npbgpp.data.parsers.idr import IdrFolder
from npbgpp.data.scene import Scene, Stage
from npbgpp.errors import InputError

_VALIDATION = range(5, 46, 10)
_HELD_OUT = range(7, 48, 5)


def parse_dtu(
    root: Path,
    images_root: Path,
    name: str,
    cloud: CloudFile,
    white_bg: bool = True,
    intrinsics: Literal["authors", "exact"] = "authors",
) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with ``cameras.npz`` or ``cameras_sphere.npz``.
        images_root: folder with ``image`` and ``mask``, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        white_bg: white outside the masks; otherwise the colours are taken as they are.
        intrinsics: authors: the mean over the views for all; exact: those of each view.

    Raises:
        InputError: missing or damaged files, numbers of photos, masks and matrices that differ, pictures of different sizes.
    """
    folder = IdrFolder.read(root, images_root)
    unmatched = folder.unmatched()
    if unmatched is not None:
        raise InputError(
            f"{root}: expected a photo, a mask and a matrix world_mat_<number> per view, got {unmatched}; restore what is missing"
        )
    views = folder.views(tuple(folder.images), 1, white_bg, intrinsics)
    splits: dict[Stage, range] = {"train": range(len(views)), "val": _VALIDATION, "test": _HELD_OUT}
    present = {stage: tuple(i for i in chosen if i < len(views)) for stage, chosen in splits.items()}
    return Scene(name, views, present, cloud, notes=folder.notes)
