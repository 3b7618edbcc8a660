"""COLMAP's sparse models, binary and text (Schoenberger and Frahm, Structure-from-Motion Revisited, 2016; file formats as COLMAP documents them).

A model is three files: ``cameras`` (lenses), ``images`` (poses, and the points that each photo shows) and ``points3D``, ``.bin`` or ``.txt``. They are read
here, not by ``pycolmap``: its readers trust the counts in a file, and a damaged one would end the process. Poses are world-to-camera acting on columns,
axes right, down, forward; pixels count from the top-left corner, centres at +0.5.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from npbgpp.data.lens import MODELS, Lens
from npbgpp.errors import InputError
from npbgpp.geometry.pointcloud import PointCloud

_LARGEST_SIDE = 1 << 16  # pixels
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<i8")])


@dataclass(frozen=True)
class ModelImage:
    """A registered photo.

    Attributes:
        name: file name below the folder of photos, unique.
        camera: number of its lens.
        world_to_cam: its pose.
        uv_px: where it shows points.
        point: the number of each of these points, -1 where it belongs to none.
    """

    name: str
    camera: int
    world_to_cam: Float64[Tensor, "4 4"]
    uv_px: Float64[np.ndarray, "n 2"]
    point: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class SparsePoints:
    """Triangulated points and their numbers, in the order of the file."""

    cloud: PointCloud
    number: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class ColmapModel:
    """A sparse model without its points.

    Attributes:
        folder: where its files lie.
        lenses: by number.
        images: sorted by name.
    """

    folder: Path
    lenses: dict[int, Lens]
    images: tuple[ModelImage, ...]

    @classmethod
    def read(cls, folder: Path) -> "ColmapModel":
        """Reads a model. Raises InputError when a file is missing or damaged, a pose or lens unusable, or a photo listed twice."""
        lenses = dict(_records(folder, "cameras", _cameras_bin, _cameras_txt))
        images = sorted(_records(folder, "images", _images_bin, _images_txt), key=lambda image: image.name)
        path = model_file(folder, "images")
        if not images:
            raise InputError(f"{path}: expected registered photos, got none; reconstruct the scene again")
        for image, following in zip(images, [*images[1:], None], strict=True):
            if following is not None and image.name == following.name:
                raise InputError(f"{path}: photo {image.name} is listed twice; reconstruct the scene again")
            if image.camera not in lenses:
                raise InputError(
                    f"{path}: photo {image.name} has camera {image.camera}, which the file of cameras does not hold; copy both again"
                )
        return cls(folder, lenses, tuple(images))

    def points_file(self) -> Path | None:
        """The file with its points, None when there is none."""
        return next((p for p in (self.folder / "points3D.bin", self.folder / "points3D.txt") if p.is_file()), None)


def find_models(root: Path) -> list[tuple[Path, int]]:
    """Sub-models of a scene with their numbers of photos, the largest first: below ``sparse``, in ``sparse``, or in the folder itself.

    Raises:
        InputError: a model whose file of photos cannot be read.
    """
    places = [root / "sparse", *sorted(p for p in root.glob("sparse/*") if p.is_dir()), root]
    found = [(place, _count_images(place)) for place in places if _exists(place, "images") and _exists(place, "cameras")]
    return sorted(found, key=lambda model: -model[1])


def model_file(folder: Path, stem: str) -> Path:
    """The binary file if there is one, else the text file."""
    binary = folder / f"{stem}.bin"
    return binary if binary.is_file() else folder / f"{stem}.txt"


def read_points(path: Path) -> SparsePoints:
    """Reads ``points3D.bin`` or ``points3D.txt``. Raises InputError when it is missing, damaged, empty or not finite."""
    records = [*_read(path, _points_bin if path.suffix == ".bin" else _points_txt)]
    if not records:
        raise InputError(f"{path}: expected points, got none; reconstruct the scene again")
    number, xyz, rgb = (np.array(column) for column in zip(*records, strict=True))
    bad = int((~np.isfinite(xyz)).any(1).sum())
    if bad:
        raise InputError(f"{path}: {bad} of {len(xyz)} points have coordinates that are not finite; reconstruct the scene again")
    cloud = PointCloud(torch.from_numpy(xyz.astype(np.float32)), torch.from_numpy(rgb.astype(np.uint8)))
    if not cloud.xyz.isfinite().all():
        raise InputError(f"{path}: expected coordinates of usual size, got up to {np.abs(xyz).max():.3g}; rescale the model")
    return SparsePoints(cloud, number.astype(np.int64))


def _exists(folder: Path, stem: str) -> bool:
    return (folder / f"{stem}.bin").is_file() or (folder / f"{stem}.txt").is_file()


def _count_images(folder: Path) -> int:
    path = model_file(folder, "images")
    if path.suffix == ".bin":
        with path.open("rb") as file:
            return int.from_bytes(file.read(8), "little")
    return sum(1 for _ in _read(path, lambda p: iter(_lines(p)))) // 2


def _records(folder: Path, stem: str, binary: Callable, text: Callable) -> list:
    path = model_file(folder, stem)
    return [*_read(path, binary if path.suffix == ".bin" else text)]


def _read(path: Path, records: Callable[[Path], Iterator]) -> Iterator:
    try:
        yield from records(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a COLMAP model needs cameras, images and points3D: copy it again") from None
    except (OSError, ValueError, OverflowError, struct.error, IndexError) as error:
        raise InputError(f"{path}: expected a file of a COLMAP model, got a damaged or other one ({error}); copy it again") from error


class _Reader:
    """Reads numbers from bytes and refuses to read past their end."""

    def __init__(self, path: Path) -> None:
        self.content, self.place = path.read_bytes(), 0

    def take(self, form: str) -> tuple:
        values = struct.unpack_from("<" + form, self.content, self.place)
        self.place += struct.calcsize("<" + form)
        return values

    def count(self, smallest: int) -> int:
        """A number of records of at least so many bytes each."""
        (count,) = self.take("Q")
        if count * smallest > len(self.content) - self.place:
            raise ValueError(f"it promises {count} records and ends after {len(self.content)} bytes")
        return count

    def name(self) -> str:
        end = self.content.index(b"\0", self.place)
        text = self.content[self.place : end].decode("utf-8")
        self.place = end + 1
        return text

    def array(self, dtype: np.dtype, count: int) -> np.ndarray:
        found = np.frombuffer(self.content, dtype, count, self.place)
        self.place += found.nbytes
        return found


def _lines(path: Path) -> list[str]:
    """Lines without comments; empty ones stay, because a photo without points has one."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def _lens(number: int, model: str, height: int, width: int, params: tuple[float, ...]) -> tuple[int, Lens]:
    if not (0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE):
        raise ValueError(f"camera {number} has photos of {width}x{height} pixels")
    try:
        return number, Lens(model, params, (height, width))
    except InputError as error:
        raise ValueError(f"camera {number}: {error}") from error


def _cameras_bin(path: Path) -> Iterator[tuple[int, Lens]]:
    reader = _Reader(path)
    for _ in range(reader.count(24)):
        number, model, width, height = reader.take("iiQQ")
        if model not in MODELS:
            raise InputError(
                f"{path}: camera {number} has model number {model}, known are 0 to {max(MODELS)}; undistort the photos with COLMAP first "
                "(colmap image_undistorter)"
            )
        name, count = MODELS[model]
        yield _lens(number, name, height, width, reader.take(f"{count}d"))


def _cameras_txt(path: Path) -> Iterator[tuple[int, Lens]]:
    for line in filter(None, _lines(path)):
        number, model, width, height, *params = line.split()
        yield _lens(int(number), model, int(height), int(width), tuple(map(float, params)))


def _image(name: str, camera: int, pose_numbers: np.ndarray, uv_px: np.ndarray, point: np.ndarray) -> ModelImage:
    """The pose is a quaternion (w, x, y, z), which need not have length 1, and a translation."""
    if not name or name.startswith("/") or ".." in Path(name).parts:
        raise ValueError(f"photo {name!r} is no name of a file below the folder of photos")
    w, x, y, z = (pose_numbers[:4] / np.linalg.norm(pose_numbers[:4])).tolist()
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )
    pose[:3, 3] = torch.from_numpy(pose_numbers[4:])
    if not pose.float().isfinite().all():
        raise ValueError(f"the pose of photo {name} is not finite")
    return ModelImage(name, camera, pose, uv_px, point)


def _images_bin(path: Path) -> Iterator[ModelImage]:
    reader = _Reader(path)
    for _ in range(reader.count(65)):
        _, *pose, camera = reader.take("i7di")
        name = reader.name()
        seen = reader.array(_OBSERVATION, reader.count(_OBSERVATION.itemsize))
        yield _image(name, camera, np.array(pose), seen["xy"].copy(), seen["point"].copy())


def _images_txt(path: Path) -> Iterator[ModelImage]:
    lines = _lines(path)
    while lines and not lines[-1]:
        lines.pop()
    for first, second in zip(lines[::2], [*lines[1::2], ""][: len(lines[::2])], strict=True):
        _, *pose, camera, name = re.split(r"\s+", first, maxsplit=9)
        seen = np.array(second.split(), dtype=np.float64).reshape(-1, 3)
        numbers = np.array(pose, dtype=np.float64)
        if len(numbers) != 7:
            raise ValueError(f"a photo has {len(numbers)} numbers for its pose in place of 7")
        point = np.where(np.isfinite(seen[:, 2]), seen[:, 2], -1).astype(np.int64)
        yield _image(name, int(camera), numbers, seen[:, :2], point)


def _points_bin(path: Path) -> Iterator[tuple]:
    reader = _Reader(path)
    for _ in range(reader.count(51)):
        number, x, y, z, r, g, b, _ = reader.take("q3d3Bd")
        track = reader.count(8)
        reader.place += 8 * track
        yield number, (x, y, z), (r, g, b)


def _points_txt(path: Path) -> Iterator[tuple]:
    for line in filter(None, _lines(path)):
        number, x, y, z, r, g, b, *_ = line.split()
        colour = (int(r), int(g), int(b))
        if not all(0 <= value <= 255 for value in colour):
            raise ValueError(f"point {number} has the colour {colour}")
        yield int(number), (float(x), float(y), float(z)), colour
