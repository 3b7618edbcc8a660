"""Lenses: where a photo with distortion shows what a pinhole camera would show, for every camera model of COLMAP.

Symbols: uv_px are pixels from the top-left corner of an image (centres of pixels at +0.5), which is COLMAP's convention too. The formulas of the models are
COLMAP's own (``pycolmap``).
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras

# names by the numbers of COLMAP's binary files, and how many parameters each has
MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
}
_PARAMETERS = dict(MODELS.values())
_ONE_FOCAL_LENGTH = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
_LARGEST_ZOOM = 4.0  # of the pinhole image that a lens fills


@dataclass(frozen=True)
class Lens:
    """A camera model with distortion, for photos of one size.

    Attributes:
        model: one of COLMAP's names, such as OPENCV.
        params: its parameters in COLMAP's order: one or two focal lengths and the principal point in pixels, then the distortion.
        image_size: (height, width) of the photos in pixels.

    Raises:
        InputError: an unknown model, another number of parameters, numbers that are not finite, or no positive focal length.
    """

    model: str
    params: tuple[float, ...]
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.model not in _PARAMETERS:
            raise InputError(f"camera model: expected one of {', '.join(_PARAMETERS)}, got {self.model}; convert the cameras with COLMAP")
        count = _PARAMETERS[self.model]
        if len(self.params) != count:
            raise InputError(f"camera model {self.model}: expected {count} parameters, got {len(self.params)}; restore the file")
        if not all(math.isfinite(p) for p in self.params) or min(self.focal_length) <= 0:
            raise InputError(f"camera model {self.model}: expected finite parameters and positive focal lengths, got {list(self.params)}")

    @property
    def focal_length(self) -> tuple[float, float]:
        """(fx, fy) in pixels."""
        return (self.params[0], self.params[0 if self.model in _ONE_FOCAL_LENGTH else 1])

    @property
    def principal_point(self) -> tuple[float, float]:
        """(cx, cy) in pixels."""
        first = 1 if self.model in _ONE_FOCAL_LENGTH else 2
        return (self.params[first], self.params[first + 1])

    @property
    def distorts(self) -> bool:
        """Whether the image differs from that of a pinhole camera."""
        first = 3 if self.model in _ONE_FOCAL_LENGTH else 4
        # fisheye models bend rays also when all their coefficients are 0
        return "FISHEYE" in self.model or any(self.params[first:])

    def resized(self, image_size: tuple[int, int]) -> "Lens":
        """The lens of the same photos resampled to another (height, width)."""
        y, x = image_size[0] / self.image_size[0], image_size[1] / self.image_size[1]
        # sides are whole pixels, so that both scales may differ a little: one focal length takes their mean
        scales = ((x + y) / 2, x, y) if self.model in _ONE_FOCAL_LENGTH else (x, y, x, y)
        head = tuple(p * s for p, s in zip(self.params, scales, strict=False))
        return Lens(self.model, head + self.params[len(scales) :], image_size)

    def shown_at(self, xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """uv_px where the photo shows rays (x, y, 1), axes right, down, forward; nan where the lens does not show a ray."""
        from pycolmap import Camera  # takes a third of a second to import, and only photos with distortion need it

        height, width = self.image_size
        camera = Camera(model=self.model, width=width, height=height, params=list(self.params))
        return camera.img_from_cam(np.column_stack([xy, np.ones(len(xy))]))


@functools.lru_cache(maxsize=4)
def fill_zoom(lens: Lens) -> float:
    """By how much the pinhole image of a lens is magnified (at least 1) so that each of its pixels lies in the photo.

    The pinhole image has the size, the principal point and, times this factor, the focal length of the lens.

    Raises:
        InputError: no magnification up to 4 does: the parameters are not those of a lens for such photos.
    """
    height, width = lens.image_size
    u, v = np.arange(width) + 0.5, np.arange(height) + 0.5
    border = np.concatenate(
        [np.column_stack([u, np.full(width, y)]) for y in (0.5, height - 0.5)]
        + [np.column_stack([np.full(height, x), v]) for x in (0.5, width - 0.5)]
    )
    rays = (border - lens.principal_point) / lens.focal_length

    def fills(zoom: float) -> bool:
        at = lens.shown_at(rays / zoom)
        return bool(((at >= 0) & (at <= (width, height))).all())

    if fills(1.0):
        return 1.0
    low, high = 1.0, _LARGEST_ZOOM
    if not fills(high):
        raise InputError(
            f"camera model {lens.model} with parameters {list(lens.params)}: its photos of {width}x{height} pixels cannot be undistorted; "
            "undistort them with COLMAP (colmap image_undistorter), or correct the parameters"
        )
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if fills(middle) else (middle, high)
    return high


def pinhole(lens: Lens) -> tuple[Float[Tensor, "1 2"], Float[Tensor, "1 2"]]:
    """(focal length, principal point) in pixels of the pinhole camera that photos of a lens are turned into."""
    zoom = fill_zoom(lens) if lens.distorts else 1.0
    return torch.tensor([lens.focal_length]) * zoom, torch.tensor([lens.principal_point])


@functools.lru_cache(maxsize=2)
def _sampling_grid(lens: Lens, focal_length: tuple[float, float], principal_point: tuple[float, float]) -> Float[Tensor, "1 h w 2"]:
    height, width = lens.image_size
    v, u = np.mgrid[:height, :width] + 0.5
    at = lens.shown_at((np.stack([u, v], -1).reshape(-1, 2) - principal_point) / focal_length) / (width, height) * 2 - 1
    return torch.from_numpy(np.nan_to_num(at, nan=2.0).astype(np.float32)).view(1, height, width, 2)


def undistort(image: UInt8[Tensor, "c h w"], lens: Lens, camera: Cameras) -> UInt8[Tensor, "c h w"]:
    """The image of a pinhole camera of the same size, from a photo with distortion; bilinear."""
    assert image.shape[1:] == lens.image_size == camera.image_size
    (fx, fy), (cx, cy) = camera.focal_length[0].tolist(), camera.principal_point[0].tolist()
    grid = _sampling_grid(lens, (fx, fy), (cx, cy))
    sampled = torch.nn.functional.grid_sample(image[None].float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (sampled[0] + 0.5).to(torch.uint8)
