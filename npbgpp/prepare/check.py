"""``python -m npbgpp.prepare check scene=<folder>``: prints a report of a scene, warns of problems and draws the cloud over the photos."""

import logging
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from npbgpp.data import CloudManifest
from npbgpp.errors import InputError
from npbgpp.io import write_png
from npbgpp.parsers import with_cloud
from npbgpp.prepare.check_sheet import check_sheet
from npbgpp.prepare.diagnostics import problems
from npbgpp.prepare.scene_choice import SceneChoice
from npbgpp.prepare.scene_report import Findings, axis_name, examine, short

log = logging.getLogger("npbgpp.prepare")


@dataclass(frozen=True)
class CheckSettings(SceneChoice):
    """Keys of ``check``.

    Attributes:
        near: near plane that training would use (``system.near``), scene units.
        pictures: how many photos are drawn on; up to 8 are opened.
        out: folder for the picture.
    """

    near: float = 1.0
    pictures: int = 4
    out: Path = Path("check")


def check(settings: CheckSettings) -> None:
    """Says what a scene is and what is wrong with it, and draws its cloud over its photos."""
    if settings.pictures < 1:
        raise InputError(f"pictures: expected at least 1, got {settings.pictures}")
    scene = with_cloud(settings.read(), settings.folder())
    manifest = CloudManifest.read(scene.cloud.path)
    findings = examine(scene, scene.layout, settings.near, settings.pictures, manifest.used_views if manifest else ())
    Console().print(table(findings))
    found = problems(findings)
    for problem in found:
        log.warning("problem: %s", problem)
    path = settings.out / f"{scene.name}.png"
    write_png(path, check_sheet(scene, findings))
    log.info("%s; cloud over photos and cameras from above: %s", f"{len(found)} problems" if found else "nothing is wrong", path)


def rows(f: Findings) -> list[tuple[str, str]]:
    """What was looked at, and what was found."""
    return [
        ("scene", f"{f.scene}, read as {f.layout}"),
        *_of_views(f),
        *_of_cameras(f),
        *_of_cloud(f),
        *_of_points_per_view(f),
        *_of_notes(f),
    ]


def table(f: Findings) -> Table:
    """``rows`` as a table."""
    drawn = Table("what", "found", title=escape(f"scene {f.scene}"))
    for what, found in rows(f):
        drawn.add_row(what, escape(found))
    return drawn


def _of_views(f: Findings) -> list[tuple[str, str]]:
    unused = f.count(None)
    counts = f"{len(f.views)}: {f.count('train')} training, {f.count('val')} validation, {f.count('test')} test" + (
        f", {unused} unused" if unused else ""
    )
    sizes = ", ".join(f"{width}x{height} ({count} views)" for (height, width), count in f.sizes)
    lenses = ", ".join(f"{model} ({count} views)" for model, count in f.lenses)
    return [
        ("views", counts),
        ("image sizes", sizes + (f"; {f.resized} photos are resampled to them" if f.resized else "")),
        ("masks", f"{f.masks} views" if f.masks else "none"),
        ("lenses", f"{lenses}: distortion is taken out when photos are read" if lenses else "pinhole, photos are taken as they are"),
    ]


def _of_cameras(f: Findings) -> list[tuple[str, str]]:
    cameras = f.cameras
    low, high = cameras.field_of_view
    view = f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"
    up = "no common direction" if cameras.up is None else f"{_coordinates(cameras.up)}, nearest to {axis_name(cameras.up)}"
    relative = f" ({cameras.baseline / cameras.distance:.2g} of the distance)" if cameras.distance > 0 else ""
    return [
        ("field of view", f"{view} degrees wide"),
        ("camera centres", f"{_coordinates(cameras.low)} to {_coordinates(cameras.high)}"),
        ("distance to the cloud", f"median {short(cameras.distance)}, from the middle of the cloud {_coordinates(f.cloud.middle)}"),
        ("neighbouring cameras", f"median {cameras.angle:.1f} degrees and {short(cameras.baseline)} apart{relative}"),
        ("up in the photos", up),
    ]


def _of_cloud(f: Findings) -> list[tuple[str, str]]:
    cloud = f.cloud
    colours = "with colours" if cloud.coloured else "without colours"
    carried = " (came with the poses)" if cloud.carried else ""
    agreement = "not compared"
    if f.colours is not None:
        agreement = (
            f"differ by {f.colours.at:.3f} where points fall, by {f.colours.beside:.3f} {f.colours.step} pixels beside: ratio {f.colours.ratio:.2f} "
            f"({f.colours.pairs} pixels of {len(f.photos)} photos)"
        )
    return [
        ("cloud", f"{cloud.path.name}{carried}: {cloud.points} points {colours}, {100 * cloud.unseen:.1f} % of them in no image"),
        ("extent of the cloud", f"{_coordinates(cloud.low)} to {_coordinates(cloud.high)}"),
        ("colours against photos", agreement),
    ]


def _of_points_per_view(f: Findings) -> list[tuple[str, str]]:
    shown = sorted(f.views, key=lambda view: view.shown)
    fewest, middle, most = shown[0], shown[len(shown) // 2], shown[-1]
    covered = sorted(view.visible / view.cells for view in f.views)
    nearest = [view.nearest for view in f.views if view.nearest is not None]
    sampled = f" (estimated from {f.cloud.examined} points)" if f.cloud.examined < f.cloud.points else ""
    near = f"{f.near:g}: {100 * f.before_near:.1f} % of the points in the images are at or before it"
    if f.suggested_near is not None:
        near += f"; {f.suggested_near:g} would drop next to none"
    depths = "no point in any image"
    if nearest and f.cameras.depth is not None:
        depths = f"nearest {short(min(nearest))}, median {short(f.cameras.depth)}"
    return [
        ("points per view", f"{fewest.shown} ({fewest.name}) to {most.shown} ({most.name}), median {middle.shown}{sampled}"),
        (
            "covered by points",
            f"{100 * covered[0]:.0f} to {100 * covered[-1]:.0f} % of the cells of 8x8 pixels, median {100 * covered[len(covered) // 2]:.0f} %",
        ),
        ("depth of the points", depths),
        ("near plane", near),
    ]


def _of_notes(f: Findings) -> list[tuple[str, str]]:
    return [("note", note) for note in f.notes]


def _coordinates(numbers: tuple[float, ...]) -> str:
    return "(" + ", ".join(short(number) for number in numbers) + ")"
