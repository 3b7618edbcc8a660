"""Scenes of NPCR (neural point cloud rendering by depth peeling), in the format of NHR (Wu et al., Multi-View Neural Human Rendering, 2020).

Photos are ``img/0/img_0001.jpg`` and so on, with mattes ``img_0001_alpha.png`` for all or none of them. Row k of ``CamPose.inf`` and block k of
``Intrinsic.inf`` belong to the k-th photo.

A row has 12 numbers: the columns z, x, y and the translation of [R | t], camera-to-world acting on columns, axes right, down, forward (NPCR drops points with
z < 0, and K [x y z] is a column and a row of its images). A block is three rows of K, preceded by its number and followed by an empty line, which are
ignored. K is in pixels from the top-left corner: in this convention the published sample (f = 965.6854, c = 400, 800 pixels wide) has a centred field of
view of 45 degrees.

Splits: test views 0, 8, 16, ..., validation views 4, 12, 20, ...
"""

import re
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from npbgpp.data import WHITE, CloudFile, Layout, Scene, View, check_mask_size, check_rigid, image_size, list_images, rule_splits
from npbgpp.errors import InputError, listing
from npbgpp.geometry import Cameras
from npbgpp.parsers.masks import with_alpha

_CLOUDS = ("frame1.xzy", "frame1.obj", "frame1.txt", "frame1.ply")
_LARGEST_NUMBER = 1e30  # products of larger ones overflow in single precision
_SHORT_LINE = 5  # characters; shorter lines of Intrinsic.inf number its blocks
_OFF_CENTRE = 0.1  # share of the width: principal points farther from the centre suggest photos of another size


def parse_npcr(root: Path, images_root: Path, name: str, cloud: CloudFile, white_bg: bool = True) -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with ``CamPose.inf``, ``Intrinsic.inf`` and optionally ``pointclouds/frame1.xzy``.
        images_root: folder with ``img/0``, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        white_bg: white where the matte is below one half; otherwise keep the stored colours. Masks are the mean of the channels of a matte; NPCR reads
            the first one, which is the same in grey images.

    Raises:
        InputError: missing or damaged files, different numbers of photos, mattes, poses and intrinsics, an invalid camera, a matte of another size.
    """
    photos, mattes = _photos(images_root / "img" / "0")
    poses = _read_poses(root / "CamPose.inf", len(photos))
    intrinsics = _read_intrinsics(root / "Intrinsic.inf", len(photos))
    views, notes = [], _frame_notes(images_root / "img")
    for k, (number, photo) in enumerate(photos.items()):
        matte = mattes.get(number)
        size = image_size(photo)
        if matte is not None:
            check_mask_size(matte, photo)
        views.append(
            View(
                photo.stem,
                photo,
                _camera(poses[k], intrinsics[k], size),
                background=WHITE if white_bg and matte is not None else None,
                mask=matte,
            )
        )
    notes += _intrinsics_notes(views, intrinsics)
    found, alpha_notes = with_alpha(views, white_bg)
    clouds = [root / "pointclouds" / file for file in _CLOUDS]
    return Scene(
        name,
        found,
        rule_splits(len(views), "every:8", "every:8+4"),
        cloud,
        carried_points=next((path for path in clouds if path.is_file()), None),
        notes=(*notes, *alpha_notes),
    )


def _photos(folder: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """(photos, mattes) by number, in ascending order."""
    photos: dict[int, Path] = {}
    mattes: dict[int, Path] = {}
    for path in list_images(folder):
        match = re.fullmatch(r"img_([0-9]+)(_alpha)?", path.stem)
        if match is None:
            raise InputError(
                f"{folder}: {ascii(path.name)}: expected a name such as img_0001.jpg or img_0001_alpha.png; move or rename the file"
            )
        twin = (mattes if match[2] else photos).setdefault(int(match[1]), path)
        if twin is not path:
            raise InputError(f"image {path}: expected one image per number, got {twin.name} too; remove one of them")
    numbers = sorted(photos)
    if not numbers or numbers[0] > 1 or numbers[-1] - numbers[0] >= len(numbers):
        raise InputError(
            f"{folder}: expected photos img_0001.jpg, img_0002.jpg and so on without gaps, got {listing(numbers)}; restore what is missing"
        )
    odd = sorted(set(photos) ^ set(mattes))
    if mattes and odd:
        raise InputError(
            f"{folder}: expected a matte img_<number>_alpha.png for each photo or for none, got a photo or a matte alone for {listing(odd)}; restore it"
        )
    return {number: photos[number] for number in numbers}, mattes


def _lines(path: Path) -> list[str]:
    """Stripped lines."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the scene needs CamPose.inf and Intrinsic.inf: restore it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected lines of numbers, got an unreadable file ({error}); copy it again") from error


def _numbers(line: str, count: int, where: str) -> list[float]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError as error:
        raise InputError(f"{where}: expected {count} numbers, got other text ({error}); correct the file") from error
    if len(values) != count or not all(abs(value) < _LARGEST_NUMBER for value in values):
        raise InputError(
            f"{where}: expected {count} finite numbers below {_LARGEST_NUMBER:g}, got {len(values)}: {values[:count]}; correct the file"
        )
    return values


def _read_poses(path: Path, count: int) -> Float64[Tensor, "n 4 4"]:
    """Camera-to-world matrices."""
    rows = [_numbers(line, 12, f"{path}: line {k}") for k, line in enumerate(_lines(path), 1) if line]
    if len(rows) != count:
        raise InputError(f"{path}: expected one pose for each of the {count} photos, got {len(rows)}; restore what is missing")
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    columns = torch.tensor(rows, dtype=torch.float64).view(count, 4, 3)
    poses[:, :3] = columns[:, [1, 2, 0, 3]].transpose(1, 2)
    for k, pose in enumerate(poses):
        check_rigid(pose, f"{path}: pose {k}")
    return poses


def _read_intrinsics(path: Path, count: int) -> Float64[Tensor, "n 3 3"]:
    """One matrix per photo; a single block applies to all."""
    rows = [
        _numbers(line, 3, f"{path}: line {k}")
        for k, line in enumerate(_lines(path), 1)
        if len(line) > _SHORT_LINE or len(line.split()) == 3  # the row 0 0 1 is as short as a number
    ]
    blocks, left = divmod(len(rows), 3)
    if left or blocks not in (1, count):
        raise InputError(
            f"{path}: expected three rows of K for each of the {count} photos, or three for all, got {len(rows)} rows; restore what is missing"
        )
    matrices = torch.tensor(rows, dtype=torch.float64).view(blocks, 3, 3)
    for k, K in enumerate(matrices):
        if (K.diagonal().float() <= 0).any() or K[1, 0].abs() > 1e-6 or (K[2] - K.new_tensor([0.0, 0.0, 1.0])).abs().max() > 1e-6:
            raise InputError(
                f"{path}: block {k}: expected rows fx 0 cx, 0 fy cy and 0 0 1 with positive focal lengths, got {K.tolist()}; correct the file"
            )
    return matrices.expand(count, 3, 3)


def _camera(cam_to_world: Float64[Tensor, "4 4"], K: Float64[Tensor, "3 3"], size: tuple[int, int]) -> Cameras:
    camera = Cameras.from_opencv(torch.linalg.inv(cam_to_world)[None], K.diagonal()[None, :2].contiguous(), K[None, :2, 2], size)
    return Cameras(camera.R.float(), camera.T.float(), camera.focal_length, camera.principal_point, size)


def _frame_notes(folder: Path) -> list[str]:
    frames = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.isdecimal() and path.name != "0")
    return [f"only frame img/0 of a dynamic scene is read, {len(frames)} more are ignored"] if frames else []


def _intrinsics_notes(views: list[View], intrinsics: Float64[Tensor, "n 3 3"]) -> list[str]:
    notes = []
    skewed = [view.name for view, K in zip(views, intrinsics, strict=True) if abs(K[0, 1] / K[1, 1]) * view.camera.image_size[0] > 1]
    if skewed:
        notes.append(
            f"the skew of K of {len(skewed)} photos ({skewed[0]}) is ignored, although it displaces their borders by more than half a pixel"
        )
    for view in views:
        height, width = view.camera.image_size
        cx, cy = view.camera.principal_point[0].tolist()
        if abs(cx - width / 2) > _OFF_CENTRE * width or abs(cy - height / 2) > _OFF_CENTRE * width:
            notes.append(
                f"the principal point ({cx:g}, {cy:g}) of photo {view.name} is far from the centre of its {width}x{height} pixels: Intrinsic.inf "
                "may belong to photos of another size"
            )
            break
    return notes


LAYOUT = Layout(parse_npcr, (("CamPose.inf",), ("Intrinsic.inf",)), precedence=40)
