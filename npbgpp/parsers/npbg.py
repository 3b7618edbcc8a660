"""Scenes of NPBG (Aliev et al., Neural Point-Based Graphics, 2020): a scene file, its cameras, and photos named by camera labels.

The scene file is yaml: ``viewport_size`` and the files of the cameras, which are exported by Metashape as XML or text matrices. Optionally a paths file says
where scene file, photos and masks of data sets are: ``datasets: {<name>: {scene_path, target_path, target_name_func, mask_path, mask_name_func}}``. Its name
functions map a camera label to a file name; they are Python code, of which a few forms are parsed and none is executed, see ``NameRule``. Relative paths
refer to the folder of the paths file, then to ``data_root`` of its host sections, ``<host>: {data_root}``, in order.

Splits: test views 0, 8, 16, ..., validation views 4, 12, 20, ...
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float64
from torch import Tensor

from npbgpp.data import WHITE, CloudFile, Layout, Lens, Scene, View, check_mask_size, check_rigid, image_size, pinhole, rule_splits
from npbgpp.errors import InputError, listing
from npbgpp.geometry import Cameras, Offset, cam_to_world_from, far_offset
from npbgpp.parsers.masks import with_alpha
from npbgpp.parsers.metashape import MetashapeFile, Sensor

_DEFAULT_PHOTO_NAME = "{:06}.png"
_LONGEST_RULE = 200  # characters
_LAMBDA = re.compile(r"lambda ([A-Za-z]\w*): f(['\"])(.*)\2")
_FORMS = "a format such as {}.png or {:06}.png, or a function such as lambda i: f'{i}.png', f'{i:06}.png' or f'{int(i):06}.png'"
_LARGEST_SIDE = 1 << 16  # pixels
_SMALLEST, _LARGEST = 1e-9, 1e9  # pixels, of intrinsics in single precision
_LARGEST_SKEW = 1e-3
# known keys of scene files without effect
_OTHER_KEYS = "pointcloud mesh texture uv_order model3d_origin point_sizes net_path ckpt net_ckpt texture_ckpt use_mesh"
_KEYS = {"viewport_size", "intrinsic_matrix", "proj_matrix", "view_matrix", *_OTHER_KEYS.split()}
_OPENGL_FROM_OPENCV = (1.0, -1.0, -1.0, 1.0)  # signs of the columns of a camera-to-world matrix
_UNDISTORTED = "images_undistorted"
_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".JPG", ".PNG", ".JPEG")


@dataclass(frozen=True)
class NameRule:
    """File names as a function of camera labels.

    Attributes:
        text: the rule as written.
        template: format of the label (field 0) and of its integer value (field 1).
    """

    text: str
    template: str

    @classmethod
    def parse(cls, text: object, where: str) -> "NameRule":
        """Reads ``<text with {} or {:06}>`` or ``lambda i: f'<text with {i}, {i:06} or {int(i):06}>'``; nothing is evaluated. Raises InputError otherwise."""
        source = text.strip() if isinstance(text, str) else ""
        function = _LAMBDA.fullmatch(source)
        argument, template = (function[1], function[3]) if function is not None else ("", source)
        label = rf"({argument}|int\({argument}\))" if argument else "()"
        field = re.compile(rf"\{{{label}(?::(?:0([0-9]{{1,2}}))?[sd]?)?\}}")
        rest, count = field.subn("", template)
        if not count or re.search(r"[{}\"'\\]", rest) or len(source) > _LONGEST_RULE:
            shown = source[:_LONGEST_RULE] if isinstance(text, str) else type(text).__name__
            raise InputError(f"{where}: expected {_FORMS}, got {shown}; other Python code is not executed")
        return cls(source, field.sub(lambda match: f"{{{int(match[1] != argument)}:0>{match[2] or 1}}}", template))

    def name(self, label: str) -> str:
        """The file name for a label. Raises InputError where the rule needs an integer and the label is none."""
        if "{1:" in self.template and not re.fullmatch("[0-9]+", label):
            raise InputError(f"file name {self.text}: expected labels that are integers, got {label}; write {{i}} in place of {{int(i)}}")
        return self.template.format(label, label.lstrip("0") or "0")


@dataclass(frozen=True)
class NamedFiles:
    """Files in a folder, named by camera labels."""

    folder: Path
    rule: NameRule

    def path(self, label: str) -> Path:
        """The path for a label; the file need not exist. Raises InputError as ``NameRule.name`` does."""
        return self.folder / self.rule.name(label)


@dataclass(frozen=True)
class DatasetPaths:
    """Paths of a data set: the scene file, photos, and masks (None without)."""

    scene: Path
    photos: NamedFiles
    masks: NamedFiles | None

    @classmethod
    def read(cls, paths_file: Path, name: str) -> "DatasetPaths":
        """Reads one data set of a paths file. Raises InputError for an unreadable file, an unknown data set, a missing path or an unsupported rule."""
        content = read_yaml(paths_file)
        datasets = content.get("datasets")
        entries = {str(key): value for key, value in datasets.items()} if isinstance(datasets, dict) else {}
        if name not in entries:
            raise InputError(
                f"{paths_file}: datasets: expected an entry {name}, got {', '.join(sorted(entries)[:20]) or 'none'}; correct the name of the scene"
            )
        entry, where = entries[name], f"{paths_file}: {name}"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected scene_path and target_path, got {type(entry).__name__}; correct the file")
        hosts = [section for key, section in content.items() if key != "datasets" and isinstance(section, dict)]
        roots = [host["data_root"] for host in hosts if isinstance(host.get("data_root"), str)]
        bases = [paths_file.parent, *(paths_file.parent / root for root in roots)]

        def files(kind: str, default: str | None) -> NamedFiles:
            function = f"{kind}_name_func"
            return NamedFiles(
                _first_existing(entry, f"{kind}_path", bases, where), NameRule.parse(entry.get(function, default), f"{where}: {function}")
            )

        # as in the original, masks have no default rule
        masks = files("mask", None) if entry.get("mask_path") is not None else None
        return cls(_first_existing(entry, "scene_path", bases, where), files("target", _DEFAULT_PHOTO_NAME), masks)


def _first_existing(entry: dict[Any, Any], key: str, bases: list[Path], where: str) -> Path:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {key}: expected a path, got {type(value).__name__}; correct the file")
    places = list(dict.fromkeys(base / value for base in bases))
    found = next((place for place in places if os.path.exists(place)), None)
    if found is None:
        raise InputError(
            f"{where}: {key}: expected an existing path, got {value}, looked at {', '.join(map(str, places))}; correct the path"
        )
    return found


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a yaml file. Raises InputError for a missing, damaged or other file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; correct the path or restore it") from None
    # PyYAML raises other errors than its own for damaged text
    except (yaml.YAMLError, OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())  # of several lines
        raise InputError(f"{path}: expected a yaml file, got a damaged or other one ({reason}); correct it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a yaml file with keys, got {type(content).__name__}; correct it")
    return content


@dataclass(frozen=True)
class SceneFile:
    """A scene file: its path, its content, and its viewport as (height, width)."""

    path: Path
    content: dict[Any, Any]
    size: tuple[int, int]

    @classmethod
    def read(cls, path: Path) -> "SceneFile":
        """Reads a scene file. Raises InputError for a missing or damaged file, or one without a valid viewport."""
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
        """The path of a key, None without it; the file need not exist. Raises InputError for other values."""
        value = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise InputError(f"{self.path}: {key}: expected the name of a file, got {_shown(value)}; correct the file")
        return self.path.parent / value

    def notes(self) -> tuple[str, ...]:
        """Remarks on keys without effect."""
        unknown = [_shown(key) for key in self.content if key not in _KEYS]
        notes = [f"{self.path.name}: unknown keys are ignored: {listing(unknown)}"] if unknown else []
        if self.content.get("model3d_origin") is not None:
            notes.append(f"{self.path.name}: model3d_origin is ignored, points and poses are not transformed")
        return tuple(notes)


@dataclass(frozen=True)
class Shot:
    """A camera with a pose.

    Attributes:
        label: name of its photo.
        camera: camera of the undistorted photo.
        offset: from its principal point to that of the original photo, pixels.
        fisheye: lens of the original photo if that is no perspective one.
    """

    label: str
    camera: Cameras
    offset: tuple[float, float]
    fisheye: Lens | None = None

    def original(self) -> Cameras:
        """Camera of the original photo, without distortion."""
        if self.fisheye is not None:
            focal_length, principal_point = (part.double() for part in pinhole(self.fisheye))
            return replace(self.camera, focal_length=focal_length, principal_point=principal_point)
        centre = self.camera.principal_point
        return replace(self.camera, principal_point=centre + centre.new_tensor(self.offset))


@dataclass(frozen=True)
class Shots:
    """The cameras of a scene.

    Attributes:
        shots: cameras with a pose, at least one, in file order.
        unposed: labels of the others.
        distortion: coefficients of the lens as text; empty without distortion.
        notes: remarks on ignored input.
        offset: by which the coordinates of the cameras are reduced, see ``npbgpp.geometry.point_cloud``.
    """

    shots: tuple[Shot, ...]
    unposed: tuple[str, ...]
    distortion: str
    notes: tuple[str, ...]
    offset: Offset | None = None


@dataclass(frozen=True)
class _Pinhole:
    focal_length: tuple[float, float]
    principal_point: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)
    fisheye: Lens | None = None


def read_shots(file: SceneFile) -> Shots:
    """Reads the cameras of a scene file.

    Raises:
        InputError: missing or damaged files, an invalid camera, another resolution than the viewport, or no camera with a pose.
    """
    poses, intrinsics = file.file("view_matrix"), file.file("intrinsic_matrix")
    if poses is None:
        raise InputError(f"{file.path}: expected view_matrix, the file of the poses, got none; add it")
    notes = file.notes()
    exported = MetashapeFile.read(poses) if _is_xml(poses) else None
    shared, sensors = (None, ()) if exported is not None and intrinsics == poses else _shared_pinhole(file, intrinsics)
    unposed: tuple[str, ...]
    if exported is not None:
        if shared is None:
            sensors = tuple(dict.fromkeys(camera.sensor for camera in exported.cameras))
        flip = torch.tensor(_OPENGL_FROM_OPENCV, dtype=torch.float64)
        offset = far_offset(torch.stack([c.cam_to_world[:3, 3] for c in exported.cameras])) if exported.cameras else None
        shots = [
            _shot(file, c.label, cam_to_world_from(offset, c.cam_to_world) * flip, shared or _of_sensor(c.sensor, file, poses))
            for c in exported.cameras
        ]
        unposed = exported.unaligned
        if exported.ignored:
            notes += (f"{poses.name}: {listing(exported.ignored)} have coordinates of their own and are left out",)
        if exported.transforms:
            notes += (
                f"{poses.name}: the transform of {listing(exported.transforms)} is ignored, as the cloud is expected in camera coordinates",
            )
    else:
        assert shared is not None
        matrices = _read_matrices(poses)
        offset = far_offset(matrices[matrices.isfinite().all(2).all(1), :3, 3])
        shots = [
            _shot(file, str(k), cam_to_world_from(offset, matrix), shared) for k, matrix in enumerate(matrices) if matrix.isfinite().all()
        ]
        unposed = tuple(str(k) for k, matrix in enumerate(matrices) if not matrix.isfinite().all())
    if not shots:
        raise InputError(f"{poses}: expected the poses of cameras, got none of {len(unposed)}; align the photos again")
    coefficients = dict(pair for sensor in reversed(sensors) if not sensor.fisheye for pair in sensor.distortion)
    return Shots(tuple(shots), unposed, ", ".join(f"{key} {value:.3g}" for key, value in sorted(coefficients.items())), notes, offset)


def _is_xml(path: Path) -> bool:
    return path.suffix.lower() == ".xml"


def _of_sensor(sensor: Sensor, file: SceneFile, xml: Path) -> _Pinhole:
    height, width = file.size
    if sensor.image_size != file.size:
        expected = f"[{sensor.image_size[1]}, {sensor.image_size[0]}]"
        raise InputError(f"{file.path}: viewport_size: expected {expected}, the resolution in {xml}, got [{width}, {height}]; correct it")
    return _Pinhole((sensor.focal_length, sensor.focal_length), (width / 2, height / 2), sensor.offset, _fisheye(sensor, xml))


def _fisheye(sensor: Sensor, xml: Path) -> Lens | None:
    """The lens of a fisheye sensor, None for others. Raises InputError for coefficients that have no equivalent."""
    try:
        return sensor.lens() if sensor.fisheye else None
    except InputError as error:
        raise InputError(f"{xml}: {error}") from error


def _shared_pinhole(file: SceneFile, intrinsics: Path | None) -> tuple[_Pinhole, tuple[Sensor, ...]]:
    """Intrinsics of all photos, from a matrix or the first sensor of an XML file, and that sensor."""
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
        expected, fits = "K, 3x3 numbers without skew, the last row 0 0 1", K.shape == (3, 3) and K[2].tolist() == [0, 0, 1]
    else:
        K = table
        expected, fits = (
            "an OpenGL projection, 4x4 numbers without skew, the last row 0 0 -1 0",
            K.shape == (4, 4) and K[3].tolist() == [0, 0, -1, 0],
        )
    if not fits or max(abs(K[0, 1]), abs(K[1, 0])) > _LARGEST_SKEW:
        raise InputError(f"{path}: expected {expected}, got {K[:4, :4].tolist()}; correct the file")
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    if intrinsics is None:
        fx, fy, cx, cy = fx * width / 2, fy * height / 2, (1 - cx) * width / 2, (1 + cy) * height / 2
    if not (min(fx, fy) > _SMALLEST and np.abs([fx, fy, cx, cy]).max() < _LARGEST):
        raise InputError(
            f"{path}: expected positive focal lengths and a principal point, got {fx}, {fy} and {cx}, {cy} pixels; correct the file"
        )
    return _Pinhole((float(fx), float(fy)), (float(cx), float(cy))), ()


def _read_table(path: Path) -> np.ndarray:
    """At least one row of numbers, which need not be finite."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        table = np.loadtxt(lines, ndmin=2) if any(line.partition("#")[0].strip() for line in lines) else np.zeros((0, 0))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; restore it or correct the scene file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a table of numbers, got other text ({error}); correct the file") from error
    if table.size == 0:
        raise InputError(f"{path}: expected a table of numbers, got an empty file; restore it")
    return table


def _read_matrices(path: Path) -> Float64[Tensor, "m 4 4"]:
    """Camera-to-world matrices; those that are not finite are no poses."""
    table = _read_table(path)
    if table.size % 16:
        raise InputError(f"{path}: expected stacked 4x4 camera-to-world matrices, got {len(table)}x{table.shape[1]} numbers; correct it")
    matrices = torch.from_numpy(table.reshape(-1, 4, 4))
    for k, matrix in enumerate(matrices):
        if matrix.isfinite().all():
            check_rigid(matrix, f"{path}: matrix {k}")
    return matrices


def _shot(file: SceneFile, label: str, cam_to_world: Float64[Tensor, "4 4"], intrinsics: _Pinhole) -> Shot:
    focal_length, principal_point = (
        torch.tensor([pair], dtype=torch.float64) for pair in (intrinsics.focal_length, intrinsics.principal_point)
    )
    camera = Cameras.from_opengl(cam_to_world[None], focal_length, principal_point, file.size)
    camera = replace(camera, R=camera.R.float(), T=camera.T.float())
    if not camera.T.isfinite().all():
        raise InputError(
            f"{file.path}: view_matrix: camera {label}: expected a position within single precision, got {cam_to_world[:3, 3].tolist()}; rescale the scene"
        )
    return Shot(label, camera, intrinsics.offset, intrinsics.fisheye)


def _shown(value: object) -> str:
    """A value for a message; nested values are not expanded: a few lines of yaml can expand to gigabytes."""
    parts = value if isinstance(value, list) and len(value) < 9 else [value]
    printable = (isinstance(part, str | float | None) or (isinstance(part, int) and part.bit_length() < 100) for part in parts)
    return ", ".join(str(part)[:40] if plain else type(part).__name__ for part, plain in zip(parts, printable, strict=True))


def scene_folder(paths_file: Path, name: str) -> Path:
    """The folder of the scene file of a data set in a paths file. Raises InputError as ``DatasetPaths.read`` does."""
    return DatasetPaths.read(paths_file, name).scene.parent


def parse_npbg(root: Path, images_root: Path, name: str, cloud: CloudFile, paths_file: Path | None = None, white_bg: bool = True) -> Scene:
    """Reads the metadata of one scene.

    Cameras without pose or photo are left out. Photos of another size than the viewport are resampled to it.

    Args:
        root: folder of the scene, with ``scene.yaml`` or one other yaml with ``viewport_size``; ignored with a paths file.
        images_root: folder with ``images_undistorted`` or ``images``, usually the same; ignored with a paths file.
        name: name of the scene, of the data set in a paths file.
        cloud: its point cloud.
        paths_file: paths of scene file, photos and masks.
        white_bg: white outside the masks and where photos are transparent; otherwise keep the stored colours.

    Raises:
        InputError: missing or damaged files, an invalid camera, contradictory sizes, a duplicate label, no photo.
    """
    paths = None if paths_file is None else DatasetPaths.read(paths_file, name)
    file = SceneFile.read(_scene_yaml(root) if paths is None else paths.scene)
    found = read_shots(file)
    folders = (images_root / _UNDISTORTED, images_root / "images", file.path.parent)
    views: list[View] = []
    absent: list[str] = []
    for shot in found.shots:
        photo = _beside(folders, shot.label) if paths is None else paths.photos.path(shot.label)
        if photo is None or not os.path.isfile(photo):
            absent.append(shot.label)
        else:
            mask = None if paths is None or paths.masks is None else paths.masks.path(shot.label)
            views.append(_view(shot, photo, mask, paths is None and _UNDISTORTED not in photo.parts, white_bg))
    if not views:
        where = ", ".join(map(str, folders)) if paths is None else str(paths.photos.folder)
        raise InputError(f"scene {name}: expected photos of the cameras {listing(absent)}, got none in {where}; restore or rename them")
    names = [view.name for view in views]
    twice = sorted({n for n in names if names.count(n) > 1 or not n})
    if twice:
        raise InputError(f"{file.path}: expected cameras of different labels, got several of {listing(twice)}; rename the photos")
    notes = list(found.notes)
    if found.unposed:
        notes.append(f"{len(found.unposed)} cameras have no pose and are left out: {listing(found.unposed)}")
    if absent:
        notes.append(f"{len(absent)} cameras have no photo and are left out: {listing(absent)}")
    if found.distortion and any(_UNDISTORTED not in view.image.parts for view in views):
        notes.append(f"the photos are expected undistorted, the distortion of their lens ({found.distortion}) is ignored")
    points = file.file("pointcloud")
    if points is not None and not os.path.isfile(points):
        notes.append(f"the point cloud {points} of {file.path.name} is missing")
        points = None
    count = len(views)
    with_masks, alpha_notes = with_alpha(views, white_bg)
    return Scene(
        name,
        with_masks,
        rule_splits(count, "every:8", "every:8+4"),
        cloud,
        carried_points=points,
        notes=(*notes, *alpha_notes),
    ).reduced_by(found.offset)


def _scene_yaml(root: Path) -> Path:
    usual = root / "scene.yaml"
    if usual.is_file():
        return usual
    found = [path for path in sorted(root.glob("*.yaml")) if "viewport_size" in read_yaml(path)]
    if len(found) != 1:
        got = listing(path.name for path in found)
        raise InputError(f"{usual}: expected this file or one other yaml with viewport_size, got {got}; rename the file of the scene")
    return found[0]


def _beside(folders: Sequence[Path], label: str) -> Path | None:
    """The first photo of a label, which may include folders, but not parent folders."""
    if label.startswith("/") or ".." in Path(label).parts:
        return None
    candidates = (folder / f"{label}{suffix}" for folder in folders for suffix in _SUFFIXES)
    return next((path for path in candidates if os.path.isfile(path)), None)


def _view(shot: Shot, photo: Path, mask: Path | None, is_original: bool, white_bg: bool) -> View:
    size = image_size(photo)
    if mask is not None:
        check_mask_size(mask, photo)
    # view names are file names: folders in a label become part of the name
    name = "-".join(part for part in Path(shot.label).parts if part not in ("/", ".."))
    camera = shot.original() if is_original else shot.camera
    lens = shot.fisheye if is_original else None
    return View(name, photo, camera, background=WHITE if white_bg else None, mask=mask, resized=size != camera.image_size, lens=lens)


def _locate(name: str, options: Mapping[str, Any]) -> Path | None:
    paths_file = options.get("paths_file")
    return None if paths_file is None else scene_folder(Path(paths_file), name)


LAYOUT = Layout(parse_npbg, (("scene.yaml",),), precedence=30, locate=_locate)
