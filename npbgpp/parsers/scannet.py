"""ScanNet scenes (Dai et al., ScanNet, 2017), as prepared by the NPBG++ authors and as exported by ScanNet's tools.

Prepared scenes have ``images/<number>.jpg``, ``intrinsics.npy``, ``extrinsics.npy`` and a cloud. Exported scenes have ``color/<number>.jpg``,
``depth/<number>.png`` (16 bits, millimetres), ``pose/<number>.txt`` and ``intrinsic``, 4x4 matrices as text. All matrices act on columns, axes right, down,
forward; pixels are counted from the centre of the first one.

``pose`` is camera-to-world of the depth camera, ``intrinsic/extrinsic_depth.txt`` is depth camera to colour camera, the identity if it is missing;
``extrinsic_color.txt`` is ignored: this is how ScanNet's SensReader uses them. Poses of minus infinity or NaN mark photos with lost tracking.

Splits: ten evenly spaced test views, five views before each validates.
"""

import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from npbgpp.core.files import read_npy, read_pickled_dict
from npbgpp.data import CloudFile, DepthMap, Layout, Scene, Stage, View, check_rigid, common_size, image_size, numbered_images
from npbgpp.errors import InputError, listing
from npbgpp.geometry import Cameras

_DEPTH_UNIT = 0.001  # metres
_OFF_CENTRE = 0.1  # share of the width: principal points farther from the centre suggest photos of another size
_LARGEST_SIDE = 1 << 16  # pixels


def parse_scannet_raw(
    root: Path, images_root: Path, name: str, cloud: CloudFile, intrinsics: Literal["authors", "exact"] = "authors"
) -> Scene:
    """Reads the metadata of one exported scene.

    Args:
        root: folder of the scene, with ``pose`` and ``intrinsic``.
        images_root: folder with ``color`` and optionally ``depth``, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        intrinsics: principal point of the photos: "authors" takes the image centre, "exact" that of the file, as for depth maps.

    Raises:
        InputError: missing or damaged files, photos and poses of different numbers, an invalid camera, images of different sizes.
    """
    photos = numbered_images(images_root / "color")
    poses, lost = _read_poses(root / "pose", photos)
    kept = {number: photo for number, photo in photos.items() if number not in lost}
    size = common_size(kept.values())
    K = _read_raw_intrinsics(root / "intrinsic" / "intrinsic_color.txt")
    notes = _notes_on_photos(len(photos), lost, K, size)
    if intrinsics == "authors":
        K = _centred(K, size)
    from_depth = _read_extrinsic(root / "intrinsic" / "extrinsic_depth.txt")
    cameras = _cameras(from_depth @ poses, K, size)
    depths, notes_on_depth = _depth_maps(root, images_root, tuple(kept), poses)
    views = tuple(View(photo.stem, photo, cameras[k], depth=depths.get(number)) for k, (number, photo) in enumerate(kept.items()))
    return Scene(name, views, spread_splits(len(views)), cloud, notes=(*notes, *notes_on_depth))


def spread_splits(count: int) -> dict[Stage, tuple[int, ...]]:
    """The split of the NPBG++ authors: ten test views from 10 to count - 10; the views five before them validate if they are no test views."""
    spread = np.linspace(10, max(count - 10, 10), 10).astype(int).tolist()
    test = tuple(i for i in dict.fromkeys(spread) if i < count)
    return {"train": tuple(range(count)), "val": tuple(i - 5 for i in test if i - 5 not in test), "test": test}


def _notes_on_photos(count: int, lost: list[int], K: Float64[Tensor, "3 3"], size: tuple[int, int]) -> list[str]:
    notes = []
    if lost:
        notes.append(f"{len(lost)} of {count} photos are left out, tracking was lost at {listing(lost)}")
    width = 2 * (K[0, 2].item() + 0.5)
    if abs(width - size[1]) > _OFF_CENTRE * size[1]:
        notes.append(
            f"intrinsic_color.txt may belong to photos of another size: its principal point is the centre of about {width:.0f} pixels, "
            f"the photos are {size[1]} wide"
        )
    return notes


def _centred(K: Float64[Tensor, "3 3"], size: tuple[int, int]) -> Float64[Tensor, "3 3"]:
    centred = K.clone()
    centred[:2, 2] = K.new_tensor([size[1] / 2 - 0.5, size[0] / 2 - 0.5])
    return centred


def _cameras(world_to_cam: Float64[Tensor, "b 4 4"], K: Float64[Tensor, "3 3"], size: tuple[int, int]) -> Cameras:
    count = len(world_to_cam)
    focal_length, principal_point = K.diagonal()[:2].float(), (K[:2, 2] + 0.5).float()
    return Cameras.from_opencv(world_to_cam.float(), focal_length.expand(count, 2), principal_point.expand(count, 2), size)


def _depth_maps(
    root: Path, images_root: Path, numbers: tuple[int, ...], world_to_cam: Float64[Tensor, "b 4 4"]
) -> tuple[dict[int, DepthMap], list[str]]:
    """Depth images of these photos by number, and notes."""
    if not (images_root / "depth").is_dir():
        return {}, []
    path = root / "intrinsic" / "intrinsic_depth.txt"
    if not path.exists():
        return {}, [f"depth images are ignored, {path.name} is missing"]
    files = numbered_images(images_root / "depth")
    found = {number: files[number] for number in numbers if number in files}
    notes = []
    if len(found) < len(numbers):
        missing = [number for number in numbers if number not in files]
        notes.append(f"{len(missing)} of {len(numbers)} photos have no depth image: {listing(missing)}")
    if not found:
        return {}, notes
    cameras = _cameras(world_to_cam, _read_raw_intrinsics(path), common_size(found.values()))
    return {n: DepthMap(found[n], cameras[k], _DEPTH_UNIT) for k, n in enumerate(numbers) if n in found}, notes


def _read_poses(folder: Path, photos: dict[int, Path]) -> tuple[Float64[Tensor, "b 4 4"], list[int]]:
    """World-to-camera matrices of the photos with a pose, in order, and the numbers of the others."""
    files = _numbered_texts(folder)
    for what, missing in (("pose", sorted(set(photos) - set(files))), ("photo", sorted(set(files) - set(photos)))):
        if missing:
            raise InputError(
                f"{folder}: expected one pose per photo, got {len(photos)} photos and {len(files)} poses, no {what} for {listing(missing)}; "
                "restore it"
            )
    poses: list[Tensor] = []
    lost: list[int] = []
    for number in photos:
        pose = _read_matrix(files[number])
        if (pose[:3] == -torch.inf).all() or pose[:3].isnan().all():
            lost.append(number)
            continue
        check_rigid(pose, str(files[number]))
        poses.append(torch.linalg.inv(pose))
    if not poses:
        raise InputError(f"{folder}: expected poses, got {len(lost)} that are not finite (tracking was lost); export the scene again")
    return torch.stack(poses), lost


def _numbered_texts(folder: Path) -> dict[int, Path]:
    files: dict[int, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix == ".txt" and not p.name.startswith(".")):
        digits = re.search(r"[0-9]+$", path.stem)
        if digits is None:
            raise InputError(f"{path}: expected a name that ends in a number; move or rename the file")
        twin = files.setdefault(int(digits[0]), path)
        if twin is not path:
            raise InputError(f"{path}: expected one pose per number, got {twin.name} too; remove one of them")
    return files


def _read_raw_intrinsics(path: Path) -> Float64[Tensor, "3 3"]:
    matrix = _read_matrix(path)
    expected = torch.eye(4, dtype=torch.float64)
    expected[[0, 1, 0, 1], [0, 1, 2, 2]] = matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
    if not torch.isfinite(matrix.float()).all() or (matrix.float().diagonal() <= 0).any() or not torch.equal(matrix, expected):
        raise InputError(
            f"{path}: expected positive focal lengths and a principal point in a matrix that is otherwise the identity, got "
            f"{matrix.tolist()}; correct the file"
        )
    return matrix[:3, :3]


def _read_extrinsic(path: Path) -> Float64[Tensor, "4 4"]:
    if not path.exists():
        return torch.eye(4, dtype=torch.float64)
    matrix = _read_matrix(path)
    check_rigid(matrix, str(path), "depth-to-colour pose")
    return matrix


def _read_matrix(path: Path) -> Float64[Tensor, "4 4"]:
    try:
        rows = [[float(entry) for entry in line.split()] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; export the scene again or correct datasets.scene_name") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected 4x4 numbers as text, got something else ({error}); export it again") from error
    if [len(row) for row in rows] != [4, 4, 4, 4]:
        raise InputError(f"{path}: expected 4 rows of 4 numbers, got rows of {[len(row) for row in rows]}; export it again")
    return torch.tensor(rows, dtype=torch.float64)


def parse_scannet(root: Path, images_root: Path, name: str, cloud: CloudFile, intrinsics: Literal["authors", "exact"] = "authors") -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, prepared or exported.
        images_root: folder with ``images`` or ``color``, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        intrinsics: principal point: "authors" takes the image centre, "exact" that of K.

    Raises:
        InputError: missing or damaged files, different numbers of photos and matrices, an invalid camera.
    """
    if not (root / "extrinsics.npy").exists() and (root / "pose").is_dir():
        return parse_scannet_raw(root, images_root, name, cloud, intrinsics)
    photos = numbered_images(images_root / "images")
    focal_length, principal_point, size = _read_intrinsics(root / "intrinsics.npy")
    if intrinsics == "authors":
        principal_point = torch.tensor([size[1] / 2, size[0] / 2])
    poses, lost = _read_extrinsics(root / "extrinsics.npy", len(photos))
    kept = [photo for k, photo in enumerate(photos.values()) if k not in lost]
    notes = [f"{len(lost)} of {len(photos)} photos are left out, they have no pose: {listing(lost)}"] if lost else []
    count = len(kept)
    cameras = Cameras.from_opencv(poses, focal_length.expand(count, 2), principal_point.expand(count, 2), size)
    views = tuple(View(photo.stem, photo, cameras[k], resized=image_size(photo) != size) for k, photo in enumerate(kept))
    return Scene(name, views, spread_splits(count), cloud, notes=tuple(notes))


def _read_intrinsics(path: Path) -> tuple[Float[Tensor, "2"], Float[Tensor, "2"], tuple[int, int]]:
    """(focal length, principal point, (height, width)); pixels from the top-left corner."""
    content = read_pickled_dict(path)
    missing = [key for key in ("K", "height", "width") if key not in content]
    if missing:
        raise InputError(f"{path}: expected K, height and width, got {', '.join(content) or 'nothing'}; restore the file")
    size = []
    for key in ("height", "width"):
        value = content[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _LARGEST_SIDE or value != int(value):
            raise InputError(f"{path}: {key}: expected a positive number of pixels, got {value!r}; correct the file")
        size.append(int(value))
    try:
        K = torch.from_numpy(np.asarray(content["K"], dtype=np.float64))
    except (TypeError, ValueError):
        K = torch.zeros(0, dtype=torch.float64)
    if (
        K.shape != (3, 3)
        or not torch.isfinite(K.float()).all()
        or (K.float().diagonal() <= 0).any()
        or not torch.equal(K[2], K.new_tensor([0.0, 0.0, 1.0]))
    ):
        raise InputError(
            f"{path}: K: expected 3x3 finite numbers with positive focal lengths and the last row 0 0 1, got {np.asarray(content['K']).tolist()!r}; correct the file"
        )
    return K.diagonal()[:2].float(), (K[:2, 2] + 0.5).float(), (size[0], size[1])


def _read_extrinsics(path: Path, count: int) -> tuple[Float[Tensor, "m 4 4"], list[int]]:
    """World-to-camera matrices, and the numbers of those that are left out because no element of their pose is finite."""
    matrices = read_npy(path)
    if matrices.dtype.kind != "f" or matrices.ndim != 3 or matrices.shape[1:] != (4, 4):
        raise InputError(
            f"{path}: expected M world-to-camera matrices, shape (M, 4, 4), got {matrices.dtype} of shape {matrices.shape}; correct the file"
        )
    if len(matrices) != count:
        raise InputError(f"{path}: expected one matrix for each of the {count} photos, got {len(matrices)}; restore what is missing")
    lost = np.flatnonzero(~np.isfinite(matrices[:, :3]).any((1, 2))).tolist()
    poses = torch.from_numpy(matrices.astype(np.float64)).float()
    for k, pose in enumerate(poses):
        if k not in lost:
            check_rigid(pose, f"{path}: matrix {k}", "world-to-camera pose")
    if len(lost) == count:
        raise InputError(f"{path}: expected poses, got {count} matrices that are not finite; export the scene again")
    return poses[[k for k in range(count) if k not in lost]], lost


LAYOUT = Layout(parse_scannet, (("extrinsics.npy", "pose/*.txt"), ("images", "color")), precedence=70)
