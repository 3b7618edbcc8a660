"""Cameras exported by Agisoft Metashape as XML (version 1.2 and later), and scenes of them beside the photos, without the ``scene.yaml`` of NPBG.

Symbols: f, cx, cy, b1, b2 are in pixels, cx and cy relative to the image centre; k1..k4 and p1..p4 have no unit. ``transform`` of a camera is a 4x4 matrix in
row-major order: camera-to-world acting on columns, axes right, down, forward. Transforms of the chunk and of components georeference the model; as in NPBG
(Aliev et al., Neural Point-Based Graphics, 2020) they are not applied, because the exported cloud is in the coordinates of the cameras. Each chunk and each
component has coordinates of its own: those with most cameras are used.

Cameras of a rig have a ``master_id``: their pose is that of the master camera times ``rotation`` and ``location`` of their sensor (its axes and its centre in
the coordinates of the master). Fisheye sensors are equidistant: the angle to the optical axis, in radians, takes the place of its tangent, and k1 to k4 are
coefficients of its powers, as in OpenCV's fisheye model.

Photos in ``images_undistorted`` have the focal length of their sensor and a central principal point; other photos are undistorted when they are read.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from npbgpp.data import CloudFile, Layout, Lens, Scene, check_rigid
from npbgpp.errors import InputError, listing
from npbgpp.parsers.posed_photos import PosedPhoto, photo_folder, posed_scene

_LARGEST_SIDE = 1 << 16  # pixels
_LARGEST_FOCAL_LENGTH = 1e9  # pixels; orthographic in single precision
_DISTORTION = ("b1", "b2", "k1", "k2", "k3", "k4", "p1", "p2", "p3", "p4")
_LARGEST_SKEW = 0.5  # pixels at the image border
_PANORAMIC = ("spherical", "cylindrical")
_IDENTITY = "1 0 0 0 1 0 0 0 1".split()
_NEUTRAL = {"transform": np.eye(4), "rotation": np.eye(3), "translation": np.zeros(3), "scale": np.ones(1)}


@dataclass(frozen=True)
class Sensor:
    """A calibrated camera.

    Attributes:
        image_size: (height, width) of its photos in pixels.
        focal_length: f, pixels.
        offset: (cx, cy) of the original photos; undistorted photos of Metashape have a central principal point.
        distortion: non-zero coefficients by name.
        fisheye: an equidistant lens.
        in_master: pose in the coordinates of the master sensor of a rig; None for master sensors.
    """

    image_size: tuple[int, int]
    focal_length: float
    offset: tuple[float, float]
    distortion: tuple[tuple[str, float], ...]
    fisheye: bool = False
    in_master: tuple[float, ...] | None = None

    def lens(self) -> Lens:
        """The camera model of the original photos.

        Metashape's p1 and p2 are p2 and p1 of OpenCV, and b1 is added to the focal length along x. A skew b2 that moves no pixel by half a pixel is left out.

        Raises:
            InputError: coefficients that have no equivalent.
        """
        (height, width), f = self.image_size, self.focal_length
        values = dict.fromkeys(_DISTORTION, 0.0) | dict(self.distortion)
        centre = (width / 2 + self.offset[0], height / 2 + self.offset[1])
        others = ("b1", "b2", "p1", "p2", "p3", "p4") if self.fisheye else ("k4", "p3", "p4")
        skewed = not self.fisheye and abs(values["b2"]) * height / 2 / f > _LARGEST_SKEW
        wrong = [tag for tag in others if values[tag]] + (["b2"] if skewed else [])
        if wrong:
            kind, known = ("fisheye", "k1 to k4") if self.fisheye else ("perspective", "b1, k1 to k3, p1 and p2")
            raise InputError(
                f"expected a {kind} lens with coefficients {known}, got {', '.join(wrong)} too, which are not read; undistort the photos with Metashape into "
                "images_undistorted, or calibrate without them"
            )
        k1, k2, k3, k4, p1, p2 = (values[tag] for tag in ("k1", "k2", "k3", "k4", "p1", "p2"))
        if self.fisheye:
            return Lens("OPENCV_FISHEYE", (f, f, *centre, k1, k2, k3, k4), self.image_size)
        if k3:
            return Lens("FULL_OPENCV", (f + values["b1"], f, *centre, k1, k2, p2, p1, k3, 0.0, 0.0, 0.0), self.image_size)
        return Lens("OPENCV", (f + values["b1"], f, *centre, k1, k2, p2, p1), self.image_size)


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
        ignored: chunks and components that are left out, with the numbers of their cameras.
    """

    sensors: tuple[Sensor, ...]
    cameras: tuple[AlignedCamera, ...]
    unaligned: tuple[str, ...]
    transforms: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "MetashapeFile":
        """Reads the chunk with most cameras of a file, and of that the component with most cameras.

        Raises:
            InputError: a missing or damaged file, XML with a document type or entities, an invalid calibration or pose, a pose without calibration, a
                spherical or cylindrical photo, or a duplicate label.
        """
        chunks = list(_parse(path).iterfind("chunk"))
        if not chunks:
            raise InputError(
                f"{path}: expected cameras exported by Metashape (<document> with a <chunk>), got other XML; export them again"
            )
        posed = [len(_posed(chunk)) for chunk in chunks]
        chosen = posed.index(max(posed))
        chunk = chunks[chosen]
        ignored = [
            f"chunk {other.get('label') or k} ({count} cameras)"
            for k, (other, count) in enumerate(zip(chunks, posed, strict=True))
            if k != chosen and count
        ]
        component, others = _largest_component(chunk)
        cameras, unaligned = _cameras(path, chunk, component)
        labels = [camera.label for camera in cameras]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise InputError(f"{path}: expected one camera per label, got several for {listing(twice)}; rename the photos")
        placed = [("chunk", chunk), *((f"component {c.get('id')}", c) for c in chunk.iterfind("components/component"))]
        return cls(
            tuple(_sensors(path, chunk).values()),
            cameras,
            unaligned,
            tuple(name for name, e in placed if _moves(e.iterfind("transform"))),
            (*ignored, *others),
        )


def is_metashape(path: Path) -> bool:
    """Whether the beginning of an XML file is that of Metashape."""
    try:
        with path.open("rb") as file:
            head = file.read(4096).decode("utf-8-sig", "replace")
    except OSError:
        return False
    return "<document" in head and "<chunk" in head


def _posed(chunk: ElementTree.Element) -> list[ElementTree.Element]:
    """Cameras with a pose, or with that of a master camera."""
    cameras = chunk.findall("cameras//camera")
    own = {camera.get("id") for camera in cameras if camera.findtext("transform", "").strip()}
    return [camera for camera in cameras if camera.get("id") in own or camera.get("master_id") in own]


def _largest_component(chunk: ElementTree.Element) -> tuple[str | None, list[str]]:
    """The id of the component with most cameras, None if cameras name none, and the other ones."""
    counts = Counter(camera.get("component_id") for camera in _posed(chunk))
    counts.pop(None, None)
    if not counts:
        return None, []
    (chosen, _), *others = counts.most_common()
    return chosen, [f"component {name} ({count} cameras)" for name, count in others]


def _cameras(path: Path, chunk: ElementTree.Element, component: str | None) -> tuple[tuple[AlignedCamera, ...], tuple[str, ...]]:
    """Cameras of a component with a pose, and the labels of cameras without."""
    sensors, kinds = _sensors(path, chunk), {s.get("id", ""): s.get("type", "") for s in chunk.iterfind("sensors/sensor")}
    elements = chunk.findall("cameras//camera")
    transforms = {e.get("id"): e.findtext("transform", "").strip() for e in elements}
    labels = _labels(path, chunk)
    cameras, unaligned = [], []
    for element, label in zip(elements, labels, strict=True):
        own, master = transforms[element.get("id")], element.get("master_id")
        transform = own or transforms.get(master, "")
        if not transform:
            unaligned.append(label)
            continue
        if element.get("component_id") not in (None, component):
            continue
        where = f"{path}: camera {label}"
        sensor_id = element.get("sensor_id", next(iter(sensors), ""))
        kind = kinds.get(sensor_id, "")
        if kind in _PANORAMIC:
            raise InputError(
                f"{where}: expected a perspective or fisheye photo, got a {kind} one, which is not read; split {kind} photos into perspective ones (Metashape: "
                "Convert to cubemap), align those and export their cameras"
            )
        if sensor_id not in sensors:
            raise InputError(f"{where}: expected a calibrated sensor, got {sensor_id!r}, which has no <calibration>; export again")
        sensor, pose = sensors[sensor_id], _pose(where, transform)
        if not own:
            if sensor.in_master is None:
                raise InputError(
                    f"{where}: expected rotation and location of the sensor {sensor_id} in its rig, as the camera has the pose of its master {master}, got none; "
                    "export again"
                )
            pose = pose @ torch.tensor(sensor.in_master, dtype=torch.float64).view(4, 4)
        cameras.append(AlignedCamera(label, sensor, pose))
    return tuple(cameras), tuple(unaligned)


def _labels(path: Path, chunk: ElementTree.Element) -> list[str]:
    """Labels of all cameras; those that several groups share are preceded by the label of their group, as a folder."""
    groups = {id(camera): group.get("label", "") for group in chunk.iterfind("cameras//group") for camera in group.iterfind("camera")}
    elements = chunk.findall("cameras//camera")
    for k, element in enumerate(elements):
        if not element.get("label"):
            raise InputError(f"{path}: expected a label for every camera, got none for number {k}; export the cameras again")
    plain = [element.get("label", "") for element in elements]
    counts = Counter(plain)
    return [
        f"{groups[id(element)]}/{label}" if counts[label] > 1 and groups.get(id(element)) else label
        for element, label in zip(elements, plain, strict=True)
    ]


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
            "fisheye" in (element.get("type"), calibration.get("type")),
            _in_master(where, element),
        )
    return found


def _in_master(where: str, sensor: ElementTree.Element) -> tuple[float, ...] | None:
    """The pose of a sensor of a rig in the coordinates of its master, row-major; None for other sensors."""
    rotation, location = (sensor.findtext(tag, "").split() for tag in ("rotation", "location"))
    if sensor.get("master_id") is None or not (rotation or location):
        return None
    rotation, location = rotation or _IDENTITY, location or ["0", "0", "0"]
    if len(rotation) != 9 or len(location) != 3:
        raise InputError(
            f"{where}: expected 9 numbers of a rotation and 3 of a location, got {len(rotation)} and {len(location)}; export the cameras again"
        )
    rows = [[*rotation[3 * k : 3 * k + 3], location[k]] for k in range(3)]
    pose = torch.tensor(
        [[_number(where, "rotation", entry) for entry in row] for row in rows] + [[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64
    )
    check_rigid(pose, f"{where}: rotation and location", "pose in the rig")
    return tuple(pose.flatten().tolist())


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


# ----------------------------------------------------------------------
# Layout


_UNDISTORTED = "images_undistorted"
_OPENGL_FROM_OPENCV = (1.0, -1.0, -1.0, 1.0)  # signs of the columns of a camera-to-world matrix


def parse_metashape(root: Path, images_root: Path, name: str, cloud: CloudFile, white_bg: bool = True) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with ``cameras.xml`` or one other file of Metashape.
        images_root: folder with the photos, in ``images_undistorted``, ``images`` or not; usually the same.
        name: name of the scene.
        cloud: its point cloud, in the coordinates of the cameras.
        white_bg: white where photos are transparent; otherwise keep the stored colours.

    Raises:
        InputError: a missing or damaged file, several of them, an invalid camera, a lens without equivalent, fewer than two photos.
    """
    files = _files(root)
    if len(files) != 1:
        got = listing(path.name for path in files) if files else "none"
        raise InputError(
            f"{root}: expected one file of cameras, such as cameras.xml, got {got}; export the cameras, and move other files away"
        )
    path, undistorted = files[0], (images_root / _UNDISTORTED).is_dir()
    file = MetashapeFile.read(path)
    signs = torch.tensor(_OPENGL_FROM_OPENCV, dtype=torch.float64)

    def lens_of(sensor: Sensor, size: tuple[int, int]) -> Lens:
        height, width = sensor.image_size
        if abs(size[1] / width - size[0] / height) > 1 / width + 1 / height:
            raise InputError(f"expected a photo of {width}x{height} pixels, or of this ratio, got {size[1]}x{size[0]}; restore the photo")
        f = sensor.focal_length
        return (Lens("PINHOLE", (f, f, width / 2, height / 2), sensor.image_size) if undistorted else sensor.lens()).resized(size)

    photos = [PosedPhoto(camera.label, camera.cam_to_world * signs, partial(lens_of, camera.sensor)) for camera in file.cameras]
    if not photos:
        raise InputError(f"{path}: expected the poses of cameras, got none of {len(file.unaligned)}; align the photos again")
    notes = []
    if file.ignored:
        notes.append(f"{path.name}: {listing(file.ignored)} have coordinates of their own and are left out")
    if file.transforms:
        notes.append(f"{path.name}: the transform of {listing(file.transforms)} is ignored, as the cloud is expected in camera coordinates")
    if file.unaligned:
        notes.append(f"{len(file.unaligned)} cameras have no pose and are left out: {listing(file.unaligned)}")
    folder = images_root / _UNDISTORTED if undistorted else photo_folder(images_root)
    return posed_scene(name, path, folder, photos, cloud, white_bg, notes=notes)


def _files(root: Path) -> list[Path]:
    """``cameras.xml``, else all files of Metashape."""
    usual = root / "cameras.xml"
    if usual.is_file() and is_metashape(usual):
        return [usual]
    return [path for path in sorted(root.glob("*.xml")) if not path.name.startswith(".") and is_metashape(path)]


LAYOUT = Layout(parse_metashape, (("*.xml",),), precedence=9, accepts=lambda folder: bool(_files(folder)))
