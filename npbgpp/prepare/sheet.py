"""The picture of an examination: do the points lie on what the photos show, and where are the cameras."""

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from npbgpp.callbacks.tile_sheet import TileRow, tile_sheet
from npbgpp.data.images import read_photo
from npbgpp.data.scene import Scene, View
from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixel_rules import PixelRule
from npbgpp.geometry.pointcloud import PointCloud
from npbgpp.prepare.check import coarse_scale
from npbgpp.prepare.findings import Findings, ViewFindings
from npbgpp.prepare.plan import plans
from npbgpp.prepare.words import short
from npbgpp.render.blocks import BlockedCloud
from npbgpp.render.rasterize import Level, rasterize
from npbgpp.render.visibility import visible_points

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
    blocks = BlockedCloud.build(cloud.xyz)
    rows = []
    for k in findings.pictured:
        view, found = scene.views[k], findings.views[k]
        camera, photo = reduced(view)
        drawn = dots(photo, camera, cloud.xyz, findings.near)
        rows.append(TileRow(_caption(found), (photo, drawn, alone(blocks, cloud, camera, findings.near))))
    tiles = tile_sheet(f"{findings.scene}, read as {findings.layout}", _COLUMNS, rows)
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
    seen = visible_points(xyz_world, camera, coarse_scale(camera.image_size), near, PixelRule.EXACT)[0]
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


def alone(blocks: BlockedCloud, cloud: PointCloud, camera: Cameras, near: float) -> Float[Tensor, "3 h w"]:
    """The nearest point of every pixel in its own colour, by depth for clouds without colours; small holes show the points of coarser pixels."""
    fine, coarse = rasterize(blocks, camera, [Level(1.0), Level(0.5)], near, PixelRule.EXACT)
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
