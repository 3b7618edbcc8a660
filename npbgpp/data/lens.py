"""Lens distortion: the camera models of COLMAP, and undistortion of photos to pinhole images.

The models are evaluated by ``pycolmap``. Pixel coordinates uv_px start at the top-left corner of the image, pixel centres at +0.5, as in COLMAP.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from npbgpp.errors import InputError
from npbgpp.geometry import Cameras

# name and number of parameters by COLMAP's model number
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
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
}
_PARAMETERS = dict(MODELS.values())
# models with one focal length, and the equivalent model with two, whose further coefficients are 0
_TWO_FOCAL_LENGTHS = {
    "SIMPLE_PINHOLE": "PINHOLE",
    "SIMPLE_RADIAL": "OPENCV",
    "RADIAL": "OPENCV",
    "SIMPLE_RADIAL_FISHEYE": "OPENCV_FISHEYE",
    "RADIAL_FISHEYE": "OPENCV_FISHEYE",
    "SIMPLE_DIVISION": "DIVISION",
    "SIMPLE_FISHEYE": "FISHEYE",
}
_PIXELS = (1e-3, 1e9)  # smallest focal length, largest number: within them cameras are finite in single precision
_LARGEST_ZOOM = 4.0  # of a pinhole image that the photo fills
_CHUNK = 1 << 18  # pixels per call of the camera model


@dataclass(frozen=True)
class Lens:
    """A camera model for photos of one size.

    Attributes:
        model: COLMAP's name, such as OPENCV.
        params: parameters in COLMAP's order: one or two focal lengths and the principal point in pixels, then distortion coefficients.
        image_size: (height, width) of the photos in pixels.

    Raises:
        InputError: an unknown model, a wrong number of parameters, parameters that are not finite, or focal lengths that are not positive.
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
        pixels = (*self.focal_length, *map(abs, self.principal_point))
        if not all(map(math.isfinite, self.params)) or min(self.focal_length) < _PIXELS[0] or max(pixels) > _PIXELS[1]:
            raise InputError(
                f"camera model {self.model}: expected finite parameters and positive focal lengths, got {list(self.params)}; correct the file"
            )

    @property
    def focal_length(self) -> tuple[float, float]:
        """(fx, fy) in pixels."""
        return (self.params[0], self.params[0 if self.model in _TWO_FOCAL_LENGTHS else 1])

    @property
    def principal_point(self) -> tuple[float, float]:
        """(cx, cy) in pixels."""
        first = 1 if self.model in _TWO_FOCAL_LENGTHS else 2
        return (self.params[first], self.params[first + 1])

    @property
    def distorts(self) -> bool:
        """Whether the photo differs from a pinhole image."""
        # fisheye projections differ from a pinhole also with all coefficients 0
        if "FISHEYE" in self.model:
            return True
        # the last parameter of EUCM has no effect while the one before it is 0
        return any(self._coefficients[: 1 if self.model == "EUCM" else None])

    @property
    def _coefficients(self) -> tuple[float, ...]:
        return self.params[3 if self.model in _TWO_FOCAL_LENGTHS else 4 :]

    def displacement(self) -> float:
        """Largest displacement by distortion along the image border, pixels; infinite for rays outside the field of view."""
        rays = _border(self, 33)
        moved = np.linalg.norm(self.project(rays) - (rays * self.focal_length + self.principal_point), axis=1)
        return float(np.nan_to_num(moved, nan=np.inf).max())

    def resized(self, image_size: tuple[int, int]) -> "Lens":
        """The lens of the photos resampled to another (height, width); may have two focal lengths where this has one, as sides are integers."""
        if image_size == self.image_size:
            return self
        y, x = image_size[0] / self.image_size[0], image_size[1] / self.image_size[1]
        model = _TWO_FOCAL_LENGTHS.get(self.model, self.model)
        (fx, fy), (cx, cy) = self.focal_length, self.principal_point
        params = (fx * x, fy * y, cx * x, cy * y, *self._coefficients)
        return Lens(model, params + (0.0,) * (_PARAMETERS[model] - len(params)), image_size)

    def project(self, xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """uv_px of rays (x, y, 1), axes right, down, forward; nan outside the field of view."""
        from pycolmap import Camera  # slow to import, and needed for distorted photos only

        height, width = self.image_size
        camera = Camera(model=self.model, width=width, height=height, params=list(self.params))
        return camera.img_from_cam(np.column_stack([xy, np.ones(len(xy))]))


def _border(lens: Lens, count: int) -> Float[np.ndarray, "4*{count} 2"]:
    """Pinhole rays (x, y) through ``count`` points on each side of the image, from corner pixel centre to corner pixel centre."""
    height, width = lens.image_size
    u, v = np.linspace(0.5, width - 0.5, count), np.linspace(0.5, height - 0.5, count)
    sides = [np.column_stack([u, np.full(count, y)]) for y in (0.5, height - 0.5)]
    sides += [np.column_stack([np.full(count, x), v]) for x in (0.5, width - 0.5)]
    return (np.concatenate(sides) - lens.principal_point) / lens.focal_length


def _folds(lens: Lens, rays: Float[np.ndarray, "n 2"]) -> bool:
    """Whether the projection is not monotonic along the segments from the optical axis to these rays: beyond a fold the photo appears again, mirrored."""
    steps = np.linspace(0, 1, 33)
    at = lens.project((steps[:, None, None] * rays).reshape(-1, 2)).reshape(len(steps), -1, 2)
    distance = np.linalg.norm(at - lens.principal_point, axis=-1)
    return not (np.diff(distance, axis=0) >= 0).all()


@functools.lru_cache(maxsize=16)
def fill_zoom(lens: Lens) -> float:
    """The smallest magnification, at least 1, of the pinhole image at which all its pixels lie in the photo and before any fold of the projection.

    The pinhole image has the size and the principal point of the lens, and its focal length times this factor.

    Raises:
        InputError: no magnification up to 4 is sufficient: the parameters do not fit the photos.
    """
    height, width = lens.image_size
    border, coarse_border = _border(lens, max(lens.image_size)), _border(lens, 33)

    def fills(zoom: float) -> bool:
        at = lens.project(border / zoom)
        return bool(((at >= 0) & (at <= (width, height))).all()) and not _folds(lens, coarse_border / zoom)

    if fills(1.0):
        return 1.0
    low, high = 1.0, _LARGEST_ZOOM
    if not fills(high):
        raise InputError(
            f"camera model {lens.model} with parameters {list(lens.params)}: expected a lens of {width}x{height} photos that can be undistorted; "
            "undistort the photos with COLMAP (colmap image_undistorter), or correct the parameters"
        )
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if fills(middle) else (middle, high)
    return high


def pinhole(lens: Lens) -> tuple[Float[Tensor, "1 2"], Float[Tensor, "1 2"]]:
    """(focal length, principal point) of the pinhole camera of undistorted photos, pixels."""
    zoom = fill_zoom(lens) if lens.distorts else 1.0
    return torch.tensor([lens.focal_length]) * zoom, torch.tensor([lens.principal_point])


@functools.lru_cache(maxsize=2)
def _sampling_grid(lens: Lens, focal_length: tuple[float, float], principal_point: tuple[float, float]) -> Float[Tensor, "1 h w 2"]:
    height, width = lens.image_size
    grid = np.empty((height, width, 2), np.float32)
    u = np.arange(width) + 0.5
    rows = max(1, _CHUNK // width)
    for top in range(0, height, rows):
        chunk = grid[top : top + rows]
        uv = np.stack(np.meshgrid(u, np.arange(top, top + len(chunk)) + 0.5), -1).reshape(-1, 2)
        at = lens.project((uv - principal_point) / focal_length)
        chunk[:] = (np.nan_to_num(at / (width, height), nan=2.0) * 2 - 1).reshape(chunk.shape)
    return torch.from_numpy(grid)[None]


def undistort(image: UInt8[Tensor, "c h w"], lens: Lens, camera: Cameras) -> UInt8[Tensor, "c h w"]:
    """Resamples a distorted photo to the image of a pinhole camera of the same size, bilinearly."""
    assert image.shape[1:] == lens.image_size == camera.image_size
    (fx, fy), (cx, cy) = camera.focal_length[0].tolist(), camera.principal_point[0].tolist()
    grid = _sampling_grid(lens, (fx, fy), (cx, cy))
    sampled = torch.nn.functional.grid_sample(image[None].float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (sampled[0] + 0.5).to(torch.uint8)
