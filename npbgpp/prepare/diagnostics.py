"""Diagnostics of a scene: each message gives a number and advice."""

from collections.abc import Callable, Sequence

from npbgpp.prepare.scene_report import SceneReport, format_number

_MIN_POINTS = 100  # in an image
_MAX_CLIPPED = 0.05  # fraction of the points in the images
# measured on six scenes: 0.30 to 0.71 with correct cameras, 0.86 and more with mirrored, rotated and permuted ones
_MAX_COLOUR_RATIO = 0.8
_MIN_SPREAD = 1e-3  # of the distance to the points
_MAX_BEHIND = 0.9  # fraction of the cloud; cameras inside a room have half of it behind them
_MIN_TRAIN_VIEWS = 3
_DARK, _BRIGHT = 0.02, 0.98  # mean colour
# a cloud is sparse if its points cover few cells of a view (fraction, or of those inside its mask) and lie singly in these
_MIN_COVERED, _MIN_DENSITY = 0.3, 3.0
_MAX_UNSEEN = 0.5  # fraction of the cloud


def diagnose(report: SceneReport) -> dict[str, str]:
    """A message per kind of problem, the gravest first; empty for a good scene."""
    messages = {kind: check(report) for kind, check in _CHECKS.items()}
    return {kind: message for kind, message in messages.items() if message is not None}


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _reversed_cameras(r: SceneReport) -> str | None:
    count = sum(view.behind > _MAX_BEHIND for view in r.views)
    if 2 * count <= len(r.views):
        return None
    return (
        f"The cloud lies behind {count} of {len(r.views)} cameras: their viewing direction is probably reversed. Check the axes of the poses (OpenGL cameras "
        "look along -z, OpenCV cameras along +z), and that poses and cloud are from the same reconstruction."
    )


def _unreadable_photos(r: SceneReport) -> str | None:
    if not r.unreadable:
        return None
    count = len(r.unreadable)
    return f"{_number(count, 'photo')} of {len(r.views)} cannot be decoded, such as: {r.unreadable[0]}"


def _number(count: int, name: str) -> str:
    return f"{count} {name}" + ("" if count == 1 else "s")


def _sparse_cloud(r: SceneReport) -> str | None:
    if r.cloud is None or _reversed_cameras(r) is not None:
        return None
    seen = [view for view in r.views if view.covered_cells]
    masked = [photo.masked for photo in r.photos if photo.masked]
    shares = sorted(view.covered_cells / view.cells for view in seen)
    densities = sorted(view.beyond_near / view.covered_cells for view in seen)
    share = shares[len(seen) // 2] / (sum(masked) / len(masked) if masked else 1.0) if seen else 1.0
    if share >= _MIN_COVERED or densities[len(seen) // 2] >= _MIN_DENSITY:
        return None
    return (
        f"The cloud is too sparse for NPBG and NPBG++: points cover {100 * share:.0f} % of the cells of 8x8 pixels in the median view, and are single there. "
        "Make a dense cloud (npbgpp prepare dense; npbgpp prepare cloud fuses depth maps or masks; Metashape: Build Dense Cloud), or use "
        "system=gaussians or system=nerf."
    )


def _empty_views(r: SceneReport) -> str | None:
    if r.cloud is None:
        return None
    explained = _reversed_cameras(r) is not None
    few = [view for view in r.views if view.in_image < _MIN_POINTS and not (explained and view.behind > _MAX_BEHIND)]
    if not few:
        return None
    empty = sum(view.in_image == 0 for view in few)
    return (
        f"{len(few)} of {len(r.views)} views have fewer than {_MIN_POINTS} points in their image, {empty} of them none "
        f"({_list_names([view.name for view in few])}). Remove these views, use a denser cloud, or check that poses and cloud are from the same reconstruction."
    )


def _near_plane(r: SceneReport) -> str | None:
    emptied = [view.name for view in r.views if view.in_image >= _MIN_POINTS > view.beyond_near]
    if r.clipped <= _MAX_CLIPPED and not emptied:
        return None
    rest = f"; {len(emptied)} views keep fewer than {_MIN_POINTS} points ({_list_names(emptied)})" if emptied else ""
    return (
        f"The near plane {format_number(r.near)} clips {100 * r.clipped:.1f} % of the points in the images{rest}. Set "
        f"system.near={r.suggested_near:g}."
    )


def _colours(r: SceneReport) -> str | None:
    if r.colours is None or r.colours.ratio <= _MAX_COLOUR_RATIO:
        return None
    return (
        f"Colours of points fit the photos hardly better at their projection than {r.colours.shift} pixels beside it (differences {r.colours.at:.3f} and "
        f"{r.colours.beside:.3f}, ratio {r.colours.ratio:.2f}, below {_MAX_COLOUR_RATIO:g} in good scenes): poses, axes, intrinsics or the order of the photos "
        "are probably wrong. Check on the contact sheet whether points lie on the surfaces that they belong to."
    )


def _single_viewpoint(r: SceneReport) -> str | None:
    distance = max(r.cameras.distance, r.cameras.depth or 0.0)
    if len(r.views) < 2 or r.cameras.spread >= _MIN_SPREAD * distance:
        return None
    return (
        f"All cameras are nearly at the same position: their median distance from its centre is {format_number(r.cameras.spread)}, the points are "
        f"{format_number(distance)} away. Rotation alone shows no parallax; take photos from different positions, or check the translations of the poses."
    )


def _train_views(r: SceneReport) -> str | None:
    count = r.count("train")
    if count >= _MIN_TRAIN_VIEWS:
        return None
    return f"The scene has {count} training views. Provide at least {_MIN_TRAIN_VIEWS}, or shorten the lists of validation and test views."


def _duplicate_poses(r: SceneReport) -> str | None:
    if not r.cameras.duplicates:
        return None
    (first, second), count = r.cameras.duplicates[0], len(r.cameras.duplicates)
    return (
        f"{count} pairs of views have the same pose, such as {first} and {second}. Remove the duplicates; if one of a pair is a test view, its score says "
        "nothing about novel views."
    )


def _dark_photos(r: SceneReport) -> str | None:
    return _exposure(r, "black", [photo.name for photo in r.photos if photo.brightness < _DARK])


def _bright_photos(r: SceneReport) -> str | None:
    return _exposure(r, "white", [photo.name for photo in r.photos if photo.brightness > _BRIGHT])


def _exposure(r: SceneReport, colour: str, names: list[str]) -> str | None:
    if not names:
        return None
    return (
        f"{len(names)} of {len(r.photos)} decoded photos are nearly {colour} ({_list_names(names)}). Check how they were exported: bits per channel, alpha, "
        "exposure."
    )


def _masks(r: SceneReport) -> str | None:
    masked = [photo for photo in r.photos if photo.masked is not None]
    empty = [photo.name for photo in masked if photo.masked == 0]
    if empty:
        return (
            f"{len(empty)} of {len(masked)} decoded masks are empty ({_list_names(empty)}). Masks and alpha are bright on the object; check that they are not "
            "inverted."
        )
    if masked and all(photo.masked == 1 for photo in masked):
        return f"All {len(masked)} decoded masks cover the whole photo. Check the mask files, or the alpha channels of the photos."
    return None


def _unseen_points(r: SceneReport) -> str | None:
    if r.cloud is None or r.cloud.unseen <= _MAX_UNSEEN or _reversed_cameras(r) is not None:
        return None
    return (
        f"{100 * r.cloud.unseen:.0f} % of the cloud is outside of every image and is never trained. Crop the cloud to the photographed part, and check that "
        "poses and cloud are from the same reconstruction."
    )


def _leaked_test_views(r: SceneReport) -> str | None:
    if not r.leaked:
        return None
    return (
        f"The cloud was made with {len(r.leaked)} of {r.count('test')} test views ({_list_names(r.leaked)}): their scores are better than those of novel "
        "views. Make the cloud from the training views."
    )


_CHECKS: dict[str, Callable[[SceneReport], str | None]] = {
    "unreadable photos": _unreadable_photos,
    "reversed cameras": _reversed_cameras,
    "sparse cloud": _sparse_cloud,
    "empty views": _empty_views,
    "near plane": _near_plane,
    "colours": _colours,
    "single viewpoint": _single_viewpoint,
    "training views": _train_views,
    "duplicate poses": _duplicate_poses,
    "dark photos": _dark_photos,
    "bright photos": _bright_photos,
    "masks": _masks,
    "unseen points": _unseen_points,
    "leaked test views": _leaked_test_views,
}
