"""Masks of photos, in layouts that do not define them: files in a folder of their own beside the folder of the photos, and alpha channels.

The mask of the photo ``x.jpg`` is ``x.jpg.png`` as in COLMAP, ``x_mask.png`` as Metashape exports, or ``x.png`` with any suffix of an image.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from npbgpp.data import IMAGE_SUFFIXES, WHITE, View, check_mask_size, has_alpha
from npbgpp.errors import listing


def find_masks(folder: Path, names: Sequence[tuple[str, str]], white_bg: bool) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """One mask per photo, or none at all if some photo has none; and a note.

    Args:
        folder: of the masks, with the folders that the names have.
        names: of the photos, with folders: the stated one and that of the file.
        white_bg: whether the photos become white outside the masks.
    """
    files = files_in(folder, [name for both in names for name in both])
    masks: list[Path] = []
    for both in names:
        stems = [without_suffix(name) for name in both]
        rules = [f"{name}.png" for name in both] + [stem + end for end in (*IMAGE_SUFFIXES, "_mask.png") for stem in stems]
        masks += [files[rule] for rule in rules if rule in files][:1]
    if len(masks) == len(names):
        return tuple(masks), (f"the photos are white outside the masks in {folder.name}",) if white_bg else ()
    return (), (f"{len(masks)} of {len(names)} photos have a mask in {folder.name}: no mask is used",) if masks else ()


def with_mask(view: View, mask: Path, white_bg: bool) -> View:
    """The view with a mask. Raises InputError for a mask of another aspect ratio than the photo."""
    check_mask_size(mask, view.image)
    return replace(view, mask=mask, background=WHITE if white_bg else None)


def files_in(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Files in the folders of these names, by their name relative to ``folder``; hidden files are ignored."""
    files = {}
    for place in dict.fromkeys((PurePosixPath(), *(PurePosixPath(name).parent for name in names))):
        try:
            files.update({str(place / path.name): path for path in sorted((folder / place).iterdir()) if not path.name.startswith(".")})
        except OSError:
            continue  # reported by the caller as photos without file
    return files


def without_suffix(name: str) -> str:
    """Without the suffix of an image: 2021.05.00 has none."""
    return re.sub(r"\.[A-Za-z][A-Za-z0-9]{0,4}$", "", name)


def with_alpha(views: Sequence[View], white_bg: bool) -> tuple[tuple[View, ...], tuple[str, ...]]:
    """Views whose photos have alpha, and a note: alpha is the mask where all photos have it, and transparent pixels are white with ``white_bg``.

    Views with a mask keep it. Where only some photos have alpha there is no mask, and transparent pixels are white.
    """
    transparent = [view.mask is None and has_alpha(view.image) for view in views]
    if not any(transparent):
        return tuple(views), ()
    if all(transparent):
        background = WHITE if white_bg else None
        note = "the alpha channel of the photos is their mask" + (", transparent pixels are white" if white_bg else "")
        return tuple(replace(view, alpha_is_mask=True, background=background) for view in views), (note,)
    names = [view.name for view, clear in zip(views, transparent, strict=True) if clear]
    note = f"{len(names)} of {len(views)} photos have an alpha channel ({listing(names)}): it is no mask, and their transparent pixels are white"
    return tuple(replace(view, background=WHITE) if clear else view for view, clear in zip(views, transparent, strict=True)), (note,)
