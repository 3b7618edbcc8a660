"""Reader of cameras exported by Agisoft Metashape as XML (version 1.2 and later).

Symbols: f, cx, cy, b1, b2 are in pixels, cx and cy relative to the image centre; k1..k4 and p1..p4 have no unit. ``transform`` of a camera is a 4x4 matrix in
row-major order: camera-to-world acting on columns, axes right, down, forward. Transforms of the chunk and of components georeference the model; as in NPBG
(Aliev et al., Neural Point-Based Graphics, 2020) they are not applied, because the exported cloud is in the coordinates of the cameras.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from npbgpp.data import check_rigid
from npbgpp.errors import InputError, listing

_LARGEST_SIDE = 1 << 16  # pixels
_LARGEST_FOCAL_LENGTH = 1e9  # pixels; orthographic in single precision
_DISTORTION = ("b1", "b2", "k1", "k2", "k3", "k4", "p1", "p2", "p3", "p4")
_NEUTRAL = {"transform": np.eye(4), "rotation": np.eye(3), "translation": np.zeros(3), "scale": np.ones(1)}


@dataclass(frozen=True)
class Sensor:
    """A calibrated camera.

    Attributes:
        image_size: (height, width) of its photos in pixels.
        focal_length: f, pixels.
        offset: (cx, cy) of the original photos; undistorted photos of Metashape have a central principal point.
        distortion: non-zero coefficients by name.
    """

    image_size: tuple[int, int]
    focal_length: float
    offset: tuple[float, float]
    distortion: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class AlignedCamera:
    """A photo with a pose; ``label`` is its unique name, usually without suffix."""

    label: str
    sensor: Sensor
    cam_to_world: Float64[Tensor, "4 4"]


@dataclass(frozen=True)
class MetashapeFile:
    """An exported file.

    Attributes:
        sensors: calibrated sensors, in file order.
        cameras: cameras with a pose, in file order, including those in groups.
        unaligned: labels of cameras without pose.
        transforms: names of elements (chunk, component 0, ...) with a transform other than the identity, which is not applied.
    """

    sensors: tuple[Sensor, ...]
    cameras: tuple[AlignedCamera, ...]
    unaligned: tuple[str, ...]
    transforms: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "MetashapeFile":
        """Reads the first chunk of a file.

        Raises:
            InputError: a missing or damaged file, XML with a document type or entities, an invalid calibration or pose, a pose without calibration, or a
                duplicate label.
        """
        chunk = _parse(path).find("chunk")
        if chunk is None:
            raise InputError(
                f"{path}: expected cameras exported by Metashape (<document> with a <chunk>), got other XML; export them again"
            )
        sensors = _sensors(path, chunk)
        cameras, unaligned = [], []
        for k, element in enumerate(chunk.iterfind("cameras//camera")):
            label, transform = element.get("label"), element.findtext("transform", "").strip()
            if not label:
                raise InputError(f"{path}: expected a label for every camera, got none for number {k}; export the cameras again")
            if not transform:
                unaligned.append(label)
                continue
            where = f"{path}: camera {label}"
            sensor_id = element.get("sensor_id", next(iter(sensors), ""))
            if sensor_id not in sensors:
                raise InputError(f"{where}: expected a calibrated sensor, got {sensor_id!r}, which has no <calibration>; export again")
            cameras.append(AlignedCamera(label, sensors[sensor_id], _pose(where, transform)))
        labels = [camera.label for camera in cameras]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise InputError(f"{path}: expected one camera per label, got several for {listing(twice)}; rename the photos")
        placed = [("chunk", chunk), *((f"component {c.get('id')}", c) for c in chunk.iterfind("components/component"))]
        return cls(
            tuple(sensors.values()), tuple(cameras), tuple(unaligned), tuple(name for name, e in placed if _moves(e.iterfind("transform")))
        )


def _parse(path: Path) -> ElementTree.Element:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; export the cameras from Metashape again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected XML in UTF-8, got an unreadable file ({error}); export the cameras again") from error
    # entities may expand to gigabytes or include other files; Metashape writes none
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(
            f"{path}: expected cameras exported by Metashape, got XML with a document type, which is unsafe to read; remove it"
        )
    try:
        # parsed from text: an encoding declared in the file could hide a document type
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: expected XML, got a damaged file ({error}); export the cameras again") from error


def _sensors(path: Path, chunk: ElementTree.Element) -> dict[str, Sensor]:
    """Calibrated sensors by id."""
    found: dict[str, Sensor] = {}
    for element in chunk.iterfind("sensors/sensor"):
        calibrations = element.findall("calibration")
        calibration = next((c for c in calibrations if c.get("class") == "adjusted"), next(iter(calibrations), None))
        # uncalibrated or spherical
        if calibration is None or calibration.find("f") is None:
            continue
        number = element.get("id", "")
        where = f"{path}: sensor {number}"
        if number in found:
            raise InputError(f"{where}: expected one sensor of this id, got several; export the cameras again")
        values = {tag: _number(where, tag, calibration.findtext(tag, "0")) for tag in ("f", "cx", "cy", *_DISTORTION)}
        if not 1 / _LARGEST_FOCAL_LENGTH < values["f"] < _LARGEST_FOCAL_LENGTH or max(abs(values["cx"]), abs(values["cy"])) > _LARGEST_SIDE:
            raise InputError(
                f"{where}: expected a positive focal length f and a principal point near the centre, got f {values['f']}, cx {values['cx']}, "
                f"cy {values['cy']} pixels; calibrate again"
            )
        found[number] = Sensor(
            _resolution(where, calibration, element),
            values["f"],
            (values["cx"], values["cy"]),
            tuple((tag, values[tag]) for tag in _DISTORTION if values[tag]),
        )
    return found


def _number(where: str, tag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {tag}: expected a number, got {text.strip()[:40]!r}; export the cameras again")
    return value


def _resolution(where: str, *elements: ElementTree.Element) -> tuple[int, int]:
    """(height, width) from the first element with a resolution."""
    resolution = next((r for r in (element.find("resolution") for element in elements) if r is not None), None)
    sides = ["", ""] if resolution is None else [resolution.get("height", ""), resolution.get("width", "")]
    height, width = (_number(where, "resolution", side) for side in sides)
    if not all(1 <= side <= _LARGEST_SIDE and side == int(side) for side in (height, width)):
        raise InputError(f"{where}: resolution: expected positive numbers of pixels, got {width:g}x{height:g}; export the cameras again")
    return int(height), int(width)


def _pose(where: str, text: str) -> Float64[Tensor, "4 4"]:
    entries = text.split()
    if len(entries) != 16:
        raise InputError(f"{where}: transform: expected 16 numbers, got {len(entries)}; export the cameras again")
    pose = torch.tensor([_number(where, "transform", entry) for entry in entries], dtype=torch.float64).view(4, 4)
    check_rigid(pose, f"{where}: transform")
    return pose


def _moves(transforms: Iterable[ElementTree.Element]) -> bool:
    """Whether any transform, as 16 numbers or as rotation, translation and scale, is not the identity."""
    for part in (part for transform in transforms for part in transform.iter() if part.text and part.text.strip()):
        try:
            numbers = np.array(part.text.split(), dtype=np.float64)  # type: ignore[union-attr]
        except ValueError:
            return True
        if part.tag not in _NEUTRAL or not np.array_equal(numbers, _NEUTRAL[part.tag].ravel()):
            return True
    return False
