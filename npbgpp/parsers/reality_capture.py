"""Scenes of RealityCapture and RealityScan: their csv of "Internal/External camera parameters" beside the photos.

Columns: name, x, y, alt (position, z up), heading, pitch, roll (degrees), f, px, py, k1 to k4, t1, t2. The camera looks down with its upper side to the north
(y) where all angles are 0; its axes right, up, backward are turned by roll about y, then by pitch about x, then by -heading about z. f, px and py are in
millimetres on a film whose longer side is 36 mm; px and py are relative to the image centre. The distortion is Brown's: t1 and t2 are p1 and p2 of OpenCV.
"""

import csv
import math
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from npbgpp.data import CloudFile, Layout, Lens, Scene
from npbgpp.errors import InputError, listing
from npbgpp.parsers.posed_photos import PosedPhoto, photo_folder, posed_scene

_FILM = 36.0  # mm
_NEEDED = ("x", "y", "alt", "heading", "pitch", "roll", "f")
_OPTIONAL = ("px", "py", "k1", "k2", "k3", "k4", "t1", "t2")
_NAMES = ("#name", "name", "#cameraname")
_EXPORT = "export Registration > Internal/External camera parameters"
_HEADER = 1 << 14  # bytes


def parse_reality_capture(root: Path, images_root: Path, name: str, cloud: CloudFile, white_bg: bool = True) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with the csv.
        images_root: folder with the photos, in ``images`` or not; usually the same.
        name: name of the scene.
        cloud: its point cloud.
        white_bg: white where photos are transparent; otherwise keep the stored colours.

    Raises:
        InputError: a missing or damaged file, several of them, an invalid camera, fewer than two photos.
    """
    files = _files(root)
    if len(files) != 1:
        got = listing(path.name for path in files) if files else "none"
        raise InputError(f"{root}: expected one csv of camera parameters, got {got}; {_EXPORT}, and move other ones away")
    photos = [_photo(files[0], k, row) for k, row in enumerate(_rows(files[0]))]
    twice = sorted({photo.name for k, photo in enumerate(photos) if photo.name in [other.name for other in photos[:k]]})
    if twice:
        raise InputError(f"{files[0]}: expected one line for each photo, got several of {listing(twice)}; export the file again")
    return posed_scene(name, files[0], photo_folder(images_root), photos, cloud, white_bg)


def _files(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob("*.csv")) if not path.name.startswith(".") and _header(path) is not None]


def _header(path: Path) -> list[str] | None:
    """Names of the columns, in lower case; None for a csv of other content."""
    try:
        with path.open("rb") as file:
            lines = file.read(_HEADER).decode("utf-8-sig", "replace").splitlines()
    except OSError:
        return None
    for line in lines[:4]:  # the number of cameras may come first
        columns = [word.strip().strip('"').lower() for word in line.split(",")]
        if columns[0] in _NAMES and {"x", "y", "alt"} <= set(columns):
            return columns
    return None


def _rows(path: Path) -> list[dict[str, str]]:
    columns = _header(path) or []
    missing = [column for column in _NEEDED if column not in columns]
    if missing:
        raise InputError(f"{path}: expected the columns {', '.join(_NEEDED)}, got none called {', '.join(missing)}; {_EXPORT}")
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: expected lines of values in UTF-8, got something else ({error}); {_EXPORT}") from error
    rows = [[value.strip() for value in line] for line in lines if line and line[0] and not line[0].lstrip().startswith("#")]
    rows = [row for row in rows if row[0].lower() not in _NAMES]
    wrong = next((row for row in rows if len(row) != len(columns)), None)
    if wrong is not None:
        raise InputError(f"{path}: {wrong[0]}: expected {len(columns)} values, got {len(wrong)}; {_EXPORT}")
    return [{"name" if k == 0 else column: value for k, (column, value) in enumerate(zip(columns, row, strict=True))} for row in rows]


def _photo(path: Path, k: int, row: dict[str, str]) -> PosedPhoto:
    values = {column: _number(path, row["name"], column, row.get(column, "0")) for column in (*_NEEDED, *_OPTIONAL)}
    if values["f"] <= 0:
        raise InputError(f"{path}: {row['name']}: f: expected a positive focal length in mm, got {values['f']:g}; align the photos again")
    if values["k4"]:
        raise InputError(f"{path}: {row['name']}: k4: expected 0, got {values['k4']:g}; choose the distortion model Brown3 and {_EXPORT}")
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = _turn(2, -values["heading"]) @ _turn(0, values["pitch"]) @ _turn(1, values["roll"])
    pose[:3, 3] = torch.tensor([values[axis] for axis in ("x", "y", "alt")], dtype=torch.float64)

    def lens(size: tuple[int, int]) -> Lens:
        unit = max(size) / _FILM  # pixels per mm
        focal, centre = values["f"] * unit, (size[1] / 2 + values["px"] * unit, size[0] / 2 + values["py"] * unit)
        k1, k2, k3, t1, t2 = (values[key] for key in ("k1", "k2", "k3", "t1", "t2"))
        if k3:
            return Lens("FULL_OPENCV", (focal, focal, *centre, k1, k2, t1, t2, k3, 0.0, 0.0, 0.0), size)
        return Lens("OPENCV", (focal, focal, *centre, k1, k2, t1, t2), size)

    return PosedPhoto(row["name"], pose, lens)


def _number(path: Path, name: str, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e30:
        raise InputError(f"{path}: {name}: {column}: expected a finite number, got {text[:40]!r}; {_EXPORT}")
    return value


def _turn(axis: int, degrees: float) -> Float64[Tensor, "3 3"]:
    """Rotation about an axis, counterclockwise seen from its positive end."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    j, k = (axis + 1) % 3, (axis + 2) % 3
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[j, j], matrix[j, k], matrix[k, j], matrix[k, k] = c, -s, s, c
    return matrix


LAYOUT = Layout(parse_reality_capture, (("*.csv",),), precedence=8, accepts=lambda folder: bool(_files(folder)))
