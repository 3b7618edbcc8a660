"""Files of Bundler (Snavely et al., Photo Tourism, SIGGRAPH 2006), version 0.3, which other programs write too.

After ``# Bundle file v0.3`` and the numbers of cameras and points, five lines per camera: f, k1, k2; the rows of R; t. A point X has the coordinates R X + t
in the camera, axes right, up, backward. Its image (x, y) from the image centre, y up, in pixels, is f r(p) p with p = -(X, Y) / Z and
r(p) = 1 + k1 |p|^2 + k2 |p|^4. Cameras with f = 0 are not registered. Three lines per point: coordinates, colour, and its observations.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8

from npbgpp.errors import InputError

_MARK = "# bundle file"
_CAMERA, _POINT = 15, 6  # numbers


@dataclass(frozen=True)
class BundlerFile:
    """A file of n cameras and m points.

    Attributes:
        lenses: f, k1, k2; f = 0 for cameras that are not registered.
        rotations: R, world-to-camera, axes right, up, backward.
        translations: t.
        xyz: points, scene units.
        rgb: their colours.
    """

    lenses: Float64[np.ndarray, "n 3"]
    rotations: Float64[np.ndarray, "n 3 3"]
    translations: Float64[np.ndarray, "n 3"]
    xyz: Float64[np.ndarray, "m 3"]
    rgb: UInt8[np.ndarray, "m 3"]

    @classmethod
    def read(cls, path: Path) -> "BundlerFile":
        """Reads a file. Raises InputError for a missing, damaged or other file."""
        try:
            text = path.read_text(encoding="utf-8-sig")
            lines = [line for line in text.splitlines() if line.strip()]
            if not lines or not lines[0].lower().startswith(_MARK):
                raise ValueError("another first line")
            cameras, points = (int(word) for word in lines[1].split()[:2])
            if not 0 <= cameras < 1 << 24 or not 0 <= points < 1 << 31:
                raise ValueError(f"{cameras} cameras and {points} points")
            end = 2 + 5 * cameras
            values = np.array(" ".join(lines[2:end]).split(), dtype=np.float64)
            if values.size != _CAMERA * cameras:
                raise ValueError(f"{values.size} numbers of {cameras} cameras")
            table = values.reshape(cameras, _CAMERA)
            rows = [f"{place} {colour}" for place, colour in zip(lines[end : end + 3 * points : 3], lines[end + 1 :: 3], strict=False)]
            numbers = np.array(" ".join(rows).split(), dtype=np.float64)
            if numbers.size != _POINT * points:
                raise ValueError(f"{numbers.size} numbers of {points} points")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; restore it") from None
        except (OSError, ValueError, LookupError, OverflowError, MemoryError) as error:
            raise InputError(
                f"{path}: expected a Bundler file, version 0.3, got a damaged or other one ({error}); export it again"
            ) from error
        numbers = numbers.reshape(points, _POINT)
        return cls(
            table[:, :3],
            table[:, 3:12].reshape(-1, 3, 3),
            table[:, 12:],
            numbers[:, :3],
            np.clip(np.nan_to_num(numbers[:, 3:]), 0, 255).astype(np.uint8),
        )


def is_bundler(path: Path) -> bool:
    """Whether the first line of a file is Bundler's."""
    try:
        with path.open("rb") as file:
            return file.read(64).decode("latin-1").lower().lstrip("\xef\xbb\xbf").startswith(_MARK)
    except OSError:
        return False
