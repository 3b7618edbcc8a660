"""Images resampled to other intrinsics of the same pose, so that image and camera cannot disagree."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from npbgpp.geometry.cameras import Cameras
from npbgpp.geometry.pixel_rules import ndc_bounds


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
