"""Cloud and cameras of a scene from above and from the side, drawn without perspective.

Symbols: a basis (3, 3) holds, row by row, the world directions to the right, upwards and towards the observer; rut are coordinates along them. Drawings are
squares of ``side`` pixels; uv_px are pixels from their top-left corner.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate, pad

from npbgpp.data import Scene, Stage, View, read_photo
from npbgpp.geometry import Cameras, PixelConvention, PointCloud
from npbgpp.io import SheetRow, contact_sheet
from npbgpp.kernels import ChunkedCloud, Level, rasterize
from npbgpp.points import visible_points
from npbgpp.prepare.scene_report import Findings, ViewFindings, axis_name, coarse_scale, short

COLOURS: dict[Stage | None, tuple[int, int, int]] = {
    None: (150, 150, 150),
    "train": (30, 90, 200),
    "val": (230, 130, 0),
    "test": (200, 30, 60),
}
_WORDS: dict[Stage | None, str] = {None: "in no split", "train": "training", "val": "validation", "test": "test"}
_PAPER, _INK, _CLOUD = (250, 250, 248), (30, 30, 34), (140, 140, 140)
_GAP, _LINE = 8, 24
_MOST_POINTS = 100_000  # drawn; more would cover each other
_LONG, _SHORT, _MANY = 0.07, 0.035, 40  # length of a camera as a share of the drawing, and from how many views on it is the short one
_MARGIN = 0.1  # around cameras and cloud, as a share of them
_STRAY = 0.01  # share of the points that may lie beyond the drawing on every side


def plans(scene: Scene, findings: Findings, cloud: PointCloud, width: int) -> Image.Image:
    """Both drawings side by side with a legend."""
    side = (width - 3 * _GAP) // 2
    image = Image.new("RGB", (width, side + 2 * _LINE + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    centres = torch.cat([view.camera.centers() for view in scene.views])
    step = -(-len(cloud) // _MOST_POINTS)
    points = PointCloud(cloud.xyz[::step], None if cloud.rgb is None else cloud.rgb[::step])
    low, high = _box(points.xyz, centres)
    top, level = search_paths(findings, high - low)
    for k, (title, basis) in enumerate((("from above", top), ("from the side", level))):
        plan = Plan(basis, (low + high) / 2, (high - low).max().item() / 2 * (1 + _MARGIN), side)
        left = _GAP + k * (side + _GAP)
        image.paste(plan.draw(scene, findings, points), (left, _LINE))
        words = (
            f"{title}: {axis_name(basis[0].tolist())} to the right, {axis_name(basis[1].tolist())} upwards, {short(2 * plan.reach)} wide"
        )
        pen.text((left, 4), words, fill=_INK, font=font)
    left = _GAP
    for stage in COLOURS:
        count = findings.count(stage)
        if count:
            words = f"{count} {_WORDS[stage]}"
            pen.rectangle((left, side + _LINE + 9, left + 10, side + _LINE + 19), fill=COLOURS[stage])
            pen.text((left + 16, side + _LINE + 5), words, fill=_INK, font=font)
            left += 16 + round(pen.textlength(words, font=font)) + 24
    return image


def _box(xyz_world: Float[Tensor, "n 3"], centres: Float[Tensor, "b 3"]) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """Corners of what is drawn: all cameras, and the cloud but for stray points."""
    ordered = xyz_world.sort(0).values
    low, high = ordered[int(_STRAY * (len(ordered) - 1))], ordered[-1 - int(_STRAY * (len(ordered) - 1))]
    return torch.minimum(low, centres.amin(0)), torch.maximum(high, centres.amax(0))


def search_paths(findings: Findings, extent: Float[Tensor, " 3"]) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "3 3"]]:
    """Of the drawings from above and from the side: the axis nearest to the photos' up is up, +z if there is none; the longer one of the others lies across."""
    photos_up = torch.tensor((0.0, 0.0, 1.0) if findings.cameras.up is None else findings.cameras.up)
    vertical = int(photos_up.abs().argmax())
    across = max((axis for axis in range(3) if axis != vertical), key=lambda axis: extent[axis].item())
    up, right = torch.eye(3)[vertical] * photos_up[vertical].sign(), torch.eye(3)[across]
    return torch.stack([right, torch.linalg.cross(up, right), up]), torch.stack([right, up, torch.linalg.cross(right, up)])


@dataclass(frozen=True)
class Plan:
    """One drawing.

    Attributes:
        basis: see the module docstring.
        middle: world point in its middle.
        reach: from the middle to the border, scene units.
        side: its size.
    """

    basis: Float[Tensor, "3 3"]
    middle: Float[Tensor, " 3"]
    reach: float
    side: int

    def place(self, xyz_world: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """uv_px of world points."""
        rut = (xyz_world - self.middle) @ self.basis.T / (self.reach or 1.0)
        return (rut[:, :2] * rut.new_tensor([1.0, -1.0]) + 1) * (self.side / 2)

    def draw(self, scene: Scene, findings: Findings, points: PointCloud) -> Image.Image:
        """The points, what is nearer to the observer over what is behind, and over them the cameras; test views on top."""
        canvas = torch.tensor(_PAPER, dtype=torch.uint8).repeat(self.side, self.side, 1)
        uv_px = self.place(points.xyz)
        order = (points.xyz @ self.basis[2]).argsort()
        order = order[((uv_px >= 0) & (uv_px < self.side)).all(1)[order]]
        u, v = uv_px[order].long().unbind(1)
        # numpy writes in order, so that the last one stays
        canvas.numpy()[v.numpy(), u.numpy()] = _CLOUD if points.rgb is None else points.rgb[order].numpy()
        image = Image.fromarray(canvas.numpy())
        pen = ImageDraw.Draw(image)
        length = 2 * self.reach * (_LONG if len(scene.views) <= _MANY else _SHORT)
        for stage in COLOURS:
            for view, found in zip(scene.views, findings.views, strict=True):
                if found.stage == stage:
                    self._camera(pen, view.camera, length, COLOURS[stage])
        pen.rectangle((0, 0, self.side - 1, self.side - 1), outline=(200, 200, 200))
        return image

    def _camera(self, pen: ImageDraw.ImageDraw, camera: Cameras, length: float, colour: tuple[int, int, int]) -> None:
        """The pyramid between the centre of a camera and its image, ``length`` high."""
        height, width = camera.image_size
        corners = camera.R.new_tensor([[0, 0], [width, 0], [width, height], [0, height]])
        xy = (camera.principal_point - corners) / camera.focal_length * length
        xyz_cam = torch.cat([xy, torch.full((4, 1), length)], 1).to(camera.R)
        xyz_world = torch.linalg.solve(camera.R[0].T, (xyz_cam - camera.T).T).T
        apex, *base = [tuple(place) for place in self.place(torch.cat([camera.centers(), xyz_world])).tolist()]
        for k, corner in enumerate(base):
            pen.line([apex, corner], fill=colour)
            pen.line([corner, base[k - 1]], fill=colour)
        pen.ellipse((apex[0] - 2, apex[1] - 2, apex[0] + 2, apex[1] + 2), fill=colour)


# ----------------------------------------------------------------------
# The picture of an examination: do the points lie on what the photos show, and where are the cameras.


_WIDTH = 256  # of a tile: dots drawn at another width would be resampled
_COLUMNS = ("photo", "points on the photo: red near, blue far", "points alone")
_RAMP = ((0.85, 0.1, 0.1), (1.0, 0.6, 0.1), (0.95, 0.95, 0.2), (0.2, 0.8, 0.3), (0.1, 0.7, 0.9), (0.15, 0.25, 0.9))
_DOT = 3  # pixels
_EMPTY = 0.93  # grey where no point is


def check_sheet(scene: Scene, findings: Findings) -> Image.Image:
    """Draws the views that were pictured, a row each, and below them the scene from above and from the side.

    Raises:
        InputError: the cloud or one of the photos cannot be read.
    """
    cloud = scene.cloud.read()
    blocks = ChunkedCloud.build(cloud.xyz)
    rows = []
    for k in findings.pictured:
        view, found = scene.views[k], findings.views[k]
        camera, photo = reduced(view)
        drawn = dots(photo, camera, cloud.xyz, findings.near)
        rows.append(SheetRow(_caption(found), (photo, drawn, alone(blocks, cloud, camera, findings.near))))
    tiles = contact_sheet(f"{findings.scene}, read as {findings.layout}", _COLUMNS, rows)
    drawings = plans(scene, findings, cloud, tiles.width)
    sheet = Image.new("RGB", (tiles.width, tiles.height + drawings.height))
    sheet.paste(tiles, (0, 0))
    sheet.paste(drawings, (0, tiles.height))
    return sheet


def reduced(view: View) -> tuple[Cameras, Float[Tensor, "3 h w"]]:
    """Camera and photo (0..1) of a view at the width of a tile."""
    height, width = view.camera.image_size
    size = max(2, round(_WIDTH * height / width)), _WIDTH
    image = read_photo(view).image[None].float() / 255
    return view.camera.resize(size), interpolate(image, size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def dots(photo: Float[Tensor, "3 h w"], camera: Cameras, xyz_world: Float[Tensor, "n 3"], near: float) -> Float[Tensor, "3 h w"]:
    """The photo with a dot where every visible point falls, one per coarse cell, coloured by depth."""
    seen = visible_points(xyz_world, camera, coarse_scale(camera.image_size), near, PixelConvention.EXACT)[0]
    uv_px, depth = (values[0] for values in camera.project(xyz_world[seen]))
    far_first = depth.argsort(descending=True)
    u, v = uv_px[far_first].long().unbind(1)
    colour = depth_colours(depth[far_first])
    drawn = photo.clone()
    height, width = camera.image_size
    reach = range(-(_DOT // 2), _DOT // 2 + 1)
    for dv in reach:
        for du in reach:
            drawn[:, (v + dv).clamp(0, height - 1), (u + du).clamp(0, width - 1)] = colour.T
    return drawn


def depth_colours(depth: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """Red for the nearest over yellow and green to blue for the farthest; two hundredths at either end are cut off."""
    if len(depth) == 0:
        return depth.new_zeros(0, 3)
    low, high = depth.quantile(0.02), depth.quantile(0.98)
    ramp = depth.new_tensor(_RAMP)
    place = ((depth - low) / (high - low).clamp(min=1e-30)).clamp(0, 1) * (len(ramp) - 1)
    left = place.long().clamp(max=len(ramp) - 2)
    share = (place - left)[:, None]
    return ramp[left] * (1 - share) + ramp[left + 1] * share


def alone(blocks: ChunkedCloud, cloud: PointCloud, camera: Cameras, near: float) -> Float[Tensor, "3 h w"]:
    """The nearest point of every pixel in its own colour, by depth for clouds without colours; small holes show the points of coarser pixels."""
    fine, coarse = rasterize(blocks, camera, [Level(1.0), Level(0.5)], near, PixelConvention.EXACT)
    size = camera.image_size
    hole = fine.index < 0
    index = torch.where(hole, _doubled(coarse.index, size, -1), fine.index)
    depth = torch.where(hole, _doubled(coarse.depth, size, torch.inf), fine.depth)
    covered = index >= 0
    picture = torch.full((*size, 3), _EMPTY)
    picture[covered] = depth_colours(depth[covered]) if cloud.rgb is None else cloud.rgb[index[covered]].float() / 255
    return picture.permute(2, 0, 1)


def _doubled(values: Shaped[Tensor, "h2 w2"], size: tuple[int, int], empty: int | float) -> Shaped[Tensor, "h w"]:
    """Every value four times; ``empty`` in the last row or column of an odd size."""
    whole = values.repeat_interleave(2, 0).repeat_interleave(2, 1)
    return pad(whole, (0, size[1] - whole.shape[1], 0, size[0] - whole.shape[0]), value=empty)


def _caption(found: ViewFindings) -> str:
    stage = "in no split" if found.stage is None else {"train": "training", "val": "validation", "test": "test"}[found.stage]
    depth = "" if found.nearest is None or found.median is None else f", depth from {short(found.nearest)}, median {short(found.median)}"
    return f"{found.name} ({stage}): {found.shown} points, {100 * found.visible / found.cells:.0f} % covered{depth}"
