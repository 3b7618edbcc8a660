"""Input views cut down to what matters of them: a box around the points that a target sees (NPBG++, training).

k views of one size (height, width), n points of one cloud. Boxes are given in the normalised coordinates (x, y) of a pixel rule, see
``npbgpp.geometry.pixel_rules``; sizes in pixels of the view.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixel_rules import PixelGrid, PixelRule, ndc_bounds
from npbgpp.geometry.warp import resample, resample_as_authors


@dataclass(frozen=True)
class Boxes:
    """One box per view.

    Attributes:
        centre: normalised (x, y).
        extent_px: (width, height), whole numbers from 1 to the size of the view.
    """

    centre: Float[Tensor, "k 2"]
    extent_px: Float[Tensor, "k 2"]


@dataclass(frozen=True)
class Region:
    """Crops of one size and the cameras that took them."""

    images: Float[Tensor, "k c h w"]
    cameras: Cameras


@torch.no_grad()
def boxes_of_points(
    cameras: Cameras, xyz_world: Float[Tensor, "*k n 3"], seen: Bool[Tensor, "k n"], rule: PixelRule, margin: int = 30
) -> Boxes:
    """Boxes around the points that each view sees, both sides longer by ``margin`` pixels, but no longer than those of the view.

    Args:
        cameras: the views.
        xyz_world: one cloud for all views or one per view.
        seen: points that count; they must lie in front of the camera and in its image. A view that sees none is boxed by its frame.
        rule: where pixels are.
        margin: pixels added to the width and to the height.
    """
    grid = PixelGrid(rule, cameras.image_size)
    first, last = grid.extent(xyz_world.device)
    blind = ~seen.any(1, keepdim=True)
    xy = torch.cat([grid.normalise(cameras, xyz_world)[..., :2], torch.stack([first, last]).expand(len(cameras), 2, 2)], 1)
    ignored = ~torch.cat([seen, blind, blind], 1)[..., None]
    low, high = xy.masked_fill(ignored, math.inf).amin(1), xy.masked_fill(ignored, -math.inf).amax(1)
    frame = first.new_tensor(cameras.image_size[::-1])
    extent = ((high - low) / (last - first) * frame + margin + 0.5).trunc()
    return Boxes((low + high) / 2, extent.clamp(min=torch.ones_like(frame), max=frame))


@torch.no_grad()
def crop_to_points(
    images: Float[Tensor, "k c h w"],
    cameras: Cameras,
    xyz_world: Float[Tensor, "*k n 3"],
    seen: Bool[Tensor, "k n"],
    max_size: tuple[int, int] | int | None,
    rule: PixelRule,
    margin: int = 30,
    shrink: bool = False,
) -> Region:
    """Cuts views to the boxes of ``boxes_of_points``, all to one size, black where a crop leaves its view; nothing is magnified. No gradients.

    Args:
        images: the views.
        cameras: of the views.
        xyz_world: one cloud for all views or one per view.
        seen: points that count, see ``boxes_of_points``. A view that sees none is cut about the centre of its frame.
        max_size: (height, width) of the crops; a number is the longer side of crops with the aspect of the largest box; None gives crops as large as
            the largest box. At least 2 pixels.
        rule: SIZE_MINUS_ONE crops as the authors do, about the centre of the box, by a resampling that is no identity; EXACT moves by whole pixels, so
            that crops are copies, and keeps to the view where it can.
        margin: pixels added to the width and to the height of a box.
        shrink: reduces a box larger than the crop; by default it loses its borders, also points there.
    """
    boxes = boxes_of_points(cameras, xyz_world, seen, rule, margin)
    if max_size is not None and not shrink:
        limit = (max_size, max_size) if isinstance(max_size, int) else max_size
        boxes = replace(boxes, extent_px=boxes.extent_px.minimum(boxes.extent_px.new_tensor(limit[::-1])))
    size = max_size if isinstance(max_size, tuple) else _common_size(boxes, max_size)
    assert min(size) >= 2, f"crops of {size} pixels have no extent between the centres of their pixels"
    factor = (boxes.extent_px.new_tensor(size[::-1]) / boxes.extent_px).amin(1, keepdim=True).clamp(max=1.0)
    if rule is PixelRule.EXACT:
        target = _exact_target(cameras, boxes, factor, size)
        return Region(resample(images, cameras, target), target)
    target = _authors_target(cameras, boxes, factor, size)
    return Region(resample_as_authors(images, cameras, target), target)


def _common_size(boxes: Boxes, longer_side: int | None) -> tuple[int, int]:
    """(height, width) that holds every box, or of that aspect."""
    width, height = (int(side) for side in boxes.extent_px.amax(0).tolist())
    if longer_side is None:
        return height, width
    return math.ceil(longer_side * min(1.0, height / width)), math.ceil(longer_side * min(1.0, width / height))


def _exact_target(cameras: Cameras, boxes: Boxes, factor: Float[Tensor, "k 1"], size: tuple[int, int]) -> Cameras:
    """Cameras of the crops: windows of whole pixels about the boxes, moved into the view where they fit and centred on it where they do not."""
    frame, crop = (boxes.centre.new_tensor(s[::-1]) for s in (cameras.image_size, size))
    window = crop / factor
    reach = window.minimum(frame)
    corner = boxes.centre.clamp(min=reach / 2, max=frame - reach / 2) - window / 2
    corner = corner.round()
    return replace(
        cameras, focal_length=cameras.focal_length * factor, principal_point=(cameras.principal_point - corner) * factor, image_size=size
    )


def _authors_target(cameras: Cameras, boxes: Boxes, factor: Float[Tensor, "k 1"], size: tuple[int, int]) -> Cameras:
    """Cameras of the crops by the authors' formula, in slopes x / z and y / z of the view, and in their precision: see ``rotate_about_centre``."""
    stored, precision = cameras.focal_length.dtype, cameras.R.dtype
    focal, principal = (number.to(precision) for number in cameras.to_size_minus_one_ndc())
    bounds, new_bounds = (focal.new_tensor(ndc_bounds(s)) for s in (cameras.image_size, size))
    frame, crop = (focal.new_tensor(s[::-1]) for s in (cameras.image_size, size))
    corner = boxes.centre + boxes.extent_px / frame * bounds
    intrinsics = torch.diag_embed(torch.cat([focal, torch.ones_like(focal[:, :1])], 1))
    intrinsics[:, :2, 2] = principal
    places = torch.nn.functional.pad(torch.stack([boxes.centre, corner], -1), (0, 0, 0, 1), value=1.0)
    centre, border = (torch.linalg.inv(intrinsics) @ places)[:, :2].unbind(-1)
    new_focal = factor * boxes.extent_px / crop * new_bounds / (border - centre + 1e-8)
    return Cameras.from_size_minus_one_ndc(cameras.R, cameras.T, new_focal.to(stored), (-new_focal * centre).to(stored), size)
