"""Images resampled to other intrinsics of the same pose, so that image and camera cannot disagree."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

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
    magnified by s / (s - 1), at most half a pixel at the border, and equal cameras do not give the same image: its border rows are halved.
    """
    axes = []
    for k in range(2):
        bound, source_bound = (ndc_bounds(cameras.image_size)[k] for cameras in (target, source))
        (focal, principal), (source_focal, source_principal) = (
            tuple(number[:, k, None].double() for number in cameras.to_size_minus_one_ndc()) for cameras in (target, source)
        )
        asked = torch.linspace(bound, -bound, target.image_size[1 - k], dtype=torch.float64, device=images.device)  # +x left, +y up
        slope = (asked - principal) / focal
        axes.append(-(source_focal * slope + source_principal) / source_bound)
    x, y = axes
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)
    return grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)


def rotate_about_centre(images: Float[Tensor, "b c h w"], degrees: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """Turns each image about its centre, counter-clockwise as seen on screen for positive angles; bilinear, zero outside."""
    height, width = images.shape[-2:]
    angle = torch.deg2rad(degrees.double())
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    v, u = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=images.device) + 0.5 - height / 2,
        torch.arange(width, dtype=torch.float64, device=images.device) + 0.5 - width / 2,
        indexing="ij",
    )
    # the pixel that arrives at (u, v); v points down, so counter-clockwise on screen takes (u, v) to (u cos + v sin, -u sin + v cos)
    grid = torch.stack([(cosine * u - sine * v) * 2 / width, (sine * u + cosine * v) * 2 / height], -1)
    return grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)
