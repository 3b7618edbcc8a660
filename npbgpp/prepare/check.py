"""``npbgpp prepare check``: prints a report of a scene, warns of problems, and draws the cloud over the photos.

Symbols: the axes of a view are a matrix (3, 3) whose rows are its right, up and backward direction in the world; uv_px are pixels from the top-left corner.
"""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor
from torch.nn.functional import interpolate, pad

from npbgpp.core.paths import require_writable
from npbgpp.data import CloudManifest, Scene, Stage, View, read_photo
from npbgpp.geometry import Cameras, PointCloud, ProjectionSettings
from npbgpp.io import SheetRow, contact_sheet, depth_colormap, depth_range, write_png
from npbgpp.kernels.rasterization import ChunkedCloud, Level, rasterize
from npbgpp.parsers import with_cloud
from npbgpp.points import visible_points
from npbgpp.prepare.scene_report import SceneReport, ViewReport, coarse_scale, counted, diagnose, format_number, inspect_scene, nearest_axis
from npbgpp.prepare.settings import CheckSettings

# ----------------------------------------------------------------------
# Report


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
    # long words, such as paths, are continued on the next line, not cut
    table = Table(Column("property", overflow="fold"), Column("value", overflow="fold"), title=escape(f"scene {report.scene}"))
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
    if report.cloud is None or report.cloud.from_reconstruction or "sparse cloud" in problems:
        log.info("next, a dense cloud: npbgpp prepare dense %s", shlex.join(settings.scene_words()))
    return len(problems)


def format_report(report: SceneReport) -> list[tuple[str, str]]:
    """(property, value) of each line of the printed report."""
    reading = next((note for note in report.notes if note.startswith(f"read as {report.layout}")), f"read as {report.layout}")
    return [
        ("scene", f"{report.scene}, {reading}"),
        *_image_rows(report),
        *_camera_rows(report),
        *_cloud_rows(report),
        *_projection_rows(report),
        *(("note", note) for note in report.notes if note != reading),
    ]


def _image_rows(r: SceneReport) -> list[tuple[str, str]]:
    several = "; batches of several photos need datasets.train_image_size" if len(r.sizes) > 1 else ""
    unused = f", {r.count(None)} unused (of no split: neither trained nor evaluated)" if r.count(None) else ""
    sizes = ", ".join(f"{width}x{height} ({counted(count, 'view')})" for (height, width), count in r.sizes)
    lenses = ", ".join(f"{model} ({counted(count, 'view')})" for model, count in r.lenses)
    resampled = f"; {counted(r.resized, 'photo')} {'is' if r.resized == 1 else 'are'} resampled" if r.resized else ""
    return [
        ("views", f"{len(r.views)}: {r.count('train')} training, {r.count('val')} validation, {r.count('test')} test{unused}"),
        ("image sizes", sizes + resampled + several),
        ("masks", counted(r.masks, "view") if r.masks else "none"),
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
            f"({r.colours.pairs} pixels of {counted(len(r.photos), 'photo')})"
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


# ----------------------------------------------------------------------
# Contact sheet: a few photos with the points projected into them, and top and side views of cameras and cloud


STAGE_COLOURS: dict[Stage | None, tuple[int, int, int]] = {
    None: (150, 150, 150),
    "train": (30, 90, 200),
    "val": (230, 130, 0),
    "test": (200, 30, 60),
}
_STAGE_NAMES: dict[Stage | None, str] = {None: "unused", "train": "training", "val": "validation", "test": "test"}
_COLUMNS = ("photo", "projected points: red near, blue far", "points alone")
_BACKGROUND, _TEXT, _POINT, _FRAME = (250, 250, 248), (30, 30, 34), (140, 140, 140), (200, 200, 200)
_WIDTH = 256  # of a tile of the contact sheet: other sizes would be resampled
_DOT = 3  # pixels
_EMPTY = 0.93  # grey of pixels without a point
_GAP, _LINE = 8, 24
_MAX_DRAWN = 100_000  # points in the top and side views
_FRUSTUM, _SMALL_FRUSTUM, _MANY_VIEWS = 0.07, 0.035, 40  # of the width of the drawing; small ones if there are many views
_MARGIN = 0.1  # of the drawing
_OUTLIERS = 0.01  # of the points, on each side, may lie outside the drawing


def check_sheet(scene: Scene, report: SceneReport) -> Image.Image:
    """One row per drawn view, and below them the top and side view. Raises InputError if the cloud or a photo cannot be read."""
    cloud = PointCloud(torch.zeros(0, 3)) if report.cloud is None else scene.cloud.read()
    chunks = ChunkedCloud.build(cloud.xyz) if len(cloud) else None
    rows = []
    for k in report.drawn:
        camera, photo = thumbnail(scene.views[k])
        images: tuple[Float[Tensor, "3 h w"], ...] = (photo,)
        if chunks is not None:
            images = (photo, draw_points(photo, camera, cloud.xyz, report.near), render_points(chunks, cloud, camera, report.near))
        rows.append(SheetRow(_caption(report.views[k]), images))
    columns = _COLUMNS if chunks is not None else _COLUMNS[:1]
    tiles = contact_sheet(f"{report.scene}, read as {report.layout}", columns, rows)
    drawings = top_and_side_view(scene, report, cloud, max(tiles.width, 3 * _WIDTH))
    sheet = Image.new("RGB", (max(tiles.width, drawings.width), tiles.height + drawings.height), _BACKGROUND)
    sheet.paste(tiles, (0, 0))
    sheet.paste(drawings, (0, tiles.height))
    return sheet


def _caption(view: ViewReport) -> str:
    depth = ""
    if view.min_depth is not None and view.median_depth is not None:
        depth = f", depth from {format_number(view.min_depth)}, median {format_number(view.median_depth)}"
    if not view.in_image:
        return f"{view.name} ({_STAGE_NAMES[view.stage]})"
    coverage = f"{100 * view.covered_cells / view.cells:.0f} % covered"
    return f"{view.name} ({_STAGE_NAMES[view.stage]}): {view.beyond_near} points, {coverage}{depth}"


def thumbnail(view: View) -> tuple[Cameras, Float[Tensor, "3 h w"]]:
    """Camera and photo (0..1) of a view at the width of a tile."""
    height, width = view.camera.image_size
    size = max(2, round(_WIDTH * height / width)), _WIDTH
    image = read_photo(view).image[None].float() / 255
    return view.camera.resize(size), interpolate(image, size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def draw_points(photo: Float[Tensor, "3 h w"], camera: Cameras, xyz_world: Float[Tensor, "n 3"], near: float) -> Float[Tensor, "3 h w"]:
    """The photo with a dot, coloured by depth, at the projection of each point that is visible in the coarse depth buffer."""
    visible = visible_points(xyz_world, camera, coarse_scale(camera.image_size), ProjectionSettings(near))[0]
    uv_px, depth = (values[0] for values in camera.project(xyz_world[visible]))
    back_to_front = depth.argsort(descending=True)
    u, v = uv_px[back_to_front].long().unbind(1)
    colours = depth_colormap(depth[back_to_front], *depth_range(depth))
    image = photo.clone()
    height, width = camera.image_size
    offsets = range(-(_DOT // 2), _DOT // 2 + 1)
    for dv in offsets:
        for du in offsets:
            image[:, (v + dv).clamp(0, height - 1), (u + du).clamp(0, width - 1)] = colours
    return image


def render_points(chunks: ChunkedCloud, cloud: PointCloud, camera: Cameras, near: float) -> Float[Tensor, "3 h w"]:
    """The nearest point of each pixel in its own colour, or coloured by depth; holes are filled from half the resolution."""
    index, depth = _nearest_points(chunks, camera, near)
    rgb = cloud.rgb_u8
    colours = depth_colormap(depth, *depth_range(depth[index >= 0])) if rgb is None else rgb[index.clamp(min=0)].permute(2, 0, 1) / 255
    return torch.where(index >= 0, colours, _EMPTY)


def render_depth(chunks: ChunkedCloud, camera: Cameras, near: float) -> Float[Tensor, "h w"]:
    """Depth of the nearest point of each pixel, scene units, 0 where there is none; holes are filled from half the resolution."""
    index, depth = _nearest_points(chunks, camera, near)
    return torch.where(index >= 0, depth, 0.0)


def _nearest_points(chunks: ChunkedCloud, camera: Cameras, near: float) -> tuple[Int[Tensor, "h w"], Float[Tensor, "h w"]]:
    """(index of the nearest point of each pixel, -1 where there is none; its depth)."""
    fine, coarse = rasterize(chunks, camera, [Level(1.0), Level(0.5)], ProjectionSettings(near))
    hole, size = fine.index < 0, camera.image_size
    return torch.where(hole, _upsample(coarse.index, size, -1), fine.index), torch.where(
        hole, _upsample(coarse.depth, size, torch.inf), fine.depth
    )


def _upsample(values: Shaped[Tensor, "h2 w2"], size: tuple[int, int], fill: int | float) -> Shaped[Tensor, "h w"]:
    """Nearest-neighbour upsampling by 2; ``fill`` in the last row or column of an odd size."""
    doubled = values.repeat_interleave(2, 0).repeat_interleave(2, 1)
    return pad(doubled, (0, size[1] - doubled.shape[1], 0, size[0] - doubled.shape[0]), value=fill)


@dataclass(frozen=True)
class OrthographicView:
    """An orthographic view of the scene.

    Attributes:
        axes: see the module docstring.
        centre: world point in the centre of the image.
        extent: from the centre to the border, scene units.
        size: side of the square image, pixels.
    """

    axes: Float[Tensor, "3 3"]
    centre: Float[Tensor, " 3"]
    extent: float
    size: int

    def project(self, xyz_world: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """uv_px of world points."""
        right_up = (xyz_world - self.centre) @ self.axes[:2].T / (self.extent or 1.0)
        return (right_up * right_up.new_tensor([1.0, -1.0]) + 1) * (self.size / 2)

    def draw(self, scene: Scene, report: SceneReport, points: PointCloud) -> Image.Image:
        """Points, the nearest to the observer on top, and over them the cameras in the colours of their split, test views on top."""
        image = torch.tensor(_BACKGROUND, dtype=torch.uint8).repeat(self.size, self.size, 1).numpy()
        uv_px = self.project(points.xyz)
        back_to_front = (points.xyz @ self.axes[2]).argsort()
        back_to_front = back_to_front[((uv_px >= 0) & (uv_px < self.size)).all(1)[back_to_front]]
        u, v = uv_px[back_to_front].long().unbind(1)
        # NumPy assigns in order: the last point of a pixel stays
        image[v.numpy(), u.numpy()] = _POINT if points.rgb_u8 is None else points.rgb_u8[back_to_front].numpy()
        canvas = Image.fromarray(image)
        draw = ImageDraw.Draw(canvas)
        height = 2 * self.extent * (_FRUSTUM if len(scene.views) <= _MANY_VIEWS else _SMALL_FRUSTUM)
        for stage, colour in STAGE_COLOURS.items():
            for view, view_report in zip(scene.views, report.views, strict=True):
                if view_report.stage == stage:
                    self._draw_frustum(draw, view.camera, height, colour)
        draw.rectangle((0, 0, self.size - 1, self.size - 1), outline=_FRAME)
        return canvas

    def _draw_frustum(self, draw: ImageDraw.ImageDraw, camera: Cameras, height: float, colour: tuple[int, int, int]) -> None:
        image_height, image_width = camera.image_size
        corners = camera.R.new_tensor([[0, 0], [image_width, 0], [image_width, image_height], [0, image_height]])
        xy = (camera.principal_point - corners) / camera.focal_length * height
        xyz_cam = torch.cat([xy, torch.full((4, 1), height)], 1).to(camera.R)
        xyz_world = torch.linalg.solve(camera.R[0].T, (xyz_cam - camera.T).T).T
        apex, *base = [tuple(position) for position in self.project(torch.cat([camera.centers(), xyz_world])).tolist()]
        for k, corner in enumerate(base):
            draw.line([apex, corner], fill=colour)
            draw.line([corner, base[k - 1]], fill=colour)
        draw.ellipse((apex[0] - 2, apex[1] - 2, apex[0] + 2, apex[1] + 2), fill=colour)


def top_and_side_view(scene: Scene, report: SceneReport, cloud: PointCloud, width: int) -> Image.Image:
    """Both views side by side above a legend."""
    size = (width - 3 * _GAP) // 2
    image = Image.new("RGB", (width, size + 2 * _LINE + _GAP), _BACKGROUND)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    step = max(1, -(-len(cloud) // _MAX_DRAWN))
    points = PointCloud(cloud.xyz[::step], None if cloud.rgb_u8 is None else cloud.rgb_u8[::step])
    low, high = _bounds(points.xyz, torch.cat([view.camera.centers() for view in scene.views]))
    extent = (high - low).max().item() / 2 * (1 + _MARGIN)
    for k, (title, axes) in enumerate(zip(("top view", "side view"), view_axes(report.cameras.up, high - low), strict=True)):
        view = OrthographicView(axes, (low + high) / 2, extent, size)
        left = _GAP + k * (size + _GAP)
        image.paste(view.draw(scene, report, points), (left, _LINE))
        right, up = (nearest_axis(axis) for axis in axes[:2].tolist())
        draw.text((left, 4), f"{title}: {right} right, {up} up, width {format_number(2 * extent)}", fill=_TEXT, font=font)
    left = _GAP
    for stage, colour in STAGE_COLOURS.items():
        if count := report.count(stage):
            label = f"{count} {_STAGE_NAMES[stage]}"
            draw.rectangle((left, size + _LINE + 9, left + 10, size + _LINE + 19), fill=colour)
            draw.text((left + 16, size + _LINE + 5), label, fill=_TEXT, font=font)
            left += 16 + round(draw.textlength(label, font=font)) + 24
    return image


def _bounds(xyz_world: Float[Tensor, "n 3"], centres: Float[Tensor, "b 3"]) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """Bounding box of the cameras and of the cloud without outliers."""
    if not len(xyz_world):
        return centres.amin(0), centres.amax(0)
    ordered = xyz_world.sort(0).values
    cut = int(_OUTLIERS * (len(ordered) - 1))
    return torch.minimum(ordered[cut], centres.amin(0)), torch.maximum(ordered[-1 - cut], centres.amax(0))


def view_axes(up: tuple[float, ...] | None, extent: Float[Tensor, " 3"]) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "3 3"]]:
    """Axes of the top and of the side view.

    Args:
        up: up direction of the scene; the coordinate axis nearest to it is vertical. None takes +z.
        extent: of the scene along x, y, z; the longer one of the horizontal axes is to the right.
    """
    direction = torch.tensor((0.0, 0.0, 1.0) if up is None else up)
    vertical = int(direction.abs().argmax())
    horizontal = max((axis for axis in range(3) if axis != vertical), key=lambda axis: extent[axis].item())
    up_axis, right = torch.eye(3)[vertical] * direction[vertical].sign(), torch.eye(3)[horizontal]
    return torch.stack([right, torch.linalg.cross(up_axis, right), up_axis]), torch.stack(
        [right, up_axis, torch.linalg.cross(right, up_axis)]
    )
