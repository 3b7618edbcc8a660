"""Pinhole cameras and the camera convention of the package.

Convention (that of PyTorch3D's ``PerspectiveCameras(in_ndc=False)``):

* row vectors, ``xyz_cam = xyz_world @ R + T``; camera axes +x left, +y up, +z forward; depth is ``z_cam`` in scene units, never ray length;
* ``focal_length`` and ``principal_point`` in pixels of an image whose top-left *corner* is (0, 0), so the centre of pixel (row i, column j) is
  ``uv_px = (j + 0.5, i + 0.5)``; u grows to the right, v downwards:  ``u = cx - fx * x / z``,  ``v = cy - fy * y / z``.

Other conventions exist only inside the ``from_*`` and ``to_*`` methods of ``Cameras``.

The NPBG++ authors measure the image between the *centres* of its border pixels: with ``s = min(h, w)`` their normalised coordinates are
``x_ndc = (fcl_x * x + prp_x * z) / (z + 1e-7)`` with ``fcl = 2 f / (s - 1)``, so the same numbers denote slightly different pixels at another image size.
``Cameras.to_authors_ndc`` converts to these numbers; ``PixelConvention.AUTHORS`` in ``npbgpp.geometry.pixels`` uses them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from pytorch3d.renderer import PerspectiveCameras

# Signs that map the camera axes of a format to ours (left, up, forward).
_OPENGL_AXES = (-1.0, 1.0, -1.0)  # right, up, backward
_OPENCV_AXES = (-1.0, -1.0, 1.0)  # right, down, forward


@dataclass(frozen=True)
class Cameras:
    """b pinhole cameras on images of one size.

    Attributes:
        R: rotation world to camera, acting on row vectors.
        T: translation, scene units: the camera sees a world point x at ``x @ R + T``.
        focal_length: (fx, fy) in pixels. Like ``principal_point`` it may be in double precision, whatever ``R`` and ``T`` are in.
        principal_point: (cx, cy) in pixels from the top-left corner of the image.
        image_size: (height, width) in pixels.
    """

    R: Float[Tensor, "b 3 3"]
    T: Float[Tensor, "b 3"]
    focal_length: Float[Tensor, "b 2"]
    principal_point: Float[Tensor, "b 2"]
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return self.R.shape[0]

    def __getitem__(self, item: int | slice | list[int]) -> "Cameras":
        """The cameras with these indices; an int keeps the leading axis (one camera)."""
        picked = slice(item, item + 1 or None) if isinstance(item, int) else item
        return replace(
            self, R=self.R[picked], T=self.T[picked], focal_length=self.focal_length[picked], principal_point=self.principal_point[picked]
        )

    @staticmethod
    def cat(cameras: "Sequence[Cameras]") -> "Cameras":
        """Concatenates cameras on images of one size. Raises ValueError when the sizes differ."""
        sizes = {c.image_size for c in cameras}
        if len(sizes) != 1:
            raise ValueError(f"Cameras.cat: expected one image size, got {sorted(sizes)}; batch views of equal size only")
        return Cameras(
            torch.cat([c.R for c in cameras]),
            torch.cat([c.T for c in cameras]),
            torch.cat([c.focal_length for c in cameras]),
            torch.cat([c.principal_point for c in cameras]),
            sizes.pop(),
        )

    def to(self, device: torch.device | str) -> "Cameras":
        """The same cameras on another device."""
        return replace(
            self,
            R=self.R.to(device),
            T=self.T.to(device),
            focal_length=self.focal_length.to(device),
            principal_point=self.principal_point.to(device),
        )

    # ------------------------------------------------------------------ conversions
    @classmethod
    def from_opengl(
        cls,
        cam_to_world: Float[Tensor, "b 4 4"],
        focal_length: Float[Tensor, "b 2"],
        principal_point: Float[Tensor, "b 2"],
        image_size: tuple[int, int],
    ) -> "Cameras":
        """From camera-to-world matrices acting on columns, axes right, up, backward (Blender, NeRF); intrinsics in our pixels."""
        return cls._from_world_to_cam(torch.linalg.inv(cam_to_world), _OPENGL_AXES, focal_length, principal_point, image_size)

    @classmethod
    def from_opencv(
        cls,
        world_to_cam: Float[Tensor, "b 4 4"],
        focal_length: Float[Tensor, "b 2"],
        principal_point: Float[Tensor, "b 2"],
        image_size: tuple[int, int],
    ) -> "Cameras":
        """From world-to-camera matrices acting on columns, axes right, down, forward (COLMAP, OpenCV); intrinsics in our pixels."""
        return cls._from_world_to_cam(world_to_cam, _OPENCV_AXES, focal_length, principal_point, image_size)

    @classmethod
    def _from_world_to_cam(
        cls,
        world_to_cam: Float[Tensor, "b 4 4"],
        axes: tuple[float, float, float],
        focal_length: Float[Tensor, "b 2"],
        principal_point: Float[Tensor, "b 2"],
        image_size: tuple[int, int],
    ) -> "Cameras":
        signs = world_to_cam.new_tensor(axes)
        rows = world_to_cam[:, :3, :] * signs[:, None]
        return cls(rows[:, :, :3].transpose(1, 2).contiguous(), rows[:, :, 3].contiguous(), focal_length, principal_point, image_size)

    def to_opengl(self) -> Float[Tensor, "b 4 4"]:
        """Camera-to-world matrices acting on columns, axes right, up, backward: the inverse of ``from_opengl``."""
        return torch.linalg.inv(self._world_to_cam(_OPENGL_AXES))

    def to_opencv(self) -> Float[Tensor, "b 4 4"]:
        """World-to-camera matrices acting on columns, axes right, down, forward: the inverse of ``from_opencv``."""
        return self._world_to_cam(_OPENCV_AXES)

    def _world_to_cam(self, axes: tuple[float, float, float]) -> Float[Tensor, "b 4 4"]:
        matrix = torch.eye(4, dtype=self.R.dtype, device=self.R.device).repeat(len(self), 1, 1)
        signs = self.R.new_tensor(axes)
        matrix[:, :3, :3] = self.R.transpose(1, 2) * signs[:, None]
        matrix[:, :3, 3] = self.T * signs
        return matrix

    @classmethod
    def from_authors_ndc(
        cls,
        R: Float[Tensor, "b 3 3"],
        T: Float[Tensor, "b 3"],
        fcl_ndc: Float[Tensor, "b 2"],
        prp_ndc: Float[Tensor, "b 2"],
        image_size: tuple[int, int],
    ) -> "Cameras":
        """From the normalised intrinsics of the NPBG++ authors at this image size."""
        half = (min(image_size) - 1) / 2
        height, width = image_size
        centre = prp_ndc.new_tensor([width / 2, height / 2])
        return cls(R, T, fcl_ndc * half, centre - prp_ndc * half, image_size)

    def to_authors_ndc(self) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b 2"]]:
        """(fcl_ndc, prp_ndc) of the NPBG++ authors: the inverse of ``from_authors_ndc``."""
        half = (min(self.image_size) - 1) / 2
        height, width = self.image_size
        centre = self.principal_point.new_tensor([width / 2, height / 2])
        return self.focal_length / half, (centre - self.principal_point) / half

    def to_pytorch3d(self) -> "PerspectiveCameras":
        """The same cameras as PyTorch3D's class. Raises ImportError when PyTorch3D is not installed."""
        from pytorch3d.renderer import PerspectiveCameras

        arguments: dict[str, Any] = {"in_ndc": False, "image_size": [self.image_size] * len(self), "device": self.R.device}
        return PerspectiveCameras(R=self.R, T=self.T, focal_length=self.focal_length, principal_point=self.principal_point, **arguments)

    # ----------------------------------------------------------------- geometry
    def centers(self) -> Float[Tensor, "b 3"]:
        """Camera centres in world coordinates, for any invertible R (vertical alignment with fx != fy gives R that are not orthonormal)."""
        return -torch.linalg.solve(self.R.transpose(1, 2), self.T)

    def view(self, xyz_world: Float[Tensor, "*b n 3"]) -> Float[Tensor, "b n 3"]:
        """World points in camera coordinates; points without leading axis are transformed by every camera."""
        return xyz_world @ self.R + self.T[:, None, :]

    def project(self, xyz_world: Float[Tensor, "*b n 3"]) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
        """World points to (uv_px, depth). Points at depth 0 give inf or nan; points behind the camera have negative depth and mirrored pixels."""
        xyz_cam = self.view(xyz_world)
        depth = xyz_cam[..., 2]
        uv_px = self.principal_point[:, None, :] - self.focal_length[:, None, :] * xyz_cam[..., :2] / depth[..., None]
        return uv_px.to(depth.dtype), depth

    def rays(self) -> tuple[Float[Tensor, "b h w 3"], Float[Tensor, "b h w 3"]]:
        """World-space (origins, unit directions) through the pixel centres."""
        height, width = self.image_size
        v, u = torch.meshgrid(
            torch.arange(height, dtype=self.R.dtype, device=self.R.device) + 0.5,
            torch.arange(width, dtype=self.R.dtype, device=self.R.device) + 0.5,
            indexing="ij",
        )
        origins, directions = self.rays_through(torch.stack([u, v], -1).reshape(1, -1, 2).to(self.principal_point.dtype))
        return origins.unflatten(1, (height, width)), directions.unflatten(1, (height, width))

    def rays_through(self, uv_px: Float[Tensor, "*b n 2"]) -> tuple[Float[Tensor, "b n 3"], Float[Tensor, "b n 3"]]:
        """World-space (origins, unit directions) through image points; points without leading axis are shared by all cameras."""
        xy = (self.principal_point[:, None, :] - uv_px) / self.focal_length[:, None, :]
        xyz_cam = torch.cat([xy, torch.ones_like(xy[..., :1])], -1).to(self.R.dtype)
        directions = torch.nn.functional.normalize(xyz_cam @ torch.linalg.inv(self.R), dim=-1)
        return self.centers()[:, None, :].expand_as(directions), directions

    # ------------------------------------------------------------------ changed images
    def crop(self, top: int, left: int, image_size: tuple[int, int]) -> "Cameras":
        """Cameras of the sub-image whose top-left pixel is (top, left); negative values pad."""
        return replace(self, principal_point=self.principal_point - self.principal_point.new_tensor([left, top]), image_size=image_size)

    def resize(self, image_size: tuple[int, int]) -> "Cameras":
        """Cameras of the same image resampled to another size (height, width)."""
        scale = self.focal_length.new_tensor([image_size[1] / self.image_size[1], image_size[0] / self.image_size[0]])
        return replace(self, focal_length=self.focal_length * scale, principal_point=self.principal_point * scale, image_size=image_size)

    def zoom(self, factor: float) -> "Cameras":
        """Cameras that magnify by ``factor`` about the image centre, at unchanged image size."""
        height, width = self.image_size
        centre = self.principal_point.new_tensor([width / 2, height / 2])
        return replace(self, focal_length=self.focal_length * factor, principal_point=centre + (self.principal_point - centre) * factor)


def rigid_defect(matrix: Float[Tensor, "4 4"], tolerance: float = 1e-3) -> str | None:
    """Message why a 4x4 pose is not rigid; None if it is: finite, last row (0, 0, 0, 1), orthonormal rotation with determinant +1."""
    if not torch.isfinite(matrix).all():
        return "it holds values that are not finite"
    if (matrix[3] - matrix.new_tensor([0.0, 0.0, 0.0, 1.0])).abs().max() > tolerance:
        return f"its last row is {matrix[3].tolist()} instead of [0, 0, 0, 1]"
    rotation = matrix[:3, :3].double()
    error = (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max().item()
    if error > tolerance:
        return f"its rotation part is not orthonormal (largest error {error:.3g}: scaled, sheared or zero)"
    if torch.linalg.det(rotation) < 0:
        return "its rotation part has determinant -1 (a mirror)"
    return None
