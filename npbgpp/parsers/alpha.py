"""Alpha channels of photos in layouts that do not define them."""

from collections.abc import Sequence
from dataclasses import replace

from npbgpp.data import WHITE, View, has_alpha
from npbgpp.errors import listing


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
