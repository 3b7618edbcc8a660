"""DTU (Jensen et al., Large Scale Multi-view Stereopsis Evaluation, 2014) and H3DS (Ramon et al., H3D-Net: Few-Shot High-Fidelity 3D Head Reconstruction,
2021), in the layout of IDR (Yariv et al., Multiview Neural Surface Reconstruction, 2020): ``image/``, ``mask/`` and ``cameras.npz``.

Cameras are projection matrices: P (3, 4) acts on columns, ``(u w, v w, w) = P (x, y, z, 1)``, pixels (u, v) counted from the centre of the first one;
``P = K [R | t]`` up to scale, K upper triangular and R, t world to camera, axes right, down, forward.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from npbgpp.core.files import DAMAGED_FILE
from npbgpp.data import WHITE, CloudFile, Layout, Scene, Stage, View, check_mask_size, common_size, numbered_images
from npbgpp.errors import InputError, listing
from npbgpp.geometry import Cameras

_LARGEST_SKEW = 1e-2  # of the focal length; rounding errors are about 1e-6
_DTU_VALIDATION, _DTU_TEST = range(5, 46, 10), range(7, 48, 5)
_H3DS_VALIDATION, _H3DS_TEST = range(7, 29, 7), range(5, 31, 5)


def decompose_projection(P: Float[Tensor, "n 3 4"]) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3 3"], Float[Tensor, "n 3 1"]]:
    """(K, R, t) with ``P = +-K [R | t]``, det R = +1, K of positive diagonal and in the scale of P (Hartley and Zisserman, Multiple View Geometry, 2nd
    edition, section 6.2.4).

    The left 3x3 part must have full rank (see ``projection_defect``).
    """
    left = P[:, :, :3]
    # RQ decomposition: QR of the transpose with reversed order of rows
    q, upper = torch.linalg.qr(left.flip(1).transpose(1, 2))
    K = upper.transpose(1, 2).flip(1, 2)
    R = q.transpose(1, 2).flip(1)
    signs = torch.where(torch.diagonal(K, dim1=1, dim2=2) < 0, -1.0, 1.0).to(P)
    K, R = K * signs[:, None, :], R * signs[:, :, None]
    handedness = torch.sign(torch.linalg.det(R))[:, None, None]
    return K, R * handedness, torch.linalg.solve(K, P[:, :, 3:]) * handedness


def projection_defect(P: Float[Tensor, "3 4"]) -> str | None:
    """The defect of a matrix that is no projection of a pinhole camera without skew, or None."""
    if not torch.isfinite(P).all():
        return "its values are not finite"
    if torch.linalg.matrix_rank(P[:, :3]) < 3:
        return "its left 3x3 part is singular"
    K = decompose_projection(P[None])[0][0]
    if K[0, 1].abs() > _LARGEST_SKEW * K[0, 0]:
        return f"its pixels are skewed by {(K[0, 1] / K[0, 0]).item():.3g} of the focal length"
    return None


def cameras_from_projections(P: Float[Tensor, "n 3 4"], image_size: tuple[int, int], shared_intrinsics: bool) -> Cameras:
    """Cameras of one image size in single precision.

    Args:
        P: projection matrices without defect, preferably in double precision; skew is dropped.
        image_size: (height, width).
        shared_intrinsics: all cameras get the mean intrinsics, as in DTU and H3DS scenes of the NPBG++ authors.
    """
    K, R, t = decompose_projection(P)
    K = K / K[:, 2:, 2:]
    if shared_intrinsics:
        K = K.mean(0, keepdim=True).expand_as(K)
    world_to_cam = torch.eye(4, dtype=P.dtype).repeat(len(P), 1, 1)
    world_to_cam[:, :3] = torch.cat([R, t], 2)
    focal_length = torch.diagonal(K[:, :2, :2], dim1=1, dim2=2)
    return Cameras.from_opencv(world_to_cam.float(), focal_length.float(), (K[:, :2, 2] + 0.5).float(), image_size)


@dataclass(frozen=True)
class IdrFolder:
    """The files of one scene by number.

    Attributes:
        cameras: file of the projection matrices.
        images: photos.
        masks: masks.
        projections: P without defect, double precision.
    """

    cameras: Path
    images: dict[int, Path]
    masks: dict[int, Path]
    projections: dict[int, Float[Tensor, "3 4"]]

    @classmethod
    def read(cls, root: Path, images_root: Path) -> "IdrFolder":
        """Lists the images in ``images_root`` and reads the cameras in ``root``. Raises InputError for missing or damaged files or invalid cameras."""
        cameras = root / "cameras.npz"
        if not cameras.exists() and (root / "cameras_sphere.npz").exists():
            cameras = root / "cameras_sphere.npz"
        return cls(cameras, numbered_images(images_root / "image"), numbered_images(images_root / "mask"), _read_projections(cameras))

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the cameras."""
        if self.cameras.name == "cameras.npz":
            return ()
        return (f"cameras are read from {self.cameras.name}, there is no cameras.npz",)

    def views(
        self, numbers: Sequence[int], digits: int, white_bg: bool, intrinsics: Literal["authors", "exact"], unit: float = 1.0
    ) -> tuple[View, ...]:
        """The photos with these numbers as views.

        Args:
            numbers: the photos, at least one.
            digits: view names are numbers with leading zeros up to this length.
            white_bg: white outside the masks; otherwise as photographed.
            intrinsics: "authors" shares the mean over the views, "exact" keeps those of each view.
            unit: scene unit in the world of the matrices.

        Raises:
            InputError: a number without photo, mask or matrix, or images of different sizes.
        """
        for what, files in (("photo", self.images), ("mask", self.masks), (f"matrix in {self.cameras.name}", self.projections)):
            missing = [number for number in numbers if number not in files]
            if missing:
                raise InputError(f"{self.cameras.parent}: expected a {what} for each view, got none for {listing(missing)}; restore it")
        size = common_size(self.images[n] for n in numbers)
        for n in numbers:
            check_mask_size(self.masks[n], self.images[n])
        scale = torch.tensor([unit, unit, unit, 1.0], dtype=torch.float64)
        projections = torch.stack([self.projections[n] for n in numbers]) * scale
        cameras = cameras_from_projections(projections, size, shared_intrinsics=intrinsics == "authors")
        if not all(torch.isfinite(part).all() for part in (cameras.R, cameras.T, cameras.focal_length, cameras.principal_point)):
            raise InputError(f"{self.cameras}: expected finite cameras, got numbers beyond single precision; restore the file")
        background = WHITE if white_bg else None
        return tuple(
            View(f"{n:0{digits}}", self.images[n], cameras[k], background=background, mask=self.masks[n]) for k, n in enumerate(numbers)
        )

    def unmatched(self) -> str | None:
        """The numbers without one of photo, mask and matrix, or None if all are complete."""
        parts = []
        for what, files in (("masks", self.masks), ("matrices", self.projections)):
            odd = sorted(set(self.images) ^ set(files))
            if odd:
                parts.append(f"{len(files)} {what} (different at {listing(odd)})")
        return f"{len(self.images)} photos, {', '.join(parts)}" if parts else None


def _read_projections(path: Path) -> dict[int, Float[Tensor, "3 4"]]:
    matrices: dict[int, np.ndarray] = {}
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with file:
            for key in file.files:
                name = re.fullmatch(r"world_mat_([0-9]+)", key)
                if name is not None:
                    matrices[int(name[1])] = file[key]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; restore it or correct datasets.data_root") from None
    except DAMAGED_FILE as error:
        raise InputError(f"{path}: expected arrays written by np.savez, got a damaged or other file ({error}); copy it again") from error
    if not matrices:
        raise InputError(f"{path}: expected matrices world_mat_0, world_mat_1 and so on, got none; restore the file")
    return {number: _projection(matrix, f"{path}: world_mat_{number}") for number, matrix in matrices.items()}


def _projection(matrix: np.ndarray, where: str) -> Float[Tensor, "3 4"]:
    if matrix.shape != (4, 4) or matrix.dtype.kind not in "fiu":
        raise InputError(f"{where}: expected 4x4 numbers, got shape {matrix.shape} of type {matrix.dtype}; correct the file")
    projection = torch.from_numpy(matrix[:3].astype(np.float64))
    defect = projection_defect(projection)
    if defect is not None:
        raise InputError(f"{where}: expected the projection matrix K [R | t] of a camera, but {defect}; correct the file")
    return projection


def parse_dtu(
    root: Path,
    images_root: Path,
    name: str,
    cloud: CloudFile,
    white_bg: bool = True,
    intrinsics: Literal["authors", "exact"] = "authors",
) -> Scene:
    """Reads the metadata of one DTU scene.

    Args:
        root: folder of the scene, with ``cameras.npz`` or ``cameras_sphere.npz``.
        images_root: folder with ``image`` and ``mask``, usually the same.
        name: name of the scene.
        cloud: its point cloud.
        white_bg: white outside the masks; otherwise as photographed.
        intrinsics: "authors" shares the mean over the views, "exact" keeps those of each view.

    Raises:
        InputError: missing or damaged files, photos, masks and matrices of different numbers, images of different sizes.
    """
    folder = IdrFolder.read(root, images_root)
    unmatched = folder.unmatched()
    if unmatched is not None:
        raise InputError(
            f"{root}: expected a photo, a mask and a matrix world_mat_<number> for each view, got {unmatched}; restore what is missing"
        )
    views = folder.views(tuple(folder.images), 1, white_bg, intrinsics)
    splits: dict[Stage, range] = {"train": range(len(views)), "val": _DTU_VALIDATION, "test": _DTU_TEST}
    present = {stage: tuple(i for i in chosen if i < len(views)) for stage, chosen in splits.items()}
    return Scene(name, views, present, cloud, notes=folder.notes)


def parse_h3ds(
    root: Path,
    images_root: Path,
    name: str,
    cloud: CloudFile,
    white_bg: bool = True,
    intrinsics: Literal["authors", "exact"] = "authors",
    views: tuple[int, ...] | None = None,
    published_views: dict[str, tuple[int, ...]] | None = None,
) -> Scene:
    """Reads the metadata of one H3DS scene.

    Args:
        root: folder of the scene, with ``cameras.npz``.
        images_root: folder with ``image`` and ``mask``, usually the same.
        name: name of the scene, selects the published views.
        cloud: its point cloud.
        white_bg: white outside the masks; otherwise as photographed.
        intrinsics: "authors" shares the mean over the views, "exact" keeps those of each view.
        views: numbers of photos to use in place of the published ones.
        published_views: numbers of published photos by scene; a ``config.toml`` of the data set takes precedence.

    Raises:
        InputError: missing or damaged files, a view without photo, mask or matrix, images of different sizes.
    """
    folder = IdrFolder.read(root, images_root)
    numbers, notes = _published(root, name, folder, (published_views or {}).get(name, ())) if views is None else (views, ())
    if not numbers or len(set(numbers)) != len(numbers):
        raise InputError(f"datasets.views: expected distinct numbers of photos of scene {name}, or null, got {list(numbers)}")
    found = folder.views(numbers, 4, white_bg, intrinsics, _unit(root / "normalization_transform.json"))
    splits: dict[Stage, range] = {"train": range(len(found)), "val": _H3DS_VALIDATION, "test": _H3DS_TEST}
    present = {stage: tuple(i for i in chosen if i < len(found)) for stage, chosen in splits.items()}
    return Scene(name, found, present, cloud, notes=(*folder.notes, *notes))


def _published(root: Path, name: str, folder: IdrFolder, known: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Numbers of the views to use, and notes."""
    published, notes = _read_published(root, name, known)
    if not published:
        return tuple(folder.images), notes
    present = tuple(number for number in published if number in folder.images)
    if len(present) < len(published):
        notes = (*notes, f"{len(published) - len(present)} of its {len(published)} published views have no photo and are left out")
    if not present:
        raise InputError(
            f"scene {name}: expected photos of its published views {published}, got none; restore them or choose photos with datasets.views"
        )
    return present, notes


def _read_published(root: Path, name: str, known: tuple[int, ...]) -> tuple[list[int], tuple[str, ...]]:
    """Published views of a scene, empty if it is not listed, and notes."""
    published = list(known)
    path = next((path for path in (root / "config.toml", root.parent / "config.toml") if path.is_file()), None)
    if path is None:
        return published, ()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected the configuration of the data set, got an unreadable file ({error}); restore it") from error
    listed = _entry(content, "scenes", name, "default_views_configs", "32")
    if listed is None:
        listed = _entry(content, "views", name, "32")
    if listed is None:
        return published, ()
    if not isinstance(listed, list) or not listed or not all(type(number) is int and number >= 0 for number in listed):
        raise InputError(f"{path}: expected numbers of photos as the 32 published views of scene {name}, got {listed!r}; restore the file")
    once = list(dict.fromkeys(listed))
    return once, (f"{path.name} has duplicate views, which are used once",) if len(once) < len(listed) else ()


def _entry(content: Any, *keys: str) -> Any:
    """The value below these keys of nested tables, None if one is missing."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _unit(path: Path) -> float:
    """Millimetre in the world of the matrices, 1 without the file: the scale of the similarity in the file."""
    if not path.exists():
        return 1.0
    matrix = np.eye(4)
    try:
        for entry in json.loads(path.read_text(encoding="utf-8"))["transform"]:
            matrix[int(entry["row"]), int(entry["column"])] = float(entry["element"])
        millimetres = float(np.linalg.norm(np.linalg.inv(matrix)[:, 0]))
    except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError, np.linalg.LinAlgError) as error:
        raise InputError(
            f"{path}: expected a 4x4 similarity as a list 'transform' of row, column and element, got {error}; restore it"
        ) from error
    if not 1e-9 < millimetres < 1e9:
        raise InputError(f"{path}: expected an invertible similarity of finite numbers, got {matrix.tolist()}; restore the file")
    return 1 / millimetres


H3DS_LAYOUT = Layout(parse_h3ds, (("cameras.npz",), ("image/img_*",), ("mask/mask_*",)), precedence=60)
DTU_LAYOUT = Layout(parse_dtu, (("cameras.npz", "cameras_sphere.npz"), ("image/*",), ("mask/*",)), precedence=50)
