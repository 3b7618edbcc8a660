"""``npbgpp prepare check``: prints a report of a scene, warns of problems, and draws the cloud over the photos."""

import logging
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from npbgpp.core.paths import require_writable
from npbgpp.data import CloudManifest
from npbgpp.io import write_png
from npbgpp.parsers import with_cloud
from npbgpp.prepare.check_sheet import check_sheet
from npbgpp.prepare.diagnostics import diagnose
from npbgpp.prepare.scene_report import SceneReport, format_number, inspect_scene, nearest_axis
from npbgpp.prepare.settings import CheckSettings

log = logging.getLogger("npbgpp.prepare")

_FEW_CLIPPED = 1e-3  # fraction of the points in the images that may lie before the near plane


def check(settings: CheckSettings) -> int:
    """Prints the report and the diagnostics of a scene, writes its contact sheet, and returns the number of problems.

    A scene needs no cloud, unless one is named. Raises InputError for a scene that cannot be read.
    """
    scene = settings.read()
    named = settings.pc_name != CheckSettings(scene=settings.scene).pc_name
    if named or scene.cloud.path.exists() or scene.carried_points is not None:
        scene = with_cloud(scene, settings.folder())
    folder = settings.out or settings.folder() / "check"
    require_writable(folder, "out")
    manifest = CloudManifest.read(scene.cloud.path)
    report = inspect_scene(scene, settings.near, settings.pictures, manifest.used_views if manifest else ())
    table = Table("property", "value", title=escape(f"scene {report.scene}"))
    for name, value in format_report(report):
        table.add_row(name, escape(value))
    Console().print(table)
    problems = diagnose(report)
    for message in problems.values():
        log.warning("problem: %s", message)
    path = folder / f"{scene.name}.png"
    write_png(path, check_sheet(scene, report))
    found = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}" if problems else "no problems"
    log.info("%s; contact sheet: %s", found, path)
    return len(problems)


def format_report(report: SceneReport) -> list[tuple[str, str]]:
    """(property, value) of each line of the printed report."""
    return [
        ("scene", f"{report.scene}, read as {report.layout}"),
        *_image_rows(report),
        *_camera_rows(report),
        *_cloud_rows(report),
        *_projection_rows(report),
        *(("note", note) for note in report.notes),
    ]


def _image_rows(r: SceneReport) -> list[tuple[str, str]]:
    several = "; batches of several photos need datasets.train_image_size" if len(r.sizes) > 1 else ""
    unused = f", {r.count(None)} unused" if r.count(None) else ""
    sizes = ", ".join(f"{width}x{height} ({count} views)" for (height, width), count in r.sizes)
    lenses = ", ".join(f"{model} ({count} views)" for model, count in r.lenses)
    return [
        ("views", f"{len(r.views)}: {r.count('train')} training, {r.count('val')} validation, {r.count('test')} test{unused}"),
        ("image sizes", sizes + (f"; {r.resized} photos are resampled" if r.resized else "") + several),
        ("masks", f"{r.masks} views" if r.masks else "none"),
        ("lenses", f"{lenses}, undistorted when photos are read" if lenses else "pinhole"),
    ]


def _camera_rows(r: SceneReport) -> list[tuple[str, str]]:
    cameras = r.cameras
    low, high = (f"{angle:.1f}" for angle in cameras.field_of_view)
    up = "no common direction" if cameras.up is None else f"{_coordinates(cameras.up)}, nearest to {nearest_axis(cameras.up)}"
    relative = f" ({cameras.baseline / cameras.distance:.2g} of the distance)" if cameras.distance > 0 else ""
    return [
        ("horizontal field of view", f"{low if low == high else f'{low} to {high}'} degrees"),
        ("camera centres", f"{_coordinates(cameras.low)} to {_coordinates(cameras.high)}"),
        (
            ("distance to what they look at", f"median {format_number(cameras.distance)}")
            if r.cloud is None
            else ("distance to the cloud", f"median {format_number(cameras.distance)}, to the median point {_coordinates(r.cloud.median)}")
        ),
        ("neighbouring cameras", f"median {cameras.angle:.1f} degrees and {format_number(cameras.baseline)} apart{relative}"),
        ("up direction", up),
    ]


def _cloud_rows(r: SceneReport) -> list[tuple[str, str]]:
    cloud, consistency = r.cloud, "not compared"
    if cloud is None:
        return [("cloud", "none: NeRF, NSFF and gaussians need none; npbgpp prepare dense and prepare cloud make one")]
    if r.colours is not None:
        consistency = (
            f"difference {r.colours.at:.3f} at the projection, {r.colours.beside:.3f} at {r.colours.shift} pixels beside it: ratio {r.colours.ratio:.2f} "
            f"({r.colours.pairs} pixels of {len(r.photos)} photos)"
        )
    origin = " (from the reconstruction)" if cloud.from_reconstruction else ""
    colours = "with colours" if cloud.coloured else "without colours"
    return [
        ("cloud", f"{cloud.path.name}{origin}: {cloud.points} points {colours}, {100 * cloud.unseen:.1f} % outside of every image"),
        ("extent of the cloud", f"{_coordinates(cloud.low)} to {_coordinates(cloud.high)}"),
        ("colours against photos", consistency),
    ]


def _projection_rows(r: SceneReport) -> list[tuple[str, str]]:
    if r.cloud is None:
        return []
    ordered = sorted(r.views, key=lambda view: view.beyond_near)
    fewest, median, most = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    covered = sorted(100 * view.covered_cells / view.cells for view in r.views)
    sampled = f" (estimated from {r.cloud.sampled} points)" if r.cloud.sampled < r.cloud.points else ""
    depth = "no points in any image" if r.cameras.depth is None else f"median {format_number(r.cameras.depth)}"
    near = r.near if r.clipped <= _FEW_CLIPPED or r.suggested_near is None else r.suggested_near
    return [
        (
            "points per view",
            f"{fewest.beyond_near} ({fewest.name}) to {most.beyond_near} ({most.name}), median {median.beyond_near}{sampled}",
        ),
        (
            "image coverage",
            f"{covered[0]:.0f} to {covered[-1]:.0f} % of the cells of 8x8 pixels contain a point, median {covered[len(covered) // 2]:.0f} %",
        ),
        ("depth of the points", depth),
        ("recommended near plane", f"system.near={near:g}"),
    ]


def _coordinates(numbers: Sequence[float]) -> str:
    return "(" + ", ".join(format_number(number) for number in numbers) + ")"
