"""Files of camera poses: trajectories, and reconstructions of Bundler.

Trajectories are JSON, with intrinsics::

    {"format": "npbgpp cameras 1", "cameras": [{"cam_to_world": [[...] x 4] x 4, "focal_length": [fx, fy], "principal_point": [cx, cy],
     "image_size": [height, width]}, ...]}

``cam_to_world`` acts on columns, camera axes right, up, backward (OpenGL). Focal length and principal point are in pixels from the top-left corner of the
image. Numbers are written in double precision, so that single precision is restored exactly, apart from zeros (below 1e-15). A camera may have a ``time``, time
steps of a moving scene and shares of them, and ``"keyframe": true`` where the cameras between such ones were interpolated.

Or text, with poses alone: rows of 4 numbers are stacked camera-to-world matrices (4, 4) in the same axes, as in NPBG; rows of 12 are ``CamPose.inf`` of NPCR (see
``npbgpp.parsers.npcr``).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from npbgpp.core.files import write_atomically
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, Offset, cam_to_world_from, rigid_defect

LARGEST_SIDE = 1 << 14  # pixels
_FORMAT = "npbgpp cameras 1"
_SHAPES: dict[str, tuple[int, ...]] = {"cam_to_world": (4, 4), "focal_length": (2,), "principal_point": (2,), "image_size": (2,)}
_LARGEST_NUMBER = 1e30  # products of larger ones overflow in single precision
_OPENGL_FROM_OPENCV = (1.0, -1.0, -1.0, 1.0)  # signs of the columns of a camera-to-world matrix


@dataclass(frozen=True)
class PoseTrack:
    """A camera trajectory.

    Attributes:
        cameras: f single cameras.
        times: time of each in time steps of a moving scene; None where the file says nothing.
        keyframes: indices of the cameras that the others were interpolated from; empty where the file says nothing.
    """

    cameras: tuple[Cameras, ...]
    times: tuple[float, ...] | None = None
    keyframes: tuple[int, ...] = ()


def write_poses(path: Path, cameras: Sequence[Cameras], offset: Offset | None = None) -> None:
    """Writes cameras as JSON, their positions plus an offset. Raises InputError when the file cannot be written."""
    write_track(path, PoseTrack(tuple(one[k] for one in cameras for k in range(len(one)))), offset)


def write_track(path: Path, track: PoseTrack, offset: Offset | None = None) -> None:
    """Writes a trajectory as ``write_poses`` does. Raises InputError when the file cannot be written."""
    entries: list[dict[str, Any]] = [
        {
            "cam_to_world": pose.tolist(),
            "focal_length": focal.tolist(),
            "principal_point": principal.tolist(),
            "image_size": list(some.image_size),
        }
        for some in track.cameras
        for pose, focal, principal in zip(_placed(some, offset), some.focal_length, some.principal_point, strict=True)
    ]
    for entry, time in zip(entries, track.times or (), strict=False):
        entry["time"] = time
    for k in track.keyframes:
        entries[k]["keyframe"] = True
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    content = f'{{"format": {json.dumps(_FORMAT)}, "cameras": [\n{lines}\n]}}\n'
    write_atomically(path, lambda file: file.write(content.encode()))


def write_npcr_cameras(folder: Path, cameras: Sequence[Cameras], offset: Offset | None = None) -> tuple[Path, Path]:
    """Writes ``CamPose.inf`` and ``Intrinsic.inf`` of NPCR (see ``npbgpp.parsers.npcr``), positions plus an offset, and returns their paths.

    Raises:
        InputError: a file cannot be written. Poses are written last, so that they never accompany intrinsics of another trajectory.
    """
    poses: list[str] = []
    blocks: list[str] = []
    for some in cameras:
        for cam_to_world, focal, principal in zip(
            _placed(some, offset) * torch.tensor(_OPENGL_FROM_OPENCV, dtype=torch.float64),
            some.focal_length.tolist(),
            some.principal_point.tolist(),
            strict=True,
        ):
            poses.append(" ".join(f"{number:.17g}" for number in cam_to_world[:3, [2, 0, 1, 3]].T.flatten().tolist()))
            (fx, fy), (cx, cy) = focal, principal
            blocks.append(f"{len(blocks)}\n{fx:.17g} 0 {cx:.17g}\n0 {fy:.17g} {cy:.17g}\n0 0 1\n")
    intrinsics, campose = folder / "Intrinsic.inf", folder / "CamPose.inf"
    write_atomically(intrinsics, lambda file: file.write("\n".join(blocks).encode()))
    write_atomically(campose, lambda file: file.write(("\n".join(poses) + "\n").encode()))
    return campose, intrinsics


def read_poses(path: Path, like: Cameras, offset: Offset | None = None) -> tuple[Cameras, ...]:
    """Reads a camera trajectory.

    Args:
        path: JSON or text.
        like: one camera with the intrinsics and the image size for poses without.
        offset: subtracted from the positions in double precision.

    Returns:
        One or more single cameras.

    Raises:
        InputError: a missing or damaged file, another format, no camera, or an invalid one: not rigid, focal length or size not positive.
    """
    return read_track(path, like, offset).cameras


def read_track(path: Path, like: Cameras, offset: Offset | None = None) -> PoseTrack:
    """Reads a camera trajectory with its times and keyframes. Arguments and errors as ``read_poses``."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"poses {path}: expected a file with poses, got none that can be read ({error}); correct the path") from error
    track = _from_json(path, text, offset) if text.lstrip().startswith("{") else PoseTrack(_from_text(path, text, like, offset))
    if not track.cameras:
        raise InputError(f"poses {path}: expected at least one pose, got none; add some")
    return track


def _from_json(path: Path, text: str, offset: Offset | None) -> PoseTrack:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"poses {path}: expected JSON, got a damaged file ({error}); copy it again") from error
    entries = content.get("cameras") if content.get("format") == _FORMAT else None
    if not isinstance(entries, list):
        raise InputError(
            f'poses {path}: expected "format": "{_FORMAT}" and a list "cameras", got {sorted(content)[:5]}; see docs/conventions.md, '
            "or write stacked camera-to-world matrices (4, 4) as text"
        )
    cameras = tuple(_camera(entry, f"poses {path}: camera {k}", offset) for k, entry in enumerate(entries))
    times = [entry.get("time") for entry in entries]
    timed = [k for k, time in enumerate(times) if time is not None]
    for k in timed if len(timed) == len(times) else timed[:1]:
        if (
            len(timed) != len(times)
            or isinstance(times[k], bool)
            or not isinstance(times[k], int | float)
            or not 0 <= times[k] < _LARGEST_NUMBER
        ):
            raise InputError(
                f"poses {path}: camera {k}: time: expected a number, 0 or more, for every camera or for none, got {times[k]}; correct the file"
            )
    keyframes = tuple(k for k, entry in enumerate(entries) if entry.get("keyframe") is True)
    return PoseTrack(cameras, tuple(map(float, times)) if timed else None, keyframes)


def _camera(entry: Any, where: str, offset: Offset | None) -> Cameras:
    numbers = {}
    for key, shape in _SHAPES.items():
        try:
            found = np.asarray(entry[key], dtype=np.float64)
        except (LookupError, TypeError, ValueError, OverflowError):
            raise InputError(f"{where}: {key}: expected numbers ({_times(shape)}), got none; correct the file") from None
        if found.shape != shape or not (np.abs(found) < _LARGEST_NUMBER).all():
            raise InputError(f"{where}: {key}: expected finite numbers ({_times(shape)}), got {found.tolist()}; correct the file")
        numbers[key] = torch.from_numpy(found)
    height, width = numbers["image_size"].tolist()
    if not all(side.is_integer() and 1 <= side <= LARGEST_SIDE for side in (height, width)):
        raise InputError(f"{where}: image_size: expected height and width from 1 to {LARGEST_SIDE} pixels, got {height:g}x{width:g}")
    if (numbers["focal_length"].float() <= 0).any():
        raise InputError(f"{where}: focal_length: expected positive numbers of pixels, got {numbers['focal_length'].tolist()}")
    check_rigid(numbers["cam_to_world"], where)
    return _single(
        Cameras.from_opengl(
            cam_to_world_from(offset, numbers["cam_to_world"])[None],
            numbers["focal_length"][None],
            numbers["principal_point"][None],
            (int(height), int(width)),
        )
    )


def _from_text(path: Path, text: str, like: Cameras, offset: Offset | None) -> tuple[Cameras, ...]:
    rows = [line.split() for line in text.splitlines() if line.strip()]
    width = len(rows[0]) if rows else 4
    word = next((word for row in rows for word in row if not _is_number(word)), None)
    if word is not None:
        raise InputError(f"poses {path}: expected JSON, or rows of numbers, got {word[:40]!r}; correct the file or the path")
    other = next((row for row in rows if len(row) != width), None)
    if other is not None:
        raise InputError(f"poses {path}: expected rows of {width} numbers as in the first line, got one of {len(other)}; correct the file")
    numbers = np.array(rows, dtype=np.float64).reshape(len(rows), width)
    if width not in (4, 12) or (width == 4 and len(rows) % 4):
        raise InputError(
            f"poses {path}: expected rows of 4 numbers, 4 for each pose, or of 12 (CamPose.inf), got {len(rows)} of {width}; correct the file"
        )
    if not (np.abs(numbers) < _LARGEST_NUMBER).all():
        raise InputError(f"poses {path}: expected finite numbers below {_LARGEST_NUMBER:g}, got others; correct the file")
    if width == 4:
        poses = torch.from_numpy(numbers).view(-1, 4, 4)
    else:  # columns z, x, y and the centre; axes right, down, forward
        poses = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
        poses[:, :3] = torch.from_numpy(numbers).view(-1, 4, 3)[:, [1, 2, 0, 3]].transpose(1, 2)
        poses = poses * torch.tensor(_OPENGL_FROM_OPENCV, dtype=torch.float64)
    for k, pose in enumerate(poses):
        check_rigid(pose, f"poses {path}: pose {k}")
    intrinsics = like.focal_length, like.principal_point, like.image_size
    return tuple(_single(Cameras.from_opengl(cam_to_world_from(offset, pose)[None], *intrinsics)) for pose in poses)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def check_rigid(pose: Float[Tensor, "4 4"], where: str, kind: str = "camera-to-world pose") -> None:
    """Raises InputError for a matrix that is no rigid transformation, or not finite in single precision."""
    defect = rigid_defect(pose.float())
    if defect is not None:
        raise InputError(f"{where}: expected a rigid {kind}, but {defect}; correct the file")


def _placed(cameras: Cameras, offset: Offset | None) -> Float[Tensor, "b 4 4"]:
    """Camera-to-world matrices, axes right, up, backward, in double precision, positions plus an offset."""
    poses = _double(cameras).to_opengl()
    if offset is not None:
        poses[:, :3, 3] += poses.new_tensor(offset)
    return poses


def _double(cameras: Cameras) -> Cameras:
    return Cameras(cameras.R.double(), cameras.T.double(), cameras.focal_length, cameras.principal_point, cameras.image_size)


def _single(cameras: Cameras) -> Cameras:
    """Poses in single precision."""
    return Cameras(cameras.R.float(), cameras.T.float(), cameras.focal_length, cameras.principal_point, cameras.image_size)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


# ----------------------------------------------------------------------
# Bundler (Snavely et al., Photo Tourism, SIGGRAPH 2006), version 0.3, which other programs write too.
#
# After ``# Bundle file v0.3`` and the numbers of cameras and points, five lines per camera: f, k1, k2; the rows of R; t. A point X has the coordinates R X + t
# in the camera, axes right, up, backward. Its image (x, y) from the image centre, y up, in pixels, is f r(p) p with p = -(X, Y) / Z and
# r(p) = 1 + k1 |p|^2 + k2 |p|^4. Cameras with f = 0 are not registered. Three lines per point: coordinates, colour, and its observations.


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
