"""What the scenes in the layout of IDR share (Yariv et al., Multiview Neural Surface Reconstruction, 2020): ``image/``, ``mask/`` and ``cameras.npz``.

Photos and masks are numbered files; ``cameras.npz``, or ``cameras_sphere.npz`` where that is missing, holds ``world_mat_<number>``, whose first three rows
are the projection matrix P = K [R | t] of that photo. Its other matrices are not read. Where a mask is darker than one half a photo is made white.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.data.images import common_size, numbered_images
from npbgpp.data.safe_pickle import DAMAGED_FILE
from npbgpp.data.scene import View
from npbgpp.errors import InputError
from npbgpp.geometry.decomposition import cameras_from_projections, projection_defect

_WHITE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class IdrFolder:
    """The files of one scene by number.

    Attributes:
        cameras: the file that the projections come from.
        images: photos.
        masks: masks.
        projections: P, double precision, without defect.
    """

    cameras: Path
    images: dict[int, Path]
    masks: dict[int, Path]
    projections: dict[int, Float[Tensor, "3 4"]]

    @classmethod
    def read(cls, root: Path, images_root: Path) -> "IdrFolder":
        """Lists the pictures of ``images_root`` and reads the cameras in ``root``. Raises InputError when a part is missing, damaged or no camera."""
        cameras = root / "cameras.npz"
        if not cameras.exists() and (root / "cameras_sphere.npz").exists():
            cameras = root / "cameras_sphere.npz"
        return cls(cameras, numbered_images(images_root / "image"), numbered_images(images_root / "mask"), _read_projections(cameras))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the cameras."""
        if self.cameras.name == "cameras.npz":
            return ()
        return (f"cameras are read from {self.cameras.name}, there is no cameras.npz",)

    def views(
        self, numbers: Sequence[int], digits: int, white_bg: bool, intrinsics: Literal["authors", "exact"], unit: float = 1.0
    ) -> tuple[View, ...]:
        """The photos with these numbers as views.

        Args:
            numbers: which photos, in this order; at least one.
            digits: view names are numbers, with leading zeros to this length.
            white_bg: white outside the masks; otherwise as photographed.
            intrinsics: authors: the mean over the views for all, as the NPBG++ authors have it; exact: those of each view.
            unit: length in the world of the matrices of what is 1 in the scene.

        Raises:
            InputError: a number without photo, mask or matrix, or pictures of different sizes.
        """
        for what, files in (("photo", self.images), ("mask", self.masks), (f"matrix in {self.cameras.name}", self.projections)):
            missing = [number for number in numbers if number not in files]
            if missing:
                raise InputError(f"{self.cameras.parent}: expected a {what} for every view, got none for {_some(missing)}; restore it")
        size = common_size([*(self.images[n] for n in numbers), *(self.masks[n] for n in numbers)])
        scale = torch.tensor([unit, unit, unit, 1.0], dtype=torch.float64)
        projections = torch.stack([self.projections[n] for n in numbers]) * scale
        cameras = cameras_from_projections(projections, size, shared_intrinsics=intrinsics == "authors")
        # single precision makes numbers infinite that are too large for it
        if not all(torch.isfinite(part).all() for part in (cameras.R, cameras.T, cameras.focal_length, cameras.principal_point)):
            raise InputError(f"{self.cameras}: expected cameras at finite places, got numbers beyond single precision; restore the file")
        background = _WHITE if white_bg else None
        return tuple(
            View(f"{n:0{digits}}", self.images[n], cameras[k], background=background, mask=self.masks[n]) for k, n in enumerate(numbers)
        )

    def unmatched(self) -> str | None:
        """Says which numbers do not have all of photo, mask and matrix, or None when every number has."""
        parts = []
        for what, files in (("masks", self.masks), ("matrices", self.projections)):
            odd = sorted(set(self.images) ^ set(files))
            if odd:
                parts.append(f"{len(files)} {what} (different at {_some(odd)})")
        return f"{len(self.images)} photos, {', '.join(parts)}" if parts else None


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (" and others" if len(numbers) > 5 else "")


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
        raise InputError(f"{path}: no such file; the scene needs its cameras: restore it or correct datasets.data_root") from None
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
