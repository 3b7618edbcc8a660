"""Diagnostics of a scene: what is wrong with it, with a number and what to do about it."""

from collections.abc import Callable, Sequence

from npbgpp.prepare.scene_report import Findings, short

_FEW_POINTS = 100  # in an image
_BEFORE_NEAR = 0.05  # share of the points that a near plane may drop
# measured on six scenes: 0.30 to 0.71 with right cameras, 0.86 and more with mirrored, turned and exchanged ones
_WORST_RATIO = 0.8
_SMALLEST_SPREAD = 1e-3  # of the distance to what the cameras see
_BEHIND = 0.9  # share of the cloud; cameras inside a room have half of it behind them
_FEWEST_VIEWS = 3
_DARK, _BRIGHT = 0.02, 0.98  # mean colour
_UNSEEN = 0.5  # share of the cloud


def problems(findings: Findings) -> tuple[str, ...]:
    """One sentence per problem, the gravest kinds first; empty for a good scene."""
    return tuple(sentence for kind in _KINDS for sentence in kind(findings))


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _behind(f: Findings) -> list[str]:
    found = sum(view.behind > _BEHIND for view in f.views)
    if 2 * found <= len(f.views):
        return []
    return [
        f"The cloud lies behind {found} of {len(f.views)} cameras: their viewing direction is probably reversed. Check the axes of the poses (OpenGL "
        "cameras look along -z, OpenCV cameras along +z), and that poses and cloud are of the same reconstruction."
    ]


def _blind(f: Findings) -> list[str]:
    said = bool(_behind(f))
    blind = [view for view in f.views if view.in_image < _FEW_POINTS and not (said and view.behind > _BEHIND)]
    if not blind:
        return []
    empty = sum(view.in_image == 0 for view in blind)
    return [
        f"{len(blind)} of {len(f.views)} views have fewer than {_FEW_POINTS} points in their image, {empty} of them none ({_names([v.name for v in blind])}). "
        "Leave these views out, use a denser cloud, or check that poses and cloud are of the same reconstruction."
    ]


def _near(f: Findings) -> list[str]:
    emptied = [view.name for view in f.views if view.in_image >= _FEW_POINTS > view.shown]
    if f.before_near <= _BEFORE_NEAR and not emptied:
        return []
    left = f"; {len(emptied)} views are left with fewer than {_FEW_POINTS} points ({_names(emptied)})" if emptied else ""
    return [
        f"{100 * f.before_near:.1f} % of the points in the images lie at or before the near plane {short(f.near)} and are dropped{left}. Set "
        f"system.near={f.suggested_near:g}."
    ]


def _colours(f: Findings) -> list[str]:
    if f.colours is None or f.colours.ratio <= _WORST_RATIO:
        return []
    return [
        f"The colours of the points fit the photos hardly better where they fall than {f.colours.step} pixels beside (differences {f.colours.at:.3f} and "
        f"{f.colours.beside:.3f}, ratio {f.colours.ratio:.2f}, below {_WORST_RATIO:g} in good scenes): poses, axes, intrinsics or the order of the photos "
        "are probably wrong. See whether the points in the picture lie on what they belong to."
    ]


def _spread(f: Findings) -> list[str]:
    size = max(f.cameras.distance, f.cameras.depth or 0.0)
    if len(f.views) < 2 or f.cameras.spread >= _SMALLEST_SPREAD * size:
        return []
    return [
        f"The cameras stand nearly all at one place: they are {short(f.cameras.spread)} from their middle, and {short(size)} from the points. Turning a camera "
        "shows no depth; take photos from different places, or check the translations of the poses."
    ]


def _few_views(f: Findings) -> list[str]:
    found = f.count("train")
    if found >= _FEWEST_VIEWS:
        return []
    return [
        f"{found} views are left for training; give the scene {_FEWEST_VIEWS} or more, or shorten the lists of validation and test views."
    ]


def _twins(f: Findings) -> list[str]:
    if not f.cameras.twins:
        return []
    (first, second), count = f.cameras.twins[0], len(f.cameras.twins)
    return [
        f"{count} pairs of views have the same pose, such as {first} and {second}. Remove the copies; where one of a pair is a test view, its score says "
        "nothing about new views."
    ]


def _photos(f: Findings) -> list[str]:
    found = []
    for word, names in (
        ("black", [photo.name for photo in f.photos if photo.brightness < _DARK]),
        ("white", [photo.name for photo in f.photos if photo.brightness > _BRIGHT]),
    ):
        if names:
            found.append(
                f"{len(names)} of {len(f.photos)} photos looked at are nearly {word} ({_names(names)}). Check how they were exported: bits per channel, alpha, "
                "exposure."
            )
    return found


def _masks(f: Findings) -> list[str]:
    masked = [photo for photo in f.photos if photo.masked is not None]
    found = []
    empty = [photo.name for photo in masked if photo.masked == 0]
    if empty:
        found.append(
            f"{len(empty)} of {len(masked)} masks looked at are empty ({_names(empty)}). Masks and alpha are bright on the object; check that they are not "
            "inverted."
        )
    if masked and all(photo.masked == 1 for photo in masked):
        found.append(
            f"All {len(masked)} masks looked at are full: they hide nothing. Check that masks, or the alpha channels of the photos, are the right ones."
        )
    return found


def _unseen(f: Findings) -> list[str]:
    if f.cloud.unseen <= _UNSEEN or _behind(f):
        return []
    return [
        f"{100 * f.cloud.unseen:.0f} % of the cloud is in no image: its points are never trained. Cut the cloud to what the photos show, and check that poses "
        "and cloud are of the same reconstruction."
    ]


def _sizes(f: Findings) -> list[str]:
    if len(f.sizes) < 2:
        return []
    listed = _names([f"{width}x{height}" for (height, width), _ in f.sizes])
    return [
        f"The images have {len(f.sizes)} sizes ({listed}), and a batch takes one: set datasets.train_image_size (a crop that fits all of them), or "
        "dataloader.train_total_batch_size=1."
    ]


def _leaks(f: Findings) -> list[str]:
    if not f.leaked:
        return []
    return [
        f"The cloud was made with {len(f.leaked)} of {f.count('test')} test views ({_names(f.leaked)}): scores on them are better than on new views. Make the "
        "cloud from the training views."
    ]


_KINDS: tuple[Callable[[Findings], list[str]], ...] = (
    _behind,
    _blind,
    _near,
    _colours,
    _spread,
    _few_views,
    _twins,
    _photos,
    _masks,
    _unseen,
    _sizes,
    _leaks,
)
