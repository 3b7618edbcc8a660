"""ScanNet scenes (Dai et al., 2017) as the NPBG++ authors prepare them: ``images/<number>.jpg``, ``intrinsics.npy``, ``extrinsics.npy``, a cloud.

``intrinsics.npy`` is a pickled dictionary: K (3, 3) in pixels counted from the centre of the first one, and the height and width that it holds for; photos
of another size are resampled. ``extrinsics.npy`` (M, 4, 4) holds world-to-camera matrices acting on columns, axes right, down, forward, in the ascending
order of the photos' numbers. Ten views spread evenly from view 10 to the tenth last are held out, and those five before them validate, as far as they are
others; every view may train, ``Scene.with_splits`` takes these out.

A folder with ``pose`` in place of ``extrinsics.npy`` is an export of ScanNet's own tools: see ``scannet_raw.py``.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.data.cloud_file import CloudFile
from npbgpp.data.images import image_size, numbered_images
from npbgpp.data.parsers.scannet_raw import parse_scannet_raw, spread_splits
from npbgpp.data.safe_pickle import DAMAGED_FILE, read_pickled_dict
from npbgpp.data.scene import Scene, View
from npbgpp.errors import InputError
from npbgpp.geometry.cameras import Cameras, rigid_defect

_LARGEST_SIDE = 1 << 16  # pixels


def parse_scannet(root: Path, images_root: Path, name: str, cloud: CloudFile, intrinsics: Literal["authors", "exact"] = "authors") -> Scene:
    """Reads the metadata of one scene.

    Args:
        root: folder of the scene, with the matrices.
        images_root: folder with ``images``, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        intrinsics: authors: the principal point is the centre of the image; exact: it is that of K.

    Raises:
        InputError: missing or damaged files, other numbers of photos and matrices, matrices that are no camera's.
    """
    if not (root / "extrinsics.npy").exists() and (root / "pose").is_dir():
        return parse_scannet_raw(root, images_root, name, cloud, intrinsics)
    photos = numbered_images(images_root / "images")
    focal_length, principal_point, size = _read_intrinsics(root / "intrinsics.npy")
    if intrinsics == "authors":
        principal_point = torch.tensor([size[1] / 2, size[0] / 2])
    poses = _read_extrinsics(root / "extrinsics.npy", len(photos))
    count = len(photos)
    cameras = Cameras.from_opencv(poses, focal_length.expand(count, 2), principal_point.expand(count, 2), size)
    views = tuple(View(photo.stem, photo, cameras[k], resized=image_size(photo) != size) for k, photo in enumerate(photos.values()))
    return Scene(name, views, spread_splits(count), cloud)


def _read_intrinsics(path: Path) -> tuple[Float[Tensor, "2"], Float[Tensor, "2"], tuple[int, int]]:
    """(focal length, principal point, (height, width)) in our pixels."""
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
            f"{path}: K: expected 3x3 finite numbers with positive focal lengths and the last row 0 0 1, got {content['K']!r}; correct the file"
        )
    return K.diagonal()[:2].float(), (K[:2, 2] + 0.5).float(), (size[0], size[1])


def _read_extrinsics(path: Path, count: int) -> Float[Tensor, "m 4 4"]:
    try:
        matrices = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the scene needs the poses of its photos: restore it") from None
    except DAMAGED_FILE as error:
        raise InputError(f"{path}: expected numbers written by np.save, got a damaged or other file ({error}); copy it again") from error
    if not isinstance(matrices, np.ndarray) or matrices.dtype.kind != "f" or matrices.ndim != 3 or matrices.shape[1:] != (4, 4):
        found = f"{matrices.dtype} of shape {matrices.shape}" if isinstance(matrices, np.ndarray) else "several arrays"
        raise InputError(f"{path}: expected M world-to-camera matrices, shape (M, 4, 4), got {found}; correct the file")
    if len(matrices) != count:
        raise InputError(f"{path}: expected one matrix for each of the {count} photos, got {len(matrices)}; restore what is missing")
    poses = torch.from_numpy(matrices.astype(np.float64)).float()
    for k, pose in enumerate(poses):
        defect = rigid_defect(pose)
        if defect is not None:
            raise InputError(f"{path}: matrix {k}: expected a rigid world-to-camera pose, but {defect}; correct the file")
    return poses
