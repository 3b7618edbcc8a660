"""Vertical alignment: views padded to a square and rolled so that world up points up in the image (NPBG++, section 3.4 of the paper).

The network then sees every object upright, whatever the roll of the camera. Rendering aligned cameras and turning the result back gives the view asked
for.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixel_rules import PixelRule, ndc_bounds
from npbgpp.geometry.warp import radians, rotate_about_centre

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


def align_vertically(cameras: Cameras, rule: PixelRule, up: tuple[float, float, float] = (0.0, 1.0, 0.0)) -> Alignment:
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
    padded = cameras.crop(-top, -left, (side, side)) if rule is PixelRule.EXACT else _pad_as_authors(cameras, padding, side)
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
