"""NPBG's scene file (Aliev et al., Neural Point-Based Graphics, 2020) and the cameras that it names, in Metashape's XML or as text.

``viewport_size`` [W, H] is the size in pixels that the intrinsics hold for. They are ``intrinsic_matrix``, an .xml or a text with K; or ``proj_matrix``, a
text with OpenGL's projection P (4, 4), from which fx = P00 W / 2, fy = P11 H / 2, cx = (1 - P02) W / 2, cy = (1 + P12) H / 2. ``view_matrix`` is an .xml or a
text of camera-to-world matrices (M, 4, 4), axes right, up, backward. Pixels are those of an OpenGL window, so that K counts from the top-left corner, as we
do. The label of a camera in a text is its number among the matrices. Paths refer to the folder of the file.

The original gives all photos the first sensor of an .xml; here each has its own, if intrinsics and poses are in one file.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from npbgpp.data.metashape import MetashapeFile, Sensor
from npbgpp.data.parsers.npbg_paths import read_yaml
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras, rigid_defect

_LARGEST_SIDE = 1 << 16  # pixels
_SMALLEST, _LARGEST = 1e-9, 1e9  # pixels, of intrinsics that float32 still holds
_LARGEST_SKEW = 1e-3
# what says nothing of photos and cameras
_OTHER_KEYS = "pointcloud mesh texture uv_order model3d_origin point_sizes net_path ckpt net_ckpt texture_ckpt use_mesh"
_KEYS = {"viewport_size", "intrinsic_matrix", "proj_matrix", "view_matrix", *_OTHER_KEYS.split()}
_OPENGL_FROM_OPENCV = (1.0, -1.0, -1.0, 1.0)  # of the columns of a camera-to-world matrix


@dataclass(frozen=True)
class SceneFile:
    """A scene file: where it lies, what it says, and its viewport as (height, width)."""

    path: Path
    content: dict[Any, Any]
    size: tuple[int, int]

    @classmethod
    def read(cls, path: Path) -> "SceneFile":
        """Reads a scene file. Raises InputError when it is missing, damaged or without a usable viewport."""
        content = read_yaml(path)
        viewport = content.get("viewport_size")
        stated = viewport if isinstance(viewport, list) else []
        sides = [
            int(side)
            for side in stated
            if isinstance(side, int | float) and not isinstance(side, bool) and 1 <= side <= _LARGEST_SIDE and side == int(side)
        ]
        if len(sides) != 2 or len(stated) != 2:
            raise InputError(f"{path}: viewport_size: expected [width, height] in pixels, got {_shown(viewport)}; correct the file")
        return cls(path, content, (sides[1], sides[0]))

    def file(self, key: str) -> Path | None:
        """What a key names, which need not exist; None without the key. Raises InputError when it is no path."""
        value = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise InputError(f"{self.path}: {key}: expected the name of a file, got {_shown(value)}; correct the file")
        return self.path.parent / value

    def notes(self) -> tuple[str, ...]:
        """What it says that has no effect."""
        unknown = [_shown(key) for key in self.content if key not in _KEYS]
        notes = [f"{self.path.name}: these keys have no meaning here: {', '.join(unknown[:5])}"] if unknown else []
        if self.content.get("model3d_origin") is not None:
            notes.append(f"{self.path.name}: model3d_origin is not applied, points and poses are taken as they are")
        return tuple(notes)


@dataclass(frozen=True)
class Shot:
    """A camera with a pose.

    Attributes:
        label: names its photo.
        camera: one camera, for the undistorted photo.
        offset: from its principal point to that of the photo as it was shot, pixels.
    """

    label: str
    camera: Cameras
    offset: tuple[float, float]

    def as_photographed(self) -> Cameras:
        """The camera for the photo as it was shot."""
        centre = self.camera.principal_point
        return replace(self.camera, principal_point=centre + centre.new_tensor(self.offset))


@dataclass(frozen=True)
class Shots:
    """The cameras of a scene.

    Attributes:
        shots: those with a pose, in the order of their file; at least one.
        unposed: labels of the others.
        distortion: of the lens, in words; empty when there is none.
        notes: what was read but not applied.
    """

    shots: tuple[Shot, ...]
    unposed: tuple[str, ...]
    distortion: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Pinhole:
    focal_length: tuple[float, float]
    principal_point: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)


def read_shots(file: SceneFile) -> Shots:
    """Reads the cameras that a scene file names.

    Raises:
        InputError: missing or damaged files, matrices that are no camera's, a resolution other than the viewport, or no camera with a pose.
    """
    poses, intrinsics = file.file("view_matrix"), file.file("intrinsic_matrix")
    if poses is None:
        raise InputError(f"{file.path}: expected view_matrix, the poses of the cameras, got none; add it")
    notes = file.notes()
    exported = MetashapeFile.read(poses) if _is_xml(poses) else None
    shared, sensors = (None, ()) if exported is not None and intrinsics == poses else _shared_pinhole(file, intrinsics)
    unposed: tuple[str, ...]
    if exported is not None:
        if shared is None:
            sensors = tuple(dict.fromkeys(camera.sensor for camera in exported.cameras))
        flip = torch.tensor(_OPENGL_FROM_OPENCV, dtype=torch.float64)
        shots = [_shot(file, c.label, c.cam_to_world * flip, shared or _of_sensor(c.sensor, file, poses)) for c in exported.cameras]
        unposed = exported.unaligned
        if exported.transforms:
            notes += (
                f"{poses.name}: the transform of {', '.join(exported.transforms[:5])} is not applied, as the cloud is taken to be without it",
            )
    else:
        assert shared is not None
        matrices = _read_matrices(poses)
        shots = [_shot(file, str(k), matrix, shared) for k, matrix in enumerate(matrices) if matrix.isfinite().all()]
        unposed = tuple(str(k) for k, matrix in enumerate(matrices) if not matrix.isfinite().all())
    if not shots:
        raise InputError(f"{poses}: expected the poses of cameras, got none of {len(unposed)}; align the photos again")
    coefficients = dict(pair for sensor in reversed(sensors) for pair in sensor.distortion)
    return Shots(tuple(shots), unposed, ", ".join(f"{key} {value:.3g}" for key, value in sorted(coefficients.items())), notes)


def _is_xml(path: Path) -> bool:
    return path.suffix.lower() == ".xml"


def _of_sensor(sensor: Sensor, file: SceneFile, xml: Path) -> _Pinhole:
    height, width = file.size
    if sensor.image_size != file.size:
        expected = f"[{sensor.image_size[1]}, {sensor.image_size[0]}]"
        raise InputError(f"{file.path}: viewport_size: expected {expected}, the resolution in {xml}, got [{width}, {height}]; correct it")
    return _Pinhole((sensor.focal_length, sensor.focal_length), (width / 2, height / 2), sensor.offset)


def _shared_pinhole(file: SceneFile, intrinsics: Path | None) -> tuple[_Pinhole, tuple[Sensor, ...]]:
    """What all photos have in common when each has no sensor of its own, and the sensor that it comes from."""
    height, width = file.size
    if intrinsics is not None and _is_xml(intrinsics):
        sensors = MetashapeFile.read(intrinsics).sensors[:1]
        if not sensors:
            raise InputError(f"{intrinsics}: expected a sensor with a <calibration>, got none; export the cameras again")
        return _of_sensor(sensors[0], file, intrinsics), sensors
    path = intrinsics or file.file("proj_matrix")
    if path is None:
        raise InputError(f"{file.path}: expected intrinsic_matrix or proj_matrix, got neither; add one")
    table = _read_table(path)
    if intrinsics is not None:
        K = table[:3, :3]
        wanted, fits = "K, 3x3 numbers without skew, the last row 0 0 1", K.shape == (3, 3) and K[2].tolist() == [0, 0, 1]
    else:
        K = table
        wanted, fits = (
            "an OpenGL projection, 4x4 numbers without skew, the last row 0 0 -1 0",
            K.shape == (4, 4) and K[3].tolist() == [0, 0, -1, 0],
        )
    if not fits or max(abs(K[0, 1]), abs(K[1, 0])) > _LARGEST_SKEW:
        raise InputError(f"{path}: expected {wanted}, got {K[:4, :4].tolist()}; correct the file")
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    if intrinsics is None:
        fx, fy, cx, cy = fx * width / 2, fy * height / 2, (1 - cx) * width / 2, (1 + cy) * height / 2
    if not (min(fx, fy) > _SMALLEST and np.abs([fx, fy, cx, cy]).max() < _LARGEST):
        raise InputError(
            f"{path}: expected positive focal lengths and a principal point, got {fx}, {fy} and {cx}, {cy} pixels; correct the file"
        )
    return _Pinhole((float(fx), float(fy)), (float(cx), float(cy))), ()


def _read_table(path: Path) -> np.ndarray:
    """Rows of numbers, one at least, that need not be finite."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        table = np.loadtxt(lines, ndmin=2) if any(line.partition("#")[0].strip() for line in lines) else np.zeros((0, 0))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, but the scene file names it; restore it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a table of numbers, got other text ({error}); correct the file") from error
    if table.size == 0:
        raise InputError(f"{path}: expected a table of numbers, got an empty file; restore it")
    return table


def _read_matrices(path: Path) -> Float64[Tensor, "m 4 4"]:
    """Camera-to-world; those that are finite are poses."""
    table = _read_table(path)
    if table.size % 16:
        raise InputError(
            f"{path}: expected 4x4 camera-to-world matrices below each other, got {len(table)}x{table.shape[1]} numbers; correct it"
        )
    matrices = torch.from_numpy(table.reshape(-1, 4, 4))
    for k, matrix in enumerate(matrices):
        defect = rigid_defect(matrix) if matrix.isfinite().all() else None
        if defect is not None:
            raise InputError(f"{path}: matrix {k}: expected a rigid camera-to-world pose, but {defect}; correct the file")
    return matrices


def _shot(file: SceneFile, label: str, cam_to_world: Float64[Tensor, "4 4"], pinhole: _Pinhole) -> Shot:
    focal_length, principal_point = (torch.tensor([pair], dtype=torch.float64) for pair in (pinhole.focal_length, pinhole.principal_point))
    camera = Cameras.from_opengl(cam_to_world[None], focal_length, principal_point, file.size)
    camera = replace(camera, R=camera.R.float(), T=camera.T.float())
    if not camera.T.isfinite().all():
        raise InputError(
            f"{file.path}: view_matrix: camera {label}: expected a position of usual size, got {cam_to_world[:3, 3].tolist()}; rescale the scene"
        )
    return Shot(label, camera, pinhole.offset)


def _shown(value: object) -> str:
    """A value without what it may contain: a few lines of yaml can mean gigabytes."""
    parts = value if isinstance(value, list) and len(value) < 9 else [value]
    return ", ".join(str(part)[:40] if isinstance(part, str | float | None) or _is_small(part) else type(part).__name__ for part in parts)


def _is_small(value: object) -> bool:
    """Whether this is a number that Python is willing to write down."""
    return isinstance(value, int) and value.bit_length() < 100
