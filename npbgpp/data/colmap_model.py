"""Reader of COLMAP's sparse models, binary and text (Schoenberger and Frahm, Structure-from-Motion Revisited, 2016).

A model has three files, ``.bin`` or ``.txt``: ``cameras`` (camera models), ``images`` (poses and observations) and ``points3D``. The readers of ``pycolmap``
are not used: they trust the counts in a file, so that a damaged one ends the process. Poses are world-to-camera acting on columns, axes right, down,
forward; pixel coordinates start at the top-left corner, pixel centres at +0.5.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy.spatial.transform import Rotation
from torch import Tensor

from npbgpp.data.lens import MODELS, Lens
from npbgpp.errors import InputError
from npbgpp.geometry import Offset, PointCloud, Transform, centres_of, far_offset, rigid_defect, transformed, world_to_cam_from

_LARGEST_SIDE = 1 << 16  # pixels
_LARGEST_TRANSLATION = 1e15  # scene units; squares of larger ones overflow in single precision
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
_POINT = np.dtype([("number", "<i8"), ("xyz", "<f8", 3), ("rgb", "u1", 3)])  # followed by the reprojection error and the track
_TRACK_LENGTH = struct.Struct("<Q")
_TRACK_LENGTH_AT = _POINT.itemsize + 8  # bytes from the start of the point
# folders with models, the first group with any counts; "" is the folder of the scene
_MODEL_FOLDERS = (
    ("sparse", "sparse/*", ""),
    ("sparse_*", "sparse_*/*"),
    ("colmap/sparse", "colmap/sparse/*"),
    ("distorted/sparse", "distorted/sparse/*"),
)
_LONGEST_SHOWN = 100  # bytes of a name in messages
_SPHERICAL = ("EQUIRECTANGULAR", "SPHERICAL")
_SPHERICAL_NUMBER = 17
_T = TypeVar("_T")


@dataclass(frozen=True)
class ModelImage:
    """A registered photo.

    Attributes:
        name: unique file name relative to the image folder, or of a file of another machine (of /a/b.jpg: a/b.jpg).
        camera: number of its camera.
        world_to_cam: its pose.
        uv_px: its keypoints.
        point: number of the point observed at each keypoint, -1 for none.
    """

    name: str
    camera: int
    world_to_cam: Float64[Tensor, "4 4"]
    uv_px: Float64[np.ndarray, "n 2"]
    point: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class SparsePoints:
    """Triangulated points and their COLMAP numbers, in file order."""

    cloud: PointCloud
    number: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class ColmapModel:
    """A sparse model without its points.

    Attributes:
        folder: the folder of its files.
        lenses: camera models by number.
        images: registered photos, sorted by name.
        offset: by which the coordinates of the poses are reduced, see ``npbgpp.geometry.point_cloud``; None for coordinates as in the files.
    """

    folder: Path
    lenses: dict[int, Lens]
    images: tuple[ModelImage, ...]
    offset: Offset | None = None

    @classmethod
    def read(cls, folder: Path) -> "ColmapModel":
        """Reads a model. Raises InputError for a missing or damaged file, an invalid pose or camera, or a photo listed twice."""
        path = model_file(folder, "cameras")
        cameras = _parsed(path, lambda p: [*(_cameras_bin if p.suffix == ".bin" else _cameras_txt)(p)])
        lenses = dict(cameras)
        if len(lenses) < len(cameras):
            raise InputError(
                f"{path}: expected cameras of different numbers, got {len(lenses)} numbers for {len(cameras)} cameras; reconstruct the scene again"
            )
        path = model_file(folder, "images")
        images = _parsed(path, lambda p: [*(_images_bin if p.suffix == ".bin" else _images_txt)(p)])
        images.sort(key=lambda image: image.name)
        if not images:
            raise InputError(f"{path}: expected registered photos, got none; reconstruct the scene again")
        for image, following in zip(images, [*images[1:], None], strict=True):
            if following is not None and image.name == following.name:
                raise InputError(f"{path}: photo {image.name} is listed twice; reconstruct the scene again")
            if image.camera not in lenses:
                raise InputError(
                    f"{path}: photo {image.name} has camera {image.camera}, which is not among the cameras of the model; copy both files again"
                )
        poses = torch.stack([image.world_to_cam for image in images])
        offset = far_offset(centres_of(poses))
        moved = zip(images, world_to_cam_from(offset, poses), strict=True)
        return cls(folder, lenses, tuple(replace(image, world_to_cam=pose) for image, pose in moved), offset)

    def points_file(self) -> Path | None:
        """The file of its points with their numbers, None if there is none."""
        return next((p for p in (self.folder / "points3D.bin", self.folder / "points3D.txt") if p.is_file()), None)

    def cloud_file(self) -> Path | None:
        """The file of its points, or ``points3D.ply`` without numbers as some programs write; None if there is neither."""
        ply = self.folder / "points3D.ply"
        return self.points_file() or (ply if ply.is_file() else None)


def find_models(root: Path) -> list[tuple[Path, int]]:
    """Models of a scene and their numbers of photos, the largest first: those in ``sparse``, in folders below it, or in the folder itself; without any,
    those in ``sparse_*``; else in ``colmap/sparse`` (nerfstudio); else in ``distorted/sparse`` (3D Gaussian Splatting, of the photos in ``input``).

    Raises:
        InputError: a folder or an ``images`` file that cannot be read.
    """
    for group in _MODEL_FOLDERS:
        places = [place for pattern in group for place in (sorted(root.glob(pattern)) if pattern else [root])]
        counts = [(place, _parsed(model_file(place, "images"), _count_images)) for place in places]
        found = sorted(((place, count) for place, count in counts if count is not None), key=lambda model: -model[1])
        if found:
            return found
    return []


def model_file(folder: Path, stem: str) -> Path:
    """The binary file if it exists, else the text file."""
    binary = folder / f"{stem}.bin"
    return binary if binary.is_file() else folder / f"{stem}.txt"


def read_points(path: Path, transform: Transform | None = None) -> SparsePoints:
    """Reads ``points3D.bin`` or ``points3D.txt``; a transformation is applied in double precision.

    Raises:
        InputError: a missing, damaged or empty file, or coordinates that are not finite.
    """
    points = _parsed(path, _points_bin if path.suffix == ".bin" else _points_txt)
    if not len(points):
        raise InputError(f"{path}: expected points, got none; reconstruct the scene again")
    xyz = points["xyz"]
    bad = int((~np.isfinite(xyz)).any(1).sum())
    if bad:
        raise InputError(f"{path}: {bad} of {len(xyz)} points have coordinates that are not finite; reconstruct the scene again")
    if np.abs(xyz).max() > np.finfo(np.float32).max:
        raise InputError(f"{path}: expected coordinates of usual size, got up to {np.abs(xyz).max():.3g}; rescale the model")
    cloud = PointCloud(transformed(xyz, transform), torch.from_numpy(points["rgb"].copy()))
    return SparsePoints(cloud, points["number"].copy())


def _parsed(path: Path, parse: Callable[[Path], _T]) -> _T:
    try:
        return parse(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a COLMAP model needs cameras, images and points3D: copy it again") from None
    except UnicodeDecodeError as error:
        start = error.object.rfind(b"\n", 0, error.start) + 1
        name = error.object[start:].partition(b"\n")[0].rpartition(b" ")[2][:_LONGEST_SHOWN]
        raise InputError(
            f"{path}: expected names in UTF-8, got other bytes ({name!r}), as programs on Windows write; rename the photos with letters, digits and "
            "underscores, and reconstruct the scene again"
        ) from error
    except (OSError, ValueError, OverflowError, struct.error, IndexError) as error:
        raise InputError(f"{path}: expected a file of a COLMAP model, got a damaged or other one ({error}); copy it again") from error


def _count_images(path: Path) -> int | None:
    """None for a folder without a model."""
    if not (path.is_file() and model_file(path.parent, "cameras").is_file()):
        return None
    if path.suffix == ".bin":
        with path.open("rb") as file:
            return int.from_bytes(file.read(8), "little")
    return len(_image_lines(path))


class _Reader:
    """Reads values from a binary file and raises at its end."""

    def __init__(self, path: Path) -> None:
        self.content, self.place = path.read_bytes(), 0

    def take(self, form: str) -> tuple:
        values = struct.unpack_from("<" + form, self.content, self.place)
        self.place += struct.calcsize("<" + form)
        return values

    def count(self, smallest: int) -> int:
        """A number of records; ``smallest`` is the least size of a record in bytes."""
        (count,) = self.take("Q")
        if count * smallest > len(self.content) - self.place:
            raise ValueError(f"{count} records do not fit into {len(self.content)} bytes")
        return count

    def name(self) -> str:
        end = self.content.index(b"\0", self.place)
        text = self.content[self.place : end].decode("utf-8")
        self.place = end + 1
        return text

    def array(self, dtype: np.dtype, count: int) -> np.ndarray:
        values = np.frombuffer(self.content, dtype, count, self.place)
        self.place += values.nbytes
        return values


def _lines(path: Path) -> list[str]:
    """Stripped lines."""
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]


def _records(path: Path) -> list[str]:
    """Lines that are neither empty nor comments."""
    return [line for line in _lines(path) if line and not line.startswith("#")]


def _image_lines(path: Path) -> list[tuple[str, str]]:
    """The two lines of each photo: a pose, after empty lines and comments, and the line that follows, which is empty for a photo without keypoints."""
    lines = iter(_lines(path))
    return [(line, next(lines, "")) for line in lines if line and not line.startswith("#")]


def _lens(number: int, model: str, height: int, width: int, params: tuple[float, ...]) -> tuple[int, Lens]:
    if model in _SPHERICAL:
        raise InputError(
            f"camera {number} of the COLMAP model: spherical photos ({model}) are not read; split them into perspective photos and reconstruct those "
            "(python/examples/panorama_sfm.py of COLMAP does both)"
        )
    if not (0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE):
        raise ValueError(f"camera {number} has {width}x{height} pixels")
    try:
        return number, Lens(model, params, (height, width))
    except InputError as error:
        raise ValueError(f"camera {number}: {error}") from error


def _cameras_bin(path: Path) -> Iterator[tuple[int, Lens]]:
    reader = _Reader(path)
    for _ in range(reader.count(24)):
        number, model, width, height = reader.take("iiQQ")
        if model not in MODELS and model != _SPHERICAL_NUMBER:
            raise InputError(
                f"{path}: camera {number} has model number {model}, known are 0 to {max(MODELS)}; undistort the photos with COLMAP first "
                "(colmap image_undistorter)"
            )
        name, count = MODELS.get(model, (_SPHERICAL[0], 2))
        yield _lens(number, name, height, width, reader.take(f"{count}d"))


def _cameras_txt(path: Path) -> Iterator[tuple[int, Lens]]:
    for line in _records(path):
        number, model, width, height, *params = line.split()
        yield _lens(int(number), model, int(height), int(width), tuple(map(float, params)))


def _relative(name: str) -> str:
    """A name without root, drive and parent folders; backslashes separate folders, as programs on Windows write them."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    last = max((k for k, part in enumerate(parts) if part in ("/", "//", "..") or part.endswith(":")), default=-1)
    return "/".join(parts[last + 1 :])


def _image(name: str, camera: int, pose_numbers: np.ndarray, uv_px: np.ndarray, point: np.ndarray) -> ModelImage:
    """``pose_numbers``: a quaternion (w, x, y, z) of any length and a translation."""
    stored, name = name, _relative(name)
    if not name or "\0" in name:
        raise ValueError(f"photo {stored!r} is no file name")
    length = np.linalg.norm(pose_numbers[:4])
    if not (0 < length < np.inf and np.abs(pose_numbers[4:]).max() < _LARGEST_TRANSLATION):
        raise ValueError(f"photo {name} has the pose {pose_numbers.tolist()}, a quaternion and a translation")
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.from_numpy(Rotation.from_quat(pose_numbers[[1, 2, 3, 0]] / length).as_matrix())
    pose[:3, 3] = torch.from_numpy(pose_numbers[4:])
    defect = rigid_defect(pose.float())
    if defect is not None:
        raise ValueError(f"photo {name} has no rigid pose: {defect}")
    return ModelImage(name, camera, pose, uv_px, np.where(np.isfinite(uv_px).all(1), point, -1))


def _images_bin(path: Path) -> Iterator[ModelImage]:
    reader = _Reader(path)
    for _ in range(reader.count(73)):
        _, *pose, camera = reader.take("i7di")
        name = reader.name()
        seen = reader.array(_OBSERVATION, reader.count(_OBSERVATION.itemsize))
        yield _image(name, camera, np.array(pose), seen["xy"].copy(), seen["point"])


def _images_txt(path: Path) -> Iterator[ModelImage]:
    for first, second in _image_lines(path):
        _, *pose, camera, name = re.split(r"\s+", first, maxsplit=9)
        numbers = np.array(pose, dtype=np.float64)
        if len(numbers) != 7:
            raise ValueError(f"a pose has {len(numbers)} numbers in place of 7")
        seen = np.array(second.split(), dtype=np.float64).reshape(-1, 3)
        known = np.abs(seen[:, 2]) < 2.0**53  # larger integers are not exact
        yield _image(name, int(camera), numbers, seen[:, :2], np.where(known, seen[:, 2], -1).astype(np.int64))


def _points_bin(path: Path) -> np.ndarray:
    """Tracks differ in length: a first pass finds the offsets of the points, then all are read at once."""
    reader = _Reader(path)
    content, starts = reader.content, []
    count = reader.count(_TRACK_LENGTH_AT + 8)
    place = reader.place
    for _ in range(count):
        starts.append(place)
        place += _TRACK_LENGTH_AT + 8 + 8 * _TRACK_LENGTH.unpack_from(content, place + _TRACK_LENGTH_AT)[0]
    if place > len(content):
        raise ValueError(f"the last track exceeds {len(content)} bytes")
    if not starts:
        return np.zeros(0, _POINT)
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(content, np.uint8), _POINT.itemsize)
    return windows[starts].view(_POINT)[:, 0]


def _points_txt(path: Path) -> np.ndarray:
    records = []
    for line in _records(path):
        number, x, y, z, r, g, b, *_ = line.split()
        colour = (int(r), int(g), int(b))
        if not all(0 <= value <= 255 for value in colour):
            raise ValueError(f"point {number} has the colour {colour}")
        records.append((int(number), (float(x), float(y), float(z)), colour))
    return np.array(records, _POINT)
