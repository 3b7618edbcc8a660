"""Report of a scene that was made from photos: one HTML page without other files, and a PNG contact sheet, in the folder of the scene."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from jinja2 import Environment, PackageLoader
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from npbgpp.core.files import write_atomically
from npbgpp.data import CloudFile, CloudManifest, Scene, open_image
from npbgpp.geometry import PointCloud
from npbgpp.io import depth_colormap, depth_range, write_png
from npbgpp.kernels.rasterization import ChunkedCloud
from npbgpp.parsers import read_scene, with_cloud
from npbgpp.prepare.check import render_depth, top_and_side_view
from npbgpp.prepare.photos_manifest import PhotosManifest, ScenePhoto
from npbgpp.prepare.scene_report import SceneReport, diagnose, format_number, inspect_scene

CLOUD = "mvs_pc.ply"  # the dense cloud, of which the report tells if there is one
_NEAR = 1.0  # the near plane that trainings have
_THUMBNAIL = 160  # pixels, longer side
_TILES_A_ROW = 6
_GAP, _CAPTION, _LINE, _BORDER = 8, 34, 20, 2
_BOX_WIDTH = _THUMBNAIL + 2 * _BORDER
_WIDTH = _TILES_A_ROW * (_BOX_WIDTH + _GAP) + _GAP
_PAPER, _INK, _SOFT = (250, 250, 248), (30, 30, 34), (110, 110, 116)
_GOOD, _WEAK, _BAD = (40, 130, 70), (220, 140, 0), (200, 30, 60)
_WEAK_POINTS = 100  # fewer make a pose uncertain
_QUALITY = 85  # of embedded JPEG thumbnails


@dataclass(frozen=True)
class Outcome:
    """What a training on the scene gave, for the page.

    Attributes:
        title: method and steps.
        scores: (name, value) of the held-out views.
        film: path of the video, or None.
        pictures: (caption, image) of rendered views beside their photos.
    """

    title: str
    scores: tuple[tuple[str, str], ...]
    film: Path | None
    pictures: tuple[tuple[str, Image.Image], ...]


@dataclass(frozen=True)
class _Tile:
    """A photo on the sheet and on the page.

    ``state`` is good, weak or out; ``covered`` the share of the photo with points, None without a pose; ``depth`` its depths in colours, None without a pose or a
    dense cloud.
    """

    photo: ScenePhoto
    state: str
    covered: float | None
    image: Image.Image | None
    depth: Image.Image | None

    @property
    def pictures(self) -> list[Image.Image]:
        """What the tile shows, from top to bottom."""
        return [picture for picture in (self.image, self.depth) if picture is not None]

    @property
    def caption(self) -> str:
        """Two lines."""
        if not self.photo.registered:
            return self.photo.reason
        covered = "" if self.covered is None else f", {100 * self.covered:.0f} % covered"
        return f"{self.photo.points} points{covered}"


def write_report(folder: Path, manifest: PhotosManifest, outcome: Outcome | None = None, page: Path | None = None) -> None:
    """Writes the report of a scene.

    Args:
        folder: of the scene.
        manifest: how it was made.
        outcome: of a training, for the page.
        page: the HTML page, beside which the contact sheet is written; None: ``report.html`` in the folder of the scene.

    Raises:
        InputError: the scene cannot be read, or a file not be written.
    """
    page = page or folder / "report.html"
    scene, report = _inspect(folder)
    cloud = scene.cloud.read()
    depths = _depths(scene, cloud) if scene.cloud.path == folder / CLOUD else _Depths({}, 0.0, 0.0)
    tiles = _tiles(folder, manifest, scene, report, depths)
    drawing = top_and_side_view(scene, report, cloud, _WIDTH)
    warnings = (*manifest.warnings, *diagnose(report).values())
    write_png(page.with_suffix(".png"), _sheet(_title(folder), manifest, report, tiles, drawing, warnings, depths.legend))
    environment = Environment(loader=PackageLoader("npbgpp.prepare", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template("report.html.jinja").render(
        title=_title(folder),
        facts=_facts(manifest, report),
        warnings=warnings,
        drawing=_embedded(drawing, "PNG"),
        tiles=[(tile, [_embedded(picture, "JPEG") for picture in tile.pictures]) for tile in tiles],
        depth_legend=depths.legend,
        left_out=[photo for photo in manifest.photos if not photo.registered],
        attempts=manifest.attempts,
        seconds=manifest.seconds,
        command=manifest.command,
        outcome=outcome,
        pictures=() if outcome is None else [(caption, _embedded(image, "JPEG")) for caption, image in outcome.pictures],
        film=None if outcome is None or outcome.film is None else _embedded_video(outcome.film),
    )
    write_atomically(page, lambda file: file.write(text.encode("utf-8")))


def _title(folder: Path) -> str:
    return folder.name if folder.name != "scene" else folder.resolve().parent.name


def _inspect(folder: Path) -> tuple[Scene, SceneReport]:
    cloud = CloudFile(folder / CLOUD)
    scene = with_cloud(read_scene("colmap", folder, folder, folder.name, cloud, {"white_bg": True, "downscale": 1.0}), folder)
    made_from = CloudManifest.read(scene.cloud.path) if scene.cloud.path == folder / CLOUD else None
    return scene, inspect_scene(scene, _NEAR, cloud_views=() if made_from is None else made_from.used_views)


def _facts(manifest: PhotosManifest, report: SceneReport) -> list[tuple[str, str]]:
    assert report.cloud is not None, "the reconstruction has points"
    sizes = ", ".join(f"{width}x{height} ({count})" for (height, width), count in report.sizes)
    low, high = report.cameras.field_of_view
    angle = f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"
    covered = sorted(view.covered_cells / view.cells for view in report.views)
    kind = "sparse points of the reconstruction" if report.cloud.from_reconstruction else f"points of {report.cloud.path.name}"
    return [
        ("photos", f"{len(manifest.registered)} of {len(manifest.photos)} with a pose"),
        ("splits", f"{report.count('train')} training, {report.count('val')} validation, {report.count('test')} test"),
        ("sizes", sizes),
        ("horizontal field of view", f"{angle} degrees"),
        ("reprojection error", f"{manifest.error_px:.2f} pixels, mean"),
        ("cloud", f"{report.cloud.points:,} {kind}"),
        ("coverage", f"{100 * covered[0]:.0f} to {100 * covered[-1]:.0f} % of a photo, median {100 * covered[len(covered) // 2]:.0f} %"),
        ("neighbouring photos", f"{report.cameras.angle:.1f} degrees apart, seen from the middle of the points"),
    ]


@dataclass(frozen=True)
class _Depths:
    """Depths of the points of the dense cloud by the file of the photo, at the size of thumbnails, 0 where there is no point; and the ends of their colours."""

    by_photo: dict[Path, Float[Tensor, "h w"]]
    near: float
    far: float

    @property
    def legend(self) -> str:
        """Says what the colours mean; empty without depths."""
        if not self.by_photo:
            return ""
        near, far = format_number(self.near), format_number(self.far)
        return f"Below each photo the depths of {CLOUD}, from {near} (red) to {far} scene units (blue); black is without points"

    def picture(self, photo: Path | None) -> Image.Image | None:
        """The depths of a photo in colours."""
        depth = None if photo is None else self.by_photo.get(photo)
        if depth is None:
            return None
        colours = depth_colormap(depth, self.near, self.far)
        return Image.fromarray((colours * 255).round().byte().permute(1, 2, 0).numpy())


def _depths(scene: Scene, cloud: PointCloud) -> _Depths:
    """Depths of the dense cloud in all views, also of those that it was not made from. Colours are the same for all."""
    chunks = ChunkedCloud.build(cloud.xyz)
    found = {}
    for view in scene.views:
        height, width = view.camera.image_size
        scale = min(1.0, _THUMBNAIL / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        found[view.image] = render_depth(chunks, view.camera.resize(size), _NEAR)
    near, far = depth_range(torch.cat([depth.flatten() for depth in found.values()]))
    return _Depths(found, near, far)


def _tiles(folder: Path, manifest: PhotosManifest, scene: Scene, report: SceneReport, depths: _Depths) -> list[_Tile]:
    covered = {view.image: entry.covered_cells / entry.cells for view, entry in zip(scene.views, report.views, strict=True)}
    tiles = []
    for photo in manifest.photos:
        path = None if photo.name is None else folder / "images" / photo.name
        state = "out" if not photo.registered else "weak" if photo.points < _WEAK_POINTS else "good"
        image = None
        if path is not None and path.is_file():
            with open_image(path) as file:
                file.draft("RGB", (_THUMBNAIL, _THUMBNAIL))
                image = file.convert("RGB")
            image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
        tiles.append(_Tile(photo, state, None if path is None else covered.get(path), image, depths.picture(path)))
    return sorted(tiles, key=lambda tile: ("out", "weak", "good").index(tile.state))


def _embedded(image: Image.Image, form: str) -> str:
    """A data URL."""
    buffer = io.BytesIO()
    image.save(buffer, format=form, **({"quality": _QUALITY} if form == "JPEG" else {}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _embedded_video(path: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


# ------------------------------------------------------------------ contact sheet
def _sheet(
    title: str,
    manifest: PhotosManifest,
    report: SceneReport,
    tiles: Sequence[_Tile],
    drawing: Image.Image,
    warnings: Sequence[str],
    depth_legend: str,
) -> Image.Image:
    small, large = ImageFont.load_default(13), ImageFont.load_default(20)
    facts = [f"{name}: {value}" for name, value in _facts(manifest, report)]
    problems = [line for warning in warnings for line in _wrapped(f"! {warning}", small, _WIDTH - 2 * _GAP)]
    rows = -(-len(tiles) // _TILES_A_ROW)
    top = 44 + _LINE * (-(-len(facts) // 2) + len(problems)) + 2 * _GAP
    box_height = max([_THUMBNAIL, *(sum(picture.height for picture in tile.pictures) for tile in tiles)]) + 2 * _BORDER
    tile_height = box_height + _CAPTION + _GAP
    first_row = top + drawing.height + (_LINE if depth_legend else 0)
    sheet = Image.new("RGB", (_WIDTH, first_row + rows * tile_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), title, fill=_INK, font=large)
    for k, fact in enumerate(facts):
        draw.text((_GAP + k % 2 * _WIDTH // 2, 40 + k // 2 * _LINE), fact, fill=_SOFT, font=small)
    for k, line in enumerate(problems):
        draw.text((_GAP, 44 + (-(-len(facts) // 2) + k) * _LINE), line, fill=_BAD, font=small)
    sheet.paste(drawing, (0, top))
    draw.text((_GAP, top + drawing.height), depth_legend, fill=_SOFT, font=small)
    for k, tile in enumerate(tiles):
        left = _GAP + k % _TILES_A_ROW * (_BOX_WIDTH + _GAP)
        upper = first_row + k // _TILES_A_ROW * tile_height
        colour = {"good": _GOOD, "weak": _WEAK, "out": _BAD}[tile.state]
        box = (left, upper, left + _BOX_WIDTH - 1, upper + box_height - 1)
        draw.rectangle(box, fill=(236, 236, 232))
        at = upper + (box_height - sum(picture.height for picture in tile.pictures)) // 2
        for picture in tile.pictures:
            sheet.paste(picture, (left + (_BOX_WIDTH - picture.width) // 2, at))
            at += picture.height
        draw.rectangle(box, outline=colour, width=_BORDER)
        tiny = ImageFont.load_default(11)
        for row, text in enumerate((tile.photo.source, tile.caption)):
            draw.text((left, upper + box_height + 2 + 14 * row), _cut(text, tiny, _BOX_WIDTH), fill=(_INK, colour)[row], font=tiny)
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
