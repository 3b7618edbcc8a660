"""Clouds of 3D gaussians and the PLY files of 3D Gaussian Splatting.

A file has one vertex per gaussian (Kerbl et al., 3D Gaussian Splatting, SIGGRAPH 2023): x, y, z; normals, which are 0; ``f_dc_0..2`` and ``f_rest_*``, the
coefficients of spherical harmonics; the logit of the opacity; the logarithms of the scales; a quaternion, w first. ``f_rest`` is channel-major: all
coefficients of red, then of green, then of blue.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from plyfile import PlyData, PlyElement, PlyHeaderParseError, PlyParseError
from torch import Tensor

from npbgpp.errors import InputError, listing
from npbgpp.geometry.point_cloud import PointCloud

LARGEST_SH_DEGREE = 3
SH_DC = 0.5 / math.sqrt(math.pi)
"""The constant spherical harmonic: a gaussian has the colour 0.5 + SH_DC * coefficient where the others are 0."""

_CLOUD_FIELDS = {"red", "green", "blue"}


@dataclass(frozen=True)
class GaussianCloud:
    """n anisotropic gaussians with colours that depend on the viewing direction.

    Attributes:
        means: centres, scene units.
        log_scales: natural logarithms of the standard deviations along the axes of each gaussian, scene units.
        quaternions: w, x, y, z of the rotation from these axes to the world, acting on columns; of any length but 0.
        opacity_logits: inverse sigmoid of the opacity.
        sh: k = (degree + 1)^2 coefficients of real spherical harmonics per channel, with the signs of the original code.
    """

    means: Float[Tensor, "n 3"]
    log_scales: Float[Tensor, "n 3"]
    quaternions: Float[Tensor, "n 4"]
    opacity_logits: Float[Tensor, " n"]
    sh: Float[Tensor, "n k c"]

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics."""
        return math.isqrt(self.sh.shape[1]) - 1

    def colours(self) -> Float[Tensor, "n c"]:
        """Mean colours over all directions, in [0, 1]."""
        return (0.5 + SH_DC * self.sh[:, 0]).clamp(0, 1)

    def kept(self, which: Bool[Tensor, " n"]) -> "GaussianCloud":
        """The gaussians for which ``which`` says so."""
        return GaussianCloud(self.means[which], self.log_scales[which], self.quaternions[which], self.opacity_logits[which], self.sh[which])

    def points(self, least_opacity: float = 0.0) -> PointCloud:
        """Centres and colours of the gaussians of at least this opacity."""
        kept = self.opacity_logits.sigmoid() >= least_opacity
        rgb = (self.colours()[kept] * 255 + 0.5).to(torch.uint8)
        return PointCloud(self.means[kept].cpu(), rgb.cpu())


def _fields(coefficients: int) -> list[str]:
    rest = [f"f_rest_{k}" for k in range(3 * (coefficients - 1))]
    return [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *rest,
        "opacity",
        *(f"scale_{k}" for k in range(3)),
        *(f"rot_{k}" for k in range(4)),
    ]


def write_gaussian_ply(path: Path, cloud: GaussianCloud) -> None:
    """Writes a binary little-endian PLY file of 3D Gaussian Splatting. Values are stored as they are, in single precision.

    Raises:
        InputError: features that are not colours, or a file that cannot be written.
    """
    if cloud.sh.shape[2] != 3:
        raise InputError(
            f"{path}: expected gaussians with colours, got {cloud.sh.shape[2]} channels, which other programs do not decode; export a run without a refiner"
        )
    sh = cloud.sh.detach().cpu()
    columns = [cloud.means, torch.zeros_like(cloud.means), sh[:, 0], sh[:, 1:].transpose(1, 2).flatten(1), cloud.opacity_logits[:, None]]
    table = torch.cat([column.detach().cpu().float() for column in (*columns, cloud.log_scales, cloud.quaternions)], 1).numpy()
    vertex = np.ascontiguousarray(table).view([(name, "<f4") for name in _fields(sh.shape[1])])[:, 0]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        PlyData([PlyElement.describe(vertex, "vertex")], byte_order="<").write(str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another file") from error


def read_gaussian_ply(path: Path) -> GaussianCloud:
    """Reads a PLY file of 3D Gaussian Splatting, of any degree up to 3.

    Raises:
        InputError: a missing, truncated or other file, a plain point cloud, no gaussian, values that are not finite, or another number of coefficients.
    """
    try:
        vertex = PlyData.read(str(path))["vertex"].data
    except FileNotFoundError:
        raise InputError(f"gaussians {path}: no such file; correct the path") from None
    except (PlyHeaderParseError, PlyParseError, KeyError, ValueError, OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(
            f"gaussians {path}: expected the point_cloud.ply of 3D Gaussian Splatting, got a truncated or other file ({error}); copy it again"
        ) from error
    names = set(vertex.dtype.names or ())
    rest = sum(name.startswith("f_rest_") for name in names)
    missing = [name for name in _fields(1) if name not in names and not name.startswith("n")]
    if "f_dc_0" not in names and {"x", "y", "z"} <= names:
        coloured = " with colours" if names >= _CLOUD_FIELDS else ""
        raise InputError(
            f"gaussians {path}: expected gaussians, got a point cloud{coloured} of {len(vertex)} points; to start from its points, name it with "
            "datasets.pc_name in place of weights_path"
        )
    if missing:
        raise InputError(f"gaussians {path}: expected the fields of 3D Gaussian Splatting, got none called {listing(missing)}")
    if len(vertex) == 0:
        raise InputError(f"gaussians {path}: expected at least one gaussian, got none")
    coefficients = 1 + rest // 3
    if rest % 3 or coefficients not in [(degree + 1) ** 2 for degree in range(LARGEST_SH_DEGREE + 1)]:
        raise InputError(f"gaussians {path}: expected 0, 9, 24 or 45 fields f_rest_* (degrees 0 to {LARGEST_SH_DEGREE}), got {rest}")

    def columns(*fields: str) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(vertex[name], dtype=np.float32) for name in fields], 1))

    dc = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    sh = dc
    if rest:
        others = columns(*(f"f_rest_{k}" for k in range(rest))).unflatten(1, (3, coefficients - 1))
        sh = torch.cat([dc, others.transpose(1, 2)], 1)
    cloud = GaussianCloud(
        columns("x", "y", "z"),
        columns(*(f"scale_{k}" for k in range(3))),
        columns(*(f"rot_{k}" for k in range(4))),
        columns("opacity")[:, 0],
        sh.contiguous(),
    )
    for name, values in cloud.__dict__.items():
        count = int((~values.isfinite()).reshape(len(cloud), -1).any(1).sum())
        if count:
            raise InputError(
                f"gaussians {path}: {count} of {len(cloud)} gaussians have {name.replace('_', ' ')} that are not finite; the training that wrote "
                "the file has failed, or it is damaged"
            )
    return cloud
