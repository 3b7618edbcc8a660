"""Reader of ``transforms*.json``: the cameras of NeRF-Synthetic (Blender), instant-ngp and nerfstudio, also as exported by Polycam and Record3D.

A file holds ``frames``. Each has ``file_path`` (a photo; where it has no suffix of an image, .png, .jpg and .jpeg are tried) and ``transform_matrix``,
camera-to-world acting on columns, axes right, up, backward. Intrinsics are those of the frame, else of the file, in pixels of ``w`` x ``h`` from the top-left
corner, pixel centres at +0.5:

* ``fl_x`` and ``fl_y`` (the same as ``fl_x`` if it is missing), or fields of view in radians, ``camera_angle_x`` and ``camera_angle_y``;
* ``cx`` and ``cy``, else the image centre;
* ``k1``, ``k2``, ``k3``, ``p1``, ``p2`` of OpenCV, or ``k1`` to ``k4`` of its fisheye lens (``camera_model`` OPENCV_FISHEYE, or ``is_fisheye``).
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from npbgpp.data import IMAGE_SUFFIXES, Lens, View, check_rigid, pinhole
from npbgpp.errors import InputError, listing
from npbgpp.geometry import Cameras

_SMALLEST_ANGLE = 1e-6  # radians; smaller ones give focal lengths beyond single precision
_LARGEST_SIDE = 1 << 16  # pixels
_PERSPECTIVE = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "PERSPECTIVE")
_FISHEYE = ("OPENCV_FISHEYE", "FISHEYE")
_COEFFICIENTS = ("k1", "k2", "k3", "k4", "p1", "p2")
# keys of lenses that have no equivalent here
_OTHER_LENSES = ("k5", "k6", "ftheta_p0", "ftheta_p1", "equirectangular", "is_equirectangular", "latlong", "distortion_params")


@dataclass(frozen=True)
class TransformsFile:
    """A file of frames.

    Attributes:
        path: the file.
        content: its keys other than the frames.
        frames: frames, unchecked.
    """

    path: Path
    content: Mapping[str, Any]
    frames: tuple[Any, ...]

    @classmethod
    def read(cls, path: Path, missing: str) -> "TransformsFile":
        """Reads a file, with or without a byte order mark.

        Args:
            path: the file.
            missing: what to do when there is no such file, for the message.

        Raises:
            InputError: a missing, damaged or other file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; {missing}") from None
        except (ValueError, OSError, RecursionError) as error:
            raise InputError(f"{path}: expected a JSON file, got an unreadable one ({error}); restore it") from error
        if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
            raise InputError(f"{path}: expected an object with a list 'frames', got {type(content).__name__}; restore the file")
        return cls(path, {key: value for key, value in content.items() if key != "frames"}, tuple(content["frames"]))

    def where(self, k: int) -> str:
        """Frame ``k`` for messages."""
        return f"{self.path}: frames[{k}]"

    def image(self, k: int, root: Path) -> Path:
        """The photo of frame ``k``; the file need not exist. Raises InputError for a frame without a path."""
        frame = self.frames[k]
        relative = frame.get("file_path") if isinstance(frame, dict) else None
        if not isinstance(relative, str) or not PurePosixPath(relative.replace("\\", "/")).name:
            raise InputError(f"{self.where(k)}: file_path: expected the path of an image relative to {root}, got {relative!r}")
        return located(root, relative)

    def states_size(self, k: int) -> bool:
        """Whether the intrinsics of frame ``k`` say which image size they are for, or are in pixels."""
        return any(self._value(k, key) is not None for key in ("w", "h", "fl_x"))

    def lens(self, k: int, photo: Path, size: tuple[int, int]) -> Lens:
        """The camera model of frame ``k`` for its photo of this (height, width).

        Raises:
            InputError: no focal length, invalid numbers, another lens than those above, or a photo of another aspect ratio than ``w`` and ``h``.
        """
        where = self.where(k) if any(key in self.frames[k] for key in ("fl_x", "camera_angle_x", "w", "k1")) else str(self.path)
        height, width = (self._side(k, key, side, where) for key, side in (("h", size[0]), ("w", size[1])))
        if abs(size[1] / width - size[0] / height) > 1 / width + 1 / height:
            raise InputError(
                f"image {photo}: expected {width}x{height} pixels as {where} states (w, h), or the same ratio, got {size[1]}x{size[0]}; restore the photo, "
                "or correct w and h"
            )
        fx, fy = self._focal_lengths(k, (height, width), where)
        cx, cy = (self._number(k, key, side / 2, where) for key, side in (("cx", width), ("cy", height)))
        model, coefficients = self._distortion(k, where)
        try:
            return Lens(model, (fx, fy, cx, cy, *coefficients), (height, width)).resized(size)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    def pose(self, k: int) -> Float64[Tensor, "4 4"]:
        """The camera-to-world matrix of frame ``k``. Raises InputError for one that is missing or not rigid."""
        rows, where = self.frames[k].get("transform_matrix"), f"{self.where(k)}: transform_matrix"
        try:
            matrix = torch.tensor(rows, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            matrix = torch.zeros(0)
        if matrix.shape != (4, 4):
            raise InputError(f"{where}: expected 4 rows of 4 numbers, got {rows!r}")
        check_rigid(matrix, where)
        return matrix

    def centres(self) -> Float64[Tensor, "n 3"]:
        """Camera positions of all frames with a pose."""
        frames = [k for k, frame in enumerate(self.frames) if isinstance(frame, dict)]
        return torch.stack([self.pose(k)[:3, 3] for k in frames]) if frames else torch.zeros(0, 3, dtype=torch.float64)

    def _value(self, k: int, key: str) -> Any:
        """The value of the frame, else of the file."""
        value = self.frames[k].get(key)
        return self.content.get(key) if value is None else value

    def _number(self, k: int, key: str, default: float, where: str) -> float:
        value = self._value(k, key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise InputError(f"{where}: {key}: expected a finite number, got {value!r}; correct the file")
        return float(value)

    def _side(self, k: int, key: str, default: int, where: str) -> int:
        side = self._number(k, key, float(default), where)
        if not (1 <= side <= _LARGEST_SIDE and side == int(side)):
            raise InputError(f"{where}: {key}: expected a positive whole number of pixels, got {side:g}; correct the file")
        return int(side)

    def _focal_lengths(self, k: int, size: tuple[int, int], where: str) -> tuple[float, float]:
        """(fx, fy) in pixels of this (height, width), both from the frame or both from the file."""
        height, width = size
        own = any(self.frames[k].get(key) is not None for key in ("fl_x", "camera_angle_x"))
        place = self.frames[k] if own else self.content
        fx = place.get("fl_x")
        if fx is None:
            fx = _focal_length(place.get("camera_angle_x"), width, f"{where}: camera_angle_x")
        fy = place.get("fl_y")
        if fy is None and place.get("camera_angle_y") is not None:
            fy = _focal_length(place["camera_angle_y"], height, f"{where}: camera_angle_y")
        for key, value in (("fl_x", fx), ("fl_y", fx if fy is None else fy)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"{where}: {key}: expected a positive focal length in pixels, got {value!r}; correct the file")
        return float(fx), float(fx if fy is None else fy)

    def _distortion(self, k: int, where: str) -> tuple[str, tuple[float, ...]]:
        """(COLMAP's model, coefficients in its order)."""
        stated = self._value(k, "camera_model")
        name = "" if stated is None else str(stated).upper()
        is_fisheye = name in _FISHEYE or bool(self._value(k, "is_fisheye"))
        others = [key for key in _OTHER_LENSES if self._value(k, key)]
        if (name and name not in (*_PERSPECTIVE, *_FISHEYE)) or others:
            got = f"camera_model {stated}" if not others else ", ".join(others)
            raise InputError(
                f"{where}: expected photos of a perspective or fisheye lens ({', '.join((*_PERSPECTIVE, *_FISHEYE))}), got {got}, which is not read; "
                "convert the photos to perspective ones (spherical photos: split them)"
            )
        k1, k2, k3, k4, p1, p2 = (self._number(k, key, 0.0, where) for key in _COEFFICIENTS)
        if is_fisheye:
            if p1 or p2:
                raise InputError(f"{where}: p1, p2: a fisheye lens has k1 to k4 alone, got {p1}, {p2}; undistort the photos first")
            return "OPENCV_FISHEYE", (k1, k2, k3, k4)
        if k4:
            raise InputError(f"{where}: k4: expected 0 for a perspective lens, got {k4}; undistort the photos first, or refit without k4")
        if k3:
            return "FULL_OPENCV", (k1, k2, p1, p2, k3, 0.0, 0.0, 0.0)
        return ("OPENCV", (k1, k2, p1, p2)) if k1 or k2 or p1 or p2 else ("PINHOLE", ())


def _focal_length(angle: Any, side: int, where: str) -> float:
    if isinstance(angle, bool) or not isinstance(angle, int | float) or not _SMALLEST_ANGLE < angle < math.pi:
        raise InputError(f"{where}: expected an angle in radians between 0 and pi, got {angle!r}; correct the file, or state fl_x")
    return 0.5 * side / math.tan(0.5 * angle)


def located(root: Path, name: str) -> Path:
    """A file by its name in a scene file, relative to ``root``: backslashes separate folders; absolute paths of another machine are looked up by their last
    parts; a missing suffix is one of an image. The file need not exist."""
    if (root / name).is_file():
        return root / name
    parts = PurePosixPath(name.replace("\\", "/")).parts
    is_foreign = parts[0] == "/" or parts[0].endswith(":")
    tails = [parts[i:] for i in range(1, len(parts))] if is_foreign else [parts]
    candidates = [root.joinpath(*tail) for tail in tails] or [root / name]
    suffixes = ("", *IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))
    for path in candidates:
        for suffix in suffixes:
            if path.name and "\0" not in name and path.with_name(path.name + suffix).is_file():
                return path.with_name(path.name + suffix)
    path = root / Path(*parts)
    return path if path.suffix.lower() in IMAGE_SUFFIXES or path.exists() else path.with_name(path.name + ".png")


def view_name(file_path: str) -> str:
    """Path components joined by '-', without the suffix of an image: ./train/r_0.png is train-r_0."""
    path = PurePosixPath(file_path.replace("\\", "/"))
    path = path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path
    return "-".join(part for part in path.parts if part not in (".", "..", "/") and not part.endswith(":"))


def check_names(root: Path, views: Sequence[View]) -> None:
    """Raises InputError for views of one name."""
    counts = Counter(view.name for view in views)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise InputError(f"{root}: expected a different file_path in each frame, got several of {listing(twice)}; correct the files")


def frame_camera(cam_to_world: Float64[Tensor, "4 4"], lens: Lens) -> Cameras:
    """The pinhole camera of an undistorted photo; the pose is in single precision, intrinsics are in double precision."""
    if lens.distorts:
        focal_length, centre = (part.double() for part in pinhole(lens))
    else:
        focal_length, centre = (torch.tensor([pair], dtype=torch.float64) for pair in (lens.focal_length, lens.principal_point))
    camera = Cameras.from_opengl(cam_to_world[None], focal_length, centre, lens.image_size)
    return Cameras(camera.R.float(), camera.T.float(), focal_length, centre, lens.image_size)
