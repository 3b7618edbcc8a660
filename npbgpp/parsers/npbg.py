"""NPBG's ``paths.yaml`` (Aliev et al., Neural Point-Based Graphics, 2020): where the scene, the photos and the masks of data sets lie.

``datasets: {<name>: {scene_path, target_path, target_name_func, mask_path, mask_name_func}}``; the functions give the name of a file for the label of a camera
and are written in Python. They are not run: a few forms are understood, see ``NameRule``. Relative paths refer to the folder of the file, then to
``data_root`` of the sections of hosts, ``<host>: {data_root}``, in the order of the file.
"""

import ast
import os
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float64
from torch import Tensor

from npbgpp.data import CloudFile, Layout, Scene, View, image_size, rule_splits
from npbgpp.errors import InputError
from npbgpp.geometry import Cameras, rigid_defect
from npbgpp.parsers.metashape import MetashapeFile, Sensor

_DEFAULT_PHOTO_NAME = "{:06}.png"
_LONGEST_RULE = 200  # characters
_SPEC = re.compile(r"(?:0([0-9]{1,2}))?[sd]?")
_FORMS = (
    "one argument and a text in which only that stands in braces, such as lambda i: f'{i}.png', zeros in front as in f'{i:06}.png', "
    "a number made of the label as in f'{int(i):06}.png', or just {}.png"
)


@dataclass(frozen=True)
class _Label:
    """The place of the label in a name: filled with zeros to this width, as a number without those it has if it is one."""

    width: int
    is_number: bool


@dataclass(frozen=True)
class NameRule:
    """How the name of a file follows from a label.

    Attributes:
        text: as written.
        parts: what it says: fixed pieces and places of the label.
    """

    text: str
    parts: tuple[str | _Label, ...]

    @classmethod
    def parse(cls, text: object, where: str) -> "NameRule":
        """Reads ``lambda i: '<text>'``, ``lambda i: f'<text with {i}, {i:06}, {int(i):06}>'``, or ``<text with {} or {:06}>``.

        Raises:
            InputError: anything else; nothing is ever evaluated.
        """
        try:
            if not isinstance(text, str) or len(text) > _LONGEST_RULE:
                raise ValueError
            return cls(text, tuple(_of_lambda(text) if text.lstrip().startswith("lambda") else _of_format(text)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            shown = text[:_LONGEST_RULE] if isinstance(text, str) else type(text).__name__
            raise InputError(
                f"{where}: expected {_FORMS}, got {shown}; other Python is not run, write the name in one of these forms"
            ) from None

    def name(self, label: str) -> str:
        """The name of the file. Raises InputError when a number is to be made of a label that is none."""
        if any(isinstance(p, _Label) and p.is_number for p in self.parts) and not re.fullmatch("[0-9]+", label):
            raise InputError(
                f"name of a file {self.text}: expected labels that are numbers, got {label}; write {{i}} in place of {{int(i)}}"
            )
        return "".join(p if isinstance(p, str) else (label.lstrip("0") or "0" if p.is_number else label).zfill(p.width) for p in self.parts)


def _label(spec: str, is_number: bool) -> _Label:
    found = _SPEC.fullmatch(spec)
    if found is None:
        raise ValueError
    return _Label(int(found[1] or 0), is_number)


def _of_lambda(text: str) -> Iterator[str | _Label]:
    match ast.parse(text.strip(), mode="eval").body:
        case ast.Lambda(
            args=ast.arguments(posonlyargs=[], args=[ast.arg(arg=x)], vararg=None, kwonlyargs=[], kwarg=None, defaults=[]), body=body
        ):
            parts = body.values if isinstance(body, ast.JoinedStr) else [body]
        case _:
            raise ValueError
    for part in parts:
        match part:
            case ast.Constant(value=str(fixed)):
                yield fixed
            case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
                yield _label("", _is_number(value, x))
            case ast.FormattedValue(value=value, conversion=-1, format_spec=ast.JoinedStr(values=[ast.Constant(value=str(spec))])):
                yield _label(spec, _is_number(value, x))
            case _:
                raise ValueError


def _is_number(value: ast.expr, x: str) -> bool:
    """False for x, True for int(x)."""
    match value:
        case ast.Name(id=name) if name == x:
            return False
        case ast.Call(func=ast.Name(id="int"), args=[ast.Name(id=name)], keywords=[]) if name == x:
            return True
    raise ValueError


def _of_format(text: str) -> Iterator[str | _Label]:
    pieces = list(string.Formatter().parse(text))
    # quotes are Python, which is no name of a file
    if all(field is None for _, field, _, _ in pieces) or re.search("[\"']", text):
        raise ValueError
    for fixed, field, spec, conversion in pieces:
        yield fixed
        if field is not None:
            if field or conversion:
                raise ValueError
            yield _label(spec or "", False)


@dataclass(frozen=True)
class NamedFiles:
    """Files of a folder by the labels of cameras."""

    folder: Path
    rule: NameRule

    def path(self, label: str) -> Path:
        """Where the file of a label is; it need not exist. Raises InputError as ``NameRule.name`` does."""
        return self.folder / self.rule.name(label)


@dataclass(frozen=True)
class DatasetPaths:
    """Where a data set lies: its scene file, its photos, and its masks where it has any."""

    scene: Path
    photos: NamedFiles
    masks: NamedFiles | None

    @classmethod
    def read(cls, paths_file: Path, name: str) -> "DatasetPaths":
        """Reads one data set of a paths file. Raises InputError for an unreadable file, an unknown data set, a missing path or other functions."""
        content = read_yaml(paths_file)
        datasets = content.get("datasets")
        if not isinstance(datasets, dict) or not datasets:
            raise InputError(
                f"{paths_file}: expected datasets: {{<name>: {{scene_path: ..., target_path: ...}}}}, got none; correct the file"
            )
        entries = {str(key): value for key, value in datasets.items()}
        if name not in entries:
            raise InputError(f"{paths_file}: no dataset {name}; it holds {', '.join(sorted(entries)[:20])}: correct the name of the scene")
        entry, where = entries[name], f"{paths_file}: {name}"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected scene_path and target_path, got {type(entry).__name__}; correct the file")
        sections = [v for k, v in content.items() if k != "datasets" and isinstance(v, dict)]
        roots = [root for root in (section.get("data_root") for section in sections) if isinstance(root, str)]
        search_paths = [paths_file.parent, *(paths_file.parent / root for root in roots)]

        def files(key: str, default: str | None) -> NamedFiles:
            folder, function = _located(entry, f"{key}_path", search_paths, where), f"{key}_name_func"
            return NamedFiles(folder, NameRule.parse(entry.get(function, default), f"{where}: {function}"))

        # the original has no default for masks
        masks = files("mask", None) if entry.get("mask_path") is not None else None
        return cls(_located(entry, "scene_path", search_paths, where), files("target", _DEFAULT_PHOTO_NAME), masks)


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a yaml file. Raises InputError when the file is missing, damaged or holds something else."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; correct the path or restore it") from None
    # what PyYAML raises for damaged text besides its own errors
    except (yaml.YAMLError, OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: expected a yaml file, got a damaged or other one ({error}); correct it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a yaml file with keys, got {type(content).__name__}; correct it")
    return content


def _located(entry: dict[Any, Any], key: str, search_paths: list[Path], where: str) -> Path:
    """The first existing of the places that a path may mean."""
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {key}: expected a path, got {type(value).__name__}; correct the file")
    places = list(dict.fromkeys(base / value for base in search_paths))
    found = next((place for place in places if os.path.exists(place)), None)
    if found is None:
        raise InputError(f"{where}: {key}: expected {value} to exist, looked at {', '.join(map(str, places))}; correct the path")
    return found


# ----------------------------------------------------------------------
# NPBG's scene file (Aliev et al., Neural Point-Based Graphics, 2020) and the cameras that it names, in Metashape's XML or as text.


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


# ----------------------------------------------------------------------
# Scenes of the original NPBG (Aliev et al., Neural Point-Based Graphics, 2020): a scene file, its cameras, and photos named by the labels of these.


_UNDISTORTED = "images_undistorted"
_SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".JPG", ".PNG", ".JPEG")
_WHITE = (1.0, 1.0, 1.0)


def scene_folder(paths_file: Path, name: str) -> Path:
    """The folder of the scene file that a paths file names. Raises InputError as ``DatasetPaths.read`` does, naming the known data sets."""
    return DatasetPaths.read(paths_file, name).scene.parent


def parse_npbg(root: Path, images_root: Path, name: str, cloud: CloudFile, paths_file: Path | None = None, white_bg: bool = True) -> Scene:
    """Reads the metadata of one scene.

    Cameras without pose and views without photo are left out. Photos of another size than the viewport are resampled to it.

    Args:
        root: folder of the scene, with ``scene.yaml`` or one other yaml that says ``viewport_size``; not used with a paths file.
        images_root: folder with ``images_undistorted`` or ``images``, usually the same; not used with a paths file.
        name: name of the scene; with a paths file that of the data set.
        cloud: its point cloud.
        paths_file: says where scene file, photos and masks lie.
        white_bg: white outside the masks, and where photos have an alpha channel; otherwise the stored colours are taken as they are.

    Raises:
        InputError: missing or damaged files, matrices that are no camera's, sizes that contradict each other, a label that comes twice, no photo at all.
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
        raise InputError(
            f"scene {name}: expected photos of the cameras {_some(absent)}, got none in {where}; restore them or correct their names"
        )
    names = [view.name for view in views]
    twice = sorted({n for n in names if names.count(n) > 1 or not n})
    if twice:
        raise InputError(f"{file.path}: expected a label of its own for every camera, got {_some(twice)} for several; rename the photos")
    notes = list(found.notes)
    if found.unposed:
        notes.append(f"{len(found.unposed)} cameras have no pose and are left out: {_some(found.unposed)}")
    if absent:
        notes.append(f"{len(absent)} cameras have no photo and are left out: {_some(absent)}")
    if found.distortion and any(_UNDISTORTED not in view.image.parts for view in views):
        notes.append(f"the photos must be undistorted, the distortion of their lens ({found.distortion}) is not applied")
    points = file.file("pointcloud")
    if points is not None and not os.path.isfile(points):
        notes.append(f"the point cloud {points} that {file.path.name} names is missing")
        points = None
    count = len(views)
    return Scene(
        name,
        tuple(views),
        rule_splits(count, "every:8", "every:8+4"),
        cloud,
        carried_points=points,
        notes=tuple(notes),
    )


def _scene_yaml(root: Path) -> Path:
    usual = root / "scene.yaml"
    if usual.is_file():
        return usual
    found = [path for path in sorted(root.glob("*.yaml")) if "viewport_size" in read_yaml(path)]
    if len(found) != 1:
        got = _some([path.name for path in found]) or "none"
        raise InputError(f"{usual}: no such file; expected it or one other yaml with viewport_size, got {got}: rename the one of the scene")
    return found[0]


def _beside(folders: Sequence[Path], label: str) -> Path | None:
    """The first photo of this label. Labels may name folders below these, and none above."""
    if label.startswith("/") or ".." in Path(label).parts:
        return None
    candidates = (folder / f"{label}{suffix}" for folder in folders for suffix in _SUFFIXES)
    return next((path for path in candidates if os.path.isfile(path)), None)


def _view(shot: Shot, photo: Path, mask: Path | None, as_photographed: bool, white_bg: bool) -> View:
    size = image_size(photo)
    if mask is not None and image_size(mask) != size:
        height, width = image_size(mask)
        raise InputError(f"mask {mask}: expected {size[1]}x{size[0]} pixels as its photo has, got {width}x{height}; resize the mask")
    # names of views name files, so that folders in a label become part of the name
    name = "-".join(part for part in Path(shot.label).parts if part not in ("/", ".."))
    camera = shot.as_photographed() if as_photographed else shot.camera
    return View(name, photo, camera, background=_WHITE if white_bg else None, mask=mask, resized=size != camera.image_size)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")


def _locate(name: str, options: Mapping[str, Any]) -> Path | None:
    paths_file = options.get("paths_file")
    return None if paths_file is None else scene_folder(Path(paths_file), name)


LAYOUT = Layout(parse_npbg, (("scene.yaml",),), precedence=30, locate=_locate)
