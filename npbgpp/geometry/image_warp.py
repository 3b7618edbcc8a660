"""Image warps that change the camera with the image: resampling to other intrinsics, crops around points, vertical alignment.

NPBG++ crops its input views to the points that a target view sees (training) and rolls them upright (section 3.4). Each operation exists in two versions:
an exact one, and the one of the authors' release, which released weights expect.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixels import PixelConvention, PixelGrid, ndc_bounds


def resample(images: Float[Tensor, "b c h w"], source: Cameras, target: Cameras) -> Float[Tensor, "b c h2 w2"]:
    """Warps images of ``source`` cameras to ``target`` cameras of the same poses; bilinear, zero outside.

    Equal cameras return the image unchanged (``resample_as_authors`` halves the border rows).
    """
    height, width = target.image_size
    source_height, source_width = source.image_size
    axes = []
    for k, (size, source_size) in enumerate(((width, source_width), (height, source_height))):
        pixel = torch.arange(size, dtype=torch.float64, device=images.device) + 0.5
        ratio = (source.focal_length[:, k] / target.focal_length[:, k]).double()[:, None]
        coordinate = (pixel - target.principal_point[:, k, None].double()) * ratio + source.principal_point[:, k, None].double()
        axes.append((coordinate * 2 / source_size - 1).to(images.dtype))
    x, y = axes
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], -1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def resample_as_authors(images: Float[Tensor, "b c h w"], source: Cameras, target: Cameras) -> Float[Tensor, "b c h2 w2"]:
    """The warp of the NPBG++ authors, which mixes two pixel conventions; released weights expect it.

    Target pixels are placed by their centres (the first and the last at -1 and 1), the source is sampled by pixel edges. This magnifies by s / (s - 1), at
    most half a pixel at the border, and halves the border rows even for equal cameras. Operations and their precision follow the authors, see
    ``rotate_about_centre``.
    """
    height, width = target.image_size
    x, y = ((torch.arange(n, dtype=images.dtype, device=images.device) / (n - 1) - 0.5) * 2 for n in (width, height))
    pixels = torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.ones_like(x).expand(height, width)], -1)
    with _in_full_precision(images):
        target_to_source = _normalised_intrinsics(source, images) @ torch.linalg.inv(_normalised_intrinsics(target, images))
        grid = (pixels.view(1, -1, 3) @ target_to_source[:, :2].transpose(1, 2)).view(-1, height, width, 2)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _normalised_intrinsics(cameras: Cameras, images: Tensor) -> Float[Tensor, "b 3 3"]:
    """Matrix from (x / z, y / z, 1) to the authors' image coordinates: -1 to 1 from left to right and from top to bottom."""
    bounds = images.new_tensor(ndc_bounds(cameras.image_size))
    focal, principal = (number.to(images.dtype) for number in cameras.to_authors_ndc())
    matrix = torch.eye(3, dtype=images.dtype, device=images.device).repeat(len(cameras), 1, 1)
    matrix[:, [0, 1], [0, 1]], matrix[:, :2, 2] = -focal / bounds, -principal / bounds
    return matrix


def rotate_about_centre(images: Float[Tensor, "b c h w"], degrees: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """Rotates each image about its centre, counter-clockwise on screen for positive angles; bilinear, zero outside.

    Operations and their precision are those of kornia 0.5, which the authors use: the networks amplify a difference of 1e-6 in a photo to 2e-4.
    """
    height, width = images.shape[-2:]
    angle = radians(degrees.to(images.dtype))
    cosine, sine = angle.cos(), angle.sin()
    x, y = (width - 1) / 2, (height - 1) / 2  # image centre; pixel centres are integers here
    rotation = torch.eye(3, dtype=images.dtype, device=images.device).repeat(len(images), 1, 1)
    rotation[:, 0, 0] = rotation[:, 1, 1] = cosine
    rotation[:, 0, 1], rotation[:, 1, 0] = sine, -sine
    rotation[:, 0, 2], rotation[:, 1, 2] = (1 - cosine) * x - sine * y, sine * x + (1 - cosine) * y
    normalise = images.new_tensor([[2 / max(width - 1, 1), 0, -1], [0, 2 / max(height - 1, 1), -1], [0, 0, 1]])
    with _in_full_precision(images):
        target_to_source = torch.linalg.inv(normalise @ (rotation @ torch.linalg.inv(normalise)))
        grid = affine_grid(target_to_source[:, :2], list(images.shape), align_corners=True)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def radians(degrees: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Degrees to radians as kornia 0.5 does it: ``torch.deg2rad`` differs in the last bit, which released networks amplify to 2e-4."""
    return degrees * math.pi / 180.0


def _in_full_precision(images: Tensor) -> torch.autocast:
    """Disables autocast for matrix products on pixel coordinates: mixed precision would shift them by whole pixels."""
    return torch.autocast(images.device.type, enabled=False)


# ----------------------------------------------------------------------
# Crops around points


@dataclass(frozen=True)
class Boxes:
    """One bounding box per view.

    Attributes:
        centre: normalised (x, y).
        extent_px: (width, height), integers from 1 to the size of the view.
    """

    centre: Float[Tensor, "k 2"]
    extent_px: Float[Tensor, "k 2"]


@dataclass(frozen=True)
class Region:
    """Crops of one size and their cameras."""

    images: Float[Tensor, "k c h w"]
    cameras: Cameras


@torch.no_grad()
def boxes_of_points(
    cameras: Cameras, xyz_world: Float[Tensor, "*k n 3"], visible: Bool[Tensor, "k n"], convention: PixelConvention, margin: int = 30
) -> Boxes:
    """Bounding boxes of the points that each view sees, ``margin`` pixels larger, at most as large as the view.

    Args:
        cameras: the views.
        xyz_world: one cloud for all views or one per view.
        visible: points to enclose; they must lie in front of the camera and in its image. A view without any gets the box of its full image.
        convention: pixel convention.
        margin: pixels added to the width and to the height.
    """
    grid = PixelGrid(convention, cameras.image_size)
    first, last = grid.extent(xyz_world.device)
    none_visible = ~visible.any(1, keepdim=True)
    xy = torch.cat([grid.normalise(cameras, xyz_world)[..., :2], torch.stack([first, last]).expand(len(cameras), 2, 2)], 1)
    ignored = ~torch.cat([visible, none_visible, none_visible], 1)[..., None]
    low, high = xy.masked_fill(ignored, math.inf).amin(1), xy.masked_fill(ignored, -math.inf).amax(1)
    frame = first.new_tensor(cameras.image_size[::-1])
    extent = ((high - low) / (last - first) * frame + margin + 0.5).trunc()
    return Boxes((low + high) / 2, extent.clamp(min=torch.ones_like(frame), max=frame))


@torch.no_grad()
def crop_to_points(
    images: Float[Tensor, "k c h w"],
    cameras: Cameras,
    xyz_world: Float[Tensor, "*k n 3"],
    visible: Bool[Tensor, "k n"],
    max_size: tuple[int, int] | int | None,
    convention: PixelConvention,
    margin: int = 30,
    shrink: bool = False,
) -> Region:
    """Crops views to the boxes of ``boxes_of_points``, all to one size, black outside of the view. Never magnifies. No gradients.

    Args:
        images: the views.
        cameras: cameras of the views.
        xyz_world: one cloud for all views or one per view.
        visible: points to enclose, see ``boxes_of_points``. A view without any is cropped about its centre.
        max_size: (height, width) of the crops; an integer is the longer side of crops with the aspect of the largest box; None gives crops as large as
            the largest box. At least 2 pixels.
        convention: AUTHORS crops as the authors do, about the centre of the box, with ``resample_as_authors``; EXACT shifts by whole pixels, so that
            crops are copies, and stays inside the view where possible.
        margin: pixels added to the width and to the height of a box.
        shrink: downscale a box larger than the crop; by default its borders are cut off, with the points there.
    """
    boxes = boxes_of_points(cameras, xyz_world, visible, convention, margin)
    if max_size is not None and not shrink:
        limit = (max_size, max_size) if isinstance(max_size, int) else max_size
        boxes = replace(boxes, extent_px=boxes.extent_px.minimum(boxes.extent_px.new_tensor(limit[::-1])))
    size = max_size if isinstance(max_size, tuple) else _common_size(boxes, max_size)
    assert min(size) >= 2, f"crop_to_points: expected crops of at least 2 pixels, got {size}"
    factor = (boxes.extent_px.new_tensor(size[::-1]) / boxes.extent_px).amin(1, keepdim=True).clamp(max=1.0)
    if convention is PixelConvention.EXACT:
        target = _exact_target(cameras, boxes, factor, size)
        return Region(resample(images, cameras, target), target)
    target = _authors_target(cameras, boxes, factor, size)
    return Region(resample_as_authors(images, cameras, target), target)


def _common_size(boxes: Boxes, longer_side: int | None) -> tuple[int, int]:
    """(height, width) that holds every box, or has that aspect."""
    width, height = (int(side) for side in boxes.extent_px.amax(0).tolist())
    if longer_side is None:
        return height, width
    return math.ceil(longer_side * min(1.0, height / width)), math.ceil(longer_side * min(1.0, width / height))


def _exact_target(cameras: Cameras, boxes: Boxes, factor: Float[Tensor, "k 1"], size: tuple[int, int]) -> Cameras:
    """Cameras of crops at whole pixels around the boxes, shifted into the view where they fit, else centred on it."""
    frame, crop = (boxes.centre.new_tensor(s[::-1]) for s in (cameras.image_size, size))
    window = crop / factor
    reach = window.minimum(frame)
    corner = boxes.centre.clamp(min=reach / 2, max=frame - reach / 2) - window / 2
    corner = corner.round()
    return replace(
        cameras, focal_length=cameras.focal_length * factor, principal_point=(cameras.principal_point - corner) * factor, image_size=size
    )


def _authors_target(cameras: Cameras, boxes: Boxes, factor: Float[Tensor, "k 1"], size: tuple[int, int]) -> Cameras:
    """Cameras of the crops by the authors' formula in x / z and y / z, in their precision (see ``rotate_about_centre``)."""
    stored, precision = cameras.focal_length.dtype, cameras.R.dtype
    focal, principal = (number.to(precision) for number in cameras.to_authors_ndc())
    bounds, new_bounds = (focal.new_tensor(ndc_bounds(s)) for s in (cameras.image_size, size))
    frame, crop = (focal.new_tensor(s[::-1]) for s in (cameras.image_size, size))
    corner = boxes.centre + boxes.extent_px / frame * bounds
    intrinsics = torch.diag_embed(torch.cat([focal, torch.ones_like(focal[:, :1])], 1))
    intrinsics[:, :2, 2] = principal
    homogeneous = torch.nn.functional.pad(torch.stack([boxes.centre, corner], -1), (0, 0, 0, 1), value=1.0)
    centre, border = (torch.linalg.inv(intrinsics) @ homogeneous)[:, :2].unbind(-1)
    new_focal = factor * boxes.extent_px / crop * new_bounds / (border - centre + 1e-8)
    return Cameras.from_authors_ndc(cameras.R, cameras.T, new_focal.to(stored), (-new_focal * centre).to(stored), size)


# ----------------------------------------------------------------------
# Vertical alignment: views padded to squares and rolled so that world up points up in the image (NPBG++, section 3.4)

_REFERENCE_DISTANCE = 10.0  # depth at which the up vector is projected, scene units


@dataclass(frozen=True)
class Padding:
    """Pixels added on each side."""

    left: int
    right: int
    top: int
    bottom: int


@dataclass(frozen=True)
class Alignment:
    """Vertically aligned cameras, and the image transform to and from them.

    Attributes:
        cameras: cameras of the square, rolled image. R is not orthonormal when fx != fy or the principal point is off-centre, since the roll is a rotation
            of the image plane.
        degrees: roll of each view; images are rotated by -degrees.
        padding: added before the roll.
    """

    cameras: Cameras
    degrees: Float[Tensor, " b"]
    padding: Padding

    def apply(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c d d"]:
        """Pads and rotates images of the original cameras."""
        p = self.padding
        padded = torch.nn.functional.pad(images, (p.left, p.right, p.top, p.bottom))
        return rotate_about_centre(padded, -self.degrees)

    def undo(self, images: Float[Tensor, "b c d d"]) -> Float[Tensor, "b c h w"]:
        """Rotates aligned images back and removes the padding."""
        side = images.shape[-1]
        p = self.padding
        return rotate_about_centre(images, self.degrees)[..., p.top : side - p.bottom, p.left : side - p.right]


def align_vertically(cameras: Cameras, convention: PixelConvention, up: tuple[float, float, float] = (0.0, 1.0, 0.0)) -> Alignment:
    """Pads cameras to squares and rolls them so that ``up`` points up in the image.

    Args:
        cameras: views of one size.
        convention: AUTHORS pads as the authors do (which shifts points by up to 0.17 px); EXACT pads by whole pixels.
        up: world direction; the roll of a camera that looks along it is undefined (90 degrees are returned).
    """
    height, width = cameras.image_size
    side = math.ceil(math.sqrt(height**2 + width**2))
    left, top = (side - width) // 2, (side - height) // 2
    padding = Padding(left, side - width - left, top, side - height - top)
    padded = cameras.crop(-top, -left, (side, side)) if convention is PixelConvention.EXACT else _pad_as_authors(cameras, padding, side)
    # coordinates of any scale work, as long as they are centred: the roll commutes with scaling
    focal, principal = (number.to(padded.R.dtype) for number in padded.to_authors_ndc())
    degrees = _roll(padded, focal, principal, up)
    intrinsics = torch.zeros_like(padded.R)
    intrinsics[:, [0, 1], [0, 1]] = focal
    intrinsics[:, :2, 2] = principal
    intrinsics[:, 2, 2] = 1.0
    angle = radians(-degrees)
    rotation = torch.eye(3, dtype=angle.dtype, device=angle.device).repeat(len(cameras), 1, 1)
    rotation[:, 0, 0] = rotation[:, 1, 1] = angle.cos()
    rotation[:, 0, 1], rotation[:, 1, 0] = angle.sin(), -angle.sin()
    roll = intrinsics.transpose(1, 2) @ rotation.transpose(1, 2) @ torch.linalg.inv(intrinsics.transpose(1, 2))
    aligned = replace(padded, R=padded.R @ roll, T=(padded.T[:, None] @ roll)[:, 0])
    return Alignment(aligned, degrees, padding)


def _roll(cameras: Cameras, focal: Tensor, principal: Tensor, up: tuple[float, float, float]) -> Float[Tensor, " b"]:
    """Degrees between the projection of ``up``, placed ahead of each camera, and the vertical of the image."""
    centers = -(cameras.R @ cameras.T[:, :, None])[:, :, 0]  # not Cameras.centers(): bitwise equal to the authors' centres
    start = centers + _REFERENCE_DISTANCE * cameras.R[:, :, 2]
    ends = torch.stack([start, start + start.new_tensor(up)], 1)
    xyz_cam = cameras.view(ends)
    xy = (focal[:, None] * xyz_cam[..., :2] + principal[:, None] * xyz_cam[..., 2:]) / (xyz_cam[..., 2:] + 1e-7)
    vector = xy[:, 1] - xy[:, 0]
    return 90.0 - torch.rad2deg(torch.atan2(vector[:, 1], vector[:, 0]))


def _pad_as_authors(cameras: Cameras, padding: Padding, side: int) -> Cameras:
    """Padded intrinsics by the authors' formula, which measures borders by pixel edges although pixels are placed by their centres.

    Precision and order of operations are the authors': they decide the last bits of the roll, and so of the rotated photo.
    """
    height, width = cameras.image_size
    focal, principal = (number.to(cameras.R.dtype) for number in cameras.to_authors_ndc())
    bounds = focal.new_tensor(ndc_bounds(cameras.image_size))
    slope_first, slope_last = (bounds - principal) / focal, (-bounds - principal) / focal
    half = focal.new_tensor([width / 2, height / 2])
    first = half / (half + half.new_tensor([padding.left, padding.top]))
    last = -half / (half + half.new_tensor([padding.right, padding.bottom]))
    new_focal = (first - last) / (slope_first - slope_last + 1e-8)
    new_principal = last - new_focal * slope_last
    stored = cameras.focal_length.dtype
    return Cameras.from_authors_ndc(cameras.R, cameras.T, new_focal.to(stored), new_principal.to(stored), (side, side))
