"""Images resampled to other intrinsics of the same pose, so that image and camera cannot disagree."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention, PixelGrid, ndc_bounds


def resample(images: Float[Tensor, "b c h w"], source: Cameras, target: Cameras) -> Float[Tensor, "b c h2 w2"]:
    """What ``target`` cameras see of ``images`` taken by ``source`` cameras of the same poses; bilinear, zero outside.

    Equal cameras give the same image exactly (unlike the authors' warp, which halves the border rows).
    """
    height, width = target.image_size
    source_height, source_width = source.image_size
    axes = []
    for k, (size, source_size) in enumerate(((width, source_width), (height, source_height))):
        pixel = torch.arange(size, dtype=torch.float64, device=images.device) + 0.5
        ratio = (source.focal_length[:, k] / target.focal_length[:, k]).double()[:, None]
        seen = (pixel - target.principal_point[:, k, None].double()) * ratio + source.principal_point[:, k, None].double()
        axes.append((seen * 2 / source_size - 1).to(images.dtype))
    x, y = axes
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], -1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def resample_as_authors(images: Float[Tensor, "b c h w"], source: Cameras, target: Cameras) -> Float[Tensor, "b c h2 w2"]:
    """The warp between intrinsics of the NPBG++ authors: like ``resample``, but it mixes two conventions, as released weights expect.

    The pixels asked for are placed by their centres (the first and last one are at -1 and 1), the image is then read by pixel edges. Everything is
    magnified by s / (s - 1), at most half a pixel at the border, and equal cameras do not give the same image: its border rows are halved. The steps and
    their precision are the authors' too, see ``rotate_about_centre``.
    """
    height, width = target.image_size
    x, y = ((torch.arange(n, dtype=images.dtype, device=images.device) / (n - 1) - 0.5) * 2 for n in (width, height))
    asked = torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.ones_like(x).expand(height, width)], -1)
    with _in_full_precision(images):
        asked_to_read = _normalised_intrinsics(source, images) @ torch.linalg.inv(_normalised_intrinsics(target, images))
        grid = (asked.view(1, -1, 3) @ asked_to_read[:, :2].transpose(1, 2)).view(-1, height, width, 2)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _normalised_intrinsics(cameras: Cameras, images: Tensor) -> Float[Tensor, "b 3 3"]:
    """From slopes (x / z, y / z, 1) to the authors' coordinates of an image: -1 to 1 from left to right and from top to bottom."""
    bounds = images.new_tensor(ndc_bounds(cameras.image_size))
    focal, principal = (number.to(images.dtype) for number in cameras.to_size_minus_one_ndc())
    matrix = torch.eye(3, dtype=images.dtype, device=images.device).repeat(len(cameras), 1, 1)
    matrix[:, [0, 1], [0, 1]], matrix[:, :2, 2] = -focal / bounds, -principal / bounds
    return matrix


def rotate_about_centre(images: Float[Tensor, "b c h w"], degrees: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """Turns each image about its centre, counter-clockwise as seen on screen for positive angles; bilinear, zero outside.

    The steps and their precision are those of kornia 0.5, which the authors call: the networks make 2e-4 of a difference of 1e-6 in a photo.
    """
    height, width = images.shape[-2:]
    angle = radians(degrees.to(images.dtype))
    cosine, sine = angle.cos(), angle.sin()
    x, y = (width - 1) / 2, (height - 1) / 2  # the centre, in pixels whose centres are whole numbers
    turn = torch.eye(3, dtype=images.dtype, device=images.device).repeat(len(images), 1, 1)
    turn[:, 0, 0] = turn[:, 1, 1] = cosine
    turn[:, 0, 1], turn[:, 1, 0] = sine, -sine
    turn[:, 0, 2], turn[:, 1, 2] = (1 - cosine) * x - sine * y, sine * x + (1 - cosine) * y
    normalise = images.new_tensor([[2 / max(width - 1, 1), 0, -1], [0, 2 / max(height - 1, 1), -1], [0, 0, 1]])
    with _in_full_precision(images):
        asked_to_read = torch.linalg.inv(normalise @ (turn @ torch.linalg.inv(normalise)))
        grid = affine_grid(asked_to_read[:, :2], list(images.shape), align_corners=True)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def radians(degrees: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """As kornia 0.5 converts them, multiplying before dividing: ``torch.deg2rad`` differs in the last bit, which released networks show as up to 2e-4."""
    return degrees * math.pi / 180.0


def _in_full_precision(images: Tensor) -> torch.autocast:
    """A context for matrix products that place pixels: mixed precision would move them by whole pixels."""
    return torch.autocast(images.device.type, enabled=False)


# ----------------------------------------------------------------------
# Input views cut down to what matters of them: a box around the points that a target sees (NPBG++, training).


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
    cameras: Cameras, xyz_world: Float[Tensor, "*k n 3"], seen: Bool[Tensor, "k n"], rule: PixelConvention, margin: int = 30
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
    rule: PixelConvention,
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
    if rule is PixelConvention.EXACT:
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


# ----------------------------------------------------------------------
# Vertical alignment: views padded to a square and rolled so that world up points up in the image (NPBG++, section 3.4 of the paper).


_REFERENCE_DISTANCE = 10.0  # the up arrow is drawn this far ahead of the camera, scene units


@dataclass(frozen=True)
class Padding:
    """Pixels added on each side."""

    left: int
    right: int
    top: int
    bottom: int


@dataclass(frozen=True)
class Alignment:
    """Aligned cameras and how to come back.

    Attributes:
        cameras: cameras of the square, rolled image. R need not be orthonormal when fx != fy or the principal point is off-centre: the roll is one of
            the image plane.
        degrees: roll of each view; the images were turned by -degrees.
        padding: added before the roll.
    """

    cameras: Cameras
    degrees: Float[Tensor, " b"]
    padding: Padding

    def apply(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c d d"]:
        """Pads and turns images of the original cameras."""
        p = self.padding
        padded = torch.nn.functional.pad(images, (p.left, p.right, p.top, p.bottom))
        return rotate_about_centre(padded, -self.degrees)

    def undo(self, images: Float[Tensor, "b c d d"]) -> Float[Tensor, "b c h w"]:
        """Turns aligned images back and removes the padding."""
        side = images.shape[-1]
        p = self.padding
        return rotate_about_centre(images, self.degrees)[..., p.top : side - p.bottom, p.left : side - p.right]


def align_vertically(cameras: Cameras, rule: PixelConvention, up: tuple[float, float, float] = (0.0, 1.0, 0.0)) -> Alignment:
    """Square, upright versions of cameras.

    Args:
        cameras: views of one size.
        rule: SIZE_MINUS_ONE pads as the authors do (the padding moves points by up to 0.17 px); EXACT pads by whole pixels.
        up: world direction that shall point up; a camera that looks along it keeps a roll of 90 degrees minus that of a zero arrow, i.e. none is defined.
    """
    height, width = cameras.image_size
    side = math.ceil(math.sqrt(height**2 + width**2))
    left, top = (side - width) // 2, (side - height) // 2
    padding = Padding(left, side - width - left, top, side - height - top)
    padded = cameras.crop(-top, -left, (side, side)) if rule is PixelConvention.EXACT else _pad_as_authors(cameras, padding, side)
    # any centred unit serves: the roll commutes with scaling
    focal, principal = (number.to(padded.R.dtype) for number in padded.to_size_minus_one_ndc())
    degrees = _roll(padded, focal, principal, up)
    intrinsics = torch.zeros_like(padded.R)
    intrinsics[:, [0, 1], [0, 1]] = focal
    intrinsics[:, :2, 2] = principal
    intrinsics[:, 2, 2] = 1.0
    angle = radians(-degrees)
    turn = torch.eye(3, dtype=angle.dtype, device=angle.device).repeat(len(cameras), 1, 1)
    turn[:, 0, 0] = turn[:, 1, 1] = angle.cos()
    turn[:, 0, 1], turn[:, 1, 0] = angle.sin(), -angle.sin()
    change = intrinsics.transpose(1, 2) @ turn.transpose(1, 2) @ torch.linalg.inv(intrinsics.transpose(1, 2))
    aligned = replace(padded, R=padded.R @ change, T=(padded.T[:, None] @ change)[:, 0])
    return Alignment(aligned, degrees, padding)


def _roll(cameras: Cameras, focal: Tensor, principal: Tensor, up: tuple[float, float, float]) -> Float[Tensor, " b"]:
    """Degrees between the image of ``up``, drawn ahead of each camera, and the vertical of the image."""
    centers = -(cameras.R @ cameras.T[:, :, None])[:, :, 0]  # of rigid cameras; the authors' sum, to the last bit
    foot = centers + _REFERENCE_DISTANCE * cameras.R[:, :, 2]
    ends = torch.stack([foot, foot + foot.new_tensor(up)], 1)
    seen = cameras.view(ends)
    xy = (focal[:, None] * seen[..., :2] + principal[:, None] * seen[..., 2:]) / (seen[..., 2:] + 1e-7)
    arrow = xy[:, 1] - xy[:, 0]
    return 90.0 - torch.rad2deg(torch.atan2(arrow[:, 1], arrow[:, 0]))


def _pad_as_authors(cameras: Cameras, padding: Padding, side: int) -> Cameras:
    """Padded intrinsics by the authors' formula, which measures borders by pixel edges while their pixels are placed by centres.

    In the precision of the cameras and in their order of operations: it decides the last bits of the roll, and of a photo that is turned by it.
    """
    height, width = cameras.image_size
    focal, principal = (number.to(cameras.R.dtype) for number in cameras.to_size_minus_one_ndc())
    bounds = focal.new_tensor(ndc_bounds(cameras.image_size))
    slope_first, slope_last = (bounds - principal) / focal, (-bounds - principal) / focal
    half = focal.new_tensor([width / 2, height / 2])
    first = half / (half + half.new_tensor([padding.left, padding.top]))
    last = -half / (half + half.new_tensor([padding.right, padding.bottom]))
    new_focal = (first - last) / (slope_first - slope_last + 1e-8)
    new_principal = last - new_focal * slope_last
    stored = cameras.focal_length.dtype
    return Cameras.from_size_minus_one_ndc(cameras.R, cameras.T, new_focal.to(stored), new_principal.to(stored), (side, side))
